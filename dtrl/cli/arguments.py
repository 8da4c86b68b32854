"""Flags from dataclasses, settings from TOML files, and the order in which they win: defaults, file, command line."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dtrl.acting.faults import ON_ENV_ERROR, RETRIES
from dtrl.config import DataConfig, DecodingConfig, ModelConfig, OnlineConfig, SourceConfig, TrainingConfig, plain_type
from dtrl.documents import parse_toml
from dtrl.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from dtrl.acting import Policy
    from dtrl.trajectories import Trajectories

NONE: Mapping[str, Any] = MappingProxyType({})
SECTIONS: dict[str, tuple[type, ...]] = {
    "data": (SourceConfig, DataConfig),
    "model": (ModelConfig,),
    "training": (TrainingConfig,),
    "online": (OnlineConfig,),
    "decoding": (DecodingConfig,),
}
"""Tables of a config file → the settings in them. `dtrl train` reads the first three, `dtrl finetune` the third and the fourth, `dtrl evaluate` and
`dtrl dream` the last."""


def add_flags(parser: argparse.ArgumentParser, config: type, title: str, defaults: Mapping[str, Any] = NONE) -> None:
    """A flag for every field of a dataclass. One that is not given is absent from the result, so that it cannot hide a file's value.

    `defaults` are those that are otherwise than the dataclass says."""
    group = parser.add_argument_group(title)
    for f in fields(config):
        flag, kind = f"--{f.name.replace('_', '-')}", plain_type(f)
        default = defaults.get(f.name, f.default)
        shown = "" if default is None else f" (default: {default})"
        rest: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (f.metadata["help"] + shown).replace("%", "%%")}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **rest)
        else:
            group.add_argument(
                flag,
                type=kind,
                choices=f.metadata["choices"] or None,
                metavar=None if f.metadata["choices"] else kind.__name__.upper(),
                **rest,
            )


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """How files of other tools are read: flags of every verb that takes a file."""
    group = parser.add_argument_group("files of other tools")
    group.add_argument(
        "--from",
        dest="format",
        default=argparse.SUPPRESS,
        metavar="FORMAT",
        help="d4rl, d3rlpy, pickle, npz, csv or parquet (default: told by the content)",
    )
    group.add_argument(
        "--env",
        default=argparse.SUPPRESS,
        metavar="ENV",
        help="environment that the file is from: its spaces and its number of steps then hold",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        action=ColumnsByRole,
        default=argparse.SUPPRESS,
        metavar="ROLE=A,B",
        help="for a table: which columns are what, such as observation=x,v action=a reward=r episode=id; "
        "further roles are terminal, timeout and next_observation",
    )


class ColumnsByRole(argparse.Action):
    """`--columns observation=x,v reward=r` as a mapping."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        roles: dict[str, list[str]] = {}
        for text in values:
            role, equals, names = text.partition("=")
            if not equals or not names:
                raise InputError(f"--columns {text!r} is not ROLE=COLUMN,COLUMN; write for instance observation=x,v.")
            if role in roles:
                raise InputError(f"--columns names {role} twice; write {role}=A,B.")
            roles[role] = names.split(",")
        setattr(namespace, self.dest, roles)


def load(settings: Mapping[str, Any]) -> "Trajectories":
    """The trajectories that the settings of SourceConfig and DataConfig among `settings` ask for."""
    from dtrl.trajectories import load_trajectories

    asked = {name: value for name, value in settings.items() if name in names_of(SourceConfig, DataConfig)}
    return load_trajectories(asked.pop("datasets"), **asked)


def data_of(policy: "Policy", run: Path, named: str | None) -> "Trajectories":
    """The data that were named, or those of the run's config, or of the dataset that the policy names."""
    from dtrl.acting.runs import CONFIG_FILE

    own = {"discount": policy.data.discount, "delayed": policy.data.delayed}
    if named is not None:
        return load({"datasets": [named], **own})
    config = run / CONFIG_FILE
    settings = read_config(config) if config.is_file() else {}
    if "datasets" not in settings:
        from dtrl.trajectories.columns import UNNAMED

        if policy.data.dataset == UNNAMED:
            raise InputError(f"the data of {run} were made in Python and have no name; name a dataset with --data.")
        settings |= {"datasets": [policy.data.dataset], **own}
    return load(settings)


def names_of(*configs: type) -> list[str]:
    return [f.name for config in configs for f in fields(config)]


