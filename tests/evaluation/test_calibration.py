"""Sweeps: which returns are asked for, what is said of the answers, and how often that is wrong."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dtrl
from dtrl.cli import main
from dtrl.errors import InputError
from dtrl.evaluation import sweep
from dtrl.evaluation.calibration import Calibration, sweep_targets, trend_p_value
from dtrl.evaluation.report import Report, TargetResult
from dtrl.trajectories.columns import Origin


def quantiles_of(values):
    return tuple(np.quantile(values, np.linspace(0, 1, 101)))


def calibration(targets, returns, low=0.0, high=10.0):
    return Calibration(low, high, np.asarray(targets, float), np.asarray(returns, float))


def test_of_positive_returns_targets_run_from_the_tenth_to_one_and_a_half_times_the_maximum():
    targets = sweep_targets(quantiles_of(np.arange(0, 101)), 12)
    np.testing.assert_allclose(targets[:8], np.linspace(10, 100, 8))
    np.testing.assert_allclose(targets[8:], [112.5, 125, 137.5, 150])


@pytest.mark.parametrize("points", [4, 5, 9, 30])
def test_as_many_targets_as_asked_for_of_which_some_lie_beyond(points):
    targets = sweep_targets(quantiles_of(np.arange(0, 101)), points)
    assert len(targets) == points
    assert sum(t <= 100 for t in targets) >= 3
    assert targets[-1] == 150


def test_of_negative_returns_the_last_target_is_beyond_the_maximum_by_half_the_spread():
    targets = sweep_targets(quantiles_of(np.arange(-200, -99)), 12)
    assert targets[0] == pytest.approx(-190)
    assert targets[7] == pytest.approx(-100)
    assert targets[-1] == pytest.approx(-100 + 45)


def test_where_a_tenth_and_more_return_the_maximum_the_sweep_begins_at_the_minimum():
    targets = sweep_targets(quantiles_of([3.0] + [500.0] * 99), 6)
    assert (targets[0], targets[3], targets[-1]) == (3.0, 500.0, 750.0)


@pytest.mark.parametrize(
    ("quantiles", "points", "says"),
    [
        ((), 12, "^this policy knows nothing of its data's returns"),
        ((7.0,) * 101, 12, "^every episode of the data returns 7, so there is no range"),
        (quantiles_of([0, 1]), 3, "^points 3 are too few"),
    ],
)
def test_what_cannot_be_swept_is_refused(quantiles, points, says):
    with pytest.raises(InputError, match=rf"{says}[^\n]*\.$"):
        sweep_targets(quantiles, points)


def test_the_numbers_are_those_of_their_definitions():
    targets, random = [0, 5, 10, 12, 15], np.random.default_rng(0)
    returns = np.array([1, 4, 9, 8, 5])[:, None] + random.normal(size=(5, 6))
    c = calibration(targets, returns)
    means = returns.mean(axis=1)
    assert c.rank_correlation == pytest.approx(spearmanr(targets[:3], means[:3]).statistic)
    assert c.mean_absolute_error == pytest.approx(np.mean(np.abs(np.array([0, 5, 10]) - means[:3])))
    assert c.drop_beyond == pytest.approx(means[2] - (means[3] + means[4]) / 2)
    slopes = [np.polyfit(targets[:3], column, 1)[0] for column in returns[:3].T]
    assert c.slope[0] == pytest.approx(np.mean(slopes))
    assert c.slope[1][0] < c.slope[0] < c.slope[1][1]


def test_the_p_value_is_the_share_of_orders_at_least_as_telling():
    """Against every one of the 3!³ orders; 9,999 draws find the share to ± 5 · 0.005."""
    returns = np.array([[1.0, 5.0, 2.0], [2.0, 4.0, 2.0], [4.0, 9.0, 1.0]])
    asked = np.array([0.0, 1.0, 7.0])

    def page(blocks):
        return abs(sum(np.array([-1, 0, 1]) @ np.argsort(np.argsort(column)) for column in blocks))

    blocks = [[1.0, 2.0, 4.0], [5.0, 4.0, 9.0]]
    orders = itertools.product(*(itertools.permutations(column) for column in blocks))
    exact = np.mean([page(order) >= page(blocks) for order in orders])
    assert trend_p_value(asked, returns[:, :2]) == pytest.approx(exact, abs=0.025)


def test_of_deaf_policies_at_most_a_twentieth_are_not_told_so():
    """100 sweeps in which the target changes nothing but the noise. If the rate were 5 %, more than 14 missed ones have probability 10⁻⁴; the noise is
    skewed and differs from start to start, to which the test must be blind."""
    random, missed = np.random.default_rng(0), 0
    for _ in range(100):
        returns = random.exponential(size=(5, 6)) * random.uniform(0.1, 10, size=6)
        missed += trend_p_value(np.arange(5.0), np.round(returns, 1)) <= 0.05
    assert missed <= 14
    assert missed > 0, "a test that never errs would never warn of anything else either"


def test_a_policy_that_cannot_hear_is_told_so():
    starts = np.random.default_rng(1).normal(size=20)
    found = calibration([0, 5, 10, 15], np.tile(starts, (4, 1)))
    assert found.p_value == 1
    assert found.slope == (0.0, (0.0, 0.0))
    assert found.warning.startswith("conditioning has no effect")
    assert found.lines()[-1] == f"warning: {found.warning}"


@pytest.mark.parametrize(("gain", "says"), [(1.0, None), (-1.0, "wrong way"), (0.02, "little effect")])
def test_what_is_said_follows_the_slope(gain, says):
    noise = np.random.default_rng(2).normal(size=(3, 20)) / 50
    found = calibration([0, 5, 10], gain * np.array([[0], [5], [10]]) + noise)
    assert (found.warning is None) if says is None else (says in found.warning)


def test_the_report_of_a_sweep_survives_json_and_shows_its_numbers(tmp_path):
    targets = [TargetResult(t, [0.9 * t, 1.1 * t, t], [1, 2, 3]) for t in (1.0, 5.0, 10.0, 15.0)]
    report = Report("a/b-v0", None, 0, 3, targets, support=(1.0, 10.0))
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    value = json.loads((tmp_path / "report.json").read_text())["sweep"]
    assert (value["support"], value["rank_correlation"], value["warning"]) == ([1.0, 10.0], 1.0, None)
    assert value["mean_absolute_error"] == pytest.approx(0)
    assert "data's range: 1 (10 % quantile) … 10 (maximum)" in report.table()
    report.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.fixture
def run(random_trajectories, tmp_path):
    """A run on CartPole's spaces, of two updates."""
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    origin = Origin("test/cartpole-v0", env_spec=env.spec.to_json())
    data = random_trajectories([9, 5, 7], env.observation_space, env.action_space, origin=origin)
    dtrl.train(data, updates=2, batch_size=4, context_length=4, width=16, layers=1, logdir=tmp_path / "run")
    return tmp_path / "run"


