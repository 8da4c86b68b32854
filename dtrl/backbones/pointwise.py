"""No mixing at all: a residual MLP on each token. Behaviour cloning is the sequence model whose backbone has no memory."""

from typing import Any

from torch import Tensor, nn

from dtrl.backbones.base import ACTIVATIONS, Backbone


class Pointwise(Backbone):
    """`layers` residual blocks of LayerNorm, Linear, activation, dropout."""

    memory = False

    def __init__(self, width: int, layers: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(layers))
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: Any = None, read: Tensor | slice | None = None) -> tuple[Tensor, Any]:
        if read is not None:
            x = x[:, read]
        for block in self.blocks:
            x = x + self.dropout(self.activation(block(x)))
        return x, state

    def initial_state(self, batch_size: int, capacity: int) -> None:
        return None
