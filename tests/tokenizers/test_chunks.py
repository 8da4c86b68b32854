"""What holds for every tokenizer of chunks of numbers: frequencies, these with byte pairs, vector quantization, finite scalars."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import BytePairs, FiniteScalar, Frequency, Sequential, VectorQuantization
from dtrl.tokenizers.autoencoder import FitOptions

FEW = FitOptions(steps=20, batch_size=16)
H, D = 4, 3
BOX = spaces.Box(np.array([-2, -1, 0], np.float32), np.array([2, 1, 9], np.float32))


def fast(shape=(D,), **options):
    frequency = Frequency(shape, block_length=H, **options)
    pairs = BytePairs(frequency.vocab_size, (frequency.num_tokens,), vocab_size=200, fill=frequency.zero)
    return Sequential(frequency, pairs)


KINDS = {
    "bounds": lambda shape=(D,), **o: Frequency(shape, block_length=H, **o),
    "quantiles": lambda shape=(D,), **o: Frequency(shape, block_length=H, rule="quantiles", **o),
    "frequencies and pairs": fast,
    "vectors": lambda shape=(D,), **o: VectorQuantization(shape, 8, layers=2, block_length=H, options=FEW, **o),
    "vectors of a network": lambda shape=(D,), **o: VectorQuantization(
        shape, 8, layers=2, block_length=H, hidden=(8,), latent=2, options=FEW, **o
    ),
    "finite scalars": lambda shape=(D,), **o: FiniteScalar(
        shape, (5, 4), num_tokens=2, block_length=H, hidden=(8,), options=FEW, **o
    ),
}


def chunks(count=50, seed=0):
    """(N, H, D) random walks, of which the last dimension is the constant 5."""
    x = np.random.default_rng(seed).normal(0, 0.3, (count, H, D)).cumsum(axis=1).clip(-1, 1).astype(np.float32)
    x[..., 2] = 5
    return x


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request):
    return request.param


@pytest.fixture
def fitted(make):
    tokenizer = make()
    tokenizer.fit(chunks())
    return tokenizer


def windows():
    """(5, 40, D): ten chunks a row."""
    return torch.from_numpy(chunks()).reshape(5, 40, D)


def test_tokens_are_ids_of_the_stated_number(fitted):
    tokens = fitted.encode(windows())
    assert tokens.shape == (5, 10, fitted.num_tokens)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < fitted.vocab_size


def test_a_chunk_is_encoded_alike_wherever_it_stands(fitted):
    x = windows()
    alone = torch.cat([fitted.encode(x[:, i : i + H]) for i in range(0, 40, H)], dim=1)
    assert torch.equal(fitted.encode(x), alone)


def test_decoded_values_lie_in_the_range_of_the_data_whatever_the_ids(fitted):
    tokens = torch.randint(fitted.vocab_size, (200, 3, fitted.num_tokens), generator=torch.Generator().manual_seed(0))
    x = fitted.decode(tokens)
    assert x.shape == (200, 3 * H, D)
    data = torch.from_numpy(chunks()).flatten(0, 1)
    assert (x >= data.amin(0)).all()
    assert (x <= data.amax(0)).all()
    assert len(x.flatten(0, 1).unique(dim=0)) > 20


def test_a_constant_dimension_comes_back_exactly(fitted):
    assert (fitted.decode(fitted.encode(windows()))[..., 2] == 5).all()


def test_values_outside_are_clipped_and_told(fitted):
    x = windows()
    x[0, 0] = torch.tensor([1e9, -1e9, 6.0])
    x[1, 3, 0] = 3
    low, high = torch.from_numpy(chunks()).flatten(0, 1).aminmax(dim=0)
    inside = torch.minimum(torch.maximum(x, low), high)
    assert torch.equal(fitted.encode(x), fitted.encode(inside))
    outside = fitted.outside(x)
    assert outside.shape == x.shape
    assert outside[0, 0].all()
    assert outside[1, 3].tolist() == [True, False, False]


def test_no_value_of_the_data_is_outside_unless_the_tails_are_left_out(make):
    tokenizer, x = (
        make(),
        np.random.default_rng(1).normal(0, 1, (500, H, D)),
    )  # float64: digits that the buffers have not
    x[..., 2] = 0.1
    tokenizer.fit(x)
    outside = tokenizer.outside(torch.from_numpy(x).reshape(1, -1, D)).sum((0, 1))
    tails = isinstance(tokenizer, Frequency) and tokenizer.normalization.rule == "quantiles"
    assert outside.tolist() == ([40, 40, 0] if tails else [0, 0, 0])  # 1 % of 2000 at each end


def test_another_space_is_refused(fitted, make):
    with pytest.raises(InputError, match=r"shape \(5, 40, 2\)"):
        fitted.encode(windows()[..., :2])
    with pytest.raises(InputError, match=r"shape \(50, 4, 2\)"):
        make().fit(chunks()[..., :2])
    with pytest.raises(InputError, match=r"shape \(50, 3, 3\)"):
        make().fit(chunks()[:, :3])
    with pytest.raises(InputError, match=r"39 steps cannot be cut into blocks of 4"):
        fitted.encode(windows()[:, :39])


def test_arrays_of_more_axes_are_laid_out_flat(make):
    square, flat = make((1, D)), make()
    square.fit(chunks()[:, :, None])
    flat.fit(chunks())
    tokens = flat.encode(windows())
    assert torch.equal(square.encode(windows().unsqueeze(2)), tokens)
    assert torch.equal(square.decode(tokens), flat.decode(tokens).unsqueeze(2))


def test_the_fitted_numbers_are_no_parameters(fitted):
    assert not list(fitted.parameters())
    assert not any(buffer.requires_grad for buffer in fitted.buffers())


def test_fitting_again_forgets_and_repeats_exactly(fitted, make):
    again = make()
    again.fit(chunks(seed=1) * 2)
    again.fit(chunks())
    for name, buffer in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[name], buffer), name


def test_fitting_leaves_the_generators_and_the_data_alone(make):
    x = chunks()
    x.flags.writeable = False  # as a memory map is
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    make().fit(x)
    assert torch.equal(torch.rand(3), expected)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_fit_inside_no_grad_is_the_same(fitted, make):
    other = make()
    with torch.no_grad():
        other.fit(chunks())
    assert torch.equal(other.decode(other.encode(windows())), fitted.decode(fitted.encode(windows())))


def test_autocast_changes_no_id(fitted):
    tokens = fitted.encode(windows())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fitted.encode(windows()), tokens)
        assert fitted.decode(tokens).dtype == torch.float32


def test_the_bounds_of_a_box_are_the_range(make):
    tokenizer = make(box=BOX)
    tokenizer.fit(chunks())
    normalization = getattr(tokenizer, "first", tokenizer).normalization
    if normalization.rule == "quantiles":
        assert normalization.low[0] > -1
        return
    edges = torch.from_numpy(np.stack([BOX.low, BOX.high] * 2))[None]
    edges[..., 2] = 5  # constant in the data, and so exact, whatever its bounds
    assert not tokenizer.outside(edges).any()
    assert tokenizer.outside(edges * 1.01).any()
    assert normalization.low.tolist() == [-2, -1, 5]


def test_a_box_without_bounds_leaves_the_range_to_the_data(make):
    for bound in (np.inf, np.finfo(np.float32).max):
        tokenizer = make(box=spaces.Box(-bound, bound, (D,)))
        tokenizer.fit(chunks())
        plain = make()
        plain.fit(chunks())
        assert torch.equal(tokenizer.encode(windows()), plain.encode(windows()))


def test_a_box_of_another_shape_is_refused(make):
    with pytest.raises(InputError, match=r"has not the shape \(3,\) of the values"):
        make(box=spaces.Box(-1, 1, (2,)))


def test_data_larger_than_float32_are_refused(make):
    x = chunks().astype(np.float64)
    x[0, 0, 1] = -1e39
    with pytest.raises(InputError, match=r"dimension 1 spans -1e\+39 … 1"):
        make().fit(x)


def test_one_step_a_block_is_fitted_to_a_column():
    for tokenizer in (
        Frequency((D,), block_length=1),
        VectorQuantization((D,), 8, options=FEW),
        FiniteScalar((D,), block_length=1, hidden=(), options=FEW),
    ):
        tokenizer.fit(chunks()[:, 0])
        assert tokenizer.encode(windows()).shape == (5, 40, tokenizer.num_tokens)
        assert tokenizer.decode(tokenizer.encode(windows())).shape == (5, 40, D)