def test_evaluate_sweep_prints_and_logs_into_the_run(run, tmp_path, capsys):
    asked = ["--sweep", "--points", "5", "--episodes", "3", "--context", "block"]
    assert main(["evaluate", str(run), *asked, "--json", str(tmp_path / "sweep.json")]) == 0
    assert "data's range" in capsys.readouterr().out
    value = json.loads((tmp_path / "sweep.json").read_text())
    policy = dtrl.load_policy(run, context="block")
    assert [t["target_return"] for t in value["targets"]] == sweep_targets(policy.data.return_quantiles, 5)
    assert value["sweep"] == sweep(policy, 5, 3).to_dict()["sweep"]
    log = EventAccumulator(str(run)).Reload()
    assert log.Scalars("sweep/p_value")[0].step == 2
    assert "sweep/asked_vs_achieved" in log.Tags()["images"]
    assert "train/loss" in log.Tags()["scalars"]
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["sweep/slope"] == value["sweep"]["slope"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sweep", "--target-returns", "5"], "--sweep chooses the returns"),
        (["--points", "5"], "--points 5 goes with --sweep"),
        (["--sweep", "--points", "2"], "points 2 are too few"),
    ],
)
def test_flags_that_contradict_a_sweep_are_refused(run, capsys, flags, says):
    assert main(["evaluate", str(run), *flags]) == 2
    assert says in capsys.readouterr().err
