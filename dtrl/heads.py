"""Hidden vectors → next-token distributions. A new head is a class here, a row in `HEADS`, and its tests.

A head works in token units: a continuous action's token lies in [−1, 1] where the action space has bounds (see `tokenizers.continuous`)."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.distributions.utils import lazy_property

LOG_STD_RANGE = (-5.0, 2.0)
"""Clamp of the log standard deviation [Zheng et al. 2022, Online Decision Transformer, arXiv:2202.05607]."""
TANH_EDGE = 1 - 1e-6
"""Largest |token| whose density under a squashed Gaussian is asked for: at ±1 it is infinite."""
ENTROPY_NODES = 16
"""Points of the Gauss–Hermite quadrature of a squashed Gaussian's entropy: its error is below 2e-5 nats a dimension up to a deviation of 1, and 0.02 at e."""


class Head(Protocol):
    """A module from hidden vectors (…, D) to the distribution of the token that comes next."""

    def __call__(self, hidden: Tensor) -> Distribution: ...


class PointMass(Distribution):
    """The deterministic policy as a distribution: a Gaussian of fixed deviation √(d/2), whose normalising constant, which no gradient sees, is left
    out. So −log p is exactly the mean squared error over the d entries of a token [Chen et al. 2021, §3]."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, location: Tensor) -> None:
        self.location = location
        super().__init__(location.shape[:-1], location.shape[-1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        return self.location

    @property
    def mean(self) -> Tensor:
        return self.location

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.location.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.location).square().mean(dim=-1)


class TanhNormal(TransformedDistribution):
    """tanh of a diagonal Gaussian [Haarnoja et al. 2018, appendix C, arXiv:1801.01290]; its `mode` is the tanh of the Gaussian's mean."""

    def __init__(self, location: Tensor, deviation: Tensor) -> None:
        self.normal = Independent(Normal(location, deviation, validate_args=False), 1, validate_args=False)
        super().__init__(self.normal, TanhTransform(cache_size=1), validate_args=False)

    @lazy_property
    def mode(self) -> Tensor:
        return torch.tanh(self.normal.mean)

    @property
    def mean(self) -> Tensor:
        return self.mode

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.clamp(-TANH_EDGE, TANH_EDGE))  # type: ignore[no-any-return, no-untyped-call]

    def entropy(self) -> Tensor:
        """In nats: that of the Gaussian, and E log(1 − tanh² u) of the change of variables, by quadrature. The published code draws one sample instead."""
        at, weight = quadrature(self.normal.mean.device, self.normal.mean.dtype)
        u = self.normal.mean.unsqueeze(-1) + self.normal.stddev.unsqueeze(-1) * at
        # log(1 − tanh² u) in a form that does not round to log 0
        slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return self.normal.entropy() + (slope @ weight).sum(dim=-1)  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def quadrature(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Points and weights for the mean of a function of a standard normal number. Kept, since no CUDA graph can hold the copy to its device."""
    points, weights = np.polynomial.hermite_e.hermegauss(ENTROPY_NODES)
    with torch.inference_mode(False):  # they are for every later loss too
        return tuple(torch.from_numpy(x).to(device, dtype) for x in (points, weights / weights.sum()))  # type: ignore[return-value]


class Deterministic(nn.Module):
    """One point, squashed by tanh into the bounds of the tokens, as published."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        self.point = nn.Linear(width, token_width)

    def forward(self, hidden: Tensor) -> PointMass:
        return PointMass(torch.tanh(self.point(hidden)))


class Gaussian(nn.Module):
    """Mean and deviation an entry; not squashed, so what lies outside the action space is clipped when it is decoded."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        self.parameters_of = nn.Linear(width, 2 * token_width)

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        location, log_deviation = self.parameters_of(hidden).chunk(2, dim=-1)
        low, high = LOG_STD_RANGE
        return location, (low + (high - low) * torch.sigmoid(log_deviation)).exp()

    def forward(self, hidden: Tensor) -> Distribution:
        return Independent(Normal(*self.moments(hidden), validate_args=False), 1, validate_args=False)


class TanhGaussian(Gaussian):
    """A Gaussian squashed into [−1, 1]: no probability outside the action space."""

    def forward(self, hidden: Tensor) -> TanhNormal:
        return TanhNormal(*self.moments(hidden))


class Categories(nn.Module):
    """Logits over a vocabulary."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, vocab_size)

    def forward(self, hidden: Tensor) -> Categorical:
        return Categorical(logits=F.log_softmax(self.logits(hidden), dim=-1), validate_args=False)


class Slots(nn.Module):
    """Logits of the n tokens of a field, each by a linear map of its own [Janner et al. 2021, Trajectory Transformer, arXiv:2106.02039].

    `sizes` are the numbers of ids that each slot has, up to the vocabulary V; the others get −∞."""

    unused: Tensor

    def __init__(self, width: int, tokens: int, vocab_size: int, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        # laid out as Linear's: initialised alike
        maps = [nn.Linear(width, vocab_size) for _ in range(tokens)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in maps]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in maps]))
        self.register_buffer("unused", unused_ids(tokens, vocab_size, sizes), persistent=False)

    def forward(self, hidden: Tensor, slot: int = 0) -> Categorical:
        """(…, n′, D) hidden vectors before the tokens of n′ slots from `slot` on → their distributions, of batch shape (…, n′)."""
        return Categorical(logits=self.logits(hidden, slot), validate_args=False)

    def logits(self, hidden: Tensor, slot: int = 0) -> Tensor:
        """(…, n′, V), not normalised."""
        some = slice(slot, slot + hidden.shape[-2])
        weight, bias, unused = self.weight[some], self.bias[some], self.unused[some]
        if len(weight) == 1:  # a product of matrices is sooner begun than a sum over indices
            return F.linear(hidden, weight[0], bias[0]).masked_fill(unused, -torch.inf)
        return (torch.einsum("...nd,nvd->...nv", hidden, weight) + bias).masked_fill(unused, -torch.inf)


