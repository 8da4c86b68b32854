"""`dtrl train DATASET [DATASET …] --logdir RUN`."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_flags, add_json, add_modules, given, read_config, write_json
from dtrl.config import DataConfig, ModelConfig, TrainingConfig


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train",
        help="train a policy on a dataset",
        description="Train a policy on a Minari dataset, and evaluate it at the end.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "dataset",
        nargs="+",
        metavar="DATASET",
        help="a Minari id such as hopper/medium-v0, a dataset's folder, or a file as `dtrl datasets import` takes it; several are mixed",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="for several datasets: how often windows are drawn from each (default: every episode of all alike)",
    )
    parser.add_argument(
        "--logdir",
        type=Path,
        required=True,
        metavar="RUN",
        help="folder of the run: TensorBoard log, checkpoints, result.json",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of RUN")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="settings from a file, such as another run's config.toml; flags win over it",
    )
    add_json(parser)
    add_modules(parser)
    add_flags(parser, TrainingConfig, "training")
    add_flags(parser, ModelConfig, "model")
    add_flags(parser, DataConfig, "data")
    group = parser.add_argument_group("evaluation during training")
    group.add_argument(
        "--eval-every",
        type=int,
        default=0,
        metavar="INT",
        help="updates between two evaluations (default: one, at the end)",
    )
    group.add_argument(
        "--eval-episodes",
        type=int,
        default=10,
        metavar="INT",
        help="episodes for each target; 0 never evaluates (default: 10)",
    )
    group.add_argument(
        "--target-returns",
        type=float,
        nargs="+",
        metavar="R",
        help="returns to ask for (default: the 25, 50, 75 and 95 %% quantiles of the data)",
    )


def run(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.callback import EvaluationCallback
    from dtrl.training import train
    from dtrl.trajectories import load_trajectories

    settings = {**read_config(arguments.config), **given(arguments, TrainingConfig, ModelConfig, DataConfig)}
    data = {name: settings.pop(name) for name in list(settings) if name in DataConfig.__dataclass_fields__}
    settings.setdefault("updates", TrainingConfig().updates)
    trajectories = load_trajectories(arguments.dataset, weights=arguments.weights, **data)
    callbacks = []
    if arguments.eval_episodes:
        callbacks.append(
            EvaluationCallback(
                trajectories,
                arguments.target_returns,
                arguments.eval_episodes,
                arguments.eval_every,
                settings.get("seed", 0),
            )
        )
    policy = train(
        trajectories, logdir=arguments.logdir, resume=arguments.resume, callbacks=callbacks, progress=True, **settings
    )
    report = callbacks[0].history[-1][1] if callbacks and callbacks[0].history else None
    if report is not None:
        print(report.table())
    print(f"trained {policy.updates:,} updates on {trajectories.origin.name}; the run is in {arguments.logdir}. Next:")
    print(f"  dtrl evaluate {arguments.logdir} --target-returns {policy.target_return:.6g} --episodes 100")
    print(f"  tensorboard --logdir {arguments.logdir.parent}")
    write_json(arguments.json, read_result(arguments.logdir, report))


def read_result(run: Path, report: Any) -> dict[str, Any]:
    import json

    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return {**result, "evaluation": None if report is None else report.to_dict()}
