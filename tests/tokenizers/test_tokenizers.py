"""Tokenizers: what holds for every kind in the table, and those that keep every digit. The others have files of their own."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import assume, given

from dtrl.errors import InputError
from dtrl.spaces import numbers_of
from dtrl.tokenizers import (
    TOKENIZERS,
    BytePairs,
    Categories,
    Components,
    Continuous,
    FiniteScalar,
    Fitted,
    Frequency,
    Image,
    ImageCodes,
    KMeans,
    MuLaw,
    OneHot,
    Quantile,
    Sequential,
    Uniform,
    VectorQuantization,
)
from dtrl.tokenizers.autoencoder import FitOptions

ASYMMETRIC = spaces.Box(np.array([-3, 0, -0.5], np.float32), np.array([1, 10, 7.5], np.float32))
HALF_OPEN = spaces.Box(np.array([-np.inf, 0, -2], np.float32), np.array([np.inf, np.inf, 6], np.float32))


def vectors(width, seed=0):
    return np.random.default_rng(seed).normal(3, 2, (40, width)).astype(np.float32)


def ids(n, start=0):
    return np.arange(40) % n + start


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)


def chunks(*shape):
    return np.random.default_rng(0).normal(3, 2, (40, *shape)).astype(np.float32)


FEW = FitOptions(steps=10, batch_size=16)


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
    "components": ("components", lambda: Components(np.array([3, 1, 4])), choices([3, 1, 4])),
    "components in a grid": (
        "components",
        lambda: Components(np.array([[2, 3], [4, 5]]), np.array([[0, 1], [-2, 7]])),
        choices([[2, 3], [4, 5]], np.array([[0, 1], [-2, 7]])),
    ),
    "uniform": ("uniform", lambda: Uniform((3,), 16), vectors(3)),
    "uniform, bounded": ("uniform", lambda: Uniform((3,), 17, ASYMMETRIC), vectors(3).clip(0, 1)),
    "uniform, some open": ("uniform", lambda: Uniform((3,), 16, HALF_OPEN), vectors(3).clip(-2, 6)),
    "uniform scalar": ("uniform", lambda: Uniform(()), vectors(1)[:, 0]),
    "uniform matrix": ("uniform", lambda: Uniform((2, 3)), vectors(6).reshape(40, 2, 3)),
    "quantile": ("quantile", lambda: Quantile((3,), 8), vectors(3)),
    "quantile scalar, more bins than data": ("quantile", lambda: Quantile(()), vectors(1)[:, 0]),
    "quantile matrix": ("quantile", lambda: Quantile((2, 3), 5), vectors(6).reshape(40, 2, 3)),
    "mu_law": ("mu_law", lambda: MuLaw((3,), 64), vectors(3)),
    "mu_law scalar": ("mu_law", lambda: MuLaw(()), vectors(1)[:, 0]),
    "k_means": ("k_means", lambda: KMeans((3,), 6), vectors(3)),
    "k_means matrix, more codes than data": ("k_means", lambda: KMeans((2, 3)), vectors(6).reshape(40, 2, 3)),
    "byte_pairs": ("byte_pairs", lambda: BytePairs(5, vocab_size=9, block_length=4), ids(3).repeat(4).reshape(40, 4)),
    "byte_pairs of several ids": ("byte_pairs", lambda: BytePairs(5, (2,), vocab_size=9), choices([5, 3])),
    "frequency": ("frequency", lambda: Frequency((3,), block_length=4), chunks(4, 3)),
    "frequency matrix": ("frequency", lambda: Frequency((2, 3), block_length=5, scale=30), chunks(5, 2, 3)),
    "frequency scalar, bounded": ("frequency", lambda: Frequency((), box=spaces.Box(-20, 20, ())), chunks(20)),
    "sequential": (
        "sequential",
        lambda: Sequential(Frequency((3,), block_length=4), BytePairs(41, (12,), vocab_size=50, fill=20)),
        chunks(4, 3),
    ),
    "sequential, bins and pairs": (
        "sequential",
        lambda: Sequential(Uniform((3,), 8), BytePairs(8, (3,), vocab_size=20, block_length=2)),
        chunks(2, 3),
    ),
    "vector_quantization": (
        "vector_quantization",
        lambda: VectorQuantization((3,), 8, layers=2, options=FEW),
        vectors(3),
    ),
    "vector_quantization of a network": (
        "vector_quantization",
        lambda: VectorQuantization((2, 3), 8, block_length=4, hidden=(8,), latent=2, options=FEW),
        chunks(4, 2, 3),
    ),
    "finite_scalar": ("finite_scalar", lambda: FiniteScalar((3,), (5, 4), hidden=(8,), options=FEW), chunks(5, 3)),
    "finite_scalar scalar": ("finite_scalar", lambda: FiniteScalar((), block_length=1, options=FEW), vectors(1)[:, 0]),
    "image_codes": ("image_codes", lambda: ImageCodes((8, 9, 3), (5, 4), width=4, options=FEW), images(8, 9, 3)),
}
"""Name → (row of the table, a tokenizer, a column of data: 40 rows (40, …), or chunks (40, h, …) of one of blocks)."""

EXACT = {"continuous", "categories", "one_hot", "image", "components"}
"""Rows of the table that lose nothing of any value of their space."""

NOT_NEAREST = {"finite_scalar", "frequency", "image_codes", "sequential", "vector_quantization"}
"""Rows of the table whose ids are not always those of the nearest decoded value: a network, a greedy choice, or clipping after decoding is in the way."""


@pytest.fixture(scope="module", params=EXAMPLES.values(), ids=EXAMPLES)
def fitted(request):
    """(a tokenizer fitted to a column, windows (4, 10 h, …) of that column), for tests that change neither."""
    _, make, column = request.param
    tokenizer = make()
    tokenizer.fit(column)
    return tokenizer, windows_of(tokenizer, column)


def windows_of(tokenizer, column):
    entries = column.shape[1 if tokenizer.block_length == 1 else 2 :]
    return torch.from_numpy(column).reshape(4, 10 * tokenizer.block_length, *entries)


def examples(*, exact=None, numbers=None, nearest=None, real=None):
    """Parameters for a test of some of the examples: those that lose nothing or something, those with numbers to fit or none, those whose ids are those of
    the nearest values or not, those of real numbers or of whole ones."""
    chosen = {
        name: example
        for name, example in EXAMPLES.items()
        if exact in (None, example[0] in EXACT)
        and numbers in (None, isinstance(example[1](), Fitted))
        and nearest in (None, example[0] not in NOT_NEAREST)
        and real in (None, example[2].dtype.kind == "f")
    }
    assert chosen
    return pytest.mark.parametrize(("make", "column"), [e[1:] for e in chosen.values()], ids=chosen)


# Every tokenizer of the table


def test_every_tokenizer_of_the_table_has_an_example():
    assert {kind for kind, _, _ in EXAMPLES.values()} == set(TOKENIZERS)
    assert all(isinstance(make(), TOKENIZERS[kind]) for kind, make, _ in EXAMPLES.values())


@examples(exact=True)
def test_decoding_what_was_encoded_gives_the_values_back(make, column):
    tokenizer = make()
    tokenizer.fit(column)
    x = windows_of(tokenizer, column)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), x, rtol=1e-6, atol=1e-6)


def test_tokens_have_the_shape_that_the_tokenizer_states(fitted):
    tokenizer, x = fitted
    tokens = tokenizer.encode(x)
    shape = (4, 10, tokenizer.num_tokens)
    if tokenizer.vocab_size is None:
        assert tokens.shape == (*shape, tokenizer.token_width)
        assert tokens.dtype == (torch.float32 if tokenizer.grid is None else torch.uint8)
    else:
        assert tokens.shape == shape
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() < tokenizer.vocab_size
    assert tokenizer.decode(tokens).shape == x.shape


@examples(nearest=True)
def test_what_was_decoded_is_encoded_as_before(make, column):
    tokenizer = make()
    tokenizer.fit(column)
    tokens = tokenizer.encode(windows_of(tokenizer, column))
    torch.testing.assert_close(tokenizer.encode(tokenizer.decode(tokens)), tokens, rtol=1e-6, atol=1e-6)


def test_data_that_were_fitted_lie_inside_and_far_values_are_clipped(fitted):
    tokenizer, x = fitted
    assert not tokenizer.outside(x).any()
    assert tokenizer.outside(x).shape == x.shape
    if isinstance(tokenizer, Fitted) and x.dtype != torch.uint8:
        for far in (1e6, -1e6):
            beyond = torch.full_like(x, far)
            assert tokenizer.outside(beyond).all()
            ids = tokenizer.encode(beyond)
            assert ids.min() >= 0
            assert ids.max() < tokenizer.vocab_size
            assert tokenizer.decode(ids).abs().max() < 1e3


@pytest.mark.parametrize(("_", "make", "column"), EXAMPLES.values(), ids=EXAMPLES)
def test_what_was_fitted_is_saved_with_the_weights(_, make, column):
    fitted, fresh = make(), make()
    fitted.fit(column)
    fresh.load_state_dict(fitted.state_dict())
    x = windows_of(fitted, column)
    for loaded in (fresh, copy.deepcopy(fitted)):
        assert torch.equal(loaded.encode(x), fitted.encode(x))
        assert torch.equal(loaded.decode(fitted.encode(x)), fitted.decode(fitted.encode(x)))
        assert torch.equal(loaded.outside(x + 1), fitted.outside(x + 1))


@pytest.mark.parametrize(("_", "make", "column"), EXAMPLES.values(), ids=EXAMPLES)
def test_fitting_again_forgets_what_was_fitted_before(_, make, column):
    once, twice = make(), make()
    twice.fit(column[::-1][:3].copy())
    for tokenizer in (once, twice):
        tokenizer.fit(column)
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


def test_encoding_leaves_its_input_alone(fitted):
    tokenizer, x = fitted
    before = x.clone()
    tokenizer.decode(tokenizer.encode(x))
    assert torch.equal(x, before)


def test_no_row_or_no_step_is_no_token(fitted):
    tokenizer, x = fitted
    for rows, steps in ((0, 10), (4, 0)):
        none = x[:rows, : steps * tokenizer.block_length]
        tokens = tokenizer.encode(none)
        assert tokens.shape[:3] == (rows, steps, tokenizer.num_tokens)
        assert tokenizer.decode(tokens).shape == none.shape
        assert tokenizer.outside(none).shape == none.shape


@pytest.mark.parametrize(("_", "make", "column"), EXAMPLES.values(), ids=EXAMPLES)
def test_constants_come_back_exactly(_, make, column):
    tokenizer, constant = make(), column.copy()
    constant[:] = column[0] if tokenizer.block_length == 1 else column[0, 0]
    tokenizer.fit(constant)
    x = windows_of(tokenizer, constant)
    assert torch.equal(tokenizer.decode(tokenizer.encode(x)), x)


def test_padding_and_any_id_are_harmless(fitted):
    tokenizer, x = fitted
    zeros = torch.zeros_like(x)
    assert tokenizer.encode(zeros).shape[:3] == (4, 10, tokenizer.num_tokens)
    if tokenizer.vocab_size is not None:
        drawn = torch.randint(
            tokenizer.vocab_size, (4, 10, tokenizer.num_tokens), generator=torch.Generator().manual_seed(0)
        )
        assert tokenizer.decode(drawn).isfinite().all()


@examples(numbers=True)
def test_a_tokenizer_without_numbers_says_that_it_needs_them(make, column):
    tokenizer = make()
    x, tokens = windows_of(tokenizer, column), torch.zeros(1, 1, tokenizer.num_tokens, dtype=torch.int64)
    message = rf"this {type(tokenizer).__name__} has seen no data; fit it first"
    for call, value in ((tokenizer.encode, x), (tokenizer.decode, tokens), (tokenizer.outside, x)):
        with pytest.raises(InputError, match=message):
            call(value)
    tokenizer.load_state_dict(make().state_dict())
    with pytest.raises(InputError, match=message):
        tokenizer.encode(x)


@examples(numbers=True, real=True)
def test_a_number_that_is_none_is_named_with_its_dimension(make, column):
    tokenizer, wrong = make(), column.copy()
    last = tuple(n - 1 for n in tokenizer.shape)
    place = (7, *[0] * (column.ndim - 1 - len(last)), *last)
    where = f"dimension {', '.join(map(str, last))}" if last else "their only dimension"
    for bad in (np.nan, np.inf, -np.inf):
        wrong[place] = bad
        with pytest.raises(InputError, match=rf"the data to fit hold {bad} in {where} \(row 7"):
            tokenizer.fit(wrong)
    tokenizer.fit(column)
    step = 7 * tokenizer.block_length
    for bad in (np.nan, np.inf, -np.inf):
        wrong[place] = bad
        with pytest.raises(InputError, match=rf"the values to encode hold {bad} in {where} \(row 0, {step}\)"):
            tokenizer.encode(windows_of(tokenizer, wrong))


@examples(numbers=True)
def test_values_of_another_space_are_refused(make, column):
    tokenizer = make()
    wider = np.stack([column, column], axis=-1)
    with pytest.raises(InputError, match=r"data to fit have shape .* give a column of the space it was made for"):
        tokenizer.fit(wider)
    with pytest.raises(InputError, match="data to fit have no row"):
        tokenizer.fit(column[:0])
    tokenizer.fit(column)
    with pytest.raises(InputError, match=r"values to encode have shape .* fitted on values of shape"):
        tokenizer.encode(torch.from_numpy(wider[None]))
    with pytest.raises(InputError, match=rf"{tokenizer.num_tokens} a block"):
        tokenizer.decode(torch.zeros(1, 1, tokenizer.num_tokens + 1, dtype=torch.int64))


@examples(numbers=True)
def test_nothing_is_read_back_from_a_device(make, column):
    """On the device "meta" there are shapes and no numbers, so whoever asks for one fails."""
    tokenizer = make()
    tokenizer.fit(column)
    tokenizer.to("meta")
    x = windows_of(make(), column).to("meta")
    tokens = tokenizer.encode(x)
    assert tokens.device.type == "meta"
    assert tokenizer.decode(tokens).shape == x.shape == tokenizer.outside(x).shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "quantile",
        "mu_law",
        "k_means",
        "byte_pairs",
        "frequency",
        "sequential",
        "vector_quantization",
        "finite_scalar",
    ],
)
def test_a_tokenizer_can_be_exported_for_any_number_of_rows_and_steps(name):
    _, make, column = EXAMPLES[name]

    class ThereAndBack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer = make()
            self.tokenizer.fit(column)

        def forward(self, x):
            ids = self.tokenizer.encode(x)
            return ids, self.tokenizer.decode(ids)

    module, x = ThereAndBack(), windows_of(make(), column)
    h = module.tokenizer.block_length
    sizes = {0: torch.export.Dim("B"), 1: h * torch.export.Dim("T") if h > 1 else torch.export.Dim("T")}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    # of steps that are cut into blocks, torch exports programs for two rows or more of two blocks or more
    for values in (x, x[:2, : 2 * h] if h > 1 else x[:1, :1]):
        for exported, expected in zip(program(values), module(values), strict=True):
            assert torch.equal(exported, expected)


SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-np.inf, np.inf, ()),
    spaces.Box(0, 255, (9, 8, 3), np.uint8),
    spaces.Discrete(5, start=-1),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 5], start=[-1, 3]),
    spaces.MultiBinary((2, 2)),
    spaces.Text(4, charset="ab"),
]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_made_for_the_spaces_that_it_fits(kind):
    made = {i: TOKENIZERS[kind].for_space(space) for i, space in enumerate(SPACES)}
    assert any(made.values())
    for i, tokenizer in made.items():
        if tokenizer is not None:
            assert isinstance(tokenizer, TOKENIZERS[kind])
            SPACES[i].seed(0)
            values = np.stack([numbers_of(SPACES[i], SPACES[i].sample()) for _ in range(tokenizer.block_length * 4)])
            blocks = values if tokenizer.block_length == 1 else values.reshape(4, -1, *values.shape[1:])
            tokenizer.options = FEW  # of those that train; nothing is said here of how well
            tokenizer.fit(blocks)
            assert tokenizer.decode(tokenizer.encode(torch.from_numpy(values[None]))).shape[2:] == values.shape[1:]


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
