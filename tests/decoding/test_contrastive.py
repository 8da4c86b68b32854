"""Contrastive search and contrastive decoding beside their formulas, written out anew, and beside transformers' guidance."""

import math
from types import SimpleNamespace

import pytest
import torch

from dtrl.config import DecodingConfig
from dtrl.decoding import RecomputedStream, Stop, contrast, generate, guide, paired
from dtrl.decoding.contrastive import candidate_scores
from dtrl.errors import InputError

PROMPTS = torch.tensor([[1, 2], [3, 0], [4, 9], [5, 5]])


def searching(alpha, k=4):
    return DecodingConfig(strategy="contrastive", contrastive_alpha=alpha, top_k=k)


def search_by_hand(model, prompt, steps, alpha, k):
    """One row, everything computed again for each candidate."""
    ids, from_ = list(prompt), len(prompt)
    for _ in range(steps):
        logits, hidden = model(torch.tensor([ids]))
        p, candidates = logits[0, -1].softmax(-1).topk(k)
        scores = []
        for probability, candidate in zip(p.tolist(), candidates.tolist(), strict=True):
            own = model(torch.tensor([[*ids, candidate]]))[1][0, -1]
            likeness = max(float(torch.cosine_similarity(own, h, dim=0)) for h in hidden[0])
            scores.append((1 - alpha) * probability - alpha * likeness)
        ids.append(candidates[scores.index(max(scores))].item())
    return ids[from_:]


@pytest.mark.parametrize(("alpha", "k"), [(0.0, 3), (0.3, 3), (1.0, 3), (0.6, 1), (0.6, 11)])
def test_contrastive_search_is_its_definition(gpt2_model, alpha, k):
    context = gpt2_model(PROMPTS)[1][:, :-1]
    stream = RecomputedStream(gpt2_model, PROMPTS)
    made = generate(stream, searching(alpha, k), [], 6, context=context)
    assert made.ids.tolist() == [search_by_hand(gpt2_model, row, 6, alpha, k) for row in PROMPTS.tolist()]


def test_the_weight_of_likeness_makes_a_difference(gpt2_model):
    made = [generate(RecomputedStream(gpt2_model, PROMPTS), searching(a), [], 8).ids for a in (0.0, 0.9)]
    assert not torch.equal(*made)


@pytest.mark.parametrize(("alpha", "k"), [(0.0, 4), (0.6, 1)])
def test_no_weight_or_one_candidate_is_greedy(gpt2_model, alpha, k):
    greedy = generate(RecomputedStream(gpt2_model, PROMPTS), DecodingConfig(), [], 8).ids
    assert torch.equal(generate(RecomputedStream(gpt2_model, PROMPTS), searching(alpha, k), [], 8).ids, greedy)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_candidates_are_ranked_as_transformers_4_ranked_them(alpha):
    """Its rule over flat candidates (B·k, S, D), (B·k, 1, D) and (B, k), from the formula."""
    random = torch.Generator().manual_seed(0)
    context = torch.randn(7, 5, 8, generator=random)
    hidden = torch.randn(7, 3, 8, generator=random)
    p = torch.rand(7, 3, generator=random)
    flat = context.repeat_interleave(3, dim=0)
    norm = flat / flat.norm(dim=2, keepdim=True)
    new = hidden.view(21, 1, 8) / hidden.view(21, 1, 8).norm(dim=2, keepdim=True)
    penalty = torch.matmul(norm, new.transpose(1, 2)).squeeze(-1).max(dim=-1).values
    expected = (1 - alpha) * p.view(-1) - alpha * penalty
    torch.testing.assert_close(candidate_scores(p, hidden, context, alpha), expected.view(7, 3))


def test_what_has_no_probability_is_never_chosen_however_unlike_it_is():
    def model(ids):
        logits = torch.tensor([0.0, -math.inf, -math.inf]).expand(*ids.shape, 3)
        return logits, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])[ids]

    stream = RecomputedStream(model, torch.zeros(1, 1, dtype=torch.long))
    assert generate(stream, searching(1.0, 3), [], 3).ids.tolist() == [[0, 0, 0]]


def test_a_row_that_has_ended_takes_no_part(gpt2_model):
    whole = generate(RecomputedStream(gpt2_model, PROMPTS), searching(0.6), [], 8).ids
    end = int(whole[0, 2])
    stream = RecomputedStream(gpt2_model, PROMPTS)
    made = generate(stream, searching(0.6), [], 8, Stop(end))
    for row, ids in enumerate(whole.tolist()):
        expected = ids[: ids.index(end) + 1] if end in ids else ids
        assert made.ids[row, : len(expected)].tolist() == expected
        assert stream.contents()[row] == PROMPTS[row].tolist() + expected[:-1]
    assert made.lengths[0] < 8


# Two models


def logits_of_two(count=10_000, ids=7):
    random = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, count, ids, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 3.0])
