"""The past of B rows for a program that is given it: what `dtrl.acting.context` is for a model. NumPy alone.

The tokens of a call are m = [a₍ₜ₋₁₎, Rₜ, sₜ], the a of them that belong to the step before. In the first call of an episode these stand at negative positions:
no query sees them, and they are not kept. C slots, D width."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.acting.state import Begins, dropped_steps, refilled_tokens, refuse_longer

Array = npt.NDArray[Any]
FIRST_SLOTS = 64
"""Slots to begin with where they grow (context `full`): a step costs as much as the slots there are, and they double when they are full."""

NOBODY = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Sizes:
    """What is fixed about a past."""

    kind: str
    """block, banded or full."""
    length: int
    """K steps of the context."""
    tokens: int
    """m of a step, which are those of a call."""
    before: int
    """How many of them belong to the step before."""
    width: int
    shape: tuple[int, int, int]
    """(layers, 2 · H_kv, D/H) of keys and values."""
    band: tuple[int, int] | None = None
    """(steps, tokens of a step) of banded attention."""

    @property
    def capacity(self) -> int:
        return self.length * self.tokens

    @property
    def dropped(self) -> int:
        """Tokens that a refill leaves out."""
        return dropped_steps(self.length) * self.tokens

    @property
    def kept(self) -> int:
        """L tokens that a refill begins with."""
        return refilled_tokens(self.length, self.tokens, self.before)

    @property
    def first_slots(self) -> int:
        return min(FIRST_SLOTS, self.capacity) if self.kind == "full" else self.capacity


class Extent:
    """How far the context of each of B rows reaches: what is known of a past without looking into it."""

    def __init__(self, rows: int, sizes: Sizes) -> None:
        self.sizes = sizes
        self.lengths = np.zeros(rows, dtype=np.int64)
        """(B,) tokens since the beginning of the episode, or of the context where it refills."""
        self.slots = sizes.first_slots

    def begin(self, first: Begins) -> tuple[Array, Array]:
        """(B,) the position of each row's first token in this call, and the rows that have no room for it and must refill.

        `slots` is then large enough."""
        sizes, base = self.sizes, self.lengths
        if first is not None:
            base = np.where(first, -sizes.before, base)
        start = common(base)
        last = (int(base.max()) if start is None else start) + sizes.tokens
        if sizes.kind == "banded" or last <= self.slots:
            return base, NOBODY
        if sizes.kind == "block":
            return base, np.flatnonzero(base + sizes.tokens > self.slots)
        if last > sizes.capacity:
            refuse_longer(sizes.length + 1, sizes.length)
        self.slots = min(sizes.capacity, max(last, 2 * self.slots))
        return base, NOBODY


class Past(Extent):
    """Keys and values of B rows."""

    def __init__(self, rows: int, sizes: Sizes) -> None:
        super().__init__(rows, sizes)
        self.keys_values, self.mask = self.room(rows)
        self.positions = np.zeros((rows, sizes.tokens), np.int64)
        self.in_order = np.arange(sizes.tokens)[None]
        self.tokens = np.zeros((rows, sizes.capacity, sizes.width), np.float32) if sizes.kind == "block" else None

    def room(self, rows: int) -> tuple[Array, Array]:
        """Keys and values of as many slots as there are, and a mask over them and the tokens of a call."""
        sizes, (layers, heads, head_width) = self.sizes, self.sizes.shape
        return (
            np.zeros((layers, rows, heads, self.slots, head_width), np.float32),
            np.zeros((rows, 1, sizes.tokens, self.slots + sizes.tokens), np.float32),
        )

    def begin(self, first: Begins) -> tuple[Array, Array]:
        base, full = super().begin(first)
        if first is not None:
            self.keys_values[:, first] = 0  # weight 0 hides a number, and not what is none
        now = self.keys_values
        if self.slots > now.shape[3]:
            self.keys_values, self.mask = self.room(len(base))
            self.keys_values[:, :, :, : now.shape[3]] = now
        return base, full

    def inputs(self) -> dict[str, Array]:
        """Positions (B, m), mask (B, 1, m, C + m) and keys and values of a step. Until it grows, they stay where they are."""
        return {"positions": self.positions, "mask": self.mask, "past": self.keys_values}

    def prepare(self, base: Array) -> None:
        """Write positions and mask of a step whose rows begin at `base`."""
        slots, start, count, band = self.slots, common(base), self.sizes.tokens, self.sizes.band
        if start is None:
            self.mask[...] = mask_of(base, count, slots, band)
            np.add(base[:, None], self.in_order, out=self.positions)
            return
        seen = start
        if start >= 2 * slots:  # from then on masks repeat
            seen = slots + (start - slots) % math.lcm(slots, band[1] if band else 1)
        self.mask[...] = uniform_mask(seen, count, slots, band)
        np.add(self.in_order, start, out=self.positions)

    def write(self, base: Array, new: Array, tokens: Array | None = None, rows: Array | None = None) -> None:
        """Keep the keys and values (layers, B, 2 · H_kv, m, D/H) of a step and, where there are refills, its embedded tokens (B, m, D): of all rows, or
        of the given ones."""
        start, slots, count = common(base), self.slots, self.sizes.tokens
        if rows is None and start is not None and (start % slots + count <= slots or start < 0):
            skip = max(0, -start)
            at = max(0, start) % slots
            self.keys_values[:, :, :, at : at + count - skip] = new[:, :, :, skip:]
            if self.tokens is not None:
                assert tokens is not None
                self.tokens[:, at : at + count - skip] = tokens[:, skip:]
            self.lengths = base + count
            return
        rows = np.arange(len(base)) if rows is None else rows
        which, token = np.nonzero(base[rows, None] + np.arange(count) >= 0)
        row = rows[which]
        slot = (base[row] + token) % slots
        self.keys_values[:, row, :, slot] = new[:, row, :, token]
        if self.tokens is not None:
            assert tokens is not None
            self.tokens[row, slot] = tokens[row, token]
        self.lengths[rows] = base[rows] + count

    def window(self, rows: Array, base: Array, tokens: Array) -> Array:
        """(B′, L, D) the tokens that the given rows keep when they refill: the newest K/2 steps, those of this call among them."""
        assert self.tokens is not None
        begin, dropped = int(base[rows][0]), self.sizes.dropped  # of all of them: only a full row refills
        old = self.tokens[rows, min(dropped, begin) : begin]
        return np.concatenate([old, tokens[rows, max(0, dropped - begin) :]], axis=1)

    def refill(self, rows: Array, window: Array, new: Array) -> None:
        """Begin the rows' contexts anew with the window and its keys and values."""
        assert self.tokens is not None
        length = window.shape[1]
        self.tokens[rows, :length] = window
        self.keys_values[:, rows, :, :length] = new
        self.lengths[rows] = length


def common(base: Array) -> int | None:
    """The number that all of `base` are, where they are one."""
    start: int = base.item(0)
    return start if len(base) == 1 or (base == start).all() else None


@lru_cache(maxsize=128)
def uniform_mask(start: int, count: int, slots: int, band: tuple[int, int] | None) -> Array:
    return mask_of(np.array([start]), count, slots, band)


def mask_of(base: Array, count: int, slots: int, band: tuple[int, int] | None) -> Array:
    """(B, 1, m, C + m) additive: over the slots, each of which holds the newest token that fell to it, then over the call's own tokens.

    A token sees itself in any case, so that those at negative positions are numbers; nobody else sees these."""
    newest = base[:, None] - 1
    slot_positions = newest - (newest - np.arange(slots)) % slots
    queries = base[:, None] + np.arange(count)
    keys = np.concatenate([slot_positions, queries], axis=1)
    seen = (keys[:, None] >= 0) & (keys[:, None] <= queries[:, :, None])
    if band is not None:
        steps, tokens = band
        seen &= keys[:, None] >= ((queries // tokens - steps + 1) * tokens)[:, :, None]
    seen[:, np.arange(count), slots + np.arange(count)] = True
    return np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]
