"""Every meter beside a sound model and a bad one that was planted: the first passes, the second trips it."""

import dataclasses
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.acting import Episode, rollout
from dtrl.errors import InputError
from dtrl.evaluation.meters import (
    ActionScale,
    exposure_bias,
    history_swap,
    memorization,
    out_of_support,
    repeat_lift,
    state_drift,
    target_sensitivity,
)
from dtrl.evaluation.meters.exposure import errors_along
from dtrl.evaluation.meters.finding import quotient_ci95
from dtrl.evaluation.meters.memorization import lowest_at, smaller
from dtrl.evaluation.meters.support import asked_along, range_by_step
from dtrl.evaluation.meters.swaps import Probes
from dtrl.heads import PointMass
from dtrl.presets import PRESETS
from dtrl.trajectories.columns import Origin

LENGTHS = (20,) * 12


def with_actions(data, actions):
    return dataclasses.replace(data, columns={**data.columns, "actions": np.asarray(actions, np.float32)})


@pytest.fixture
def reflex(random_trajectories):
    """Data in which the action is the first two numbers of the observation."""
    data = random_trajectories(LENGTHS)
    return with_actions(data, data.observations[:, :2])


@pytest.fixture
def walk(random_trajectories):
    """Data in which the action is a slow random walk that the observation says nothing of."""
    data, random = random_trajectories(LENGTHS), np.random.default_rng(3)
    return with_actions(data, 0.1 * random.normal(size=(12, 20, 2)).cumsum(axis=1).reshape(-1, 2))


def plant(policy, monkeypatch, action):
    """Let the model's forward give `action(batch)` (B, K, A) of the true columns."""
    monkeypatch.setattr(policy.model, "forward", lambda batch: {"action": PointMass(action(batch).unsqueeze(2))})
    return policy


def follow_observation(batch):
    return batch.values["observation"][..., :2]


def copy_last_action(batch):
    return batch.values["action"].roll(1, dims=1)


def follow_return(batch):
    return batch.values["return"].unsqueeze(-1).expand(-1, -1, 2)


def test_distances_of_actions_are_what_their_definition_says():
    from dtrl.trajectories import Trajectories

    space = spaces.Dict({"turn": spaces.Box(-9, 9, (2,)), "gear": spaces.MultiDiscrete([2, 3])})
    turn = np.array([[0, 0], [2, 0], [4, 0]], np.float32)  # deviation √(8/3) and 0
    gear = np.array([[0, 0], [1, 1], [0, 2]])
    ends = np.array([False, False, True])
    data = Trajectories.from_arrays(
        np.zeros((3, 1)), {"turn": turn, "gear": gear}, np.zeros(3), ends, ~ends & False, spaces.Box(-1, 1, (1,)), space
    )
    scale = ActionScale(data)
    one, other = {"turn": turn[:1], "gear": gear[:1]}, {"turn": turn[2:], "gear": gear[2:]}
    assert scale.distance(one, other) == pytest.approx((4 / np.sqrt(8 / 3) + 0.5) / 2)


def test_an_action_that_follows_the_observation_passes_and_a_copied_one_trips(reflex, untrained_policy, monkeypatch):
    policy = untrained_policy(reflex)
    sound = history_swap(policy, Probes(plant(policy, monkeypatch, follow_observation), reflex))
    copied = history_swap(policy, Probes(plant(policy, monkeypatch, copy_last_action), reflex))
    assert (sound.fine, sound.numbers["history"]) == (True, 0)
    assert (copied.fine, copied.numbers["observation"]) == (False, 0)
    assert "WARNING" in copied.text()
    assert "try: " in copied.text()


