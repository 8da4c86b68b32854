"""Checkpoints: a policy and all that training needs to go on exactly, in safetensors and JSON."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dtrl.acting import Policy
from dtrl.acting.runs import POLICY_FILE, checkpoints, update_of, verify, write_manifest
from dtrl.config import TrainingConfig
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.files import cannot_write, held, sync_folder
from dtrl.training.experience import Experience
from dtrl.training.group import Group
from dtrl.training.optimizer_state import load_optimizer, save_optimizer

UNFINISHED = ".writing-"
"""Prefix of a checkpoint's folder until it is whole; what a killed run has left of one is removed when the run is resumed."""
OPTIMIZER_FILE, TRAINING_FILE = "optimizer.safetensors", "training.json"
FREE = (
    "updates",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "device",
    "data_on_device",
    "cuda_graph",
    "gradient_accumulation",
    "fsdp",
)
"""Training settings that may change at a resume: with the others, the run would no longer be the one that was begun."""


def save_checkpoint(
    run: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    experience: Experience | None = None,
    counts: Mapping[str, int] | None = None,
) -> Path:
    """Write a checkpoint folder under a temporary name, fsync its files, and rename it; then drop all but the newest few.

    `counts` are what `warn_of_rounding` compares at a resume.

    Raises InputError where it cannot be written; earlier checkpoints stay."""
    target = run / "checkpoints" / f"update-{policy.updates:08d}"
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=UNFINISHED))
        policy.save(temporary / POLICY_FILE)
        with open(temporary / OPTIMIZER_FILE, "wb") as stream:
            save_optimizer(stream, optimizer)
        document = {"training": asdict(config), **(counts or {}), "torch": torch.__version__}
        if experience is not None:
            experience.save(temporary)
            document["online"] = experience.settings()
        (temporary / TRAINING_FILE).write_text(json.dumps(document, indent=2))
        write_manifest(temporary)
        for file in temporary.iterdir():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
        remove(target)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    written = checkpoints(run)
    newer = [
        folder for folder in written if update_of(folder) > policy.updates
    ]  # damaged, or the run would have gone on from there
    for old in [*newer, *[folder for folder in written if folder not in newer][: -config.keep_checkpoints]]:
        remove(old)
    return target


def remove(folder: Path) -> None:
    """Remove a checkpoint, if there is one, under the name of an unfinished one: a run that is killed meanwhile has no part of it among the others."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(folder.with_name(f"{UNFINISHED}{folder.name}")))


def load_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    experience: Experience | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Put the weights, the number of updates, the optimiser's state and the played episodes of a checkpoint, which `newest_good_checkpoint` has verified,
    in place.

    Raises InputError where the run was begun on other data, with another model or other training settings, naming each with both values."""
    run, stored = folder.parent.parent, Policy.load(folder / POLICY_FILE)
    training = read_training(folder / TRAINING_FILE)
    same_data(policy, stored, run)
    refuse(run, "with another model", differences(asdict(policy.config), asdict(stored.config)))
    online = training.get("online")
    refuse_verb(run, begun=online is not None, now=experience is not None)
    begun = asdict(TrainingConfig()) | training["training"]  # a setting that the run did not know yet was off
    refuse(run, "with other settings", differences(asdict(config), begun, FREE))
    if experience is not None:
        refuse(run, "with other settings", differences(experience.settings(), online or {}))
        experience.load(folder)
    policy.model.load_state_dict(stored.model.state_dict())
    policy.updates = stored.updates
    try:
        load_optimizer(optimizer, folder / OPTIMIZER_FILE)
    except Exception as error:  # safetensors has its own, and what is wrong in a file may break any line of torch's
        raise InputError(
            f"{folder / OPTIMIZER_FILE} is not of this run's optimiser ({reason_of(error)}); delete that folder to go back to the checkpoint before it."
        ) from error
    warn_of_rounding(training, counts or {})


def refuse_verb(run: Path, *, begun: bool, now: bool) -> None:
    """Raise InputError where a run is resumed by another verb than the one that it was begun by: finetune where it plays (True), or train."""
    if begun != now:
        verbs = ("finetune", "train") if begun else ("train", "finetune")
        raise InputError(
            f"{run} was begun by dtrl {verbs[0]}, not {verbs[1]}; resume it by the former, or begin another run."
        )


