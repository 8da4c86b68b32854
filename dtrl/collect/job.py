"""The folder in which a dataset is made: what is finished stays there, so that a run that was interrupted goes on where it was.

It lies hidden in Minari's folder, and holds the fingerprint of all that decides the result; with another fingerprint it is begun anew.

    job.json                    the fingerprint
    policy-STEP.npz             array policy of a checkpoint       replay-STEP.npz    episodes of the replay buffer
    trained.json                written last: the training is over
    episodes/INDEX-FIRST.npz    some episodes of a behaviour"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtrl.files import held, write_atomically


@contextmanager
def job_folder(dataset_id: str, fingerprint: str) -> Iterator[Path]:
    """The folder for a dataset; it is removed when the block ends well, or when nothing was finished in it.

    InputError if another process makes the same dataset now."""
    from minari.storage import get_dataset_path

    folder = get_dataset_path() / f".dtrl-make-{dataset_id.replace('/', '+')}"
    taken = (
        f"another process is making {dataset_id} in {folder}; wait until it has ended, or choose another dataset id."
    )
    with held(folder, taken):
        prepare(folder, fingerprint)
        try:
            yield folder
        except BaseException as error:
            if not any(folder.rglob("*.npz")):
                shutil.rmtree(folder)
            elif isinstance(error, KeyboardInterrupt) and not error.args:
                error.args = (
                    f"interrupted; what is finished is kept in {folder}, and the same command goes on from there.",
                )
            raise
        shutil.rmtree(folder)


def prepare(folder: Path, fingerprint: str) -> None:
    """Empty the folder of what another recipe, or a run that was killed while writing, left there."""
    note = folder / "job.json"
    try:
        same = json.loads(note.read_text(encoding="utf-8")) == {"fingerprint": fingerprint}
    except (OSError, ValueError):
        same = False
    for path in list(folder.iterdir()):
        if not same or path.name.startswith("writing-"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.rglob(".*.tmp"):
        path.unlink()
    write_atomically(note, json.dumps({"fingerprint": fingerprint}).encode())
