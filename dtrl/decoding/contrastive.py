"""Three ways to decode by a contrast. Contrastive search chooses what is probable and unlike what came before; contrastive decoding and guidance choose
what is probable for one model, or one wanted return, and not for another.

B rows, V ids, k candidates, S tokens of a context, D width of a hidden vector."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding.processors import check_rows, process_history
from dtrl.decoding.progress import Generation
from dtrl.decoding.stream import PairedStream, TokenStream
from dtrl.errors import InputError


def search(generation: Generation) -> Iterator[None]:
    """The strategy `contrastive`: of the k most probable tokens the one of the best `candidate_scores`, each fed once to see its hidden vector.

    What came before are the hidden vectors of `generation.context`, that of the last token of the prompt, and those of the tokens generated."""
    stream, config, progress = generation.stream, generation.config, generation.progress
    logits = stream.logits()
    context = stream.hidden()[:, None]
    if generation.context is not None:
        context = torch.cat([generation.context, context], dim=1)
    rows = torch.arange(stream.rows, device=logits.device)
    while True:
        going = progress.going
        history = progress.history.masked_fill(~going[:, None], -1)
        probabilities = candidates_of(logits.masked_fill(~going[:, None], 0), config, history)
        order = probabilities.argsort(dim=-1, descending=True, stable=True)[:, : config.candidates]
        k = order.shape[1]
        stream.reorder(rows.repeat_interleave(k))
        after = stream.feed(order.reshape(-1, 1))[:, -1].unflatten(0, (-1, k))
        hidden = stream.hidden().unflatten(0, (-1, k))
        scores = candidate_scores(probabilities.gather(1, order), hidden, context, config.contrastive_alpha)
        best = scores.argmax(dim=-1)
        stream.reorder(rows * k + best)
        stream.rollback((~going).long())
        progress.add(order[rows, best][:, None])
        context = torch.cat([context, hidden[rows, best][:, None]], dim=1)
        logits = after[rows, best]
        if not progress.going.any():
            stream.rollback(torch.ones_like(rows))  # what stays is what other strategies leave: all but the last token
        yield
        if not progress.going.any():
            return


def candidates_of(logits: Tensor, config: DecodingConfig, history: Tensor) -> Tensor:
    """(B, V) probabilities, of logits (B, V) and what the history (B, T) allows."""
    check_rows(logits, "the model, or the action mask,")
    return process_history(logits, config, history).softmax(dim=-1)


def candidate_scores(probabilities: Tensor, hidden: Tensor, context: Tensor, alpha: float) -> Tensor:
    """(B, k): (1 − α) · p(v) − α · the largest cosine between the hidden vector of v and one of the context; −∞ where p is 0
    [Su et al. 2022, arXiv:2202.06417].

    From probabilities (B, k), hidden vectors after each candidate (B, k, D), and those before (B, S, D)."""
    likeness = (F.normalize(hidden, dim=-1) @ F.normalize(context, dim=-1).mT).amax(dim=-1)
    scores = (1 - alpha) * probabilities - alpha * likeness
    return scores.masked_fill(probabilities == 0, -torch.inf)


def guide(conditioned: Tensor, unconditioned: Tensor, gamma: float, plausible_p: float = 0.0) -> Tensor:
    """ℓᵤ + γ (ℓ_c − ℓᵤ) of logits (…, V), both as log-probabilities; −∞ where the conditioned probability is under plausible_p times its largest.

    Classifier-free guidance of a sequence model [Sanchez et al. 2023, arXiv:2306.17806]; γ = 1 is the conditioned model, γ = 0 the other. Raises
    InputError where γ > 1 and the conditioned model has a plausible token that the other gives no probability."""
    return difference(conditioned, unconditioned, gamma, 1 - gamma, plausible_p, "guidance")


def contrast(expert: Tensor, amateur: Tensor, beta: float = 1.0, plausible_p: float = 0.1) -> Tensor:
    """log p_e − β log p_a of logits (…, V); −∞ where the expert's probability is under plausible_p times its largest: contrastive decoding
    [Li et al. 2022, arXiv:2210.15097; 0.1 is theirs]. Raises InputError where the amateur gives a plausible token no probability."""
    return difference(expert, amateur, 1.0, -beta, plausible_p, "contrast")


def difference(first: Tensor, second: Tensor, a: float, b: float, plausible_p: float, name: str) -> Tensor:
    """a · log p + b · log q (…, V) where p is plausible, −∞ elsewhere."""
    check_rows(first, f"the first model of {name}, or the action mask,")
    check_rows(second, f"the second model of {name}, or the action mask,")
    probabilities = first.softmax(dim=-1)
    kept = first.isfinite() & (probabilities >= plausible_p * probabilities.amax(dim=-1, keepdim=True))
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    without = kept & log_q.isneginf()
    if b < 0 and without.any():
        raise InputError(
            f"{name} asks for a token that the second model cannot have, in row {int(without.nonzero()[0][0])}; mask the same tokens in both."
        )
    if b > 0:
        kept = kept & ~without
    # 0 · −∞ would be no number
    combined = a * log_p.masked_fill(~kept, 0) + b * log_q.masked_fill(~kept | without, 0)
    return combined.masked_fill(~kept, -torch.inf)


def paired(conditioned: TokenStream, unconditioned: TokenStream, config: DecodingConfig) -> TokenStream:
    """The two streams as one, by the guidance or the contrast of `config`: every strategy goes with it. With neither, the first."""
    if config.contrast:
        return PairedStream(
            [conditioned, unconditioned], lambda c, u: contrast(c, u, config.contrast, config.plausible_p)
        )
    if config.guidance != 1:
        return PairedStream([conditioned, unconditioned], lambda c, u: guide(c, u, config.guidance, config.plausible_p))
    return conditioned
