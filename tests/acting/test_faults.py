"""Environments that misbehave, in this process and in workers: what is said of them, what is lost, and that nothing else changes.

The planted environments do their mischief for the episodes of some seeds, so that what ought to happen is known exactly."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from dtrl.acting import Episode, rollout, workers
from dtrl.acting.faults import RETRIES
from dtrl.errors import InputError
from dtrl.spaces import stack
from dtrl.trajectories import Trajectories


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    yield
    for children in Path("/proc/self/task").glob("*/children"):  # before active_children, which would bury the dead
        for child in children.read_text().split():
            assert ") Z " not in Path(f"/proc/{child}/stat").read_text(), "a zombie is left behind"
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("dtrl-env-worker")]


class Failing(gymnasium.Wrapper):
    """Misbehaves in the episodes of the seeds that `faults` names, in step 1 or at the reset, and is of no more use then. Where a folder is given, it
    does so `times` times for each seed, which the folder's files count; else always."""

    def __init__(self, env, faults, folder=None, times=1):
        super().__init__(env)
        self.faults, self.folder, self.times, self.broken = faults, folder, times, False

    def due(self):
        if self.folder is None:
            return True
        with open(self.folder / str(self.now), "a+") as file:
            file.seek(0)
            if (done := len(file.read())) < self.times:
                file.write("x")
        return done < self.times

    def reset(self, *, seed=None, options=None):
        assert not self.broken, "used again"
        self.now, self.steps = seed, 0
        observation, info = super().reset(seed=seed, options=options)
        fault = self.faults.get(seed, "")
        if fault.endswith("at the reset") and self.due():
            observation, _ = self.misbehave(fault.removesuffix(" at the reset"), observation, 0.0)
        return observation, info

    def step(self, action):
        assert not self.broken, "used again"
        self.steps += 1
        observation, reward, *rest = super().step(action)
        fault = self.faults.get(self.now, "at the reset")
        if self.steps == 2 and not fault.endswith("at the reset") and self.due():
            observation, reward = self.misbehave(fault, observation, reward)
        return observation, reward, *rest

    def misbehave(self, fault, observation, reward):
        self.broken = True
        if fault == "raises":
            raise OSError("no such level")
        if fault == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(60)
        changed = {
            "shows NaN": observation * np.nan,
            "shows more": np.append(observation, observation),
            "shows text": "nothing to see",
        }
        return changed.get(fault, observation), {"pays NaN": np.nan, "pays nothing": None}.get(fault, reward)


FAULTS = {
    "raises": ("raised", "raised OSError: no such level"),
    "raises at the reset": ("raised", "raised OSError: no such level"),
    "shows NaN": ("observation", "showed NaN or infinity"),
    "shows NaN at the reset": ("observation", "showed NaN or infinity"),
    "shows more": ("observation", r"showed an observation of shape \(6,\), and its space is Box"),
    "shows text": ("observation", r"showed an observation of shape \(\), and its space is Box"),
    "pays NaN": ("reward", "returned the reward nan"),
    "pays nothing": ("reward", "returned the reward None, which is no number"),
}
"""Fault → its kind, and what is said of it."""
OF_WORKERS = {
    "is killed": ("died", r"ended its worker process \(exit code -9\)"),
    "is killed at the reset": ("died", r"ended its worker process \(exit code -9\)"),
    "hangs": ("hung", "has not answered for 2 seconds"),
    "hangs at the reset": ("hung", "has not answered for 2 seconds"),
}
"""The same, of those that only worker processes outlive."""


@pytest.fixture
def episodes(scripted_env):
    """Seven of at least 5 steps each."""
    env = scripted_env()
    seeds = [seed for seed in range(100) if env.reset(seed=seed) and env.length > 4][:7]
    return [Episode(float(i % 4) * 5, seed) for i, seed in enumerate(seeds)]


def timeout_for(fault, env_workers):
    """Two seconds are for a step or a reset, which take microseconds here: a machine would have to stand still to be taken for a hanging one."""
    return 2.0 if env_workers and "hangs" in fault else None


def assert_episodes(played, whole, indices):
    """That they are those of the whole, bit for bit."""
    assert played.num_episodes == len(indices)
    for i, index in enumerate(indices):
        one, other = played.episode(i), whole.episode(index)
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("fault", "env_workers"),
    [
        *((fault, 0) for fault in FAULTS),
        ("raises", 2),
        *(pytest.param(fault, 2, marks=pytest.mark.slow) for fault in ("is killed", "hangs")),
    ],
)
def test_a_fault_names_environment_step_and_seed(policy_for, scripted_env, episodes, fault, env_workers):
    seed, (_, says) = episodes[3].seed, {**FAULTS, **OF_WORKERS}[fault]
    at = "its reset" if "reset" in fault else "step 1"
    with pytest.raises(
        InputError, match=rf"^environment 3, at {at} \(seed {seed}\), {says}[^\n]*; [^\n]*\.$"
    ) as caught:
        rollout(
            policy_for(),
            lambda: Failing(scripted_env(), {seed: fault}),
            episodes,
            env_workers=env_workers,
            env_timeout=timeout_for(fault, env_workers),
        )
    if fault == "raises":
        cause = caught.value.__cause__
        assert isinstance(cause, OSError) if env_workers == 0 else "in misbehave\n" in str(cause), "traceback is lost"


