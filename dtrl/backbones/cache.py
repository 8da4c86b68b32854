"""Keys and values of the tokens that a sequence may still look at, the masks over them, and attention to them.

The cache is a ring of C slots a sequence: the token at position p (counted from the episode's start) lies in slot p mod C. Each sequence has
its own length, and a reset only sets that to 0; which slots are visible follows from lengths alone, so stale ones need no erasing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrl.backbones.dropout import dropout

MANY_ROWS, SHORT = 16, 32
"""From so many rows on, each with at most so many new tokens, batched matrix products are faster on the CPU than torch's attention kernel."""

MANY_KEYS = 512
"""From so many keys on, queries that share a head are faster below each other, in one product, than in torch's attention kernel."""
ALIGNED = 8
"""Masks begin at a multiple of so many entries: torch's attention kernels for CUDA read several at once, and look at strides alone to see whether they may."""
WIDE = 2**20
"""Masks of more entries than this are not kept: they are those of long prefills, and of no use to a second call."""


@dataclass
class KeyValueState:
    """Keys and values of the tokens a sequence may still look at."""

    keys_values: Tensor
    """(layers, B, 2 · H_kv, C, D/H): the heads' keys, rotated where the trunk rotates, then their values."""
    lengths: npt.NDArray[np.int64]
    """(B,) tokens since the beginning of the episode, forgotten ones included. On the host, where it steers which kernels run."""

    @property
    def capacity(self) -> int:
        return self.keys_values.shape[3]

    def select(self, rows: npt.NDArray[np.int64]) -> "KeyValueState":
        """A copy of the given rows; one may come again, or not at all."""
        return KeyValueState(
            self.keys_values[:, torch.from_numpy(rows).to(self.keys_values.device)], self.lengths[rows]
        )

    def put(self, rows: npt.NDArray[np.int64], others: "KeyValueState") -> None:
        """Let the given rows be those of a state that was made by `select`."""
        self.keys_values[:, torch.from_numpy(rows).to(self.keys_values.device)] = others.keys_values
        self.lengths = self.lengths.copy()
        self.lengths[rows] = others.lengths

    def uniform(self) -> int | None:
        """The length of all rows where they agree: then slots are slices, and masks are known beforehand."""
        first = int(self.lengths[0])
        return first if len(self.lengths) == 1 or (self.lengths == first).all() else None

    def plan(
        self, new: int, band: tuple[int, int] | None, device: torch.device, dtype: torch.dtype
    ) -> "tuple[Callable[[], Tensor], Tensor, Cache]":
        """Positions of `new` tokens (to be asked for, as few trunks need them), the mask over the slots in use, and where the tokens go.

        A slot holds the newest token whose position leaves the slot's number when divided by the capacity; a position below zero marks a slot that
        is still empty. Where all rows have the same length and the ring does not turn over, slots are a slice and the mask has been seen before."""
        capacity, length = self.capacity, self.uniform()
        used = min(capacity, int(self.lengths.max()) + new)
        if length is not None:
            in_order = partial(torch.arange, length, length + new, device=device)
            first = length % capacity
            slots: slice | Tensor = (
                slice(first, first + new)
                if first + new <= capacity
                else (in_order() % capacity)[None].expand(len(self.lengths), -1)
            )
            if band is None and length + new <= capacity and new <= SHORT:
                mask = growing_mask(new, used, device, dtype)
            else:
                if length >= capacity:  # from here on masks repeat
                    length = capacity + (length - capacity) % math.lcm(capacity, band[1] if band else 1)
                known = known_mask if new * used <= WIDE else known_mask.__wrapped__
                mask = known(length, new, capacity, band, device, dtype)
            return in_order, mask, Cache(self.keys_values, slots, used)
        lengths = torch.from_numpy(self.lengths).to(device)[:, None]
        positions = lengths + torch.arange(new, device=device)
        newest = lengths + (new - 1)
        return (
            lambda: positions,
            additive(visible(positions, in_slots(newest, used, capacity, device), band)[:, None], dtype),
            Cache(self.keys_values, positions % capacity, used),
        )

    def advance(self, new: int) -> None:
        self.lengths = self.lengths + new