def test_guidance_is_that_of_transformers(gamma):
    from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

    conditioned, unconditioned = logits_of_two()

    class Given(UnbatchedClassifierFreeGuidanceLogitsProcessor):
        def get_unconditional_logits(self, input_ids):
            return SimpleNamespace(logits=unconditioned[:, None]).logits

    theirs = Given(gamma, None)(None, conditioned)
    torch.testing.assert_close(guide(conditioned, unconditioned, gamma).log_softmax(-1), theirs.log_softmax(-1))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_contrastive_decoding_is_its_formula_on_the_plausible_tokens(beta):
    expert, amateur = logits_of_two()
    made = contrast(expert, amateur, beta, plausible_p=0.2)
    p = expert.softmax(-1)
    plausible = p >= 0.2 * p.amax(-1, keepdim=True)
    assert 0 < (~plausible).sum() < plausible.numel()
    assert torch.equal(made.isfinite(), plausible)
    torch.testing.assert_close(made[plausible], (p.log() - beta * amateur.softmax(-1).log())[plausible])


def test_contrast_of_normalised_guidance_is_guidance_beyond_one():
    """(1 + β) log p − β log q is guidance by 1 + β; contrastive decoding has log p once."""
    expert, amateur = logits_of_two()
    torch.testing.assert_close(
        guide(expert, amateur, 1.5), expert.log_softmax(-1) * 0.5 + contrast(expert, amateur, 0.5, 0.0)
    )


@pytest.mark.parametrize("plausible", [0.0, 0.3])
def test_no_guidance_is_the_conditioned_model(plausible):
    conditioned, unconditioned = logits_of_two()
    made = guide(conditioned, unconditioned, 1.0, plausible)
    kept = made.isfinite()
    torch.testing.assert_close(made[kept], conditioned.log_softmax(-1)[kept])
    assert kept.all() == (plausible == 0)


def test_gaussian_logits_are_guided_to_the_mean_between_and_beyond():
    """Of equal deviations: the mean is μᵤ + γ (μ_c − μᵤ)."""
    x = torch.linspace(-8, 8, 1_601, dtype=torch.float64)
    conditioned, unconditioned = -((x - 1) ** 2) / 2, -((x + 0.5) ** 2) / 2
    for gamma in (0.0, 0.5, 2.0):
        mean = (guide(conditioned[None], unconditioned[None], gamma).softmax(-1) * x).sum()
        assert mean == pytest.approx(-0.5 + gamma * 1.5, abs=1e-3)


def test_masked_tokens_stay_masked():
    conditioned = torch.tensor([[0.0, 1.0, -math.inf]])
    for gamma in (0.0, 0.5, 1.0, 2.0):
        made = guide(conditioned, torch.tensor([[1.0, 0.0, -math.inf]]), gamma)
        assert made.isneginf().tolist() == [[False, False, True]]
        made = guide(conditioned, torch.tensor([[1.0, 0.0, 0.0]]), gamma)
        assert made.isneginf().tolist() == [[False, False, True]]


def test_a_token_that_only_the_second_cannot_have_is_not_wanted_without_end():
    conditioned, unconditioned = torch.zeros(2, 3), torch.zeros(2, 3)
    unconditioned[1, 2] = -math.inf
    assert guide(conditioned, unconditioned, 1.0).isfinite().all()
    assert guide(conditioned, unconditioned, 0.5)[1].isneginf().tolist() == [False, False, True]
    with pytest.raises(InputError, match="guidance asks for a token that the second model cannot have, in row 1"):
        guide(conditioned, unconditioned, 2.0)
    with pytest.raises(InputError, match="contrast asks for a token that the second model cannot have, in row 1"):
        contrast(conditioned, unconditioned)
    with pytest.raises(
        InputError, match=r"the second model of contrast, or the action mask, left no token .* row \(0,\)"
    ):
        contrast(conditioned, torch.full((2, 3), -math.inf))


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"contrast": 1.0, "plausible_p": 0.3}], ids=str)
def test_a_pair_of_streams_goes_with_a_strategy(markov, options):
    models, config = (markov(seed=1), markov(seed=2)), DecodingConfig(**options)
    prompts = PROMPTS.clamp(max=4)
    combine = (lambda c, u: guide(c, u, 2.0, 0.1)) if "guidance" in options else (lambda c, u: contrast(c, u, 1.0, 0.3))
    one = RecomputedStream(lambda ids: (combine(models[0](ids)[0], models[1](ids)[0]), models[0](ids)[1]), prompts)
    both = paired(*(RecomputedStream(model, prompts) for model in models), config)
    assert torch.equal(generate(both, config, [], 6).ids, generate(one, DecodingConfig(), [], 6).ids)
    first = RecomputedStream(models[0], prompts)
    assert paired(first, first, DecodingConfig()) is first
