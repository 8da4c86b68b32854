"""`dtrl finetune RUN --logdir NEW`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.cli.arguments import (
    add_evaluation,
    add_flags,
    add_json,
    add_modules,
    data_of,
    env_options,
    given,
    names_of,
    read_config,
    write_json,
)
from dtrl.config import ONLINE_TRAINING, OnlineConfig, TrainingConfig
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.acting import Policy


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "finetune",
        help="let a trained policy play, and learn from what it played",
        description="Online fine-tuning: play episodes with sampled actions, asked for more than the data hold; put them into a buffer that begins with the "
        "best episodes of the data; train on the buffer; again.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "policy", metavar="RUN", help="a run directory, a checkpoint's folder, or a saved policy, of a stochastic head"
    )
    parser.add_argument("--logdir", type=Path, required=True, metavar="NEW", help="folder of the new run")
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="data that the buffer begins with (default: those that the run was trained on)",
    )
    parser.add_argument("--env", metavar="ID", help="another environment with the same spaces (default: the data's)")
    parser.add_argument(
        "--context",
        choices=("window", "block", "banded", "full"),
        help="what the policy looks back on while it plays (default: as it was trained); block is faster than window",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of NEW, with the settings of its config.toml",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="settings from the tables [training] and [online] of a file; flags win",
    )
    add_json(parser)
    add_modules(parser)
    add_flags(parser, OnlineConfig, "play")
    add_flags(parser, TrainingConfig, "training", ONLINE_TRAINING)
    add_evaluation(parser, "evaluation", "one before the first update, and one at the end", "the policy's own")


def run(arguments: argparse.Namespace) -> None:
    from dtrl.acting.runs import CONFIG_FILE
    from dtrl.cli.train import read_result
    from dtrl.evaluation.callback import EvaluationCallback
    from dtrl.training import finetune

    settings = settings_of(arguments)
    policy = load(arguments)
    begun = arguments.resume and (arguments.logdir / CONFIG_FILE).is_file()
    trajectories = data_of(policy, arguments.logdir if begun else Path(arguments.policy), arguments.data)
    callbacks = []
    if arguments.eval_episodes:
        callbacks.append(
            EvaluationCallback(
                trajectories,
                arguments.target_returns or [policy.target_return],
                arguments.eval_episodes,
                arguments.eval_every,
                settings.get("seed", 0),
                env=arguments.env,
                **env_options(arguments),
                at_start=True,
            )
        )
    tuned = finetune(
        policy,
        trajectories,
        env=arguments.env,
        logdir=arguments.logdir,
        resume=arguments.resume,
        callbacks=callbacks,
        progress=True,
        **settings,
    )
    history = callbacks[0].history if callbacks else []
    for update, report in history[:1] + history[1:][-1:]:
        print(f"after {update:,} updates: {report.table()}\n")
    result = read_result(arguments.logdir, history[-1][1] if history else None)
    online = result["online"]
    print(
        f"played {online['episodes']:,} episodes ({online['steps']:,} steps) and trained {tuned.updates:,} updates; "
        f"the run is in {arguments.logdir}. Next:"
    )
    print(f"  dtrl evaluate {arguments.logdir} --target-returns {tuned.target_return:.6g} --episodes 100")
    write_json(arguments.json, {**result, "evaluations": [{"update": u, **r.to_dict()} for u, r in history]})


def load(arguments: argparse.Namespace) -> "Policy":
    """The policy that is to be fine-tuned."""
    from dtrl.acting import ExportedPolicy, load_policy

    policy = load_policy(arguments.policy, context=arguments.context)
    if isinstance(policy, ExportedPolicy):
        raise InputError(
            f"{arguments.policy} was exported to act, and only a trained model learns on; give the run that it is from."
        )
    return policy


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every setting that is not left to its default: those of the run that is resumed, over them those of --config, over them the flags."""
    from dtrl.acting.runs import CONFIG_FILE
    from dtrl.training.checkpoint import refuse_verb

    tables = ("training", "online")
    asked = read_config(arguments.config, *tables) | given(arguments, OnlineConfig, TrainingConfig)
    begun = arguments.logdir / CONFIG_FILE
    settings = asked
    if arguments.resume and begun.is_file():
        refuse_verb(arguments.logdir, begun=bool(read_config(begun, "online")), now=True)
        settings = {**read_config(begun, *tables), **asked}
    settings.setdefault("updates", ONLINE_TRAINING["updates"])
    return {name: value for name, value in settings.items() if name in names_of(OnlineConfig, TrainingConfig)}