@pytest.mark.parametrize(
    ("fault", "num_envs", "env_workers"),
    [
        *((fault, 3, 0) for fault in FAULTS),
        *((fault, 1, 0) for fault in ("raises", "raises at the reset", "shows NaN at the reset")),
        pytest.param("shows more", 1, 2, marks=pytest.mark.slow),
        pytest.param("shows NaN at the reset", 3, 2, marks=pytest.mark.slow),
        *(pytest.param(fault, 3, 2, marks=pytest.mark.slow) for fault in ("is killed at the reset", "hangs")),
    ],
)
def test_skip_loses_that_episode_and_changes_no_other(policy_for, scripted_env, episodes, fault, env_workers, num_envs):
    """Whether it is the first of its row or a later one, and though others played in the worker that ended."""
    policy, faults = policy_for(), []
    befallen = [3] if env_workers else [0, 3, 6]
    bad = {episodes[i].seed: fault for i in befallen}
    played = rollout(
        policy,
        lambda: Failing(scripted_env(), bad),
        episodes,
        num_envs=num_envs,
        env_workers=env_workers,
        env_timeout=timeout_for(fault, env_workers),
        on_env_error="skip",
        on_fault=faults.append,
    )
    assert_episodes(played, rollout(policy, scripted_env, episodes), [i for i in range(7) if i not in befallen])
    assert {(f.episode, f.seed, f.target_return, f.kind, f.step, f.attempt, f.lost) for f in faults} == {
        (i, episodes[i].seed, episodes[i].target_return, {**FAULTS, **OF_WORKERS}[fault][0], step, 1, True)
        for i in befallen
        for step in [None if "reset" in fault else 1]
    }
    assert all(f.message.startswith(f"environment {f.env}, at ") and str(f.seed) in f.message for f in faults)
    assert len(faults) == len(befallen)


