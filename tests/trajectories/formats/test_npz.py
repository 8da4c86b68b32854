"""NPZ: three ways to give offsets, flags beside them, and files that state more than they hold."""

import zipfile

import numpy as np
import pytest

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats import read_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.npz"


def save(path, **changes):
    columns = {
        "observations": np.arange(20.0).reshape(10, 2),
        "actions": np.arange(10) % 3,
        "rewards": np.ones(10),
        "terminals": np.isin(np.arange(10), (3, 9)),
    } | changes
    np.savez(path, **{name: values for name, values in columns.items() if values is not None})
    return path


@pytest.mark.parametrize(
    "offsets",
    [{"episode_starts": [0, 4, 6]}, {"episode_starts": [0, 4, 6, 10]}, {"episode_ends": [4, 6, 10]}, {"episode_lengths": [4, 2, 4]}],
    ids=str,
)  # fmt: skip
def test_offsets_split_and_flags_tell_terminations(path, offsets):
    data, assumed = read_file(save(path, **offsets))
    np.testing.assert_array_equal(data.episode_starts, [0, 4, 6])
    np.testing.assert_array_equal(np.flatnonzero(data.terminations), [3, 9])
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [5])
    assert assumed["episodes"] == f"by {next(iter(offsets))}; terminated where terminals says so"


def test_without_flags_every_episode_counts_as_truncated_and_that_is_said(path):
    data, assumed = read_file(save(path, terminals=None, episode_lengths=[4, 6]))
    assert not data.terminations.any()
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [3, 9])
    assert "all count as truncated" in assumed["episodes"]


WRONG = {
    "offsets that do not rise": ({"episode_starts": [0, 6, 4]}, "episode_starts of .* do not cut its 10 steps"),
    "offsets that end early": ({"episode_lengths": [4, 2]}, "episode_lengths of .* do not cut its 10 steps"),
    "an empty episode": ({"episode_lengths": [4, 0, 6]}, "do not cut its 10 steps"),
    "offsets of halves": ({"episode_lengths": [4.5, 5.5]}, "must be a list of whole numbers"),
    "an end inside": ({"episode_lengths": [5, 5]}, "terminals of .* is set at row 3, which by episode_lengths is not the last"),
    "neither": ({"terminals": None}, "has no terminals or terminations or dones"),
    "no rewards": ({"rewards": None, "episode_lengths": [4, 6]}, "has no rewards"),
    "objects": ({"rewards": np.array([1, "a"], dtype=object)}, "cannot be read as NPZ .*Object arrays cannot be loaded"),
    "a text": ({"rewards": np.array("none")}, "rewards of .* hold <U4, where numbers are expected"),
    "offsets in a text": ({"episode_lengths": np.array("4, 6")}, "must be a list of whole numbers"),
    "a single last observation": ({"episode_lengths": [4, 6], "final_observations": np.array(3.0)}, "is a single number, where a row"),
    "too few last observations": ({"episode_lengths": [4, 6], "final_observations": np.zeros((1, 2))}, "have 1 rows for 2 episodes"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_array_is_refused_by_name(path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        dtrl.load_trajectories(save(path, **changes))
    assert str(path) in str(caught.value)


def test_a_header_that_states_more_than_the_file_holds_is_refused_before_memory_is_taken(path):
    save(path, rewards=None)
    with zipfile.ZipFile(path, "a") as archive, archive.open("rewards.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with pytest.raises(InputError, match=r"rewards of .* states 8,796,093,022,208 bytes, and the file holds fewer"):
        dtrl.load_trajectories(path)
