"""The run directory: what is where, and which checkpoint is the newest good one.

RUN/config.toml                     every setting of the run, and which data it loaded
RUN/checkpoints/update-00001000/    one folder a checkpoint, renamed into place when it is whole
    policy.safetensors              the policy (see `artefact`)
    optimizer.safetensors           what training needs to go on
    training.json
    experience.safetensors          of a fine-tuned run: the episodes that it has played
    manifest.json                   sha256 of each of the files above
RUN/result.json                     written when training ends
RUN/events.out.tfevents.*           TensorBoard; RUN/progress.jsonl the same numbers as JSON lines"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.acting.artefact import engine_of
from dtrl.acting.engines import ENGINES
from dtrl.documents import parse_json
from dtrl.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from dtrl.acting.exported import ExportedPolicy
    from dtrl.acting.policy import Policy

CHECKPOINT = re.compile(r"update-(\d{8,})")
CONFIG_FILE, RESULT_FILE = "config.toml", "result.json"
POLICY_FILE = "policy.safetensors"
MANIFEST = "manifest.json"


def load_policy(
    path: str | os.PathLike[str], *, engine: str | None = None, rows: int | None = None, **acting: Any
) -> "Policy | ExportedPolicy":
    """The policy of a run directory (its newest checkpoint), of one checkpoint's folder, or of a file made by `policy.save` or `dtrl export`.

    `engine` runs its model: eager (PyTorch, the default), numpy, onnx, aoti or graph, for any number of environments or for `rows` alone; a file that
    was exported for one knows it. A file for aoti holds machine code, and is loaded only where `engine` says so. Other keyword arguments are those
    of `Policy`: context, context_length, decoding, target_return. Raises InputError where there is no policy, where its files do not match their sha256,
    and for an engine that cannot run here."""
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a run directory, or a file made by policy.save or `dtrl export`."
        )
    if path.is_dir():
        folder = path if (path / MANIFEST).exists() else newest_checkpoint(path)
        verify(folder)
        path = folder / POLICY_FILE
    return load_file(path, engine, rows, **acting)


def load_file(path: Path, engine: str | None, rows: int | None, **acting: Any) -> "Policy | ExportedPolicy":
    if engine is not None and engine not in ("eager", *ENGINES):
        raise InputError(f"engine {engine!r} is unknown; {did_you_mean(engine, ['eager', *ENGINES])}")
    exported = engine_of(path)
    if exported is not None:
        from dtrl.acting.exported import ExportedPolicy

        if engine not in (None, exported):
            raise InputError(f"{path} was exported for the engine {exported}, not {engine}; export the run again.")
        return ExportedPolicy.load(path, engine=engine, **acting)
    from dtrl.acting.policy import Policy

    policy = Policy.load(path, **acting)
    if engine in (None, "eager"):
        return policy
    from dtrl.acting.exported import ExportedPolicy

    if acting.get("context") == "window" and policy.model.backbone.memory:
        raise InputError(
            "context window recomputes everything at every step, and engines are made for caches; ask for block, or leave the context out."
        )
    return ExportedPolicy.of(policy, str(engine), rows=rows)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("update-*") if CHECKPOINT.fullmatch(p.name)]
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    match = CHECKPOINT.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def newest_checkpoint(run: Path) -> Path:
    found = checkpoints(run)
    if not found:
        raise InputError(
            f"{run} holds no checkpoint; give the --logdir of a training run that has written one (`dtrl train DATASET --logdir {run}`)."
        )
    return found[-1]


def write_manifest(folder: Path) -> None:
    """Add the manifest to a folder whose other files are complete."""
    files = {f.name: sha256(f) for f in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(manifest_text(files))


def manifest_text(files: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": total}, indent=2, sort_keys=True) + "\n"


def verify(folder: Path) -> None:
    """Raise InputError, naming the file, unless every file of the checkpoint is as it was when its manifest was written."""
    manifest = folder / MANIFEST
    remedy = "delete that folder to go back to the checkpoint before it, or train again."
    try:
        text = manifest.read_text()
        files = parse_json(text)["files"]
        whole = manifest_text(files) == text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{manifest} cannot be read ({error}), so the checkpoint cannot be trusted; {remedy}"
        ) from error
    if not whole:
        raise InputError(f"{manifest} was altered, so the checkpoint cannot be trusted; {remedy}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {remedy}")
        if sha256(path) != expected:
            raise InputError(f"{path} does not match its sha256 in {MANIFEST}: it was cut short or altered; {remedy}")


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
