"""What a suite is: datasets × entries × seeds under one protocol, read from a TOML file and checked before anything runs."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dtrl.acting.summary import DEFAULT_TARGET_QUANTILE
from dtrl.collect.reading import checked, load_recipe, read_named_toml
from dtrl.collect.recipes import DATASET_ID
from dtrl.config import DRAFTS, DataConfig, DecodingConfig, ModelConfig, TrainingConfig, split_options
from dtrl.errors import InputError, did_you_mean
from dtrl.evaluation.aggregates import AGGREGATES
from dtrl.presets import PRESETS

OPTIONS = (DataConfig, ModelConfig, TrainingConfig, DecodingConfig)
"""Whose fields the tables of a suite may set."""
OWN = ("seed", "updates", "checkpoint_every", "keep_checkpoints")
"""Options of training that the suite itself sets."""
KINDS = {
    "train": "a preset, trained on the dataset",
    "policy": "a policy of a file: one saved by Stable-Baselines3 (.zip), or of plain arrays (.npz)",
    "behaviour": "what recorded the dataset: its own episodes",
    "external": "another program, which writes its cells, such as benchmarks/transformers_peer.py; they are told where they are there",
}
"""What an entry may be."""
LABEL = re.compile(r"[^\W_][\w .,%+()=-]*")
"""A label is the name of a folder too."""
LABEL_MAY = "begin with a letter or digit, and use these, blanks and .,%+()=- only"


@dataclass(frozen=True)
class Protocol:
    """How long every run is trained, and how it is evaluated. A dataset may set any of it for itself."""

    updates: int = 10_000
    """Gradient updates."""
    episodes: int = 20
    """Episodes of the evaluation that is reported, of each checkpoint."""
    eval_every: int = 0
    """Updates between the evaluations during training, of which the best chooses the checkpoint `best`; 0: a fifth of the updates."""
    eval_episodes: int = 10
    """Episodes of each of those."""
    target_quantile: float = DEFAULT_TARGET_QUANTILE
    """The return that is asked for: this quantile of the episode returns in the data; 1 is the largest."""

    def __post_init__(self) -> None:
        if not 0 <= self.target_quantile <= 1:
            raise InputError(f"target_quantile {self.target_quantile} is outside [0, 1]; 1 asks for the best return.")
        for name in ("updates", "episodes", "eval_episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be 1 or more.")
        if self.eval_every < 0:
            raise InputError(f"eval_every {self.eval_every} is negative; 0 evaluates five times.")

    @property
    def evaluated_every(self) -> int:
        return min(self.updates, self.eval_every or max(1, self.updates // 5))


@dataclass(frozen=True)
class Scale:
    """Mean returns between which scores are normalised, in reward units, for where neither the data nor dtrl have them."""

    random: float
    expert: float


@dataclass(frozen=True)
class SuiteDataset:
    """Data, where a policy that was trained on them is evaluated, and what holds for them alone."""

    id: str = ""
    """A Minari id, or the path of a dataset's folder or file, from the suite's folder; by default that of the recipe."""
    recipe: str | None = None
    """What makes the dataset where it is not on this machine: a name of `dtrl datasets list`, or the path of a TOML file from the suite's folder."""
    env: str | None = None
    """Environment of the evaluations, an id or an EnvSpec in JSON; by default the data's."""
    label: str = ""
    """As it stands in the tables and in the names of folders, where the same data are there twice; by default from the id."""
    reference: Scale | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Protocol that differ from the suite's."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it stands in the tables, and in the names of folders: its label, else the id, or of a path its last part without the ending."""
        return self.label or (self.id if DATASET_ID.fullmatch(self.id) else Path(self.id).stem)


@dataclass(frozen=True)
class Entry:
    """A row of the tables: what is compared."""

    label: str
    kind: str = "train"
    """One of KINDS."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Of kind policy: name of each dataset → file, from the suite's folder."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Any of a run's settings: the preset, and whatever ModelConfig, TrainingConfig, DataConfig and DecodingConfig have."""


