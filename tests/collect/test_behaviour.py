"""Behaviour policies: how they are trained and act, and that what does not fit together is refused."""

from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest

from dtrl.collect import Behaviour, make_dataset
from dtrl.collect.behaviour import actor, train
from dtrl.errors import InputError

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")
PENDULUM = (HERE / "pendulum.toml").read_text(encoding="utf-8")


def episodes_of(dataset_id):
    return list(minari.load_dataset(dataset_id).iterate_episodes())


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

    act = actor(Behaviour("checkpoint", 1, checkpoint=1, epsilon=0.4), Right())
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    left = np.mean([act([env], [np.zeros(4)])[0] == 0 for _ in range(2_000)])
    assert abs(left - 0.2) < 0.04  # half of the random ones; the standard deviation is 0.009


def test_the_demonstrator_acts_for_every_environment(recipe_of):
    text = RANDOM.replace("CartPole-v1", "dtrl/KeyToDoor-v0").replace('"random"', '"demonstrator"')
    make_dataset(recipe_of(text))
    assert [episode.rewards.sum() for episode in episodes_of("tests/cartpole-v0")] == [1.0] * 12


def test_checkpoints_are_copies_of_different_moments(recipe_of):
    recipe = recipe_of(TRAINED)
    _, checkpoints = train(recipe, recipe.algorithm, False)
    first, second = checkpoints[128], checkpoints[256]
    assert any((first[name] != second[name]).any() for name in first)


# Bad input


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


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