def test_the_swaps_exchange_one_thing_each(reflex, untrained_policy):
    """Against a window built by hand, of the other episode's same step."""
    policy = untrained_policy(reflex)
    probes, seen = Probes(policy, reflex, count=8), []
    policy.model.forward = lambda batch: (
        seen.append(batch) or {"action": PointMass(batch.values["action"].unsqueeze(2))}
    )
    probes.swap_history(), probes.swap_observation(), probes.swap_return()
    history, observation, shifted = (batch.values for batch in seen)
    starts = np.repeat(reflex.episode_starts, LENGTHS)
    for i, (row, partner, last) in enumerate(zip(probes.rows, probes.partners, probes.last, strict=True)):
        assert starts[row] != starts[partner]
        assert row - starts[row] == partner - starts[partner] > 0
        own, other = slice(row - last, row), slice(partner - last, partner)
        np.testing.assert_array_equal(history["action"][i, :last], reflex.actions[other])
        np.testing.assert_array_equal(history["action"][i, last], reflex.actions[row])
        np.testing.assert_array_equal(history["observation"][i, :last], reflex.observations[own])
        np.testing.assert_array_equal(observation["observation"][i, last], reflex.observations[partner])
        np.testing.assert_array_equal(observation["observation"][i, :last], reflex.observations[own])
        np.testing.assert_array_equal(observation["action"][i, :last], reflex.actions[own])
        gap = reflex.returns_to_go[partner] - reflex.returns_to_go[row]
        np.testing.assert_allclose(shifted["return"][i, :last], reflex.returns_to_go[own] + gap, atol=1e-5)


def test_an_action_that_follows_the_return_passes_and_a_deaf_one_trips(reflex, untrained_policy, monkeypatch):
    policy = untrained_policy(reflex)
    obeying = target_sensitivity(policy, Probes(plant(policy, monkeypatch, follow_return), reflex))
    deaf = target_sensitivity(policy, Probes(plant(policy, monkeypatch, follow_observation), reflex))
    assert (obeying.fine, deaf.fine) == (True, False)
    assert deaf.numbers["share"] == 0


def test_a_model_whose_return_embedding_was_wiped_out_is_deaf(reflex, untrained_policy):
    policy = untrained_policy(reflex)
    assert target_sensitivity(policy, Probes(policy, reflex)).fine
    torch.nn.init.zeros_(policy.model.embeddings["return"].weight)
    assert target_sensitivity(policy, Probes(policy, reflex)).fine is False


def test_what_a_preset_does_not_see_it_cannot_follow(reflex, untrained_policy):
    policy = untrained_policy(reflex, preset="bc")
    probes = Probes(policy, reflex)
    assert history_swap(policy, probes).fine is True
    assert target_sensitivity(policy, probes).fine is False
    assert probes.swap_observation().mean() > 0


def test_one_episode_has_nothing_to_exchange(random_trajectories, untrained_policy):
    data = random_trajectories([9])
    policy = untrained_policy(data)
    assert history_swap(policy, Probes(policy, data)).fine is None
    assert target_sensitivity(policy, Probes(policy, data)).fine is None


def acts_by(policy, monkeypatch, action):
    """Let the policy act by `action(state, observations)`, a dict by path."""
    monkeypatch.setattr(policy, "choose_actions", lambda state, seen, first, allowed, how: {"": action(state, seen)})
    return policy


def test_an_action_from_the_observation_passes_and_one_from_the_last_trips(reflex, walk, untrained_policy, monkeypatch):
    """The copied action of a slow walk is nearly right while the walk is told, and stays at its first value when it is not."""
    sound = acts_by(untrained_policy(reflex), monkeypatch, lambda state, seen: seen[""][:, :2] + np.float32(0.1))
    copying = acts_by(untrained_policy(walk), monkeypatch, lambda state, seen: state.actions[""].copy())
    fine, tripped = exposure_bias(sound, reflex), exposure_bias(copying, walk)
    assert (fine.fine, fine.numbers["excess"]) == (True, 0)
    assert tripped.fine is False
    assert tripped.numbers["excess_ci95"][0] > 0.5
    curve = list(tripped.numbers["excess_by_length"].values())
    assert curve == sorted(curve), "it accumulates"


def test_the_excess_is_that_of_its_definition(walk, untrained_policy, monkeypatch):
    policy, scale = (
        acts_by(untrained_policy(walk), monkeypatch, lambda state, seen: state.actions[""].copy()),
        ActionScale(walk),
    )
    deviation = walk.actions.std(axis=0)
    forced, free = (errors_along(policy, walk, scale, 20, own) for own in (False, True))
    steps = walk.actions.reshape(12, 20, 2)
    by_hand = np.sqrt(np.square(np.diff(steps, axis=1) / deviation).mean(axis=2)).T
    np.testing.assert_allclose(forced[1:], by_hand, rtol=1e-5)
    np.testing.assert_allclose(free, np.sqrt(np.square(steps / deviation).mean(axis=2)).T, rtol=1e-5)
    found = exposure_bias(policy, walk, episodes=12).numbers
    assert found["excess"] == pytest.approx(free.sum() / forced.sum() - 1, rel=1e-6)


