"""Tokenizers: there and back again, for every kind in the table, and the rules that fit them."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import assume, given

from dtrl.errors import InputError
from dtrl.tokenizers import TOKENIZERS, Categories, Continuous, Image, OneHot

ASYMMETRIC = spaces.Box(np.array([-3, 0, -0.5], np.float32), np.array([1, 10, 7.5], np.float32))
HALF_OPEN = spaces.Box(np.array([-np.inf, 0, -2], np.float32), np.array([np.inf, np.inf, 6], np.float32))


def vectors(width, seed=0):
    return np.random.default_rng(seed).normal(3, 2, (40, width)).astype(np.float32)


def ids(n, start=0):
    return np.arange(40) % n + start


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)


def choices(sizes, start=0):
    return np.random.default_rng(0).integers(0, sizes, (40, *np.shape(sizes))) + start


EXAMPLES = {
    "a matrix": ("continuous", lambda: Continuous(6, box=spaces.Box(-9, 9, (2, 3))), vectors(6).reshape(40, 2, 3)),
    "a scalar": ("continuous", lambda: Continuous(1, box=spaces.Box(-9, 9, ())), vectors(1)[:, 0]),
    "choices": ("one_hot", lambda: OneHot(np.array([3, 1, 4])), choices([3, 1, 4])),
    "choices in a grid": (
        "one_hot",
        lambda: OneHot(np.array([[2, 3], [4, 5]]), np.array([[0, 1], [-2, 7]])),
        choices([[2, 3], [4, 5]], np.array([[0, 1], [-2, 7]])),
    ),
    "grey": ("image", lambda: Image((8, 9)), images(8, 9)),
    "channels last": ("image", lambda: Image((8, 9, 3)), images(8, 9, 3)),
    "channels first": ("image", lambda: Image((3, 8, 9)), images(3, 8, 9)),
    "a stack of grey": ("image", lambda: Image((4, 8, 9)), images(4, 8, 9)),
    "a stack, channels last": ("image", lambda: Image((4, 8, 9, 3)), images(4, 8, 9, 3)),
    "a stack, channels first": ("image", lambda: Image((4, 3, 8, 9)), images(4, 3, 8, 9)),
    "standardize": ("continuous", lambda: Continuous(3), vectors(3)),
    "one dimension": ("continuous", lambda: Continuous(1), vectors(1)),
    "bounds": ("continuous", lambda: Continuous(3, "bounds", box=ASYMMETRIC), vectors(3)),
    "bounds, some open": ("continuous", lambda: Continuous(3, "bounds", box=HALF_OPEN), vectors(3)),
    "scale": ("continuous", lambda: Continuous(1, "scale"), vectors(1)),
    "given scale": ("continuous", lambda: Continuous(1, "scale", scale=50.0), vectors(1)),
    "categories": ("categories", lambda: Categories(5), ids(5)),
    "one category": ("categories", lambda: Categories(1), ids(1)),
    "categories from -2": ("categories", lambda: Categories(4, start=-2), ids(4, start=-2)),
}
"""Name → (row of the table, a tokenizer, a column of data)."""


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES)
def fitted(request):
    """(a tokenizer fitted to a column, windows (4, 10, …) of that column)."""
    _, make, column = request.param
    tokenizer = make()
    tokenizer.fit(column)
    return tokenizer, torch.from_numpy(column).reshape(4, 10, *column.shape[1:])


# Every tokenizer of the table


def test_every_tokenizer_of_the_table_has_an_example():
    assert {kind for kind, _, _ in EXAMPLES.values()} == set(TOKENIZERS)
    assert all(isinstance(make(), TOKENIZERS[kind]) for kind, make, _ in EXAMPLES.values())


def test_decoding_what_was_encoded_gives_the_values_back(fitted):
    tokenizer, x = fitted
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), x, rtol=1e-6, atol=1e-6)


def test_tokens_have_the_shape_that_the_tokenizer_states(fitted):
    tokenizer, x = fitted
    tokens = tokenizer.encode(x)
    shape = (4, 10 // tokenizer.block_length, tokenizer.num_tokens)
    if tokenizer.vocab_size is None:
        assert tokens.shape == (*shape, tokenizer.token_width)
        assert tokens.dtype == (torch.float32 if tokenizer.grid is None else torch.uint8)
    else:
        assert tokens.shape == shape
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() < tokenizer.vocab_size


@pytest.mark.parametrize(("_", "make", "column"), EXAMPLES.values(), ids=EXAMPLES)
def test_what_was_fitted_is_saved_with_the_weights(_, make, column):
    fitted, fresh = make(), make()
    fitted.fit(column)
    fresh.load_state_dict(fitted.state_dict())
    x = torch.from_numpy(column[None])
    assert torch.equal(fresh.encode(x), fitted.encode(x))
    assert torch.equal(fresh.decode(fitted.encode(x)), fitted.decode(fitted.encode(x)))


def test_encoding_leaves_its_input_alone(fitted):
    tokenizer, x = fitted
    before = x.clone()
    tokenizer.decode(tokenizer.encode(x))
    assert torch.equal(x, before)


# Continuous


def test_standardised_data_have_no_mean_and_unit_deviation():
    tokenizer, x = Continuous(3), vectors(3)
    tokenizer.fit(x)
    tokens = tokenizer.encode(torch.from_numpy(x[None])).numpy().reshape(-1, 3)
    np.testing.assert_allclose(tokens.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(tokens.std(0), 1, rtol=1e-6)


def test_a_column_far_from_zero_is_standardised_without_losing_its_digits():
    x = np.array([[10_000.0], [10_001.0]], np.float32).repeat(50_000, axis=0)
    tokenizer = Continuous(1)
    tokenizer.fit(x)
    assert tokenizer.scale.item() == pytest.approx(0.5, rel=1e-6)


def test_a_constant_dimension_is_shifted_and_not_blown_up():
    x = vectors(2)
    x[:, 1] = 7
    tokenizer = Continuous(2)
    tokenizer.fit(x)
    assert tokenizer.encode(torch.tensor([[[3.0, 7.0]]]))[0, 0, 0, 1] == 0
    assert tokenizer.encode(torch.tensor([[[3.0, 7.5]]]))[0, 0, 0, 1] == 0.5


def test_asymmetric_bounds_become_exactly_one_and_come_back():
    tokenizer = Continuous(3, "bounds", box=ASYMMETRIC)
    tokenizer.fit(vectors(3))
    edges = torch.from_numpy(np.stack([ASYMMETRIC.low, ASYMMETRIC.high]))[None]
    ones = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 3)
    assert torch.equal(tokenizer.encode(edges), ones)
    assert torch.equal(tokenizer.decode(ones), edges)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_any_bounds_become_one_up_to_rounding(low, high):
    assume(high - low > 1e-3 * max(abs(low), abs(high), 1e-30))
    box = spaces.Box(np.float32([low]), np.float32([high]))
    tokenizer = Continuous(1, "bounds", box=box)
    edges = torch.tensor([[[low], [high]]])
    torch.testing.assert_close(tokenizer.encode(edges).flatten(), torch.tensor([-1.0, 1.0]), rtol=0, atol=2e-4)
    size = max(abs(low), abs(high))
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(edges)), edges, rtol=0, atol=4e-7 * size)


def test_a_dimension_without_two_bounds_takes_those_of_the_data():
    tokenizer, x = Continuous(3, "bounds", box=HALF_OPEN), vectors(3)
    tokenizer.fit(x)
    tokens = tokenizer.encode(torch.from_numpy(x[None])).squeeze()
    np.testing.assert_allclose(tokens[:, :2].amin(0), [-1, -1], rtol=1e-5)
    np.testing.assert_allclose(tokens[:, :2].amax(0), [1, 1], rtol=1e-5)
    assert (tokenizer.shift[2], tokenizer.scale[2]) == (2, 4)


def test_a_dimension_whose_bounds_are_equal_stays_finite():
    tokenizer = Continuous(2, "bounds", box=spaces.Box(np.float32([2, -1]), np.float32([2, 1])))
    tokenizer.fit(vectors(2))
    assert tokenizer.encode(torch.tensor([[[2.0, 0.5]]])).flatten().tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("column", "scale", "expected"), [([-8, 2, 4], None, 8), ([0, 0], None, 1), ([-8, 2], 50.0, 50)]
)
def test_a_scale_is_the_largest_absolute_value_or_the_given_one(column, scale, expected):
    tokenizer = Continuous(1, "scale", scale=scale)
    tokenizer.fit(np.array(column, np.float32))
    assert (tokenizer.shift.item(), tokenizer.scale.item()) == (0, expected)
    assert tokenizer.encode(torch.full((1, 1), float(expected))).item() == 1


def test_a_column_of_numbers_is_a_column_of_vectors_of_one():
    tokenizer, x = Continuous(1), torch.randn(2, 5)
    assert torch.equal(tokenizer.encode(x), tokenizer.encode(x.unsqueeze(-1)))


def test_float64_values_are_encoded_in_the_type_of_the_weights():
    assert Continuous(2).encode(torch.zeros(1, 1, 2, dtype=torch.float64)).dtype == torch.float32
    assert Continuous(2).double().encode(torch.zeros(1, 1, 2)).dtype == torch.float64


# Categories


def test_ids_count_from_the_start_of_the_space():
    tokenizer = Categories(4, start=-2)
    assert tokenizer.encode(torch.tensor([[-2, 1]])).flatten().tolist() == [0, 3]
    assert tokenizer.decode(torch.tensor([[[0], [3]]])).flatten().tolist() == [-2, 1]


@pytest.mark.parametrize("value", [-3, 2])
def test_a_value_outside_a_discrete_space_is_named(value):
    with pytest.raises(InputError, match=rf"the data hold {value} where the space is Discrete\(4, start=-2\)"):
        Categories(4, start=-2).fit(np.array([0, value, 1]))


def test_padding_becomes_some_id_of_the_space():
    assert Categories(3, start=5).encode(torch.tensor([[0, 5, 99]])).flatten().tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((3, 3, 3), (3, 3, 3)),
        ((3, 5, 4), (4, 3, 5)),  # both axes could be of channels
        ((84, 84, 16), (16, 84, 84)),
        ((16, 84, 84), (16, 84, 84)),
        ((10, 7, 10), (10, 10, 7)),
        ((4, 84, 84), (4, 84, 84)),
        ((1, 9, 9), (1, 9, 9)),
        ((5, 4, 4, 4), (20, 4, 4)),
    ],
)
def test_channels_are_the_short_axis_and_the_last_where_that_does_not_tell(shape, grid):
    assert Image(shape).grid == grid


def test_an_ambiguous_image_is_taken_channels_last():
    x = torch.arange(27, dtype=torch.uint8).reshape(1, 1, 3, 3, 3)
    assert torch.equal(Image((3, 3, 3)).encode(x).reshape(3, 3, 3), x[0, 0].movedim(-1, 0))
