"""Which actions an environment allows: masks from its info, or from a part of its observation.

B environments; n entries of a mask: the values of a Discrete action, or those of all choices of a MultiDiscrete or MultiBinary one, end to end."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.acting.environments import descend
from dtrl.errors import InputError
from dtrl.spaces import Space, choices_of, leaves

Masks = npt.NDArray[np.bool_]
ACTION_MASK = "action_mask"
"""Key of the mask in an environment's info, or in a Dict observation: 1 or True for what may be taken."""


class MaskReader:
    """Reads the masks of B environments of one space, for a policy that sees the part `seen` of their observations.

    The mask in the info comes first; else that beside the part, or beside any that it lies in: an environment that shows {"image", "action_mask"} may
    train a policy on the image alone. `size` is n, None for a policy whose action cannot be masked."""

    def __init__(self, space: Space, seen: tuple[str | int, ...], size: int | None) -> None:
        self.size = size
        self.keys = None if size is None else mask_part(space, seen)

    def read(self, observations: Any, info: Mapping[str, Any], rows: int) -> Masks | None:
        """(B, n) of a vector environment; all True for a row that gave none, and None where no row did. Raises InputError naming the environment
        whose mask has another size."""
        if ACTION_MASK in info:
            given = np.asarray(info.get(f"_{ACTION_MASK}", np.ones(rows, dtype=bool)), dtype=bool)
            return self.stacked(info[ACTION_MASK], given)
        if self.keys is None:
            return None
        masks = descend(observations, self.keys)
        return self.stacked(list(zip(*masks, strict=True)) if isinstance(masks, tuple) else masks, np.ones(rows, bool))

    def read_one(self, observation: Any, info: Mapping[str, Any], number: int = 0) -> Masks | None:
        """(1, n) of a single environment, which errors name by its number."""
        one = {ACTION_MASK: [info[ACTION_MASK]]} if ACTION_MASK in info else {}
        if self.keys is not None and not one:
            one = {ACTION_MASK: [descend(observation, self.keys)]}
        return self.stacked(one[ACTION_MASK], np.ones(1, dtype=bool), number) if one else None

    def stacked(self, masks: Any, given: Masks, first: int = 0) -> Masks:
        if self.size is None:
            raise InputError(
                "the environment gives action masks, which are for one Discrete, MultiDiscrete or MultiBinary action; this policy acts otherwise."
            )
        if isinstance(masks, np.ndarray) and masks.dtype != object and masks[0].size == self.size:  # all at once
            return np.where(given[:, None], masks.reshape(len(given), -1), True).astype(bool)
        out = np.ones((len(given), self.size), dtype=bool)
        for row in np.flatnonzero(given):
            mask = flat(masks[row])
            if len(mask) != self.size:
                raise InputError(
                    f"the action mask of environment {first + row} has {len(mask)} entries, and its action has {self.size}: give one for each value, and those "
                    "of several choices end to end."
                )
            out[row] = mask
        return out


def mask_size(space: Space) -> int | None:
    """Entries n of a mask of actions in a space; None where they cannot be masked: several parts, or a Box."""
    found = leaves(space)
    part = found[0].space
    if len(found) > 1 or isinstance(part, spaces.Box):
        return None
    if isinstance(part, spaces.Discrete):
        return int(part.n)
    return int(choices_of(part)[0].sum())


def mask_rows(masks: Any, rows: int, n: int | None) -> Masks:
    """(B, n) bool from masks in any form that environments give them: an array, or a tuple with one a choice. Raises InputError for other sizes, and
    where `n` is None."""
    if n is None:
        raise InputError(
            "action masks are for one Discrete, MultiDiscrete or MultiBinary action; this policy acts otherwise."
        )
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


def flat(mask: Any) -> Masks:
    """(n,) of a mask: an array of any shape, or a tuple of one a choice, as Gymnasium samples by."""
    parts = mask if isinstance(mask, tuple | list) else [mask]
    return np.concatenate([np.ravel(part) for part in parts]).astype(bool)


def mask_part(space: Space, seen: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
    """The keys of the mask that is nearest to the part `seen`: in it, beside it, or beside what it lies in."""
    inside: list[Space] = [space]
    for key in seen:
        inside.append(inside[-1][key])  # type: ignore[index]
    for depth in range(len(seen), -1, -1):
        part = inside[depth]
        if isinstance(part, spaces.Dict) and ACTION_MASK in part.spaces:
            return (*seen[:depth], ACTION_MASK)
    return None


def joined_info(before: Mapping[str, Any], begun: Mapping[str, Any], done: Masks) -> dict[str, Any]:
    """The action masks after some rows have been `done` and reset: theirs from the reset, the others' as they were."""
    infos = [begun if row else before for row in done]
    masks: list[Any] = [None] * len(done)
    for row, info in enumerate(infos):
        if ACTION_MASK in info and info.get(f"_{ACTION_MASK}", np.ones(len(done), dtype=bool))[row]:
            masks[row] = info[ACTION_MASK][row]
    given = np.array([mask is not None for mask in masks])
    return {ACTION_MASK: masks, f"_{ACTION_MASK}": given} if given.any() else {}