class Cache:
    """Where new tokens go, and the slots that are then in use.

    Views are taken of all layers at once: one costs as much as a small kernel, and a step of acting is made of those."""

    def __init__(self, keys_values: Tensor, slots: slice | Tensor, used: int) -> None:
        self.slots = slots
        room = keys_values[:, :, :, slots] if isinstance(slots, slice) else keys_values
        self.room = by_layer(room)
        """(B, 2 · H_kv, L, D/H) each: the slots of the new tokens where they are a slice, else all slots."""
        in_use, heads = keys_values.narrow(3, 0, used), keys_values.shape[2] // 2
        self.keys, self.values = (by_layer(in_use.narrow(2, begin, heads)) for begin in (0, heads))

    def write(self, layer: int, new: Tensor) -> None:
        """Put keys and values (B, 2 · H_kv, L, D/H) of a layer into their slots."""
        if isinstance(self.slots, slice):
            self.room[layer].copy_(new)
        else:
            rows = torch.arange(len(new), device=new.device)[:, None]
            self.room[layer][rows, :, self.slots] = new.transpose(1, 2)

    def attend(self, layer: int, query: Tensor, new: Tensor, mask: Tensor) -> Tensor:
        """(B, H, R, D/H) what R queries take from the slots in use, once the keys and values of the L new tokens are in theirs."""
        self.write(layer, new)
        return attend(query, self.keys[layer], self.values[layer], mask, 0.0)


def by_layer(keys_values: Tensor) -> Sequence[Tensor] | Tensor:
    """Of each layer, at its number, a view (B, …) that may be written to."""
    # autograd lets nobody write to one of several views that were taken at once
    return keys_values if torch.is_grad_enabled() else keys_values.unbind(0)


