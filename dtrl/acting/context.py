"""What the model looks back on while it acts: four contexts, each exactly equal to a teacher-forced forward over the same tokens.

window   recompute the last K steps at every step: the published Decision Transformer
block    cache until the context holds K steps, then keep the last K/2, recompute them once, and go on: for the same models, some ten times fewer tokens
banded   a ring cache of the last K steps, for models trained with banded attention
full     a growing cache of the whole episode, for models trained on whole episodes

B rows (environments), n tokens a call, m tokens a step, D width. Every row has its own length; a reset sets it to 0. Rows whose call has fewer tokens (at
the first step there is no previous action) are padded on the right; the padding is overwritten by the next call."""

import copy
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.acting.state import Begins, dropped_steps, refuse_longer, replaced, zero_where
from dtrl.backbones import Backbone
from dtrl.backbones.cache import KeyValueState
from dtrl.config import ModelConfig
from dtrl.errors import InputError

Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_]


class Context(ABC):
    """The past of B rows, for a backbone and K = `length` steps, or blocks of several."""

    block_length = 1
    """Steps of a block, for messages."""

    @abstractmethod
    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None: ...

    @abstractmethod
    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        """Append the first `counts` (B,) tokens of each row of x (B, n, D) and return the hidden vector (B, D) at the last of them.

        Rows in `first` begin a new episode with these tokens."""

    def extend(self, x: Tensor) -> Tensor:
        """Append tokens (B, n, D) to the step that the last call began, and return the hidden vector (B, D) at the last of them."""
        return self.extend_all(x)[:, -1]

    @abstractmethod
    def extend_all(self, x: Tensor) -> Tensor:
        """The same, with the hidden vectors (B, n, D) at all of them."""

    @abstractmethod
    def select(self, rows: Counts) -> Self:
        """A context of its own of the given rows (B′,); one may come again, or not at all."""

    @abstractmethod
    def put(self, rows: Counts, others: Self) -> None:
        """Let the given rows (B′,) be those of a context that was made by `select`."""

    @abstractmethod
    def forget(self, counts: Counts) -> None:
        """Drop the last `counts` (B,) tokens of each row, all of which came by `extend`."""

    @staticmethod
    @abstractmethod
    def start(step: int, length: int) -> int:
        """The first step that the action at `step` may depend on, for K = `length`."""


