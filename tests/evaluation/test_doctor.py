"""`dtrl doctor`: what it examines, what it says where it can't, and what it refuses."""

import json

import gymnasium
import numpy as np
import pytest

import dtrl
from dtrl.cli import main
from dtrl.errors import InputError
from dtrl.evaluation.doctor import examine
from dtrl.trajectories.seeds import recorded_seeds

METERS = {
    "sensitivity to the target",
    "action history",
    "exposure bias",
    "repetition",
    "returns out of support",
    "observations out of support",
    "state drift",
}


@pytest.fixture
def dataset():
    """Eight recorded episodes of CartPole, with their seeds."""
    env = dtrl.Recorder(gymnasium.make("CartPole-v1"), "cartpole/tiny-v0")
    for seed in range(8):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        done = False
        while not done:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            done = terminated or truncated
    env.close()
    return "cartpole/tiny-v0"


@pytest.fixture
def run(dataset, tmp_path):
    options = {"updates": 2, "batch_size": 4, "context_length": 4, "width": 16, "layers": 1}
    dtrl.train(dtrl.load_trajectories(dataset), logdir=tmp_path / "run", **options)
    return tmp_path / "run"


def examined(run, *flags):
    assert main(["doctor", str(run), "--episodes", "2", "--json", "doctor.json", *flags]) == 0
    with open("doctor.json") as file:
        return {finding["meter"]: finding for finding in json.load(file)["findings"]}


def test_every_meter_reads_a_run(run, capsys):
    found = examined(run)
    assert set(found) >= METERS
    assert all(found[name]["fine"] is not None for name in METERS)
    assert 0 <= found["state drift"]["numbers"]["drift"]
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in METERS)


def test_episodes_that_were_held_out_are_compared_with(dataset, run, tmp_path):
    options = {"updates": 4, "batch_size": 4, "context_length": 4, "width": 16, "layers": 1, "log_every": 2}
    dtrl.train(dtrl.load_trajectories(dataset), logdir=tmp_path / "apart", holdout=0.4, **options)
    apart = examined(tmp_path / "apart")["memorisation"]
    assert apart["fine"] is not None
    assert apart["numbers"]["updates"] == 4
    assert "on 3 that were held out" in apart["says"]
    for known, says in (
        (examined(run), "--holdout 0.1"),
        (examined(tmp_path / "apart", "--data", dataset), "its own data alone"),
    ):
        assert known["memorisation"]["fine"] is None
        assert says in known["memorisation"]["says"]


@pytest.mark.slow
def test_the_same_seed_finds_the_same(run):
    assert examined(run) == examined(run)


def test_without_data_it_says_so(run, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    (finding,) = examined(run).values()
    assert finding["fine"] is None
    assert "dataset 'cartpole/tiny-v0' is not in elsewhere" in finding["says"]


def test_named_data_that_are_not_there_are_refused(run, capsys):
    assert main(["doctor", str(run), "--data", "no/such-v0"]) == 2
    assert "no/such-v0" in capsys.readouterr().err


def test_without_the_environment_it_reads_what_it_can(run, dataset):
    found = examined(run, "--env", "NoSuch-v0")
    assert found["exposure bias"]["fine"] is not None
    assert found["episodes"]["fine"] is None
    assert "NoSuch-v0" in found["episodes"]["says"]


def test_actions_of_another_environment_are_not_played(run):
    found = examined(run, "--env", "Pendulum-v1")
    assert found["exposure bias"]["fine"] is not None
    assert "the action space of the environment is Box" in found["state drift"]["says"]


def test_a_folder_that_is_no_run_and_a_critic_are_told_as_such(run, dataset, tmp_path, capsys):
    assert main(["doctor", str(run.parent)]) == 2
    assert f"{run.parent} holds no checkpoint, as a run does" in capsys.readouterr().err
    critic = str(tmp_path / "critic.safetensors")
    assert main(["critic", dataset, "--output", critic, "--updates", "1"]) == 0
    assert main(["doctor", critic]) == 2
    assert "is a critic and no policy" in capsys.readouterr().err


def test_the_seeds_are_those_that_were_recorded(dataset):
    whole = dtrl.load_trajectories(dataset)
    assert recorded_seeds(whole) == list(range(8))
    again = gymnasium.make("CartPole-v1")
    starts = np.stack([again.reset(seed=seed)[0] for seed in range(8)])
    np.testing.assert_array_equal(whole.observations[whole.episode_starts], starts)
    assert recorded_seeds(whole.select([0, 1])) is None
    assert recorded_seeds(dtrl.load_trajectories(dataset, min_length=1)) is None


def test_a_dataset_is_judged_before_training(dataset, capsys):
    assert main(["doctor", dataset, "--context-length", "400"]) == 0
    assert "context_length 400 is longer than 100% of the episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--context-length", "4"], "context_length goes with a dataset"),
        (["--episodes", "0"], r"episodes (0) must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(run, capsys, flags, says):
    assert main(["doctor", str(run), *flags]) == 2
    assert says in capsys.readouterr().err


def test_flags_of_a_policy_are_refused_for_a_dataset(dataset, capsys):
    assert main(["doctor", dataset, "--target-return", "5"]) == 2
    assert "go with a policy" in capsys.readouterr().err


def test_data_of_other_spaces_are_refused(run, random_trajectories):
    with pytest.raises(InputError, match="other spaces than the policy's data"):
        examine(dtrl.load_policy(run), random_trajectories([5, 5]))
