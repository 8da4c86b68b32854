"""A policy's model as a stream of tokens: what decoding strategies look ahead with.

B rows, D width, V ids of a token, m tokens of a step, n tokens of a call."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Categorical

from dtrl.acting.context import Context
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
        self.places = np.full(len(state), place)
        self.timesteps, self.state = timesteps, state

    @property
    def rows(self) -> int:
        return len(self.state)

    def fork(self, times: int = 1) -> "ModelStream":
        """A stream of its own with every row `times` times, which leaves this one as it is."""
        copied = ModelStream(self.model, self.context, 0, self.timesteps, self.state)
        copied.places = self.places
        copied.reorder(torch.arange(self.rows, device=self.state.device).repeat_interleave(times))
        return copied

    def next_field(self) -> str:
        """The field of the token that comes next, where all rows are at the same."""
        return self.layout[int(self.places[0])][0]

    def reorder(self, index: Tensor) -> None:
        """The rows become those of index (B′,); a row may come again, or not at all."""
        at = index.cpu().numpy()
        self.context = self.context.select(at)
        self.places, self.timesteps, self.state = self.places[at], self.timesteps[at], self.state[index]

    def rollback(self, counts: Counts, state: Tensor) -> None:
        """Forget the last `counts` (B,) tokens of each row, all of the step that it is in; `state` (B, D) is the hidden vector before them."""
        self.context.forget(counts)
        self.places, self.state = self.places - counts, state

    def hidden(self) -> Tensor:
        """(B, D) what the next token is predicted from."""
        return self.state

    def logits(self) -> Tensor:
        """(B, V) log-probabilities of the next token, −∞ for ids that it does not have; V is the largest vocabulary among the rows."""
        return self.read(self.state, self.places)

    def feed(self, ids: Tensor) -> Tensor:
        """Append ids (B, n); returns the logits (B, n, V) after each of them."""
        self.states = self.context.extend_all(self.embed(ids))
        after = self.places[:, None] + np.arange(1, ids.shape[1] + 1)
        self.timesteps = self.timesteps + after[:, -1] // len(self.layout)
        self.places, self.state = after[:, -1] % len(self.layout), self.states[:, -1]
        logits = self.read(self.states.flatten(0, 1), after.reshape(-1))
        return logits.view(*ids.shape, logits.shape[-1])

    def embed(self, ids: Tensor) -> Tensor:
        """(B, n, D) of ids (B, n) that come next."""
        rows, count = ids.shape
        x = ids.new_empty(rows, count, self.model.width, dtype=self.state.dtype)
        for place in np.unique(self.places):
            which = np.flatnonzero(self.places == place)
            at = 0
            while at < count:
                steps, within = divmod(int(place) + at, len(self.layout))
                name, slot = self.layout[within]
                end = min(count, at + self.model.by_name[name].tokenizer.num_tokens - slot)
                timesteps = torch.from_numpy(self.timesteps[which] + steps).to(ids.device)
                x[which, at:end] = self.model.embed_ids(name, ids[which, at:end], slot, timesteps)
                at = end
        return x

    def read(self, states: Tensor, places: Counts) -> Tensor:
        """(N, V) log-probabilities of the tokens at `places` (N,), from the hidden vectors (N, D) before them."""
        parts = {}
        for place in np.unique(places):
            name, slot = self.layout[place % len(self.layout)]
            which = np.flatnonzero(places == place)
            distribution = self.model.predict(name, states[which], slot) if name in self.model.head_of else None
            if isinstance(distribution, Categorical):
                parts[place] = (which, distribution.logits[:, 0])
        if len(parts) == 1 and len(next(iter(parts.values()))[0]) == len(places):
            return next(iter(parts.values()))[1]
        widest = max((logits.shape[-1] for _, logits in parts.values()), default=1)
        out = states.new_full((len(states), widest), -torch.inf)  # of a token that nothing predicts too
        for which, logits in parts.values():
            out[which, : logits.shape[-1]] = logits
        return out
