"""Recipes: what they may say, and that a dataset is what its recipe says, made whole or not at all."""

import os
import textwrap

import gymnasium
import minari
import numpy as np
import pytest

import dtrl.collect
from dtrl.collect import Behaviour, list_recipes, load_recipe, make_dataset
from dtrl.errors import InputError
from dtrl.evaluation.references import REFERENCE_RETURNS

RANDOM = """
id = "tests/cartpole-v0"
env = "CartPole-v1"
seed = 7
description = "For tests."

[[behaviour]]
policy = "random"
episodes = 12
"""

TRAINED = """
id = "tests/trained-v0"
env = "CartPole-v1"
seed = 0
description = "For tests."

[algorithm]
name = "PPO"
timesteps = 256
checkpoints = [128, 256]
envs = 2
options = { n_steps = 64, batch_size = 64, n_epochs = 1 }

[[behaviour]]
policy = "checkpoint"
checkpoint = 128
episodes = 3
epsilon = 0.5

[[behaviour]]
policy = "checkpoint"
checkpoint = 256
episodes = 2
"""

PENDULUM = """
id = "tests/pendulum-v0"
env = "Pendulum-v1"
seed = 0
description = "For tests."
algorithm = { name = "A2C", timesteps = 10, checkpoints = [10] }

[[behaviour]]
policy = "checkpoint"
checkpoint = 10
episodes = 1
noise = 3
"""


@pytest.fixture(autouse=True)
def minari_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def recipe_of(tmp_path):
    """A recipe from the text of its file."""

    def load(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path)

    return load


