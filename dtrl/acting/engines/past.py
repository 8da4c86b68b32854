"""The past of B rows for a program that is given it: what `dtrl.acting.context` is for a model. NumPy alone.

The tokens of a call are m = [a₍ₜ₋₁₎, Rₜ, sₜ], the a of them that belong to the step before. In the first call of an episode these stand at negative positions:
no query sees them, and they are not kept. C slots, D width."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.acting.state import Begins, kept_steps, refuse_longer

Array = npt.NDArray[Any]
FIRST_SLOTS = 64
"""Slots to begin with where they grow (context `full`): a step costs as much as the slots there are, and they double when they are full."""

NOBODY = np.zeros(0, dtype=np.int64)


class Past:
    """`shape` is (layers, 2 · H_kv, D/H) of keys and values; `kind` block, banded or full; `length` the context's K steps."""

    def __init__(
        self, rows: int, kind: str, length: int, tokens: int, before: int, width: int, shape: tuple[int, int, int]
    ) -> None:
        self.kind, self.length, self.tokens_per_step, self.before = kind, length, tokens, before
        self.capacity = length * tokens
        slots = min(FIRST_SLOTS, self.capacity) if kind == "full" else self.capacity
        layers, heads, head_width = shape
        self.keys_values = np.zeros((layers, rows, heads, slots, head_width), np.float32)
        self.positions = np.zeros((rows, tokens), np.int64)
        self.mask = np.zeros((rows, 1, tokens, slots + tokens), np.float32)
        self.in_order = np.arange(tokens)[None]
        self.lengths = np.zeros(rows, dtype=np.int64)
        """(B,) tokens since the beginning of the episode, or of the context where it refills."""
        self.tokens = np.zeros((rows, self.capacity, width), np.float32) if kind == "block" else None
        self.dropped = (length - kept_steps(length) + 1) * tokens

    def begin(self, first: Begins) -> tuple[Array, Array]:
        """(B,) the position of each row's first token in this call, and the rows that have no room for it and must refill."""
        base = self.lengths
        if first is not None:
            base = np.where(first, -self.before, base)
            self.keys_values[:, first] = 0  # weight 0 hides a number, and not what is none
        start = common(base)
        last = (int(base.max()) if start is None else start) + self.tokens_per_step
        if self.kind == "banded" or last <= self.capacity:
            if self.kind == "full":
                self.grow(last)
            return base, NOBODY
        if self.kind == "full":
            refuse_longer(self.length + 1, self.length)
        return base, np.flatnonzero(base + self.tokens_per_step > self.capacity)

    def grow(self, slots: int) -> None:
        now = self.keys_values.shape[3]
        if slots > now:
            more = min(self.capacity, max(slots, 2 * now))
            grown = np.zeros((*self.keys_values.shape[:3], more, self.keys_values.shape[4]), np.float32)
            grown[:, :, :, :now] = self.keys_values
            self.keys_values = grown
            self.mask = np.zeros((*self.mask.shape[:3], more + self.tokens_per_step), np.float32)

    def inputs(self) -> dict[str, Array]:
        """Positions (B, m), mask (B, 1, m, C + m) and keys and values of a step. Until it grows, they stay where they are."""
        return {"positions": self.positions, "mask": self.mask, "past": self.keys_values}

    def prepare(self, base: Array, band: tuple[int, int] | None) -> None:
        """Write positions and mask of a step whose rows begin at `base`."""
        slots, start = self.keys_values.shape[3], common(base)
        if start is None:
            self.mask[...] = mask_of(base, self.tokens_per_step, slots, band)
            np.add(base[:, None], self.in_order, out=self.positions)
            return
        seen = start
        if start >= 2 * slots:  # from then on masks repeat
            seen = slots + (start - slots) % math.lcm(slots, band[1] if band else 1)
        self.mask[...] = uniform_mask(seen, self.tokens_per_step, slots, band)
        np.add(self.in_order, start, out=self.positions)

    def write(self, base: Array, new: Array, tokens: Array | None = None, rows: Array | None = None) -> None:
        """Keep the keys and values (layers, B, 2 · H_kv, m, D/H) of a step and, where there are refills, its embedded tokens (B, m, D): of all rows, or
        of the given ones."""
        start, slots, count = common(base), self.keys_values.shape[3], self.tokens_per_step
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
        begin = int(base[rows][0])  # of all of them: only a full row refills
        old = self.tokens[rows, min(self.dropped, begin) : begin]
        return np.concatenate([old, tokens[rows, max(0, self.dropped - begin) :]], axis=1)

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
