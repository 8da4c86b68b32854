"""Speculative decoding: what comes out is distributed as without a draft, and a planted mistake is seen.

ALPHA is the level of each statistical test: a correct sampler fails one in 10,000 seeds, and the seeds are fixed."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from dtrl.config import DecodingConfig
from dtrl.decoding import (
    FactorisedDraft,
    NgramDraft,
    RecomputedStream,
    Stop,
    StreamDraft,
    generate,
    speculative,
    speed_up,
)
from dtrl.decoding.drafts import Proposal, look_up
from dtrl.decoding.speculative import verify
from dtrl.errors import InputError

ALPHA = 1e-4
V, STEPS, MANY = 6, 3, 60_000
HISTORY = ("repetition_penalty", "no_repeat_ngram")


def speculating(**options):
    return DecodingConfig(strategy="speculative", **{"draft_tokens": 2, **options})


def shared(rows, seed=0):
    """One generator for all rows: as good as one each for a distribution, and quickly made."""
    return [np.random.default_rng(seed)] * rows


def prompts_of(rows):
    return torch.tensor([[2, 3]]).expand(rows, -1)


def draft_of(name, markov, prompts):
    """A draft that is right now and then."""
    if name == "model":
        return StreamDraft(RecomputedStream(markov(V, seed=8), prompts))
    if name == "ngram":
        return NgramDraft()
    logits = torch.randn(STEPS, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return FactorisedDraft(logits.expand(len(prompts), -1, -1))


DRAFTS = ("factorised", "model", "ngram")


def joint(model, config):
    """(V ** 3,) the probability of every three tokens after the prompt, through the processors of a `sample` of the same options."""
    from dtrl.decoding import process

    every = torch.cartesian_prod(*[torch.arange(V)] * STEPS)
    whole = torch.cat([prompts_of(len(every)), every], dim=1)
    plain = DecodingConfig(
        strategy="sample", **{k: getattr(config, k) for k in ("temperature", "top_k", "top_p", *HISTORY)}
    )
    log_p = torch.zeros(len(every), dtype=torch.float64)
    logits = model(whole)[0]
    for i in range(STEPS):
        processed = process(logits[:, 1 + i], plain, whole[:, : 2 + i]).log_softmax(-1)
        log_p += processed.gather(1, every[:, i : i + 1]).squeeze(1)
    return log_p.exp().numpy()


def p_value(ids, expected):
    """Of Pearson's χ² over all triples; those that are expected less than five times count as one."""
    counts = np.bincount((ids @ torch.tensor([V * V, V, 1])).numpy(), minlength=V**STEPS)
    expected = expected / expected.sum() * len(ids)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    possible = expected > 0
    return chisquare(counts[possible], expected[possible]).pvalue


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft", "options"),
    [
        *[
            (draft, options)
            for draft in ("factorised", "model")
            for options in (
                {},
                {"draft_tokens": 1},
                {"draft_tokens": 5},
                {"temperature": 0.6, "top_k": 4, "top_p": 0.9},
            )
        ],
        ("ngram", {}),
    ],
    ids=str,
)
def test_three_tokens_are_distributed_as_without_a_draft(markov, draft, options):
    model, config, prompts = markov(V, scale=0.8), speculating(**options), prompts_of(MANY)
    made = generate(
        RecomputedStream(model, prompts),
        config,
        shared(MANY),
        STEPS,
        prompt=prompts,
        draft=draft_of(draft, markov, prompts),
    )
    assert made.ids.shape == (MANY, STEPS)
    assert p_value(made.ids, joint(model, config)) > ALPHA
    assert 0 < made.speculation.acceptance_rate < 1


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["factorised", "model"])
def test_processors_that_look_back_see_the_guesses_too(markov, draft):
    model, prompts = markov(V, scale=0.8), prompts_of(MANY)
    config = speculating(repetition_penalty=1.8, no_repeat_ngram=2)
    made = generate(
        RecomputedStream(model, prompts),
        config,
        shared(MANY),
        STEPS,
        prompt=prompts,
        draft=draft_of(draft, markov, prompts),
    )
    assert p_value(made.ids, joint(model, config)) > ALPHA


def from_p(target, proposal, uniforms):
    """The rule with a mistake: after a rejection the token is drawn from p, and not from what p has more than q."""
    accepted, _ = verify(target, proposal, uniforms)
    rows = torch.arange(len(target))
    return accepted, speculative.pick(target[rows, accepted], uniforms[rows, proposal.counts])


