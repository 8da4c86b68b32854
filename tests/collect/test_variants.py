"""Recipes from recipes: of another size, and with policies of files in place of a training."""

import json
from pathlib import Path

import minari
import numpy as np
import pytest

from dtrl.cli import main
from dtrl.collect import PolicyFile, list_recipes, load_recipe, make_dataset, resized, with_policies
from dtrl.collect.array_policy import snapshots_of
from dtrl.errors import InputError
from dtrl.trajectories import load_trajectories

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
FAMILY = """
id = "tests/%s-v0"
env = "CartPole-v1"
seed = 0
description = "For tests."
algorithm = { name = "DQN", timesteps = 900, checkpoints = [300, 900] }
%s
"""
MEDIUM = '[[behaviour]]\npolicy = "checkpoint"\ncheckpoint = 300\nsteps = 400\nepsilon = 0.1\n'
EXPERT = '[[behaviour]]\npolicy = "checkpoint"\ncheckpoint = 900\nsteps = 400\n'
REPLAY = '[[behaviour]]\npolicy = "replay"\ncheckpoint = 300\n'


def arrays_of(skill):
    """A policy of CartPole that pushes to where the pole leans, or, without skill, to the other side."""
    lean = skill * np.array([[0.0], [0.0], [1.0], [0.5]])
    return {"W0": np.hstack([-lean, lean]), "b0": np.zeros(2), "act": "tanh", "head": "argmax"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A good policy, and three along a training run, in the working directory; recipes of a family beside them."""
    monkeypatch.chdir(tmp_path)
    np.savez("good.npz", **arrays_of(1))
    snapshots = {"it2": -1, "it10": 0.1, "it100": 1}
    np.savez("run.npz", **{f"{n}/{key}": v for n, skill in snapshots.items() for key, v in arrays_of(skill).items()})
    for name, behaviours in (
        ("medium", MEDIUM),
        ("expert", EXPERT),
        ("medium-expert", MEDIUM + EXPERT),
        ("replay", REPLAY),
    ):
        Path(f"{name}.toml").write_text(FAMILY % (name, behaviours))
    return tmp_path


def episodes_by_policy(dataset_id):
    dataset = minari.load_dataset(dataset_id)
    found = {}
    for metadata in dataset.storage.get_episode_metadata(range(dataset.total_episodes)):
        found.setdefault(metadata["behaviour"], []).append(int(metadata["total_steps"]))
    return found


def test_snapshots_are_in_the_order_of_their_numbers(files):
    assert snapshots_of(Path("run.npz")) == ["it2", "it10", "it100"]
    assert snapshots_of(Path("good.npz")) == []


def test_policies_of_files_play_in_place_of_checkpoints(files):
    recipe = with_policies(
        load_recipe("medium-expert.toml"),
        [PolicyFile(Path("run.npz"), "it2", 300), PolicyFile(Path("good.npz"), None, 900)],
    )
    assert recipe.algorithm is None
    found = episodes_by_policy(make_dataset(recipe))
    assert list(found) == ["run it2, epsilon 0.1", "good"]
    assert all(400 <= sum(lengths) < 900 for lengths in found.values())
    assert max(found["run it2, epsilon 0.1"]) < 30  # it pushes to the wrong side
    assert found["good"][0] > 150


def test_a_replay_buffer_is_imitated_by_the_snapshots_up_to_one(files):
    whole = with_policies(
        load_recipe("replay.toml"), [PolicyFile(Path("run.npz")), PolicyFile(Path("good.npz"), None, 900)]
    )
    assert [(b.snapshot, b.steps) for b in whole.behaviour] == [("it2", 100), ("it10", 100), ("it100", 100)]
    until = with_policies(load_recipe("replay.toml"), [PolicyFile(Path("run.npz"), "it10")])
    assert [(b.snapshot, b.steps) for b in until.behaviour] == [("it2", 150), ("it10", 150)]
    found = episodes_by_policy(make_dataset(resized(whole, steps=1_500)))
    assert list(found) == ["run it2", "run it10", "run it100"]
    assert sum(map(sum, found.values())) >= 1_500


def test_a_replay_buffer_of_a_training_may_be_larger_when_it_is_imitated(files):
    with pytest.raises(InputError, match="a replay buffer of 300 steps cannot give 1000"):
        resized(load_recipe("replay.toml"), steps=1_000)
    recipe = resized(with_policies(load_recipe("replay.toml"), [PolicyFile(Path("run.npz"))]), steps=1_000)
    assert load_trajectories(make_dataset(recipe)).num_steps >= 1_000


def test_each_has_an_id_of_its_own(files):
    recipe = load_recipe("expert.toml")
    other = with_policies(recipe, [PolicyFile(Path("good.npz"))])
    ids = [r.id for r in (recipe, resized(recipe, steps=70), other, resized(other, episodes=7), resized(recipe))]
    assert ids == [
        "tests/expert-v0", "tests/expert-70-steps-v0", "tests/expert-files-v0", "tests/expert-files-7-episodes-v0", "tests/expert-v0",
    ]  # fmt: skip
    assert with_policies(recipe, []) is recipe


def test_the_metadata_tell_the_files_but_not_where_they_lay(files):
    recipe = with_policies(load_recipe("expert.toml"), [PolicyFile(Path("good.npz"))])
    metadata = minari.load_dataset(make_dataset(recipe)).storage.metadata
    assert metadata["recipe"]["behaviour"][0]["path"] == "good.npz"
    assert list(metadata["policy_files"]) == ["good.npz"]
    assert metadata["recipe_sha256"] is None
    assert "nothing was trained" in metadata["description"]
    assert str(files) not in str(metadata)


def test_two_files_of_one_name_are_told_apart(files):
    (files / "other").mkdir()
    np.savez("other/good.npz", **arrays_of(0.5))
    chosen = [PolicyFile(Path("good.npz"), None, 300), PolicyFile(Path("other/good.npz"), None, 900)]
    metadata = minari.load_dataset(
        make_dataset(with_policies(load_recipe("medium-expert.toml"), chosen))
    ).storage.metadata
    assert len(set(metadata["policy_files"].values())) == 2


def test_one_command_makes_a_whole_family(files, capsys):
    names = ["medium", "expert", "medium-expert", "replay"]
    flags = ["--policy", "300=run.npz:it10", "900=good.npz", "--steps", "100", "--json", "out.json"]
    assert main(["datasets", "make", *(f"{name}.toml" for name in names), *flags]) == 0
    printed, written = capsys.readouterr().out, json.loads(Path("out.json").read_text())["datasets"]
    for name, each in zip(names, written, strict=True):
        assert each["dataset"] == f"tests/{name}-files-100-steps-v0"
        assert each["dataset"] in printed
        assert 100 <= load_trajectories(each["dataset"]).num_steps < 100 + 500


def test_a_size_alone_needs_no_policies(files, capsys):
    Path("random.toml").write_text(RANDOM)
    assert main(["datasets", "make", "random.toml", "--episodes", "1_0"]) == 0
    assert load_trajectories("tests/cartpole-10-episodes-v0").num_episodes == 10
    assert main(["datasets", "make", "random.toml", "--steps", "50", "--as", "tests/mine-v0"]) == 0
    assert "tests/mine-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random.toml", "--policy", "good.npz"], "random.toml: nothing is trained, so no policy can stand for what is"),
        (["expert.toml", "--policy", "good"], "policy 'good' is not [STEP=]FILE[:SNAPSHOT]"),
        (["expert.toml", "--policy", "600=good.npz"], "--policy 600=good.npz stands for no checkpoint of the recipe; choose of [900]"),
        (["medium-expert.toml", "--policy", "good.npz"], "the checkpoints are [300, 900]; say for which good.npz stands, as in 300=good.npz"),
        (["medium-expert.toml", "--policy", "300=good.npz"], "no policy stands for checkpoint 900; add --policy 900=FILE"),
        (["expert.toml", "--policy", "900=good.npz", "900=run.npz:it2"], "good.npz and run.npz both stand for checkpoint 900"),
        (["expert.toml", "--policy", "run.npz"], "run.npz holds several policies; choose one with snapshot"),
        (["expert.toml", "--policy", "run.npz:it3"], "holds no snapshot 'it3'; did you mean 'it2'"),
        (["replay.toml", "--policy", "run.npz:it3"], "run.npz holds no snapshot 'it3'; did you mean 'it2'"),
        (["replay.toml", "--policy", "good.npz"], "and good.npz does not hold several; give a file that does"),
        (["expert.toml", "--policy", "nowhere.npz"], "nowhere.npz cannot be read"),
        (["replay.toml", "--policy", "nowhere.npz"], "nowhere.npz cannot be read"),
        (["random.toml", "--steps", "0"], "steps 0 of the dataset must be 1 or more"),
        (["random.toml", "--steps", "3", "--episodes", "3"], "to have 3 episodes and 3 steps; give one of the two"),
        (["random.toml", "expert.toml", "--as", "a/b-v0"], "--as a/b-v0 names one dataset, and 2 are made"),
        (["random.toml", "random.toml"], "make the same dataset; name each once"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence_and_leaves_nothing(files, capsys, arguments, message):
    Path("random.toml").write_text(RANDOM)
    assert main(["datasets", "make", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert minari.list_local_datasets() == {}


def test_an_existing_dataset_stops_a_family_before_anything_is_played(files, capsys):
    flags = ["--policy", "300=run.npz:it10", "900=good.npz", "--episodes", "2"]
    assert main(["datasets", "make", "medium-expert.toml", *flags]) == 0
    assert main(["datasets", "make", "expert.toml", "medium-expert.toml", *flags]) == 2
    assert "tests/medium-expert-files-2-episodes-v0 exists" in capsys.readouterr().err
    assert list(minari.list_local_datasets()) == ["tests/medium-expert-files-2-episodes-v0"]


# The recipes that come with dtrl


@pytest.mark.parametrize("env", ["hopper", "halfcheetah", "walker2d"])
def test_a_medium_expert_set_is_the_two_half_and_half(env):
    medium, expert, both = (load_recipe(f"{env}-{kind}") for kind in ("medium", "expert", "medium-expert"))
    assert both.behaviour == medium.behaviour + expert.behaviour
    assert {b.steps for b in both.behaviour} == {1_000_000}
    assert both.algorithm.options == expert.algorithm.options
    replay = load_recipe(f"{env}-medium-replay")
    assert replay.algorithm == medium.algorithm


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("hopper")])
def test_shipped_recipes_are_made_of_array_policies_without_training(name, tmp_path):
    pytest.importorskip("mujoco")
    random = np.random.default_rng(0)

    def arrays():
        layers = {"W0": random.normal(size=(11, 3)), "b0": np.zeros(3), "log_std": np.zeros(3)}
        return layers | {"act": "tanh", "head": "box_clip"}

    np.savez(tmp_path / "run.npz", **{f"it{i}/{key}": v for i in range(3) for key, v in arrays().items()})
    files = [PolicyFile(tmp_path / "run.npz", "it1", 200_000), PolicyFile(tmp_path / "run.npz", "it2", 1_000_000)]
    trajectories = load_trajectories(make_dataset(resized(with_policies(load_recipe(name), files), steps=300)))
    assert trajectories.num_steps >= 300
    assert json.loads(trajectories.origin.env_spec)["id"] == "Hopper-v5"
