"""Every format: files that other tools wrote become the trajectories they were written from, and wrong ones end in one sentence."""

import hashlib

import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats import FORMATS, guess, read_file

SPACES = {
    "vectors": (None, None),
    "ids": (spaces.Discrete(5), spaces.Discrete(3)),
    "one number": (spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))),
}
LENGTHS = (3, 1, 6, 2, 9)


def test_every_format_has_a_writer_in_these_tests(writers):
    assert {kind.partition(",")[0] for kind in writers} == set(FORMATS)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_file_becomes_the_trajectories_that_it_was_written_from(
    random_trajectories, write, kind, without_final, space
):
    data = random_trajectories(LENGTHS, *space)
    path = write(data, kind)
    assert guess(path) == kind.partition(",")[0]
    for read in (
        dtrl.load_trajectories(path, short_episodes="keep"),
        read_file(path, format=kind.partition(",")[0])[0],
    ):
        np.testing.assert_array_equal(read.episode_starts, data.episode_starts)
        for name, values in data.columns.items():
            if name == "final_observations" and without_final:
                values = data.observations[data.episode_ends - 1]
            assert read.columns[name].dtype == values.dtype
            np.testing.assert_array_equal(read.columns[name], values, err_msg=name)


def test_what_was_assumed_is_said(random_trajectories, write, kind, without_final):
    trajectories, assumed = read_file(write(random_trajectories(LENGTHS), kind))
    assert "by its content" in assumed["format"]
    assert "observation" in assumed["columns"]
    assert assumed["ends"] == "3 of 5 episodes terminated, the others were truncated"
    assert "Box(-1.0, 1.0, (2,), float32), from the values" in assumed["actions"]
    assert "float" in assumed["rewards"]
    assert ("repeated" in assumed["last observation"]) == without_final
    assert "none was named" in assumed["environment"]
    assert {"episodes", "observations"} <= set(assumed)
    assert trajectories.action_space == spaces.Box(-1, 1, (2,))


def test_the_origin_has_the_hash_of_the_file_and_options_hold(random_trajectories, write):
    path = write(random_trajectories((4, 5)), "npz")
    data = dtrl.load_trajectories(path, discount=0.5, delayed=True)
    assert data.origin.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (data.origin.name, data.discount, data.delayed) == ("mine.data", 0.5, True)


def test_an_environment_gives_its_spaces(write, kind, random_trajectories):
    space = spaces.Box(-1, 1, (4,))
    trajectories, assumed = read_file(
        write(random_trajectories(LENGTHS, space, spaces.Discrete(2)), kind), env="CartPole-v1"
    )
    assert trajectories.observation_space.shape == (4,)
    assert np.isfinite(trajectories.observation_space.high[0])
    assert trajectories.action_space == spaces.Discrete(2)
    assert "CartPole-v1" in trajectories.origin.env_spec
    assert assumed["environment"] == "CartPole-v1"


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            spaces.Box(-1, 1, (3,)),
            spaces.Discrete(2),
            r"observations of .*mine.data have shape \(3,\), and CartPole-v1 has Box",
        ),
        (
            spaces.Box(-1, 1, (4,)),
            spaces.Discrete(3),
            r"actions of .*mine.data hold 2 at row \d+, which is outside Discrete\(2\)",
        ),
        (spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2,)), "actions of .*mine.data have 2 numbers a row"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(random_trajectories, write, observation, action, message):
    path = write(random_trajectories((20,), observation, action), "d4rl")
    with pytest.raises(InputError, match=message):
        read_file(path, env="CartPole-v1")


def test_actions_outside_one_have_the_bounds_of_the_values(random_trajectories, write):
    data = random_trajectories((20, 20), action_space=spaces.Box(-9, 9, (2,)))
    data.columns["actions"][:] *= 5
    space = dtrl.load_trajectories(write(data, "npz")).action_space
    np.testing.assert_array_equal(space.low, data.actions.min(axis=0))
    np.testing.assert_array_equal(space.high, data.actions.max(axis=0))


@pytest.mark.parametrize(
    ("actions", "space"),
    [
        (np.arange(6, dtype=np.uint8), spaces.Discrete(6)),
        (np.arange(6)[:, None] - 2, spaces.Discrete(6, start=-2)),
        (np.arange(6) % 2 == 0, spaces.Discrete(2)),
        (np.arange(6) * 10**6, spaces.Box(0, 5e6, (1,))),
        (np.arange(6) / 10, spaces.Box(-1, 1, (1,))),
    ],
)
def test_spaces_that_values_suggest(tmp_path, actions, space):
    np.savez(
        tmp_path / "a.npz",
        observations=np.zeros((6, 2)),
        actions=actions,
        rewards=np.ones(6),
        terminals=np.arange(6) == 5,
    )
    data = dtrl.load_trajectories(tmp_path / "a.npz")
    assert data.action_space == space
    np.testing.assert_array_equal(data.actions.reshape(6), actions.reshape(6).astype(data.actions.dtype))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_nan_is_refused_with_field_and_row(random_trajectories, write, kind, name):
    data = random_trajectories(LENGTHS)
    data.columns[name][5] = np.nan
    with pytest.raises(InputError, match=rf"{name} of .*mine.data hold NaN.* at row 5"):
        read_file(write(data, kind))


def test_what_is_no_format_is_refused_by_name(tmp_path):
    path = tmp_path / "photo.bin"
    path.write_bytes(b"\0\1\2 nothing of the kind")
    with pytest.raises(InputError, match=r"photo\.bin is none of d4rl, d3rlpy, pickle, npz, csv, parquet"):
        dtrl.load_trajectories(path)
    with pytest.raises(InputError, match="there is no format 'd4lr'; did you mean 'd4rl'"):
        read_file(path, format="d4lr")


def test_options_of_files_are_refused_for_datasets():
    with pytest.raises(InputError, match="are for files"):
        dtrl.load_trajectories("some/set-v0", env="CartPole-v1")


def test_columns_are_refused_for_what_is_no_table(random_trajectories, write):
    with pytest.raises(InputError, match=r"columns were named, and .*NPZ"):
        dtrl.load_trajectories(write(random_trajectories((4,)), "npz"), columns={"reward": ["r"]})


@pytest.mark.parametrize("cut", [9, 60, 200])
def test_a_file_cut_short_is_refused(random_trajectories, write, kind, cut):
    path = write(random_trajectories(LENGTHS), kind)
    path.write_bytes(path.read_bytes()[: -cut if kind != "csv" else -cut - 1])
    if kind == "csv":  # lines that are whole are fine; the one that was cut is not
        path.write_bytes(path.read_bytes().rstrip(b"\n")[:-3])
    with pytest.raises(InputError, match=r"mine\.data"):
        read_file(path, format=kind.partition(",")[0])