def without_a_test(target, proposal, uniforms):
    """The rule with a mistake: a guess is accepted where it is the most probable token."""
    best = target[:, :-1].argmax(-1) == proposal.ids
    accepted = (best & (torch.arange(best.shape[1]) < proposal.counts[:, None])).long().cumprod(1).sum(1)
    rows = torch.arange(len(target))
    return accepted, speculative.pick(target[rows, accepted], uniforms[rows, proposal.counts])


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [from_p, without_a_test])
@pytest.mark.parametrize("draft", ["factorised", "model"])
def test_a_planted_mistake_is_seen(markov, monkeypatch, mistake, draft):
    """The same test as above, of which the mistakes leave nothing: p-values of 1e-50 and less."""
    monkeypatch.setattr(speculative, "verify", mistake)
    model, prompts = markov(V, scale=0.8), prompts_of(MANY)
    made = generate(
        RecomputedStream(model, prompts), speculating(), shared(MANY), STEPS, draft=draft_of(draft, markov, prompts)
    )
    assert p_value(made.ids, joint(model, speculating())) < 1e-50


# The rule


def distributions(rows, guesses, seed=0, ids=7):
    random = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(1, guesses + 1, ids, generator=random, dtype=torch.float64)).softmax(-1)
    q = (2 * torch.randn(1, guesses, ids, generator=random, dtype=torch.float64)).softmax(-1)
    return p.expand(rows, -1, -1), q.expand(rows, -1, -1)


def drawn(p, q, seed=0):
    """A proposal of guesses from q, and uniform numbers."""
    random = np.random.default_rng(seed)
    ids = speculative.pick(q.contiguous(), torch.from_numpy(random.random(q.shape[:2])))
    counts = torch.full((len(q),), q.shape[1])
    return Proposal(ids, counts, q), torch.from_numpy(random.random((len(q), q.shape[1] + 1)))


@pytest.mark.slow
def test_guesses_are_accepted_as_often_as_in_transformers():
    """Of three guesses. Its mean over 1,500 rounds has a deviation of at most 1.5 / √1500, ours over 200,000 of 0.003; one seed in 70,000 gives a
    difference of 0.17."""
    from transformers.generation.utils import _speculative_sampling

    p, q = distributions(200_000, 3)
    ours = verify(p, *drawn(p, q))[0].double().mean()
    torch.manual_seed(0)
    theirs = [
        int(_speculative_sampling(ids[None], q[:1].log(), 3, p[:1].log())[1])
        for ids in drawn(p[:1_500], q[:1_500], seed=1)[0].ids
    ]
    assert 0.2 < ours < 2.5
    assert abs(ours - np.mean(theirs)) < 0.17


def test_one_guess_is_accepted_with_the_probability_that_the_distributions_share():
    """Σ min(p, q); 200,000 draws have a deviation of at most 0.0011, and 0.0055 is passed once in 1.7 million seeds."""
    p, q = distributions(200_000, 1)
    accepted, _ = verify(p, *drawn(p, q))
    assert abs(accepted.double().mean() - torch.minimum(p[0, 0], q[0, 0]).sum()) < 0.0055


def test_a_uniform_number_of_nothing_lets_nothing_impossible_through():
    p = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]], dtype=torch.float64)
    proposal = Proposal(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    for u in (0.0, np.nextafter(1, 0)):
        accepted, ids = verify(p, proposal, torch.full((1, 2), u, dtype=torch.float64))
        assert (accepted.item(), ids.item()) == (0, 1)


def test_equal_distributions_accept_everything_and_a_rejection_by_rounding_is_drawn_from_p():
    p, _ = distributions(1_000, 2)
    proposal, uniforms = drawn(p, p[:, :2])
    assert (verify(p, proposal, uniforms)[0] == 2).all()
    # a draft that claims more than all of its probability, as rounding might: nothing is left of p − q, and p is drawn from
    over = Proposal(proposal.ids, proposal.counts, p[:, :2] * (1 + 1e-12))
    accepted, ids = verify(p, over, torch.full_like(uniforms, 1 - 1e-16))
    assert (accepted == 0).all()
    assert (p[0, 0, ids] > 0).all()
    assert (ids == ids[0]).all()


def test_certain_guesses_are_accepted_with_their_probability_and_else_excluded():
    """200,000 draws, deviation at most 0.0011."""
    p, _ = distributions(200_000, 1)
    proposal, uniforms = drawn(p, p[:, :1])
    guess = torch.full((200_000, 1), 4)
    accepted, ids = verify(p, Proposal(guess, proposal.counts, None), uniforms)
    assert abs(accepted.double().mean() - p[0, 0, 4]) < 0.0055
    assert (ids[accepted == 0] != 4).all()


def test_rows_have_guesses_of_their_own_number():
    p, q = distributions(4, 3)
    proposal, uniforms = drawn(p, q)
    counts = torch.tensor([0, 1, 2, 3])
    accepted, ids = verify(q[:, [0, 1, 2, 2]], Proposal(proposal.ids, counts, q), uniforms)
    assert accepted.tolist() == [0, 1, 2, 3]
    expected = [speculative.pick(q[row, min(row, 2)], uniforms[row, row]).item() for row in range(4)]
    assert ids.tolist() == expected


# Greedy


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "options", [{}, {"draft_tokens": 7}, {"repetition_penalty": 3.0, "no_repeat_ngram": 3}], ids=str
)
def test_greedy_is_the_same_token_for_token_and_draws_nothing(gpt2_model, markov, draft, options):
    prompts = torch.tensor([[1, 2, 3], [5, 5, 0], [9, 8, 7], [3, 3, 3]])
    config = speculating(temperature=0.0, **options)
    plain = DecodingConfig(**{k: v for k, v in options.items() if k in HISTORY})
    expected = generate(RecomputedStream(gpt2_model, prompts), plain, [], 12, prompt=prompts).ids
    guesser = {
        "factorised": FactorisedDraft(torch.nn.functional.one_hot(expected, 11).double()[:, :8].roll(1, 0)),
        "model": StreamDraft(RecomputedStream(lambda ids: gpt2_model((ids + (ids == 4)) % 11), prompts)),
        "ngram": NgramDraft(4),
    }[draft]
    stream = RecomputedStream(gpt2_model, prompts)
    made = generate(stream, config, [], 12, prompt=prompts, draft=guesser)
    assert torch.equal(made.ids, expected)
    assert stream.contents() == torch.cat([prompts, expected[:, :-1]], dim=1).tolist()


