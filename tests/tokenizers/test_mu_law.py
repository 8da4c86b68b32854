"""μ-law companding beside its closed form, and its stated error."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from dtrl.errors import InputError
from dtrl.tokenizers import MuLaw

SPREAD = np.float32([-1, 1])
"""Data without constant dimensions, as nothing else of them counts."""


def fitted(*arguments):
    tokenizer = MuLaw((), *arguments)
    tokenizer.fit(SPREAD)
    return tokenizer


def ids_of(tokenizer, values):
    return tokenizer.encode(torch.tensor(values, dtype=torch.float32).reshape(1, -1)).flatten().numpy()


def companded(x, mu, largest):
    return np.sign(x) * np.log(np.abs(x) * mu + 1.0) / np.log(largest * mu + 1.0)


def expanded(y, mu, largest):
    return np.sign(y) * ((largest * mu + 1.0) ** np.abs(y) - 1) / mu


@pytest.mark.parametrize(("bins", "mu", "largest"), [(1024, 100.0, 256.0), (256, 255.0, 1.0), (7, 3.0, 10.0)])
def test_every_id_is_decoded_by_the_closed_form_and_comes_back(bins, mu, largest):
    tokenizer = fitted(bins, mu, largest)
    ids = torch.arange(bins).reshape(1, bins, 1)
    values = tokenizer.decode(ids)
    closed = expanded(np.linspace(-1, 1, bins), mu, largest)
    np.testing.assert_allclose(values.flatten(), closed, rtol=5e-6, atol=1e-7 * largest)
    assert torch.equal(tokenizer.encode(values), ids)


@given(st.lists(st.floats(-256, 256, width=32), min_size=1), st.sampled_from([2, 3, 64, 1024, 4096]))
def test_ids_are_the_companded_values_rounded_and_the_error_is_as_stated(values, bins):
    tokenizer, x = fitted(bins), np.float64(values)
    ids = ids_of(tokenizer, values)
    exact = (companded(x, 100.0, 256.0) + 1) / 2 * (bins - 1)
    assert abs(ids - exact).max() <= 0.5 + 1e-6 * bins
    decoded = tokenizer.decode(torch.from_numpy(ids).reshape(1, -1, 1)).flatten().double().numpy()
    step = (1 + 100.0 * 256.0) ** (1 / (bins - 1)) - 1
    assert (abs(decoded - x) <= (abs(x) + 0.01) * (step * (1 + 1e-5) + 2e-5)).all()


def test_values_beyond_the_largest_are_clipped_and_counted():
    tokenizer = fitted()
    assert ids_of(tokenizer, [-1e9, -256, 256, 257, 3e38]).tolist() == [0, 0, 1023, 1023, 1023]
    assert tokenizer.outside(torch.tensor([[-1e9, -256, 256, 257]])).tolist() == [[True, False, False, True]]
    assert tokenizer.decode(torch.tensor([[[0], [1023]]])).tolist() == [[-256, 256]]


def test_data_decide_nothing_but_constants():
    one, other = MuLaw((2,)), MuLaw((2,))
    one.fit(np.float32([[0, 3], [1, 3]]))
    other.fit(np.float32([[-50, 7], [200, 8]]))
    x = torch.tensor([[[0.3, 3.0], [12.0, 3.0]]])
    assert torch.equal(one.encode(x), other.encode(x))
    decoded, quantised = one.decode(one.encode(x)), other.decode(other.encode(x))
    assert torch.equal(decoded[..., 0], quantised[..., 0])
    assert (decoded[..., 1] == 3).all()
    assert (quantised[..., 1] != 3).all()
    assert one.outside(torch.tensor([[[0.3, 3.5]]])).tolist() == [[[False, True]]]


@pytest.mark.parametrize(("setting", "value"), [("mu", 0.0), ("mu", -1.0), ("largest", 0.0), ("largest", np.inf)])
def test_a_law_that_is_none_is_refused(setting, value):
    with pytest.raises(InputError, match=rf"{setting} {value} is not a positive number"):
        MuLaw((1,), **{setting: value})
