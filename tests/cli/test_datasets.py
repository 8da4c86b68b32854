"""`dtrl datasets import`: a file becomes a dataset that loads as the file does, and what was assumed is printed."""

import json

import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.cli import main
from dtrl.trajectories import local_datasets

TABLE = "id,x,v,a,r\n1,0.5,1,0,1\n1,0.25,2,1,1\n2,0,3,1,0\n2,0,4,0,2\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text(TABLE)
    return path


COLUMNS = ["--columns", "observation=x,v", "action=a", "reward=r", "episode=id"]


def test_import_makes_a_dataset_and_says_what_was_assumed(table, tmp_path, capsys):
    arguments = [
        "datasets",
        "import",
        str(table),
        "--as",
        "mine/walk-v0",
        *COLUMNS,
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for line in (
        "a table in CSV (csv, by its content)",
        "observation = x, v",
        "no terminal column",
        "int64, kept as float32",
        "mine/walk-v0",
    ):
        assert line in printed
    made = dtrl.load_trajectories("mine/walk-v0")
    read = dtrl.load_trajectories(
        table, columns={"observation": ["x", "v"], "action": ["a"], "reward": ["r"], "episode": ["id"]}
    )
    for name, values in read.columns.items():
        np.testing.assert_array_equal(made.columns[name], values)
    assert made.action_space == spaces.Discrete(2)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["num_episodes"] == 2
    assert "walk.csv" not in written["assumed"]["format"]


def test_import_with_an_environment_remembers_it(random_trajectories, tmp_path):
    data = random_trajectories((4, 6), spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    steps = {
        name: np.asarray(data.columns[name])
        for name in ("observations", "actions", "rewards", "terminations", "truncations")
    }
    np.savez(tmp_path / "pole.npz", **steps)
    assert main(["datasets", "import", str(tmp_path / "pole.npz"), "--as", "mine/pole-v0", "--env", "CartPole-v1"]) == 0
    made = dtrl.load_trajectories("mine/pole-v0")
    assert json.loads(made.origin.env_spec)["id"] == "CartPole-v1"
    assert made.observation_space.shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk.csv", "--as", "mine/walk-v0"], "no column of walk.csv is named as observation"),
        (["walk.csv", "--as", "walk", *COLUMNS], "'walk' is no Minari dataset id"),
        (["nowhere.csv", "--as", "mine/walk-v0"], "nowhere.csv cannot be read"),
        (["walk.csv", "--as", "mine/walk-v0", "--columns", "x"], "--columns 'x' is not ROLE=COLUMN"),
        (["walk.csv", "--as", "mine/walk-v0", "--columns", "reward=r", "reward=a"], "names reward twice"),
        (["walk.csv", "--as", "mine/walk-v0", "--from", "cvs"], "there is no format 'cvs'; did you mean 'csv'"),
        (["walk.csv", "--as", "mine/walk-v0", "--env", "CartPole-v9", *COLUMNS], "environment 'CartPole-v9' cannot be made"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_nothing(table, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(table.parent)
    assert main(["datasets", "import", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not local_datasets()


def test_a_dataset_that_exists_is_kept_unless_it_may_be_replaced(table, capsys):
    arguments = ["datasets", "import", str(table), "--as", "mine/walk-v0", *COLUMNS]
    assert main(arguments) == 0
    table.write_text(TABLE.replace("2,0,4,0,2\n", "2,0,4,0,9\n"))
    assert main(arguments) == 2
    assert "the dataset mine/walk-v0 exists" in capsys.readouterr().err
    assert dtrl.load_trajectories("mine/walk-v0").rewards[-1] == 2
    assert main([*arguments, "--overwrite"]) == 0
    assert dtrl.load_trajectories("mine/walk-v0").rewards[-1] == 9


def test_show_reads_a_file_as_import_does(table, capsys):
    assert main(["datasets", "show", str(table), *COLUMNS, "--from", "csv", "--min-return", "2"]) == 0
    printed = capsys.readouterr().out
    assert "episodes       2 (" in printed
    assert "Box(-inf, inf, (2,), float32)" in printed
    assert main(["datasets", "show", str(table), *COLUMNS, "--env", "CartPole-v1"]) == 2
    assert "observations of" in capsys.readouterr().err


def test_columns_are_for_files_which_may_stand_beside_a_dataset(table, capsys):
    assert main(["datasets", "import", str(table), "--as", "mine/walk-v0", *COLUMNS]) == 0
    assert main(["datasets", "show", "mine/walk-v0", *COLUMNS]) == 2
    assert "format, env and columns are for files, and mine/walk-v0 is none" in capsys.readouterr().err
    assert main(["datasets", "show", "mine/walk-v0", str(table), *COLUMNS]) == 0
    assert "episodes       4 (" in capsys.readouterr().out


def test_make_shows_a_dataset_with_episodes_of_one_step(tmp_path, capsys):
    (tmp_path / "cards.toml").write_text(
        'id = "mine/cards-v0"\nenv = "Blackjack-v1"\nseed = 0\ndescription = "Chance."\n[[behaviour]]\npolicy = "random"\nepisodes = 5\n'
    )
    assert main(["datasets", "make", str(tmp_path / "cards.toml")]) == 0
    assert "mine/cards-v0" in capsys.readouterr().out
    assert dtrl.load_trajectories("mine/cards-v0", short_episodes="keep").episode_lengths.min() == 1
