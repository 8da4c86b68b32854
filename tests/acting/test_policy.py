"""`predict`, `act` and the return-to-go: what the model sees at each step, in Stable-Baselines3's loops and in the simplest one."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from dtrl.config import DecodingConfig
from dtrl.errors import InputError

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
LOPSIDED = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
DIGITS = spaces.Discrete(5)
CHOICES = spaces.Discrete(3, start=2)
SAMPLE = DecodingConfig(strategy="sample")
LENGTHS = (7, 3, 9)
TARGET = 8.0
ONE_SENTENCE = r"[^\n]+\.$"


@pytest.fixture
def policy_for(random_trajectories, untrained_policy):
    """Makes a policy for two spaces, with `trajectory` the changes to its trajectories."""

    def make(observation_space=VECTOR, action_space=LOPSIDED, trajectory=None, **options):
        data = random_trajectories(LENGTHS, observation_space, action_space)
        return untrained_policy(dataclasses.replace(data, **(trajectory or {})), **options)

    return make


@pytest.fixture
def seen_returns(monkeypatch):
    """A function that makes a policy keep, from now on, the returns-to-go (B,) that its model is shown, in a list a call."""

    def watch(policy):
        tokenizer, seen = policy.model.tokenizers["return"], []
        encode = type(tokenizer).encode
        monkeypatch.setattr(tokenizer, "encode", lambda x: (seen.append(x.flatten().tolist()), encode(tokenizer, x))[1])
        return seen

    return watch


def observations_of(space, rows, seed=0):
    random = np.random.default_rng(seed)
    return (
        random.integers(space.n, size=rows)
        if isinstance(space, spaces.Discrete)
        else random.normal(size=(rows, *space.shape))
    )


@pytest.mark.parametrize("observation_space", [VECTOR, DIGITS], ids=["vector", "discrete"])
@pytest.mark.parametrize("action_space", [LOPSIDED, CHOICES], ids=["vector", "discrete"])
def test_one_observation_gives_the_action_of_a_batch_of_one(policy_for, observation_space, action_space):
    policy = policy_for(observation_space, action_space)
    observations = observations_of(observation_space, 1)
    one, _ = policy.predict(observations[0])
    batch, _ = policy.predict(observations)
    assert batch.shape == (1, *action_space.shape)
    assert one.shape == action_space.shape
    assert one.dtype == action_space.dtype
    assert action_space.contains(one)
    np.testing.assert_array_equal(one, batch[0])


@pytest.mark.parametrize("head", ["deterministic", "gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous_actions_have_the_dtype_of_their_space_and_keep_its_bounds(policy_for, head, dtype):
    space = spaces.Box(np.array([-1, 0.1], dtype), np.array([3, 0.3], dtype), dtype=dtype)
    policy = policy_for(
        action_space=space, head=head, acting={"decoding": DecodingConfig(strategy="sample", temperature=20.0)}
    )
    observations = 100 * observations_of(VECTOR, 200)
    for deterministic in (True, False):
        actions, _ = policy.predict(observations, deterministic=deterministic)
        assert actions.dtype == dtype
        assert all(space.contains(action) for action in actions)
    assert (actions.max(axis=0) - actions.min(axis=0) > [2, 0.1]).all() or head == "deterministic"


def test_discrete_actions_count_from_the_start_of_their_space(policy_for):
    actions, _ = policy_for(action_space=CHOICES).predict(3 * observations_of(VECTOR, 200))
    assert actions.dtype == np.int64
    assert set(actions) == {2, 3, 4}


def test_the_state_is_updated_in_place(policy_for):
    policy = policy_for()
    given = policy.initial_state(2)
    actions, returned = policy.predict(observations_of(VECTOR, 2), given)
    assert returned is given
    np.testing.assert_array_equal(given.actions[""], actions)
    np.testing.assert_array_equal(given.timesteps, [0, 0])
    policy.predict(observations_of(VECTOR, 2), given)
    np.testing.assert_array_equal(given.timesteps, [1, 1])


def test_actions_of_earlier_calls_are_not_overwritten(policy_for):
    policy = policy_for()
    actions, state = policy.predict(observations_of(VECTOR, 2))
    before = actions.copy()
    policy.predict(observations_of(VECTOR, 2, seed=1), state)
    np.testing.assert_array_equal(actions, before)


def test_episode_start_begins_a_row_anew_and_leaves_the_others(policy_for):
    policy = policy_for()
    observations = [observations_of(VECTOR, 2, seed) for seed in range(4)]
    state, unbroken = None, None
    for seen in observations[:3]:
        _, state = policy.predict(seen, state, episode_start=np.zeros(2, dtype=bool))
        _, unbroken = policy.predict(seen, unbroken)
    actions, state = policy.predict(observations[3], state, episode_start=np.array([True, False]))
    np.testing.assert_allclose(actions[0], policy.predict(observations[3][0])[0], atol=1e-5)
    np.testing.assert_allclose(actions[1], policy.predict(observations[3], unbroken)[0][1], atol=1e-5)
    np.testing.assert_array_equal(state.timesteps, [0, 3])


def test_the_past_matters(policy_for):
    """Without this, a policy that forgot everything would pass the tests around it."""
    policy = policy_for()
    first, last = observations_of(VECTOR, 1), observations_of(VECTOR, 1, seed=1)
    _, state = policy.predict(first)
    assert np.abs(policy.predict(last, state)[0] - policy.predict(last)[0]).max() > 1e-3


def test_predict_lowers_the_return_to_go_by_the_rewards_it_is_told(policy_for, seen_returns):
    policy = policy_for(acting={"target_return": TARGET})
    seen, state = seen_returns(policy), None
    for rewards in ([1, 2], [0.5, 0], [0, -3], [100, 100]):
        _, state = policy.predict(observations_of(VECTOR, 2), state)
        state.reward += rewards
    _, state = policy.predict(observations_of(VECTOR, 2), state, episode_start=np.array([False, True]))
    assert seen == [[8, 8], [7, 6], [6.5, 6], [6.5, 9], [-93.5, 8]]


def test_a_reward_is_counted_once(policy_for, seen_returns):
    policy = policy_for(acting={"target_return": TARGET})
    seen, state = seen_returns(policy), None
    for reward in (1, 0, 0):
        _, state = policy.predict(observations_of(VECTOR, 1), state)
        state.reward += reward
    policy.predict(observations_of(VECTOR, 1), state)
    assert seen == [[8], [7], [7], [7]]


def test_a_discounted_return_to_go_grows_back(policy_for, seen_returns):
    """R ← (R − r) / γ: what is left of the return, in units of the step it is asked at."""
    policy = policy_for(trajectory={"discount": 0.5}, acting={"target_return": TARGET})
    seen = seen_returns(policy)
    for reward in (0.0, 1.0, 2.0):
        policy.act(observations_of(VECTOR, 1)[0], reward)
    assert seen == [[8], [14], [24]]


def test_a_delayed_return_is_asked_for_until_the_end(policy_for, seen_returns):
    policy = policy_for(trajectory={"delayed": True}, acting={"target_return": TARGET})
    seen = seen_returns(policy)
    for reward in (0.0, 1.0, 2.0):
        policy.act(observations_of(VECTOR, 1)[0], reward)
    assert seen == [[8]] * 3


def test_act_is_predict_with_a_state_of_its_own(policy_for, seen_returns):
    policy = policy_for(acting={"target_return": TARGET})
    state = policy.initial_state(1, 5.0)
    policy.reset(target_return=5.0)
    for step in range(6):
        observation = observations_of(VECTOR, 1, seed=step)[0]
        action, state = policy.predict(observation, state)
        np.testing.assert_array_equal(policy.act(observation, reward=float(step)), action)
        state.reward += step + 1
    policy.reset()
    seen = seen_returns(policy)
    policy.act(observation, reward=3.0)
    assert seen == [[TARGET]], "a new episode asks for the policy's own target, and no reward has come in yet"


def test_act_takes_a_batch(policy_for, seen_returns):
    policy = policy_for()
    policy.reset(TARGET, num_envs=2)
    seen = seen_returns(policy)
    for step in range(3):
        actions = policy.act(observations_of(VECTOR, 2), reward=np.array([1.0, 2.0]) * step)
    assert actions.shape == (2, 2)
    assert seen == [[8, 8], [7, 6], [5, 2]]


def three_envs(scripted_env):
    envs = [scripted_env() for _ in range(3)]
    return envs, DummyVecEnv([lambda env=env: env for env in envs])


@pytest.mark.parametrize("told", [True, False], ids=["with the callback", "without it"])
def test_stable_baselines3_evaluates_the_policy(policy_for, scripted_env, monkeypatch, told):
    """With the callback the model is shown target − rewards so far, in every row at every step; without it, the target."""
    policy = policy_for(action_space=scripted_env.action_space, acting={"target_return": TARGET})
    envs, vector = three_envs(scripted_env)
    vector.seed(0)
    quotas, compared = (2, 3, 3), 0
    tokenizer = policy.model.tokenizers["return"]
    encode = type(tokenizer).encode

    def check(x):
        nonlocal compared
        for env, quota, shown in zip(envs, quotas, x.flatten().tolist(), strict=True):
            if len(env.diary) < quota:  # a row that has played its share goes on unheard
                assert shown == TARGET - sum(env.rewards) * told
                compared += 1
        return encode(tokenizer, x)

    monkeypatch.setattr(tokenizer, "encode", check)
    callback = policy.reward_callback if told else None
    returns, lengths = evaluate_policy(
        policy, vector, n_eval_episodes=8, callback=callback, return_episode_rewards=True, warn=False
    )
    assert sorted(returns) == sorted(r for env, quota in zip(envs, quotas, strict=True) for _, r in env.diary[:quota])
    assert compared == sum(lengths) > 20


def test_stable_baselines3_loop_over_a_vec_env(policy_for, scripted_env, seen_returns):
    policy = policy_for(action_space=scripted_env.action_space, acting={"target_return": TARGET})
    envs, vector = three_envs(scripted_env)
    vector.seed(1)
    seen, state, starts, observations = seen_returns(policy), None, np.ones(3, dtype=bool), vector.reset()
    for _ in range(30):
        expected = [TARGET - sum(env.rewards) for env in envs]
        actions, state = policy.predict(observations, state, episode_start=starts)
        assert seen[-1] == expected
        observations, rewards, starts, _ = vector.step(actions)
        state.reward += rewards
    assert sum(len(env.diary) for env in envs) > 3


@pytest.mark.parametrize(
    ("space", "observation", "says"),
    [
        (VECTOR, (np.zeros(3), {}), "observation is a tuple"),
        (VECTOR, {"image": np.zeros(3)}, "observation is a dict"),
        (VECTOR, np.zeros(4), r"shape \(4,\)"),
        (VECTOR, np.zeros((2, 4)), r"shape \(2, 4\)"),
        (VECTOR, np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        (VECTOR, 3.0, r"shape \(\)"),
        (VECTOR, "up", "'up'"),
        (VECTOR, None, "None"),
        (VECTOR, [[1.0, 2.0], [3.0]], "inhomogeneous"),
        (VECTOR, [[0, 0, 0], [0, np.nan, 0]], "environment 1 holds NaN or infinity"),
        (VECTOR, [0, 0, np.inf], "environment 0 holds NaN or infinity"),
        (DIGITS, 5, r"\[5\] are not all in Discrete\(5\)"),
        (DIGITS, np.array([0, -1]), r"\[0, -1\] are not all in"),
        (DIGITS, 1.7, "float64"),
        (DIGITS, np.zeros((2, 1), dtype=int), r"shape \(2, 1\)"),
    ],
)
def test_a_wrong_observation_is_refused_in_one_sentence(policy_for, space, observation, says):
    with pytest.raises(InputError, match=says) as caught:
        policy_for(space).predict(observation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"state": "state"}, "state is a str"),
        ({"state": 3}, "2 observations came with a state of 3 environments"),
        ({"episode_start": np.ones(3, dtype=bool)}, r"episode_start has shape \(3,\).* 2 observations"),
        ({"episode_start": np.ones((2, 1), dtype=bool)}, r"episode_start has shape \(2, 1\)"),
    ],
)
def test_other_wrong_arguments_are_refused_in_one_sentence(policy_for, arguments, says):
    policy = policy_for()
    if arguments.get("state") == 3:
        arguments = {"state": policy.initial_state(3)}
    with pytest.raises(InputError, match=says + ONE_SENTENCE):
        policy.predict(np.zeros((2, 3)), **arguments)


@pytest.mark.parametrize("target", [np.nan, np.inf, -np.inf])
def test_a_target_that_is_not_finite_is_refused(policy_for, target):
    policy = policy_for()
    for ask in (policy.reset, lambda t: policy.variant(target_return=t), lambda t: policy.initial_state(2, [1.0, t])):
        with pytest.raises(InputError, match=f"target return {target} is not finite" + ONE_SENTENCE):
            ask(target)


def test_as_many_targets_as_environments_are_wanted(policy_for):
    with pytest.raises(InputError, match="2 target returns were given for 3 environments" + ONE_SENTENCE):
        policy_for().initial_state(3, [1.0, 2.0])


def test_the_default_target_is_the_95_percent_quantile_of_the_data(policy_for, random_trajectories):
    returns = random_trajectories(LENGTHS, VECTOR, LOPSIDED).episode_returns
    assert policy_for().target_return == pytest.approx(np.quantile(returns, 0.95))


def test_samples_come_from_the_model_s_distribution(policy_for):
    """4,000 rows that see the same. A frequency leaves its band of five standard deviations with probability below 6e-7; the seeds are fixed."""
    policy, rows = policy_for(action_space=CHOICES, acting={"decoding": SAMPLE}), 4_000
    actions, _ = policy.predict(np.zeros((rows, 3)), deterministic=False)
    state, first = policy.initial_state(1), np.ones(1, dtype=bool)
    policy.advance(state, first)
    with torch.inference_mode():
        distribution = policy.distributions(state, {"": np.zeros((1, 3), np.float32)}, first)["action"]
    wanted = distribution.probs.flatten().numpy()
    assert wanted.max() < 0.95
    frequencies = np.bincount(actions - CHOICES.start, minlength=3) / rows
    assert (np.abs(frequencies - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / rows)).all()


@pytest.mark.parametrize("action_space", [CHOICES, LOPSIDED], ids=["categorical", "gaussian"])
def test_a_row_s_sample_depends_on_its_generator_alone(policy_for, action_space):
    head = "auto" if action_space is CHOICES else "gaussian"
    policy, observations = (
        policy_for(action_space=action_space, head=head, seed=2, acting={"decoding": SAMPLE}),
        observations_of(VECTOR, 40),
    )

    def sample(rows, seed):
        generators = [np.random.default_rng([seed, row]) for row in rows]
        return policy.predict(
            observations[rows], policy.initial_state(len(rows), generators=generators), deterministic=False
        )[0]

    together = sample(range(40), seed=0)
    np.testing.assert_allclose(sample(range(40), seed=0), together)
    np.testing.assert_allclose(sample([7], seed=0), together[7:8], atol=1e-6)
    assert not np.allclose(
        sample(range(40), seed=1), together
    )  # 40 rows of a discrete choice: equal by chance below 1e-6


def test_deterministic_ignores_the_generators(policy_for):
    policy, observations = policy_for(action_space=CHOICES, acting={"decoding": SAMPLE}), observations_of(VECTOR, 40)
    ways = [
        policy.predict(
            observations, policy.initial_state(40, generators=[np.random.default_rng([s, i]) for i in range(40)])
        )[0]
        for s in range(2)
    ]
    np.testing.assert_array_equal(*ways)