@pytest.mark.parametrize(
    ("fault", "times", "env_workers"),
    [
        *((fault, n, 0) for fault in ("raises", "shows NaN at the reset") for n in (1, RETRIES, RETRIES + 1)),
        pytest.param("pays NaN", RETRIES, 2, marks=pytest.mark.slow),
        pytest.param("is killed", RETRIES + 1, 2, marks=pytest.mark.slow),
        pytest.param("hangs at the reset", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_retry_begins_the_same_episode_in_a_new_environment(
    policy_for, scripted_env, episodes, tmp_path, fault, times, env_workers
):
    policy, faults = policy_for(), []
    befallen = [5] if env_workers else [1, 5]
    bad = {episodes[i].seed: fault for i in befallen}
    played = rollout(
        policy,
        lambda: Failing(scripted_env(), bad, tmp_path, times),
        episodes,
        num_envs=3,
        env_workers=env_workers,
        env_timeout=timeout_for(fault, env_workers),
        on_env_error="retry",
        on_fault=faults.append,
    )
    left = [i for i in range(7) if times <= RETRIES or i not in befallen]
    assert_episodes(played, rollout(policy, scripted_env, episodes), left)
    for i in befallen:
        mine = [(f.attempt, f.lost) for f in faults if f.episode == i]
        assert mine == [(n, n == RETRIES + 1) for n in range(1, times + 1)]


@pytest.mark.slow
def test_many_faults_at_once_in_workers(policy_for, scripted_env, episodes):
    """Two workers, both halves of the rows, an environment that kills its worker beside others that fail; sampled actions."""
    policy, faults = policy_for(), []
    bad = {episodes[0].seed: "is killed", episodes[2].seed: "raises", episodes[3].seed: "shows NaN"}
    options = {"num_envs": 4, "deterministic": False}
    played = rollout(
        policy,
        lambda: Failing(scripted_env(), bad),
        episodes,
        env_workers=2,
        on_env_error="skip",
        on_fault=faults.append,
        **options,
    )
    assert_episodes(played, rollout(policy, scripted_env, episodes, **options), [1, 4, 5, 6])
    assert sorted((f.episode, f.kind) for f in faults) == [(0, "died"), (2, "raised"), (3, "observation")]


@pytest.mark.parametrize("fault", ["shows NaN", "shows NaN at the reset", "pays NaN"])
def test_the_policy_is_told_no_nan(policy_for, scripted_env, episodes, monkeypatch, fault):
    """Not even in a row that is about to begin again: a model that multiplied it by 0 would have NaN."""
    policy, calls = policy_for(), []
    predict = policy.predict

    def checking(observation, state, **rest):
        calls.append(np.isfinite(observation).all() and np.isfinite(state.reward).all())
        return predict(observation, state, **rest)

    monkeypatch.setattr(policy, "predict", checking)
    bad = {episodes[i].seed: fault for i in (0, 4)}
    rollout(policy, lambda: Failing(scripted_env(), bad), episodes, num_envs=2, on_env_error="skip", on_fault=id)
    assert all(calls)


@pytest.mark.parametrize(
    ("options", "env_workers"),
    [
        ({"on_env_error": "skip"}, 0),
        ({"on_env_error": "retry"}, 0),
        pytest.param({"on_env_error": "retry", "env_timeout": 60}, 2, marks=pytest.mark.slow),
    ],
)
def test_without_faults_the_options_change_nothing(policy_for, scripted_env, episodes, options, env_workers):
    policy = policy_for()
    asked = {"num_envs": 3, "deterministic": False}
    played = rollout(policy, scripted_env, episodes, env_workers=env_workers, **options, **asked)
    assert_episodes(played, rollout(policy, scripted_env, episodes, **asked), range(7))


@pytest.mark.parametrize("on_env_error", ["skip", "retry"])
def test_where_every_episode_is_lost_there_is_nothing_to_report(policy_for, scripted_env, episodes, on_env_error):
    bad, ended = {episode.seed: "raises" for episode in episodes}, []
    with pytest.raises(
        InputError, match=r"^all 7 episodes were lost [^\n]+ environment 0, at step 1 [^\n]+ no such level[^\n]+\.$"
    ):
        rollout(
            policy_for(),
            lambda: Failing(scripted_env(), bad),
            episodes,
            num_envs=2,
            on_env_error=on_env_error,
            on_fault=lambda _: None,
            on_episode=ended.append,
        )
    assert sorted(ended) == list(range(7)), "an episode that is lost is over"


def test_nothing_is_lost_in_silence(policy_for, scripted_env, episodes):
    seed = episodes[2].seed
    with pytest.warns(
        UserWarning, match=rf"^environment 2, at step 1 \(seed {seed}\), raised OSError[^\n]+ The episode is lost\.$"
    ):
        rollout(policy_for(), lambda: Failing(scripted_env(), {seed: "raises"}), episodes, on_env_error="skip")


@pytest.mark.parametrize("env_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_environment_that_cannot_be_made_again_ends_the_rollout(
    policy_for, scripted_env, episodes, tmp_path, env_workers
):
    def make():
        assert len(list(tmp_path.iterdir())) < 3 + bool(env_workers), "no more of them"  # workers come after an example
        (tmp_path / str(time.time_ns())).touch()
        return Failing(scripted_env(), {episodes[0].seed: "raises", episodes[3].seed: "raises"})

    with pytest.raises(
        InputError, match=r"^environment \d, at its reset [^\n]+ made anew: AssertionError: no more of them[^\n]+\.$"
    ):
        rollout(policy_for(), make, episodes, num_envs=2, env_workers=env_workers, on_env_error="skip", on_fault=id)


def test_a_row_without_an_episode_steps_no_environment(policy_for, scripted_env, episodes):
    steps = []

    class Counting(gymnasium.Wrapper):
        def step(self, action):
            steps.append(action)
            return super().step(action)

    played = rollout(policy_for(), lambda: Counting(scripted_env()), episodes[:5], num_envs=4)
    assert len(steps) == played.num_steps


class Mission(gymnasium.Env):
    """A Dict with a text, a number and a mask in the info that forbids one action. Where it fails, it shows a text too long, or a number too large."""

    observation_space = spaces.Dict({"word": spaces.Text(3, charset="abc"), "number": spaces.Discrete(4, start=1)})
    action_space = spaces.Discrete(3)

    def __init__(self, bad=None):
        self.bad = bad or {}

    def show(self, **changed):
        self.mask = np.ones(3, dtype=np.int8)
        self.mask[self.np_random.integers(3)] = 0
        word = "".join(self.np_random.choice(list("abc"), self.np_random.integers(1, 4)))
        parts = {"word": word, "number": self.np_random.integers(1, 5)}
        return {**parts, **changed}, {"action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.left = seed, int(self.np_random.integers(3, 6))
        return self.show()

    def step(self, action):
        assert self.mask[action], "took a forbidden action"
        self.left -= 1
        observation, info = self.show(**(self.bad.get(self.now, {}) if self.left == 2 else {}))
        return observation, 0.25 * float(action), self.left == 0, False, info


@pytest.mark.parametrize("env_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_texts_and_numbers_outside_their_spaces_are_faults(untrained_policy, env_workers):
    env, recorded = Mission(), []
    for seed in range(3):
        shown = [env.reset(seed=seed)[0], env.show()[0]]
        end = {"rewards": [0.0], "terminations": [True], "truncations": [False]}
        recorded.append({"observations": stack(env.observation_space, shown), "actions": [0], **end})
    policy = untrained_policy(Trajectories.from_episodes(recorded, env.observation_space, env.action_space))
    asked, faults = [Episode(1.0, seed) for seed in range(12)], []
    bad = {2: {"word": "abca"}, 5: {"number": 9}, 7: {"word": "xyz"}, 8: {"number": np.array([1, 2])}}
    played = rollout(
        policy,
        lambda: Mission(bad),
        asked,
        num_envs=5,
        env_workers=env_workers,
        on_env_error="skip",
        on_fault=faults.append,
    )
    whole = rollout(policy, Mission, asked, num_envs=5)
    left = [i for i in range(12) if i not in bad]
    assert played.num_episodes == len(left)
    for i, index in enumerate(left):
        one, other = played.episode(i), whole.episode(index)
        np.testing.assert_array_equal(one["actions"], other["actions"])
        for part in ("word", "number"):
            np.testing.assert_array_equal(one["observations"][part], other["observations"][part])
    assert {(f.episode, f.kind) for f in faults} == {(seed, "observation") for seed in bad}
    said = {f.episode: f.message for f in faults}
    assert "'abca'" in said[2]
    assert "in number 9, which is not in Discrete(4, start=1)" in said[5]
    assert "'xyz'" in said[7]
    assert "in number an observation of shape (2,)" in said[8]


@pytest.mark.slow
def test_environments_that_are_slow_but_alive_are_waited_for(policy_for, scripted_env, episodes):
    """One worker plays seven, in halves of four and three, whose first steps take 0.7 s each: of a half 2.8 s, and of none the two that it may take."""

    def slow():
        env = scripted_env()
        step = env.step
        env.step = lambda action: time.sleep(0 if env.rewards else 0.7) or step(action)
        return env

    played = rollout(policy_for(), slow, episodes, env_workers=1, env_timeout=2.0)
    assert played.num_episodes == 7


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_rollout(policy_for, scripted_env, episodes):
    """That it ends before its environments are made is the fault of no episode: it would not start the next time either."""
    here = os.getpid()

    def make():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return scripted_env()

    with pytest.raises(
        InputError, match=r"^the worker process of environment 0 ended before[^\n]+\(exit code -9\)[^\n]+\.$"
    ):
        rollout(policy_for(), make, episodes, env_workers=1, on_env_error="skip")


@pytest.mark.slow
def test_making_an_environment_anew_takes_its_time(policy_for, scripted_env, episodes, tmp_path, monkeypatch):
    """Longer than a step may take; `ANSWER_SECONDS` are for it."""
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 60.0)
    here = os.getpid()

    def make():
        if os.getpid() != here:
            time.sleep(1.5)
        return Failing(scripted_env(), {episodes[0].seed: "raises"}, tmp_path)

    faults = []
    played = rollout(
        policy_for(),
        make,
        episodes,
        num_envs=1,
        env_workers=1,
        env_timeout=1.0,
        on_env_error="retry",
        on_fault=faults.append,
    )
    assert [f.kind for f in faults] == ["raised"]
    assert played.num_episodes == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"on_env_error": "ignore"}, "on_env_error is 'ignore'; choose one of raise, skip, retry"),
        ({"env_timeout": 5}, "env_timeout is 5, and an environment of this process cannot be interrupted"),
        ({"env_timeout": 0, "env_workers": 1}, "env_timeout 0 is not a positive number"),
        ({"env_timeout": "long", "env_workers": 1}, "env_timeout 'long' is not a positive number"),
    ],
)
def test_wrong_options_are_refused(policy_for, scripted_env, episodes, arguments, says):
    with pytest.raises(InputError, match=f"^{says}[^\n]*\\.$"):
        rollout(policy_for(), scripted_env, episodes, **arguments)


def test_no_part_of_a_vector_environment_can_be_replaced(policy_for, scripted_env, episodes):
    vector = SyncVectorEnv([scripted_env] * 2)
    with pytest.raises(InputError, match=r"^on_env_error is skip, and of a vector environment no part can be replaced"):
        rollout(policy_for(), vector, episodes, on_env_error="skip")
