"""Behaviour policies: how they are trained and act, and that what does not fit together is refused."""

from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest

from dtrl.collect import Behaviour, make_dataset
from dtrl.collect.array_policy import ArrayPolicy
from dtrl.collect.behaviour import actor
from dtrl.collect.training import policy_of, train, untrained
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


def linear(head, outputs, **rest):
    """A policy of CartPole or Pendulum that gives the same outputs whatever it sees."""
    width = 3 if head.startswith("box") else 4
    zeros = np.zeros((width, len(outputs)), np.float32)
    return ArrayPolicy((zeros,), (np.array(outputs, np.float32),), "tanh", head, **rest)


def actions_of(behaviour, policy, env_id, count):
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    observation, random = env.reset(seed=0)[0], np.random.default_rng(0)
    act = actor(behaviour, policy)
    return np.array([act(env, observation, random) for _ in range(count)])


def test_epsilon_is_the_share_of_random_actions():
    behaviour = Behaviour("checkpoint", 1, checkpoint=1, epsilon=0.4)
    left = (actions_of(behaviour, linear("argmax", [0, 1]), "CartPole-v1", 2_000) == 0).mean()
    assert abs(left - 0.2) < 0.04  # half of the random ones; the standard deviation is 0.009


def test_epsilon_draws_from_the_whole_range_of_box_actions():
    policy = linear("box_clip", [0.5], low=np.array([-2]), high=np.array([2]))
    actions = actions_of(Behaviour("file", 1, path="x.npz", epsilon=0.5), policy, "Pendulum-v1", 2_000)[:, 0]
    random = actions[actions != 0.5]
    assert abs(len(random) / 2_000 - 0.5) < 0.05  # standard deviation 0.011
    assert abs(random.std() - 4 / 12**0.5) < 0.1  # uniform over 4; standard error about 0.02


def test_noise_has_its_standard_deviation():
    policy = linear("box_clip", [0.5], low=np.array([-2]), high=np.array([2]))
    actions = actions_of(Behaviour("file", 1, path="x.npz", noise=0.1), policy, "Pendulum-v1", 4_000)
    assert actions.dtype == np.float32
    assert abs(actions.std() - 0.2) < 0.012  # a tenth of half of the range of 4; five standard errors
    assert abs(actions.mean() - 0.5) < 0.016


def test_temperature_flattens_and_deterministic_sharpens():
    policy = linear("categorical", [0.0, 2.0])
    for temperature, share in ((None, 1 / (1 + np.exp(-2))), (2.0, 1 / (1 + np.exp(-1)))):
        behaviour = Behaviour("file", 1, path="x.npz", temperature=temperature)
        assert (
            abs(actions_of(behaviour, policy, "CartPole-v1", 4_000).mean() - share) < 0.04
        )  # over five standard errors
    behaviour = Behaviour("file", 1, path="x.npz", deterministic=True)
    assert actions_of(behaviour, policy, "CartPole-v1", 50).tolist() == [1] * 50


def test_the_demonstrator_acts_for_every_environment(recipe_of):
    text = RANDOM.replace("CartPole-v1", "dtrl/KeyToDoor-v0").replace('"random"', '"demonstrator"')
    make_dataset(recipe_of(text))
    assert [episode.rewards.sum() for episode in episodes_of("tests/cartpole-v0")] == [1.0] * 12


def test_checkpoints_are_copies_of_different_moments(recipe_of):
    recipe, checkpoints = recipe_of(TRAINED), {}
    train(recipe, recipe.algorithm, False, checkpoints.__setitem__, None)
    assert list(checkpoints) == [128, 256]
    assert (checkpoints[128].weights[0] != checkpoints[256].weights[0]).any()


def test_a_normalised_training_keeps_the_statistics_of_each_moment(recipe_of):
    recipe, checkpoints = recipe_of(TRAINED.replace("envs = 2", "envs = 2\nnormalize = true")), {}
    train(recipe, recipe.algorithm, False, checkpoints.__setitem__, None)
    assert checkpoints[128].obs_clip == 10
    assert (checkpoints[128].obs_mean != checkpoints[256].obs_mean).all()


def test_options_that_are_no_plain_data_are_made_from_data(recipe_of):
    text = PENDULUM.replace("A2C", "TD3").replace("checkpoints = [10]", "checkpoints = [10], options = { %s }")
    recipe = recipe_of(
        text
        % "action_noise = 0.3, learning_rate = 'lin_0.01', train_freq = [1, 'episode'], policy_kwargs = { activation_fn = 'tanh' }"
    )
    model = untrained(recipe, recipe.algorithm)
    assert model.action_noise._sigma.tolist() == [0.3]
    assert [model.lr_schedule(progress) for progress in (1.0, 0.25)] == pytest.approx([0.01, 0.0025])
    assert model.train_freq.frequency == 1
    assert "Tanh" in str(model.policy.actor)