class Window(Context):
    """The tokens of the last K steps, recomputed at every call."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        self.backbone, self.tokens_per_step = backbone, tokens_per_step
        self.capacity = length * tokens_per_step
        self.tokens = next(backbone.parameters()).new_zeros(rows, self.capacity + tokens_per_step, width)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        self.append(x, counts, first, drop=self.tokens_per_step)
        hidden, _ = self.backbone(self.tokens[:, : self.lengths.max()], read=ends(self.lengths, x.device))
        return last_of(hidden, self.lengths)

    def append(self, x: Tensor, counts: Counts, first: Begins, drop: int) -> Rows:
        """Add tokens; rows that then hold more than K steps lose their oldest `drop` tokens. Returns which rows did."""
        lengths = zero_where(first, self.lengths)
        if (lengths == lengths[0]).all() and (counts == counts[0]).all():
            self.tokens[:, lengths[0] : lengths[0] + counts[0]] = x[:, : counts[0]]
        else:
            row, token = (torch.from_numpy(i).to(x.device) for i in np.nonzero(np.arange(x.shape[1]) < counts[:, None]))
            self.tokens[row, torch.from_numpy(lengths).to(x.device)[row] + token] = x[row, token]
        lengths = lengths + counts
        full = lengths > self.capacity
        if full.all():
            self.tokens = self.tokens.roll(-drop, dims=1)
        elif full.any():
            rows = torch.from_numpy(np.flatnonzero(full)).to(x.device)
            self.tokens[rows] = self.tokens[rows].roll(-drop, dims=1)
        self.lengths = np.where(full, lengths - drop, lengths)
        return full

    def extend_all(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        self.append(x, np.full(len(x), n), None, drop=0)
        reads = torch.from_numpy(self.lengths[:, None] - n + np.arange(n)).to(x.device)
        hidden: Tensor = self.backbone(self.tokens[:, : self.lengths.max()])[0]
        return hidden[torch.arange(len(x), device=x.device)[:, None], reads]

    def select(self, rows: Counts) -> Self:
        copied = copy.copy(self)
        copied.tokens, copied.lengths = self.tokens[torch.from_numpy(rows).to(self.tokens.device)], self.lengths[rows]
        return copied

    def put(self, rows: Counts, others: Self) -> None:
        self.tokens[torch.from_numpy(rows).to(self.tokens.device)] = others.tokens
        self.lengths = replaced(self.lengths, rows, others.lengths)

    def forget(self, counts: Counts) -> None:
        self.lengths = self.lengths - counts

    @staticmethod
    def start(step: int, length: int) -> int:
        return max(0, step - length + 1)


class Block(Window):
    """A cache that grows to K steps; then the last K/2 are kept and recomputed once."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        super().__init__(backbone, rows, length, tokens_per_step, width)
        self.dropped = dropped_steps(length) * tokens_per_step
        # a row may be padded past its last token, and the padding needs a slot
        self.state = backbone.initial_state(rows, self.capacity + tokens_per_step)

    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        refilled = self.append(x, counts, first, drop=self.dropped)
        if refilled.all():
            self.state.lengths = np.zeros_like(self.lengths)
            return cached(self.backbone, self.state, self.tokens[:, : self.lengths.max()], self.lengths)
        if not refilled.any():
            self.state.lengths = zero_where(first, self.state.lengths)
            return cached(self.backbone, self.state, x, counts)
        hidden = x.new_empty(len(x), x.shape[-1])
        for rows, tokens, new, begin in (
            (~refilled, x, counts, first),
            (refilled, self.tokens[:, : self.lengths[refilled].max()], self.lengths, refilled),
        ):
            which = torch.from_numpy(np.flatnonzero(rows)).to(x.device)
            part = KeyValueState(self.state.keys_values[:, which], zero_where(begin, self.state.lengths)[rows])
            hidden[which] = cached(self.backbone, part, tokens[which], new[rows])
            self.state.keys_values[:, which], self.state.lengths[rows] = part.keys_values, part.lengths
        return hidden

    def extend_all(self, x: Tensor) -> Tensor:
        self.append(x, np.full(len(x), x.shape[1]), None, drop=0)
        return all_cached(self.backbone, self.state, x)

    def select(self, rows: Counts) -> Self:
        copied = super().select(rows)
        copied.state = self.state.select(rows)
        return copied

    def put(self, rows: Counts, others: Self) -> None:
        super().put(rows, others)
        self.state.put(rows, others.state)

    def forget(self, counts: Counts) -> None:
        super().forget(counts)
        self.state.lengths = self.state.lengths - counts

    @staticmethod
    def start(step: int, length: int) -> int:
        start = 0
        while step - start >= length:
            start += dropped_steps(length)
        return start


