"""What has been generated of each row, and which rows go on: the one place where sequences end.

B rows, T tokens of the longest prompt, `steps` tokens at most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.decoding.drafts import Draft


@dataclass(frozen=True)
class Stop:
    """When a row is finished, beside its largest number of tokens. A finished row takes no more tokens and draws no more random numbers."""

    end: int | None = None
    """The end token; it is the last one of its row."""
    until: Callable[[Tensor], bool] | None = None
    """Asked after each token with the ids (t,) generated so far of one row; true when that was the last."""


class Progress:
    """The ids of B rows. A row that has finished never goes on."""

    def __init__(self, rows: int, steps: int, stop: Stop, prompt: Tensor | None, device: torch.device) -> None:
        """`prompt` (B, T) are the ids before, right-padded with −1: what processors and drafts look back on."""
        if steps < 1:
            raise InputError(f"steps {steps} must be a positive number of tokens.")
        if prompt is None:
            prompt = torch.zeros(rows, 0, dtype=torch.long, device=device)
        if prompt.dim() != 2 or len(prompt) != rows:
            raise InputError(f"prompt has shape {tuple(prompt.shape)}; ({rows}, T) is expected, the ids of each row.")
        self.steps, self.stop = steps, stop
        self.starts = (prompt >= 0).sum(dim=1)
        self._ids = torch.cat([prompt, prompt.new_full((rows, steps), -1)], dim=1)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        """(B,) tokens generated."""
        self.going = torch.ones(rows, dtype=torch.bool, device=device)
        """(B,) whether more will come."""

    @property
    def ids(self) -> Tensor:
        """(B, n) generated, n those of the longest row; −1 after the end of a row."""
        longest = int(self.lengths.max())
        places = torch.arange(longest, device=self.lengths.device).expand(len(self.lengths), -1)
        ids = self._ids.gather(1, self.starts[:, None] + places)
        return ids.masked_fill(places >= self.lengths[:, None], -1)

    @property
    def history(self) -> Tensor:
        """(B, T + n) the prompt and what was generated, right-padded with −1."""
        return self._ids[:, : int((self.starts + self.lengths).max())]

    def history_with(self, ids: Tensor) -> Tensor:
        """(B, T + n + m) the history as it would be with ids (B, m) after it."""
        return joined(self.history, ids)

    def last(self) -> Tensor:
        """(B,) the newest id of each row that has one; 0 elsewhere."""
        place = (self.starts + self.lengths - 1).clamp(min=0)
        return self._ids.gather(1, place[:, None]).squeeze(1).masked_fill(self.lengths == 0, 0)

    def add(self, ids: Tensor, counts: Tensor | None = None) -> Tensor:
        """Append to each row that goes on the first of `ids` (B, m), as many as `counts` (B,) says, up to its end; returns how many were taken (B,)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        taken = (self.steps - self.lengths).clamp(max=ids.shape[1])
        if counts is not None:
            taken = torch.minimum(taken, counts)
        taken = taken * self.going
        ended = torch.zeros_like(self.going)
        if self.stop.end is not None:
            ends = (ids == self.stop.end) & (places < taken[:, None])
            ended = ends.any(dim=1)
            taken = torch.where(ended, ends.long().argmax(dim=1) + 1, taken)
        if self.stop.until is not None:
            for row in torch.nonzero(taken).squeeze(1).tolist():
                if count := self._first_end(row, ids[row, : int(taken[row])]):
                    taken[row], ended[row] = count, True
        rows, columns = torch.nonzero(places < taken[:, None], as_tuple=True)
        self._ids[rows, (self.starts + self.lengths)[rows] + columns] = ids[rows, columns]
        self.lengths = self.lengths + taken
        self.going = self.going & ~ended & (self.lengths < self.steps)
        return taken

    def _first_end(self, row: int, ids: Tensor) -> int:
        """How many of new ids (m,) a row takes until the predicate ends it; 0 where it does not."""
        assert self.stop.until is not None
        start = int(self.starts[row])
        before = self._ids[row, start : start + int(self.lengths[row])]
        asked = (self.stop.until(torch.cat([before, ids[: i + 1]])) for i in range(len(ids)))
        return next((i + 1 for i, ends in enumerate(asked) if ends), 0)


def joined(history: Tensor, ids: Tensor) -> Tensor:
    """(B, T + m) ids (B, m) after those of a history (B, T), which is right-padded with −1, as the result is."""
    longer = torch.cat([history, torch.full_like(ids, -1)], dim=1)
    places = (history >= 0).sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device)
    return longer.scatter(1, places, ids)


@dataclass
class Speculation:
    """How well a draft guesses."""

    accepted: Tensor
    """(B,) guesses that came true."""
    tested: Tensor
    """(B,) guesses that were judged: all up to the first rejection of a round, that one included."""
    rounds: Tensor
    """(B,) passes of the model."""

    @classmethod
    def of(cls, rows: int) -> "Speculation":
        return cls(*(torch.zeros(rows, dtype=torch.long) for _ in range(3)))

    def note(self, going: Tensor, accepted: Tensor, tested: Tensor) -> None:
        """Add a round, of the rows (B,) that went on in it; the other two (B,) are 0 in the others."""
        self.accepted += accepted.cpu()
        self.tested += tested.cpu()
        self.rounds += going.cpu()

    def __add__(self, other: "Speculation") -> "Speculation":
        return Speculation(self.accepted + other.accepted, self.tested + other.tested, self.rounds + other.rounds)

    @property
    def acceptance_rate(self) -> float:
        """The share of judged guesses that were accepted, α of all rows; NaN where none was judged."""
        tested = int(self.tested.sum())
        return int(self.accepted.sum()) / tested if tested else float("nan")


@dataclass(frozen=True)
class Generation:
    """One call of `generate`, as a strategy gets it."""

    stream: TokenStream
    config: DecodingConfig
    generators: Sequence[np.random.Generator]
    """One for each row; none is used where nothing is drawn."""
    progress: Progress
    prompt: Tensor | None = None
    """(B, T) the ids before, right-padded with −1."""
    context: Tensor | None = None
    """(B, S, D) hidden vectors of the prompt, without that of its last token: what contrastive search compares with."""
    draft: "Draft | None" = None
    """What guesses ahead, for speculative decoding."""
    speculation: Speculation | None = None
    """Where speculative decoding notes how well the draft guessed."""