def read_training(path: Path) -> dict[str, Any]:
    """What training.json says. Raises InputError for another file of that name."""
    try:
        training = parse_json(path.read_text())
        if not isinstance(training["training"], dict) or not isinstance(training.get("online"), dict | None):
            raise ValueError("it does not hold the settings of a run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not what a run writes ({reason_of(error)}); delete that folder to go back to the checkpoint before it."
        ) from error
    return dict(training)


def warn_of_rounding(training: Mapping[str, Any], now: Mapping[str, int]) -> None:
    """Warn where a run goes on with other numbers of threads, processes or shards of a parameter, or another torch, than it had: sums are then rounded
    otherwise, and dropout is another."""
    import warnings

    for what, count in now.items():
        before = training.get(what, 1)  # a run that is older than a count had one of it
        if before != count:
            warnings.warn(
                f"the run had {before} {what} and has {count} now: it goes on, but not bit for bit", stacklevel=3
            )
    version = training.get("torch", torch.__version__)
    if version != torch.__version__:
        warnings.warn(
            f"the run had torch {str(version)[:40]} and has {torch.__version__} now: it goes on, but maybe not bit for bit",
            stacklevel=3,
        )


def same_data(policy: Policy, stored: Policy, run: Path) -> None:
    """Raise InputError where a run is resumed on data of another name or content."""
    if (stored.data.dataset, stored.data.fingerprint) != (policy.data.dataset, policy.data.fingerprint):
        raise InputError(
            f"{run} was trained on {stored.data.dataset} ({stored.data.fingerprint}), and these data are others; resume it on its own data."
        )


def refuse(run: Path, begun: str, changed: list[str]) -> None:
    if changed:
        raise InputError(
            f"{run} was begun {begun} ({'; '.join(changed)}); resume it with its own, or begin another run."
        )


def newest_good_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that matches its manifest, with a warning for each newer one that does not; None when the run has none at all.

    Raises InputError when there are checkpoints and none is good."""
    import warnings

    failure: InputError | None = None
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
            return folder
        except InputError as error:
            failure = failure or error
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if failure is not None:
        raise failure
    return None


def differences(wanted: Mapping[str, Any], stored: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """The settings that are not the stored ones, each as "name old → new"; the free ones are left out."""
    return [
        f"{name} {stored.get(name)} → {value}"
        for name, value in wanted.items()
        if name not in free and stored.get(name) != value
    ]


@contextlib.contextmanager
def hold_run(logdir: Path | None, group: Group) -> Iterator[None]:
    """Hold the folder of a run against other processes. Raises InputError, in every worker, where another one trains in it."""
    with contextlib.ExitStack() as stack:
        if logdir is not None:
            taken = f"another process is training in {logdir}; wait until it has ended, or give another --logdir."
            group.from_first(lambda: stack.enter_context(held(logdir, taken)))
        yield


def find_checkpoint(logdir: Path, resume: bool, group: Group) -> Path | None:
    """The checkpoint to resume from, if any: what the first worker finds by `check_logdir`, in every worker.

    Raises InputError where another worker does not see it."""

    def find() -> str | None:
        found = check_logdir(logdir, resume)
        return None if found is None else str(found)

    found = group.from_first(find)
    if group.largest(int(found is not None and not Path(found).is_dir()))[0]:
        raise InputError(
            f"{found} is not seen by every process; give a --logdir on a file system that all machines share."
        )
    return None if found is None else Path(found)


def check_logdir(logdir: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from, if any. Raises InputError where the directory holds a run and resuming was not asked for, or cannot be written."""
    if not resume and checkpoints(logdir):
        raise InputError(f"{logdir} already holds a run; go on with it by --resume, or give another --logdir.")
    checkpoint = newest_good_checkpoint(logdir) if resume else None
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        probe = logdir / ".writable"
        probe.touch()
        probe.unlink()
        for leftover in (logdir / "checkpoints").glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise cannot_write(logdir, error) from error
    return checkpoint
