"""What every strategy is written against: sequences of ids in progress, whatever model is behind them.

B rows, V ids, D width of a hidden vector, n new ids. The ids of a row are all of one vocabulary of V; where a slot has fewer, the rest are −∞."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class TokenStream(Protocol):
    """B sequences of ids in progress, with what their model remembers of them."""

    @property
    def rows(self) -> int:
        """B, the number of sequences."""

    def logits(self) -> Tensor:
        """(B, V) of the next token; −∞ where its slot has no such id."""

    def hidden(self) -> Tensor:
        """(B, D): the vectors that `logits` were read from."""

    def feed(self, ids: Tensor) -> Tensor:
        """Append ids (B, n), n ≥ 1; returns logits (B, n, V), those after each of them.

        A row may be fed more than it has room for, or ids that mean nothing after its end, if these are rolled back before they are looked at."""

    def reorder(self, index: Tensor) -> None:
        """The rows become those of `index` (B′,), which may repeat some and leave others out."""

    def rollback(self, counts: Tensor) -> None:
        """Forget the last `counts` (B,) tokens of each row."""


Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Ids (B, L) → logits (B, L, V), each for the token after, and the hidden vectors (B, L, D) they were read from. Causal."""


class RecomputedStream:
    """A stream over a plain function, which runs over everything again at each call: slow, and right by construction. The others are tested against it."""

    def __init__(self, model: Model, ids: Tensor) -> None:
        """From prompts `ids` (B, L), L ≥ 1."""
        if ids.dim() != 2 or ids.shape[1] < 1:
            raise ValueError(f"prompts of shape {tuple(ids.shape)}; (B, L) with L from 1 up is expected")
        self.model, self.ids = model, ids
        self.lengths = ids.new_full((len(ids),), ids.shape[1])

    @property
    def rows(self) -> int:
        return len(self.ids)

    def logits(self) -> Tensor:
        return self._run()[0][self._all(), self.lengths - 1]

    def hidden(self) -> Tensor:
        return self._run()[1][self._all(), self.lengths - 1]

    def feed(self, ids: Tensor) -> Tensor:
        places = self.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        longest = int(places.max()) + 1
        grown = self.ids.new_zeros(self.rows, longest)
        kept = min(longest, self.ids.shape[1])
        grown[:, :kept] = self.ids[:, :kept]
        self.ids, self.lengths = grown.scatter(1, places, ids), self.lengths + ids.shape[1]
        return self._run()[0][self._all()[:, None], places]

    def reorder(self, index: Tensor) -> None:
        self.ids, self.lengths = self.ids[index], self.lengths[index]

    def rollback(self, counts: Tensor) -> None:
        if bool((counts >= self.lengths).any()) or bool((counts < 0).any()):
            raise ValueError(f"cannot forget {counts.tolist()} of {self.lengths.tolist()} tokens; one has to stay")
        self.lengths = self.lengths - counts

    def contents(self) -> list[list[int]]:
        """The ids of each row, prompt included."""
        return [row[:length].tolist() for row, length in zip(self.ids, self.lengths.tolist(), strict=True)]

    def _run(self) -> tuple[Tensor, Tensor]:
        # what stands on the right of a row's end is left from a rollback, and a causal model does not see it
        return self.model(self.ids)

    def _all(self) -> Tensor:
        return torch.arange(self.rows, device=self.ids.device)


class PairedStream:
    """Two streams of the same tokens as one, such as a model that knows the wanted return and one that does not."""

    def __init__(self, streams: Sequence[TokenStream], combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`combine` makes logits (…, V) of those of the first and of the second; the hidden vectors are the first's."""
        self.first, self.second = streams
        if self.first.rows != self.second.rows:
            raise ValueError(f"streams of {self.first.rows} and of {self.second.rows} rows cannot go in pairs")
        self.combine = combine

    @property
    def rows(self) -> int:
        return self.first.rows

    def logits(self) -> Tensor:
        return self.combine(self.first.logits(), self.second.logits())

    def hidden(self) -> Tensor:
        return self.first.hidden()

    def feed(self, ids: Tensor) -> Tensor:
        return self.combine(self.first.feed(ids), self.second.feed(ids))

    def reorder(self, index: Tensor) -> None:
        self.first.reorder(index)
        self.second.reorder(index)

    def rollback(self, counts: Tensor) -> None:
        self.first.rollback(counts)
        self.second.rollback(counts)
