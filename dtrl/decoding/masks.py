"""Actions that may not be taken: their probability is taken out of a distribution before anything is chosen from it."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from dtrl.errors import InputError
from dtrl.heads import OneHots


def mask_actions(
    distributions: Mapping[str, Distribution], allowed: npt.NDArray[np.bool_], part: slice | None = None
) -> dict[str, Distribution]:
    """The distributions of an action's parts, by field, without what is not `allowed` (B, n). Raises InputError where nothing is left of a choice.

    `part` are the entries of the mask that are about this distribution, where one choice is made after the other."""
    ((name, distribution),) = distributions.items()
    assert isinstance(distribution, Categorical | OneHots)
    if part is not None:  # a choice of fewer values than the vocabulary has no others
        more = distribution.logits.shape[-1] - (part.stop - part.start)
        allowed = np.pad(allowed[:, part], ((0, 0), (0, more)))
    try:
        return {name: allow(distribution, torch.from_numpy(allowed).to(distribution.logits.device).unsqueeze(1))}
    except ValueError as error:
        raise InputError(f"{error}; the environment is at fault.") from error


def allow(distribution: Categorical | OneHots, allowed: Tensor) -> Categorical | OneHots:
    """The distribution without what is not `allowed` (…, n) bool; the rest is normalised. Raises ValueError where nothing is left of a choice."""
    logits = distribution.logits.masked_fill(~allowed, -math.inf)
    sizes = distribution.sizes if isinstance(distribution, OneHots) else (logits.shape[-1],)
    for i, part in enumerate(allowed.split_with_sizes(list(sizes), dim=-1)):
        empty = torch.nonzero(~part.any(dim=-1))
        if len(empty):
            choice = f" of choice {i}" if len(sizes) > 1 else ""
            raise ValueError(f"the action mask of environment {int(empty[0][0])} allows no value{choice}")
    if isinstance(distribution, OneHots):
        return OneHots(logits, sizes)
    return Categorical(logits=torch.log_softmax(logits, dim=-1), validate_args=False)
