"""Rollouts in vector environments are, bit for bit, the episodes that one environment alone would have played.

Actions are discrete, so that the rounding of batched products can't show; rewards are multiples of 1/4, whose sums are exact."""

import itertools
import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import dtrl
from dtrl.acting import Episode, rollout
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories

EPISODES = [Episode(target_return=float(i % 4) * 5, seed=100 + i) for i in range(11)]
NAMES = ("observations", "actions", "rewards", "terminations", "truncations")


def play_alone(policy, env, seed, target, earlier_resets=0):
    """One episode of one environment, by the simplest loop: the one that begins `earlier_resets` resets after the seeded one."""
    observation, _ = env.reset(seed=seed)
    for _ in range(earlier_resets):
        observation, _ = env.reset()
    policy.reset(target)
    record, reward, ended = {name: [] for name in NAMES}, 0.0, False
    while not ended:
        action = policy.act(observation, reward)
        record["observations"].append(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        for name, value in zip(NAMES[1:], (action, reward, terminated, truncated), strict=True):
            record[name].append(value)
    record["observations"].append(observation)
    return record


def assert_same_episode(played, alone):
    for name in NAMES:
        np.testing.assert_array_equal(played[name], alone[name])


QUICK = [("window", 1), ("window", 8), ("banded", 3), ("full", None)]


@pytest.mark.parametrize(
    ("attention", "num_envs"),
    QUICK
    + [
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(["window", "banded", "full"], [1, 3, 8, None])
        if pair not in QUICK
    ],
)
def test_every_episode_is_as_a_single_environment_plays_it(policy_for, scripted_env, attention, num_envs):
    """And they come back in the order in which they were given."""
    policy, diary = policy_for(attention=attention), []
    played = rollout(policy, lambda: scripted_env(diary), EPISODES, num_envs=num_envs)
    assert played.num_episodes == len(EPISODES)
    for i, episode in enumerate(EPISODES):
        assert_same_episode(played.episode(i), play_alone(policy, scripted_env(), episode.seed, episode.target_return))
        assert (played.observations[played.episode_starts[i]].tobytes(), played.episode_returns[i]) in diary


@pytest.mark.parametrize("num_envs", [1, pytest.param(3, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_autoreset_modes_make_no_difference_to_an_episode(policy_for, scripted_env, mode, num_envs):
    """Only DISABLED lets every episode be seeded. Otherwise a row plays on from the seed of its first episode; its n-th begins n resets later."""
    policy, diary = policy_for(), []
    vector = SyncVectorEnv([lambda: scripted_env(diary)] * num_envs, autoreset_mode=mode)
    played = rollout(policy, vector, EPISODES)
    reset = {}
    for row in range(num_envs):
        env = scripted_env()
        for n in range(len(EPISODES)):
            observation, _ = env.reset(seed=EPISODES[row].seed if n == 0 else None)
            reset[observation.tobytes()] = (EPISODES[row].seed, n)
    reset |= {
        scripted_env().reset(seed=e.seed)[0].tobytes(): (e.seed, 0) for e in EPISODES if mode == AutoresetMode.DISABLED
    }
    begun = [reset[played.observations[start].tobytes()] for start in played.episode_starts]
    assert begun[:num_envs] == [(episode.seed, 0) for episode in EPISODES[:num_envs]]
    assert len(set(begun)) == len(EPISODES)
    assert all((seed, n - 1) in begun for seed, n in begun if n > 0), "an episode was left out"
    for i, (seed, n) in enumerate(begun):
        assert_same_episode(played.episode(i), play_alone(policy, scripted_env(), seed, EPISODES[i].target_return, n))
    assert {
        (played.observations[s].tobytes(), r)
        for s, r in zip(played.episode_starts, played.episode_returns, strict=True)
    } <= set(diary)


@pytest.mark.slow
@pytest.mark.parametrize("mode", AutoresetMode)
def test_environments_in_other_processes_play_the_same(policy_for, scripted_env, mode):
    policy = policy_for()
    seeds = [episode.seed for episode in EPISODES[:3]]
    vectors = (
        SyncVectorEnv([scripted_env] * 3, autoreset_mode=mode),
        AsyncVectorEnv([scripted_env] * 3, autoreset_mode=mode, context="forkserver"),
    )
    one, other = (rollout(policy, vector, [Episode(8.0, seed) for seed in seeds * 2]) for vector in vectors)
    vectors[1].close()
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])


class Spelling(gymnasium.Env):
    """Shows one more letter at every step."""

    observation_space, action_space = spaces.Text(4, charset="ab"), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.text = "b"
        return self.text, {}

    def step(self, action):
        self.text += "ab"[action]
        return self.text, 1.0, len(self.text) == 4, False, {}


def test_texts_come_whole_from_any_vector_environment_or_it_is_refused(untrained_policy):
    data = Trajectories.from_episodes(
        [
            {
                "observations": ["b", "ba", "bab"],
                "actions": [0, 1],
                "rewards": [1.0, 1.0],
                "terminations": [False, True],
                "truncations": [False, False],
            }
        ],
        Spelling.observation_space,
        Spelling.action_space,
    )
    policy, one = untrained_policy(data), [Episode(3.0, 0)]
    shared = AsyncVectorEnv([Spelling], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(InputError, match="make it with shared_memory=False"):
        rollout(policy, shared, one)
    apart = AsyncVectorEnv([Spelling], autoreset_mode=AutoresetMode.DISABLED, shared_memory=False)
    played = rollout(policy, apart, one)
    shared.close()
    apart.close()
    assert played.observations[0].tolist() == [2, 0, 0, 0]
    np.testing.assert_array_equal(played.observations, rollout(policy, Spelling, one).observations)


@pytest.mark.parametrize("deterministic", [True, False], ids=["greedy", "sampled"])
def test_the_number_of_environments_and_the_other_episodes_change_nothing(policy_for, scripted_env, deterministic):
    policy = policy_for(acting={"decoding": DecodingConfig(strategy="sample")})
    whole = rollout(policy, scripted_env, EPISODES, num_envs=8, deterministic=deterministic)
    for num_envs in (1, 3):
        again = rollout(policy, scripted_env, EPISODES, num_envs=num_envs, deterministic=deterministic)
        assert all(np.array_equal(whole.columns[name], again.columns[name]) for name in whole.columns)
    part = rollout(policy, scripted_env, EPISODES[5:7][::-1], deterministic=deterministic)
    for i in range(2):
        assert_same_episode(part.episode(i), whole.episode(6 - i))


def test_samples_differ_from_seed_to_seed(policy_for, scripted_env):
    """The same start with other random numbers: 11 episodes of at least 2 steps would all agree with probability below 1e-6 if no action had
    more than half of the probability; the seeds are fixed."""
    policy = policy_for(acting={"decoding": DecodingConfig(strategy="sample", temperature=5.0)})
    unseeded = type("Unseeded", (scripted_env,), {"reset": lambda self, **_: scripted_env.reset(self, seed=1)})
    played = rollout(policy, unseeded, EPISODES, deterministic=False)
    assert len({played.episode(i)["actions"].tobytes() for i in range(len(EPISODES))}) > 1


def test_the_model_is_shown_the_return_that_is_left(policy_for, scripted_env, monkeypatch):
    """In every autoreset mode, for every episode: target − rewards so far."""
    policy, shown = policy_for(), []
    tokenizer = policy.model.tokenizers["return"]
    encode = type(tokenizer).encode
    monkeypatch.setattr(tokenizer, "encode", lambda x: (shown.append(float(x)), encode(tokenizer, x))[1])
    for mode in AutoresetMode:
        shown.clear()
        played = rollout(policy, SyncVectorEnv([scripted_env], autoreset_mode=mode), EPISODES)
        expected = []
        for i, episode in enumerate(EPISODES):
            rewards = played.episode(i)["rewards"]
            expected += [episode.target_return - sum(rewards[:t]) for t in range(len(rewards))]
            if mode == AutoresetMode.NEXT_STEP and i < len(EPISODES) - 1:
                expected.append(episode.target_return)  # the step that only resets; its action is thrown away
        assert shown == expected


def test_every_episode_is_announced_once(policy_for, scripted_env):
    announced = []
    rollout(policy_for(), scripted_env, EPISODES, num_envs=3, on_episode=announced.append)
    assert sorted(announced) == list(range(len(EPISODES)))


def test_own_environments_are_closed_and_given_ones_are_not(policy_for, scripted_env):
    closed = []
    env = type("Closing", (scripted_env,), {"close": lambda self: closed.append(self)})
    rollout(policy_for(), env, EPISODES, num_envs=3)
    assert len(closed) == 3
    vector = SyncVectorEnv([env] * 2, autoreset_mode=AutoresetMode.DISABLED)
    rollout(policy_for(), vector, EPISODES)
    assert len(closed) == 3


class Broken(gymnasium.Wrapper):
    """Returns NaN at the third step of an episode that lasts so long: as the reward, or in the observation."""

    where = "reward"

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if len(self.unwrapped.rewards) == 3:
            observation, reward = (observation, np.nan) if self.where == "reward" else (observation * np.nan, reward)
        return observation, reward, terminated, truncated, info


def seed_of_length(scripted_env, wanted):
    """A seed for which an episode has at least 3 steps, or only 2."""
    env = scripted_env()
    return next(seed for seed in range(100) if env.reset(seed=seed) and (env.length >= 3) == wanted)


def test_a_reward_that_is_nan_names_environment_step_and_seed(policy_for, scripted_env):
    seed = seed_of_length(scripted_env, True)
    episodes = [Episode(1.0, seed_of_length(scripted_env, False)), Episode(1.0, seed)]
    with pytest.raises(
        InputError, match=rf"^environment 1, at step 2 \(seed {seed}\), returned the reward nan[^\n]+\.$"
    ):
        rollout(policy_for(), lambda: Broken(scripted_env()), episodes)


@pytest.mark.parametrize("length", [3, 9])
def test_an_observation_that_is_nan_is_refused(policy_for, scripted_env, monkeypatch, length):
    """Also where it is the last of its episode, which the policy never sees."""
    monkeypatch.setattr(Broken, "where", "observation")
    env = scripted_env()
    seed = next(seed for seed in range(1000) if env.reset(seed=seed) and env.length == length)
    with pytest.raises(
        InputError, match=rf"^environment 0, at step 2 \(seed {seed}\), showed NaN or infinity[^\n]+\.$"
    ):
        rollout(policy_for(), lambda: Broken(scripted_env()), [Episode(1.0, seed)])


@pytest.mark.parametrize("on_env_error", ["raise", "skip"])
def test_an_action_outside_the_space_is_the_policy_s_fault(policy_for, scripted_env, monkeypatch, on_env_error):
    """It ends the rollout whatever is to be done about environments: without the episodes in which a policy fails, the others' mean would be no mean."""
    policy, steps = policy_for(), []

    def choose(state, observations, first, allowed, config):
        steps.append(0)
        return {"": np.array([0, 1, 3 if len(steps) == 3 else 2])}

    monkeypatch.setattr(policy, "choose_actions", choose)
    with pytest.raises(
        InputError,
        match=r"^environment 2, at step 2 \(seed 102\), was given the action 3, which is not in Discrete\(3\)[^\n]+\.$",
    ):
        rollout(policy, scripted_env, EPISODES, num_envs=3, on_env_error=on_env_error)


def test_an_action_that_is_no_number_reaches_no_environment(random_trajectories, untrained_policy):
    data = random_trajectories([5, 6])
    policy, acted = untrained_policy(data), []

    class Still(gymnasium.Env):
        observation_space, action_space = data.observation_space, data.action_space

        def reset(self, *, seed=None, options=None):
            return np.zeros(3), {}

        def step(self, action):
            acted.append(action)
            return np.zeros(3), 0.0, True, False, {}

    policy.model.backbone.requires_grad_(False)
    for parameter in policy.model.backbone.parameters():
        parameter.fill_(np.nan)
    with pytest.raises(
        InputError,
        match=r"^environment 0, at step 0 \(seed 4\), was given the action \[nan, nan\], which is not in Box",
    ):
        rollout(policy, Still, [Episode(1.0, 4)])
    assert not acted


@pytest.mark.parametrize("role", ["observation", "action"])
def test_other_spaces_than_the_policy_s_are_refused(policy_for, scripted_env, role):
    other = {"observation": gymnasium.spaces.Box(-1, 1, (3,)), "action": gymnasium.spaces.Discrete(4)}[role]
    env = type("Other", (scripted_env,), {f"{role}_space": other})
    with pytest.raises(InputError, match=rf"the {role} space of the environment is {type(other).__name__}[^\n]+\.$"):
        rollout(policy_for(), env, EPISODES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"env": None}, "name no environment"),
        ({"env": "NoSuchEnv-v0"}, "'NoSuchEnv-v0' is not registered"),
        ({"episodes": []}, "no episode"),
        ({"num_envs": 0}, "num_envs 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(policy_for, scripted_env, arguments, says):
    with pytest.raises(InputError, match=says + r"[^\n]+\.$"):
        rollout(policy_for(), **{"env": scripted_env, "episodes": EPISODES, **arguments})


def test_an_environment_in_the_place_of_its_maker_is_refused(policy_for, scripted_env):
    with pytest.raises(InputError, match="a function that makes one"):
        rollout(policy_for(), scripted_env(), EPISODES)


def test_the_environment_of_the_data_is_the_default(random_trajectories, untrained_policy):
    from dtrl.trajectories.columns import Origin

    env = gymnasium.make("CartPole-v1")
    spec = json.dumps({"id": "CartPole-v1", "entry_point": env.spec.entry_point, "max_episode_steps": 7})
    data = random_trajectories(
        [5, 6], env.observation_space, env.action_space, origin=Origin("cartpole/some-v0", env_spec=spec)
    )
    played = rollout(untrained_policy(data), None, [Episode(7.0, seed) for seed in range(3)])
    assert played.episode_lengths.max() <= 7
    assert played.origin.env_spec == spec


def test_what_was_played_can_be_trained_on(policy_for, scripted_env):
    """The loop closes: rollouts are the type that datasets load."""
    played = rollout(policy_for(), scripted_env, EPISODES)
    policy = dtrl.train(played, updates=2, batch_size=4, context_length=4, width=16, layers=1)
    again = rollout(policy, scripted_env, EPISODES)
    assert again.num_episodes == len(EPISODES)
    np.testing.assert_array_equal(played.observations[played.episode_starts], again.observations[again.episode_starts])
