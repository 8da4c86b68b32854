"""Transformers: the published GPT-2 trunk of the Decision Transformer, and a modern one, in one class.

The attention pattern is a property of the model. Without a band a token sees every earlier token it is given; with a band of K steps it sees,
at every layer, the tokens of its own step and of the K − 1 steps before it, so that a cache that forgets older steps is exact.

The cache is a ring of C slots a sequence: the token at position p (counted from the episode's start) lies in slot p mod C. Each sequence has
its own length, and a reset only sets that to 0; which slots are visible follows from lengths alone, so stale ones need no erasing."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrl.backbones.base import Backbone

ROPE_BASE = 10_000.0
"""Base of the rotary frequencies [Su et al. 2021, §3.2.2, arXiv:2104.09864]."""


@dataclass
class KeyValueState:
    """Keys and values of the tokens a sequence may still look at."""

    keys: Tensor
    """(layers, B, H_kv, C, D/H), rotated where the trunk rotates."""
    values: Tensor
    lengths: Tensor
    """(B,) int64: tokens since the beginning of the episode, forgotten ones included."""

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def rewind(self, tokens: Tensor) -> None:
        """Forget the last `tokens` (B,) of each sequence, so that the next call writes over them."""
        self.lengths = self.lengths - tokens


class Transformer(Backbone):
    """Pre-norm decoder.

    `trunk` "gpt2": LayerNorm, biases, an activation between two projections [Radford et al. 2019], positions from the embeddings alone.
    `trunk` "modern": RMSNorm, SwiGLU, rotary positions, no biases. `band`: (steps K, tokens of a step) or None."""

    memory = True

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
        self.blocks = nn.ModuleList(Block(width, heads, self.kv_heads, trunk, activation, dropout) for _ in range(layers))
        self.norm = make_norm(trunk, width)
        if self.rotary:
            self.register_buffer("frequencies", ROPE_BASE ** -(torch.arange(0, self.head_width, 2) / self.head_width), persistent=False)
        initialize(self, layers)

    def forward(self, x: Tensor, state: KeyValueState | None = None, read: Tensor | None = None) -> tuple[Tensor, KeyValueState | None]:
        length = x.shape[1]
        if state is None:
            positions = torch.arange(length, device=x.device)
            mask = visible(positions, positions, self.band)
        else:
            positions = state.lengths[:, None] + torch.arange(length, device=x.device)
            mask = visible(positions, slot_positions(state, length), self.band)[:, None]
        rotation = self.rotation(positions, x.dtype) if self.rotary else None
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x = block(x, mask, rotation, None if state is None else (state, i, positions), read if last else None)
        if state is not None:
            state.lengths = state.lengths + length
        return self.norm(x), state

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B or 1, 1, L, D/H) of the rotary angles at the positions."""
        angles = positions.to(self.frequencies.dtype)[..., None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        angles = angles[None, None] if angles.dim() == 2 else angles[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def initial_state(self, batch_size: int, capacity: int) -> KeyValueState:
        weight = next(self.parameters())
        shape = (len(self.blocks), batch_size, self.kv_heads, capacity, self.head_width)
        zeros = weight.new_zeros(shape)
        return KeyValueState(zeros, zeros.clone(), torch.zeros(batch_size, dtype=torch.int64, device=weight.device))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, kv_heads: int, trunk: str, activation: str, dropout: float) -> None:
        super().__init__()
        bias = trunk == "gpt2"
        self.heads, self.kv_heads, self.head_width, self.dropout = heads, kv_heads, width // heads, dropout
        self.attention_norm, self.mlp_norm = make_norm(trunk, width), make_norm(trunk, width)
        self.query_key_value = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        self.mlp: nn.Module = SwiGLU(width) if trunk == "modern" else MLP(width, activation)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: tuple[KeyValueState, int, Tensor] | None,
        read: Tensor | None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D), or (B, R, D) when `read` names R positions: then only keys and values are computed everywhere."""
        query, key, value = self.project(self.attention_norm(x), read)
        if read is not None:
            x, mask = x[:, read], mask[..., read, :]
        if rotation is not None:
            cos, sin = rotation
            query = rotate(query, cos if read is None else cos[:, :, read], sin if read is None else sin[:, :, read])
            key = rotate(key, cos, sin)
        if cache is not None:
            key, value = write(*cache, key, value)
        rate = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, rate).transpose(1, 2).flatten(2)
        x = x + dropout(self.projection(mixed), rate)
        return x + dropout(self.mlp(self.mlp_norm(x)), rate)

    def project(self, x: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, R, D/H), keys and values (B, H_kv, L, D/H)."""
        own, shared = self.heads * self.head_width, self.kv_heads * self.head_width
        if read is None:
            query, key, value = self.query_key_value(x).split([own, shared, shared], dim=-1)
        else:
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            query = F.linear(x[:, read], weight[:own], None if bias is None else bias[:own])
            key, value = F.linear(x, weight[own:], None if bias is None else bias[own:]).split([shared, shared], dim=-1)
        return tuple(t.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for t in (query, key, value))  # type: ignore[return-value]


