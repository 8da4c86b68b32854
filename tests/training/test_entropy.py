"""A policy whose entropy is kept from falling: the loss, its multiplier, and that a run goes on exactly with both."""

import json
import math

import numpy as np
import pytest
import torch

import dtrl
from dtrl.acting.runs import newest_checkpoint, sha256
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.sequence_model import FIRST_MULTIPLIER
from dtrl.training.trainer import Trainer

SMALL = {"batch_size": 8, "context_length": 4, "width": 16, "layers": 2, "dropout": 0.0, "warmup_updates": 0}
BOUND = -2.0
"""Of an action of two dimensions."""


@pytest.fixture
def data(random_trajectories):
    return random_trajectories((9, 2, 5, 7))


def make_trainer(data, preset="odt", **training):
    model = ModelConfig(preset=preset, context_length=4, width=16, layers=2, dropout=0.0)
    config = TrainingConfig(**{"updates": 20, "batch_size": 8, "device": "cpu", **training})
    return Trainer(data, model, config, None, resume=False)


def gradients(model, value):
    """Of each parameter by name, of a scalar; zero where it has none."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {n: torch.zeros(1) if g is None else g for n, g in zip(names, found, strict=True)}


def test_the_gradient_is_that_of_the_lagrangian(data):
    """Weights go down −log p − λ·H, the multiplier up λ·(β − H)."""
    trainer = make_trainer(data)
    model, batch = trainer.model, trainer.windows.batch(1)
    with torch.no_grad():
        model.log_multipliers[0].fill_(math.log(0.3))
    loss = model.loss(batch)
    distribution = model(batch)["action"]
    target = model.by_name["action"].tokenizer.encode(batch.values["action"])
    valid = batch.valid.unsqueeze(-1)
    surprise = -distribution.log_prob(target)[valid].sum()
    entropy = distribution.entropy()[valid].sum()
    expected = gradients(model, surprise - 0.3 * entropy)
    found = gradients(model, loss.total)
    dual = found.pop("log_multipliers.0")
    assert expected.pop("log_multipliers.0").item() == 0
    assert dual.item() == pytest.approx(0.3 * (entropy - BOUND * valid.sum()).item(), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    assert loss.total.item() == pytest.approx((surprise - 0.3 * entropy).item(), rel=1e-5)
    sums = [x.item() for x in loss.entropies["action"]]
    assert sums == pytest.approx([entropy.item(), 0.3 * valid.sum().item(), valid.sum().item()], rel=1e-5)


def test_the_multiplier_grows_below_the_bound_and_falls_above(data):
    for bias, sign in ((-4.0, 1), (1.0, -1)):  # of the logit of the deviation: far too narrow, and wide
        trainer = make_trainer(data)
        with torch.no_grad():
            trainer.model.heads["action"].parameters_of.bias[2:] = bias
        before = trainer.model.log_multipliers[0].item()
        trainer.update(1)
        (row,) = [values for _, values in trainer.meter.values()]
        assert (BOUND - row[-3] / row[-1]) * sign > 0
        assert (trainer.model.log_multipliers[0].item() - before) * sign > 0


@pytest.mark.slow
def test_entropy_ends_at_the_bound_where_imitation_alone_would_lose_it(data):
    """Learned by heart, random actions have no entropy left: the unbounded head falls far below, the bounded one stays."""
    options = {**SMALL, "updates": 500, "width": 32, "learning_rate": 1e-2, "sampling": "step"}
    ended = {}
    for preset, head in (("dt", "tanh_gaussian"), ("odt", "auto")):
        policy = dtrl.train(data, preset=preset, head=head, **options)
        policy.model.train()
        batch = Trainer(data, policy.config, TrainingConfig(batch_size=64, device="cpu"), None, False).windows.batch(0)
        ended[preset] = policy.model(batch)["action"].entropy()[batch.valid.unsqueeze(-1)].mean().item()
    assert ended["dt"] < BOUND - 1
    assert ended["odt"] == pytest.approx(BOUND, abs=0.5)


def test_the_multiplier_is_neither_clipped_nor_decayed(data):
    trainer = make_trainer(data, gradient_clip=0.01, weight_decay=0.5, learning_rate=0.1, warmup_updates=0)
    multiplier = trainer.model.log_multipliers[0]
    assert multiplier.item() == pytest.approx(math.log(FIRST_MULTIPLIER))
    trainer.step.gradients(trainer.windows.batch(1))
    assert multiplier.grad.abs().item() > 0.02
    norm = torch.stack([p.grad.square().sum() for p in trainer.step.clipped if p.grad is not None]).sum().sqrt()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert all(p is not multiplier for p in trainer.step.clipped)
    before = multiplier.item()
    multiplier.grad.zero_()
    trainer.step.follow(0.1)
    assert multiplier.item() == before


def test_pieces_of_a_batch_have_the_same_entropy_and_multiplier(data, tmp_path):
    logged = []
    for pieces in (1, 4):
        dtrl.train(
            data,
            preset="odt",
            updates=5,
            log_every=1,
            logdir=tmp_path / str(pieces),
            gradient_accumulation=pieces,
            **SMALL,
        )
        lines = [json.loads(line) for line in (tmp_path / str(pieces) / "progress.jsonl").read_text().splitlines()]
        logged.append(
            [[x["train/action_entropy"], x["train/action_entropy_multiplier"], x["train/loss"]] for x in lines]
        )
    np.testing.assert_allclose(logged[1], logged[0], rtol=1e-4)
    assert logged[0][0][1] == pytest.approx(FIRST_MULTIPLIER, rel=1e-6)
    assert len({row[1] for row in logged[0]}) == 5


@pytest.mark.parametrize("preset", ["odt", pytest.param("mgdt", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_exactly(data, tmp_path, preset):
    options = {**SMALL, "preset": preset, "dropout": 0.1, "checkpoint_every": 3, "log_every": 1, "updates": 8}
    dtrl.train(data, logdir=tmp_path / "straight", **options)

    def stop(event):
        return event.update < 5

    dtrl.train(data, logdir=tmp_path / "stopped", callbacks=[stop], **options)
    dtrl.train(data, logdir=tmp_path / "stopped", resume=True, **options)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "stopped")]
    assert len({result["parameters_sha256"] for result in results}) == 1
    folders = [newest_checkpoint(tmp_path / name) for name in ("straight", "stopped")]
    assert len({sha256(folder / "optimizer.safetensors") for folder in folders}) == 1
    lines = [(tmp_path / name / "progress.jsonl").read_text().splitlines() for name in ("straight", "stopped")]
    for one, other in zip(*[[json.loads(line) for line in some] for some in lines], strict=True):
        for name in one:
            if name.startswith("train/") and "utilization" not in name:
                assert one[name] == other[name], name
