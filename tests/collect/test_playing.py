"""Episodes are the same whoever plays them, and those that were played are not played again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest

from dtrl.collect import make_dataset, playing
from dtrl.collect.playing import Player
from dtrl.errors import InputError
from dtrl.files import held

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")


def content_of(dataset_id):
    dataset = minari.load_dataset(dataset_id)
    seeds = [int(m["seed"]) for m in dataset.storage.get_episode_metadata(range(dataset.total_episodes))]
    columns = ("observations", "actions", "rewards", "terminations", "truncations")
    return seeds, [getattr(episode, name).tolist() for episode in dataset for name in columns]


def played_in(monkeypatch, stop_after=None):
    """The numbers of the episodes that are played; an interruption after so many of them."""
    numbers, play = [], playing.play

    def counted(env, act, seeds, options):
        if len(numbers) == stop_after:
            raise KeyboardInterrupt
        numbers.append(seeds[0])
        return play(env, act, seeds, options)

    monkeypatch.setattr(playing, "play", counted)
    return numbers


@pytest.mark.slow
def test_the_number_of_jobs_changes_nothing(recipe_of):
    make_dataset(recipe_of(TRAINED), dataset_id="tests/one-v0")
    make_dataset(recipe_of(TRAINED), dataset_id="tests/three-v0", jobs=3)
    assert content_of("tests/one-v0") == content_of("tests/three-v0")


def test_after_an_interruption_only_what_is_missing_is_played(recipe_of, monkeypatch, minari_folder):
    recipe = recipe_of(TRAINED)
    make_dataset(recipe, dataset_id="tests/whole-v0")
    with monkeypatch.context() as patch:
        played_in(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
            make_dataset(recipe)
    assert list(minari.list_local_datasets()) == ["tests/whole-v0"]
    with monkeypatch.context() as patch:
        again = played_in(patch)
        patch.setattr("dtrl.collect.training.train", lambda *_: 1 / 0)  # the training was over
        make_dataset(recipe)
    assert len(again) == 2
    assert content_of("tests/whole-v0") == content_of("tests/trained-v0")
    assert [path.name for path in minari_folder.iterdir() if path.name.startswith(".")] == []


def test_a_training_that_was_interrupted_begins_anew(recipe_of, monkeypatch):
    recipe = recipe_of(TRAINED)
    make_dataset(recipe, dataset_id="tests/whole-v0")
    with monkeypatch.context() as patch:
        patch.setattr("stable_baselines3.PPO.train", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_dataset(recipe)
    make_dataset(recipe)
    assert content_of("tests/whole-v0") == content_of("tests/trained-v0")


def test_what_another_recipe_left_is_not_used(recipe_of, monkeypatch):
    with monkeypatch.context() as patch:
        played_in(patch, stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(recipe_of(RANDOM))
    again = played_in(monkeypatch)
    make_dataset(recipe_of(RANDOM.replace("seed = 7", "seed = 8")))
    assert len(again) == 12


def test_more_episodes_begin_with_those_there_were(recipe_of):
    make_dataset(recipe_of(RANDOM), dataset_id="tests/few-v0")
    make_dataset(recipe_of(RANDOM.replace("12", "14")), dataset_id="tests/more-v0")
    few, more = content_of("tests/few-v0"), content_of("tests/more-v0")
    assert more[0][:12] == few[0]
    assert more[1][: len(few[1])] == few[1]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_it_goes_on(recipe_of, minari_folder, jobs):
    recipe = recipe_of(RANDOM.replace("12", "300"))
    code = f"import dtrl.collect as c; c.make_dataset(c.load_recipe({recipe.source!r}), jobs={jobs})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parents[1], start_new_session=True)
    folder = minari_folder / ".dtrl-make-tests+cartpole-v0" / "episodes"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("0-*.npz"))) < 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert minari.list_local_datasets() == {}
    while alive_in(process.pid) and time.monotonic() < deadline:  # the others follow their parent
        time.sleep(0.01)
    assert not alive_in(process.pid)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("0-*.npz")}
    assert 5 <= len(kept) < 50
    make_dataset(recipe, dataset_id="tests/whole-v0")
    untouched = {path: path.stat().st_mtime_ns for path in kept}
    make_dataset(recipe)
    assert untouched == kept
    assert content_of("tests/cartpole-v0") == content_of("tests/whole-v0")


def alive_in(session):
    """Whether a process of that session is alive; a zombie is not."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True, check=False
    ).stdout
    return any(not state.startswith("Z") for state in listed.split())


def test_a_dataset_that_is_being_made_is_not_made_twice(recipe_of, minari_folder):
    with held(minari_folder / ".dtrl-make-tests+cartpole-v0", "taken"):
        with pytest.raises(InputError, match="another process is making tests/cartpole-v0"):
            make_dataset(recipe_of(RANDOM))
    make_dataset(recipe_of(RANDOM))


def test_environments_that_other_processes_cannot_make_are_refused(recipe_of, monkeypatch):
    cartpole = gymnasium.registry["CartPole-v1"]
    monkeypatch.setitem(
        gymnasium.registry, "Own-v0", gymnasium.envs.registration.EnvSpec("Own-v0", lambda: gymnasium.make(cartpole))
    )
    recipe = recipe_of(RANDOM.replace("CartPole-v1", "Own-v0"))
    with pytest.raises(InputError, match=r"env 'Own-v0' is registered with an object of this process.*use one job"):
        make_dataset(recipe, jobs=2)
    with pytest.raises(InputError, match="jobs 0 must be 1 or more"):
        make_dataset(recipe, jobs=0)


def test_a_player_plays_what_another_plays(recipe_of, tmp_path):
    recipe, spec = recipe_of(RANDOM), gymnasium.spec("CartPole-v1")
    contents = []
    for numbers in (range(4), range(3, 4)):  # the last episode after three others, and alone
        Player(recipe, spec, {}).record(tmp_path / "it.npz", 0, numbers, lambda: None)
        with np.load(tmp_path / "it.npz") as archive:
            contents.append((archive["observations"][-archive["lengths"][-1] :], archive["seeds"][-1]))
    np.testing.assert_array_equal(contents[0][0], contents[1][0])
    assert contents[0][1] == contents[1][1]
