"""Conservative conditioning: which windows are raised and by how much, the loss that results, and what it does beyond the data's returns."""

import dataclasses

import numpy as np
import pytest
import torch

import dtrl
from dtrl.acting.artefact import parameters_sha256
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.training.trainer import Trainer
from dtrl.training.update import CapturedUpdate
from dtrl.windows import EPISODE_RETURN, ResidentWindows

LENGTHS = (9, 2, 5, 7, 3, 6)
SMALL = {"batch_size": 8, "context_length": 4, "width": 16, "layers": 1, "warmup_updates": 0}


@pytest.fixture
def data(random_trajectories):
    return random_trajectories(LENGTHS)


def make_trainer(data, **options):
    config = TrainingConfig(**{"updates": 9, "batch_size": 8, "conservative": 1.0, **options})
    return Trainer(data, ModelConfig(context_length=4, width=16, layers=1, dropout=0.0), config, None, resume=False)


def test_only_windows_of_the_best_episodes_are_raised_beyond_the_maximum(random_trajectories):
    data = random_trajectories([6] * 40)
    trainer = make_trainer(data)
    returns = data.episode_returns
    starts = np.arange(data.num_steps)
    batch = trainer.windows.gather(starts)
    best, raised = trainer.step.conservative(batch, batch)
    episode = np.searchsorted(data.episode_starts, starts, side="right") - 1
    top = returns[episode] >= np.quantile(returns, 0.95)
    assert 0 < top.sum() < len(top) / 10
    np.testing.assert_array_equal(best.valid.any(dim=1).numpy(), top)
    assert torch.equal(best.valid[top], batch.valid[top])
    added = (raised.values["return"] - batch.values["return"]).numpy()
    np.testing.assert_allclose(added, np.repeat(added[:, :1], 4, axis=1), atol=1e-5)  # one number a window
    width = returns.max() - min(np.quantile(returns, 0.1), 0)
    beyond = added[:, 0] + returns[episode] - returns.max()
    assert beyond.min() >= -1e-5
    assert 0.9 * width < beyond.max() <= width + 1e-5  # of 240 draws, all below 0.9: probability 10⁻¹¹
    assert all(torch.equal(raised.values[name], batch.values[name]) for name in ("observation", "action"))


def test_the_gradient_is_that_of_both_means(data):
    """Against autograd on the formula: the mean loss of the batch and α times that of its best windows."""
    trainer = make_trainer(data, conservative=0.7, gradient_clip=1e9)
    batch = trainer.windows.gather(np.array([0, 3, 9, 12, 16, 20, 23, 30]))
    torch.manual_seed(5)
    measures = trainer.step.gradients(batch)
    found = [p.grad.clone() for p in trainer.model.parameters()]
    torch.manual_seed(5)
    best, raised = trainer.step.conservative(batch, batch)
    assert 0 < best.valid.sum() < batch.valid.sum()
    plain, further = trainer.model.loss(batch), trainer.model.loss(best, raised)
    expected = torch.autograd.grad(
        plain.total / plain.weight + 0.7 * further.total / further.weight, list(trainer.model.parameters())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert measures[0].item() == pytest.approx((plain.total / plain.weight).item(), rel=1e-5)


def test_a_batch_without_best_windows_makes_the_plain_update(data):
    plain, conservative = make_trainer(data, conservative=0.0), make_trainer(data)
    worst = int(data.episode_returns.argmin())
    starts = np.full(8, data.episode_starts[worst])
    for trainer in (plain, conservative):
        trainer.step.gradients(trainer.windows.gather(starts))
    for one, other in zip(plain.model.parameters(), conservative.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_it_resumes_exactly_and_goes_with_the_other_options(data, tmp_path):
    options = {
        "updates": 6,
        "checkpoint_every": 2,
        "conservative": 1.0,
        "scheduled_sampling": 0.5,
        "holdout": 0.3,
        **SMALL,
    }
    straight = dtrl.train(data, **options)
    dtrl.train(data, logdir=tmp_path, callbacks=[lambda e: e.update != 3], **options)
    assert parameters_sha256(straight.model) == parameters_sha256(
        dtrl.train(data, logdir=tmp_path, resume=True, **options).model
    )


def test_the_number_of_pieces_changes_nothing(data):
    one, four = (make_trainer(data, gradient_accumulation=n, scheduled_sampling=0.5) for n in (1, 4))
    for update in (1, 2, 3):
        one.update(update)
        four.update(update)
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_it_reads_nothing_back(data, nothing_read_back):
    trainer = make_trainer(data)
    windows = ResidentWindows(trainer.windows, trainer.device)
    trainer.captured = CapturedUpdate(trainer.step, windows, 8, capture=False)
    trainer.update(1)
    batch = windows.gather(torch.arange(8))
    assert EPISODE_RETURN in batch.values
    with nothing_read_back():
        trainer.step.gradients(batch)


@pytest.mark.parametrize("preset", ["bc", "tt"])
def test_a_preset_that_is_told_no_return_cannot_raise_it(data, preset):
    with pytest.raises(InputError, match=f"preset {preset} is told none"):
        dtrl.train(data, updates=1, preset=preset, conservative=1.0, **SMALL)


@pytest.mark.slow
def test_beyond_the_data_s_returns_the_action_stays_that_of_the_best(random_trajectories):
    """Data in which the action is the return, from 0 to 0.8. At twice the highest return a plain model goes on rising; a conservative one stays. One seed."""
    data, random = random_trajectories([5] * 300), np.random.default_rng(0)
    level = np.repeat(random.uniform(0, 0.8, size=300), 5).astype(np.float32)
    rewards = np.zeros(1500, np.float32)
    rewards[data.episode_ends - 1] = level[data.episode_ends - 1]
    data = dataclasses.replace(
        data, columns={**data.columns, "rewards": rewards, "actions": np.stack([level, level], axis=1)}
    )
    options = {
        "updates": 300,
        "batch_size": 32,
        "context_length": 2,
        "width": 32,
        "layers": 1,
        "learning_rate": 3e-3,
        "dropout": 0.0,
    }
    acted = []
    for alpha in (0.0, 1.0):
        policy = dtrl.train(data, conservative=alpha, **options)
        state = policy.initial_state(64, 1.4)
        acted.append(policy.predict(data.observations[data.episode_starts[:64]], state)[0].mean())
    assert abs(acted[1] - 0.8) < 0.05
    assert abs(acted[0] - 0.8) > 2 * abs(acted[1] - 0.8)
