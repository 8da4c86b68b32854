"""Flags of several verbs, above all `--import MODULE`: an environment of the user's own, wherever one is made."""

import json
import shlex
import subprocess
import sys

import gymnasium
import minari
import pytest

from dtrl.cli import main, make_parser
from dtrl.collect import load_recipe, make_dataset
from dtrl.errors import InputError

ROOMS = """
import gymnasium
import numpy as np


class Room(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.degrees = self.np_random.uniform(18, 22)
        return np.float32([self.degrees]), {}

    def step(self, action):
        self.degrees += 1 if action else -1
        return np.float32([self.degrees]), -abs(self.degrees - 20), False, False, {}

    def demonstrate(self):
        return int(self.degrees < 20)


gymnasium.register("OwnRoom-v0", "own_rooms:Room", max_episode_steps=5)
gymnasium.register("OwnRoomObject-v0", Room, max_episode_steps=5)
"""
RECIPE = """
id = "tests/room-v0"
env = "%s"
seed = 0
description = "For tests."
[[behaviour]]
policy = "demonstrator"
epsilon = 0.3
episodes = 6
"""


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """A working directory with a module that registers environments, and a recipe for one of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rooms.py").write_text(ROOMS)
    (tmp_path / "room.toml").write_text(RECIPE % "OwnRoom-v0")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_rooms", None)
    for name in ("OwnRoom-v0", "OwnRoomObject-v0"):
        gymnasium.registry.pop(name, None)


def dtrl(line):
    """As the command `dtrl` runs, without the working directory on the path of modules."""
    code = "import sys; from dtrl.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *shlex.split(line)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_verb_that_makes_environments_takes_a_module(rooms):
    for line in (
        "datasets make room.toml --jobs 2 --import own_rooms",
        "datasets reference OwnRoom-v0 --episodes 2 --import own_rooms --import json",
        "train tests/room-v0 --logdir run --updates 2 --eval-episodes 1 --context-length 2 --width 16 --import own_rooms",
        "evaluate run --target-returns -5 --episodes 1 --json result.json --import own_rooms --env-workers 1",
    ):
        done = dtrl(line)
        assert done.returncode == 0, done.stderr
    result = json.loads((rooms / "result.json").read_text())
    assert (result["env"], result["timing"]["env_workers"]) == ("OwnRoom-v0", 1)
    assert "environment 0.0 s in 1 worker, this process waited" in done.stdout
    done = dtrl("evaluate run --target-returns -5 --episodes 1")
    assert done.returncode == 2
    assert (
        "environment 'OwnRoom-v0' is not registered with Gymnasium: import the package that registers it (on the command line, --import PACKAGE)"
        in done.stderr
    )


@pytest.mark.slow
def test_processes_play_what_the_module_registers_with_an_object(rooms):
    (rooms / "room.toml").write_text(RECIPE % "OwnRoomObject-v0")
    recipe = load_recipe("room.toml")
    values = []
    for jobs in (1, 2):
        with pytest.warns(UserWarning, match="does not name its environment"):
            make_dataset(recipe, jobs=jobs, modules=["own_rooms"], overwrite=True)
        values.append([episode.observations.tolist() for episode in minari.load_dataset("tests/room-v0")])
    assert values[0] == values[1]
    gymnasium.register("OwnRoomHere-v0", sys.modules["own_rooms"].Room, max_episode_steps=5)
    (rooms / "room.toml").write_text(RECIPE % "OwnRoomHere-v0")
    with pytest.raises(InputError, match="environment 'OwnRoomHere-v0' is not registered"):
        make_dataset(load_recipe("room.toml"), jobs=2, modules=["own_rooms"], overwrite=True)
    gymnasium.registry.pop("OwnRoomHere-v0")


def test_a_module_is_imported_before_anything_else(rooms, capsys):
    assert main(["datasets", "reference", "OwnRoom-v0", "--episodes", "1", "--import", "own_rooms"]) == 0
    assert "reference returns of OwnRoom-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["datasets make x.toml", "datasets show x.csv", "datasets reference X-v0", "datasets import x.csv --as a/b-v0", "train x --logdir run", "evaluate run"],
)  # fmt: skip
def test_a_module_that_is_not_there_is_one_sentence_and_leaves_nothing(rooms, capsys, line):
    before = sorted(rooms.iterdir())
    assert main([*line.split(), "--import", "own_romms"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dtrl: there is no module 'own_romms' to import; ")
    assert error.count("\n") == 1
    assert sorted(rooms.iterdir()) == before


def test_the_flag_is_absent_where_no_environment_is_made(capsys):
    with pytest.raises(SystemExit):
        main(["datasets", "list", "--import", "own_rooms"])
    assert "unrecognized arguments: --import own_rooms" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["-1e3", "-1000", "-.1e4", "-1_000"])
def test_a_negative_number_is_no_flag(written):
    parsed = make_parser().parse_args(["evaluate", "run", "--target-returns", written, "5"])
    assert parsed.target_returns == [-1000.0, 5.0]


def test_results_that_cannot_be_written_are_refused_before_the_work(tmp_path, capsys):
    for flag in ("--json", "--plot"):
        assert main(["evaluate", "run", flag, str(tmp_path)]) == 2
        assert f"{tmp_path} cannot be written (Is a directory)" in capsys.readouterr().err
    assert main(["critic", "no/such-v0", "--output", str(tmp_path)]) == 2
    assert f"{tmp_path} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "2.5", "many"])
def test_a_wrong_number_of_workers_is_one_sentence(capsys, value):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "run", "--env-workers", value])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"dtrl evaluate: argument --env-workers: '{value}' is neither a number of processes from 0 nor auto;"
    )
    assert error.count("\n") == 1
