"""One tokenizer after another."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import BytePairs, Categories, Continuous, FiniteScalar, Frequency, OneHot, Sequential
from dtrl.tokenizers.autoencoder import FitOptions

FEW = FitOptions(steps=20, batch_size=16)


def columns():
    return np.random.default_rng(0).normal(0, 1, (48, 3)).astype(np.float32)


def test_it_is_the_one_and_then_the_other():
    first, second = Frequency((3,), block_length=4), BytePairs(41, (12,), vocab_size=60)
    both = Sequential(first, second)
    both.fit(columns().reshape(12, 4, 3))
    x = torch.from_numpy(columns()).reshape(2, 24, 3)
    assert torch.equal(both.encode(x), second.encode(first.encode(x)))
    assert torch.equal(both.decode(both.encode(x)), first.decode(first.encode(x)))
    assert (both.vocab_size, both.num_tokens, both.block_length, both.padding_id) == (60, 12, 4, 59)


def test_block_lengths_multiply():
    first = FiniteScalar((3,), (5, 4), num_tokens=2, block_length=4, hidden=(8,), options=FEW)
    both = Sequential(first, BytePairs(20, (2,), vocab_size=40, block_length=3))
    assert (both.block_length, both.num_tokens) == (12, 6)
    both.fit(columns().reshape(4, 12, 3))
    alone = copy.deepcopy(first)
    alone.fit(columns().reshape(12, 4, 3))
    for name, value in alone.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name
    x = torch.from_numpy(columns()).reshape(2, 24, 3)
    assert both.encode(x).shape == (2, 2, 6)
    assert torch.equal(both.decode(both.encode(x)), first.decode(first.encode(x)))


def test_ids_of_a_space_may_come_first():
    both = Sequential(Categories(4, start=-2), BytePairs(4, (1,), vocab_size=12, block_length=6))
    actions = np.random.default_rng(0).integers(0, 4, 60) - 2
    both.fit(actions.reshape(10, 6))
    x = torch.from_numpy(actions).reshape(5, 12)
    assert torch.equal(both.decode(both.encode(x)), x)


def test_real_vectors_may_come_first_in_the_shape_that_the_second_wants():
    both = Sequential(Continuous(3), FiniteScalar((3,), block_length=1, hidden=(16,), options=FEW), between=(3,))
    both.fit(columns())
    x = torch.from_numpy(columns())[None]
    expected = both.first.decode(both.second.decode(both.second.encode(both.first.encode(x)[:, :, 0]))[:, :, None])
    assert torch.equal(both.decode(both.encode(x)), expected)


def test_what_is_outside_is_outside_of_the_first():
    both = Sequential(Frequency((3,), block_length=4), BytePairs(41, (12,), vocab_size=60))
    both.fit(columns().reshape(12, 4, 3))
    x = torch.full((1, 4, 3), 99.0)
    assert both.outside(x).all()


def test_it_is_saved_whole():
    def make():
        return Sequential(Frequency((3,), block_length=4), BytePairs(41, (12,), vocab_size=60))

    both, fresh = make(), make()
    both.fit(columns().reshape(12, 4, 3))
    fresh.load_state_dict(both.state_dict())
    x = torch.from_numpy(columns())[None]
    assert torch.equal(fresh.decode(fresh.encode(x)), both.decode(both.encode(x)))


def test_what_cannot_follow_is_refused():
    with pytest.raises(InputError, match="OneHot cannot come second"):
        Sequential(Categories(3), OneHot(np.array([3])))
    with pytest.raises(
        InputError, match=r"a block of Continuous has the shape \(1, 3\), which cannot be laid out as \(4,\)"
    ):
        Sequential(Continuous(3), BytePairs(9, vocab_size=20), between=(4,))
    both = Sequential(Frequency((3,), block_length=4), BytePairs(41, (12,), vocab_size=60, block_length=2))
    with pytest.raises(InputError, match=r"shape \(12, 4, 3\), and the tokenizer is for chunks of 8 steps"):
        both.fit(columns().reshape(12, 4, 3))
    both.fit(columns().reshape(6, 8, 3))
    with pytest.raises(InputError, match="12 steps cannot be cut into blocks of 8"):
        both.encode(torch.zeros(1, 12, 3))


def test_it_offers_frequencies_and_pairs_for_real_vectors():
    both = Sequential.for_space(spaces.Box(-1, 1, (3,)))
    assert (both.vocab_size, both.num_tokens, both.block_length) == (1024, 60, 20)
    assert both.second.fill == both.first.zero  # what a sampled chunk lacks are frequencies of amplitude 0
    assert Sequential.for_space(spaces.Box(-1, 1, (3,)), 16).vocab_size == 92  # 91 coefficients, and padding
    assert Sequential.for_space(spaces.Discrete(3)) is None
