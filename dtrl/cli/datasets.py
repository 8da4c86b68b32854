"""`dtrl datasets list | show ID | make RECIPE | import FILE | reference ENV`."""

import argparse
import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.cli.arguments import add_file_flags, add_flags, add_jobs, add_json, add_modules, given, load, write_json
from dtrl.config import DataConfig, SourceConfig
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting import Actor
    from dtrl.collect import Recipe
    from dtrl.trajectories import Trajectories


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
    add_make(actions)
    add_import(actions)
    add_reference(actions)


def add_make(actions: Any) -> None:
    make = actions.add_parser(
        "make",
        help="make a dataset from a recipe, of any size",
        description="Train behaviour policies and record them, as a TOML recipe says, or record policies that you have. Interrupted, it goes on when it "
        "is run again. How to write a recipe, key by key: docs/recipes.md.",
    )
    make.set_defaults(run=run_make)
    make.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="a name from `dtrl datasets list`, or the path of a TOML file; several are made one after the other",
    )
    make.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="make a dataset of N steps, in whole episodes, with its behaviours in the same proportion",
    )
    make.add_argument("--episodes", type=int, metavar="N", help="likewise, of N episodes")
    make.add_argument(
        "--policy",
        dest="policies",
        nargs="+",
        default=[],
        metavar="[STEP=]FILE[:SNAPSHOT]",
        help="policies (.npz of plain arrays, .zip of Stable-Baselines3) that stand for the checkpoints of the recipe's training, so that nothing is "
        "trained; a file of snapshots along a training imitates a replay buffer",
    )
    make.add_argument(
        "--as",
        dest="dataset_id",
        metavar="ID",
        help="id of the dataset (default: the recipe's, to which another size and policies of files are added)",
    )
    make.add_argument("--overwrite", action="store_true", help="replace a dataset of that id")
    add_jobs(make, "processes that play; the dataset is the same whatever N (default: 1)")
    add_modules(make)
    add_json(make)


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
        "--policy",
        metavar="RUN",
        help="the expert: a run directory, a checkpoint's folder, or a saved policy; or one of Stable-Baselines3 (.zip) or of plain arrays (.npz)",
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
    trajectories = load(given(arguments, SourceConfig, DataConfig))
    result = show(trajectories, arguments.max_timestep)
    if arguments.plots is not None:
        from dtrl.evaluation.dataset_plots import save_dataset_plots

        result["plots"] = [str(path) for path in save_dataset_plots(trajectories, arguments.plots)]
        for path in result["plots"]:
            print(f"  plot: {path}")
    write_json(arguments.json, result)


def show(trajectories: "Trajectories", max_timestep: int | None = None) -> dict[str, Any]:
    """Print what is in a dataset, and on which scale its returns are normalised; the same for JSON."""
    from dtrl.acting.environments import environment_id
    from dtrl.evaluation.references import reference_for
    from dtrl.trajectories import describe

    description = describe(trajectories, max_timestep)
    env = None
    with suppress(InputError):  # a dataset may name no environment, or write it in a form that nobody reads
        env = environment_id(trajectories.origin.env_spec)
    reference = reference_for(env, *(trajectories.origin.reference or (None, None)))
    print(description.text())
    if reference is not None:
        print(f"  scores: {reference.text()}; {reference.source}")
    return {**description.to_dict(), "reference": None if reference is None else dataclasses.asdict(reference)}


def run_make(arguments: argparse.Namespace) -> None:
    from dtrl.collect import make_dataset
    from dtrl.collect.recording import check_target
    from dtrl.trajectories import load_trajectories

    made = []
    recipes = recipes_to_make(arguments)
    for recipe in recipes:  # before hours are spent on the first
        check_target(arguments.dataset_id or recipe.id, arguments.overwrite)
    for recipe in recipes:
        dataset = make_dataset(
            recipe,
            dataset_id=arguments.dataset_id,
            overwrite=arguments.overwrite,
            jobs=arguments.jobs,
            modules=arguments.modules,
            ray=arguments.ray,
        )
        made.append(show(load_trajectories(dataset, short_episodes="keep")))
        print(f"train on it: dtrl train {dataset} --logdir runs/{dataset.split('/')[0]}")
    write_json(arguments.json, made[0] if len(made) == 1 else {"datasets": made})


