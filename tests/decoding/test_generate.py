"""Generating: every strategy stops where it should, leaves the stream as promised, and keeps rows apart."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from dtrl.config import STRATEGIES as CONFIGURED
from dtrl.config import DecodingConfig
from dtrl.decoding import STRATEGIES, NgramDraft, PairedStream, RecomputedStream, Stop, generate, tokens
from dtrl.decoding.progress import Progress
from dtrl.errors import InputError

V = 5
PROMPTS = torch.tensor([[1, 2], [3, 0], [4, 4], [0, 1]])


def run(model, strategy, generators, steps=7, stop=None, prompts=PROMPTS, function=generate, **options):
    """(what came out, the stream)"""
    stream = RecomputedStream(model, prompts)
    draft = NgramDraft() if strategy == "speculative" else None
    config = DecodingConfig(strategy=strategy, **options)
    return function(stream, config, generators, steps, stop, prompt=prompts, draft=draft), stream


def cut(ids, end):
    return ids[: ids.index(end) + 1] if end in ids else ids


def listed(generated):
    return [row[:length] for row, length in zip(generated.ids.tolist(), generated.lengths.tolist(), strict=True)]


def test_every_strategy_of_the_configuration_that_judges_no_actions_is_in_the_table():
    assert set(STRATEGIES) == set(CONFIGURED) - {"plan", "best_of"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_many_tokens_as_asked_for_are_made_and_the_stream_holds_all_but_the_last(markov, generators, strategy):
    made, stream = run(markov(V), strategy, generators(4))
    assert made.ids.shape == (4, 7)
    assert made.lengths.tolist() == [7] * 4
    assert ((made.ids >= 0) & (made.ids < V)).all()
    if strategy != "beam":
        assert stream.contents() == torch.cat([PROMPTS, made.ids[:, :-1]], dim=1).tolist()


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "beam"])
def test_a_row_ends_with_its_end_token_and_the_others_go_on_as_they_would(markov, generators, strategy):
    """Beam search, which looks for the best sequence that ends, is tested for itself."""
    whole, _ = run(markov(V), strategy, generators(4), steps=12)
    for end in range(V):
        made, stream = run(markov(V), strategy, generators(4), steps=12, stop=Stop(end))
        expected = [cut(ids, end) for ids in whole.ids.tolist()]
        assert listed(made) == expected
        assert made.ids.shape[1] == max(len(ids) for ids in expected)
        assert (made.ids >= 0).sum(1).tolist() == made.lengths.tolist()
        assert stream.contents() == [p + ids[:-1] for p, ids in zip(PROMPTS.tolist(), expected, strict=True)]
    assert len({len(cut(ids, end)) for end in range(V) for ids in whole.ids.tolist()}) > 2


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "beam"])
def test_a_row_ends_where_the_predicate_says(markov, generators, strategy):
    asked = []

    def until(ids):
        asked.append(ids.tolist())
        return sum(ids.tolist()) >= 9

    whole, _ = run(markov(V), strategy, generators(4), steps=12)
    made, _ = run(markov(V), strategy, generators(4), steps=12, stop=Stop(until=until))
    for ids, row in zip(listed(made), whole.ids.tolist(), strict=True):
        assert ids == row[: len(ids)]
        assert sum(ids) >= 9 or len(ids) == 12
        assert sum(ids[:-1]) < 9
        assert all(ids[: i + 1] in asked for i in range(len(ids)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_come_one_by_one_as_they_are_generated_at_once(markov, generators, strategy):
    made, _ = run(markov(V), strategy, generators(4), stop=Stop(end=2))
    streamed, _ = run(markov(V), strategy, generators(4), stop=Stop(end=2), function=tokens)
    columns = list(streamed)
    assert torch.equal(torch.stack([ids for ids, _ in columns], dim=1), made.ids)
    assert torch.equal(torch.stack([valid for _, valid in columns], dim=1), made.ids >= 0)


def test_a_token_is_there_before_the_next_one_is_computed(markov, generators):
    calls = []

    def counted(ids):
        calls.append(ids.shape)
        return markov(V)(ids)

    streamed, _ = run(counted, "greedy", [], function=tokens)
    counts = [len(calls) for _ in streamed]
    assert all(before < after for before, after in itertools.pairwise(counts))


@pytest.mark.parametrize("strategy", ["sample", "speculative"])
def test_a_finished_row_draws_no_more(markov, generators, strategy):
    end = 2
    rows = generators(4)
    made, _ = run(markov(V), strategy, rows, steps=12, stop=Stop(end))
    lengths = made.lengths.tolist()
    assert min(lengths) < max(lengths)
    first = lengths.index(min(lengths))
    alone = [generators(4)[first]]
    run(markov(V), strategy, alone, steps=12, stop=Stop(end), prompts=PROMPTS[first : first + 1])
    assert rows[first].random() == alone[0].random()
    if strategy == "sample":
        for row, fresh, length in zip(rows[first + 1 :], generators(4)[first + 1 :], lengths[first + 1 :], strict=True):
            fresh.random(length)
            assert row.random() == fresh.random()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_does_not_depend_on_its_neighbours(markov, generators, strategy):
    made, _ = run(markov(V), strategy, generators(4), steps=9, stop=Stop(end=2))
    for rows in ([1], [3, 0], [2, 1, 0]):
        own = [generators(4)[row] for row in rows]
        some, _ = run(markov(V), strategy, own, steps=9, stop=Stop(end=2), prompts=PROMPTS[rows])
        assert listed(some) == [listed(made)[row] for row in rows]


def test_greedy_takes_the_mode_and_draws_nothing(gpt2, gpt2_model):
    made, _ = run(gpt2_model, "greedy", [], steps=10)
    theirs = gpt2.generate(
        PROMPTS, attention_mask=torch.ones_like(PROMPTS), do_sample=False, max_new_tokens=10, pad_token_id=0
    )
    assert torch.equal(made.ids, theirs[:, 2:])
    cold, _ = run(gpt2_model, "sample", [], steps=10, temperature=0.0, top_p=0.5)
    assert torch.equal(cold.ids, made.ids)


def test_samples_have_the_joint_distribution_of_the_model(markov, log_probability):
    """Chi-square over 30,000 pairs; fails a correct sampler with probability 1e-4."""
    prompts, one = PROMPTS[:1].expand(30_000, -1), np.random.default_rng(0)
    made, _ = run(markov(V, scale=0.7), "sample", [one] * 30_000, steps=2, prompts=prompts)
    counts = torch.bincount(made.ids @ torch.tensor([V, 1]), minlength=V * V)
    every = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    expected = 30_000 * log_probability(markov(V, scale=0.7), PROMPTS[0], every).exp()
    assert expected.min() > 5
    assert chisquare(counts, expected).pvalue > 1e-4


def test_history_options_look_back_on_the_prompt_and_on_what_was_generated(gpt2, gpt2_model):
    prompts = torch.tensor([[1, 2, 3, 1], [5, 5, 0, 5], [7, 8, 7, 8]])
    config = DecodingConfig(no_repeat_ngram=2)
    made = generate(RecomputedStream(gpt2_model, prompts), config, [], 15, prompt=prompts)
    theirs = gpt2.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=15, pad_token_id=0, no_repeat_ngram_size=2
    )  # fmt: skip
    assert torch.equal(made.ids, theirs[:, 4:])
    assert not torch.equal(made.ids, generate(RecomputedStream(gpt2_model, prompts), DecodingConfig(), [], 15).ids)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompts_of_different_lengths_are_padded_on_the_right(markov, generators, strategy):
    """No pair of tokens twice, those of the prompt included; and a row is what it is without the padding."""
    padded = torch.tensor([[1, 2, 1, -1], [3, 0, -1, -1], [-1, -1, -1, -1], [2, 1, 2, 2]])
    config = DecodingConfig(strategy=strategy, no_repeat_ngram=2)

    def made(rows, prompt):
        draft = NgramDraft() if strategy == "speculative" else None
        own = [generators(4)[row] for row in rows]
        stream = RecomputedStream(markov(4), PROMPTS[rows].clamp(max=3))
        return generate(stream, config, own, 4, prompt=prompt, draft=draft).ids

    whole = made([0, 1, 2, 3], padded)
    for row, prompt in enumerate(padded):
        known = prompt[prompt >= 0]
        seen = known.tolist() + whole[row].tolist()
        pairs = list(itertools.pairwise(seen))
        assert len(set(pairs)) == len(pairs)
        assert torch.equal(made([row], known[None])[0], whole[row])


def test_progress_keeps_what_a_row_takes_up_to_its_end():
    progress = Progress(3, 4, Stop(end=9), torch.tensor([[7, 8], [7, -1], [-1, -1]]), torch.device("cpu"))
    assert progress.last().tolist() == [0, 0, 0]
    taken = progress.add(torch.tensor([[1, 2, 3], [1, 9, 3], [4, 5, 6]]), torch.tensor([3, 3, 1]))
    assert taken.tolist() == [3, 2, 1]
    assert progress.ids.tolist() == [[1, 2, 3], [1, 9, -1], [4, -1, -1]]
    assert progress.history.tolist() == [[7, 8, 1, 2, 3], [7, 1, 9, -1, -1], [4, -1, -1, -1, -1]]
    assert progress.last().tolist() == [3, 9, 4]
    assert progress.history_with(torch.tensor([[5], [5], [5]])).tolist() == [
        [7, 8, 1, 2, 3, 5], [7, 1, 9, 5, -1, -1], [4, 5, -1, -1, -1, -1],
    ]  # fmt: skip
    assert progress.going.tolist() == [True, False, True]
    assert progress.add(torch.tensor([[1, 2], [1, 2], [5, 6]])).tolist() == [1, 0, 2]
    assert progress.going.tolist() == [False, False, True]
    assert progress.lengths.tolist() == [4, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": DecodingConfig(strategy="plan")}, "strategy plan judges actions, .* one of greedy, sample, beam"),
        ({"steps": 0}, "steps 0 must be a positive number"),
        ({"prompt": PROMPTS[:2]}, r"prompt has shape \(2, 2\); \(4, T\) is expected"),
        ({"config": DecodingConfig(strategy="speculative")}, "strategy speculative needs a draft"),
        ({"draft": NgramDraft()}, "strategy greedy has no use for a draft"),
    ],
    ids=["plan", "steps", "prompt", "no draft", "a draft"],
)
def test_what_makes_no_sense_is_refused(markov, options, message):
    asked = {"config": DecodingConfig(), "steps": 3, **options}
    with pytest.raises(InputError, match=message):
        generate(RecomputedStream(markov(V), PROMPTS), asked.pop("config"), [], asked.pop("steps"), **asked)


def test_there_is_one_generator_for_each_row(markov, generators):
    with pytest.raises(ValueError, match="3 generators for 4 rows"):
        run(markov(V), "sample", generators(3))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_with_nothing_to_choose_is_named(markov, generators, strategy):
    def model(ids):
        logits, hidden = markov(V)(ids)
        return torch.where((ids[:, :1] == 4)[..., None], -torch.inf, logits), hidden

    with pytest.raises(InputError, match=r"the model, or the action mask, left no token to choose from in row \(2,"):
        run(model, strategy, generators(4))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_guided_stream_goes_with_every_strategy(markov, generators, strategy):
    first, second = markov(V, seed=1), markov(V, seed=2)
    both = PairedStream([RecomputedStream(model, PROMPTS) for model in (first, second)], lambda a, b: 2 * a - b)
    draft = NgramDraft() if strategy == "speculative" else None
    made = generate(both, DecodingConfig(strategy=strategy), generators(4), 6, prompt=PROMPTS, draft=draft)

    def combined(ids):
        return 2 * first(ids)[0] - second(ids)[0], first(ids)[1]

    assert torch.equal(made.ids, run(combined, strategy, generators(4), steps=6)[0].ids)
