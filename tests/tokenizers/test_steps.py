"""Chunks whose steps are tokenized one by one, and which tokenizer of the table a chunk gets."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import (
    TOKENIZERS,
    Categories,
    Components,
    Continuous,
    Frequency,
    OneHot,
    Quantile,
    Steps,
    Uniform,
    tokenizer_of_chunks,
)

H = 3
BOX = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 1], np.float32))


def vectors(seed=0):
    """(20, H, 2) chunks."""
    return np.random.default_rng(seed).uniform(-1, 1, (20, H, 2)).astype(np.float32)


def choices(*shape, size=4, start=0):
    return np.random.default_rng(0).integers(start, start + size, (20, H, *shape))


KINDS = {
    "a vector": (lambda: Continuous(2, "bounds", box=BOX), vectors()),
    "standardized": (lambda: Continuous(2), vectors()),
    "uniform": (lambda: Uniform((2,), 16), vectors()),
    "quantile": (lambda: Quantile((2,), 8), vectors()),
    "ids": (lambda: Categories(4, start=2), choices(start=2)),
    "one-hot of a single choice": (lambda: OneHot(np.array(4), np.array(2)), choices(start=2)),
    "one-hots": (lambda: OneHot(np.array([4, 5])), choices(2)),
    "components": (lambda: Components(np.array([4, 5])), choices(2)),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def case(request):
    """Makes the tokenizer of a step; (N, H, …) chunks."""
    return request.param


def test_tokens_are_those_of_the_steps_one_after_the_other(case):
    make, data = case
    chunked, one = Steps(make(), H), make()
    chunked.fit(data)
    one.fit(data.reshape(-1, *data.shape[2:]))
    x = torch.from_numpy(data).flatten(0, 1).reshape(2, 10 * H, *data.shape[2:])
    tokens, single = chunked.encode(x), one.encode(x)
    expected = [torch.cat(list(single[:, at : at + H].unbind(1)), dim=-1) for at in range(0, 10 * H, H)]
    assert torch.equal(tokens, torch.stack(expected, dim=1))
    n = 1 if chunked.vocab_size is None else H * one.num_tokens
    assert tokens.shape[:3] == (2, 10, n)
    assert chunked.num_tokens == n
    if chunked.vocab_size is None:
        assert tokens.shape[3] == chunked.token_width == H * one.token_width
    assert torch.equal(chunked.decode(tokens), one.decode(single))
    assert torch.equal(chunked.outside(x), one.outside(x))


def test_fitted_numbers_are_saved(case):
    make, data = case
    chunked, other = Steps(make(), H), Steps(make(), H)
    chunked.fit(data)
    other.load_state_dict(chunked.state_dict())
    x = torch.from_numpy(data).flatten(0, 1)[None]
    assert torch.equal(other.encode(x), chunked.encode(x))


def test_all_steps_share_the_range_of_all():
    data = vectors()
    data[:, 1] *= 10
    chunked = Steps(Uniform((2,), 16), H)
    chunked.fit(data)
    assert not chunked.outside(torch.from_numpy(data).flatten(0, 1)[None]).any()
    assert chunked.one.high.tolist() == data.reshape(-1, 2).max(axis=0).tolist()


def test_the_sizes_of_choices_come_once_for_each_step():
    assert Steps(Components(np.array([4, 5])), H).sizes == [4, 5] * H
    assert Steps(OneHot(np.array(4)), H).sizes == [4] * H
    assert Steps(Uniform((2,)), H).sizes is None


def test_what_is_no_whole_chunk_is_refused():
    chunked = Steps(Uniform((2,), 16), H)
    with pytest.raises(InputError, match=r"have shape \(20, 2, 2\).*chunks of 3 steps"):
        chunked.fit(vectors()[:, :2])
    chunked.fit(vectors())
    with pytest.raises(InputError, match="7 steps cannot be cut into blocks of 3; leave the last 1 out"):
        chunked.encode(torch.zeros(1, 7, 2))
    with pytest.raises(InputError, match="Frequency makes no tokens of single steps"):
        Steps(Frequency((2,), block_length=2), H)
    with pytest.raises(InputError, match="block_length 0 of chunks"):
        Steps(Uniform((2,)), 0)


SPACES = {
    "box": (BOX, vectors()),
    "discrete": (spaces.Discrete(4), choices()),
    "multi-discrete": (spaces.MultiDiscrete([4, 4]), choices(2)),
}


@pytest.mark.parametrize("h", [1, H])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("space", "data"), SPACES.values(), ids=SPACES)
def test_every_tokenizer_of_a_space_is_there_for_its_chunks(space, data, kind, h):
    tokenizer = tokenizer_of_chunks(kind, space, None, h)
    assert (tokenizer is None) == (TOKENIZERS[kind].for_space(space) is None)
    if tokenizer is None:
        return
    assert tokenizer.block_length == h
    if hasattr(tokenizer, "options"):
        tokenizer.options = tokenizer.options.__class__(steps=5, batch_size=16)
    tokenizer.fit(data if h > 1 else data[:, 0])
    x = torch.from_numpy(data).flatten(0, 1)[None]
    assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape


def test_a_size_is_passed_on():
    assert tokenizer_of_chunks("uniform", BOX, 7, H).vocab_size == 7
    assert tokenizer_of_chunks("vector_quantization", BOX, 7, H).vocab_size == 7
