"""A dataset has the size that was asked for, in steps or in episodes, with its behaviours in proportion, whoever plays it."""

import dataclasses
import json
from pathlib import Path

import minari
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrl.collect import Behaviour, Recipe, make_dataset, playing
from dtrl.collect.playing import PIECE, pieces
from dtrl.collect.sizes import counts_of, spread
from dtrl.errors import InputError
from dtrl.trajectories import load_trajectories

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
MIXED = """
id = "tests/mixed-v0"
env = "CartPole-v1"
seed = 3
description = "For tests."
[[behaviour]]
policy = "file"
path = "lean.npz"
%s
[[behaviour]]
policy = "random"
%s
"""
REPLAY = """
id = "tests/replay-v0"
env = "CartPole-v1"
seed = 5
description = "For tests."
algorithm = { name = "DQN", timesteps = 400, checkpoints = [400], options = { learning_starts = 390, buffer_size = 500 } }
[[behaviour]]
policy = "replay"
checkpoint = 400
"""


def mixed(recipe_of, tmp_path, first, second, total=""):
    lean = np.array([[0.0], [0.0], [1.0], [0.5]])
    arrays = {"W0": np.hstack([-lean, lean]), "b0": np.zeros(2), "act": "tanh", "head": "argmax"}
    np.savez(tmp_path / "lean.npz", **arrays)
    return recipe_of(total + MIXED % (first, second))


def steps_by_behaviour(dataset_id):
    dataset = minari.load_dataset(dataset_id)
    found = {}
    for metadata in dataset.storage.get_episode_metadata(range(dataset.total_episodes)):
        found.setdefault(metadata["policy"], []).append(int(metadata["total_steps"]))
    return found


def test_a_behaviour_of_so_many_steps_plays_as_few_episodes_as_have_them(recipe_of, tmp_path):
    made = make_dataset(mixed(recipe_of, tmp_path, "steps = 1_200", "steps = 300"))
    for policy, steps in (("lean", 1_200), ("random", 300)):
        lengths = steps_by_behaviour(made)[policy]
        assert sum(lengths[:-1]) < steps <= sum(lengths)


def test_the_episodes_of_a_size_in_steps_are_those_of_a_size_in_episodes(recipe_of):
    make_dataset(recipe_of(RANDOM.replace("episodes = 12", "steps = 200")), dataset_id="tests/steps-v0")
    count = load_trajectories("tests/steps-v0").num_episodes
    make_dataset(recipe_of(RANDOM.replace("12", str(count))), dataset_id="tests/episodes-v0")
    one, other = (load_trajectories(f"tests/{name}-v0") for name in ("steps", "episodes"))
    assert count > 3
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name])


@pytest.mark.parametrize(("first", "second"), [("episodes = 1", "episodes = 10"), ("steps = 500", "steps = 200")])
def test_a_whole_dataset_of_another_size_has_its_behaviours_in_the_same_proportion(recipe_of, tmp_path, first, second):
    """Never further from it than by one episode of each."""
    found = steps_by_behaviour(make_dataset(mixed(recipe_of, tmp_path, first, second, "steps = 2_500\n")))
    assert 2_500 <= sum(map(sum, found.values())) < 2_500 + 500
    counts = {policy: len(lengths) for policy, lengths in found.items()}
    if "episodes" in first:
        assert abs(counts["random"] - 10 * counts["lean"]) <= 10
    else:
        assert abs(sum(found["lean"]) / 500 - sum(found["random"]) / 200) <= 1 + 0.5


def test_so_many_episodes_are_shared_out_exactly(recipe_of, tmp_path):
    found = steps_by_behaviour(
        make_dataset(mixed(recipe_of, tmp_path, "episodes = 100", "episodes = 300", "episodes = 20\n"))
    )
    assert {policy: len(lengths) for policy, lengths in found.items()} == {"lean": 5, "random": 15}


@pytest.mark.slow
def test_the_number_of_jobs_changes_nothing_about_a_size_in_steps(recipe_of, tmp_path):
    recipe = mixed(recipe_of, tmp_path, "episodes = 1", "steps = 400", "steps = 3_000\n")
    for jobs in (1, 3):
        make_dataset(recipe, dataset_id=f"tests/by-{jobs}-v0", jobs=jobs)
    one, three = (load_trajectories(f"tests/by-{jobs}-v0") for jobs in (1, 3))
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, three.columns[name])


def test_a_size_in_steps_goes_on_after_an_interruption(recipe_of, monkeypatch):
    recipe, play, played = recipe_of(RANDOM.replace("episodes = 12", "steps = 300")), playing.play, []

    def interrupted(*arguments):
        played.append(arguments)
        if len(played) == 5:
            raise KeyboardInterrupt
        return play(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(playing, "play", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(recipe)
    make_dataset(recipe)
    make_dataset(recipe, dataset_id="tests/whole-v0")
    again, whole = load_trajectories("tests/cartpole-v0"), load_trajectories("tests/whole-v0")
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])


