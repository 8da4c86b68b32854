"""`dtrl evaluate RUN --target-returns R [R …]`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.cli.arguments import add_decoding, add_jobs, add_json, add_modules, add_workers, decoding_of, env_options
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting import Actor, ExportedPolicy, Policy
    from dtrl.evaluation import Report
    from dtrl.interop.stable_baselines import ArrayActor


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="ask a policy for returns and measure what it achieves",
        description="Play episodes for each target return, all at once, and print asked against achieved with 95 % intervals.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "policy",
        metavar="RUN",
        help="a run directory, a checkpoint's folder, or a saved policy; or, with --env, one of Stable-Baselines3 (.zip) or of plain arrays (.npz), "
        "of which nothing is unpickled",
    )
    parser.add_argument(
        "--target-returns",
        type=float,
        nargs="+",
        metavar="R",
        help="returns to ask for (default: the 95 %% quantile of the data)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="ask for returns from the 10 %% quantile of the data to 1.5 times their maximum, tell how well the policy obeys, and log the curve in RUN",
    )
    parser.add_argument("--points", type=int, metavar="N", help="targets of the sweep (default: 12)")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes for each target (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the episodes; the same for every target (default: 0)"
    )
    parser.add_argument(
        "--num-envs",
        type=int,
        metavar="N",
        help="rows of the vector environment (default: as many as episodes, at most 64); with --jobs or --ray, episodes of a piece (default: 16)",
    )
    add_workers(parser)
    add_jobs(
        parser,
        "processes that play pieces of the episodes on processors, each with a model of its own; the report is the same whatever N (default: this "
        "process plays all at once)",
    )
    parser.add_argument("--env", metavar="ID", help="another environment with the same spaces (default: the data's)")
    parser.add_argument(
        "--observation",
        metavar="PART",
        help="the part of the environment's observation that the policy sees, such as image (default: the one that fits)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument(
        "--engine",
        choices=("eager", "numpy", "onnx", "aoti", "graph"),
        help="what runs the model (default: eager, or what a file was exported for)",
    )
    parser.add_argument(
        "--context",
        choices=("window", "block", "banded", "full"),
        help="what the policy looks back on (default: as it was trained)",
    )
    parser.add_argument(
        "--context-length", type=int, metavar="K", help="steps it looks back (default: as it was trained)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw asked against achieved")
    parser.add_argument("--video", type=Path, metavar="FILE.gif", help="also record one episode of the first target")
    parser.add_argument(
        "--normalize",
        type=Path,
        metavar="FILE",
        help="for a .zip: statistics of the VecNormalize that it was trained with (.npz or .json)",
    )
    add_modules(parser)
    add_json(parser)
    add_decoding(parser)


def run(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.video import save_video

    check_sweep(arguments)
    policy = load_other(arguments) if Path(arguments.policy).suffix in (".zip", ".npz") else load(arguments)
    report = asked_of(policy, arguments)
    print(report.table())
    if arguments.sweep:
        log_sweep(Path(arguments.policy), policy, report)
    if report.timing is not None:
        print(report.timing.text())
    if arguments.json is not None:
        report.to_json(arguments.json)
    if arguments.plot is not None:
        report.plot(arguments.plot)
    if arguments.video is not None:
        save_video(
            arguments.video,
            policy,
            report.targets[0].target_return,
            arguments.seed,
            arguments.env,
            arguments.observation,
        )


def load(arguments: argparse.Namespace) -> "Policy | ExportedPolicy":
    """A policy of dtrl's."""
    from dtrl.acting import ExportedPolicy, load_policy

    if arguments.normalize is not None:
        raise InputError("--normalize is for a policy of Stable-Baselines3; dtrl's own hold their statistics.")
    policy = load_policy(
        arguments.policy,
        engine=arguments.engine,
        rows=arguments.num_envs if arguments.engine == "aoti" else None,
        context=arguments.context,
        context_length=arguments.context_length,
        decoding=decoding_of(arguments),
    )
    if not isinstance(policy, ExportedPolicy):
        from dtrl.training.optimization import choose_device

        elsewhere = arguments.jobs is not None or arguments.ray is not None
        policy = policy.to("cpu" if elsewhere and arguments.device == "auto" else choose_device(arguments.device))
    elif arguments.device not in ("auto", place := "cuda" if policy.engine_name == "graph" else "cpu"):
        raise InputError(
            f"--device {arguments.device} is for the engine eager; this policy's, {policy.engine_name}, runs on {place}."
        )
    return policy


def load_other(arguments: argparse.Namespace) -> "ArrayActor":
    """A policy of another library. Raises InputError for what it has no use for."""
    from dtrl.interop.stable_baselines import load_actor

    name = arguments.policy
    if arguments.env is None:
        raise InputError(f"{name} does not say which environment it is for; name it by --env.")
    useless = [
        f"--{flag.replace('_', '-')}"
        for flag in ("target_returns", "engine", "context", "context_length", "observation")
        if getattr(arguments, flag) is not None
    ]
    if useless:
        raise InputError(
            f"{name} looks at the observation alone and has no use for {', '.join(useless)}; leave it out."
        )
    return load_actor(name, arguments.env, arguments.normalize, decoding_of(arguments))


def check_sweep(arguments: argparse.Namespace) -> None:
    if arguments.sweep and arguments.target_returns is not None:
        raise InputError("--sweep chooses the returns to ask for; leave --target-returns out.")
    if arguments.points is not None and not arguments.sweep:
        raise InputError(f"--points {arguments.points} goes with --sweep; add it, or leave the points out.")


def asked_of(policy: "Actor", arguments: argparse.Namespace) -> "Report":
    """The evaluation that the arguments ask for."""
    from dtrl.evaluation import evaluate, sweep

    rest: dict[str, Any] = {
        "env": arguments.env,
        "observation": arguments.observation,
        **env_options(arguments),
        "jobs": arguments.jobs,
        "ray": arguments.ray,
        "progress": True,
    }
    asked = arguments.episodes, arguments.seed, arguments.num_envs
    if arguments.sweep:
        return sweep(policy, 12 if arguments.points is None else arguments.points, *asked, **rest)
    return evaluate(policy, arguments.target_returns, *asked, **rest)


def log_sweep(run: Path, policy: "Actor", report: "Report") -> None:
    """Write the curve and its numbers into the log of a run; a policy in a file of its own has none."""
    from dtrl.acting.runs import checkpoints
    from dtrl.evaluation.plots import calibration_figure
    from dtrl.training.logging import RunLogger

    if report.calibration is None or not checkpoints(run):
        return
    with RunLogger(run) as logger:
        logger.scalars(report.calibration.scalars(), policy.updates)
        logger.figure("sweep/asked_vs_achieved", calibration_figure(report), policy.updates)
        logger.text("sweep/report", "```\n" + report.table() + "\n```", policy.updates)
