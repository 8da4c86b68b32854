"""Choosing in NumPy is `dtrl.decoding`: the same tokens from the same numbers, and the same errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, Normal

from dtrl.acting.engines.choosing import allow, choose_id, choose_vector, process
from dtrl.config import DecodingConfig
from dtrl.decoding import choose
from dtrl.decoding import process as torch_process
from dtrl.errors import InputError
from dtrl.heads import TanhNormal

CONFIGS = st.builds(
    DecodingConfig,
    strategy=st.just("sample"),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 99]),
    top_p=st.sampled_from([0.2, 0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    typical_p=st.sampled_from([1.0, 0.83, 0.31]),
)
# halves, so that there are ties, and nothing is near a cut by rounding alone
LOGITS = st.lists(
    st.lists(st.sampled_from([-np.inf, -2.0, -0.5, 0.0, 0.5, 3.0]), min_size=5, max_size=5).filter(
        lambda row: max(row) > -np.inf
    ),
    min_size=1,
    max_size=4,
).map(lambda rows: np.array(rows, np.float32))


def generators(count):
    return [np.random.default_rng([7, i]) for i in range(count)]


@given(LOGITS, CONFIGS)
def test_ids_are_those_of_pytorch(logits, config):
    ids = choose_id(logits, config, generators(len(logits)))
    expected = choose(
        {"": Categorical(logits=torch.from_numpy(logits)[:, None], validate_args=False)},
        config,
        generators(len(logits)),
    )[""]
    assert ids.tolist() == expected[:, 0].tolist()


@given(LOGITS, CONFIGS.filter(lambda config: config.temperature > 0))
def test_what_is_left_is_what_pytorch_leaves(logits, config):
    ours, theirs = process(logits, config), torch_process(torch.from_numpy(logits), config).numpy()
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
@pytest.mark.parametrize("squashed", [False, True])
def test_vectors_are_those_of_pytorch(strategy, squashed):
    random = np.random.default_rng(0)
    location, deviation = random.normal(size=(4, 3)).astype(np.float32), random.random((4, 3)).astype(np.float32)
    config = DecodingConfig(strategy=strategy, temperature=0.7 if strategy == "sample" else 1.0)
    moments = torch.from_numpy(location)[:, None], torch.from_numpy(deviation)[:, None]
    distribution = TanhNormal(*moments) if squashed else Independent(Normal(*moments, validate_args=False), 1)
    ours = choose_vector("tanh_gaussian" if squashed else "gaussian", [location, deviation], config, generators(4))
    expected = choose({"": distribution}, config, generators(4))[""]
    np.testing.assert_allclose(ours, expected[:, 0].numpy(), atol=1e-6)


def test_masks_leave_what_they_allow_and_name_what_they_empty():
    logits = np.zeros((2, 5), np.float32)
    allowed = np.array([[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]], bool)
    np.testing.assert_array_equal(np.isinf(allow(logits, allowed, [2, 3])), ~allowed)
    with pytest.raises(InputError, match="environment 1 allows no value of choice 1;"):
        allow(logits, allowed & [[True] * 5, [True, True, False, False, False]], [2, 3])


@pytest.mark.parametrize("options", [{"strategy": "beam"}, {"no_repeat_ngram": 2}, {"contrast": 1.0}], ids=str)
def test_what_needs_several_tokens_is_refused(options):
    with pytest.raises(InputError, match="needs a model of discrete tokens such as preset tt or dt_discrete"):
        choose_id(np.zeros((2, 3), np.float32), DecodingConfig(**options), generators(2))


def test_a_row_without_a_number_is_named():
    with pytest.raises(InputError, match="left no token to choose from in row 1"):
        choose_id(np.array([[0, 1], [np.nan, 0]], np.float32), DecodingConfig(strategy="sample"), generators(2))
