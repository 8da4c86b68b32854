"""Which imagined futures are kept: those that are worth most [Janner et al. 2021, Trajectory Transformer, arXiv:2106.02039].

B rows, C candidates of each, W that are kept, n tokens."""

import torch
from torch import Tensor

from dtrl.errors import InputError


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
