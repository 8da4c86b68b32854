"""Operations counted by hand and by torch, and a rate that is one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dtrl.config import ModelConfig, TrainingConfig
from dtrl.training.hardware import matmul_rate, update_flops
from dtrl.training.trainer import Trainer

STEPS, ROWS = 4, 8


def make_trainer(data, **model):
    options = {"context_length": STEPS, "width": 16, "layers": 2, "dropout": 0.1, **model}
    config = TrainingConfig(updates=1, batch_size=ROWS, device="cpu")
    return Trainer(data, ModelConfig(**options), config, None, resume=False)


@pytest.mark.parametrize(("width", "layers"), [(16, 1), (32, 3)])
def test_operations_are_those_of_the_products_by_hand(random_trajectories, width, layers):
    """Of the published model on S = 3 and A = 2 numbers. The last layer's queries and MLP are computed for the tokens that predict an action alone,
    and what follows the last of these not at all."""
    trainer = make_trainer(random_trajectories([9, 7]), width=width, layers=layers)
    tokens, read = 3 * STEPS - 1, STEPS
    embeddings = (1 + 3 + 2) * width * STEPS
    projections = 12 * width**2 * (layers - 1) * tokens + width**2 * (2 * tokens + 10 * read)
    attention = 2 * width * tokens * ((layers - 1) * tokens + read)
    head = 2 * width * read
    # a product costs as much again for each of its two gradients; data need none, so embeddings have one
    forward_and_backward = 3 * (projections + attention + head) + 2 * embeddings
    assert update_flops(trainer.model, trainer.windows.batch(1)) == 2 * ROWS * forward_and_backward


@pytest.mark.parametrize("model", [{}, {"trunk": "modern", "heads": 4, "kv_heads": 2, "head": "gaussian"}])
def test_operations_are_those_that_torch_counts_where_they_are_computed(random_trajectories, model):
    trainer = make_trainer(random_trajectories([9, 7]), **model)
    batch = trainer.windows.batch(1)
    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        trainer.model.loss(batch).total.backward()
    before = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    assert update_flops(trainer.model, batch) == counter.get_total_flops() > 0
    assert all(torch.equal(p.grad, g) for p, g in zip(trainer.model.parameters(), before, strict=True))


def test_a_rate_is_measured_once_a_dtype():
    cpu = torch.device("cpu")
    rate = matmul_rate(cpu, torch.float32)
    assert 1e8 < rate < 1e14
    assert matmul_rate(cpu, torch.float32) == rate
    assert matmul_rate(cpu, torch.bfloat16) != rate
