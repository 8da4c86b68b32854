"""Finite scalar quantization: against vector-quantize-pytorch's numbers, the published formula, and chunks that it has to keep."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import FiniteScalar
from dtrl.tokenizers.autoencoder import FitOptions
from dtrl.tokenizers.finite_scalar import LEVELS, Levels, published_levels

GOLDEN = Path(__file__).parent.parent / "golden" / "quantization.npz"


@pytest.fixture(scope="module")
def oracle():
    """Numbers that tests/golden/quantization.py made with vector-quantize-pytorch 1.32.0."""
    with np.load(GOLDEN) as tables:
        return {name: torch.from_numpy(table) for name, table in tables.items()}


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5)])
def test_codes_and_ids_are_bit_equal_to_the_oracle(oracle, levels):
    name, quantizer = "_".join(map(str, levels)), Levels(levels)
    z, codes, ids = oracle[f"z_{name}"], oracle[f"codes_{name}"], oracle[f"ids_{name}"].long()
    assert torch.equal(quantizer(z), codes)
    assert torch.equal(quantizer.ids(z), ids)
    assert torch.equal(quantizer.codes(ids), codes)


@pytest.mark.parametrize("levels", LEVELS.values())
def test_every_id_is_a_code_of_its_own_and_comes_back(levels):
    quantizer = Levels(levels)
    ids = torch.arange(quantizer.size)
    codes = quantizer.codes(ids)
    assert len(codes.unique(dim=0)) == quantizer.size == math.prod(levels)
    half = torch.tensor(levels) // 2
    digits = (codes * half).round().long() + half
    radix = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    assert torch.equal((digits * radix).sum(-1), ids)


@pytest.mark.parametrize("level", [3, 4, 5, 8])
def test_all_levels_are_reached_and_no_others(level):
    quantizer = Levels([level])
    z = torch.linspace(-20, 20, 4001)[:, None]
    values = quantizer(z).unique().tolist()
    half = level // 2
    assert values == [k / half for k in range(-half, level - half)]
    assert quantizer.ids(z).unique().tolist() == list(range(level))
    assert (quantizer.ids(z).diff() >= 0).all()
    assert quantizer(torch.zeros(1, 1)).item() == 0


def test_the_gradient_is_that_of_what_was_rounded():
    z = torch.linspace(-2, 2, 9)[:, None].requires_grad_(True)
    (found,) = torch.autograd.grad(Levels([5])(z).sum(), z)
    torch.testing.assert_close(found, 4 * 1.001 / 2 / 2 * (1 - torch.tanh(z.detach()) ** 2))


@pytest.mark.slow
def test_finer_levels_keep_a_circle_better():
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    x = np.stack([np.sin(phase), np.cos(phase)], axis=-1).astype(np.float32)
    errors = []
    for levels in ((3,), (5, 5), (8, 8, 8)):
        options = FitOptions(steps=1000)
        tokenizer = FiniteScalar((2,), levels, num_tokens=1, block_length=1, hidden=(64,), options=options)
        tokenizer.fit(x)
        found = tokenizer.decode(tokenizer.encode(torch.from_numpy(x)[None]))[0].numpy()
        errors.append(math.sqrt(((found - x) ** 2).sum(-1).mean()))
    # n arcs of the unit circle leave √(1 − (sin a / a)²) with a = π / n at best: 0.562 for 3, 0.073 for 25, and less than training leaves for 512
    assert 0.55 < errors[0] < 0.8  # rounding cuts a line into three, and has to bend it round a circle first
    assert 0.07 < errors[1] < 0.3
    assert errors[2] < 0.1


def test_what_cannot_be_is_refused():
    for levels in ((), (5, 2)):
        with pytest.raises(InputError, match=r"levels = \(.*\) cannot be; give one number or more, each of 3 or more"):
            Levels(levels)
    with pytest.raises(InputError, match="num_tokens = 0 of finite scalars cannot be"):
        FiniteScalar((3,), num_tokens=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0 of a learned"),
        ({"batch_size": 0}, "batch_size = 0 of a learned"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0 of a learned"),
        ({"learning_rate": math.nan}, "learning_rate = nan of a learned"),
    ],
)
def test_training_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        FitOptions(**options)


def test_the_published_levels_fit_a_size():
    assert [math.prod(published_levels(size)) for size in (1, 256, 1000, 1024, 5000)] == [240, 240, 240, 1000, 4375]


def test_it_offers_itself_for_vectors():
    assert FiniteScalar.for_space(spaces.Box(-1, 1, (3,)), 300).vocab_size == 240
    assert FiniteScalar.for_space(spaces.MultiBinary(3)) is None