class Pictures(gymnasium.Env):
    """Random images in a part of its observations; an episode of five steps."""

    picture = gymnasium.spaces.Box(0, 255, (5, 4, 3), np.uint8)
    observation_space = gymnasium.spaces.Dict({"picture": picture, "mission": gymnasium.spaces.Text(9)})
    action_space = gymnasium.spaces.Discrete(3, start=0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action), self.steps == 5, False, {}

    def observe(self):
        return {"picture": self.np_random.integers(0, 256, self.picture.shape, dtype=np.uint8), "mission": "go"}


PICTURES = """
id = "tests/pictures-v0"
env = "tests/Pictures-v0"
observation_key = "picture"
seed = 0
description = "For tests."
algorithm = { name = "%s", normalize = %s, timesteps = 64, checkpoints = [64], options = { %s } }
[[behaviour]]
policy = "%s"
checkpoint = 64
"""


@pytest.fixture
def pictures(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("tests/Pictures-v0", Pictures)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)


@pytest.mark.parametrize("normalize", ["false", "true"])
def test_policies_of_images_see_what_they_were_trained_on(recipe_of, pictures, normalize):
    recipe = recipe_of(PICTURES % ("PPO", normalize, "n_steps = 32, batch_size = 32", "checkpoint") + "episodes = 1")
    model = untrained(recipe, recipe.algorithm)
    model.learn(64)
    policy, random = policy_of(model, recipe), np.random.default_rng(0)
    for _ in range(10):
        image = random.integers(0, 256, Pictures.picture.shape, dtype=np.uint8)
        normaliser = model.get_vec_normalize_env()
        shown = normaliser.normalize_obs(image) if normaliser else image.transpose(2, 0, 1)
        distribution = model.policy.get_distribution(model.policy.obs_to_tensor(shown)[0]).distribution
        expected = distribution.logits[0].detach().numpy()
        logits = policy.outputs(image)[0]
        np.testing.assert_allclose(logits - logits.max(), expected - expected.max(), atol=1e-5)


def test_replayed_images_have_their_channels_where_the_environment_has_them(recipe_of, pictures):
    recipe, found = recipe_of(PICTURES % ("DQN", "false", "buffer_size = 100", "replay")), {}
    train(recipe, recipe.algorithm, False, lambda *_: None, found.__setitem__)
    env = gymnasium.make("tests/Pictures-v0", disable_env_checker=True)
    for episode in found[64]:
        images = [env.reset(seed=episode.seed)[0], *(env.step(action)[0] for action in episode.actions)]
        np.testing.assert_array_equal(episode.observations, [image["picture"] for image in images])
    assert len(found[64]) == 64 // 5


def test_a_dataset_of_one_part_of_the_observations_can_be_played_again(recipe_of, monkeypatch):
    pytest.importorskip("minigrid")
    monkeypatch.setattr("dtrl.collect.environments.check_space", lambda *_: None)
    text = edit(RANDOM, "CartPole-v1", "MiniGrid-DoorKey-5x5-v0").replace("12", "2")
    make_dataset(recipe_of("observation_key = 'image'\n" + text))
    dataset = minari.load_dataset("tests/cartpole-v0")
    assert dataset.observation_space.shape == (7, 7, 3)
    env = dataset.recover_environment()
    for episode, metadata in zip(dataset, dataset.storage.get_episode_metadata(range(2)), strict=True):
        seen = [env.reset(seed=int(metadata["seed"]))[0], *(env.step(action)[0] for action in episode.actions)]
        np.testing.assert_array_equal([each["image"] for each in seen], episode.observations)


def test_an_observation_key_that_is_not_there_is_refused(recipe_of, pictures):
    text = PICTURES % ("DQN", "false", "", "replay")
    with pytest.raises(InputError, match=r"observation_key 'pictur' is no part of Dict.*did you mean 'picture'"):
        make_dataset(recipe_of(text.replace('"picture"', '"pictur"')))
    with pytest.raises(InputError, match=r"observation_key 'picture' is no part of Box"):
        make_dataset(recipe_of(text.replace("tests/Pictures-v0", "CartPole-v1")))


# Bad input


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edit(RANDOM, "CartPole-v1", "CartPol-v1"),
            r"recipe.toml: environment 'CartPol-v1' is not registered .*did you mean 'CartPole-v1'",
        ),
        (edit(RANDOM, "CartPole-v1", "nowhere:Env-v0"), r"environment 'nowhere:Env-v0' is not registered"),
        (edit(RANDOM, '"random"', '"demonstrator"'), r"behaviour 1: CartPole-v1 has no demonstrate\(\)"),
        (
            edit(PENDULUM, "noise = 3", "path = 'x.npz'"),
            r"path means nothing to policy checkpoint; leave it out, or use file",
        ),
        (edit(PENDULUM, "[10] }", "[10], options = { action_noise = 0.1 } }"), r"A2C has no option 'action_noise'"),
        (edit(PENDULUM, "A2C", "NONE"), r"algorithm.name 'NONE' is unknown"),
        ("env_options = { colour = 3 }\n" + RANDOM, r"cannot be made with env_options .*'colour'"),
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