def given(arguments: argparse.Namespace, *configs: type) -> dict[str, Any]:
    """The flags of the dataclasses that were given."""
    names = names_of(*configs)
    return {name: value for name, value in vars(arguments).items() if name in names}


def decoding_of(arguments: argparse.Namespace) -> DecodingConfig:
    """How tokens are chosen: the table `decoding` of `--config`, and the flags, which win."""
    return DecodingConfig(**read_config(arguments.config, "decoding") | given(arguments, DecodingConfig))


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """The flags of DecodingConfig, and the file that may hold them."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="settings of decoding, in a table [decoding]; flags win"
    )
    add_flags(parser, DecodingConfig, "decoding")


def read_config(path: Path | None, *tables: str) -> dict[str, Any]:
    """The settings of a TOML file such as a run's config.toml, flat: of the given tables, or of those of a run. Raises InputError for a table or key that
    dtrl does not know."""
    if path is None:
        return {}
    try:
        document = parse_toml(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the path of a TOML file, such as RUN/config.toml."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error
    document.pop("dataset", None)
    settings: dict[str, Any] = {}
    for table, values in document.items():
        if table not in SECTIONS or not isinstance(values, dict):
            raise InputError(
                f"{path} has {table!r} at its top, where only the tables {', '.join(SECTIONS)} belong; {did_you_mean(table, list(SECTIONS))}"
            )
        if tables and table not in tables:  # a run's own file has the others
            continue
        if not tables and table == "decoding":
            raise InputError(
                f"{path} has a table [decoding], which says how a policy acts; give it to dtrl evaluate --config, and leave it out here."
            )
        known = names_of(*SECTIONS[table])
        for name, value in values.items():
            if name not in known:
                raise InputError(f"{path} has no use for {name!r} in [{table}]; {did_you_mean(name, known)}")
            settings[name] = value
    return settings


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE as JSON")


def add_evaluation(parser: argparse.ArgumentParser, title: str, every: str, targets: str) -> None:
    """Flags of the evaluations of a verb that trains; `every` and `targets` say what holds where they are not given."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--eval-every", type=int, default=0, metavar="INT", help=f"updates between two evaluations (default: {every})"
    )
    group.add_argument(
        "--eval-episodes",
        type=int,
        default=10,
        metavar="INT",
        help="episodes for each target; 0 never evaluates (default: 10)",
    )
    add_workers(group)
    group.add_argument(
        "--target-returns", type=float, nargs="+", metavar="R", help=f"returns to ask for (default: {targets})"
    )


def add_workers(parser: Any) -> None:
    """How environments are stepped, for a verb that evaluates; read by `env_options`."""
    parser.add_argument(
        "--env-workers",
        type=number_or_auto,
        default=0,
        metavar="N",
        help="processes that step the environments while the model computes; auto: one a core where a step is slow enough for that to pay "
        "(default: 0, this process)",
    )
    parser.add_argument(
        "--env-timeout",
        type=float,
        metavar="SECONDS",
        help="for a step or a reset of an environment in a worker process; in this process, without --env-workers, nothing can interrupt one (default: 600)",
    )
    parser.add_argument(
        "--on-env-error",
        choices=ON_ENV_ERROR,
        default="raise",
        help="where an environment raises, shows or returns no number, or ends or holds up its worker: end with an error; lose the episode and go on with the "
        "others; or begin it again in a new environment, and lose it "
        f"after {RETRIES} retries (default: raise)",
    )


def env_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_workers` asked for, as `dtrl.evaluate` takes it."""
    return {name: vars(arguments)[name] for name in ("env_workers", "env_timeout", "on_env_error")}


def add_jobs(parser: argparse.ArgumentParser, jobs: str) -> None:
    """How work is spread, for a verb that can: `jobs` says what they are."""
    parser.add_argument("--jobs", type=int, metavar="N", help=jobs)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let tasks of a Ray cluster play instead, at most --jobs at once (default: one for each of its processors): HOST:PORT of its head, or auto for "
        "the one that this machine belongs to; docs/scale.md",
    )


def number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes from 0 nor auto")
    return int(text)


def add_modules(parser: argparse.ArgumentParser) -> None:
    """`--import MODULE`, for a verb that makes environments; `main` imports the modules before the verb runs."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, as it registers your environment; one of the working directory will do; may be repeated",
    )


def write_json(path: Path | None, value: Any) -> None:
    from dtrl.files import write_atomically

    if path is not None:
        write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
