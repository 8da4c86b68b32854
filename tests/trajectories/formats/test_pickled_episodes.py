"""The shape of the Decision Transformer's own pickles, and what is refused in it."""

import pickle

import numpy as np
import pytest

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats import read_file


@pytest.fixture
def write_dicts(tmp_path):
    def write(content):
        path = tmp_path / "hopper-medium-v2.pkl"
        path.write_bytes(pickle.dumps(content))
        return path

    return write


@pytest.fixture
def episodes(random_trajectories, episode_dicts):
    return episode_dicts(random_trajectories((3, 5, 2)))


def test_dones_timeouts_and_lists_are_read_too(write_dicts, episodes):
    expected = dtrl.load_trajectories(write_dicts(episodes))
    for episode in episodes:
        episode["dones"] = episode.pop("terminals")
        episode["timeouts"] = ~episode["dones"] & (np.arange(len(episode["dones"])) == len(episode["dones"]) - 1)
        episode["rewards"] = [float(reward) for reward in episode["rewards"]]
        episode["actions"] = list(episode["actions"])
        episode["infos/x"] = np.zeros(7)
    data, assumed = read_file(write_dicts(episodes))
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(data.columns[name], values)
    assert assumed["ignored"] == "infos/x"


def test_one_dict_of_flat_columns_is_read_too(write_dicts, episodes):
    expected = dtrl.load_trajectories(write_dicts(episodes))
    flat = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    data = dtrl.load_trajectories(write_dicts(flat | {"timeouts": np.isin(np.arange(10), (7,))}))
    np.testing.assert_array_equal(data.observations, expected.observations)
    np.testing.assert_array_equal(data.episode_starts, expected.episode_starts)


def without(episodes, name):
    return [episodes[0], {key: value for key, value in episodes[1].items() if key != name}, episodes[2]]


WRONG = {
    "no episodes": (lambda e: [], "holds list of no episodes"),
    "a number": (lambda e: 3, "holds int of no episodes"),
    "episodes of lists": (lambda e: [[1, 2]], "holds list of no episodes"),
    "no rewards in one": (lambda e: without(e, "rewards"), "episode 1 of .* has no rewards; it holds observations"),
    "no terminals": (lambda e: [{k: v for k, v in d.items() if k != "terminals"} for d in e], "episode 0 of .* has no terminals"),
    "too few actions": (lambda e: [e[0], e[1] | {"actions": e[1]["actions"][:2]}], r"actions of episode 1 of .* have shape \(2, 2\), and its rewards 5"),
    "another width": (lambda e: [e[0], e[1] | {"actions": np.zeros((5, 7))}], r"actions of episode 1 .*\(7,\) a step, and those of episode 0 \(2,\)"),
    "an end in the middle": (lambda e: [e[0], e[1] | {"terminals": np.arange(5) == 2}], "terminals of episode 1 of .* is set at step 2, before"),
    "no step": (lambda e: [e[0], {k: v[:0] for k, v in e[1].items()}], "episode 1 of .* has no step"),
    "text": (lambda e: [e[0] | {"rewards": "abc"}], "rewards of episode 0 of .* is str, where an array is expected"),
    "a list of text": (lambda e: [e[0] | {"rewards": ["a", "b", "c"]}], "rewards of episode 0 of .* is a list of other things"),
    "rows of two widths": (lambda e: [e[0] | {"actions": [np.zeros(2), np.zeros(3), np.zeros(2)]}], "actions of episode 0 .*different shapes"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_episode_is_refused_with_its_number(write_dicts, episodes, change, message):
    path = write_dicts(change(episodes))
    with pytest.raises(InputError, match=message) as caught:
        dtrl.load_trajectories(path)
    assert str(path) in str(caught.value)
