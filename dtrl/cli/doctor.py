"""`dtrl doctor RUN`, and before training `dtrl doctor DATASET`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.cli.arguments import add_flags, add_json, add_modules, data_of, given, load, read_config, write_json
from dtrl.config import ModelConfig
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting import Policy
    from dtrl.evaluation.meters import Finding
    from dtrl.trajectories import Trajectories


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="say in plain words what is wrong with a policy, or with a dataset before training",
        description="Measure the known failures of a policy (deafness to the target, copying, exposure bias, repetition, leaving the data, memorisation), "
        "and say what to try next. Given a dataset instead of a run, say what in it stands in the way of a model with the given settings.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("subject", metavar="RUN", help="a run directory, a saved policy, or a dataset")
    parser.add_argument(
        "--data", metavar="DATASET", help="the policy's data (default: those that the run was trained on)"
    )
    parser.add_argument(
        "--target-return", type=float, metavar="R", help="return to ask for (default: the policy's own)"
    )
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes to play (default: 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all that is drawn (default: 0)")
    parser.add_argument("--env", metavar="ID", help="another environment with the same spaces (default: the data's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    add_modules(parser)
    add_json(parser)
    add_flags(parser, ModelConfig, "model, for a dataset")


def run(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.doctor import summary

    is_policy = names_policy(arguments.subject)
    settings = given(arguments, ModelConfig)
    if is_policy and settings:
        raise InputError(
            f"{', '.join(settings)} goes with a dataset; {arguments.subject} is a policy, whose settings are known."
        )
    findings = of_policy(arguments) if is_policy else of_dataset(arguments, settings)
    for finding in findings:
        print(finding.text())
    write_json(arguments.json, {"subject": arguments.subject, **summary(findings)})


def names_policy(subject: str) -> bool:
    """Whether the subject is a run, a checkpoint's folder or a file of a policy; else it has to be a dataset."""
    from dtrl.acting.runs import CONFIG_FILE, MANIFEST

    path = Path(subject)
    inside = ("checkpoints", MANIFEST, CONFIG_FILE)
    return path.suffix == ".safetensors" or any((path / name).exists() for name in inside)


def of_dataset(arguments: argparse.Namespace, settings: dict[str, Any]) -> "list[Finding]":
    from dtrl.evaluation.meters.data import examine_data

    if arguments.data is not None or arguments.target_return is not None:
        raise InputError(
            f"--data and --target-return go with a policy, and {arguments.subject} is none; leave them out."
        )
    try:
        trajectories = load({"datasets": [arguments.subject]})
    except InputError as error:
        if Path(arguments.subject).is_dir():
            raise InputError(
                f"{arguments.subject} holds no checkpoint, as a run does; as a dataset: {error}"
            ) from error
        raise
    return examine_data(trajectories, ModelConfig(**settings))


def of_policy(arguments: argparse.Namespace) -> "list[Finding]":
    from dtrl.acting import ExportedPolicy, load_policy
    from dtrl.evaluation.doctor import examine, without_data
    from dtrl.training.optimization import choose_device
    from dtrl.trajectories.seeds import recorded_seeds

    policy = load_policy(arguments.subject)
    if isinstance(policy, ExportedPolicy):
        raise InputError(f"{arguments.subject} was exported, and the meters look inside the model; give the run.")
    policy = policy.to(choose_device(arguments.device))
    try:
        trajectories = data_of(policy, Path(arguments.subject), arguments.data)
    except InputError as error:
        if arguments.data is not None:
            raise
        return without_data(str(error))
    findings = examine(
        policy,
        trajectories,
        target_return=arguments.target_return,
        episodes=arguments.episodes,
        seed=arguments.seed,
        env=arguments.env,
        episode_seeds=recorded_seeds(trajectories),
    )
    return [*findings, held_out_of(Path(arguments.subject), policy, trajectories, arguments.data, arguments.seed)]


def held_out_of(run: Path, policy: "Policy", trajectories: "Trajectories", named: str | None, seed: int) -> "Finding":
    """What the episodes say that the run's training left out, where it did, of the data that it was trained on."""
    from dtrl.acting.runs import CONFIG_FILE
    from dtrl.evaluation.meters.finding import Finding
    from dtrl.evaluation.meters.memorization import METER, memorization
    from dtrl.presets import training_data
    from dtrl.training.holdout import split_off
    from dtrl.training.logging import logged

    config = run / CONFIG_FILE
    if named is not None or not config.is_file():
        return Finding(METER, None, "which episodes its training left out is known of a run with its own data alone.")
    training = read_config(config, "training")
    if read_config(config, "online"):
        return Finding(METER, None, "a run that plays learns from all that it has, and leaves no episode out.")
    if not training.get("holdout"):
        return Finding(
            METER, None, "its training left no episode out to compare with; --holdout 0.1 leaves out a tenth."
        )
    learnt, held_out = split_off(training_data(policy.config, trajectories), training["holdout"], training["seed"])
    return memorization(policy, learnt, held_out, logged(run, "val/loss"), seed=seed)
