"""A dataset is what its recipe says, or what the trajectories hold, made whole or not at all."""

import dataclasses
import json
import os
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import dtrl
from dtrl.acting import Episode
from dtrl.collect import make_dataset, making, write_minari
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories, load_trajectories
from dtrl.trajectories.columns import Origin

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")


def episodes_of(dataset_id):
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def assert_same_episodes(these, those):
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        for column in ("observations", "actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))


# What a dataset holds


def test_a_dataset_holds_the_episodes_of_the_recipe(recipe_of):
    assert make_dataset(recipe_of(RANDOM)) == "tests/cartpole-v0"
    episodes = episodes_of("tests/cartpole-v0")
    assert len(episodes) == 12
    for episode in episodes:
        steps = len(episode.actions)
        assert episode.observations.shape == (steps + 1, 4)
        assert episode.observations.dtype == np.float32
        assert episode.actions.dtype == np.int64
        assert episode.rewards.dtype == np.float64
        # Random actions let the pole fall long before the 500 steps: terminated, not truncated.
        assert episode.terminations.tolist() == [False] * (steps - 1) + [True]
        assert not episode.truncations.any()


def test_metadata_say_where_every_episode_comes_from(recipe_of):
    reference = "[reference]\nrandom = 22\nexpert = 500.0\n"
    make_dataset(recipe_of(TRAINED + reference))
    storage = minari.load_dataset("tests/trained-v0").storage
    behaviours = [metadata["behaviour"] for metadata in storage.get_episode_metadata(range(5))]
    assert behaviours == ["checkpoint 128, epsilon 0.5"] * 3 + ["checkpoint 256"] * 2
    assert "For tests. Seed 0: 3 episodes of checkpoint 128, epsilon 0.5; 2" in storage.metadata["description"]
    assert (storage.metadata["ref_min_score"], storage.metadata["ref_max_score"]) == (22.0, 500.0)
    assert storage.metadata["recipe"]["algorithm"]["options"] == {"n_steps": 64, "batch_size": 64, "n_epochs": 1}
    assert len(episodes_of("tests/trained-v0")) == 5


def test_the_same_recipe_gives_the_same_arrays(recipe_of):
    recipe = recipe_of(TRAINED)
    make_dataset(recipe, dataset_id="tests/one-v0")
    make_dataset(recipe, dataset_id="tests/other-v0")
    assert_same_episodes(episodes_of("tests/one-v0"), episodes_of("tests/other-v0"))


def test_another_seed_gives_other_episodes(recipe_of):
    make_dataset(recipe_of(RANDOM), dataset_id="tests/one-v0")
    make_dataset(recipe_of(RANDOM.replace("seed = 7", "seed = 8")), dataset_id="tests/other-v0")
    firsts = [episodes_of(f"tests/{name}-v0")[0].observations[0] for name in ("one", "other")]
    assert not np.array_equal(*firsts)


# Made whole or not at all


def test_an_existing_dataset_is_not_overwritten_unasked(recipe_of):
    make_dataset(recipe_of(RANDOM))
    before = episodes_of("tests/cartpole-v0")
    with pytest.raises(InputError, match=r"tests/cartpole-v0 exists in .*overwrite"):
        make_dataset(recipe_of(RANDOM.replace("seed = 7", "seed = 8")))
    assert_same_episodes(before, episodes_of("tests/cartpole-v0"))


def test_overwrite_replaces_it(recipe_of):
    make_dataset(recipe_of(RANDOM))
    make_dataset(recipe_of(RANDOM.replace("episodes = 12", "episodes = 2")), overwrite=True)
    assert len(episodes_of("tests/cartpole-v0")) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_a_failure_while_writing_leaves_no_dataset_and_the_next_run_goes_on(
    recipe_of, monkeypatch, minari_folder, failure
):
    def fail(*_):
        raise failure

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episode_metadata", fail)
    with pytest.raises(type(failure) if isinstance(failure, OSError) else failure):
        make_dataset(recipe_of(RANDOM))
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_folder)
    assert minari.list_local_datasets() == {}
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari_folder))
    monkeypatch.setattr("dtrl.collect.playing.play", lambda *_: 1 / 0)  # nothing is left to play
    make_dataset(recipe_of(RANDOM))
    assert len(episodes_of("tests/cartpole-v0")) == 12
    assert sorted(path.name for path in minari_folder.iterdir()) == ["tests"]


