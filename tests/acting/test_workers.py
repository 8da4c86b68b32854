"""Worker processes play the episodes that this process would have played. What happens when an environment fails stands in test_faults.py."""

import multiprocessing
import os
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.acting import Episode, Timing, rollout
from dtrl.acting.rollouts import auto_workers, halves
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.spaces import stack
from dtrl.trajectories import Trajectories

EPISODES = [Episode(target_return=float(i % 4) * 5, seed=100 + i) for i in range(11)]


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    yield
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("dtrl-env-worker")]


def assert_same(one, other):
    assert one.columns.keys() == other.columns.keys()
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name], err_msg=name)
    np.testing.assert_array_equal(one.episode_starts, other.episode_starts)


@pytest.mark.parametrize(
    ("num_envs", "env_workers", "attention", "deterministic"),
    [
        (5, 2, "window", True),
        pytest.param(None, 3, "banded", False, marks=pytest.mark.slow),
        pytest.param(4, 4, "full", True, marks=pytest.mark.slow),
        pytest.param(1, 2, "window", False, marks=pytest.mark.slow),
    ],
)
def test_workers_play_what_this_process_plays(
    policy_for, scripted_env, num_envs, env_workers, attention, deterministic
):
    """Rows that finish early and rows for which no episode is left among them."""
    policy = policy_for(attention=attention, acting={"decoding": DecodingConfig(strategy="sample")})
    here, there = (
        rollout(policy, scripted_env, EPISODES, num_envs=num_envs, deterministic=deterministic, env_workers=count)
        for count in (0, env_workers)
    )
    assert_same(here, there)


class Rich(gymnasium.Env):
    """A Dict with a text, a number and a mask that forbids one action, which fails when it is taken; the mask is in the info too if `told`."""

    action_space = spaces.Discrete(3)

    def __init__(self, told=False):
        self.told = told
        parts = {
            "word": spaces.Text(3, charset="abc"),
            "pair": spaces.Tuple([spaces.Discrete(4, start=1), spaces.Box(-1, 1, (2,))]),
        }
        self.observation_space = spaces.Dict(parts if told else {**parts, "action_mask": spaces.MultiBinary(3)})

    def show(self):
        self.mask = np.ones(3, dtype=np.int8)
        self.mask[self.np_random.integers(3)] = 0
        word = "".join(self.np_random.choice(list("abc"), self.np_random.integers(1, 4)))
        pair = (self.np_random.integers(1, 5), self.np_random.uniform(-1, 1, 2).astype(np.float32))
        parts = {"word": word, "pair": pair}
        return (parts, {"action_mask": self.mask}) if self.told else ({**parts, "action_mask": self.mask}, {})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6))
        return self.show()

    def step(self, action):
        assert self.mask[action], "took a forbidden action"
        self.left -= 1
        observation, info = self.show()
        return observation, 0.25 * float(action), self.left == 0, False, info


@pytest.mark.parametrize(
    "told", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mask in the observation", "mask in the info"]
)
def test_texts_parts_and_masks_pass_through_shared_memory(untrained_policy, told):
    env, played = Rich(told), []
    for seed in range(3):
        shown = [env.reset(seed=seed)[0], env.show()[0]]
        end = {"rewards": [0.0], "terminations": [True], "truncations": [False]}
        played.append({"observations": stack(env.observation_space, shown), "actions": [0], **end})
    policy = untrained_policy(Trajectories.from_episodes(played, env.observation_space, env.action_space))
    episodes = [Episode(1.0, seed) for seed in range(20)]
    here, there = (
        rollout(policy, lambda: Rich(told), episodes, num_envs=6, deterministic=False, env_workers=n) for n in (0, 2)
    )
    assert_same(here, there)


def test_an_interruption_ends_the_workers(policy_for, scripted_env):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(policy_for(), scripted_env, EPISODES, env_workers=2, on_episode=interrupt)


