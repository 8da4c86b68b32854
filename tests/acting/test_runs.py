"""A checkpoint's folder is read as it was written, or not at all."""

import itertools
import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from dtrl.acting import load_policy
from dtrl.acting.runs import MANIFEST, POLICY_FILE, verify, write_manifest
from dtrl.config import TrainingConfig
from dtrl.errors import InputError

FLIPS = 300
NAMES = (POLICY_FILE, "optimizer.safetensors", "training.json")


@pytest.fixture(scope="module")
def made(random_trajectories, untrained_policy, tmp_path_factory):
    """Two checkpoints of a run, with the files that training writes."""
    run = tmp_path_factory.mktemp("run")
    data, random = random_trajectories([7, 5]), np.random.default_rng(0)
    for number in (1, 2):
        folder = run / "checkpoints" / f"update-{number:08d}"
        folder.mkdir(parents=True)
        untrained_policy(data, seed=number, width=8, layers=1, heads=1).save(folder / POLICY_FILE)
        (folder / "optimizer.safetensors").write_bytes(random.bytes(5_000))
        (folder / "training.json").write_text(json.dumps({"training": asdict(TrainingConfig(seed=number))}, indent=2))
        write_manifest(folder)
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*_):
        raise AssertionError("tensors were read from a file that is not whole")

    monkeypatch.setattr("dtrl.acting.artefact.read", read)
    monkeypatch.setattr("dtrl.acting.runs.engine_of", read)


def test_a_whole_folder_is_read(run):
    for folder in (run / "checkpoints").iterdir():
        verify(folder)
        load_policy(folder)
    load_policy(run)


def test_every_one_of_300_flipped_bits_is_noticed_before_a_tensor_is_read(run, nothing_is_read):
    """300 of 300, at places drawn with a fixed seed over all bytes of the newest checkpoint, its manifest among them."""
    folder = run / "checkpoints" / "update-00000002"
    files = sorted(folder.iterdir())
    ends = np.cumsum([path.stat().st_size for path in files])
    random, hit = np.random.default_rng(0), set()
    for place, bit in zip(random.integers(ends[-1], size=FLIPS), random.integers(8, size=FLIPS), strict=True):
        i = int(np.searchsorted(ends, place, side="right"))
        hit.add(files[i].name)
        with open(files[i], "r+b") as stream:
            stream.seek(int(place - ends[i]), os.SEEK_END)
            whole = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([whole[0] ^ 1 << int(bit)]))
        with pytest.raises(InputError, match=str(folder)):
            load_policy(run)
        with open(files[i], "r+b") as stream:
            stream.seek(int(place - ends[i]), os.SEEK_END)
            stream.write(whole)
    assert hit == {*NAMES, MANIFEST}
    verify(folder)


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_file_that_was_cut_short_is_noticed(run, nothing_is_read, name, length):
    path = run / "checkpoints" / "update-00000002" / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=str(path)):
        load_policy(run)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_two_checkpoints_that_were_exchanged_are_noticed(run, nothing_is_read, name):
    one, other = ((run / "checkpoints" / f"update-0000000{i}") / name for i in (1, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for path in (one, other):
        with pytest.raises(InputError, match=rf"{path} does not match its sha256"):
            verify(path.parent)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(NAMES, 2)))
def test_two_files_of_a_checkpoint_that_were_exchanged_are_noticed(run, nothing_is_read, one, other):
    folder = run / "checkpoints" / "update-00000002"
    contents = [(folder / name).read_bytes() for name in (one, other)]
    for name, content in zip((other, one), contents, strict=True):
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="does not match its sha256"):
        load_policy(run)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"files": 3}', '{"files": {"../x": "0"}}', "\0"])
def test_a_manifest_of_another_form_is_refused(run, text):
    folder = run / "checkpoints" / "update-00000002"
    (folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=MANIFEST):
        load_policy(folder)
