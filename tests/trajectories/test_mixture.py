"""Mixing: every episode of every part, drawn as the weights say, and nothing mixed that does not belong together."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from scipy.stats import chisquare

import dtrl
from dtrl.cli import main
from dtrl.collect import write_minari
from dtrl.errors import InputError
from dtrl.trajectories import cache
from dtrl.trajectories.columns import Origin
from dtrl.trajectories.mixture import mix
from dtrl.windows import Windows

ALPHA = 1e-4
"""A correct sampler fails a chi-square test of this level once in 10,000 seeds; the seeds are fixed."""


@pytest.fixture
def pair(random_trajectories):
    return random_trajectories((3, 5, 2), seed=1), random_trajectories((4, 30), seed=2)


@pytest.fixture
def names(pair):
    return [write_minari(part, f"mine/{name}-v0") for part, name in zip(pair, ("small", "large"), strict=True)]


def assert_joined(mixed, parts):
    episodes = [part.episode(i) for part in parts for i in range(part.num_episodes)]
    assert mixed.num_episodes == len(episodes)
    for i, episode in enumerate(episodes):
        for name, values in mixed.episode(i).items():
            np.testing.assert_array_equal(values, episode[name])


def test_a_mixture_has_the_episodes_of_all_in_order(pair, names, monkeypatch):
    assert_joined(mix(pair), pair)
    assert_joined(dtrl.load_trajectories(names), pair)
    monkeypatch.setattr(cache, "store", lambda *_: pytest.fail("the mixture was built again"))
    again = dtrl.load_trajectories(names, weights=[1, 2])
    assert isinstance(again.observations, np.memmap)
    assert_joined(again, pair)


def test_filters_hold_for_each_part(pair, names):
    long = dtrl.load_trajectories(names, min_length=4)
    assert_joined(long, (pair[0].select([1]), pair[1]))


def test_a_file_may_be_a_part(pair, names, tmp_path):
    np.savez(
        tmp_path / "more.npz",
        **{name: values for name, values in pair[0].columns.items() if not name.startswith("final")},
    )
    mixed = dtrl.load_trajectories([names[1], tmp_path / "more.npz"])
    assert mixed.origin.name == "mine/large-v0 + more.npz"
    np.testing.assert_array_equal(mixed.rewards, np.concatenate([pair[1].rewards, pair[0].rewards]))


def test_the_origin_has_the_fingerprints_of_all_parts(names):
    singles = [dtrl.load_trajectories(name) for name in names]
    mixed = dtrl.load_trajectories(names)
    assert mixed.origin.name == "mine/small-v0 + mine/large-v0"
    assert [part.fingerprint for part in mixed.origin.parts] == [single.origin.fingerprint for single in singles]
    others = [
        dtrl.load_trajectories(given, weights=weights).origin.fingerprint
        for given, weights in (
            (names, None),
            (names, [1, 1]),
            (names, [1, 3]),
            (names[::-1], [1, 3]),
            (names[:1], None),
        )
    ]
    assert len({*others}) == 5
    assert others[0] == mixed.origin.fingerprint


def test_environment_and_references_are_kept_where_all_that_state_them_agree(pair):
    cartpole, pendulum = (gymnasium.spec(name).to_json() for name in ("CartPole-v1", "Pendulum-v1"))

    def origin(*origins):
        parts = [part.select(range(part.num_episodes)) for part in pair]
        for part, given in zip(parts, origins, strict=True):
            object.__setattr__(part, "origin", given)
        return mix(parts).origin

    agreed = origin(Origin("a", cartpole, (1.0, 2.0)), Origin("b", cartpole))
    assert (json.loads(agreed.env_spec)["id"], agreed.reference) == ("CartPole-v1", (1.0, 2.0))
    disputed = origin(Origin("a", cartpole, (1.0, 2.0)), Origin("b", pendulum, (1.0, 3.0)))
    assert (disputed.env_spec, disputed.reference, disputed.fingerprint) == (None, None, None)


@pytest.mark.parametrize("sampling", ["step", "episode", "return"])
def test_windows_come_from_the_parts_in_proportion_to_the_weights(pair, sampling):
    """Chi-square over 40,000 draws, twice; a correct sampler fails with probability 2e-4."""
    mixed = mix(pair, [1, 3])
    windows = Windows(mixed, 4, batch_size=1_000, sampling=sampling)
    rows = np.concatenate([windows.draw(update) for update in range(40)])
    counts = np.bincount(rows >= pair[0].num_steps)
    assert chisquare(counts, [10_000, 30_000]).pvalue > ALPHA
    if sampling == "return":
        return  # the ranks are those among all episodes
    within = np.bincount(rows[rows < 10], minlength=10)
    expected = np.full(10, 0.1) if sampling == "step" else np.repeat(1 / (3 * np.array([3, 5, 2])), [3, 5, 2])
    assert chisquare(within, expected * within.sum()).pvalue > ALPHA


def test_without_weights_all_episodes_count_alike(pair):
    np.testing.assert_array_equal(
        Windows(mix(pair), 4, 64, "step").draw(3), np.random.default_rng([0, 3]).integers(44, size=64)
    )


def test_a_part_of_which_nothing_was_selected_leaves_its_share_to_the_others(pair):
    selected = mix(pair, [1, 3]).select([0, 2])
    rows = Windows(selected, 4, 500, "episode").draw(0)
    assert set(rows) == set(range(5))


def test_parts_with_other_spaces_are_refused_by_name(random_trajectories, names):
    write_minari(random_trajectories((4,), action_space=spaces.Discrete(2)), "mine/other-v0")
    write_minari(random_trajectories((4,), spaces.Box(-1, 1, (3,))), "mine/bounded-v0")
    with pytest.raises(
        InputError, match=r"the action space of mine/small-v0 is Box.*, and that of mine/other-v0 is Discrete\(2\)"
    ):
        dtrl.load_trajectories([names[0], "mine/other-v0"])
    with pytest.raises(
        InputError, match=r"the observation space of mine/large-v0 is Box\(-inf.*mine/bounded-v0 is Box\(-1"
    ):
        dtrl.load_trajectories([names[1], "mine/bounded-v0"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1], "1 weights were given for 2 datasets"), ([1, 0], "weight 0 must be a positive"), ([1, float("nan")], "weight nan must be")],
)  # fmt: skip
def test_wrong_weights_are_refused(pair, names, weights, message):
    with pytest.raises(InputError, match=message):
        mix(pair, weights)
    with pytest.raises(InputError, match=message):
        dtrl.load_trajectories(names, weights=weights)


def test_no_dataset_is_refused():
    with pytest.raises(InputError, match="no dataset was given"):
        dtrl.load_trajectories([])


@pytest.mark.slow
def test_the_command_line_mixes_resumes_and_refuses_other_weights(names, capsys):
    def train(updates, *flags):
        small = [
            "--width",
            "8",
            "--layers",
            "1",
            "--batch-size",
            "4",
            "--context-length",
            "2",
            "--eval-episodes",
            "0",
            "--device",
            "cpu",
        ]
        return main(["train", *names, "--logdir", "run", "--updates", str(updates), *small, *flags])

    assert train(2, "--weights", "1", "3") == 0
    assert "on mine/small-v0 + mine/large-v0" in capsys.readouterr().out
    assert train(3, "--weights", "1", "3", "--resume") == 0
    assert train(4, "--weights", "1", "2", "--resume") == 2
    assert "other data (weights (1.0, 3.0) → (1.0, 2.0))" in capsys.readouterr().err
    assert main(["datasets", "show", *names]) == 0
    assert "episodes       5 (" in capsys.readouterr().out