def test_a_draft_that_is_the_model_is_always_right_and_takes_few_rounds(gpt2_model):
    prompts = torch.tensor([[1, 2, 3], [5, 5, 0]])
    draft = StreamDraft(RecomputedStream(gpt2_model, prompts))
    for config in (speculating(draft_tokens=3, temperature=0.0), speculating(draft_tokens=3)):
        draft.stream = RecomputedStream(gpt2_model, prompts)
        made = generate(RecomputedStream(gpt2_model, prompts), config, shared(2), 10, draft=draft)
        assert made.speculation.acceptance_rate == 1
        assert made.speculation.rounds.tolist() == [3, 3]  # of 4, 4 and 2 tokens
        assert made.speculation.tested.tolist() == [7, 7]


def test_the_draft_stream_keeps_what_has_come_true(gpt2_model, markov, generators):
    prompts = torch.tensor([[1, 2], [3, 4], [0, 5]])
    draft, stream = RecomputedStream(markov(11), prompts), RecomputedStream(gpt2_model, prompts)
    made = generate(stream, speculating(draft_tokens=3), generators(3), 15, draft=StreamDraft(draft))
    assert 0 < made.speculation.acceptance_rate < 1
    assert draft.contents() == stream.contents() == torch.cat([prompts, made.ids[:, :-1]], dim=1).tolist()


def test_a_guess_that_leads_nowhere_is_no_error_until_the_model_gets_there(generators):
    """From 0 the model goes to 1, and on; the draft guesses 2, after which there is nothing."""

    def model(ids):
        logits = torch.tensor([[-torch.inf, 9.0, 0.0], [9.0, -torch.inf, 0.0], [-torch.inf] * 3])[ids]
        return logits, torch.zeros(*ids.shape, 1)

    def wrong(ids):
        return torch.tensor([0.0, 0.0, 99.0]).expand(*ids.shape, 3), torch.zeros(*ids.shape, 1)

    prompts = torch.zeros(1, 1, dtype=torch.long)
    for guesser in (wrong, model):
        draft = StreamDraft(RecomputedStream(guesser, prompts))
        config = speculating(temperature=0.0, draft_tokens=3)
        assert generate(RecomputedStream(model, prompts), config, [], 5, draft=draft).ids.tolist() == [[1, 0, 1, 0, 1]]
    lost = torch.full((1, 1), 2)
    with pytest.raises(InputError, match=r"the model, or the action mask, left no token to choose from in row \(0,\)"):
        generate(RecomputedStream(model, lost), config, [], 5, draft=StreamDraft(RecomputedStream(wrong, lost)))
    config = speculating(no_repeat_ngram=1, draft_tokens=3)
    draft = StreamDraft(RecomputedStream(wrong, prompts))
    with pytest.raises(InputError, match=r"no_repeat_ngram left no token to choose from in row \(0,\)"):
        generate(RecomputedStream(wrong, prompts), config, generators(1), 5, draft=draft)


# Drafts, numbers


