"""`dtrl demo`: the main job from nothing to a plot, in a few minutes on a laptop."""

import argparse
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_json, write_json

RECIPE = "cartpole-small"
UPDATES = 600
TARGETS = (25.0, 50.0, 100.0, 200.0, 350.0, 500.0)
"""Returns from a beginner's to the best in the data."""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        help="make a dataset, train on it, evaluate, plot: a few minutes",
        description="Make a small CartPole dataset of mixed quality, train a Decision Transformer on it, and ask it for several returns.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--logdir",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where everything goes (default: runs/demo)",
    )
    parser.add_argument(
        "--updates", type=int, default=UPDATES, metavar="N", help=f"gradient updates (default: {UPDATES})"
    )
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes for each target (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from dtrl.collect import load_recipe, make_dataset
    from dtrl.evaluation.callback import EvaluationCallback
    from dtrl.training import train
    from dtrl.trajectories import describe, load_trajectories, local_datasets

    began = time.monotonic()
    folder = arguments.logdir
    os.environ["MINARI_DATASETS_PATH"] = str((folder / "datasets").absolute())
    recipe = load_recipe(RECIPE)
    if recipe.id in local_datasets():
        print(f"1. {recipe.id} is here already, in {folder / 'datasets'}")
    else:
        print(
            f"1. making {recipe.id}: Stable-Baselines3's {recipe.algorithm.name if recipe.algorithm else ''} learns {recipe.env}, recorded while it does"
        )
        make_dataset(recipe)
    trajectories = load_trajectories(recipe.id)
    print(describe(trajectories).text())
    run_folder = next(path for i in count(1) if not (path := folder / f"run-{i}").exists())
    print(f"2. training a Decision Transformer on it: {arguments.updates} updates")
    evaluation = EvaluationCallback(trajectories, TARGETS, arguments.episodes, every=0, seed=arguments.seed)
    train(
        trajectories,
        updates=arguments.updates,
        seed=arguments.seed,
        schedule="cosine",
        logdir=run_folder,
        callbacks=[evaluation],
        progress=True,
    )
    report = evaluation.history[-1][1]
    print(f"3. asked for {len(TARGETS)} returns, {arguments.episodes} episodes each:")
    print(report.table())
    report.plot(folder / "calibration.png", trajectories.episode_returns)
    report.to_json(folder / "report.json")
    write_json(arguments.json, report.to_dict())
    print(
        f"4. asked against achieved: {folder / 'calibration.png'}; the log: {run_folder}; {time.monotonic() - began:.0f} s in all. Next:"
    )
    print(f"  tensorboard --logdir {folder}")
    print(f"  dtrl evaluate {run_folder} --target-returns 75 300 --episodes 50")
    print("  dtrl datasets list")