@dataclass
class GivenPast:
    """A cache that somebody else keeps: an exported step is given it, and gives back what is new."""

    keys_values: Tensor | None
    """(layers, B, 2 · H_kv, S, D/H) as in `KeyValueState`; None where nothing came before."""
    positions: Tensor
    """(B or 1, L) of the new tokens."""
    mask: Tensor
    """(B or 1, 1, L, S + L), additive: over the slots, then over the new tokens."""
    new: list[Tensor] = field(default_factory=list)
    """By layer: keys and values (B, 2 · H_kv, L, D/H) of the new tokens."""

    def plan(
        self, new: int, band: tuple[int, int] | None, device: torch.device, dtype: torch.dtype
    ) -> "tuple[Callable[[], Tensor], Tensor, GivenPast]":
        return lambda: self.positions, self.mask, self

    def advance(self, new: int) -> None:
        """The keeper does that."""

    def attend(self, layer: int, query: Tensor, new: Tensor, mask: Tensor) -> Tensor:
        """As `Cache.attend`, of what is given and what is new."""
        self.new.append(new)
        return self.mix(query, new, None if self.keys_values is None else self.keys_values[layer], mask)

    @staticmethod
    def mix(query: Tensor, new: Tensor, past: Tensor | None, mask: Tensor) -> Tensor:
        """(B, H, L, D/H) what queries take from the past and from the new, which stay apart: joining them would copy the past."""
        rows, heads, tokens, width = query.shape
        key, value = new.chunk(2, dim=1)
        groups = heads // key.shape[1]
        if groups > 1:  # the queries that share a head stand below each other
            query = query.reshape(rows, heads // groups, groups * tokens, width)
            mask = mask.repeat(1, 1, groups, 1)
        query = query * (1 / math.sqrt(width))
        slots = 0 if past is None else past.shape[2]
        scores = query @ key.transpose(-1, -2) + mask[..., slots:]
        if past is None:
            mixed = scores.softmax(dim=-1) @ value
        else:
            old_key, old_value = past.chunk(2, dim=1)
            old_scores = query @ old_key.transpose(-1, -2) + mask[..., :slots]
            largest = torch.maximum(scores.amax(dim=-1, keepdim=True), old_scores.amax(dim=-1, keepdim=True))
            old, new = (old_scores - largest).exp(), (scores - largest).exp()
            mixed = (old @ old_value + new @ value) / (old.sum(dim=-1, keepdim=True) + new.sum(dim=-1, keepdim=True))
        return mixed.reshape(rows, heads, tokens, width)


@lru_cache(maxsize=1024)
def known_mask(
    length: int, new: int, capacity: int, band: tuple[int, int] | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(L, S) the additive mask of `new` tokens after `length` others, in a ring of `capacity` slots of which S are in use."""
    with torch.inference_mode(
        False
    ):  # training may take it from the cache, and cannot use what was made in inference mode
        positions = torch.arange(length, length + new, device=device)
        newest = length + new - 1
        held = in_slots(newest, min(capacity, newest + 1), capacity, device)
        return additive(visible(positions, held, band), dtype)


def in_slots(newest: Tensor | int, used: int, capacity: int, device: torch.device | str) -> Tensor:
    """(…, S) the position that each of the first `used` slots of a ring holds, once it holds that of the `newest` (…, 1); negative where it is empty."""
    return newest - (newest - torch.arange(used, device=device)) % capacity


def growing_mask(new: int, used: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(L, S) `known_mask` without a band, where all of `used` tokens are still there: the last columns of a wider one that many lengths share,
    since one made for every length would cost as much as a layer."""
    end = max(ALIGNED, 1 << (used - 1).bit_length()) + used % ALIGNED
    return causal_end(new, end, device, dtype)[:, end - used : end]


@lru_cache(maxsize=512)
def causal_end(new: int, end: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(L, at least `end`) additive: the last of `new` tokens sees all before `end`, each before it one fewer."""
    with torch.inference_mode(False):
        width = -(-end // ALIGNED) * ALIGNED
        return torch.full((new, width), -math.inf, dtype=dtype, device=device).triu(end - new + 1)


def untouched_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the dtype and on the device of `like`. On the CPU they cost memory only once they are written, as a long context's mostly never are."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and −∞ where it is not, to be added to the scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)


def visible(queries: Tensor, keys: Tensor, band: tuple[int, int] | None) -> Tensor:
    """(…, L, S) bool: which keys each query may see, from positions counted from the episode's start (a negative one marks an empty slot)."""
    queries, keys = queries[..., :, None], keys[..., None, :]
    seen = (keys >= 0) & (keys <= queries)
    if band is not None:
        steps, tokens = band
        seen &= keys >= (queries // tokens - steps + 1) * tokens
    return seen


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """softmax(q·kᵀ / √(D/H)) v over the visible keys, with dropout of the weights; fewer key heads than query heads are shared evenly.

    Without a mask each of as many queries as keys sees the keys up to its own."""
    rows, heads, tokens, width = query.shape
    shared, keys = key.shape[1:3]
    grouped = shared != heads
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True, enable_gqa=grouped)
    acting = tokens <= SHORT and query.device.type == "cpu" and not torch.is_grad_enabled()
    if rate == 0 and not (acting and (rows >= MANY_ROWS or (grouped and keys >= MANY_KEYS))):
        return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=grouped)
    if not grouped:
        scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(width))
        return dropout((scores + mask).softmax(dim=-1), rate) @ value
    # the queries that share a head stand below each other: repeating its keys would copy the cache
    scores = (query.reshape(rows, shared, -1, width) * (1 / math.sqrt(width))) @ key.transpose(-1, -2)
    weights = (scores.unflatten(2, (-1, tokens)) + mask.unsqueeze(-3)).softmax(dim=-1)
    return (dropout(weights, rate).flatten(2, 3) @ value).reshape(rows, heads, tokens, width)