def test_an_environment_that_is_registered_here_is_found_there(policy_for, scripted_env, monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("test/Scripted-v0", entry_point=scripted_env)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    policy = policy_for()
    assert_same(rollout(policy, spec.id, EPISODES), rollout(policy, spec.id, EPISODES, env_workers=1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"env_workers": -1}, "env_workers -1 is neither"),
        ({"env_workers": "many"}, "env_workers 'many' is neither"),
        ({"env": "NoSuchEnv-v0"}, "'NoSuchEnv-v0' is not registered"),
        ({"env": "CartPole-v1"}, "the observation space of the environment is Box"),
    ],
)
def test_wrong_arguments_are_refused_before_a_process_starts(policy_for, scripted_env, arguments, says):
    with pytest.raises(InputError, match=says + r"[^\n]*\.$"):
        rollout(policy_for(), **{"env": scripted_env, "episodes": EPISODES, "env_workers": 2, **arguments})


def test_environments_that_differ_are_refused(policy_for, scripted_env):
    made = []

    def make():
        made.append(scripted_env())
        if len(made) == 3:
            made[-1].action_space = spaces.Discrete(4)
        return made[-1]

    with pytest.raises(InputError, match=r"^environment 1 has the spaces Box[^\n]+a function that makes all alike\.$"):
        rollout(policy_for(), make, EPISODES[:2], env_workers=1)


def test_what_cannot_be_sent_to_a_process_is_refused(policy_for, scripted_env):
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be sent to a worker process[^\n]+use 0 env workers\.$"):
        rollout(policy_for(), lambda: scripted_env(lock and []), EPISODES, env_workers=1)


def test_a_vector_environment_has_workers_of_its_own_or_none(policy_for, scripted_env):
    vector = gymnasium.vector.SyncVectorEnv([scripted_env] * 2)
    with pytest.raises(InputError, match="a vector environment steps as it was made"):
        rollout(policy_for(), vector, EPISODES, env_workers=2)


def test_seconds_and_steps_are_counted(policy_for, scripted_env):
    def slow():
        env = scripted_env()
        step = env.step
        env.step = lambda action: time.sleep(0.002) or step(action)
        return env

    for count in (0, 2):
        timing = Timing()
        played = rollout(policy_for(), slow, EPISODES, num_envs=4, env_workers=count, timing=timing)
        assert (timing.steps, timing.env_workers) == (played.num_steps, count)
        assert timing.env_seconds >= 0.002 * played.num_steps
        assert 0 < timing.model_seconds + timing.waited_seconds <= timing.wall_seconds
        assert f"{played.num_steps:,} steps" in timing.text()


def test_auto_starts_workers_for_slow_environments_only(scripted_env, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    slow, failing = scripted_env(), scripted_env()
    step = slow.step
    slow.step = lambda action: time.sleep(0.002) or step(action)
    failing.step = None
    # of 8 rows: a busy machine must not make the quick one look slow
    assert [auto_workers(env, 8) for env in (scripted_env(), slow, failing)] == [0, 4, 0]
    assert auto_workers(slow, 1) == 0
    # a time limit is for workers to keep, so there is at least one, and nothing is tried here, where it could hang
    assert [auto_workers(failing, rows, timeout=1.0) for rows in (1, 8)] == [1, 4]


def test_a_policy_of_a_fixed_number_of_environments_gets_full_groups(policy_for):
    policy = policy_for()
    assert [halves(policy, rows, 10) for rows in (1, 2, 7)] == [[1], [1, 1], [4, 3]]
    policy.rows = 4
    assert [halves(policy, 4, episodes) for episodes in (4, 5)] == [[4], [4, 4]]


def test_an_evaluation_is_the_same_and_its_json_tells_where_the_time_went(policy_for, scripted_env, tmp_path):
    policy = policy_for()
    here, there = (dtrl.evaluate(policy, [1.0, 6.0], 4, env=scripted_env, env_workers=n) for n in (0, 2))
    assert here == there
    assert here.to_dict() == there.to_dict()
    there.to_json(tmp_path / "report.json")
    from dtrl.evaluation.report import Report

    assert Report.from_json(tmp_path / "report.json").timing == there.timing
    assert there.timing.env_workers == 2
