"""A policy's model as a stream of tokens: what decoding strategies look ahead with.

B rows, D width, V ids of a token, m tokens of a step, n tokens of a call."""

import copy

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

from dtrl.acting.context import Context
from dtrl.heads import Head, Slots
from dtrl.sequence_model import SequenceModel

Counts = npt.NDArray[np.int64]


class ModelStream:
    """B token sequences in progress (`dtrl.decoding.stream.TokenStream`), on top of a context's cache.

    `place` is the number within the step of the token that comes next, `timesteps` (B,) the steps that the rows are in, and `state` (B, D) the hidden
    vector from which the next token is predicted. What is fed goes into `context`; `fork` gives a stream that has its own."""

    def __init__(self, model: SequenceModel, context: Context, place: int, timesteps: Counts, state: Tensor) -> None:
        self.model, self.context = model, context
        self.layout = [
            (f.name, slot)
            for f in model.fields
            if f.in_context and not f.joined
            for slot in range(f.tokenizer.num_tokens)
        ]
        self.positions = timesteps * len(self.layout) + place
        """(B,) of the token that comes next, counted from the episode's start."""
        self.reach = 0
        """How many tokens from before the last call a rollback may forget too: those of a draft come one by one, and go at once."""
        self.states = state[:, None]
        """(B, n + 1 + up to `reach`, D) the hidden vectors before the last call, and after each of its n tokens."""
        self.last = np.zeros(len(state), np.int64)
        """(B,) which of them the next token is predicted from."""

    @property
    def rows(self) -> int:
        return len(self.states)

    def next_field(self) -> str:
        """The field of the token that comes next, where all rows are at the same."""
        return self.layout[int(self.positions[0]) % len(self.layout)][0]

    def fork(self, times: int = 1) -> "ModelStream":
        """A stream of its own with every row `times` times, which leaves this one as it is."""
        return self.select(torch.arange(self.rows, device=self.states.device).repeat_interleave(times))

    def select(self, index: Tensor) -> "ModelStream":
        """A stream of its own of the rows index (B′,)."""
        other = copy.copy(self)
        other.reorder(index)
        return other

    def reorder(self, index: Tensor) -> None:
        """The rows become those of index (B′,); a row may come again, or not at all."""
        rows = index.cpu().numpy()
        self.context = self.context.select(rows)
        self.positions, self.states, self.last = self.positions[rows], self.states[index], self.last[rows]

    def rollback(self, counts: Tensor) -> None:
        """Forget the last `counts` (B,) tokens of each row, of those that the last call of `feed` brought, and `reach` before."""
        forgotten = counts.cpu().numpy()
        assert (forgotten <= self.last).all()
        self.context.forget(forgotten)
        self.positions, self.last = self.positions - forgotten, self.last - forgotten

    def hidden(self) -> Tensor:
        """(B, D) what the next token is predicted from."""
        if (self.last == self.last[0]).all():  # the same of every row, and no index by row is needed
            return self.states[:, int(self.last[0])]
        return self.states[np.arange(self.rows), self.last]

    def logits(self) -> Tensor:
        """(B, V) log-probabilities of the next token, −∞ for ids that it does not have; V is the largest vocabulary among the rows."""
        return self.read(self.hidden()[:, None], self.positions[:, None])[:, 0]

    def feed(self, ids: Tensor) -> Tensor:
        """Append ids (B, n); returns the logits (B, n, V) after each of them."""
        after = self.positions[:, None] + np.arange(1, ids.shape[1] + 1)
        self.tell(ids)
        return self.read(self.states[:, -ids.shape[1] :], after)

    def tell(self, ids: Tensor) -> None:
        """Append ids (B, n)."""
        new = self.context.extend_all(self.embed(ids))
        known = min(self.reach, int(self.last.min()))
        before = self.hidden()[:, None]
        if known:
            places = self.last[:, None] + np.arange(-known, 1)
            before = self.states[np.arange(self.rows)[:, None], places]
        self.states = torch.cat([before, new], dim=1)
        self.positions, self.last = self.positions + ids.shape[1], np.full(self.rows, known + ids.shape[1])

    def embed(self, ids: Tensor) -> Tensor:
        """(B, n, D) of ids (B, n) that come next."""
        places, timesteps = self.positions % len(self.layout), self.positions // len(self.layout)
        if (places == places[0]).all():
            return self.embed_from(ids, int(places[0]), timesteps)
        x = self.states.new_empty(*ids.shape, self.model.width)
        for place in np.unique(places):
            which = np.flatnonzero(places == place)
            x[which] = self.embed_from(ids[which], int(place), timesteps[which])
        return x

    def embed_from(self, ids: Tensor, place: int, timesteps: Counts) -> Tensor:
        """(B, n, D) of ids (B, n) whose first comes at `place` of the steps `timesteps` (B,)."""
        parts, at, count = [], 0, ids.shape[1]
        while at < count:
            steps, within = divmod(place + at, len(self.layout))
            name, slot = self.layout[within]
            end = min(count, at + self.model.by_name[name].tokenizer.num_tokens - slot)
            if self.model.by_name[name].tokenizer.vocab_size is None:  # past what can be told by ids
                parts.append(self.states.new_zeros(len(ids), end - at, self.model.width))
            else:
                when = torch.from_numpy(timesteps + steps).to(ids.device)
                parts.append(self.model.embed_ids(name, ids[:, at:end], slot, when))
            at = end
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def read(self, states: Tensor, positions: Counts) -> Tensor:
        """(B, n, V) log-probabilities of the tokens at `positions` (B, n), one after the other, from the hidden vectors (B, n, D) before them."""
        places = positions % len(self.layout)
        if len(places) == 1 or (places == places[0]).all():
            return joined(self.run_of(states, int(places[0, 0])), dim=1)
        groups = [np.flatnonzero(places[:, 0] == place) for place in np.unique(places[:, 0])]
        whole = [joined(self.run_of(states[rows], int(places[rows[0], 0])), dim=1) for rows in groups]
        return joined(whole, dim=0)[np.argsort(np.concatenate(groups))]

    def run_of(self, states: Tensor, place: int) -> list[Tensor]:
        """Field by field, (B, n′, V) log-probabilities of the tokens from `place` on; −∞ of those that nothing predicts."""
        parts, at = [], 0
        while at < states.shape[1]:
            name, slot = self.layout[(place + at) % len(self.layout)]
            end = min(states.shape[1], at + self.model.by_name[name].tokenizer.num_tokens - slot)
            head = self.model.head_of.get(name)
            parts.append(
                head.logits(states[:, at:end], slot).log_softmax(dim=-1)
                if isinstance(head, Slots)
                else ids_of(head, states[:, at:end])
            )
            at = end
        return parts


def ids_of(head: Head | None, hidden: Tensor) -> Tensor:
    """(B, n, V) log-probabilities of a head that gives ids, from (B, n, D); −∞ of another one, which says nothing of ids."""
    distribution = None if head is None else head(hidden)
    if isinstance(distribution, Categorical):
        return distribution.logits
    return hidden.new_full((*hidden.shape[:2], 1), -torch.inf)


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """The parts (…, V) end to end, each with −∞ up to the largest V."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in parts], dim=dim)
