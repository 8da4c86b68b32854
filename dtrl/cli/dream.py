"""`dtrl dream RUN`: let a model that predicts observations and rewards be its own environment."""

import argparse
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.cli.arguments import add_decoding, add_json, decoding_of, write_json
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.trajectories import Trajectories


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "dream",
        help="imagine episodes with a model that predicts everything (preset tt), beside recorded ones",
        description="Begin with recorded steps and let the model imagine how the episode goes on: its own actions, observations, rewards and ends, "
        "in the units of the environment.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("policy", metavar="RUN", help="a run directory, a checkpoint's folder, or a saved policy")
    parser.add_argument(
        "--dataset", metavar="ID", help="where the recorded beginnings are from (default: what it was trained on)"
    )
    parser.add_argument("--episodes", type=int, default=4, metavar="N", help="the first N of the dataset (default: 4)")
    parser.add_argument("--steps", type=int, default=100, metavar="T", help="imagined steps at most (default: 100)")
    parser.add_argument(
        "--prompt-steps", type=int, default=1, metavar="K", help="recorded steps before the dream (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers of --strategy sample")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.npz",
        help="write the episodes as arrays, which dtrl.load_trajectories reads",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the first one beside the recorded episode")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    add_json(parser)
    add_decoding(parser)


def run(arguments: argparse.Namespace) -> None:
    from dtrl.acting import Policy, load_policy
    from dtrl.evaluation.dream import compare, document, dream_figure, table
    from dtrl.evaluation.plots import save_figure
    from dtrl.files import write_atomically
    from dtrl.training.optimization import choose_device
    from dtrl.trajectories import load_trajectories

    policy = load_policy(arguments.policy)
    if not isinstance(policy, Policy):
        raise InputError(
            f"{arguments.policy} is an export, which acts and does not dream; give the run it was made from."
        )
    if arguments.episodes < 1:
        raise InputError(f"--episodes {arguments.episodes} must be a positive number.")
    policy.to(choose_device(arguments.device))
    recorded = load_trajectories(arguments.dataset or policy.data.dataset)
    recorded = recorded.select(range(min(arguments.episodes, recorded.num_episodes)))
    dreamt = policy.sample(
        recorded,
        arguments.steps,
        prompt_steps=arguments.prompt_steps,
        seed=arguments.seed,
        **asdict(decoding_of(arguments)),
    )
    rows = compare(recorded, dreamt, arguments.prompt_steps)
    print(table(rows))
    if arguments.output is not None:
        write_atomically(arguments.output, as_npz(dreamt))
    if arguments.plot is not None:
        save_figure(dream_figure(recorded, dreamt, arguments.prompt_steps), arguments.plot)
    write_json(
        arguments.json,
        {"dataset": policy.data.dataset, "prompt_steps": arguments.prompt_steps, "episodes": document(rows)},
    )


def as_npz(episodes: "Trajectories") -> bytes:
    """Flat arrays under Gymnasium's names, a composite space's parts left out as the format has no place for them."""
    import numpy as np
    from gymnasium import spaces

    for role in ("observation_space", "action_space"):
        if isinstance(getattr(episodes, role), spaces.Dict | spaces.Tuple):
            raise InputError(
                f"--output is for simple spaces, and the {role} is {getattr(episodes, role)}; leave it out."
            )
    stream = io.BytesIO()
    names = (
        "observations",
        "actions",
        "rewards",
        "terminations",
        "truncations",
        "final_observations",
        "episode_starts",
    )
    arrays: dict[str, Any] = {name: np.asarray(getattr(episodes, name)) for name in names}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
