"""Tokens → vectors of the model's width: a table for ids, a linear map for vectors, a small network for images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrl.tokenizers import Tokenizer

DEVIATION = 0.02
"""Of the first weights of tables and quiet maps: torch's own would drown the timestep that is added, and with it which of many tokens are of the same
step."""
LARGE = 36
"""Images of at least so many pixels on their shorter side go through the strided convolutions of Mnih et al. 2015."""


def embedding(tokenizer: Tokenizer, width: int, encoder: str = "conv", quiet: bool = False) -> nn.Module:
    """A module from the tokens of `tokenizer` to (…, D). `encoder` names an entry of `IMAGE_ENCODERS`; a `quiet` map of vectors begins as tables do."""
    if tokenizer.grid is not None:
        return IMAGE_ENCODERS[encoder](tokenizer.grid, width)
    if tokenizer.vocab_size is None:
        return Vectors(tokenizer.token_width, width, quiet)
    if tokenizer.num_tokens > 1:
        return SlotTables(tokenizer.num_tokens, tokenizer.vocab_size, width)
    return table_of(tokenizer.vocab_size, width)


def table_of(rows: int, width: int) -> nn.Embedding:
    """A vector for each of the ids below `rows`."""
    made = nn.Embedding(rows, width)
    nn.init.normal_(made.weight, std=DEVIATION)
    return made


class SlotTables(nn.Module):
    """(…, n) ids → (…, n, D), by a table of V rows for each of the slots: bin 7 of one dimension is not bin 7 of another."""

    first: Tensor

    def __init__(self, slots: int, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = table_of(slots * vocab_size, width)
        self.register_buffer("first", torch.arange(slots) * vocab_size, persistent=False)

    def forward(self, ids: Tensor, slot: int = 0) -> Tensor:
        """The ids are those of slots from `slot` on."""
        return self.table(ids + self.first[slot : slot + ids.shape[-1]])  # type: ignore[no-any-return]


class Unseen(nn.Module):
    """(…, n) ids or (…, n, d) vectors → (…, n, D): the same learned vector whatever they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.vector, std=DEVIATION)

    def forward(self, tokens: Tensor) -> Tensor:
        shape = tokens.shape[:-1] if tokens.is_floating_point() else tokens.shape
        return self.vector.expand(*shape, -1)


class Vectors(nn.Linear):
    """(…, d) → (…, D), in the dtype of its weights: one-hot vectors have none of their own, and a whole model may be turned to bfloat16."""

    def __init__(self, token_width: int, width: int, quiet: bool = False) -> None:
        super().__init__(token_width, width)
        if quiet:
            nn.init.normal_(self.weight, std=DEVIATION)
            nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.weight
        return F.linear(tokens if tokens.dtype == weight.dtype else tokens.to(weight.dtype), weight, self.bias)


class ImageEncoder(nn.Module):
    """(…, C·H·W) bytes → (…, D), through `layers` from (N, C, H, W) numbers in [0, 1]."""

    def __init__(self, grid: tuple[int, int, int], layers: nn.Module, width: int) -> None:
        super().__init__()
        self.grid, self.layers = grid, layers
        with torch.no_grad():
            features = layers(torch.zeros(1, *grid)).shape[1]
        self.out = nn.Linear(features, width)

    def forward(self, tokens: Tensor) -> Tensor:
        pixels = tokens.reshape(-1, *self.grid).to(self.out.weight.dtype) / 255
        return self.out(self.layers(pixels)).view(*tokens.shape[:-1], -1)  # type: ignore[no-any-return]


def convolutions(grid: tuple[int, int, int], width: int) -> ImageEncoder:
    """Three convolutions: those of the Atari network [Mnih et al. 2015, methods] for large images, 3 × 3 for small ones."""
    channels, height, across = grid
    if min(height, across) >= LARGE:
        sizes = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))
    else:
        sizes = ((32, 3, 1, 1), (64, 3, 2, 1), (64, 3, 1, 1))
    layers: list[nn.Module] = []
    for out, kernel, stride, padding in sizes:
        layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
        channels = out
    return ImageEncoder(grid, nn.Sequential(*layers, nn.Flatten()), width)


class Patches(nn.Module):
    """(N, C, H, W) → (N, P·d): each patch through the same linear map, with the patch's place added, and a layer after it [Dosovitskiy et al. 2021,
    arXiv:2010.11929, §3.1, without its attention]. The right and lower edges are padded to whole patches."""

    def __init__(self, grid: tuple[int, int, int], features: int = 64) -> None:
        super().__init__()
        channels, height, width = grid
        side = max(1, round(min(height, width) / 7))
        self.pad = nn.ZeroPad2d((0, -width % side, 0, -height % side))
        self.cut = nn.Conv2d(channels, features, side, side)
        self.place = nn.Parameter(torch.zeros(features, -(-height // side), -(-width // side)))
        nn.init.normal_(self.place, std=DEVIATION)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(features, 16, 1), nn.GELU(), nn.Flatten())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.mix(self.cut(self.pad(pixels)) + self.place)  # type: ignore[no-any-return]


def patches(grid: tuple[int, int, int], width: int) -> ImageEncoder:
    return ImageEncoder(grid, Patches(grid), width)


IMAGE_ENCODERS: dict[str, Callable[[tuple[int, int, int], int], ImageEncoder]] = {
    "conv": convolutions,
    "patch": patches,
}
