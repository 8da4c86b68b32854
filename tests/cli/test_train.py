"""`dtrl train`: what a run was told of its data is in its config.toml, and a resume needs no word of it."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

import dtrl
from dtrl.cli import main
from dtrl.collect import write_minari

SMALL = ["--width", "8", "--layers", "1", "--batch-size", "4", "--context-length", "2", "--device", "cpu"]  # fmt: skip
COLUMNS = ["--columns", "observation=x,v", "action=a", "reward=r", "episode=id"]


@pytest.fixture
def table(tmp_path):
    """A file of four episodes, which return 0, 3, 6 and 9; the last has a single step."""
    path = tmp_path / "walk.csv"
    lines = [f"{e},{t / 10},{e - t},{(e + t) % 2},{e}" for e in range(4) for t in range(3 if e < 3 else 1)]
    path.write_text("\n".join(["id,x,v,a,r", *lines, ""]).replace("3,0.0,3,1,3", "3,0.0,3,1,9"))
    return path


def config_of(run):
    return tomllib.loads((Path(run) / "config.toml").read_text())


def train(*arguments):
    return main(["train", *map(str, arguments), "--eval-episodes", "0"])


def test_a_run_on_a_file_is_resumed_without_a_word_about_its_data(table, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(table.parent)
    how = [*COLUMNS, "--short-episodes", "skip", "--min-return", "1", "--discount", "0.9"]
    assert train("walk.csv", *how, *SMALL, "--updates", "2", "--logdir", tmp_path / "run") == 0
    assert config_of("run")["data"] == {
        "datasets": [str(table)],
        "columns": {"observation": ["x", "v"], "action": ["a"], "reward": ["r"], "episode": ["id"]},
        "short_episodes": "skip",
        "min_return": 1.0,
        "endings": "all",
        "discount": 0.9,
        "delayed": False,
    }
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train("--resume", "--updates", "4", "--logdir", tmp_path / "run") == 0
    resumed = json.loads((tmp_path / "run" / "result.json").read_text())
    assert train(table, *how, *SMALL, "--updates", "4", "--logdir", tmp_path / "whole") == 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert resumed["updates"] == 4
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert resumed["dataset_sha256"] == whole["dataset_sha256"]


def test_another_run_may_be_begun_from_its_config_alone(table, tmp_path):
    assert train(table, *COLUMNS, "--max-length", "3", "--min-length", "2", *SMALL, "--updates", "2", "--logdir", tmp_path / "a") == 0  # fmt: skip
    assert train("--config", tmp_path / "a" / "config.toml", "--logdir", tmp_path / "b") == 0
    assert config_of(tmp_path / "a") == config_of(tmp_path / "b")


def test_other_data_than_the_run_s_are_refused_in_one_sentence(random_trajectories, capsys, tmp_path):
    names = [write_minari(random_trajectories((4, 6), seed=i), f"mine/set{i}-v0") for i in range(3)]
    run = tmp_path / "run"
    assert train(*names[:2], "--weights", "1", "3", *SMALL, "--updates", "2", "--logdir", run) == 0
    for other, message in (
        (["--min-return", "0"], "min_return None → 0.0"),
        (["--short-episodes", "keep"], "short_episodes refuse → keep"),
        (["--weights", "3", "1"], "weights (1.0, 3.0) → (3.0, 1.0)"),
        ([names[1], names[2]], "('mine/set1-v0', 'mine/set2-v0')"),
        (["--discount", "0.5"], "discount 1.0 → 0.5"),
    ):
        capsys.readouterr()
        assert train(*other, "--resume", "--updates", "3", "--logdir", run) == 2
        error = capsys.readouterr().err
        assert f"{run} was begun on other data (" in error
        assert message in error
        assert error.count("\n") == 1
    assert train(*names[:2], "--weights", "1", "3", "--resume", "--updates", "3", "--logdir", run) == 0
    assert dtrl.load_policy(run).updates == 3


def test_named_datasets_win_over_those_of_a_config_with_their_weights(random_trajectories, tmp_path):
    names = [write_minari(random_trajectories((4, 6), seed=i), f"mine/set{i}-v0") for i in range(2)]
    assert train(*names, "--weights", "1", "3", "--discount", "0.9", *SMALL, "--updates", "1", "--logdir", tmp_path / "a") == 0  # fmt: skip
    config = ["--config", tmp_path / "a" / "config.toml"]
    assert train(names[0], *config, "--logdir", tmp_path / "b") == 0
    assert config_of(tmp_path / "b")["data"]["datasets"] == [names[0]]
    assert "weights" not in config_of(tmp_path / "b")["data"]
    assert config_of(tmp_path / "b")["data"]["discount"] == 0.9


def test_a_run_on_arrays_says_nothing_of_files_and_its_resume_needs_them(random_trajectories, tmp_path, capsys):
    data = random_trajectories((4, 6))
    dtrl.train(data, updates=1, logdir=tmp_path / "run", width=8, layers=1, context_length=2)
    assert config_of(tmp_path / "run")["data"] == {"discount": 1.0, "delayed": False}
    assert train("--resume", "--logdir", tmp_path / "run") == 2
    assert "was trained on data made in Python; resume it there" in capsys.readouterr().err
    assert main(["finetune", str(tmp_path / "run"), "--logdir", str(tmp_path / "tuned")]) == 2
    assert "were made in Python and have no name; name a dataset with --data" in capsys.readouterr().err


def test_what_is_not_there_to_be_resumed_is_told(tmp_path, capsys):
    assert train("--resume", "--logdir", tmp_path / "run") == 2
    assert f"there is no run in {tmp_path / 'run'} to resume" in capsys.readouterr().err
    assert train("--logdir", tmp_path / "run") == 2
    assert "no dataset was named" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_a_selection_of_its_data(random_trajectories, tmp_path):
    name = write_minari(random_trajectories((4, 6, 5)), "mine/set-v0")
    data = dtrl.load_trajectories(name)
    small = {"width": 8, "layers": 1, "context_length": 2, "logdir": tmp_path / "run"}
    dtrl.train(data.select([0, 1]), updates=1, **small)
    assert "datasets" not in config_of(tmp_path / "run")["data"]
    for other in (data, data.select([0, 2])):
        with pytest.raises(dtrl.InputError, match="these data are others"):
            dtrl.train(other, updates=2, resume=True, **small)
    assert dtrl.train(data.select(np.array([0, 1])), updates=2, resume=True, **small).updates == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\ndatasets = [3]", "datasets [3] must be a list of texts"),
        ("[data]\ndatasets = ['a/b-v0']\nweights = ['x']", "weights ['x'] must be numbers"),
        ("[data]\ndatasets = ['a/b-v0']\nformat = 3", "format 3 is no text"),
        ("[data]\ndatasets = ['a/b-v0']\ncolumns = ['x']", "columns ['x'] are no mapping"),
        ("[data]\ndatasets = ['a/b-v0']\ncolumns = {action = 'a'}", "the columns of action 'a' must be a list"),
        ("[data]\ndataset = 'a/b-v0'", "has no use for 'dataset' in [data]; did you mean 'datasets'?"),
    ],
)
def test_wrong_data_in_a_config_are_named(tmp_path, capsys, text, message):
    (tmp_path / "c.toml").write_text(text)
    assert train("--config", tmp_path / "c.toml", "--logdir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
