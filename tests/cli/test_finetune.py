"""`dtrl finetune`: from one run to another, and on again, without a word about the data."""

import json
import tomllib

import gymnasium
import numpy as np
import pytest

import dtrl
from dtrl.cli import main
from dtrl.collect import write_minari
from dtrl.trajectories.columns import Origin

MODEL = ["--width", "8", "--layers", "1", "--context-length", "2", "--device", "cpu"]
SMALL = ["--round-updates", "2", "--round-episodes", "2", "--buffer-episodes", "5", "--batch-size", "4", "--eval-episodes", "1", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def corridor():
    """Six episodes of random actions in the corridor."""
    env, random = gymnasium.make("dtrl/Corridor-v0"), np.random.default_rng(0)
    episodes = []
    for seed in range(6):
        seen, steps = [env.reset(seed=seed)[0]], []
        while not (steps and steps[-1][2]):
            action = int(random.integers(3))
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            steps.append((action, reward, terminated, truncated))
        names = ("actions", "rewards", "terminations", "truncations")
        episodes.append({"observations": seen, **dict(zip(names, zip(*steps, strict=True), strict=True))})
    origin = Origin("corridor", env.spec.to_json())
    return dtrl.Trajectories.from_episodes(episodes, env.observation_space, env.action_space, origin=origin)


@pytest.fixture
def trained(corridor, tmp_path):
    """A run on a part of a dataset, as its filter says."""
    name = write_minari(corridor, "corridor/random-v0")
    arguments = ["train", name, *MODEL, "--updates", "2", "--max-length", "15", "--eval-episodes", "0"]
    assert main([*arguments, "--logdir", str(tmp_path / "run")]) == 0
    return str(tmp_path / "run")


def finetune(run, logdir, *arguments):
    return main(["finetune", run, "--logdir", str(logdir), *SMALL, *map(str, arguments)])


@pytest.mark.slow
def test_a_run_is_fine_tuned_and_resumed_on_its_own_data(trained, tmp_path, capsys):
    assert finetune(trained, tmp_path / "whole", "--updates", 5, "--eval-every", 4, "--json", tmp_path / "told.json") == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "after 0 updates: " in printed
    assert "after 5 updates: " in printed
    told = json.loads((tmp_path / "told.json").read_text())
    assert [evaluation["update"] for evaluation in told["evaluations"]] == [0, 4, 5]
    assert f"played 6 episodes ({told['online']['steps']} steps) and trained 5 updates" in printed
    config = tomllib.loads((tmp_path / "whole" / "config.toml").read_text())
    assert config["data"]["max_length"] == 15
    assert config["online"]["buffer_episodes"] == 5
    assert config["training"]["sampling"] == "step"
    assert config["model"]["width"] == 8

    assert finetune(trained, tmp_path / "parts", "--updates", 3) == 0
    resumed = ["finetune", trained, "--logdir", str(tmp_path / "parts"), "--resume", "--updates", "5"]
    assert main(resumed) == 0
    parts, whole = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("parts", "whole"))
    assert parts["parameters_sha256"] == whole["parameters_sha256"] == told["parameters_sha256"]
    assert parts["online"] == whole["online"]
    assert dtrl.load_policy(tmp_path / "parts").updates == 5


@pytest.mark.slow
def test_it_is_another_run_s_and_doctor_and_train_read_it(trained, tmp_path, capsys):
    new = tmp_path / "new"
    assert finetune(trained, new, "--updates", 2) == 0
    assert finetune(trained, new, "--updates", 2) == 2
    assert "already holds a run; go on with it by --resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--logdir", str(new), "--updates", "4"]) == 2
    assert "was begun by dtrl finetune, not train" in capsys.readouterr().err
    assert main(["doctor", str(new), "--episodes", "1"]) == 0
    again = ["train", "--config", str(new / "config.toml"), "--logdir", str(tmp_path / "again"), "--updates", "2"]
    assert main([*again, "--eval-episodes", "0"]) == 0


def test_a_run_of_train_is_not_resumed(trained, capsys):
    assert finetune(trained, trained, "--updates", 2, "--resume") == 2
    assert "was begun by dtrl train, not finetune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--explore-return", "nan"], "explore_return nan is not finite"),
        (["--env", "CartPole-v1"], "the observation space of the environment is"),
        (["--env", "NoSuch-v0"], "NoSuch"),
        (["--data", "no/such-v0"], "no/such-v0"),
        (["--holdout", "0.5"], "holdout needs data that stay as they are"),
        (["--eval-episodes", "-1"], "episodes (-1) at least 1"),
        (["--target-returns", "inf"], "must be finite numbers"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(trained, tmp_path, capsys, arguments, says):
    capsys.readouterr()
    assert finetune(trained, tmp_path / "new", "--updates", "2", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_deterministic_policy_and_an_export_are_refused(random_trajectories, untrained_policy, tmp_path, capsys):
    policy = untrained_policy(random_trajectories((4, 6)))
    policy.save(tmp_path / "policy.safetensors")
    cloned = untrained_policy(random_trajectories((4, 6)), preset="bc")
    dtrl.acting.ExportedPolicy.of(cloned, "numpy").save(tmp_path / "export.safetensors")
    write_minari(random_trajectories((4, 6)), "some/data-v0")
    for file, says in (("policy", "has a deterministic head"), ("export", "was exported to act")):
        arguments = ["--data", "some/data-v0", "--env", "Pendulum-v1", "--updates", "2"]
        assert finetune(str(tmp_path / f"{file}.safetensors"), tmp_path / "new", *arguments) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
