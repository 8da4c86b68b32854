"""Loading Minari datasets: the columns are what Minari itself iterates over, from the files or from the cache, and bad
input ends in one sentence."""

import errno
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pyarrow
import pytest
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import serialize_space
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dtrl.errors import InputError
from dtrl.spaces import flatten, leaves, numbers_of, stack
from dtrl.trajectories import cache, describe, load_trajectories, local_datasets, minari_files, sources
from dtrl.trajectories.encoded import check_images, read_encoded

BOX = spaces.Box(-1, 1, (2,))
COLUMNS = ("actions", "rewards", "terminations", "truncations")
SHARED = {
    "cartpole/mixed-v0": (370, 58_227), "pendulum/mixed-v0": (230, 46_000), "lunarlander/mixed-v0": (300, 124_391),
    "hopper/medium-v0": (160, 58_996), "hopper/replay-v0": (115, 41_425), "hopper/expert-v0": (55, 53_623),
    "halfcheetah/medium-v0": (50, 50_000), "halfcheetah/replay-v0": (62, 62_000), "halfcheetah/expert-v0": (40, 40_000),
    "walker2d/medium-v0": (80, 39_026),
}  # fmt: skip
"""Id of a recorded dataset → its episodes and steps, from the README beside the data."""


def record(
    name="tests/made-v0", lengths=(3, 5), observation_space=BOX, action_space=BOX, rewards=np.float64, **options
):
    """A Minari dataset of random numbers; returns its id. Every second episode is truncated."""
    random = np.random.default_rng(0)
    observation_space.seed(0), action_space.seed(0)
    episodes = []
    for i, length in enumerate(lengths):
        last = np.arange(length) == length - 1
        episodes.append(
            EpisodeBuffer(
                seed=i,
                observations=np.array([observation_space.sample() for _ in range(length + 1)]),
                actions=np.array([action_space.sample() for _ in range(length)]).reshape(length, *action_space.shape),
                rewards=random.integers(-5, 5, length).astype(rewards) if length else np.zeros(0, rewards),
                terminations=last & (i % 2 == 0),
                truncations=last & (i % 2 == 1),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and the like
        minari.create_dataset_from_buffers(
            name, episodes, observation_space=observation_space, action_space=action_space, **options
        )
    return name


def folder_of(name):
    return Path(os.environ["MINARI_DATASETS_PATH"]) / name / "data"


def edit_metadata(name, **changes):
    """Changes what the metadata state; None removes it."""
    path = folder_of(name) / "metadata.json"
    metadata = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def assert_as_minari(data, name):
    for i, episode in enumerate(minari.load_dataset(name).iterate_episodes()):
        ours = data.episode(i)
        np.testing.assert_array_equal(ours["observations"], episode.observations.astype(data.observations.dtype))
        for column in COLUMNS:
            expected = np.asarray(getattr(episode, column)).astype(data.columns[column].dtype)
            np.testing.assert_array_equal(ours[column], expected)
    assert i + 1 == data.num_episodes


@pytest.fixture
def forbid(monkeypatch):
    """Makes a function raise when it is called."""

    def forbid(owner, name):
        def refuse(*args, **kwargs):
            raise AssertionError(f"{name} was called")

        monkeypatch.setattr(owner, name, refuse)

    return forbid


# The same numbers as Minari

DATASETS = {
    "hdf5": {"data_format": "hdf5"},
    "arrow": {"data_format": "arrow"},
    "parquet": {"data_format": "parquet"},
    "int64 rewards": {"rewards": np.int64},
    "float32 rewards, arrow": {"rewards": np.float32, "data_format": "arrow"},
    "float64 observations": {"observation_space": spaces.Box(-np.inf, np.inf, (5,), np.float64)},
    "float64 observations, arrow": {
        "observation_space": spaces.Box(-np.inf, np.inf, (5,), np.float64),
        "data_format": "arrow",
    },
    "uint8 observations": {"observation_space": spaces.Box(0, 255, (4,), np.uint8)},
    "discrete observations": {"observation_space": spaces.Discrete(7)},
    "discrete observations, arrow": {"observation_space": spaces.Discrete(7), "data_format": "arrow"},
    "discrete actions from -2": {"action_space": spaces.Discrete(4, start=-2)},
    "asymmetric box": {"action_space": spaces.Box(np.array([-3, 0], np.float32), np.array([1, 10], np.float32))},
    "many episodes, arrow": {"lengths": (2,) * 12, "data_format": "arrow"},  # "10" sorts before "2"
    "many episodes, hdf5": {"lengths": (2,) * 12},
}


@pytest.mark.parametrize("options", DATASETS.values(), ids=DATASETS)
def test_columns_are_what_minari_iterates_over(options):
    name = record(**options)
    for data in (load_trajectories(name), load_trajectories(name)):  # from the files, and from the cache
        assert_as_minari(data, name)
        assert data.observation_space == options.get("observation_space", BOX)
        assert data.action_space == options.get("action_space", BOX)


PARTS = {
    "nested": spaces.Dict(b=spaces.Tuple([spaces.Discrete(3), spaces.Dict(z=BOX, a=spaces.MultiBinary(2))]), a=spaces.MultiDiscrete([2, 3])),
    "small images": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "images and a word": spaces.Tuple([spaces.Box(0, 255, (32, 33, 3), np.uint8), spaces.Text(4)]),
}  # fmt: skip


@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize("space", PARTS.values(), ids=PARTS)
def test_the_parts_of_composite_spaces_are_what_minari_iterates_over(space, jpeg):
    space.seed(0), BOX.seed(0)
    episodes = [
        {"observations": [space.sample() for _ in range(n + 1)], "actions": [BOX.sample() for _ in range(n)]}
        for n in (3, 2)
    ]
    buffers = [
        EpisodeBuffer(rewards=np.ones(len(e["actions"])), terminations=np.zeros(len(e["actions"]), bool),
                      truncations=np.arange(len(e["actions"])) == len(e["actions"]) - 1,
                      observations=stack(space, e["observations"]), actions=np.array(e["actions"]))
        for e in episodes
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and the like
        dataset = minari.create_dataset_from_buffers(
            "tests/parts-v0", buffers, observation_space=space, action_space=BOX, jpeg_encoding=jpeg
        )
    data = load_trajectories("tests/parts-v0")
    for i, episode in enumerate(dataset.iterate_episodes()):
        ours, theirs = flatten(space, data.episode(i)["observations"]), flatten(space, episode.observations)
        for leaf in leaves(space):
            np.testing.assert_array_equal(ours[leaf.path], numbers_of(leaf.space, theirs[leaf.path]))
    assert data.num_episodes == 2


def test_the_type_may_change_from_episode_to_episode():
    name = record(lengths=(3, 3))
    with h5py.File(folder_of(name) / "main_data.hdf5", "r+") as content:
        values = content["episode_1/observations"][()].astype(np.float64)
        del content["episode_1/observations"], content["episode_1/rewards"]
        content["episode_1/observations"] = values
        content["episode_1/rewards"] = np.array([1, 2, 3], np.int16)
    data = load_trajectories(name)
    assert_as_minari(data, name)
    assert list(data.rewards[3:]) == [1, 2, 3]


@pytest.mark.parametrize("values", [np.zeros((900, 2)), np.zeros((4, 2), "S4")], ids=["long", "bytes"])
def test_what_the_metadata_do_not_allow_is_not_read(values):
    name = record(lengths=(3, 3))
    with h5py.File(folder_of(name) / "main_data.hdf5", "r+") as content:
        del content["episode_1/observations"]
        content["episode_1/observations"] = values
    with pytest.raises(InputError, match=r"observations of episode 1 of tests/made-v0 hold \(.*more than"):
        load_trajectories(name)


def test_a_folder_is_as_good_as_an_id():
    name = record()
    for folder in (folder_of(name), folder_of(name).parent, str(folder_of(name))):
        data = load_trajectories(folder)
        assert_as_minari(data, name)
        assert data.origin.name == name


def test_the_origin_keeps_what_a_policy_needs():
    spec = gymnasium.spec("CartPole-v1")
    name = record(env=spec, ref_min_score=1.5, ref_max_score=20)
    origin = load_trajectories(name).origin
    assert (origin.name, origin.reference) == (name, (1.5, 20.0))
    assert json.loads(origin.env_spec)["id"] == "CartPole-v1"
    assert load_trajectories(record("tests/bare-v0")).origin.reference is None


def test_options_reach_the_trajectories():
    data = load_trajectories(record(), discount=0.5, delayed=True)
    assert (data.discount, data.delayed) == (0.5, True)
    with pytest.raises(InputError, match="discount 2"):
        load_trajectories("tests/made-v0", discount=2.0)


def test_local_datasets_are_listed_with_their_folders():
    assert local_datasets() == {}
    names = [record("tests/b-v0"), record("tests/a-v1"), record("alone-v0")]
    assert local_datasets() == {name: folder_of(name) for name in sorted(names)}
    assert list(local_datasets()) == sorted(names)


# The cache


def test_the_second_load_maps_the_cache_and_opens_no_dataset(forbid):
    name = record()
    first = load_trajectories(name)
    forbid(MinariStorage, "read")
    second = load_trajectories(name)
    for column, values in first.columns.items():
        assert isinstance(second.columns[column], np.memmap)
        assert not second.columns[column].flags.writeable
        np.testing.assert_array_equal(second.columns[column], values)
    np.testing.assert_array_equal(first.episode_starts, second.episode_starts)


def test_changed_content_is_read_again_though_size_and_time_are_the_same():
    name = record()
    before, file = load_trajectories(name), folder_of(name) / "main_data.hdf5"
    stat = file.stat()
    with h5py.File(file, "r+") as content:
        content["episode_0/rewards"][0] += 100
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load_trajectories(name)
    assert after.rewards[0] == before.rewards[0] + 100
    assert after.origin.fingerprint != before.origin.fingerprint


def test_a_dataset_that_was_only_touched_is_not_read_again(forbid):
    name = record()
    before = load_trajectories(name)
    for file in folder_of(name).iterdir():
        os.utime(file)
    forbid(sources, "read_columns")
    assert load_trajectories(name).origin.fingerprint == before.origin.fingerprint


def test_a_copied_dataset_has_the_same_fingerprint(tmp_path, forbid):
    name = record()
    fingerprint = load_trajectories(name).origin.fingerprint
    shutil.copytree(folder_of(name), tmp_path / "copy")
    forbid(sources, "read_columns")
    assert load_trajectories(tmp_path / "copy").origin.fingerprint == fingerprint


def test_renaming_a_file_changes_the_fingerprint(tmp_path):
    (tmp_path / "a").write_bytes(b"same")
    before = cache.fingerprint([tmp_path / "a"], tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert cache.fingerprint([tmp_path / "b"], tmp_path) != before


@pytest.mark.parametrize("broken", ["columns.json", "0.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_broken_cache_is_built_again(broken, damage):
    name = record()
    load_trajectories(name)
    (path,) = cache.cache_folder().rglob(broken)
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2])
    assert_as_minari(load_trajectories(name), name)
    assert path.read_bytes() == content


def test_a_cache_of_another_form_is_built_again():
    name = record()
    loaded = load_trajectories(name)  # maps the files that are damaged below
    expected = replace(loaded, columns={key: np.array(column) for key, column in loaded.columns.items()})
    (path,) = cache.cache_folder().rglob("columns.json")
    names = json.loads(path.read_text())
    changes = {
        "fewer steps": lambda a: a[:-1],
        "another type": lambda a: a.astype(np.float16),
        "no array": lambda a: {"a": a},
    }
    for column in ("observations", "episode_starts"):
        for change in changes.values():
            file = path.parent / names[column]
            altered = change(np.load(file))
            np.savez(str(file) + ".npz", **altered) if isinstance(altered, dict) else np.save(file, altered)
            if isinstance(altered, dict):
                os.replace(str(file) + ".npz", file)
            again = load_trajectories(name)
            np.testing.assert_array_equal(again.observations, expected.observations)
            np.testing.assert_array_equal(again.episode_starts, expected.episode_starts)
    for text in ("[" * 5000, '{"rewards": 3}', '{"rewards": "../../x.npy"}'):
        path.write_text(text)
        np.testing.assert_array_equal(load_trajectories(name).rewards, expected.rewards)


def test_parts_may_have_any_name():
    """No two share a file of the cache, and none is too long for one, or no name of a file at all."""
    odd = {"a.b": BOX, "a": spaces.Dict({"b": BOX, "\0": BOX}), "x" * 300: BOX, "..": BOX}
    layout = minari_files.column_layouts(3, 1, spaces.Dict(odd), BOX)

    def build(allocate):
        columns = {key: allocate(key, shape, dtype) for key, (shape, dtype) in layout.items()}
        columns["observations/a.b"][...], columns["observations/a/b"][...] = 0.25, 0.5
        return {**columns, "episode_starts": np.zeros(1, np.int64)}

    found = cache.store("odd", build, lambda columns: True)
    assert found.keys() == {*layout, "episode_starts"}
    assert (found["observations/a.b"] == 0.25).all()
    assert (found["observations/a/b"] == 0.5).all()


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_an_image_of_another_size_is_refused_before_it_is_decoded(data_format, forbid):
    images = spaces.Box(0, 255, (32, 40, 3), np.uint8)
    name = record(observation_space=images, jpeg_encoding=True, data_format=data_format)
    assert load_trajectories(name).observations.shape == (8, 32, 40, 3)
    edit_metadata(name, observation_space=serialize_space(spaces.Box(0, 255, (40, 32, 3), np.uint8)))
    forbid(JpegImageFile, "load")
    with pytest.raises(InputError, match=r"an image of shape \(32, 40, 3\), and the space is"):
        load_trajectories(name)


def test_an_image_whose_head_states_more_than_it_holds_is_refused(tmp_path):
    """Four million pixels in less than a kilobyte; with a space of that size too."""
    Image.new("RGB", (40, 32)).save(tmp_path / "black.jpg")
    small = (tmp_path / "black.jpg").read_bytes()
    head = small.index(b"\xff\xc0") + 5  # of the frame: a length, a precision, height, width
    large = small[:head] + struct.pack(">HH", 2000, 2000) + small[head + 4 :]
    space = spaces.Dict({"seen": spaces.Tuple([BOX, spaces.Box(0, 255, (32, 40, 3), np.uint8)])})
    stated = spaces.Box(0, 255, (2000, 2000, 3), np.uint8)
    check_images(arrow_of([small, small, None]), space, "x")
    with pytest.raises(InputError, match=r"x/seen/1 hold an image of shape \(2000, 2000, 3\), and the space is"):
        check_images(arrow_of([small, large]), space, "x")
    with pytest.raises(InputError, match=r"states values of 12,000,000 bytes, and holds \d\d\d bytes"):
        read_encoded(iter([large]), stated, "x")


def arrow_of(images):
    """A struct of structs, as Minari stores a Tuple in a Dict."""
    vectors, pictures = pyarrow.array([[0.0, 0.0]] * len(images)), pyarrow.array(images, pyarrow.binary())
    inner = pyarrow.StructArray.from_arrays([vectors, pictures], ["0", "1"])
    return pyarrow.StructArray.from_arrays([inner], ["seen"])


def test_an_image_of_one_colour_is_as_large_as_it_states():
    """JPEG is smallest for these, and every one is read."""
    space = spaces.Box(0, 255, (1024, 1024, 3), np.uint8)
    stream = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(stream, "JPEG", quality=1, optimize=True, progressive=True)
    assert read_encoded(iter([stream.getvalue()]), space, "x").shape == (1, 1024, 1024, 3)


def test_a_broken_index_is_written_again():
    name = record()
    load_trajectories(name)
    (index,) = (cache.cache_folder() / "index").iterdir()
    content = index.read_text()
    for broken in ("", "[]", "{}", "null", '{"files": 3}'):
        index.write_text(broken)
        assert_as_minari(load_trajectories(name), name)
        assert index.read_text() == content


def test_without_a_cache_folder_the_columns_stay_in_memory_with_a_warning(tmp_path, monkeypatch):
    name = record()
    (tmp_path / "file").touch()
    monkeypatch.setenv("DTRL_CACHE", str(tmp_path / "file" / "cache"))  # root may write anywhere else
    with pytest.warns(UserWarning, match=r"file/cache cannot be written \(.*set DTRL_CACHE"):
        data = load_trajectories(name)
    assert_as_minari(data, name)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        load_trajectories(record())
    assert list((cache.cache_folder() / "trajectories").iterdir()) == []


def test_a_failed_load_leaves_nothing_in_the_cache():
    edit_metadata(name := record(), total_steps=7)
    with pytest.raises(InputError):
        load_trajectories(name)
    assert list((cache.cache_folder() / "trajectories").iterdir()) == []


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("DTRL_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    folders = []
    for name in ("DTRL_CACHE", "XDG_CACHE_HOME", "HOME"):
        folders.append(cache.cache_folder())
        monkeypatch.delenv(name)
    assert folders == [Path("/one"), Path("/two/dtrl"), Path("/three/.cache/dtrl")]


MEET_AND_LOAD = """
import sys, time
from pathlib import Path
from dtrl.trajectories import load_trajectories, sources

def read(*args, original=sources.read_columns):
    Path(sys.argv[2]).touch()
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
    return original(*args)

sources.read_columns = read
print(load_trajectories(sys.argv[1]).returns_to_go.tolist())
"""


def test_two_processes_may_build_the_same_cache_at_once(tmp_path):
    name = record()
    marks = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen([sys.executable, "-c", MEET_AND_LOAD, name, *pair], stdout=subprocess.PIPE, text=True)
        for pair in (marks, marks[::-1])
    ]
    printed = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert printed == [load_trajectories(name).returns_to_go.tolist()] * 2
    assert len(list((cache.cache_folder() / "trajectories").iterdir())) == 1


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_what_a_killed_build_left_is_removed_and_a_running_one_is_left_alone(tmp_path):
    """Two builds hang; one of them is killed. The next build of something else clears away what that one has left, and the other still ends well."""
    names = [record("tests/one-v0"), record("tests/two-v0", (4, 2)), record("tests/three-v0", (3, 3))]
    folder = cache.cache_folder() / "trajectories"

    def begin(name):
        marks = [str(tmp_path / name.replace("/", "-")), str(tmp_path / "go")]
        process = subprocess.Popen(
            [sys.executable, "-c", MEET_AND_LOAD, name, *marks], stdout=subprocess.PIPE, text=True
        )
        wait_for(Path(marks[0]).exists)
        return process

    killed, running = begin(names[0]), begin(names[1])
    killed.kill()
    killed.communicate()
    assert len(list(folder.glob(".building-*"))) == 2
    load_trajectories(names[2])
    assert len(list(folder.glob(".building-*"))) == 1
    (tmp_path / "go").touch()
    assert json.loads(running.communicate(timeout=120)[0]) == load_trajectories(names[1]).returns_to_go.tolist()
    assert not list(folder.glob(".building-*"))
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    taken, make = [], tempfile.mkdtemp

    def make_and_lose(**options):
        folder = make(**options)
        if len(taken) < 3:
            taken.append(folder)
            cache.remove_leftovers(tmp_path)
            assert not Path(folder).exists()
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    folder, handle = cache.claim_folder(tmp_path)
    cache.remove_leftovers(tmp_path)
    assert folder.is_dir()
    assert str(folder) not in taken
    os.close(handle)
    cache.remove_leftovers(tmp_path)
    assert not folder.exists()


# Names


def test_an_unknown_id_names_the_nearest_local_one_without_the_network(monkeypatch, forbid):
    def no_network(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    forbid(minari, "download_dataset")  # whose client would try again for half a minute
    record("tests/walker-v0"), record("tests/hopper-v0")
    with pytest.raises(
        InputError, match=r"'tests/hoper-v0' is not in .*name resolution.*did you mean 'tests/hopper-v0'\?"
    ):
        load_trajectories("tests/hoper-v0")


def test_an_unknown_id_is_downloaded_by_minari(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "check_online", lambda: None)
    monkeypatch.setattr(minari, "download_dataset", lambda name: asked.append(record(name)))
    data = load_trajectories("tests/remote-v0")
    assert asked == ["tests/remote-v0"]
    assert_as_minari(data, "tests/remote-v0")


def test_what_minari_says_of_a_failed_download_is_in_the_message(monkeypatch):
    def fail(name):
        raise ValueError("no such\n   dataset " + "x" * 500)

    monkeypatch.setattr(sources, "check_online", lambda: None)
    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(InputError, match=r"could not download it \(no such dataset x+\); .* none is known") as caught:
        load_trajectories("tests/remote-v0")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name",
    ["../secret-v0", "tests/../../secret-v0", "/secret-v0", "tests/./made-v0", "~/made-v0", "tests//made-v0", "..", "", "tests\\..\\made-v0",
     "made-v0\n", "made-v0\0", "tests/made", "https://host/made-v0", "é-v0", "x" * 5_000],
)  # fmt: skip
def test_what_is_neither_an_id_nor_a_folder_is_refused_before_anything_is_made(name, forbid):
    forbid(sources, "download")
    with pytest.raises(InputError, match="neither a folder with a Minari dataset nor a dataset id"):
        load_trajectories(name)
    assert not Path(os.environ["MINARI_DATASETS_PATH"]).exists()
    assert not cache.cache_folder().exists()


def test_a_dataset_without_metadata_is_named():
    name = record()
    (folder_of(name) / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"tests/made-v0/data holds no metadata.json"):
        load_trajectories(name)


# Metadata are data


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """An EnvSpec that leaves a mark when its environment is made or its module imported; returns (the spec, the mark)."""
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from gymnasium.envs.classic_control import CartPoleEnv as make\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return gymnasium.envs.registration.EnvSpec("Trap-v0", entry_point="trap_module:make").to_json(), mark


@pytest.mark.parametrize("role", ["observation", "action"])
def test_metadata_without_spaces_are_refused_and_nothing_is_run(trap, role):
    spec, mark = trap
    edit_metadata(name := record(), env_spec=spec, **{f"{role}_space": None})
    with pytest.raises(InputError, match=f"metadata of tests/made-v0 do not state its {role} space"):
        load_trajectories(name)
    assert not mark.exists()


def test_an_environment_named_in_the_metadata_is_not_made(trap):
    spec, mark = trap
    edit_metadata(name := record(), env_spec=spec)
    assert load_trajectories(name).origin.env_spec == spec
    assert not mark.exists()


def test_minari_itself_would_run_it(trap):
    """The control: the mark of the two tests above works."""
    spec, mark = trap
    edit_metadata(name := record(), env_spec=spec, observation_space=None)
    MinariStorage.read(folder_of(name))
    assert mark.exists()


UNSUPPORTED = {
    "text": ("action", spaces.Text(5), "the action space of .* is Text.*can be observed, not acted"),
    "nothing": ("observation", spaces.Box(-1, 1, (0,)), "is Box.*which has no entry"),
    "an empty dict": ("observation", spaces.Dict({}), "has no part"),
    "a slash in a name": ("observation", spaces.Dict({"a/b": BOX}), 'may not contain "/"'),
}


@pytest.mark.parametrize(("role", "space", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_space_that_cannot_be_tokenized_is_named(role, space, message):
    edit_metadata(name := record(), **{f"{role}_space": serialize_space(space)})
    with pytest.raises(InputError, match=message):
        load_trajectories(name)


WRONG_METADATA = {
    "too few steps": ({"total_steps": 7}, "metadata of tests/made-v0 state 7 steps, .* hold more .*episode 1"),
    "too many steps": ({"total_steps": 9}, "metadata of tests/made-v0 state 9 steps, .* hold 8"),
    "too few episodes": ({"total_episodes": 1}, "metadata of tests/made-v0 state 8 steps, .* hold 3"),
    "too many episodes": ({"total_episodes": 3}, "data of tests/made-v0 .*cannot be read .*episode_2"),
    "no steps": ({"total_steps": 0}, r"tests/made-v0 is empty \(2 episodes, 0 steps\)"),
    "negative episodes": ({"total_episodes": -1}, r"tests/made-v0 is empty \(0 episodes, 8 steps\)"),
    "steps in words": ({"total_steps": "many"}, "metadata.json states total_steps 'many', .* int"),
    "half an episode": ({"total_episodes": 1.5}, "metadata.json states total_episodes 1.5"),
    "steps not stated": ({"total_steps": None}, "metadata.json states total_steps None"),
    "more steps than any disk holds": ({"total_steps": 10**17}, r"state 1\d+ steps, and its episodes hold 8"),
    "more episodes than bytes": ({"total_episodes": 10**12}, "state 1000000000000 episodes, and its files hold"),
    "a shape that no disk holds": (
        {"observation_space": json.dumps({"type": "MultiBinary", "n": 10**12})},
        r"observations of episode 0 .* have shape \(2,\) a step, and the metadata state \(1000000000000,\)",
    ),
    "texts without end": (
        {"observation_space": serialize_space(spaces.Text(10**9))},
        "texts of up to 1000000000 characters",
    ),
    "a space in a space for ever": (
        {"action_space": '{"type": "Tuple", "subspaces": [' * 900 + "]}" * 900},
        "do not state its action space",
    ),
    "unknown format": ({"data_format": "zarr"}, "data of tests/made-v0 .*cannot be read .*zarr"),
    "no format": ({"data_format": None}, "data of tests/made-v0 .*cannot be read .*data_format"),
    "another shape": ({"action_space": serialize_space(spaces.Box(-1, 1, (3,)))}, r"actions of episode 0 .*\(3, 2\)"),
    "another kind": ({"action_space": serialize_space(spaces.Discrete(3))}, r"actions of episode 0 .*\(3, 2\)"),
    "a space in words": ({"action_space": "Box(2)"}, "do not state its action space"),
    "an env_spec that is no text": ({"env_spec": {"id": "x"}}, "metadata.json states env_spec {.*str"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_metadata_that_disagree_with_the_data_are_refused(changes, message):
    edit_metadata(name := record(), **changes)
    with pytest.raises(InputError, match=message):
        load_trajectories(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
def test_metadata_that_are_no_object_are_named(text):
    path = folder_of(record()) / "metadata.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_trajectories("tests/made-v0")


# Broken and unusual data


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(share):
    path = folder_of(record()) / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"data of tests/made-v0 in .* cannot be read"):
        load_trajectories("tests/made-v0")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_any_damage_to_a_file_is_refused_or_harmless(data_format):
    name = record(data_format=data_format)
    file = max((path for path in folder_of(name).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    refusals = []
    for _ in range(25):
        damaged = np.frombuffer(whole, np.uint8).copy()
        where = random.integers(len(damaged), size=random.integers(1, 200))
        damaged[where] = random.integers(256, size=len(where))
        file.write_bytes(damaged.tobytes())
        try:
            load_trajectories(name)
        except InputError as error:
            refusals.append(str(error))
    assert refusals
    assert all(name in refusal for refusal in refusals)


def test_a_missing_column_is_named():
    name = record()
    with h5py.File(folder_of(name) / "main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
    with pytest.raises(InputError, match=r"data of tests/made-v0 .* cannot be read .*actions"):
        load_trajectories(name)


def test_a_number_that_is_none_is_named_by_episode_field_and_step():
    name = record()
    with h5py.File(folder_of(name) / "main_data.hdf5", "r+") as file:
        file["episode_1/observations"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"observations of episode 1 of tests/made-v0 hold NaN or infinity at step 2"):
        load_trajectories(name)


def test_a_dataset_of_no_episode_is_empty():
    with pytest.raises(InputError, match=r"dataset tests/made-v0 is empty \(0 episodes, 0 steps\)"):
        load_trajectories(record(lengths=()))


NO_STEP = {"observation_space": spaces.Discrete(3), "action_space": spaces.Discrete(3), "data_format": "arrow"}
"""The one kind of dataset in which Minari can write an episode of no step."""


@pytest.mark.parametrize(("rule", "kept"), [("skip", [3, 2]), ("keep", [3, 1, 2])])
def test_short_episodes_are_left_out_by_their_rule(rule, kept):
    name = record(lengths=(3, 1, 0, 2, 0), **NO_STEP)
    for data in (load_trajectories(name, short_episodes=rule), load_trajectories(name, short_episodes=rule)):
        assert data.episode_lengths.tolist() == kept
        whole = [e for e in minari.load_dataset(name).iterate_episodes() if len(e.rewards) in kept]
        np.testing.assert_array_equal(data.rewards, np.concatenate([e.rewards for e in whole]))
        np.testing.assert_array_equal(data.final_observations, [e.observations[-1] for e in whole])


def test_short_episodes_are_refused_by_default():
    name = record(lengths=(3, 1, 0), **NO_STEP)
    message = "2 of 3 episodes of tests/made-v0 .*the first is episode 1 with 1.*pass short_episodes skip"
    with pytest.raises(InputError, match=message):
        load_trajectories(name)


def test_a_dataset_of_nothing_but_short_episodes_is_refused_by_every_rule():
    name = record(lengths=(1, 1))
    assert load_trajectories(name, short_episodes="keep").num_steps == 2
    with pytest.raises(InputError, match="no episode of tests/made-v0 has a step to learn from"):
        load_trajectories(name, short_episodes="skip")


# Recorded data


@pytest.fixture
def recorded(shared_data, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_a_recorded_dataset_is_what_minari_iterates_over(recorded, name):
    data = load_trajectories(name)
    assert (data.num_episodes, data.num_steps) == SHARED[name]
    assert (data.terminations | data.truncations)[data.episode_ends - 1].all()
    np.testing.assert_allclose(data.returns_to_go[data.episode_starts], data.episode_returns, rtol=1e-6)
    assert_as_minari(data, name)


IMAGES = {"minigrid-doorkey/mixed-v0": "observations", "minigrid-doorkey/dict-v0": "observations/image"}


@pytest.mark.parametrize(("name", "column"), IMAGES.items(), ids=IMAGES)
def test_recorded_images_stay_bytes_and_are_those_that_minari_reads(recorded, name, column):
    data = load_trajectories(name)
    assert data.columns[column].shape == (data.num_steps, 7, 7, 3)
    assert data.columns[column].dtype == np.uint8
    episode = next(iter(minari.load_dataset(name).iterate_episodes([3]))).observations
    images = episode if isinstance(episode, np.ndarray) else episode["image"]
    rows = slice(data.episode_starts[3], data.episode_ends[3])
    np.testing.assert_array_equal(data.columns[column][rows], images[:-1])


@pytest.mark.parametrize(("side", "jpeg", "lossy"), [(32, True, True), (32, False, False), (8, True, False)])
def test_images_that_went_through_jpeg_are_told(side, jpeg, lossy):
    space = spaces.Box(0, 255, (side, side, 3), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (3, *space.shape), dtype=np.uint8)
    episode = EpisodeBuffer(
        observations=images, actions=np.zeros(2, np.int64), rewards=[0, 1.0], terminations=[0, 1], truncations=[0, 0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody needs here
        minari.create_dataset_from_buffers(
            "tests/images-v0",
            [episode],
            observation_space=space,
            action_space=spaces.Discrete(2),
            description="images",
            jpeg_encoding=jpeg,
        )
    data = load_trajectories("tests/images-v0")
    assert data.origin.lossy_images == lossy
    assert (data.observations == images[:-1]).all() == (not lossy)
    assert any("JPEG" in warning for warning in describe(data).warnings) == lossy
