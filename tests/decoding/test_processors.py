"""What may be chosen: the same sets as transformers' warpers where no two logits are equal, and our own rule where they are."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtrl.config import DecodingConfig
from dtrl.decoding import HISTORY_PROCESSORS, PROCESSORS, process
from dtrl.errors import InputError

INF = math.inf
V = 17


def sample(**options):
    return DecodingConfig(strategy="sample", **options)


def kept(logits):
    return torch.isfinite(logits)


def rows(count=10_000, dtype=torch.float64):
    """Logits without ties."""
    logits = 3 * torch.randn(count, V, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert (logits.sort(dim=-1).values.diff(dim=-1) > 0).all()
    return logits


# Against transformers


def warped(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """The same through transformers, in the order of its `generate`."""
    from transformers.generation import logits_process

    if temperature != 1:
        logits = logits_process.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        logits = logits_process.TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1:
        logits = logits_process.TopPLogitsWarper(top_p)(None, logits)
    if min_p:
        logits = logits_process.MinPLogitsWarper(min_p)(None, logits)
    if typical_p < 1:
        logits = logits_process.TypicalLogitsWarper(typical_p)(None, logits)
    return logits


CUTS = [
    {}, {"top_k": 1}, {"top_k": 5}, {"top_k": V}, {"top_k": 100}, {"top_p": 0.01}, {"top_p": 0.5}, {"top_p": 0.9},
    {"top_p": 0.999}, {"min_p": 0.01}, {"min_p": 0.3}, {"min_p": 1.0}, {"top_k": 5, "top_p": 0.7},
    {"top_p": 0.8, "min_p": 0.2}, {"top_k": 6, "top_p": 0.8, "min_p": 0.1},
    {"typical_p": 0.05}, {"typical_p": 0.5}, {"typical_p": 0.95}, {"top_k": 9, "min_p": 0.01, "typical_p": 0.7},
]  # fmt: skip
SEVERAL = [options for options in CUTS if len(options) != 1]


@pytest.mark.parametrize(
    ("temperature", "options"),
    [*((1.0, options) for options in CUTS), *itertools.product((0.3, 2.0), SEVERAL)],
    ids=str,
)
def test_the_same_tokens_are_left_as_in_transformers(temperature, options):
    logits = rows()
    ours, theirs = process(logits, sample(temperature=temperature, **options)), warped(logits, temperature, **options)
    assert torch.equal(kept(ours), kept(theirs))
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-12)


def test_the_filters_apply_in_the_order_of_the_configuration():
    assert list(PROCESSORS) == ["temperature", "top_k", "top_p", "min_p", "typical_p"]
    assert list(HISTORY_PROCESSORS) == ["repetition_penalty", "no_repeat_ngram"]
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]).log_softmax(-1)  # 0.64, 0.23, 0.09, …
    hot = sample(temperature=4.0, top_p=0.6)
    assert kept(process(logits, hot)).sum() > kept(process(logits, sample(top_p=0.6))).sum()
    # of three tokens the first is 0.67: top-p of 0.66 keeps one of these, and two of all five
    assert kept(process(logits, sample(top_k=3, top_p=0.66))).sum() == 1
    assert kept(process(logits, sample(top_p=0.66))).sum() == 2


def histories(count=10_000, length=12, ids=V):
    return torch.randint(ids, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers_on_log_probabilities(penalty):
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    logits, history = rows(), histories()
    logits[:, 3] = -INF
    ours = process(logits + 5, sample(repetition_penalty=penalty), history)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.log_softmax(-1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12, 13, 20])
def test_the_banned_ngrams_are_those_of_transformers(n):
    from transformers.generation import NoRepeatNGramLogitsProcessor

    logits, history = rows(2_000), histories(2_000, ids=4)
    ours = process(logits, sample(no_repeat_ngram=n), history)
    theirs = NoRepeatNGramLogitsProcessor(n)(history, logits.clone())
    assert torch.equal(ours, theirs)
    assert n > 4 or not kept(ours).all()


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 2.0}, {"no_repeat_ngram": 1}, {"no_repeat_ngram": 3}], ids=str
)
def test_a_shorter_history_is_padded_on_the_right_and_the_padding_means_nothing(options):
    config, logits = sample(**options), rows(12)
    whole = histories(12, ids=3)
    padded = whole.clone()
    for row in range(12):
        padded[row, row:] = -1
    alone = [process(logits[row : row + 1], config, whole[row : row + 1, :row]) for row in range(12)]
    assert torch.equal(process(logits, config, padded), torch.cat(alone))


def test_the_whole_order_is_that_of_a_list_of_transformers():
    """Temperature, top-k, top-p, min-p, typical, repetition, n-grams, over 10,000 rows."""
    from transformers.generation import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    cuts = {"temperature": 1.5, "top_k": 12, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9}
    logits, history = rows(), histories(length=3)
    penalised = RepetitionPenaltyLogitsProcessor(1.4)(history, warped(logits, **cuts).log_softmax(-1))
    theirs = NoRepeatNGramLogitsProcessor(2)(history, penalised)
    possible = kept(theirs).any(-1)
    assert 0.9 < possible.double().mean()
    config = sample(**cuts, repetition_penalty=1.4, no_repeat_ngram=2)
    ours = process(logits[possible], config, history[possible])
    torch.testing.assert_close(ours.softmax(-1), theirs[possible].softmax(-1), rtol=1e-12, atol=1e-12)


# Laws

OPTIONS = st.builds(
    sample,
    temperature=st.floats(0.05, 10),
    top_k=st.integers(0, 2 * V),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
LOGITS = st.lists(st.integers(-4, 4) | st.just(-INF), min_size=V, max_size=V).filter(lambda row: max(row) > -INF)
"""Rows with many ties, and some tokens that a mask has removed."""


@given(LOGITS, OPTIONS)
def test_the_best_token_is_never_removed_and_a_removed_one_never_comes_back(row, config):
    logits = torch.tensor([row], dtype=torch.float32)
    processed = process(logits, config)
    assert kept(processed)[0, logits.argmax()]
    assert not (kept(processed) & ~kept(logits)).any()
    assert (logits[kept(processed)].min() >= logits[~kept(processed)]).all()
    assert not config.top_k or kept(processed).sum() <= config.top_k


@given(LOGITS, OPTIONS)
def test_a_row_does_not_depend_on_its_neighbours_or_the_shape_of_the_batch(row, config):
    logits = torch.stack([torch.tensor(row, dtype=torch.float32), torch.arange(V) / 3.0])
    alone = torch.cat([process(logits[i : i + 1], config) for i in range(2)])
    assert torch.equal(process(logits, config), alone)
    assert torch.equal(process(logits.reshape(2, 1, 1, V), config).reshape(2, V), alone)


@given(LOGITS)
def test_without_an_option_nothing_changes(row):
    logits = torch.tensor([row], dtype=torch.float32)
    assert torch.equal(process(logits, sample()), logits)
    assert torch.equal(process(logits, sample(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0)), logits)


def test_top_p_of_almost_one_keeps_what_probability_there_is():
    logits = torch.tensor([[0.0, -1.0, -2.0, -200.0, -INF]])
    assert kept(process(logits, sample(top_p=1 - 1e-9)))[0].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    "options",
    [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"typical_p": 0.2}, {"temperature": 1e-6}, {"repetition_penalty": 3.0}, {"no_repeat_ngram": 3}],
    ids=str,
)  # fmt: skip
def test_one_possible_token_stays_possible(options):
    logits = torch.full((2, V), -INF)
    logits[0, 4], logits[1, 0] = -1e30, 7.0
    processed = process(logits, sample(**options), torch.tensor([[4, 4], [1, 0]]))
    assert torch.equal(processed.softmax(-1), torch.nn.functional.one_hot(torch.tensor([4, 0]), V).float())


# Ties


def test_ties_at_the_cut_are_broken_towards_the_lower_id():
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0]])
    expected = {1: [1], 2: [1, 4], 3: [0, 1, 4], 4: [0, 1, 2, 4], 5: [0, 1, 2, 3, 4]}
    for k, ids in expected.items():
        assert kept(process(logits, sample(top_k=k)))[0].nonzero().flatten().tolist() == ids


@pytest.mark.parametrize(("p", "count"), [(0.1, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4)])
def test_the_fewest_of_equal_tokens_reach_the_probability(p, count):
    assert kept(process(torch.zeros(1, 4), sample(top_p=p)))[0].tolist() == [i < count for i in range(4)]


def test_min_p_keeps_all_that_are_as_probable_as_the_best():
    assert kept(process(torch.tensor([[1.0, 2.0, 2.0]]), sample(min_p=1.0)))[0].tolist() == [False, True, True]


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_a_tiny_temperature_leaves_the_best_token_alone(dtype, temperature):
    logits = torch.tensor([[3.0, 1.0, 2.0, -INF], [-900.0, -INF, -901.0, 1e4]], dtype=dtype)
    probabilities = process(logits, sample(temperature=temperature)).softmax(-1)
    assert probabilities.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_huge_temperature_leaves_all_possible_tokens_alike(temperature):
    logits = rows(5, torch.float32)
    logits[:, 0] = -INF
    probabilities = process(logits, sample(temperature=temperature)).softmax(-1)
    torch.testing.assert_close(probabilities[:, 1:], torch.full((5, V - 1), 1 / (V - 1)))
    assert (probabilities[:, 0] == 0).all()


@pytest.mark.parametrize("spoilt", [[-INF, -INF, -INF], [0.0, math.nan, 1.0], [math.nan] * 3, [0.0, INF, 1.0]])
def test_a_row_without_a_choice_is_named_with_its_stage(spoilt):
    logits = torch.zeros(2, 3, 3)
    logits[1, 2] = torch.tensor(spoilt)
    with pytest.raises(InputError, match=r"the model, or the action mask, left no token .* in row \(1, 2\)"):
        process(logits, sample(top_k=2))


def test_a_stage_that_empties_a_row_is_named(monkeypatch):
    monkeypatch.setitem(PROCESSORS, "top_p", (lambda logits, config: logits - INF, 1.0))
    with pytest.raises(InputError, match=r"top_p left no token to choose from in row \(0,\)"):
        process(torch.zeros(2, 3), sample(top_k=2, top_p=0.5))


def test_a_row_of_which_all_tokens_were_there_is_named_with_its_stage():
    history = torch.tensor([[0, -1, -1], [2, 0, 1]])
    with pytest.raises(InputError, match=r"no_repeat_ngram left no token to choose from in row \(1,\)"):
        process(torch.zeros(2, 3), sample(no_repeat_ngram=1), history)
    assert process(torch.zeros(2, 3), sample(no_repeat_ngram=1)).isfinite().all()


def test_typical_may_remove_the_best_token():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()  # entropy 1.21, surprises 0.69, 1.39, 1.90, 2.30
    assert kept(process(logits, sample(typical_p=0.2)))[0].tolist() == [False, True, False, False]
    assert kept(process(logits, sample(typical_p=0.3)))[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(("p", "count"), [(0.1, 1), (0.26, 2), (0.51, 3), (0.76, 4), (0.999, 4)])
def test_equally_typical_tokens_are_kept_from_the_lowest_id_up(p, count):
    logits = torch.tensor([[-INF, 1.0, 1.0, 1.0, 1.0]])
    assert kept(process(logits, sample(typical_p=p)))[0].nonzero().flatten().tolist() == list(range(1, count + 1))


def test_every_processor_is_an_option_that_is_off_by_default():
    assert PROCESSORS
    for name, (_, off) in (PROCESSORS | HISTORY_PROCESSORS).items():
        assert getattr(DecodingConfig(), name) == off


def test_processors_leave_their_input_alone():
    logits = rows(10)
    before = logits.clone()
    history = torch.zeros(10, 3, dtype=torch.long)
    changed = {
        "temperature": 0.5,
        "top_k": 2,
        "top_p": 0.5,
        "min_p": 0.5,
        "typical_p": 0.5,
        "repetition_penalty": 2.0,
        "no_repeat_ngram": 1,
    }
    assert changed.keys() == (PROCESSORS | HISTORY_PROCESSORS).keys()
    for name, value in changed.items():
        assert not torch.equal(process(logits, sample(**{name: value}), history), logits)
        assert torch.equal(logits, before)