@dataclass(frozen=True)
class Suite:
    """Datasets × entries × seeds."""

    name: str
    datasets: tuple[SuiteDataset, ...]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of training; seed and dataset fix the episodes of the evaluations too, so that entries pair up."""
    description: str = ""
    protocol: Protocol = field(default_factory=Protocol)
    metrics: tuple[str, ...] = ("iqm", "mean")
    """Aggregates of the table over all datasets, of `dtrl.evaluation.aggregates.AGGREGATES`."""
    baseline: str = ""
    """Label of the entry with which the others are compared; by default the first."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of all entries; those of a dataset win over them, and those of an entry over both."""
    source: str = "the suite"
    """The file it was read from."""

    def protocol_of(self, dataset: SuiteDataset) -> Protocol:
        return dataclasses.replace(self.protocol, **dataset.protocol)

    def options_of(self, dataset: SuiteDataset, entry: Entry) -> dict[str, Any]:
        """The options of a run, with the paths in them made to go from where they are read."""
        options = {**self.options, **dataset.options, **entry.options}
        return options | {name: str(self.path(options[name]).resolve()) for name in paths_in(options)}

    def path(self, text: str) -> Path:
        """A path that the suite names, which goes from its folder."""
        return Path(self.source).parent / text


def paths_in(options: Mapping[str, Any]) -> list[str]:
    """Those of the options that name a file: a critic, and a policy that drafts."""
    return [name for name in ("critic", "draft") if options.get(name) and options[name] not in DRAFTS]


def list_suites() -> dict[str, Path]:
    """Names of the suites that come with dtrl, and their files."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def load_suite(name_or_path: str | Path) -> Suite:
    """The suite of that name, or in that .toml file. Raises InputError for an unknown name and for any mistake in the file."""
    path, _, table = read_named_toml("suite", name_or_path, list_suites())
    return read_suite(table, str(path))


def read_suite(table: Mapping[str, Any], source: str) -> Suite:
    """A suite from its TOML table, checked. `source` begins every error."""
    protocol, rest = taken(table, Protocol)
    known = ["name", "description", "seeds", "metrics", "baseline", "options", "dataset", "entry"]
    for key in rest:
        if key not in known:
            if isinstance(rest[key], dict):
                raise InputError(
                    f"{source}: there is no table [{key}]; write what is in it into [options], or into an [[entry]]."
                )
            raise InputError(f"{source}: there is no field {key!r}; {did_you_mean(key, [*known, *names(Protocol)])}")
    for key in ("name", "dataset", "entry"):
        if key not in rest:
            raise InputError(f"{source}: {key} is missing; a suite has a name, and tables [[dataset]] and [[entry]].")
    suite = Suite(
        name=checked(str, rest["name"], f"{source}: name"),
        datasets=tuple(read_dataset(t, w) for t, w in tables(rest["dataset"], f"{source}: dataset")),
        entries=tuple(read_entry(t, w) for t, w in tables(rest["entry"], f"{source}: entry")),
        seeds=read_seeds(rest.get("seeds", 5), source),
        description=checked(str, rest.get("description", ""), f"{source}: description"),
        protocol=make(Protocol, protocol, source),
        metrics=tuple(checked(tuple[str, ...], rest.get("metrics", ["iqm", "mean"]), f"{source}: metrics")),
        baseline=checked(str, rest.get("baseline", ""), f"{source}: baseline"),
        options=read_options(checked(dict, rest.get("options", {}), f"{source}: options"), f"{source}: options"),
        source=source,
    )
    check_suite(suite)
    return suite if suite.baseline else dataclasses.replace(suite, baseline=suite.entries[0].label)


def read_dataset(table: Mapping[str, Any], where: str) -> SuiteDataset:
    protocol, rest = taken(table, Protocol)
    own, options = taken(rest, SuiteDataset)
    values = make_values(SuiteDataset, own, where)
    if not values.get("id") and not values.get("recipe"):
        raise InputError(f"{where} has neither id nor recipe; name the data by one of them.")
    if "recipe" in values and not values.get("id"):
        try:
            values["id"] = load_recipe(recipe_path(values["recipe"], where)).id
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if "label" in values and not LABEL.fullmatch(values["label"]):
        raise InputError(f"{where}: label {values['label']!r} cannot name a folder; {LABEL_MAY}.")
    return SuiteDataset(**values, protocol=make_values(Protocol, protocol, where), options=read_options(options, where))


def recipe_path(recipe: str, where: str) -> str:
    """A recipe's name as it is, and a file's path from the suite's folder, with which `where` begins."""
    return str(Path(where.partition(": ")[0]).parent / recipe) if recipe.endswith(".toml") else recipe


