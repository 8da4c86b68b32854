"""`dtrl datasets list | show ID | make RECIPE | import FILE | reference ENV`."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_file_flags, add_flags, add_json, add_modules, given, load, write_json
from dtrl.config import DataConfig, SourceConfig
from dtrl.errors import InputError


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "datasets", help="list, inspect, make and import datasets", description="Offline datasets, in Minari's format."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="datasets on this machine, and recipes that make others", description="Local datasets and recipes."
    )
    listing.set_defaults(run=run_list)
    add_json(listing)
    show = actions.add_parser(
        "show",
        help="what is in a dataset, with warnings",
        description="Spaces, counts, distributions, and what stands in the way of learning.",
    )
    show.set_defaults(run=run_show)
    show.add_argument(
        "datasets", nargs="+", metavar="ID", help="a Minari id, a dataset's folder, or a file; several count as one"
    )
    show.add_argument(
        "--max-timestep",
        type=int,
        metavar="INT",
        help="length of the timestep table that a model will have (default: the env's limit)",
    )
    show.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="also draw returns and lengths, actions, coverage and quality over the episodes, as PNGs in DIR",
    )
    add_modules(show)
    add_json(show)
    add_file_flags(show)
    add_flags(show, DataConfig, "data")
    make = actions.add_parser(
        "make",
        help="make a dataset from a recipe",
        description="Train behaviour policies and record them, as a TOML recipe says. Interrupted, it goes on when it is run "
        "again. How to write a recipe, key by key: docs/recipes.md.",
    )
    make.set_defaults(run=run_make)
    make.add_argument("recipe", metavar="RECIPE", help="a name from `dtrl datasets list`, or the path of a TOML file")
    make.add_argument("--as", dest="dataset_id", metavar="ID", help="id of the dataset (default: the recipe's)")
    make.add_argument("--overwrite", action="store_true", help="replace a dataset of that id")
    make.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes that play; the dataset is the same whatever N (default: 1)",
    )
    add_modules(make)
    add_json(make)
    add_import(actions)
    add_reference(actions)


def add_import(actions: Any) -> None:
    bring = actions.add_parser(
        "import",
        help="turn a file of another tool into a dataset",
        description="Turn a file (D4RL's or d3rlpy's HDF5, a pickle of episodes, NPZ, CSV, Parquet) into a Minari dataset, and say what was assumed.",
    )
    bring.set_defaults(run=run_import)
    bring.add_argument("file", type=Path, metavar="FILE", help="the file; nothing in it is executed")
    bring.add_argument(
        "--as", dest="dataset_id", required=True, metavar="ID", help="id of the dataset, such as mine/walk-v0"
    )
    bring.add_argument("--overwrite", action="store_true", help="replace a dataset of that id")
    add_modules(bring)
    add_json(bring)
    add_file_flags(bring)


def add_reference(actions: Any) -> None:
    measure = actions.add_parser(
        "reference",
        help="measure the returns between which scores are normalised",
        description="Measure the mean return of random actions in an environment and, given a policy, of that policy as the expert.",
    )
    measure.set_defaults(run=run_reference)
    measure.add_argument("env", metavar="ENV", help="id of the environment, such as CartPole-v1")
    measure.add_argument(
        "--policy", metavar="RUN", help="the expert: a run directory, a checkpoint's folder, or a saved policy"
    )
    measure.add_argument(
        "--target-return", type=float, metavar="R", help="return that the expert is asked for (default: its own)"
    )
    measure.add_argument("--episodes", type=int, default=100, metavar="N", help="episodes of each (default: 100)")
    measure.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first episode (default: 0)")
    add_modules(measure)
    add_json(measure)


def run_list(arguments: argparse.Namespace) -> None:
    from dtrl.collect import list_recipes, load_recipe
    from dtrl.trajectories.minari_files import read_metadata
    from dtrl.trajectories.sources import local_datasets, minari_root

    datasets = []
    for name, folder in local_datasets().items():
        metadata = read_metadata(folder)
        datasets.append(
            {
                "id": name,
                "episodes": metadata.get("total_episodes"),
                "steps": metadata.get("total_steps"),
                "description": metadata.get("description", ""),
            }
        )
    recipes = [
        {"recipe": name, "makes": recipe.id, "description": recipe.description}
        for name in list_recipes()
        for recipe in [load_recipe(name)]
    ]
    print(f"datasets in {minari_root()}:")
    for d in datasets:
        print(f"  {d['id']:<28} {d['episodes']:>7,} episodes {d['steps']:>10,} steps  {d['description']}")
    if not datasets:
        print("  none yet")
    print("recipes (`dtrl datasets make NAME`):")
    for r in recipes:
        print(f"  {r['recipe']:<28} makes {r['makes']:<24} {r['description']}")
    write_json(arguments.json, {"datasets": datasets, "recipes": recipes})


def run_show(arguments: argparse.Namespace) -> None:
    from dtrl.trajectories import describe

    trajectories = load(given(arguments, SourceConfig, DataConfig))
    description = describe(trajectories, arguments.max_timestep)
    print(description.text())
    result = description.to_dict()
    if arguments.plots is not None:
        from dtrl.evaluation.dataset_plots import save_dataset_plots

        result["plots"] = [str(path) for path in save_dataset_plots(trajectories, arguments.plots)]
        for path in result["plots"]:
            print(f"  plot: {path}")
    write_json(arguments.json, result)


def run_make(arguments: argparse.Namespace) -> None:
    from dtrl.collect import load_recipe, make_dataset
    from dtrl.trajectories import describe, load_trajectories

    dataset = make_dataset(
        load_recipe(arguments.recipe),
        dataset_id=arguments.dataset_id,
        overwrite=arguments.overwrite,
        jobs=arguments.jobs,
        modules=arguments.modules,
    )
    description = describe(load_trajectories(dataset, short_episodes="keep"))
    print(description.text())
    print(f"train on it: dtrl train {dataset} --logdir runs/{dataset.split('/')[0]}")
    write_json(arguments.json, description.to_dict())


def run_import(arguments: argparse.Namespace) -> None:
    from dtrl.collect import write_minari
    from dtrl.collect.recording import check_target
    from dtrl.trajectories import describe, load_trajectories
    from dtrl.trajectories.formats import read_file

    check_target(arguments.dataset_id, arguments.overwrite)
    trajectories, assumed = read_file(arguments.file, **given(arguments, SourceConfig))
    dataset = write_minari(
        trajectories,
        arguments.dataset_id,
        description=f"From {arguments.file.name}: {assumed['format']}.",
        overwrite=arguments.overwrite,
    )
    description = describe(load_trajectories(dataset, short_episodes="keep"))
    print(f"read {arguments.file}, and assumed:")
    for subject, words in assumed.items():
        print(f"  {subject:<17} {words}")
    print(description.text())
    print(f"train on it: dtrl train {dataset} --logdir runs/{dataset.split('/')[0]}")
    write_json(arguments.json, {"assumed": assumed, **description.to_dict()})


def run_reference(arguments: argparse.Namespace) -> None:
    from dtrl.acting import load_policy
    from dtrl.evaluation.reference_runs import policy_return, random_return
    from dtrl.evaluation.references import REFERENCE_RETURNS

    expert = load_policy(arguments.policy) if arguments.policy else None
    if expert is None and arguments.target_return is not None:
        raise InputError("--target-return is what the expert is asked for; name it with --policy.")
    measured = {"random": random_return(arguments.env, arguments.episodes, arguments.seed, progress=True)}
    if expert is not None:
        measured["expert"] = policy_return(
            expert, arguments.env, arguments.episodes, arguments.seed, arguments.target_return
        )
    print(f"reference returns of {arguments.env}:")
    for name, result in measured.items():
        print(f"  {name:<8} {result.mean:.6g} ± {result.standard_error:.2g} (mean ± standard error; {result.how})")
    shipped = REFERENCE_RETURNS.get(arguments.env)
    if shipped is None:
        print("  dtrl ships none; a dataset brings its own as ref_min_score and ref_max_score")
    else:
        print(f"  dtrl's   {shipped.random:.6g} (random) and {shipped.expert:.6g} (expert): {shipped.source}")
    scale = None if shipped is None else {"random": shipped.random, "expert": shipped.expert, "source": shipped.source}
    write_json(
        arguments.json,
        {"env": arguments.env, "episodes": arguments.episodes, "seed": arguments.seed, "shipped": scale}
        | {name: result.to_dict() for name, result in measured.items()},
    )
