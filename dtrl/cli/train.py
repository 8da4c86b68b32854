"""`dtrl train DATASET [DATASET …] --logdir RUN`, alone or started by torchrun in several processes."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import (
    add_evaluation,
    add_file_flags,
    add_flags,
    add_json,
    add_modules,
    env_options,
    given,
    load,
    names_of,
    read_config,
    write_json,
)
from dtrl.config import DataConfig, ModelConfig, SourceConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.processes import worker_numbers


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train",
        help="train a policy on a dataset",
        description="Train a policy on a Minari dataset, and evaluate it at the end. Several processes train one model: "
        "torchrun --nproc-per-node N -m dtrl train DATASET --logdir RUN.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "datasets",
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="DATASET",
        help="a Minari id such as hopper/medium-v0, a dataset's folder, or a file as `dtrl datasets import` takes it; several are mixed "
        "(default: those of the run that is resumed, or of the --config)",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=argparse.SUPPRESS,
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of RUN, with the data and settings of its config.toml",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="settings from a file, such as another run's config.toml; flags win over it, and named datasets over all that says which data it loads",
    )
    add_json(parser)
    add_modules(parser)
    add_flags(parser, TrainingConfig, "training")
    add_flags(parser, ModelConfig, "model")
    add_flags(parser, DataConfig, "data")
    add_file_flags(parser)
    add_evaluation(
        parser, "evaluation during training", "one, at the end", "the 25, 50, 75 and 95 %% quantiles of the data"
    )


def run(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.callback import EvaluationCallback
    from dtrl.training import train

    settings = settings_of(arguments)
    trajectories = load(settings)
    settings = {name: value for name, value in settings.items() if name in names_of(TrainingConfig, ModelConfig)}
    settings.setdefault("updates", TrainingConfig().updates)
    callbacks = []
    if arguments.eval_episodes:
        callbacks.append(
            EvaluationCallback(
                trajectories,
                arguments.target_returns,
                arguments.eval_episodes,
                arguments.eval_every,
                settings.get("seed", 0),
                **env_options(arguments),
            )
        )
    policy = train(
        trajectories, logdir=arguments.logdir, resume=arguments.resume, callbacks=callbacks, progress=True, **settings
    )
    if worker_numbers()[0]:
        return  # what is to be told is told by the first of several processes
    report = callbacks[0].history[-1][1] if callbacks and callbacks[0].history else None
    if report is not None:
        print(report.table())
    print(f"trained {policy.updates:,} updates on {trajectories.origin.name}; the run is in {arguments.logdir}. Next:")
    print(f"  dtrl evaluate {arguments.logdir} --target-returns {policy.target_return:.6g} --episodes 100")
    print(f"  tensorboard --logdir {arguments.logdir.parent}")
    write_json(arguments.json, read_result(arguments.logdir, report))


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every setting that is not left to its default: those of the run that is resumed, over them those of --config, over them the flags."""
    from dtrl.acting.runs import CONFIG_FILE

    flags = given(arguments, TrainingConfig, ModelConfig, DataConfig, SourceConfig)
    asked = read_config(arguments.config)
    if "datasets" in flags:
        asked = {name: value for name, value in asked.items() if name not in names_of(SourceConfig)}
    asked |= flags
    begun = arguments.logdir / CONFIG_FILE
    settings = {**read_config(begun), **asked} if arguments.resume and begun.is_file() else asked
    if "datasets" not in settings and settings is not asked:
        raise InputError(
            f"{arguments.logdir} was trained on data made in Python; resume it there by dtrl.train(…, resume=True), or name the dataset that they are."
        )
    if "datasets" not in settings and arguments.resume:
        raise InputError(f"there is no run in {arguments.logdir} to resume; name a dataset to begin one there.")
    if "datasets" not in settings:
        raise InputError(
            "no dataset was named; give an id such as hopper/medium-v0, or the path of a folder or a file."
        )
    if settings is not asked:
        check_same_data(settings, read_config(begun), arguments.logdir)
    return settings


def check_same_data(settings: dict[str, Any], stored: dict[str, Any], run: Path) -> None:
    """Raise InputError where a run is resumed on data that were loaded otherwise than its own, naming each difference."""
    from dtrl.training.checkpoint import differences

    changed = []
    for kind in (SourceConfig, DataConfig):
        ours, theirs = ({n: v for n, v in all.items() if n in names_of(kind)} for all in (settings, stored))
        if kind is DataConfig or "datasets" in theirs:  # a run on data made in Python does not say where they are from
            changed += differences(asdict(kind(**ours)), asdict(kind(**theirs)))
    if changed:
        raise InputError(
            f"{run} was begun on other data ({'; '.join(changed)}); resume it without naming any, or begin another run."
        )


def read_result(run: Path, report: Any) -> dict[str, Any]:
    import json

    from dtrl.acting.runs import RESULT_FILE

    result: dict[str, Any] = json.loads((run / RESULT_FILE).read_text())
    return {**result, "evaluation": None if report is None else report.to_dict()}