def recipes_to_make(arguments: argparse.Namespace) -> "list[Recipe]":
    """Those that were named, in the size and with the policies that were asked for. Raises InputError for what does not go together."""
    from dtrl.collect import PolicyFile, load_recipe, resized, with_policies

    recipes = [load_recipe(name) for name in arguments.recipes]
    if arguments.dataset_id is not None and len(recipes) > 1:
        raise InputError(f"--as {arguments.dataset_id} names one dataset, and {len(recipes)} are made; leave it out.")
    if len({recipe.id for recipe in recipes}) < len(recipes):
        raise InputError(f"two of the recipes {', '.join(arguments.recipes)} make the same dataset; name each once.")
    files = [PolicyFile.parse(text) for text in arguments.policies]
    steps = {b.checkpoint for recipe in recipes for b in recipe.behaviour}
    for file in files:
        if file.checkpoint is not None and file.checkpoint not in steps:
            known = sorted(step for step in steps if step is not None)
            raise InputError(
                f"--policy {file.checkpoint}={file.path} stands for no checkpoint of the recipe; choose of {known}."
            )
    return [resized(with_policies(r, files), steps=arguments.steps, episodes=arguments.episodes) for r in recipes]


def run_import(arguments: argparse.Namespace) -> None:
    from dtrl.collect import write_minari
    from dtrl.collect.recording import check_target
    from dtrl.trajectories import load_trajectories
    from dtrl.trajectories.formats import read_file

    check_target(arguments.dataset_id, arguments.overwrite)
    trajectories, assumed = read_file(arguments.file, **given(arguments, SourceConfig))
    dataset = write_minari(
        trajectories,
        arguments.dataset_id,
        description=f"From {arguments.file.name}: {assumed['format']}.",
        overwrite=arguments.overwrite,
    )
    made = load_trajectories(dataset, short_episodes="keep")
    print(f"read {arguments.file}, and assumed:")
    for subject, words in assumed.items():
        print(f"  {subject:<17} {words}")
    result = show(made)
    print(f"train on it: dtrl train {dataset} --logdir runs/{dataset.split('/')[0]}")
    write_json(arguments.json, {"assumed": assumed, **result})


def load_expert(arguments: argparse.Namespace) -> "Actor | None":
    """The policy that `--policy` names, of dtrl or of another library."""
    from dtrl.acting import load_policy
    from dtrl.interop.stable_baselines import ENDINGS, load_actor

    if not arguments.policy:
        return None
    if Path(arguments.policy).suffix not in ENDINGS:
        return load_policy(arguments.policy)
    if arguments.target_return is not None:
        raise InputError(f"{arguments.policy} cannot be asked for a return; leave --target-return out.")
    return load_actor(arguments.policy, arguments.env)


def run_reference(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.reference_runs import policy_return, random_return
    from dtrl.evaluation.references import REFERENCE_RETURNS, with_error

    expert = load_expert(arguments)
    if expert is None and arguments.target_return is not None:
        raise InputError("--target-return is what the expert is asked for; name it with --policy.")
    measured = {"random": random_return(arguments.env, arguments.episodes, arguments.seed, progress=True)}
    if expert is not None:
        measured["expert"] = policy_return(
            expert, arguments.env, arguments.episodes, arguments.seed, arguments.target_return
        )
    print(f"reference returns of {arguments.env}:")
    for name, result in measured.items():
        shown = with_error(result.mean, result.standard_error)
        print(f"  {name:<8} {shown} (mean ± standard error; {result.how})")
    shipped = REFERENCE_RETURNS.get(arguments.env)
    if shipped is None:
        print("  dtrl ships none; a dataset brings its own as ref_min_score and ref_max_score")
    else:
        print(f"  dtrl's   {shipped.text()}; {shipped.source}")
    scale = None if shipped is None else dataclasses.asdict(shipped)
    write_json(
        arguments.json,
        {"env": arguments.env, "episodes": arguments.episodes, "seed": arguments.seed, "shipped": scale}
        | {name: result.to_dict() for name, result in measured.items()},
    )