class Banded(Context):
    """A ring of the tokens that a banded model can still see."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        self.backbone = backbone
        # the oldest token of a call sees a whole band back, and the newest must not overwrite it
        self.state = backbone.initial_state(rows, (length + 1) * tokens_per_step - 1)

    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        self.state.lengths = zero_where(first, self.state.lengths)
        return cached(self.backbone, self.state, x, counts)

    def extend_all(self, x: Tensor) -> Tensor:
        return all_cached(self.backbone, self.state, x)

    def select(self, rows: Counts) -> Self:
        copied = copy.copy(self)
        copied.state = self.state.select(rows)
        return copied

    def put(self, rows: Counts, others: Self) -> None:
        self.state.put(rows, others.state)

    def forget(self, counts: Counts) -> None:
        self.state.lengths = self.state.lengths - counts

    @staticmethod
    def start(step: int, length: int) -> int:
        return 0


class Full(Banded):
    """Every token of the episode."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        self.backbone, self.length, self.tokens_per_step = backbone, length, tokens_per_step
        self.state = backbone.initial_state(rows, length * tokens_per_step)

    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        # the last step of a row lacks its action until the next call brings it
        longest = -(-int(zero_where(first, self.state.lengths).max()) // self.tokens_per_step) + 1
        if longest > self.length:
            self.refuse(longest)
        return super().step(x, counts, first)

    def extend_all(self, x: Tensor) -> Tensor:
        if int(self.state.lengths.max()) + x.shape[1] > self.length * self.tokens_per_step:
            self.refuse(self.length + 1)
        return super().extend_all(x)

    def refuse(self, blocks: int) -> NoReturn:
        """Raise InputError for the first step of that many blocks."""
        refuse_longer((blocks - 1) * self.block_length + 1, self.length * self.block_length)


CONTEXTS: dict[str, type[Context]] = {"window": Window, "block": Block, "banded": Banded, "full": Full}
EXACT: dict[str, tuple[str, ...]] = {"window": ("window", "block"), "banded": ("banded",), "full": ("full",)}
"""Attention pattern of a model → the contexts that act exactly as it was trained; the first is the default."""


def check_context(kind: str | None, length: int | None, config: ModelConfig, memory: bool) -> tuple[str, int]:
    """The kind and length to act with. Raises InputError, with the reason, for a combination that would act otherwise than the model was trained."""
    attention = str(config.attention)
    exact = EXACT[attention]
    kind = kind or exact[0]
    if kind not in CONTEXTS:
        raise InputError(f"context {kind!r} is unknown; one of {', '.join(CONTEXTS)}.")
    if not memory:  # such a model looks at one step, so every context is a window of one
        return "window", 1
    if kind not in exact:
        reason = {
            "window": "it was trained on windows of its context length, and from the second layer on a cache that lives longer "
            "remembers steps that have left the window",
            "banded": "it was trained with banded attention, whose layers reach further back than one window",
            "full": "it was trained on whole episodes from their first step, and never saw a window that begins later",
        }[attention]
        raise InputError(
            f"context {kind} is not exact for a model with {config.attention} attention: {reason}; use {' or '.join(exact)}."
        )
    trained = config.context_length
    if length is not None and (length > trained or length < 1):
        raise InputError(f"context length {length} is outside 1 … {trained}, the lengths this model was trained for.")
    if length is not None and length != trained and config.attention != "window":
        raise InputError(
            f"context length {length} differs from the {trained} steps of this model's {config.attention} attention, which are a part of it."
        )
    return kind, length or trained


def cached(backbone: Backbone, state: KeyValueState, x: Tensor, counts: Counts) -> Tensor:
    """The hidden vector (B, D) at token `counts` − 1 of each right-padded row, computed on top of the cache, which then holds `counts` tokens more."""
    before = state.lengths
    hidden, state = backbone(x, state, read=ends(counts, x.device))
    state.lengths = before + counts
    return last_of(hidden, counts)


def all_cached(backbone: Backbone, state: KeyValueState, x: Tensor) -> Tensor:
    """The hidden vectors (B, n, D) at all tokens x (B, n, D), which the cache then holds too."""
    before = state.lengths
    hidden: Tensor = backbone(x, state)[0]
    state.lengths = before + x.shape[1]
    return hidden


def ends(counts: Counts, device: torch.device) -> Tensor | slice:
    """The positions at which some row of a batch ends, ascending."""
    end = int(counts[0])
    if len(counts) == 1 or (counts == end).all():
        return slice(end - 1, end)
    return known_ends(tuple(np.unique(counts - 1).tolist()), device)


@lru_cache(maxsize=256)
def known_ends(positions: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(positions, device=device)


def last_of(hidden: Tensor, counts: Counts) -> Tensor:
    """(B, D) each row's own among the outputs (B, R, D) at `ends(counts)`."""
    if hidden.shape[1] == 1:
        return hidden[:, 0]
    _, which = np.unique(counts, return_inverse=True)
    return hidden[torch.arange(len(hidden), device=hidden.device), torch.from_numpy(which).to(hidden.device)]
