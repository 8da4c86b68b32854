"""What the model looks back on while it acts: four contexts, each exactly equal to a teacher-forced forward over the same tokens.

window   recompute the last K steps at every step: the published Decision Transformer
block    cache until the context holds K steps, then keep the last K/2, recompute them once, and go on: for the same models, some ten times fewer tokens
banded   a ring cache of the last K steps, for models trained with banded attention
full     a growing cache of the whole episode, for models trained on whole episodes

B rows (environments), n tokens a call, m tokens a step, D width. Every row has its own length; a reset sets it to 0. Rows whose call has fewer tokens (at
the first step there is no previous action) are padded on the right; the padding is overwritten by the next call."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dtrl.backbones import Backbone
from dtrl.backbones.attention import KeyValueState
from dtrl.config import ModelConfig
from dtrl.errors import InputError


class Context(ABC):
    """The past of B rows."""

    @abstractmethod
    def step(self, x: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        """Append the first `counts` (B,) tokens of each row of x (B, n, D) and return the hidden vector (B, D) at the last of them.

        Rows in `first` (B,) bool begin a new episode with these tokens."""

    @staticmethod
    @abstractmethod
    def start(step: int, length: int) -> int:
        """The first step that the action at `step` may depend on, for K = `length`."""


class Window(Context):
    """The tokens of the last K steps, recomputed at every call."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        weight = next(backbone.parameters())
        self.backbone, self.tokens_per_step = backbone, tokens_per_step
        self.capacity = length * tokens_per_step
        self.tokens = weight.new_zeros(rows, self.capacity, width)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=weight.device)

    def step(self, x: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        self.append(x, counts, first, drop=self.tokens_per_step)
        return forward_rows(self.backbone, self.tokens, self.lengths)

    def append(self, x: Tensor, counts: Tensor, first: Tensor, drop: int) -> Tensor:
        """Add tokens; rows that have no room first lose their oldest `drop` tokens. Returns which rows did."""
        self.lengths = torch.where(first, 0, self.lengths)
        full = self.lengths + counts > self.capacity
        if full.any():
            self.tokens[full] = self.tokens[full].roll(-drop, dims=1)
            self.lengths = torch.where(full, self.lengths - drop, self.lengths)
        for i in range(x.shape[1]):
            wanted = (counts > i).nonzero().squeeze(1)
            self.tokens[wanted, self.lengths[wanted] + i] = x[wanted, i]
        self.lengths = self.lengths + counts
        return full

    @staticmethod
    def start(step: int, length: int) -> int:
        return max(0, step - length + 1)


class Block(Window):
    """A cache that grows to K steps; then the last K/2 are kept and recomputed once."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        super().__init__(backbone, rows, length, tokens_per_step, width)
        self.dropped = (length - kept_steps(length) + 1) * tokens_per_step
        # a row may be padded past its last token, and the padding needs a slot
        self.state = backbone.initial_state(rows, self.capacity + tokens_per_step)

    def step(self, x: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        refilled = self.append(x, counts, first, drop=self.dropped)
        if not refilled.any():
            self.state.lengths = torch.where(first, 0, self.state.lengths)
            return cached_rows(self.backbone, self.state, x, counts)
        going_on, fresh = (~refilled).nonzero().squeeze(1), refilled.nonzero().squeeze(1)
        hidden = x.new_empty(len(x), x.shape[-1])
        part = take_rows(self.state, going_on)
        part.lengths = torch.where(first[going_on], 0, part.lengths)
        if len(going_on):
            hidden[going_on] = cached_rows(self.backbone, part, x[going_on], counts[going_on])
            put_rows(self.state, going_on, part)
        part = self.backbone.initial_state(len(fresh), self.state.capacity)
        counts = self.lengths[fresh]
        hidden[fresh] = cached_rows(self.backbone, part, self.tokens[fresh, : int(counts.max())], counts)
        put_rows(self.state, fresh, part)
        return hidden

    @staticmethod
    def start(step: int, length: int) -> int:
        start = 0
        while step - start >= length:
            start += length - kept_steps(length) + 1
        return start


class Banded(Context):
    """A ring of the tokens that a banded model can still see."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        self.backbone = backbone
        # the oldest token of a call sees a whole band back, and the newest must not overwrite it
        self.state = backbone.initial_state(rows, (length + 1) * tokens_per_step - 1)

    def step(self, x: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        self.state.lengths = torch.where(first, 0, self.state.lengths)
        return cached_rows(self.backbone, self.state, x, counts)

    @staticmethod
    def start(step: int, length: int) -> int:
        return 0


class Full(Banded):
    """Every token of the episode."""

    def __init__(self, backbone: Backbone, rows: int, length: int, tokens_per_step: int, width: int) -> None:
        self.backbone, self.length, self.tokens_per_step = backbone, length, tokens_per_step
        self.state = backbone.initial_state(rows, length * tokens_per_step)

    def step(self, x: Tensor, counts: Tensor, first: Tensor) -> Tensor:
        longest = int(torch.where(first, 0, self.state.lengths).max()) // self.tokens_per_step + 1
        if longest > self.length:
            raise InputError(
                f"an episode has reached step {longest}, and this model was trained on episodes of at most {self.length} steps; "
                "train with attention window or banded, which forget, or on longer episodes."
            )
        return super().step(x, counts, first)


CONTEXTS: dict[str, type[Context]] = {"window": Window, "block": Block, "banded": Banded, "full": Full}
EXACT: dict[str, tuple[str, ...]] = {"window": ("window", "block"), "banded": ("banded",), "full": ("full",)}
"""Attention pattern of a model → the contexts that act exactly as it was trained; the first is the default."""


def check_context(kind: str | None, length: int | None, config: ModelConfig, memory: bool) -> tuple[str, int]:
    """The kind and length to act with. Raises InputError, with the reason, for a combination that would act otherwise than the model was trained."""
    exact = EXACT[config.attention]
    kind = kind or exact[0]
    if kind not in CONTEXTS:
        raise InputError(f"context {kind!r} is unknown; one of {', '.join(CONTEXTS)}.")
    if not memory:  # such a model looks at one step, so every context is a window of one
        return "window", 1
    if kind not in exact:
        reason = {
            "window": "it was trained on windows of its context length, and from the second layer on a longer-lived cache remembers steps that have left the window",
            "banded": "it was trained with banded attention, whose layers reach further back than one window",
            "full": "it was trained on whole episodes from their first step, and never saw a window that begins later",
        }[config.attention]
        raise InputError(f"context {kind} is not exact for a model with {config.attention} attention: {reason}; use {' or '.join(exact)}.")
    trained = config.context_length
    if length is not None and (length > trained or length < 1):
        raise InputError(f"context length {length} is outside 1 … {trained}, the lengths this model was trained for.")
    if length is not None and length != trained and config.attention != "window":
        raise InputError(f"context length {length} differs from the {trained} steps of this model's {config.attention} attention, which are a part of it.")
    return kind, length or trained


def kept_steps(length: int) -> int:
    """Steps a block context still holds after it dropped the rest, the newest included."""
    return max(1, length // 2)


def forward_rows(backbone: Backbone, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The hidden vector at the last token of each right-padded row, recomputed."""
    ends, which = lengths.sub(1).unique(return_inverse=True)
    hidden, _ = backbone(tokens[:, : int(ends[-1]) + 1], read=ends)
    return hidden[torch.arange(len(hidden), device=hidden.device), which]


def cached_rows(backbone: Backbone, state: KeyValueState, x: Tensor, counts: Tensor) -> Tensor:
    """The hidden vector at token `counts` − 1 of each right-padded row, computed on top of the cache, which then holds `counts` tokens more."""
    ends, which = counts.sub(1).unique(return_inverse=True)
    hidden, state = backbone(x, state, read=ends)
    state.rewind(x.shape[1] - counts)
    return hidden[torch.arange(len(hidden), device=hidden.device), which]


def take_rows(state: KeyValueState, rows: Tensor) -> KeyValueState:
    return KeyValueState(state.keys[:, rows], state.values[:, rows], state.lengths[rows])


def put_rows(state: KeyValueState, rows: Tensor, part: KeyValueState) -> None:
    state.keys[:, rows], state.values[:, rows] = part.keys, part.values
    state.lengths = state.lengths.index_put((rows,), part.lengths)
