"""`dtrl datasets list | show ID | make RECIPE`."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_flags, add_json, given, write_json
from dtrl.config import DataConfig


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "datasets", help="list, inspect and make datasets", description="Offline datasets, in Minari's format."
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
    show.add_argument("dataset", metavar="ID", help="a Minari id, or a dataset's folder")
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
    add_json(show)
    add_flags(show, DataConfig, "data")
    make = actions.add_parser(
        "make",
        help="make a dataset from a recipe",
        description="Train behaviour policies and record them, as a TOML recipe says.",
    )
    make.set_defaults(run=run_make)
    make.add_argument("recipe", metavar="RECIPE", help="a name from `dtrl datasets list`, or the path of a TOML file")
    make.add_argument("--as", dest="dataset_id", metavar="ID", help="id of the dataset (default: the recipe's)")
    make.add_argument("--overwrite", action="store_true", help="replace a dataset of that id")
    add_json(make)


def run_list(arguments: argparse.Namespace) -> None:
    from dtrl.collect import list_recipes, load_recipe
    from dtrl.trajectories.sources import local_datasets, minari_root, read_metadata

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
    from dtrl.trajectories import describe, load_trajectories

    trajectories = load_trajectories(arguments.dataset, **given(arguments, DataConfig))
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
        load_recipe(arguments.recipe), dataset_id=arguments.dataset_id, overwrite=arguments.overwrite
    )
    description = describe(load_trajectories(dataset))
    print(description.text())
    print(f"train on it: dtrl train {dataset} --logdir runs/{dataset.split('/')[0]}")
    write_json(arguments.json, description.to_dict())