def test_a_failure_while_overwriting_keeps_the_old_dataset(recipe_of, monkeypatch):
    make_dataset(recipe_of(RANDOM))
    before = episodes_of("tests/cartpole-v0")
    monkeypatch.setattr(making, "write_recipe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_dataset(recipe_of(RANDOM), overwrite=True)
    assert_same_episodes(before, episodes_of("tests/cartpole-v0"))


def test_a_folder_that_is_no_dataset_is_left_alone(recipe_of, minari_folder):
    (minari_folder / "tests/cartpole-v0/inner-v0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cartpole-v0 exists and is no dataset"):
        make_dataset(recipe_of(RANDOM), overwrite=True)
    assert (minari_folder / "tests/cartpole-v0/inner-v0").is_dir()


def test_a_malformed_dataset_id_is_refused(recipe_of):
    with pytest.raises(InputError, match=r"'no version' is no Minari dataset id"):
        make_dataset(recipe_of(RANDOM), dataset_id="no version")


def test_a_folder_that_cannot_be_used_is_named(recipe_of, minari_folder):
    minari_folder.write_text("a file")
    with pytest.raises(InputError, match=r"Minari's folder cannot be used: .*MINARI_DATASETS_PATH"):
        make_dataset(recipe_of(RANDOM))


# Trajectories written

SPACES = [
    Box(-1, 1, (3,)),
    Box(-np.inf, np.inf, (2,), np.float64),
    Box(0, 255, (4,), np.uint8),
    Discrete(5),
    Discrete(3, start=-1),
]


@pytest.fixture
def some(random_trajectories):
    """Two episodes, the first terminated, the second truncated, of CartPole as far as they say."""
    origin = Origin("somewhere", gymnasium.spec("CartPole-v1").to_json(), (22.0, 500.0))
    return random_trajectories([3, 5], origin=origin)


def sampled(space, count):
    return np.array([space.sample() for _ in range(count)])


def assert_same_columns(one, other):
    assert set(one.columns) == set(other.columns)
    for name, column in one.columns.items():
        assert other.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(other.columns[name], column, err_msg=name)
    np.testing.assert_array_equal(other.episode_starts, one.episode_starts)
    assert (other.observation_space, other.action_space) == (one.observation_space, one.action_space)


def with_space_and_last(trajectories, space, value):
    """The trajectories with another observation space, and with another number as the last observation of the second episode."""
    final = trajectories.final_observations.copy()
    final[1, 0] = value
    return dataclasses.replace(
        trajectories, columns={**trajectories.columns, "final_observations": final}, observation_space=space
    )


@pytest.mark.parametrize("action_space", SPACES, ids=str)
@pytest.mark.parametrize("observation_space", SPACES, ids=str)
def test_written_and_loaded_again_trajectories_are_equal(observation_space, action_space):
    observation_space.seed(0)
    action_space.seed(1)
    episodes = [
        {
            "observations": sampled(observation_space, steps + 1),
            "actions": sampled(action_space, steps),
            "rewards": np.linspace(-1, 1, steps),
            "terminations": np.arange(steps) == (steps - 1 if steps != 4 else -1),
            "truncations": np.arange(steps)
            == (steps - 1 if steps != 2 else -1),  # both at once where there are 7 steps
        }
        for steps in (2, 4, 7)
    ]
    written = Trajectories.from_episodes(episodes, observation_space, action_space)
    assert_same_columns(written, load_trajectories(write_minari(written, "tests/written-v0")))
    stored = episodes_of("tests/written-v0")[0]
    assert (stored.observations.dtype, stored.actions.dtype) == (observation_space.dtype, action_space.dtype)
    assert stored.rewards.dtype == np.float64


def test_the_origin_goes_into_the_metadata(some):
    loaded = load_trajectories(write_minari(some, "tests/written-v0", algorithm="my planner"))
    assert (loaded.origin.env_spec, loaded.origin.reference) == (some.origin.env_spec, some.origin.reference)
    dataset = minari.load_dataset("tests/written-v0")
    metadata = dataset.storage.metadata
    assert dataset.env_spec.id == "CartPole-v1"
    assert (metadata["description"], metadata["algorithm_name"]) == ("somewhere", "my planner")
    assert metadata["jpeg_encoding"] is False


def test_what_is_not_known_is_left_out_of_the_metadata(random_trajectories):
    write_minari(random_trajectories([3]), "tests/written-v0", description="Mine.")
    metadata = minari.load_dataset("tests/written-v0").storage.metadata
    assert metadata["description"] == "Mine."
    assert not {"env_spec", "ref_min_score", "ref_max_score", "algorithm_name", "author"} & set(metadata)


def test_delayed_trajectories_are_written_undelayed(some):
    delayed = dataclasses.replace(some, delayed=True)
    assert_same_columns(some, load_trajectories(write_minari(delayed, "tests/written-v0")))


@pytest.mark.parametrize(
    "env_spec", [None, "", "{", "[]", '{"id": 3}', '{"id": "a b"}', '{"id": "A-v0", "additional_wrappers": 3}']
)
def test_an_environment_that_minari_could_not_read_is_left_out(some, env_spec):
    some = dataclasses.replace(some, origin=Origin("somewhere", env_spec))
    assert load_trajectories(write_minari(some, "tests/written-v0")).origin.env_spec is None
    assert minari.load_dataset("tests/written-v0").env_spec is None


def test_an_environment_of_an_older_gymnasium_can_be_read(some):
    spec = json.loads(some.origin.env_spec)
    some = dataclasses.replace(some, origin=Origin("somewhere", json.dumps({**spec, "autoreset": False})))
    assert json.loads(load_trajectories(write_minari(some, "tests/written-v0")).origin.env_spec) == spec
    assert minari.load_dataset("tests/written-v0").env_spec.id == "CartPole-v1"


def test_the_environment_is_not_made(some, tmp_path, monkeypatch):
    (tmp_path / "bad_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    spec = {**json.loads(some.origin.env_spec), "id": "Bad-v0", "entry_point": "bad_module:Bad"}
    some = dataclasses.replace(some, origin=Origin("somewhere", json.dumps(spec), (0.0, 1.0)))
    assert json.loads(load_trajectories(write_minari(some, "tests/written-v0")).origin.env_spec) == spec


def test_written_over_the_dataset_that_they_were_loaded_from(some):
    loaded = load_trajectories(write_minari(some, "tests/written-v0"))
    with pytest.raises(InputError, match=r"tests/written-v0 exists in .*overwrite"):
        write_minari(loaded.select([1]), "tests/written-v0")
    assert_same_columns(some, load_trajectories("tests/written-v0"))
    write_minari(loaded.select([1]), "tests/written-v0", overwrite=True)
    assert_same_columns(some.select([1]), load_trajectories("tests/written-v0"))


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (Box(-9, 9, (3,)), np.nan, r"observations of episode 1 hold NaN or infinity at step 5; repair or remove"),
        (Box(-9, 9, (3,)), np.inf, r"observations of episode 1 hold NaN or infinity at step 5"),
        (Box(0, 9, (3,), np.uint8), 0, r"observations of episode 0 hold .* at step 0, which uint8 cannot store"),
        (Box(-9, 9, (0,)), 0, r"the observation space of the trajectories is Box.*, which has no entry"),
    ],
)
def test_values_that_could_not_be_loaded_again_are_refused_and_leave_nothing(
    some, minari_folder, space, value, message
):
    with pytest.raises(InputError, match=message):
        write_minari(with_space_and_last(some, space, value), "tests/written-v0")
    assert list(minari_folder.iterdir()) == []


def test_no_episode_and_a_malformed_id_are_refused(some):
    with pytest.raises(InputError, match=r"to write as tests/written-v0 hold no episode"):
        write_minari(some.select([]), "tests/written-v0")
    with pytest.raises(InputError, match=r"'written' is no Minari dataset id"):
        write_minari(some, "written")


def test_the_loop_closes(some, random_trajectories, untrained_policy):
    env = gymnasium.make("CartPole-v1")
    data = random_trajectories([5, 6], env.observation_space, env.action_space, origin=some.origin)
    played = dtrl.rollout(untrained_policy(data), None, [Episode(50.0, seed) for seed in range(3)])
    loaded = load_trajectories(write_minari(played, "tests/played-v0"))
    assert_same_columns(played, loaded)
    policy = dtrl.train(loaded, updates=2, batch_size=4, context_length=4, width=16, layers=1, heads=1)
    again = dtrl.rollout(policy, None, [Episode(50.0, 0)])
    assert again.origin.name == "rollouts of a policy trained on tests/played-v0"
    assert again.origin.reference == (22.0, 500.0)