def episodes_of(dataset_id):
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def assert_same_episodes(these, those):
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        for column in ("observations", "actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))


# The recipes that come with dtrl


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_fits_its_environment(name):
    recipe = load_recipe(name)
    gymnasium.spec(recipe.env)
    dtrl.collect._check_environment(recipe)
    assert f"dtrl datasets make {name}\n" in list_recipes()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_and_the_table_of_references_agree(name):
    recipe = load_recipe(name)
    known = REFERENCE_RETURNS.get(recipe.env)
    assert recipe.reference is not None
    if known:
        assert (recipe.reference.random, recipe.reference.expert) == (known.random, known.expert)


def test_recipes_have_ids_of_their_own():
    ids = [load_recipe(name).id for name in list_recipes()]
    assert len(ids) >= 5
    assert len(set(ids)) == len(ids)


def test_the_recipe_in_the_documentation_is_valid(recipe_of):
    documentation = dtrl.collect.__doc__
    recipe = recipe_of(textwrap.dedent(documentation[documentation.index("    id = ") :]))
    assert [behaviour.name for behaviour in recipe.behaviour] == ["checkpoint 4000, epsilon 0.1", "random"]


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


def test_recorded_actions_replay_to_the_recorded_episode(recipe_of):
    make_dataset(recipe_of(RANDOM))
    dataset = minari.load_dataset("tests/cartpole-v0")
    env = dataset.recover_environment()
    for episode, metadata in zip(dataset, dataset.storage.get_episode_metadata(range(12)), strict=True):
        observations = [env.reset(seed=metadata["seed"])[0], *(env.step(action)[0] for action in episode.actions)]
        np.testing.assert_array_equal(observations, episode.observations)


def test_a_time_limit_is_a_truncation(recipe_of):
    make_dataset(recipe_of(PENDULUM))
    (episode,) = episodes_of("tests/pendulum-v0")
    assert episode.truncations.tolist() == [False] * 199 + [True]
    assert not episode.terminations.any()


def test_noise_is_clipped_to_the_action_range(recipe_of):
    make_dataset(recipe_of(PENDULUM))
    actions = episodes_of("tests/pendulum-v0")[0].actions
    assert actions.shape == (200, 1)
    assert actions.dtype == np.float32
    # Noise of 3 half ranges around an action near 0 is clipped in 2 P(Z > 1/3) = 74 % of the steps; a bound is hit exactly.
    assert np.abs(actions).max() == 2
    assert 0.6 < (np.abs(actions) == 2).mean() < 0.9


def test_epsilon_is_the_share_of_random_actions():
    class Right:
        policy = None

        def predict(self, observations, deterministic):
            return np.ones(len(observations), np.int64), None

    act = dtrl.collect._actor(Behaviour("checkpoint", 1, checkpoint=1, epsilon=0.4), Right())
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    left = np.mean([act([env], [np.zeros(4)])[0] == 0 for _ in range(2_000)])
    assert abs(left - 0.2) < 0.04  # half of the random ones; the standard deviation is 0.009


def test_the_demonstrator_acts_for_every_environment(recipe_of):
    text = RANDOM.replace("CartPole-v1", "dtrl/KeyToDoor-v0").replace('"random"', '"demonstrator"')
    make_dataset(recipe_of(text))
    assert [episode.rewards.sum() for episode in episodes_of("tests/cartpole-v0")] == [1.0] * 12


def test_metadata_say_where_every_episode_comes_from(recipe_of):
    reference = "[reference]\nrandom = 22\nexpert = 500.0\n"
    make_dataset(recipe_of(TRAINED + reference))
    storage = minari.load_dataset("tests/trained-v0").storage
    behaviours = [metadata["behaviour"] for metadata in storage.get_episode_metadata(range(5))]
    assert behaviours == ["checkpoint 128, epsilon 0.5"] * 3 + ["checkpoint 256"] * 2
    assert "For tests. Seed 0: 3 episodes of checkpoint 128, epsilon 0.5; 2" in storage.metadata["description"]
    assert (storage.metadata["ref_min_score"], storage.metadata["ref_max_score"]) == (22.0, 500.0)
    assert storage.metadata["recipe"]["algorithm"]["options"]["n_steps"] == 64
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


def test_checkpoints_are_copies_of_different_moments(recipe_of):
    recipe = recipe_of(TRAINED)
    _, checkpoints = dtrl.collect._train(recipe, recipe.algorithm, False)
    first, second = checkpoints[128], checkpoints[256]
    assert any((first[name] != second[name]).any() for name in first)


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
def test_a_failure_while_writing_leaves_nothing(recipe_of, monkeypatch, minari_folder, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episode_metadata", fail)
    with pytest.raises(type(failure) if isinstance(failure, OSError) else failure):
        make_dataset(recipe_of(RANDOM))
    assert list(minari_folder.iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_folder)


def test_a_failure_while_overwriting_keeps_the_old_dataset(recipe_of, monkeypatch):
    make_dataset(recipe_of(RANDOM))
    before = episodes_of("tests/cartpole-v0")
    monkeypatch.setattr(dtrl.collect, "_write_in_place", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_dataset(recipe_of(RANDOM), overwrite=True)
    assert_same_episodes(before, episodes_of("tests/cartpole-v0"))


def test_a_folder_that_is_no_dataset_is_left_alone(recipe_of, minari_folder):
    (minari_folder / "tests/cartpole-v0/inner-v0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cartpole-v0 exists and is no dataset"):
        make_dataset(recipe_of(RANDOM), overwrite=True)
    assert (minari_folder / "tests/cartpole-v0/inner-v0").is_dir()


# Bad input


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RANDOM + "episode = 3", r"recipe.toml: behaviour 1: there is no field 'episode'; did you mean 'episodes'"),
        ("sead = 3\n" + RANDOM, r"recipe.toml: there is no field 'sead'; did you mean 'seed'"),
        ("source = 'x'\n" + RANDOM, r"there is no field 'source'"),
        (edit(RANDOM, "seed = 7\n", ""), r"recipe.toml: the field 'seed' is missing"),
        (edit(RANDOM, "seed = 7", "seed = -1"), r"seed -1 is negative"),
        (edit(RANDOM, "seed = 7", "seed = 7.5"), r"seed is 7.5; an integer is expected"),
        (edit(RANDOM, "seed = 7", "seed = true"), r"seed is True; an integer is expected"),
        (edit(RANDOM, "[[behaviour]]", "[behaviour]"), r"behaviour is \{.*\}; a list is expected"),
        (edit(RANDOM, "seed = 7", "seed = 7\nalgorithm = 3"), r"algorithm is 3; a table is expected"),
        (RANDOM[: RANDOM.index("[[")] + "behaviour = []", r"behaviour is an empty list"),
        (RANDOM[: RANDOM.index("[[")], r"the field 'behaviour' is missing"),
        (edit(RANDOM, "tests/cartpole-v0", "t/cartpole-v0"), r"id 't/cartpole-v0' is no Minari dataset id"),
        (edit(RANDOM, "tests/cartpole-v0", "tests/cartpole"), r"id 'tests/cartpole' is no Minari dataset id"),
        (edit(RANDOM, "tests/cartpole-v0", "../cartpole-v0"), r"id '../cartpole-v0' is no Minari dataset id"),
        (edit(RANDOM, "episodes = 12", "episodes = 0"), r"episodes 0 must be 1 or more"),
        (
            edit(RANDOM, '"random"', '"rnadom"'),
            r"policy 'rnadom' is unknown; use one of random, checkpoint, demonstrator",
        ),
        (RANDOM + "epsilon = 0.1", r"policy random is random already"),
        (RANDOM + "deterministic = true", r"checkpoint and deterministic need policy 'checkpoint', not 'random'"),
        (edit(RANDOM, '"random"', '"checkpoint"'), r"policy 'checkpoint' needs an \[algorithm\] table"),
        (RANDOM + "[reference]\nrandom = 5\nexpert = 5", r"reference.expert 5 must exceed reference.random 5"),
        (edit(TRAINED, "PPO", "PPPO"), r"algorithm.name 'PPPO' is unknown; use one of A2C"),
        (edit(TRAINED, "timesteps = 256", "timesteps = 0"), r"timesteps 0 and envs 2 must both be 1 or more"),
        (
            edit(TRAINED, "timesteps = 256", "timesteps = 200"),
            r"checkpoints \[128, 256\] must be ascending .* timesteps 200",
        ),
        (edit(TRAINED, "[128, 256]", "[256, 128]"), r"checkpoints \[256, 128\] must be ascending"),
        (edit(TRAINED, "[128, 256]", "[128, '256']"), r"checkpoints 2 is '256'; an integer is expected"),
        (
            edit(TRAINED, "checkpoint = 128", "checkpoint = 100"),
            r"behaviour 1: checkpoint 100 is not kept; .* \[128, 256\]",
        ),
        (edit(TRAINED, "epsilon = 0.5", "epsilon = 1.5"), r"epsilon 1.5 is no probability"),
        (edit(TRAINED, "epsilon = 0.5", "noise = inf"), r"noise inf must be 0 or a positive number"),
        ("id = ", r"recipe.toml is not a TOML file: Invalid value"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(recipe_of, text, message):
    with pytest.raises(InputError, match=message):
        recipe_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edit(RANDOM, "CartPole-v1", "CartPol-v1"),
            r"recipe.toml: env 'CartPol-v1' cannot be made .*did you mean 'CartPole-v1'",
        ),
        (edit(RANDOM, "CartPole-v1", "nowhere:Env-v0"), r"env 'nowhere:Env-v0' cannot be made"),
        (edit(RANDOM, '"random"', '"demonstrator"'), r"behaviour 1: CartPole-v1 has no demonstrate\(\) method"),
        (
            edit(PENDULUM, "noise = 3", "epsilon = 0.1"),
            r"epsilon needs Discrete actions, Pendulum-v1 has Box.*; use noise",
        ),
        (
            edit(TRAINED, "epsilon", "noise"),
            r"noise needs bounded Box actions, CartPole-v1 has Discrete\(2\); use epsilon",
        ),
        (edit(PENDULUM, "A2C", "DQN"), r"DQN cannot act in the Box actions of Pendulum-v1; use one of .*'SAC'"),
        (edit(TRAINED, "n_steps", "nsteps"), r"PPO has no option 'nsteps'; did you mean 'n_steps'"),
        (
            edit(TRAINED, "batch_size = 64", "batch_size = 1"),
            r"PPO refuses algorithm.options .*`batch_size` must be greater than 1",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_and_leaves_nothing(recipe_of, minari_folder, text, message):
    with pytest.raises(InputError, match=message):
        make_dataset(recipe_of(text))
    assert not minari_folder.exists() or list(minari_folder.iterdir()) == []


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"no recipe 'cartpol'; did you mean 'cartpole'"):
        load_recipe("cartpol")
    with pytest.raises(InputError, match=r"nowhere.toml cannot be read .*cartpole"):
        load_recipe("nowhere.toml")


def test_a_malformed_dataset_id_is_refused(recipe_of):
    with pytest.raises(InputError, match=r"'no version' is no Minari dataset id"):
        make_dataset(recipe_of(RANDOM), dataset_id="no version")


def test_a_folder_that_cannot_be_used_is_named(recipe_of, minari_folder):
    minari_folder.write_text("a file")
    with pytest.raises(InputError, match=r"Minari's folder cannot be used: .*MINARI_DATASETS_PATH"):
        make_dataset(recipe_of(RANDOM))