# Replay buffers


def test_fewer_steps_of_a_replay_buffer_are_from_the_whole_training(recipe_of):
    whole = load_trajectories(make_dataset(recipe_of(REPLAY)))
    part = load_trajectories(make_dataset(recipe_of(REPLAY + "steps = 130"), dataset_id="tests/part-v0"))
    assert 130 <= part.num_steps < 130 + whole.episode_lengths.max()
    episodes = [whole.episode(i)["observations"].tolist() for i in range(whole.num_episodes)]
    places = [episodes.index(part.episode(i)["observations"].tolist()) for i in range(part.num_episodes)]
    assert places == sorted(places)
    gaps = np.diff([-1, *places, whole.num_episodes])
    assert gaps.max() <= 2 * whole.num_episodes / part.num_episodes + 1


def test_all_that_a_replay_buffer_has_is_not_as_much_as_it_saw(recipe_of):
    """The episode that had not ended is missing, and a warning says so."""
    with pytest.warns(UserWarning, match=r"tests/replay-v0 has \d+ steps instead of 400: there are no more"):
        made = make_dataset(recipe_of("steps = 400\n" + REPLAY))
    make_dataset(recipe_of(REPLAY), dataset_id="tests/whole-v0")
    assert load_trajectories(made).num_steps == load_trajectories("tests/whole-v0").num_steps < 400


@given(st.integers(1, 200), st.data())
def test_the_first_of_the_spread_numbers_lie_evenly(count, data):
    order = spread(count)
    assert sorted(order) == list(range(count))
    taken = data.draw(st.integers(1, count))
    gaps = np.diff([-1, *sorted(order[:taken]), count])
    assert gaps.max() <= 4 * (count / taken) + 1


# What it is computed from


BEHAVIOURS = st.lists(
    st.tuples(st.sampled_from(["episodes", "steps"]), st.integers(1, 50)), min_size=1, max_size=4
)  # fmt: skip


@given(BEHAVIOURS, st.sampled_from(["episodes", "steps", None]), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_what_is_not_known_yet_changes_nothing_about_the_answer(sizes, unit, total, seed):
    """Whichever part of the lengths is known, playing what is asked for leads to the counts of one who knew them all."""
    random = np.random.default_rng(seed)
    lengths = [random.integers(1, 20, size=400).tolist() for _ in sizes]
    behaviours = tuple(Behaviour("random", **{name: size}) for name, size in sizes)
    recipe = Recipe("a-v0", "A-v0", 0, "It.", behaviours, **({} if unit is None else {unit: total}))
    final = counts_of(recipe, lengths, 10)
    known = [0] * len(sizes)
    for _ in range(1_000):
        counts = counts_of(
            recipe, [all_[:n] for all_, n in zip(lengths, known, strict=True)], int(random.integers(1, 40))
        )
        if all(c <= n for c, n in zip(counts, known, strict=True)):
            break
        known = [max(c, n) for c, n in zip(counts, known, strict=True)]
    assert counts == final


def test_files_do_not_depend_on_the_size_and_grow(tmp_path):
    recipe = Recipe("a-v0", "A-v0", 0, "It.", (Behaviour("random", steps=10),))
    firsts = [numbers.start for _, (_, _, numbers) in zip(range(120), pieces(tmp_path, recipe, 0), strict=False)]
    assert firsts[:26] == list(range(26))
    assert firsts[-1] > 500
    assert np.diff(firsts).max() <= firsts[-1] / PIECE
    decided = dataclasses.replace(recipe, behaviour=(Behaviour("random", episodes=57),))
    assert [n for *_, numbers in pieces(tmp_path, decided, 0) for n in numbers] == list(range(57))


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RANDOM.replace("episodes = 12", ""), r"behaviour 1: it has no size; add episodes, or steps"),
        (RANDOM + "steps = 3", r"behaviour 1: it has episodes 12 and steps 3; give one of the two"),
        (RANDOM.replace("episodes = 12", "steps = 0"), r"steps 0 must be 1 or more"),
        ("steps = 0\n" + RANDOM, r"steps 0 of the dataset must be 1 or more"),
        ("steps = 9\nepisodes = 9\n" + RANDOM, r"to have 9 episodes and 9 steps; give one of the two"),
        (REPLAY + "episodes = 3", r"episodes means nothing to policy replay"),
        (REPLAY + "steps = 401", r"steps 401 of a replay buffer are more than it saw until its checkpoint, 400"),
        ("steps = 401\n" + REPLAY, r"a replay buffer of 400 steps cannot give 401; .* \(--policy\)"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(recipe_of, text, message):
    with pytest.raises(InputError, match=message):
        recipe_of(text)


def test_the_metadata_tell_the_size(recipe_of):
    metadata = minari.load_dataset(make_dataset(recipe_of("episodes = 3\n" + RANDOM))).storage.metadata
    assert metadata["recipe"]["episodes"] == 3
    assert "3 episodes of random" in metadata["description"]
    json.dumps(metadata["recipe"])