def knows_by_heart(episodes):
    """The recorded action of a recorded observation, and of any other 0."""
    known = {seen.tobytes(): taken for seen, taken in zip(episodes.observations, episodes.actions, strict=True)}
    return lambda state, seen: np.stack([known.get(row.tobytes(), np.zeros(2, np.float32)) for row in seen[""]])


EARLY, TO_THE_END = {10: 1.0, 20: 0.5, 30: 0.9, 40: 1.4}, {10: 1.0, 20: 0.9, 30: 0.8, 40: 0.7}


def test_what_holds_for_all_episodes_passes_and_what_is_known_by_heart_trips(reflex, untrained_policy, monkeypatch):
    held_out, learnt = reflex.split(0.5)
    shown = untrained_policy(reflex)
    general = acts_by(shown, monkeypatch, lambda state, seen: seen[""][:, :2] + np.float32(0.1))
    fine = memorization(general, learnt, held_out, EARLY)
    by_heart = acts_by(shown, monkeypatch, knows_by_heart(learnt))
    tripped = memorization(by_heart, learnt, held_out, EARLY)
    assert (fine.fine, tripped.fine) == (True, False)
    assert abs(fine.numbers["share"]) < 1e-5
    assert (tripped.numbers["learnt"], tripped.numbers["share"]) == (0, 1)
    assert "lowest after 20 of 40 updates" in tripped.says
    assert memorization(by_heart, learnt, held_out, {}).fine is False, "the log is gone"
    assert memorization(by_heart, learnt, held_out, TO_THE_END).fine is True, "it still learns what is general"


def test_one_held_out_episode_says_nothing(reflex, untrained_policy):
    held_out, learnt = reflex.split(0.01)
    assert held_out.num_episodes == 1
    assert memorization(untrained_policy(reflex), learnt, held_out, EARLY).fine is None


def test_the_share_is_of_means_over_steps_and_its_interval_of_both_kinds():
    own, other = (np.array([1.0, 3.0]), np.array([10.0, 10.0])), (np.array([4.0, 6.0]), np.array([10.0, 15.0]))
    value, (low, high) = smaller(own, other)
    assert value == pytest.approx(1 - (4 / 20) / (10 / 25))
    # of two episodes either may be drawn twice: the means are 0.1 to 0.3 of the one kind, and 0.4 of the other whatever is drawn
    assert (low, high) == (pytest.approx(1 - 0.3 / 0.4), pytest.approx(1 - 0.1 / 0.4))
    assert smaller(own, (np.zeros(2), np.ones(2))) == (0, (0, 0))


def test_the_lowest_loss_is_that_of_a_twentieth_of_the_log():
    """One entry of a hundred that is far below all others is chance."""
    assert lowest_at({50 * i: abs(i - 30) - 50 * (i == 80) for i in range(1, 101)}) == 30 * 50
    assert lowest_at({50: 1.0}) == 50
    assert lowest_at(EARLY) == 20


def test_on_recorded_pasts_the_policy_acts_as_it_was_taught(reflex, untrained_policy):
    """Teacher forcing here is that of `replay`: the same actions from the training forward."""
    policy, scale = untrained_policy(reflex), ActionScale(reflex)
    errors = errors_along(policy, reflex, scale, 20, own=False)
    from dtrl.acting.replay import teacher_forced

    with torch.inference_mode():
        taught = teacher_forced(policy, reflex).numpy()
    np.testing.assert_allclose(
        errors.T.reshape(-1), scale.distance({"": taught}, {"": reflex.actions}), rtol=1e-4, atol=1e-5
    )


