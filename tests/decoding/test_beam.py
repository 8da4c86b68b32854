"""Beam search: all sequences where the beam is wide enough, transformers' where it is not."""

import itertools
import math

import pytest
import torch

from dtrl.config import DecodingConfig
from dtrl.decoding import RecomputedStream, Stop, beam_search, generate
from dtrl.errors import InputError

V, N = 5, 4
PROMPTS = torch.tensor([[1, 2], [3, 0], [4, 4]])


def beam(width, **options):
    return DecodingConfig(strategy="beam", beam_width=width, **options)


def sequences(end=None, steps=N):
    """All that can be generated: of `steps` tokens without the end token, or up to the first end token."""
    if end is None:
        return list(itertools.product(range(V), repeat=steps))
    others = [i for i in range(V) if i != end]
    whole = [(*head, end) for n in range(steps) for head in itertools.product(others, repeat=n)]
    return whole + list(itertools.product(others, repeat=steps))


def listed(beams, row):
    pairs = zip(beams.ids[row].tolist(), beams.lengths[row].tolist(), strict=True)
    return [tuple(ids[:length]) for ids, length in pairs]


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_a_wide_beam_finds_the_best_of_all_sequences(markov, log_probability, end, penalty):
    """5 ids, 4 tokens: all 625 sequences, or all 426 with an end token, ranked."""
    model, width = markov(V), V ** (N - 1)
    beams = beam_search(RecomputedStream(model, PROMPTS), beam(width, length_penalty=penalty), N, end)
    for row, prompt in enumerate(PROMPTS):
        scores = {}
        for n, some in itertools.groupby(sequences(end), len):
            group = list(some)
            sums = log_probability(model, prompt, torch.tensor(group)) / n**penalty
            scores |= dict(zip(group, sums.tolist(), strict=True))
        best = sorted(scores, key=lambda ids: -scores[ids])[:width]
        # one that ends outside of the best W of its step is none of the beam's
        count = width if end is None else 1
        assert listed(beams, row)[:count] == best[:count]
        torch.testing.assert_close(
            beams.scores[row, :count], torch.tensor([scores[ids] for ids in best[:count]], dtype=torch.float64)
        )


NARROW = [
    {}, {"end": 3}, {"end": 3, "length_penalty": 1.0}, {"end": 3, "length_penalty": -1.0},
    {"no_repeat_ngram": 2}, {"repetition_penalty": 1.5}, {"end": 3, "repetition_penalty": 1.5, "no_repeat_ngram": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "options"),
    [*((4, options) for options in NARROW), *itertools.product((1, 2, 7), ({"end": 3}, NARROW[-1]))],
    ids=str,
)
def test_a_narrow_beam_is_that_of_transformers(gpt2, gpt2_model, width, options):
    options = dict(options)
    end, prompts, steps = options.pop("end", None), torch.tensor([[1, 2], [5, 0], [9, 9], [3, 7], [0, 10]]), 7
    theirs = gpt2.generate(
        prompts, attention_mask=torch.ones_like(prompts), num_beams=width, num_return_sequences=width, do_sample=False,
        early_stopping="never", length_penalty=options.get("length_penalty", 0.0), max_new_tokens=steps, eos_token_id=end,
        pad_token_id=0, no_repeat_ngram_size=options.get("no_repeat_ngram", 0), output_scores=True,
        repetition_penalty=options.get("repetition_penalty", 1.0), return_dict_in_generate=True,
    ) if width > 1 else None  # fmt: skip
    ours = beam_search(RecomputedStream(gpt2_model, prompts), beam(width, **options), steps, end, prompt=prompts)
    if theirs is None:
        greedy = DecodingConfig(**{k: v for k, v in options.items() if k != "length_penalty"})
        stream = RecomputedStream(gpt2_model, prompts)
        expected = generate(stream, greedy, [], steps, Stop(end), prompt=prompts).ids
        assert torch.equal(ours.ids[:, 0, : expected.shape[1]], expected)
        return
    expected = theirs.sequences[:, 2:].unflatten(0, (len(prompts), width))
    length = min(expected.shape[2], ours.ids.shape[2])
    made = ours.ids[..., :length]
    assert torch.equal(made, torch.where(made < 0, -1, expected[..., :length]))
    assert (ours.ids[..., length:] == -1).all()
    torch.testing.assert_close(ours.scores.flatten(), theirs.sequences_scores.double(), rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lower_ids():
    def uniform(ids):
        return torch.zeros(*ids.shape, 3), torch.zeros(*ids.shape, 1)

    beams = beam_search(RecomputedStream(uniform, torch.zeros(2, 1, dtype=torch.long)), beam(4), 3)
    assert beams.ids.tolist() == [[[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]] * 2


def test_a_row_does_not_depend_on_its_neighbours(markov):
    """Neither on when these are finished."""
    model = markov(V, seed=1)
    together = beam_search(RecomputedStream(model, PROMPTS), beam(3, length_penalty=0.3), 9, end=0)
    for row in range(3):
        alone = beam_search(RecomputedStream(model, PROMPTS[row : row + 1]), beam(3, length_penalty=0.3), 9, end=0)
        assert listed(alone, 0) == listed(together, row)
        assert alone.scores[0].tolist() == together.scores[row].tolist()
    assert len({len(ids) for row in range(3) for ids in listed(together, row)}) > 1


def test_where_there_are_fewer_sequences_than_beams_the_rest_are_none():
    def model(ids):  # two ids out of four can be had
        logits = torch.tensor([0.0, -math.inf, 1.0, -math.inf]).expand(*ids.shape, 4)
        return logits, torch.zeros(*ids.shape, 1)

    beams = beam_search(RecomputedStream(model, torch.zeros(1, 1, dtype=torch.long)), beam(6), 2)
    assert beams.ids[0, :4].tolist() == [[2, 2], [2, 0], [0, 2], [0, 0]]
    assert beams.scores[0].isneginf().tolist() == [False] * 4 + [True] * 2


def test_a_dead_end_costs_a_beam_and_the_last_one_is_an_error(markov):
    """Two ids, none twice in the same pair: 0 0 1 1 0 is as long as it gets."""
    stream = RecomputedStream(markov(2), torch.tensor([[0]]))
    assert beam_search(stream, beam(8, no_repeat_ngram=2), 5).scores[0, 0].isfinite()
    stream = RecomputedStream(markov(2), torch.tensor([[0]]))
    with pytest.raises(InputError, match="no_repeat_ngram left no sequence of up to 6 tokens in row 0"):
        beam_search(stream, beam(8, no_repeat_ngram=2), 6)


def test_logits_that_are_no_numbers_are_an_error():
    def broken(ids):
        return torch.full((*ids.shape, 3), math.nan), torch.zeros(*ids.shape, 1)

    with pytest.raises(InputError, match="the model, or the action mask, left no token"):
        beam_search(RecomputedStream(broken, torch.zeros(1, 1, dtype=torch.long)), beam(2), 2)


def test_the_strategy_beam_gives_the_best_sequence_and_refuses_a_predicate(markov):
    model = markov(V)
    best = beam_search(RecomputedStream(model, PROMPTS), beam(8), 6, end=2)
    made = generate(RecomputedStream(model, PROMPTS), beam(8), [], 6, Stop(end=2))
    assert made.lengths.tolist() == best.lengths[:, 0].tolist()
    assert torch.equal(made.ids, best.ids[:, 0, : made.ids.shape[1]])
    with pytest.raises(InputError, match="beam ends sequences by an end token or their length alone"):
        generate(RecomputedStream(model, PROMPTS), beam(8), [], 6, Stop(until=lambda ids: True))