def read_entry(table: Mapping[str, Any], where: str) -> Entry:
    own, options = taken(table, Entry)
    if "label" not in own:
        raise InputError(f"{where} has no label; name it as it shall stand in the tables.")
    entry = Entry(**make_values(Entry, own, where), options=read_options(options, where))
    if entry.kind not in KINDS:
        raise InputError(f"{where}: kind {entry.kind!r} is unknown; {did_you_mean(entry.kind, list(KINDS))}")
    if not LABEL.fullmatch(entry.label):
        raise InputError(f"{where}: label {entry.label!r} cannot name a folder; {LABEL_MAY}.")
    if entry.kind != "train" and options:
        raise InputError(f"{where}: {', '.join(options)} means nothing to kind {entry.kind}, which trains nothing.")
    if (entry.kind == "policy") != bool(entry.files):
        raise InputError(f'{where}: an entry of kind policy, and no other, has files = {{ "DATASET" = "FILE" }}.')
    return entry


def configured(options: Mapping[str, Any]) -> list[Any]:
    """The configurations, one of each of OPTIONS, that named options make. Raises InputError for an option or a value that none of them takes."""
    return [config(**share) for share, config in zip(split_options(dict(options), *OPTIONS), OPTIONS, strict=True)]


def read_options(options: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Options as they stand, after the configurations have taken them."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, dict):
            raise InputError(
                f"{where}: {name} is a table, and the settings of a suite have none; write what is in it into [options], or into the entry itself."
            )
    for name in OWN:
        if name in given:
            raise InputError(f"{where}: {name} is set by the suite itself; leave it out, or see its fields.")
    if not isinstance(given.get("preset", "dt"), str) or given.get("preset", "dt") not in PRESETS:
        preset = str(given["preset"])
        raise InputError(f"{where}: preset {preset!r} is unknown; {did_you_mean(preset, list(PRESETS))}")
    try:
        configured(given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return given


def read_seeds(value: Any, source: str) -> tuple[int, ...]:
    """How many, or which."""
    seeds = list(range(value)) if type(value) is int else value
    if type(seeds) is not list or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise InputError(f"{source}: seeds is {value!r}; give a number of 1 or more, or a list of seeds.")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{source}: seeds {seeds} has one twice; leave it out.")
    return tuple(seeds)


def check_suite(suite: Suite) -> None:
    """What is told by the file alone."""
    where = suite.source
    if not re.fullmatch(r"[\w-]+", suite.name):
        raise InputError(f"{where}: name {suite.name!r} has more than letters, digits, _ and -.")
    for metric in suite.metrics:
        if metric not in AGGREGATES:
            raise InputError(f"{where}: metric {metric!r} is unknown; {did_you_mean(metric, list(AGGREGATES))}")
    labels, ids = [e.label for e in suite.entries], [d.name for d in suite.datasets]
    for what, values in (("label", labels), ("dataset", ids)):
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{where}: the {what} {value!r} stands twice; leave one of the two, or rename it.")
    if suite.baseline and suite.baseline not in labels:
        raise InputError(f"{where}: baseline {suite.baseline!r} is no entry; {did_you_mean(suite.baseline, labels)}")
    for entry in suite.entries:
        for name in entry.files:
            if name not in ids:
                raise InputError(f"{where}: {entry.label} has a file for {name!r}; {did_you_mean(name, ids)}")
    for dataset in suite.datasets:
        make(Protocol, {**dataclasses.asdict(suite.protocol), **dataset.protocol}, f"{where}: dataset {dataset.name}")
        for entry in suite.entries:  # each table alone is right, and together they may contradict each other
            read_options(suite.options_of(dataset, entry), f"{where}: {entry.label} on {dataset.name}")


# Tables to dataclasses


def names(kind: type) -> list[str]:
    """The fields that a TOML table may have."""
    return [f.name for f in fields(kind) if f.name not in ("protocol", "options")]


def taken(table: Mapping[str, Any], kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a dataclass among those of a table, and the rest."""
    own = {key: value for key, value in table.items() if key in names(kind)}
    return own, {key: value for key, value in table.items() if key not in own}


def make_values(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a table, each of the type that the dataclass declares."""
    types = {f.name: dict if f.name == "files" else f.type for f in fields(kind)}
    return {name: checked(types[name], value, f"{where}: {name}") for name, value in table.items()}


def make(kind: type[Protocol], table: Mapping[str, Any], where: str) -> Protocol:
    try:
        return kind(**make_values(kind, table, where))
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from error


def tables(value: Any, where: str) -> Sequence[tuple[dict[str, Any], str]]:
    """The tables of a list of tables, and the words that begin an error about each."""
    if type(value) is not list or not value or not all(type(v) is dict for v in value):
        raise InputError(f"{where} is {value!r}; one or more tables [[{where.rpartition(' ')[2]}]] are expected.")
    return [(table, f"{where} {number}") for number, table in enumerate(value, 1)]
