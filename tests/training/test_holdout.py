"""Held-out episodes: never seen, measured as their definitions say, and no hindrance to an exact resume."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

import dtrl
from dtrl.acting.artefact import parameters_sha256
from dtrl.acting.replay import teacher_forced
from dtrl.errors import InputError
from dtrl.training.holdout import HeldOut, split_off
from dtrl.trajectories.columns import Origin

LENGTHS = (9, 4, 6, 7, 8, 5)
SMALL = {"batch_size": 4, "context_length": 4, "width": 16, "layers": 1, "warmup_updates": 0, "log_every": 1}
FIXED = {"return_scale": 1.0, "max_timestep": 9}
"""What would otherwise depend on all of the data."""


@pytest.fixture
def data(random_trajectories):
    return random_trajectories(LENGTHS, origin=Origin("test/random-v0", fingerprint="f" * 64))


def values_of(logdir, tag):
    lines = [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]
    return [line[tag] for line in lines if tag in line]


def test_the_split_is_by_episode_seeded_and_complete(data):
    rest, held_out = split_off(data, 1 / 3, seed=3)
    assert (rest.num_episodes, held_out.num_episodes) == (4, 2)
    starts = {row.tobytes() for part in (rest, held_out) for row in part.observations[part.episode_starts]}
    assert starts == {row.tobytes() for row in data.observations[data.episode_starts]}
    np.testing.assert_array_equal(split_off(data, 1 / 3, seed=3)[1].rewards, held_out.rewards)
    assert any(split_off(data, 1 / 3, seed)[1].num_steps != held_out.num_steps for seed in range(4))


def test_training_is_training_on_the_other_episodes_alone(data):
    """Bit for bit: so held-out episodes reach no weight, no statistic and no batch."""
    rest, _ = split_off(data, 1 / 3, seed=0)
    held = dtrl.train(data, updates=5, holdout=1 / 3, **FIXED, **SMALL)
    alone = dtrl.train(rest, updates=5, **FIXED, **SMALL)
    assert parameters_sha256(held.model) == parameters_sha256(alone.model)


def test_without_it_nothing_is_measured(data, tmp_path):
    dtrl.train(data, updates=2, logdir=tmp_path, **SMALL)
    assert not [line for line in (tmp_path / "progress.jsonl").read_text().splitlines() if "val/" in line]


def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path):
    options = {"updates": 8, "holdout": 1 / 3, "checkpoint_every": 3, **SMALL}
    straight = dtrl.train(data, logdir=tmp_path / "straight", **options)
    dtrl.train(data, logdir=tmp_path / "cut", callbacks=[lambda e: e.update != 5], **options)
    resumed = dtrl.train(data, logdir=tmp_path / "cut", resume=True, **options)
    assert parameters_sha256(straight.model) == parameters_sha256(resumed.model)
    for tag in ("train/loss", "val/loss", "val/action_rmse", "val/log_likelihood"):
        assert values_of(tmp_path / "straight", tag) == values_of(tmp_path / "cut", tag)
        assert len(values_of(tmp_path / "cut", tag)) == 8
    with pytest.raises(InputError, match=r"holdout 0\.333\S* → 0\.5"):
        dtrl.train(data, logdir=tmp_path / "cut", resume=True, **{**options, "holdout": 0.5})


def test_a_run_of_before_the_setting_existed_can_be_resumed(data, tmp_path):
    dtrl.train(data, updates=4, logdir=tmp_path, **SMALL)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    stored = json.loads((checkpoint / "training.json").read_text())
    del stored["training"]["holdout"]
    (checkpoint / "training.json").write_text(json.dumps(stored))
    from dtrl.acting.runs import write_manifest

    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
    assert dtrl.train(data, updates=6, logdir=tmp_path, resume=True, **SMALL).updates == 6


@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_error_is_the_root_mean_square_in_the_action_s_units(random_trajectories, untrained_policy, batch_size):
    """Against the teacher forcing of `replay`, over windows that hold whole episodes."""
    space = spaces.Box(np.float32([-3, 0]), np.float32([3, 0.5]))
    data = random_trajectories(LENGTHS, action_space=space)
    policy = untrained_policy(data, context_length=9)
    found = HeldOut(policy, data, 9, batch_size).measure()
    with torch.inference_mode():
        taught = teacher_forced(policy, data).numpy()
    tokens = (data.actions - np.float32([0, 0.25])) / np.float32([3, 0.25])
    actions = np.clip(taught * np.float32([3, 0.25]) + np.float32([0, 0.25]), space.low, space.high)
    assert found["val/action_rmse"] == pytest.approx(np.sqrt(np.square(actions - data.actions).mean()), rel=1e-4)
    assert found["val/log_likelihood"] == pytest.approx(-np.square(taught - tokens).mean(), rel=1e-4)
    assert found["val/loss"] == pytest.approx(-found["val/log_likelihood"], rel=1e-5)


def test_of_discrete_actions_it_is_the_accuracy_and_the_log_probability(random_trajectories, untrained_policy):
    data = random_trajectories(LENGTHS, action_space=spaces.Discrete(3))
    policy = untrained_policy(data, context_length=9)
    found = HeldOut(policy, data, 9, 4).measure()
    with torch.inference_mode():
        logits = teacher_forced(policy, data).numpy()
    assert found["val/action_accuracy"] == pytest.approx((logits.argmax(axis=1) == data.actions).mean())
    assert found["val/log_likelihood"] == pytest.approx(logits[np.arange(len(logits)), data.actions].mean(), rel=1e-4)


@pytest.mark.parametrize("preset", ["dt_discrete", "vq_dt", "tt", "bc"])
def test_every_preset_can_be_measured_and_stays_as_it_is(random_trajectories, untrained_policy, preset):
    data = random_trajectories(LENGTHS)
    policy = untrained_policy(data, preset=preset)
    policy.model.train()
    before, state = parameters_sha256(policy.model), torch.get_rng_state()
    held_out = HeldOut(policy, data, 4, 4)
    assert held_out.measure() == held_out.measure()
    assert all(np.isfinite(value) for value in held_out.measure().values())
    assert (parameters_sha256(policy.model), policy.model.training) == (before, True)
    assert torch.equal(state, torch.get_rng_state())


def test_long_data_are_measured_at_evenly_spaced_windows(random_trajectories, untrained_policy):
    data = random_trajectories([50] * 200)
    starts = np.concatenate(HeldOut(untrained_policy(data), data, 4, 64).starts)
    assert len(starts) == len(np.unique(starts)) == 256
    assert starts[0] == 0
    assert starts[-1] == data.num_steps - 2


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(data, holdout):
    with pytest.raises(InputError, match=r"^holdout .* is outside \[0, 1\)"):
        dtrl.train(data, updates=1, holdout=holdout, **SMALL)


def test_a_single_episode_cannot_be_split(random_trajectories):
    with pytest.raises(InputError, match="has 1 episode, and a split needs 2"):
        dtrl.train(random_trajectories([9]), updates=1, holdout=0.5, **SMALL)