def test_the_interval_of_a_quotient_holds_the_true_one_most_of_the_time():
    """300 samples of 30 episodes, true quotient 2. At a rate of 95 %, fewer than 270 hits have probability 10⁻⁴; a percentile interval is a little narrow, so
    the claim is 85 % (255 hits)."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        bottom = random.uniform(1, 3, size=30)
        _, (low, high) = quotient_ci95(bottom * random.uniform(1, 3, size=30), bottom)
        hits += low <= 2 <= high
    assert 255 <= hits < 300


def test_repeated_actions_trip_and_the_data_s_own_do_not(random_trajectories):
    data = random_trajectories(LENGTHS)
    stuck = with_actions(data, np.repeat(data.actions[data.episode_starts], LENGTHS, axis=0))
    assert repeat_lift(data.select(range(6)), data).fine is True
    found = repeat_lift(stuck, data)
    assert (found.fine, found.numbers["policy"], found.numbers["data"]) == (False, 1, 0)


def test_the_lift_counts_repeats_within_an_episode(random_trajectories):
    data = random_trajectories([4, 4], action_space=spaces.Discrete(2))
    columns = {**data.columns, "rewards": np.array([1] * 4 + [0] * 4, np.float32)}  # the first is the best quarter
    data = dataclasses.replace(data, columns={**columns, "actions": np.array([0, 0, 1, 0, 0, 0, 0, 1])})
    assert repeat_lift(data, data).numbers["data"] == pytest.approx(1 / 3)
    assert repeat_lift(data, data).numbers["policy"] == pytest.approx(3 / 6)
    assert repeat_lift(data, data).numbers["lift"] == pytest.approx(1.5)


def test_the_returns_asked_along_are_those_the_policy_was_told(policy_for_scripted, scripted_env, monkeypatch):
    policy, told = policy_for_scripted, []
    choose = policy.choose_actions
    monkeypatch.setattr(
        policy, "choose_actions", lambda state, *rest: told.append(state.returns_to_go.copy()) or choose(state, *rest)
    )
    played = rollout(policy, scripted_env, [Episode(3.0, 1), Episode(8.0, 2)], num_envs=1)
    steps = np.concatenate(told)[: played.num_steps + 1]  # a reset of the row may follow
    np.testing.assert_allclose(asked_along(played, np.array([3.0, 8.0]), policy.data), steps[: played.num_steps])


ACTIONS = {
    "box": spaces.Box(-1, 1, (2,)),
    "choices": spaces.MultiDiscrete([2, 3]),
    "dict": spaces.Dict({"turn": spaces.Box(-1, 1, (1,)), "gear": spaces.Discrete(3)}),
}


@pytest.mark.parametrize(
    ("preset", "action_space"),
    [
        pytest.param(preset, space, id=f"{preset}-{name}", marks=() if i % len(ACTIONS) == j else pytest.mark.slow)
        for (i, preset), (j, (name, space)) in itertools.product(enumerate(sorted(PRESETS)), enumerate(ACTIONS.items()))
    ],
)
def test_every_preset_and_space_can_be_measured(random_trajectories, untrained_policy, preset, action_space):
    from dtrl.spaces import leaves, unflatten
    from dtrl.trajectories import Trajectories

    if isinstance(action_space, spaces.Dict):
        parts = [random_trajectories([9, 6, 7], action_space=leaf.space).actions for leaf in leaves(action_space)]
        actions = unflatten(action_space, dict(zip((leaf.path for leaf in leaves(action_space)), parts, strict=True)))
        base = random_trajectories([9, 6, 7])
        columns = base.observations, actions, base.rewards, base.terminations, base.truncations
        data = Trajectories.from_arrays(*columns, base.observation_space, action_space)
    else:
        data = random_trajectories([9, 6, 7], action_space=action_space)
    policy = untrained_policy(data, preset=preset, **({"bins": 4} if preset in ("tt", "dt_discrete", "vq_dt") else {}))
    probes = Probes(policy, data, count=16)
    findings = [
        history_swap(policy, probes),
        target_sensitivity(policy, probes),
        exposure_bias(policy, data),
        repeat_lift(data, data),
    ]
    assert all(f.fine is not None for f in findings)
    errors = errors_along(policy, data, ActionScale(data), 9, own=False)
    assert np.isfinite(errors).sum() == data.num_steps
    # where an action is decided at once, the windows of the swaps say what acting does
    if preset == "dt":
        probed = probes.scale.distance(probes.before, probes.recorded)
        step = probes.rows - data.episode_starts[np.searchsorted(data.episode_starts, probes.rows, side="right") - 1]
        episode = np.searchsorted(data.episode_starts, probes.rows, side="right") - 1
        np.testing.assert_allclose(probed, errors[step, episode], atol=1e-4)


@pytest.fixture
def policy_for_scripted(random_trajectories, untrained_policy, scripted_env):
    return untrained_policy(random_trajectories([9, 5, 7], scripted_env.observation_space, scripted_env.action_space))


def test_the_data_s_own_episodes_are_inside_and_a_dreamt_target_is_not(random_trajectories, untrained_policy):
    data = random_trajectories(LENGTHS)
    policy = untrained_policy(data)
    own = out_of_support(data, data.episode_returns, data, policy.data)
    assert [f.fine for f in own] == [True] * 3
    assert all(v == 0 for v in own[0].numbers.values())
    returns, actions, observations = out_of_support(
        data, 10 * np.abs(data.episode_returns).max() + 0 * data.episode_returns, data, policy.data
    )
    assert "lower target" in returns.advice
    low = out_of_support(data, -10 * np.abs(data.episode_returns).max() + 0 * data.episode_returns, data, policy.data)[
        0
    ]
    assert (low.fine, low.numbers["above_at_step"]) == (False, 0)
    assert "higher target" in low.advice
    assert (returns.fine, returns.numbers["beyond_range"], actions.fine, observations.fine) == (False, 1, True, True)


def test_actions_and_observations_beyond_the_data_s_are_told_by_dimension(random_trajectories, untrained_policy):
    data = random_trajectories(LENGTHS)
    small = dataclasses.replace(
        data,
        columns={**data.columns, "actions": data.actions * np.float32([0.5, 1]), "observations": data.observations / 2},
    )
    found = out_of_support(data, data.episode_returns, small, untrained_policy(small).data)
    limit = np.abs(small.actions[:, 0]).max()
    assert [f.fine for f in found] == [True, False, False]
    low, high = small.actions[:, 0].min(), small.actions[:, 0].max()
    expected = ((data.actions[:, 0] < low) | (data.actions[:, 0] > high)).mean()
    assert limit < 1
    assert found[1].numbers["by_dimension"] == pytest.approx([expected, 0])


def test_the_range_at_each_step_is_that_of_the_episodes_that_reach_it(random_trajectories):
    data = random_trajectories([3, 5, 2])
    low, high = range_by_step(data)
    for step in range(5):
        alive = data.episode_starts[data.episode_lengths > step] + step
        assert (low[step], high[step]) == (data.returns_to_go[alive].min(), data.returns_to_go[alive].max())


class Line(gymnasium.Env):
    """A point that moves by its action; the seed says where it begins."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(size=1).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action):
        self.place, self.steps = self.place + action, self.steps + 1
        return self.place.copy(), -float(abs(self.place[0])), False, self.steps == 15, {}


