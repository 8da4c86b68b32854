"""Beams that are ranked by what they are worth: planning with a model of the environment [Janner et al. 2021, Trajectory Transformer,
arXiv:2106.02039]. Which tokens are actions and rewards, the caller knows; here is the search.

B rows, W plans of each, E continuations of a plan, C = W·E candidates, n tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError


@dataclass(frozen=True)
class Continuation:
    """What one round adds to each of R plans."""

    ids: Tensor
    """(R, n) the tokens, which the stream has been fed."""
    log_probs: Tensor
    """(R,) their log-probability."""
    values: Tensor
    """(R,) what the whole plan is now worth."""
    carried: Tensor
    """(R, …) what the next round needs to know of each plan, such as the rewards so far."""


@dataclass(frozen=True)
class Plans:
    """The plans of each row, best first."""

    ids: Tensor
    """(B, W, n)"""
    values: Tensor
    """(B, W)"""
    log_probs: Tensor
    """(B, W)"""
    carried: Tensor
    """(B, W, …)"""


Extend = Callable[[TokenStream, Tensor, int], Continuation]
"""(stream of R rows, carried (R, …), round) → what it adds. The plans of a row are R / B neighbours, the continuations of a plan E neighbours among them."""


def rank_beam(
    stream: TokenStream,
    carried: Tensor,
    rounds: int,
    width: int,
    expansions: int,
    extend: Extend,
    complete: Extend | None = None,
) -> Plans:
    """The W best plans of `rounds` rounds. In each, every plan is repeated E times and continued by `extend`, which samples; the W best are kept, by `rank`.

    `complete` then continues those that are kept, where what follows has no part in the ranking (the observation after an action); its values are not
    looked at, and the last round has no need of it. `carried` (B, …) is what the first round is told of each row. With W · E continuations of a row in the
    first round, a plan can be found by chance; with all continuations proposed and W at least their number, the best is found. The stream is used up."""
    if min(rounds, width, expansions) < 1:
        raise InputError(f"rounds {rounds}, width {width} and expansions {expansions} must be positive numbers.")
    rows = stream.rows
    carried = repeat(stream, carried, width)
    ids = torch.zeros(rows, width, 0, dtype=torch.long, device=carried.device)
    log_probs = torch.zeros(rows, width, dtype=torch.float64, device=carried.device)
    values = log_probs
    for round_ in range(rounds):
        step = extend(stream, repeat(stream, carried, expansions), round_)
        ids, log_probs = grow(ids, log_probs, step, expansions)
        values = step.values.unflatten(0, (rows, -1))
        best = rank(values, log_probs, ids, width)
        chosen = (best + torch.arange(rows, device=best.device)[:, None] * ids.shape[1]).flatten()
        stream.reorder(chosen)
        carried = step.carried[chosen]
        ids = ids.flatten(0, 1)[chosen].unflatten(0, (rows, width))
        log_probs, values = log_probs.gather(1, best), values.gather(1, best)
        if complete is not None and round_ < rounds - 1:
            rest = complete(stream, carried, round_)
            ids, log_probs = grow(ids, log_probs, rest, 1)
            carried = rest.carried
    return Plans(ids, values, log_probs, carried.unflatten(0, (rows, width)))


def repeat(stream: TokenStream, carried: Tensor, times: int) -> Tensor:
    """Each row of the stream, and of what it carries, so many times."""
    stream.reorder(torch.arange(stream.rows, device=carried.device).repeat_interleave(times))
    return carried.repeat_interleave(times, dim=0)


def grow(ids: Tensor, log_probs: Tensor, step: Continuation, expansions: int) -> tuple[Tensor, Tensor]:
    """Ids (B, W·E, n) and log-probabilities (B, W·E) of plans (B, W, …) with their continuations."""
    rows = len(ids)
    longer = torch.cat([ids.repeat_interleave(expansions, dim=1), step.ids.unflatten(0, (rows, -1))], dim=2)
    return longer, log_probs.repeat_interleave(expansions, dim=1) + step.log_probs.unflatten(0, (rows, -1))


def rank(values: Tensor, log_probs: Tensor, ids: Tensor, width: int) -> Tensor:
    """Places (B, W) of the best candidates of each row, by (−value, −log-probability, place).

    Of candidates with the same ids one counts; the others come after all different ones, so that they only fill what would be empty. From values (B, C),
    log-probabilities (B, C) and ids (B, C, n), C ≥ W. Raises InputError for a value that is not a number."""
    if torch.isnan(values).any():
        raise InputError(f"the value of a plan of row {int(torch.isnan(values).nonzero()[0][0])} is not a number.")
    order = log_probs.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))
    _, group = torch.unique(ids.flatten(0, 1), dim=0, return_inverse=True)
    group = group.view(ids.shape[:2]).gather(1, order)
    same = group[:, :, None] == group[:, None, :]
    repeated = same.tril(diagonal=-1).any(dim=2)
    return order.gather(1, repeated.long().argsort(dim=1, stable=True))[:, :width]
