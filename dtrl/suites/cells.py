"""A cell: one dataset, entry and seed. Its folder LOGDIR/DATASET/ENTRY/seed-N is that of a training run (`dtrl evaluate` takes it), and holds besides

cell.json             what was asked of the cell and on which data, from its beginning; the evaluations, once it is finished
evaluations.json      the evaluations during training so far
best.safetensors      the policy of the best of them"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrl.acting.runs import checkpoints
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.evaluation.report import plain
from dtrl.files import write_atomically
from dtrl.suites.data import Prepared
from dtrl.suites.suite import OWN, Entry, Suite, configured
from dtrl.training.checkpoint import differences

CELL_FILE, EVALUATIONS_FILE, BEST_FILE = "cell.json", "evaluations.json", "best.safetensors"
FINAL_SEEDS, CHOOSING_SEEDS = 20_000, 10_000
"""Added to a run's seed for the evaluation that is reported, and for those that choose the best checkpoint: no episode of one is among the others."""


@dataclass(frozen=True)
class Cell:
    """What a process needs to run it."""

    suite: str
    prepared: Prepared
    entry: Entry
    seed: int
    folder: Path
    options: Mapping[str, Any]
    """Of the run: the suite's, the dataset's and the entry's."""
    updates: int
    episodes: int
    eval_every: int
    eval_episodes: int
    file: Path | None = None
    """Of an entry of kind policy."""

    @property
    def name(self) -> str:
        return f"{self.prepared.dataset.name} · {self.entry.label} · seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result beside the data and dtrl itself, as plain JSON values."""
        shared = {
            "kind": self.entry.kind,
            "seed": self.seed,
            "episodes": self.episodes,
            "target_return": self.prepared.target_return,
            "env": self.prepared.env,
            "reference": {"random": self.prepared.reference.random, "expert": self.prepared.reference.expert},
        }
        if self.entry.kind == "policy":
            shared["file"] = None if self.file is None else str(self.file)
        if self.entry.kind in ("train", "external"):
            shared |= {"updates": self.updates, "eval_every": self.eval_every, "eval_episodes": self.eval_episodes}
        if self.entry.kind == "train":
            shared |= all_options(self.options)
        result = plain(shared)
        assert isinstance(result, dict)
        return result


def all_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, each as "option NAME", with dtrl's defaults for those that are not given: a suite that leaves an option to dtrl has not
    been run as it is asked for once that default is another."""
    options = {name: value for config in configured(given) for name, value in asdict(config).items()}
    return {f"option {name}": value for name, value in options.items() if name not in OWN}


def cells_of(suite: Suite, prepared: Prepared, logdir: Path) -> Iterator[Cell]:
    """All cells of a dataset: entry by entry, seed by seed."""
    dataset = prepared.dataset
    protocol = suite.protocol_of(dataset)
    for entry in suite.entries:
        file = entry.files.get(dataset.name)
        if entry.kind == "policy" and file is None:
            continue  # a policy belongs to an environment, and need not have a counterpart in every other
        for seed in suite.seeds:
            yield Cell(
                suite.name,
                prepared,
                entry,
                seed,
                logdir / dataset.name / entry.label / f"seed-{seed}",
                suite.options_of(dataset, entry),
                protocol.updates,
                protocol.episodes,
                protocol.evaluated_every,
                protocol.eval_episodes,
                None if file is None else suite.path(file).resolve(),
            )


def read_cell(folder: Path) -> dict[str, Any] | None:
    """What cell.json says; None where there is none. Raises InputError for another file of that name."""
    path = folder / CELL_FILE
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        check_cell(document)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise InputError(f"{folder} would lie in a file; give another --logdir.") from error
    except Exception as error:  # what is wrong in a damaged document may break any line of the check
        raise InputError(
            f"{path} is not what a suite writes ({reason_of(error)}); remove that folder, and run the suite again."
        ) from error
    return dict(document)


def check_cell(document: Any) -> None:
    """Raise an exception, of any kind, where cell.json lacks what is read of it."""
    assert isinstance(document["settings"]["reference"], dict)
    assert isinstance(document["data_sha256"], str)
    assert isinstance(document["finished"], bool)
    if not document["finished"]:
        return
    assert isinstance(document["seconds"], int | float)
    for checkpoint in ("last", "best"):
        found = document[checkpoint]
        if checkpoint == "last" or found is not None:
            [target] = found["report"]["targets"]
            assert isinstance(target["mean"], int | float)
            assert {"iqm", "ci95"} <= target.keys()
            assert "update" in found


def is_finished(cell: Cell) -> bool:
    """Whether a cell was run to its end as it is asked for now; False where it is to be begun or to go on.

    Raises InputError where it was begun with other settings or on other data, naming each difference."""
    document = read_cell(cell.folder)
    if document is None:
        if checkpoints(cell.folder):
            raise InputError(f"{cell.folder} holds a run that no suite has begun; choose another --logdir.")
        return False
    wanted, begun = cell.settings, document["settings"]
    begun["reference"].pop("source", None)  # its words, which decide nothing, were once noted too
    if cell.entry.kind == "train":
        begun = all_options({}) | begun  # an option that it does not know, or left to dtrl before defaults were noted
    changed = differences(wanted, begun)
    changed += [f"{name} is gone" for name in begun if name not in wanted]
    if document["data_sha256"] != cell.prepared.sha256:
        changed.append("the data are others")
    if changed:
        raise InputError(
            f"{cell.folder} was begun otherwise ({'; '.join(changed)}); run the suite as it was, remove that folder, or choose another --logdir."
        )
    return bool(document["finished"])


def write_cell(cell: Cell, finished: Mapping[str, Any] | None = None) -> None:
    """Write cell.json: at the beginning without results, at the end with them."""
    document = {
        "suite": cell.suite,
        "dataset": cell.prepared.dataset.name,
        "entry": cell.entry.label,
        "seed": cell.seed,
        "data_sha256": cell.prepared.sha256,
        "settings": cell.settings,
        "finished": finished is not None,
        **(finished or {}),
    }
    text = json.dumps(plain(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(cell.folder / CELL_FILE, text.encode())
