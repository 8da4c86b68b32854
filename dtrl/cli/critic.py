"""`dtrl critic DATASET --output FILE`: train what says how much an action is worth."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_flags, given
from dtrl.config import CriticConfig


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "critic",
        help="train a critic on a dataset, for `dtrl evaluate --strategy best_of`",
        description="Learn from a dataset how much an action is worth (implicit Q-learning), and write it to a file. With "
        "`dtrl evaluate RUN --strategy best_of --critic FILE`, a policy then takes the best of the actions that it draws.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("dataset", metavar="DATASET", help="a Minari id, or the path of a folder or file")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write (.safetensors)")
    add_flags(parser, CriticConfig, "training")


def run(arguments: argparse.Namespace) -> None:
    from dtrl.training.critic import train_critic
    from dtrl.trajectories import load_trajectories

    config = CriticConfig(**given(arguments, CriticConfig))
    critic = train_critic(load_trajectories(arguments.dataset), config, progress=True)
    critic.save(arguments.output)
    print(f"wrote {arguments.output}; next:\n  dtrl evaluate RUN --strategy best_of --critic {arguments.output}")
