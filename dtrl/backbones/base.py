"""What every backbone offers: one method, as in `torch.nn.GRU`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation of the GELU."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": gelu_tanh}


class Backbone(nn.Module, ABC):
    """A causal map of token sequences. Training, prefill and a single step are the same `forward` with L large or small:
    a second code path would drift from the first."""

    memory: bool
    """Whether a token's output depends on earlier tokens at all."""

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None, read: Tensor | slice | None = None) -> tuple[Tensor, Any]:
        """(B, L, D) → (B, L, D), and the state after the L tokens.

        Without a `state` the sequences begin at x[:, 0]. With one, they go on where the state ends, which is then updated in place.
        `read`, R indices or a slice, names the positions of x whose outputs are wanted: the result is (B, R, D), and what no wanted output depends on is
        not computed."""

    @abstractmethod
    def initial_state(self, batch_size: int, capacity: int) -> Any:
        """The state before the first token, with room for `capacity` tokens a sequence, on the backbone's device and in its dtype."""
