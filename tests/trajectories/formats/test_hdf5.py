"""D4RL's and d3rlpy's HDF5: how episodes are found where the file does not say, and which files are refused."""

import h5py
import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats import read_file


def d4rl(path, steps=12, **changes):
    """A file of numbers that count the rows; None leaves a column out."""
    columns = {
        "observations": np.arange(steps * 4.0).reshape(steps, 4) / 100,
        "actions": np.linspace(-1, 1, steps)[:, None],
        "rewards": np.ones(steps),
        "terminals": np.isin(np.arange(steps), (3, 7)),
        "timeouts": np.arange(steps) == 9,
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file[name] = values
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.hdf5"


def test_the_unfinished_last_episode_counts_as_truncated_and_that_is_said(path):
    data, assumed = read_file(d4rl(path))
    np.testing.assert_array_equal(data.episode_starts, [0, 4, 8, 10])
    np.testing.assert_array_equal(np.flatnonzero(data.terminations), [3, 7])
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [9, 11])
    assert assumed["episodes"] == "ended by terminals and timeouts; the last 2 steps end nowhere and count as truncated"


def test_without_timeouts_a_jump_of_the_next_observation_ends_an_episode(path):
    observations = np.arange(48.0).reshape(12, 4)
    following = observations + 4
    following[9] = 99  # what would have come next, had the recorder not reset
    data, assumed = read_file(d4rl(path, observations=observations, next_observations=following, timeouts=None))
    np.testing.assert_array_equal(data.episode_starts, [0, 4, 8, 10])
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [9, 11])
    np.testing.assert_array_equal(data.final_observations[2], [99] * 4)
    assert "next_observations is not the next row's" in assumed["episodes"]


def test_next_observations_of_another_shape_are_refused(path):
    following = np.arange(36.0).reshape(12, 3)
    with pytest.raises(InputError, match=r"next_observations of .* have shape \(3,\), and observations \(4,\)"):
        read_file(d4rl(path, next_observations=following, timeouts=None))


def test_without_timeouts_bits_are_compared_too(path):
    bits = np.isin(np.arange(48), (5, 9, 20)).reshape(12, 4)
    following = np.roll(bits, -1, axis=0)
    following[9] = ~following[9]
    data, _ = read_file(d4rl(path, observations=bits, next_observations=following, timeouts=None))
    np.testing.assert_array_equal(data.episode_starts, [0, 4, 8, 10])


def test_without_timeouts_the_environment_says_when_episodes_end(path):
    terminals = np.arange(1100) == 99
    d4rl(path, 1100, terminals=terminals, timeouts=None, observations=np.zeros((1100, 4)), actions=np.zeros(1100, int))
    data, assumed = read_file(path, env="CartPole-v1")
    np.testing.assert_array_equal(data.episode_starts, [0, 100, 600])
    np.testing.assert_array_equal(np.flatnonzero(data.truncations), [599, 1099])
    assert "after the 500 steps of CartPole-v1" in assumed["episodes"]
    alone, assumed = read_file(path)
    np.testing.assert_array_equal(alone.episode_starts, [0, 100])
    assert "give the environment for its number of steps" in assumed["episodes"]


def test_columns_that_dtrl_does_not_read_are_named(path):
    _, assumed = read_file(d4rl(path, **{"infos/qpos": np.zeros(3), "goals": np.zeros(2)}))
    assert assumed["ignored"] == "goals, infos"


WRONG = {
    "no actions": ({"actions": None}, "has no actions; it holds observations, rewards"),
    "no terminals": ({"terminals": None}, "has no terminals or terminations or dones"),
    "a column too short": ({"rewards": np.ones(11)}, "differ in length .*11 rewards"),
    "a terminal of a half": ({"terminals": np.full(12, 0.5)}, "terminals of .* hold 0.5 at row 0"),
    "two rewards a row": ({"rewards": np.ones((12, 2))}, "rewards of .* have 2 numbers a row"),
    "words": ({"rewards": ["a"] * 12}, "rewards of .* is .*where an array of numbers is expected"),
    "a reward beyond float32": ({"rewards": np.where(np.arange(12) == 4, 1e300, 0)}, "rewards of .*too large for float32 at row 4"),
    "a last observation of NaN": ({"next_observations": np.full((12, 4), np.nan)}, "next_observations of .* at the end of episode 0"),
    "no width": ({"observations": np.zeros((12, 0))}, r"observations of .* have shape \(12, 0\), which holds no number"),
    "no rows": ({n: np.zeros((0, 1)) for n in ("observations", "actions", "rewards", "terminals", "timeouts")}, "holds no step"),
    "a matrix as observation": ({"observations": np.zeros((12, 2, 2), complex)}, "where an array of numbers is expected"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_column_is_refused_by_name(path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        dtrl.load_trajectories(d4rl(path, **changes))
    assert str(path) in str(caught.value)


def test_a_stated_shape_larger_than_the_file_holds_is_refused_before_it_is_read(path):
    d4rl(path, rewards=None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("rewards", (2**50,), "f8", chunks=(1024,))
    assert path.stat().st_size < 10**6
    with pytest.raises(
        InputError, match=r"rewards of .* states values of 9,007,199,254,740,992 bytes, and holds 0 bytes"
    ):
        dtrl.load_trajectories(path)


def test_data_in_another_file_are_refused(path, tmp_path):
    d4rl(tmp_path / "other.hdf5")
    d4rl(path, rewards=None)
    with h5py.File(path, "r+") as file:
        file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
    with pytest.raises(InputError, match=r"rewards of .*set\.hdf5 lies in another file"):
        dtrl.load_trajectories(path)


def test_minaris_own_file_leads_to_its_folder(path):
    with h5py.File(path, "w") as file:
        file.create_group("episode_0")
    with pytest.raises(InputError, match="part of a Minari dataset; give the dataset's folder"):
        dtrl.load_trajectories(path)


def test_d3rlpys_flat_file_needs_an_end_for_every_episode(random_trajectories, write, tmp_path):
    path = write(random_trajectories((3, 4)), "d3rlpy, flat")
    with h5py.File(path, "r+") as file:
        file["episode_terminals"][-1] = 0
    with pytest.raises(InputError, match="mark no end after row 3, and 4 rows follow"):
        dtrl.load_trajectories(path)


def test_d3rlpys_discrete_actions_are_whole_numbers_again(random_trajectories, write):
    data = random_trajectories((30, 40), action_space=spaces.Discrete(3))
    assert dtrl.load_trajectories(write(data, "d3rlpy, flat")).action_space == spaces.Discrete(3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rewards_1", np.zeros((3, 1)), "actions of episode 1 of .* have shape"),
        ("actions_1", None, "has no actions_1"),
        ("observations_1", np.zeros((4, 9)), r"observations of episode 1 of .* have shape \(9,\) a step, and those of episode 0 \(3,\)"),
        ("observations_0_0", np.zeros((3, 9)), "observations of several parts"),
        ("num_episodes", 0, "states 0 episodes"),
        ("num_episodes", 2**60, "states 1152921504606846976 episodes, and has no rewards_1152921504606846975"),
    ],
)  # fmt: skip
def test_a_ragged_episode_of_d3rlpy_is_refused(random_trajectories, write, name, values, message):
    path = write(random_trajectories((3, 4)), "d3rlpy")
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if values is not None:
            file[name] = values
    if name == "rewards_1":
        message = "observations of episode 1 of .* have shape"
    with pytest.raises(InputError, match=message):
        dtrl.load_trajectories(path)
