"""Actions that may not be taken: their probability is taken out of a distribution before anything is chosen from it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from dtrl.errors import InputError
from dtrl.heads import OneHots


def mask_actions(distributions: Mapping[str, Distribution], masks: Any, rows: int) -> dict[str, Distribution]:
    """The distributions of an action's parts, by field, without what the `masks` (B, n) of B = `rows` environments forbid.

    True allows; a tuple of masks, one a choice, is laid end to end. Raises InputError where a mask fits no action, or leaves none."""
    (name, distribution), *others = distributions.items()
    if others or not isinstance(distribution, Categorical | OneHots):
        raise InputError(
            "action masks are for one Discrete, MultiDiscrete or MultiBinary action; this policy acts otherwise."
        )
    allowed = mask_rows(masks, rows, distribution.logits.shape[-1])
    try:
        return {name: allow(distribution, torch.from_numpy(allowed).to(distribution.logits.device).unsqueeze(1))}
    except ValueError as error:
        raise InputError(f"{error}; the environment is at fault.") from error


def mask_rows(masks: Any, rows: int, n: int) -> npt.NDArray[np.bool_]:
    """(B, n) bool from masks in any form that environments give them: an array, or a tuple with one a choice. Raises InputError for other sizes."""
    if isinstance(masks, tuple) or (isinstance(masks, list) and len({np.shape(mask) for mask in masks}) > 1):
        masks = np.concatenate([np.asarray(mask) for mask in masks], axis=-1)  # one a choice, as Gymnasium samples by
    allowed = np.asarray(masks, dtype=bool)
    if allowed.ndim == 1 and rows == 1:
        allowed = allowed[None]
    if allowed.shape != (rows, n):
        raise InputError(
            f"action_masks has shape {allowed.shape}; give ({rows}, {n}), True where an action may be taken."
        )
    return allowed


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