def test_the_newest_of_the_longest_suffixes_is_looked_up():
    assert look_up([1, 2, 3, 9, 1, 2, 3], 4, 2) == [9, 1]
    assert look_up([1, 2, 7, 1, 2, 8, 1, 2], 3, 5) == [8, 1, 2]
    assert look_up([5, 2, 7, 1, 2, 8, 6, 2], 3, 1) == [8]  # no such pair, so the last token alone
    assert look_up([4, 4, 4], 3, 4) == [4]
    assert look_up([1, 2, 3], 3, 4) == look_up([1], 3, 4) == look_up([], 3, 4) == look_up([1, 1], 3, 0) == []
    with pytest.raises(ValueError, match="n-grams of 1 tokens"):
        NgramDraft(1)


def test_looking_up_helps_where_a_sequence_repeats():
    def model(ids):  # 0 1 2 3 0 1 2 3 …
        return 9.0 * torch.nn.functional.one_hot((ids + 1) % 4, 4), torch.zeros(*ids.shape, 1)

    prompts = torch.tensor([[0, 1, 2, 3, 0]])
    config = speculating(draft_tokens=4, temperature=0.0)
    made = generate(RecomputedStream(model, prompts), config, [], 20, prompt=prompts, draft=NgramDraft())
    assert made.ids.tolist() == [[(1 + i) % 4 for i in range(20)]]
    assert made.speculation.acceptance_rate == 1
    assert made.speculation.rounds.tolist() == [4]


def test_a_row_s_sample_does_not_depend_on_its_neighbours(gpt2_model, markov, generators):
    prompts = torch.tensor([[1, 2], [3, 4], [0, 5], [7, 7], [8, 1]])
    for make in (
        lambda rows: StreamDraft(RecomputedStream(markov(11), prompts[rows])),
        lambda rows: NgramDraft(),
        lambda rows: FactorisedDraft(gpt2_model(prompts)[0][rows, -1:].expand(-1, 6, -1)),
    ):

        def sampled(rows, make=make):
            own = [generators(5)[row] for row in rows]
            stop = Stop(end=8)
            return generate(
                RecomputedStream(gpt2_model, prompts[rows]),
                speculating(draft_tokens=4),
                own,
                9,
                stop,
                prompt=prompts[rows],
                draft=make(rows),
            )

        whole = sampled(list(range(5)))
        for rows in ([2], [4, 1], [0, 3]):
            some = sampled(rows)
            assert some.lengths.tolist() == whole.lengths[rows].tolist()
            assert torch.equal(some.ids, whole.ids[rows, : some.ids.shape[1]])
        assert len(set(whole.lengths.tolist())) > 1


@pytest.mark.parametrize(
    ("alpha", "gamma", "c", "expected"),
    [(0.8, 5, 0.0, 3.68928), (0.8, 5, 0.3, 3.68928 / 2.5), (0.0, 4, 0.5, 1 / 3), (1.0, 4, 0.25, 2.5), (0.5, 1, 0.0, 1.5)],
)  # fmt: skip
def test_the_speed_up_is_the_formula(alpha, gamma, c, expected):
    assert speed_up(alpha, gamma, c) == pytest.approx(expected)
    if alpha < 1:
        assert speed_up(alpha, gamma, c) == pytest.approx((1 - alpha ** (gamma + 1)) / ((1 - alpha) * (gamma * c + 1)))


@pytest.mark.parametrize("wrong", [(-0.1, 1, 0.1), (1.1, 1, 0.1), (0.5, 0, 0.1), (0.5, 1, -0.1)], ids=str)
def test_a_speed_up_of_nonsense_is_refused(wrong):
    with pytest.raises(InputError, match=r"acceptance must be in \[0, 1\], guesses at least 1"):
        speed_up(*wrong)


@pytest.mark.slow
def test_the_measured_tokens_of_a_pass_are_those_of_the_formula(gpt2_model):
    """With c = 0 the speed-up is the tokens of a pass, for a draft that is right with the same probability α everywhere: one distribution p, one q.
    4,000 rows of 40 tokens; rounds at the end are shorter, so 2 % are allowed."""
    p, q = distributions(1, 3)
    model = lambda ids: (p[0, 0].log().expand(*ids.shape, -1), torch.zeros(*ids.shape, 1))  # noqa: E731
    rows, alpha = 4_000, float(torch.minimum(p[0, 0], q[0, 0]).sum())
    stream = RecomputedStream(model, torch.zeros(rows, 1, dtype=torch.long))
    draft = FactorisedDraft(q[:1, :1].log().expand(rows, 400, -1))
    made = generate(stream, speculating(draft_tokens=3), shared(rows), 40, draft=draft)
    assert made.speculation.acceptance_rate == pytest.approx(alpha, abs=0.01)
    tokens_a_pass = rows * 40 / int(made.speculation.rounds.sum())
    assert tokens_a_pass == pytest.approx(speed_up(alpha, 3, 0.0), rel=0.02)
