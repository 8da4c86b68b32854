"""Pickles: equal to what Python's own unpickler makes of plain data, and nothing else is ever run."""

import collections
import io
import os
import pickle
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats.pickled import PickledArray, read_pickle

DTYPES = ["?", "u1", "i2", "<i8", ">f4", "f4", "<f8", "f2"]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def plain(value):
    """With the arrays in their places."""
    if isinstance(value, PickledArray):
        return value.value
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def assert_same(ours, theirs):
    if isinstance(theirs, np.ndarray | np.generic):
        np.testing.assert_array_equal(ours, theirs, strict=isinstance(theirs, np.ndarray))
        assert ours.dtype == theirs.dtype
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        [assert_same(ours[key], theirs[key]) for key in theirs]
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        [assert_same(a, b) for a, b in zip(ours, theirs, strict=True)]
    else:
        assert ours == theirs


ARRAYS = arrays.arrays(
    st.sampled_from([np.dtype(d) for d in DTYPES]), st.lists(st.integers(0, 3), max_size=3).map(tuple)
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), ARRAYS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(VALUES, st.sampled_from(PROTOCOLS))
def test_plain_data_are_read_as_python_reads_them(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "value.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert_same(plain(read_pickle(path)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_orders_and_containers_of_numpy_and_the_standard_library(tmp_path, protocol):
    value = [
        np.float32(1.5), np.bool_(True), np.int64(-3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(8)[::2],
        collections.OrderedDict(a=1), collections.defaultdict(list, b=[np.zeros(2)]), (1,), (1, 2, 3, 4), [],
    ]  # fmt: skip
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert_same(plain(read_pickle(path)), [dict(v) if isinstance(v, dict) else v for v in value])


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_numpy_1_are_read(tmp_path, random_trajectories, episode_dicts, protocol):
    data = random_trajectories((3, 4))
    content = pickle.dumps(episode_dicts(data), protocol)
    if protocol == 2:
        old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    else:  # the length stands before the name, and a frame's before all
        old = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        old = old[:3] + struct.pack("<Q", struct.unpack("<Q", old[3:11])[0] - 1) + old[11:]
    assert old != content
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    np.testing.assert_array_equal(dtrl.load_trajectories(path).actions, data.actions)


class Payload:
    """What runs when Python's own unpickler meets it."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def touch(path):
    return Payload(os.mkdir, str(path))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["alone", "an episode", "a field", "an element of a list", "the state of an array"])
def test_a_payload_never_runs(tmp_path, random_trajectories, episode_dicts, protocol, place):
    marker = tmp_path / "marker"
    episodes = episode_dicts(random_trajectories((3, 4)))
    payload = touch(marker)
    if place == "alone":
        content = payload
    elif place == "an episode":
        content = [episodes[0], payload]
    elif place == "a field":
        content = [episodes[0], episodes[1] | {"rewards": payload}]
    elif place == "an element of a list":
        content = [episodes[0] | {"rewards": [0.0, payload, 1.0]}]
    else:
        content = [episodes[0] | {"rewards": np.array([payload, 1, 2], dtype=object)}]
    path = tmp_path / "planted.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(InputError, match=r"planted.pkl"):
        dtrl.load_trajectories(path, format="pickle")
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # proof that the payload would have worked
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"posix\nsystem", "posix.system"), (b"builtins\neval", "builtins.eval"), (b"numpy\nload", "numpy.load"), (b"numpy\nndarray.tofile", "tofile")],
)  # fmt: skip
def test_a_name_that_is_no_plain_data_is_refused_by_name(tmp_path, name, shown):
    path = tmp_path / "named.pkl"
    path.write_bytes(b"c" + name + b"\n(X\x04\x00\x00\x00touchtR.")
    with pytest.raises(InputError, match=rf"named.pkl names .*{shown} at byte 0, .*Nothing was run"):
        read_pickle(path)


def test_opcodes_that_make_objects_are_refused(tmp_path):
    path = tmp_path / "object.pkl"
    path.write_bytes(b"(X\x04\x00\x00\x00trueiposix\nsystem\n.")
    with pytest.raises(InputError, match="opcode INST"):
        read_pickle(path)
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\n)\x81.")
    with pytest.raises(InputError, match="opcode NEWOBJ"):
        read_pickle(path)


ARRAY = pickle.dumps(np.zeros(4), 2)
HOSTILE = {
    "a long string": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a large array": ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "an object dtype": ARRAY.replace(b"f8", b"O8"),
    "a negative shape": ARRAY.replace(b"K\x04\x85", b"J\xfc\xff\xff\xff\x85"),
    "an empty stack": b"\x80\x02a.",
    "no mark": b"\x80\x02]e.",
    "an unknown memo": b"\x80\x02h\x07.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a state for a list": b"\x80\x02])b.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "a tower of tuples as an encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aNq\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"\x86R.",
    "a tower of tuples as a dtype": b"\x80\x02cnumpy\ndtype\nNq\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"\x85R.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "the same text again": b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 9000) + b"a" * 9000 + b"q\x01X\x06\x00\x00\x00latin1q\x020"
    + b"]q\x030" + b"h\x03h\x00h\x01h\x02\x86Ra0" * 100 + b".",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_and_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"hostile\.pkl"):
        read_pickle(path)


def test_one_array_named_a_thousand_times_does_not_fill_the_memory(tmp_path):
    part = {name: np.zeros((50_000, 1)) for name in ("observations", "actions", "rewards")} | {
        "terminals": np.zeros(50_000)
    }
    path = tmp_path / "again.pkl"
    path.write_bytes(pickle.dumps([part] * 1000))
    assert path.stat().st_size < 2e6
    with pytest.raises(InputError, match="names the same arrays again and again"):
        dtrl.load_trajectories(path)


@given(st.binary(max_size=60), st.integers(0, 10**6))
def test_no_bytes_raise_anything_but_an_input_error(tmp_path_factory, noise, place):
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    content = io.BytesIO(pickle.dumps([{"rewards": np.arange(5.0), "terminals": [0, 1]}], 2))
    content.seek(place % content.getbuffer().nbytes)
    content.write(noise)
    path.write_bytes(content.getvalue())
    refusal = str(path)
    try:
        read_pickle(path)
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal
