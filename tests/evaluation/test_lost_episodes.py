"""Evaluations of which an environment took some episodes: what is left is what would have been without them, and the report says what is missing."""

import json
import math

import gymnasium
import numpy as np
import pytest

import dtrl
from dtrl.acting import EpisodeFault
from dtrl.cli import main
from dtrl.errors import InputError
from dtrl.evaluation import Report, TargetResult, evaluate, sweep
from dtrl.evaluation.callback import EvaluationCallback, scalars
from dtrl.evaluation.plots import calibration_figure, sweep_figure
from dtrl.evaluation.statistics import mean_ci95
from dtrl.evaluation.video import record
from dtrl.trajectories.columns import Origin

TARGETS = [0.0, 12.0, 6.0]


@pytest.fixture
def policy(random_trajectories, untrained_policy, scripted_env):
    spaces = scripted_env.observation_space, scripted_env.action_space
    return untrained_policy(random_trajectories([9, 5, 7], *spaces, origin=Origin("test/random-v0")))


@pytest.fixture
def seeds():
    """Of an evaluation of four episodes with seed 0."""
    return np.random.default_rng([0, 0]).integers(2**31, size=4).tolist()


@pytest.fixture
def failing(scripted_env):
    """Makes environments that raise at the second step of the episodes of some seeds."""

    class Failing(gymnasium.Wrapper):
        def __init__(self, seeds):
            super().__init__(scripted_env())
            self.bad = seeds

        def reset(self, *, seed=None, options=None):
            self.now, self.begun = seed, False
            return super().reset(seed=seed, options=options)

        def step(self, action):
            if self.begun and self.now in self.bad:
                raise ArithmeticError("the simulation diverged")
            self.begun = True
            return super().step(action)

    return lambda seeds: lambda: Failing(seeds)


def test_what_is_left_is_what_would_have_been(policy, scripted_env, failing, seeds, tmp_path):
    whole = evaluate(policy, TARGETS, 4, env=scripted_env)
    report = evaluate(policy, TARGETS, 4, env=failing([seeds[1]]), on_env_error="skip")
    for found, target in zip(report.targets, whole.targets, strict=True):
        assert found.lost == [1]
        assert found.returns == [target.returns[i] for i in (0, 2, 3)]
        assert found.lengths == [target.lengths[i] for i in (0, 2, 3)]
        assert (found.mean, found.ci95) == mean_ci95(found.returns)
    assert [(f.episode, f.target_return, f.seed, f.lost) for f in report.faults] == [
        (4 * i + 1, target, seeds[1], True) for i, target in enumerate(TARGETS)
    ]
    assert report.lost == 3

    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == report
    value = json.loads((tmp_path / "report.json").read_text())
    assert [target["lost"] for target in value["targets"]] == [[1]] * 3
    assert value["faults"][0]["message"] == (
        f"environment 1, at step 1 (seed {seeds[1]}), raised ArithmeticError: the simulation diverged; the environment is at fault."
    )
    assert "lost: 3 of 12 episodes (environments: 3 raised an error); every number is over the others" in report.table()
    assert report.table().count("3 of 4") == 3
    assert report.faults[0].message in report.table()
    assert ", 3 lost" in calibration_figure(report).axes[0].texts[0].get_text()


def test_retries_are_counted_and_lose_nothing(policy, scripted_env, seeds):
    failed = []

    class Once(gymnasium.Wrapper):
        def step(self, action):
            if not failed:
                failed.append(0)
                raise ArithmeticError
            return super().step(action)

    report = evaluate(policy, TARGETS, 4, env=lambda: Once(scripted_env()), on_env_error="retry")
    whole = evaluate(policy, TARGETS, 4, env=scripted_env)
    assert report.targets == whole.targets
    assert "begun again: 1 time (environments: 1 raised an error)" in report.table()
    assert "lost" not in report.table()
    assert whole.to_dict()["faults"] == []


def of_lost_target():
    """A report whose second target has lost everything."""
    targets = [
        TargetResult(1.0, [2.0, 3.0], [4, 5], [1]),
        TargetResult(9.0, [], [], [0, 1, 2]),
        TargetResult(3.0, [4.0, 4.5, 5.0], [1, 2, 3]),
    ]
    faults = [EpisodeFault(i, 1.0, i, 0, None, "hung", "…", 1, lost=True) for i in (1, 3, 4, 5)]
    return Report("a/b-v0", None, 0, 3, targets, faults=faults)


def test_a_target_that_lost_everything_has_no_numbers_and_the_others_have_theirs(tmp_path):
    report = of_lost_target()
    assert [t.mean for t in report.targets] == pytest.approx([2.5, math.nan, 4.5], nan_ok=True)
    report.to_json(tmp_path / "report.json")
    value = json.loads((tmp_path / "report.json").read_text())["targets"][1]
    assert (value["mean"], value["ci95"], value["iqm"], value["returns"]) == (None, [None, None], None, [])
    assert Report.from_json(tmp_path / "report.json").to_dict() == report.to_dict()
    assert "lost: 4 of 9 episodes (environments: 4 did not answer in time)" in report.table()
    assert "    9          –    [   –,    –]   0 of 3" in report.table().splitlines()
    logged = scalars(report)
    assert "eval/return@9" not in logged
    assert logged["eval/return@3"] == 4.5
    assert logged["eval/mean_absolute_gap"] == pytest.approx(1.5)
    calibration_figure(report)
    sweep_figure([(0, report), (10, report)])


def test_no_returns_and_nothing_lost_is_no_result():
    with pytest.raises(InputError, match="at least one episode"):
        TargetResult(1.0, [], [])


def test_where_all_is_lost_there_is_no_report(policy, failing, seeds):
    with pytest.raises(InputError, match=r"^all 4 episodes were lost"):
        evaluate(policy, [1.0], 4, env=failing(seeds), on_env_error="skip")


def test_a_sweep_is_read_over_the_starts_that_no_target_lost(tmp_path):
    """Otherwise a target would be compared on other starts than the next."""
    random = np.random.default_rng(0)
    returns = random.normal(size=(4, 6))
    lost = [[], [2], [2, 5], []]
    left = [[e for e in range(6) if e not in gone] for gone in lost]
    targets = [
        TargetResult(t, [float(returns[i, e]) for e in left[i]], [1] * len(left[i]), lost[i])
        for i, t in enumerate((1.0, 5.0, 10.0, 15.0))
    ]
    report = Report("a/b-v0", None, 0, 6, targets, support=(1.0, 10.0))
    np.testing.assert_array_equal(report.calibration.returns, returns[:, [0, 1, 3, 4]])
    assert "the sweep is read over the 4 of 6 starts that no target has lost" in report.table()
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json").to_dict() == report.to_dict()


def test_a_sweep_without_a_common_start_has_no_calibration():
    targets = [TargetResult(t, [t], [1], [i % 2]) for i, t in enumerate((1.0, 5.0, 10.0, 15.0))]
    report = Report("a/b-v0", None, 0, 2, targets, support=(1.0, 10.0))
    assert report.calibration is None
    assert "over the 0 of 2 starts" in report.table()


def test_a_sweep_takes_the_options(policy, failing, seeds):
    report = sweep(policy, 4, 4, env=failing(seeds[:1]), on_env_error="skip")
    assert [target.lost for target in report.targets] == [[0]] * 4
    assert report.calibration.returns.shape == (4, 3)


class Log:
    """What a run's logger is asked to write."""

    def __init__(self):
        self.values = {}

    def scalars(self, values, update):
        self.values |= values

    def figure(self, *_):
        pass

    text = video = figure


@pytest.mark.parametrize(("options", "expected"), [({"on_env_error": "skip"}, 3.0), ({}, None)])
def test_evaluations_during_training_log_what_was_lost(
    policy, scripted_env, failing, seeds, random_trajectories, options, expected
):
    spaces = scripted_env.observation_space, scripted_env.action_space
    env = failing(seeds[1:2]) if options else scripted_env
    callback = EvaluationCallback(random_trajectories([5, 6], *spaces), TARGETS, 4, env=env, **options)
    event = type("Event", (), {"kind": "end", "update": 1, "policy": policy, "logger": Log()})
    callback(event)
    assert event.logger.values.get("eval/lost_episodes") == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [({"env_timeout": 3.0}, "env_timeout is 3"), ({"on_env_error": "hope"}, "on_env_error is 'hope'")],
)
def test_wrong_options_of_evaluations_are_refused_before_the_training(random_trajectories, options, says):
    with pytest.raises(InputError, match=says):
        EvaluationCallback(random_trajectories([5, 6]), **options)


MODULE = """
import gymnasium, numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

class Broken(CartPoleEnv):
    def reset(self, *, seed=None, options=None):
        self.bad = seed is not None and seed %% %d == 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.nan if self.bad else reward, *rest

gymnasium.register("Broken-v0", Broken, max_episode_steps=20, disable_env_checker=True)
"""


@pytest.fixture
def saved(random_trajectories, untrained_policy, tmp_path, monkeypatch):
    """A working directory with a policy for CartPole, and a module that registers an environment of which about half of the episodes pay NaN."""
    env = gymnasium.make("CartPole-v1")
    untrained_policy(random_trajectories([9, 5], env.observation_space, env.action_space)).save(tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gymnasium.registry.pop("Broken-v0", None)


@pytest.mark.parametrize(
    ("every", "on_env_error", "code"), [(2, "skip", 0), (2, "retry", 0), (2, "raise", 2), (1, "skip", 2)]
)
def test_the_command_line_counts_what_was_lost(saved, capsys, every, on_env_error, code):
    module = f"broken_{every}_{on_env_error}"
    (saved / f"{module}.py").write_text(MODULE % every)
    line = f"evaluate policy --env Broken-v0 --import {module} --target-returns 5 9 --episodes 6 --on-env-error {on_env_error} --json r.json"
    assert main(line.split()) == code
    out, error = capsys.readouterr()
    lost = int((np.random.default_rng([0, 0]).integers(2**31, size=6) % every == 0).sum())
    assert 0 < lost
    if code:
        assert error.count("\n") == 1
        assert "returned the reward nan" in error
        assert not (saved / "r.json").exists()
    else:
        assert f"lost: {2 * lost} of 12 episodes (environments: {2 * lost} returned no valid reward)" in out
        assert ("begun again" in out) == (on_env_error == "retry")
        assert [len(t["lost"]) for t in json.loads((saved / "r.json").read_text())["targets"]] == [lost, lost]


def test_the_python_name_takes_the_options(policy, failing, seeds):
    assert dtrl.evaluate(policy, [1.0], 4, env=failing(seeds[:2]), on_env_error="skip").targets[0].lost == [0, 1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--env-timeout 5",
            "env_timeout is 5, and an environment of this process cannot be interrupted; use env_workers",
        ),
        ("--env-timeout -1 --env-workers 1", "env_timeout -1.0 is not a positive number of seconds"),
    ],
)
def test_a_wrong_timeout_is_one_sentence(saved, capsys, flags, says):
    assert main(f"evaluate policy --env CartPole-v1 --episodes 1 {flags}".split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dtrl: {says}")
    assert error.count("\n") == 1


def test_a_video_of_an_environment_that_fails_is_refused(policy, scripted_env):
    """And an evaluation at the end of a training goes without it."""

    class Drawn(scripted_env):
        render_mode = "rgb_array"

        def render(self):
            return np.zeros((4, 4, 3), np.uint8)

        def step(self, action):
            raise ArithmeticError("the simulation diverged")

    with pytest.raises(
        InputError, match=r"^environment 0, at step 0 \(seed 3\), raised ArithmeticError: the sim[^\n]+\.$"
    ):
        record(policy, 1.0, 3, Drawn)