class AtOnce(nn.Module):
    """Logits of all n tokens of a field from one hidden vector, by a small network that leaves the model alone: no gradient goes back into it. A draft
    of what the model then says token by token [Stern et al. 2018, arXiv:1811.03115; Cai et al. 2024, Medusa-1, arXiv:2401.10774].

    `sizes` as in `Slots`."""

    unused: Tensor

    def __init__(self, width: int, tokens: int, vocab_size: int, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.inner, self.logits = nn.Linear(width, 2 * width), nn.Linear(2 * width, tokens * vocab_size)
        self.register_buffer("unused", unused_ids(tokens, vocab_size, sizes), persistent=False)

    def forward(self, hidden: Tensor) -> Categorical:
        """(…, 1, D) → distributions of batch shape (…, n)."""
        logits = self.logits(F.relu(self.inner(hidden.detach().squeeze(-2)))).unflatten(-1, self.unused.shape)
        return Categorical(logits=logits.masked_fill(self.unused, -torch.inf), validate_args=False)


def unused_ids(tokens: int, vocab_size: int, sizes: Sequence[int] | None) -> Tensor:
    """(n, V) bool: the ids that slots of these sizes do not have; None where all have all."""
    return torch.arange(vocab_size) >= torch.tensor(list(sizes or [vocab_size] * tokens))[:, None]


class OneHots(Distribution):
    """Independent choices, as the token that `tokenizers.OneHot` makes of them: the one-hot vectors of all, end to end."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.parts = [F.log_softmax(part, dim=-1) for part in logits.split_with_sizes(list(sizes), dim=-1)]
        self.sizes = tuple(sizes)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def logits(self) -> Tensor:
        """(…, Σ sizes) log-probabilities within each choice."""
        return torch.cat(self.parts, dim=-1)

    @property
    def mode(self) -> Tensor:
        return self.one_hot([part.argmax(dim=-1) for part in self.parts])

    def one_hot(self, ids: Sequence[Tensor]) -> Tensor:
        """The token of given ids, one a choice."""
        # not F.one_hot, which reads the ids back to check them
        parts = [
            torch.zeros_like(part).scatter_(-1, i[..., None], 1.0) for i, part in zip(ids, self.parts, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.one_hot([Categorical(logits=part, validate_args=False).sample(sample_shape) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Of a token; sum over the choices. Selects rather than multiplies: 0 · −∞ would be NaN."""
        return torch.where(value > 0.5, self.logits, 0.0).sum(dim=-1)


class Choices(nn.Module):
    """Logits of several choices, all from one hidden vector."""

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.logits, self.sizes = nn.Linear(width, sum(sizes)), tuple(sizes)

    def forward(self, hidden: Tensor) -> OneHots:
        return OneHots(self.logits(hidden), self.sizes)


HEADS: dict[str, type[nn.Module]] = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "tanh_gaussian": TanhGaussian,
    "categorical": Categories,
}
"""For Box and Discrete actions; those of several choices take `Choices`."""