@pytest.fixture
def homing(random_trajectories, untrained_policy, monkeypatch):
    """Episodes of a policy that goes half of the way to 0, that policy, and their seeds."""
    made = random_trajectories([15] * 4, Line.observation_space, Line.action_space, origin=Origin("test/line-v0"))
    policy = acts_by(untrained_policy(made), monkeypatch, lambda state, seen: np.clip(-seen[""] / 2, -1, 1))
    seeds = [3, 4, 5, 6]
    data = rollout(policy, Line, [Episode(0.0, seed) for seed in seeds])
    return dataclasses.replace(data, origin=Origin("test/line-v0")), policy, seeds


def test_who_acts_as_recorded_does_not_drift_and_who_runs_away_does(homing, monkeypatch):
    data, policy, seeds = homing
    same = state_drift(policy, data, range(4), seeds, Line)
    assert (same.fine, same.numbers["drift"]) == (True, 0)
    acts_by(policy, monkeypatch, lambda state, seen: np.ones_like(seen[""]))
    away = state_drift(policy, data, range(4), seeds, Line)
    assert away.fine is False
    assert away.numbers["drift"] > 3


def test_an_environment_that_does_not_repeat_is_not_measured(homing):
    data, policy, _ = homing
    assert state_drift(policy, data, range(4), [7, 8, 9, 10], Line).fine is None


def test_a_drift_without_an_environment_is_refused(homing):
    data, policy, seeds = homing
    with pytest.raises(InputError, match="name no environment"):
        state_drift(policy, data, range(4), seeds)
