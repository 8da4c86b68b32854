"""Transformers: the published GPT-2 trunk of the Decision Transformer, and a modern one, in one class.

The attention pattern is a property of the model. Without a band a token sees every earlier token it is given; with a band of K steps it sees,
at every layer, the tokens of its own step and of the K − 1 steps before it, so that a cache that forgets older steps is exact.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrl.backbones.base import ACTIVATIONS, Backbone
from dtrl.backbones.cache import Cache, GivenPast, KeyValueState, attend, known_mask, untouched_zeros
from dtrl.backbones.dropout import add_dropped

ROPE_BASE = 10_000.0
"""Base of the rotary frequencies [Su et al. 2021, §3.2.2, arXiv:2104.09864]."""
FEW_TOKENS = 8
"""Up to so many tokens in a batch, one product for all queries, keys and values costs less than leaving out the queries that nobody reads."""


class Transformer(Backbone):
    """Pre-norm decoder.

    `trunk` "gpt2": LayerNorm, biases, an activation between two projections [Radford et al. 2019], positions from the embeddings alone.
    `trunk` "modern": RMSNorm, SwiGLU, rotary positions, no biases. `band`: (steps K, tokens of a step) or None."""

    memory = True
    frequencies: Tensor

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        trunk: str = "gpt2",
        activation: str = "relu",
        dropout: float = 0.0,
        band: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.band = heads, kv_heads or heads, width // heads, band
        self.rotary = trunk == "modern"
        self.blocks = nn.ModuleList(
            Block(width, heads, self.kv_heads, trunk, activation, dropout) for _ in range(layers)
        )
        self.norm = make_norm(trunk, width)
        if self.rotary:
            self.register_buffer(
                "frequencies", ROPE_BASE ** -(torch.arange(0, self.head_width, 2) / self.head_width), persistent=False
            )
        initialize(self, layers)
        self.refer()
        # load_state_dict(assign=True) replaces parameters too
        self.register_load_state_dict_post_hook(refer_again)  # type: ignore[no-untyped-call]

    def forward(
        self, x: Tensor, state: KeyValueState | GivenPast | None = None, read: Tensor | slice | None = None
    ) -> tuple[Tensor, KeyValueState | GivenPast | None]:
        length = x.shape[1]
        cache: Cache | GivenPast | None = None
        if state is None:
            positions: Callable[[], Tensor] = partial(torch.arange, length, device=x.device)
            # a compiled forward builds its own, since dynamo warns of a cache that it cannot see into, and so does a CUDA graph, whose memory the cache
            # might give back
            own = torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())
            known = known_mask.__wrapped__ if own else known_mask
            mask = known(0, length, length, self.band, x.device, x.dtype)
            # torch's kernels for CUDA read no mask at all where it is the causal one
            causal = x.is_cuda and self.band is None
        else:
            causal = False
            positions, mask, cache = state.plan(length, self.band, x.device, x.dtype)
        rotation = self.rotation(positions(), x.dtype) if self.rotary else None
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            part = read if i == last else None
            x = block(
                x, None if causal and part is None else mask, rotation, None if cache is None else (cache, i), part
            )
        if state is not None:
            state.advance(length)
        return self.final_norm(x), state

    def _apply(self, *arguments: Any, **keywords: Any) -> "Transformer":
        """A move to another device or dtype may replace parameters: refer to the new ones."""
        super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]
        refer_again(self)
        return self

    def refer(self) -> None:
        """As `Block.refer`."""
        self.final_norm = norm_of(self.norm)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B or 1, 1, L, D/H) of the rotary angles at the positions."""
        angles = positions.to(self.frequencies.dtype)[..., None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        angles = angles[None, None] if angles.dim() == 2 else angles[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def initial_state(self, batch_size: int, capacity: int) -> KeyValueState:
        weight = next(self.parameters())
        shape = (len(self.blocks), batch_size, 2 * self.kv_heads, capacity, self.head_width)
        return KeyValueState(untouched_zeros(shape, weight), np.zeros(batch_size, dtype=np.int64))


def refer_again(module: nn.Module, *_: Any) -> None:
    """Have the parts of a module refer to the parameters that it has now."""
    for part in module.modules():
        if isinstance(part, Transformer | Block | MLP | SwiGLU):
            part.refer()


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, kv_heads: int, trunk: str, activation: str, dropout: float) -> None:
        super().__init__()
        bias = trunk == "gpt2"
        self.heads, self.kv_heads, self.head_width, self.dropout = heads, kv_heads, width // heads, dropout
        self.attention_norm, self.mlp_norm = make_norm(trunk, width), make_norm(trunk, width)
        self.query_key_value = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        self.mlp: MLP | SwiGLU = SwiGLU(width) if trunk == "modern" else MLP(width, activation)
        self.refer()

    def refer(self) -> None:
        """Take plain references to the parameters: one step of acting runs some fifty small kernels, and finding a parameter through its module
        costs as much as a kernel."""
        self.norms = norm_of(self.attention_norm), norm_of(self.mlp_norm)
        self.weights = weights_of(self.query_key_value), weights_of(self.projection)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        cache: "tuple[Cache | GivenPast, int] | None",
        read: Tensor | slice | None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, R, D) when `read` names R positions: then only keys and values are computed everywhere.

        Without a `mask`, which a cache and `read` need, every token sees those before it."""
        (attention_norm, mlp_norm), (_, projection) = self.norms, self.weights
        heads, shared = self.heads * self.head_width, self.kv_heads * self.head_width
        if cache is None:
            query, key, value = map(self.by_head, self.project(attention_norm(x), read, (heads, shared, shared)))
        else:
            query, key_value = map(self.by_head, self.project(attention_norm(x), read, (heads, 2 * shared)))
        if read is not None:
            assert mask is not None
            x, mask = x[:, read], mask[..., read, :]
        if rotation is not None:
            cos, sin = rotation
            query = rotate(query, cos if read is None else cos[:, :, read], sin if read is None else sin[:, :, read])
            if cache is None:
                key = rotate(key, cos, sin)
            else:
                key, value = key_value.chunk(2, dim=1)
                key_value = torch.cat([rotate(key, cos, sin), value], dim=1)
        rate = self.dropout if self.training else 0.0
        if cache is None:
            mixed = attend(query, key, value, mask, rate)
        else:
            assert mask is not None
            mixed = cache[0].attend(cache[1], query, key_value, mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        x = add_dropped(x, F.linear(mixed, *projection), rate)
        return add_dropped(x, self.mlp(mlp_norm(x)), rate)

    def project(self, x: Tensor, read: Tensor | slice | None, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The projections of the tokens in `parts` of the given widths: first the queries (B, R, ·), then keys and values (B, L, ·)."""
        weight, bias = self.weights[0]
        if read is None:
            return F.linear(x, weight, bias).split_with_sizes(parts, dim=-1)
        if not torch.compiler.is_exporting() and x.shape[0] * x.shape[1] <= FEW_TOKENS:
            query, *others = F.linear(x, weight, bias).split_with_sizes(parts, dim=-1)
            return query[:, read], *others
        cut = (parts[0], sum(parts[1:]))
        (own, shared), (own_bias, shared_bias) = weight.split(cut), (None, None) if bias is None else bias.split(cut)
        rest = F.linear(x, shared, shared_bias).split_with_sizes(parts[1:], dim=-1)
        return F.linear(x[:, read], own, own_bias), *rest

    def by_head(self, x: Tensor) -> Tensor:
        """(B, L, n · D/H) → (B, n, L, D/H)."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]
        self.refer()

    def refer(self) -> None:
        self.weights = weights_of(self.up), weights_of(self.down)

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.weights
        if self.training and self.activation is torch.relu:
            # in place, without a second tensor of this size; the product of rows (N, D) is no view, so autograd needs no copy of it either
            return F.linear(F.linear(x.flatten(0, -2), *up).relu_(), *down).view(x.shape)
        return F.linear(self.activation(F.linear(x, *up)), *down)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), with 8/3 the width inside, so that it has as many weights as the plain MLP [Shazeer 2020, arXiv:2002.05202]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * math.ceil(width / 3)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.refer()

    def refer(self) -> None:
        self.weights = weights_of(self.gate_up), weights_of(self.down)

    def forward(self, x: Tensor) -> Tensor:
        gate_up, down = self.weights
        gate, up = F.linear(x, *gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, *down)


def make_norm(trunk: str, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6) if trunk == "modern" else nn.LayerNorm(width)


def weights_of(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm as a function of its input alone."""
    if isinstance(norm, nn.RMSNorm):
        return partial(rms_norm, norm.normalized_shape, norm.weight, norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    return partial(layer_norm, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def layer_norm(shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float, x: Tensor) -> Tensor:
    return torch.layer_norm(x, shape, weight, bias, eps)


def rms_norm(shape: tuple[int, ...], weight: Tensor, eps: float | None, x: Tensor) -> Tensor:
    return torch.rms_norm(x, shape, weight, eps)


def initialize(module: nn.Module, layers: int) -> None:
    """Normal weights of deviation 0.02, those that end a residual branch smaller by √(2·layers) [Radford et al. 2019, §2.3]."""
    for name, parameter in module.named_parameters():
        if name.endswith(("projection.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: entry i and entry i + half turn together by the angle of their frequency."""
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-other, one], dim=-1) * sin