class MLP(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = {"relu": F.relu, "gelu": gelu_tanh}[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), with 8/3 the width inside, so that it has as many weights as the plain MLP [Shazeer 2020, arXiv:2002.05202]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * math.ceil(width / 3)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation of the GELU."""
    return F.gelu(x, approximate="tanh")


def make_norm(trunk: str, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6) if trunk == "modern" else nn.LayerNorm(width)


def initialize(module: nn.Module, layers: int) -> None:
    """Normal weights of deviation 0.02, those that end a residual branch smaller by √(2·layers) [Radford et al. 2019, §2.3]."""
    for name, parameter in module.named_parameters():
        if name.endswith(("projection.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


def visible(queries: Tensor, keys: Tensor, band: tuple[int, int] | None) -> Tensor:
    """(…, L, S) bool: which keys each query may see, from positions counted from the episode's start (a negative one marks an empty slot)."""
    queries, keys = queries[..., :, None], keys[..., None, :]
    seen = (keys >= 0) & (keys <= queries)
    if band is not None:
        steps, tokens = band
        seen &= keys >= (queries // tokens - steps + 1) * tokens
    return seen


def slot_positions(state: KeyValueState, new: int) -> Tensor:
    """(B, S) the position of the token in each slot once `new` tokens are written; negative where a slot is still empty.

    A slot's token is the newest one whose position leaves the slot's number when divided by the capacity. On the CPU the slots that no
    sequence has reached yet are left out."""
    newest = (state.lengths + new - 1)[:, None]
    slots = torch.arange(used_slots(state, new), device=newest.device)
    return newest - (newest - slots) % state.capacity


def used_slots(state: KeyValueState, new: int) -> int:
    if state.lengths.device.type != "cpu":
        return state.capacity  # reading a length would wait for the device
    return min(state.capacity, int(state.lengths.max()) + new)


def write(state: KeyValueState, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Put keys and values (B, H_kv, L, D/H) into their slots; returns all that are in use, in slot order."""
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    slots = positions % state.capacity
    state.keys[layer][rows, :, slots] = key.transpose(1, 2)
    state.values[layer][rows, :, slots] = value.transpose(1, 2)
    used = used_slots(state, positions.shape[1])
    return state.keys[layer][:, :, :used], state.values[layer][:, :, :used]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float) -> Tensor:
    """softmax(q·kᵀ / √(D/H)) v over the visible keys, with dropout of the weights; fewer key heads than query heads are shared evenly."""
    grouped = key.shape[1] != query.shape[1]
    if rate == 0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
    if grouped:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(query.shape[-1]))
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return dropout(weights, rate) @ value


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero a share `rate` of x, a multiple of 2⁻¹⁶, and scale the rest.

    On the CPU four decisions are taken from each 64-bit random number, which is several times faster than torch's one draw an element."""
    if rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = round(rate * 65536)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
    return x * (keep * (65536 / (65536 - dropped)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: entry i and entry i + half turn together by the angle of their frequency."""
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-other, one], dim=-1) * sin
