"""Images as a small grid of ids: a convolutional autoencoder whose inner numbers are rounded (finite scalar quantization).

The purpose is that of IRIS [Micheli et al. 2022, arXiv:2209.00588], whose codes are those of a VQ-VAE and whose loss needs a network trained on
photographs; here are neither codes to learn nor weights to download."""

from collections.abc import Sequence
from typing import Any, Self

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.spaces import BYTE, Space, is_image
from dtrl.tokenizers.autoencoder import FitOptions, draw_weights, train, weights_as_buffers
from dtrl.tokenizers.base import Fitted
from dtrl.tokenizers.finite_scalar import LEVELS, Levels, published_levels
from dtrl.tokenizers.image import Image
from dtrl.tokenizers.normalization import no_autocast

SMALL = 4
"""The grid of a square image has at most so many cells a side, where the caller does not choose: 16 tokens, as in IRIS."""
MOST_BYTES = 2**28
"""Training sees at most so many bytes of images, taken evenly from the data."""
FIT = FitOptions(steps=1000, batch_size=32, learning_rate=2e-3)


class ImageCodes(Fitted):
    """Images of bytes ↔ one id a cell of a grid: `halvings` strided convolutions, C numbers a cell, rounded to `levels`; and back by as many doublings.

    `fit` trains both to the least squared error. The shapes are those of `Image`. A side that 2^halvings does not divide is continued by its last
    pixels, which decoding cuts off. Each pixel is clipped to the range that it had in the data, so that a pixel which never changes is exact."""

    low: Tensor
    """(C, H, W) the least value that each pixel had, and `high` the greatest."""
    high: Tensor
    vocab_size: int

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: Sequence[int] = LEVELS[1024],
        *,
        halvings: int | None = None,
        width: int = 32,
        options: FitOptions = FIT,
    ) -> None:
        super().__init__(shape)
        if len(shape) not in (2, 3, 4):
            raise InputError(
                f"values of shape {shape} are no images; give (H, W), (H, W, C), (C, H, W) or a stack of the last two."
            )
        self.image, self.quantizer, self.options = Image(shape), Levels(levels), options
        assert self.image.grid is not None
        channels, *sides = self.pixels = self.image.grid
        if halvings is None:
            halvings = next(i for i in range(64) if max(sides) <= SMALL << i)
        if halvings < 0 or width < 1:
            raise InputError(
                f"halvings = {halvings} and width = {width} make no network; choose halvings ≥ 0 and width ≥ 1."
            )
        self.cells = [-(-side >> halvings) for side in sides]
        self.padding = [(cells << halvings) - side for cells, side in zip(self.cells, sides, strict=True)]
        self.vocab_size, self.num_tokens = self.quantizer.size, self.cells[0] * self.cells[1]
        self.register_buffer("low", torch.zeros(self.pixels, dtype=torch.uint8))
        self.register_buffer("high", torch.zeros(self.pixels, dtype=torch.uint8))
        self.encoder = encoder(channels, width, halvings, self.quantizer.count)
        self.decoder = decoder(channels, width, halvings, self.quantizer.count)

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """For images of bytes, with the largest published levels that make no more than `size` codes."""
        return cls(space.shape, published_levels(size or 1024)) if space.shape and is_image(space) else None

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Train on images (N, …)."""
        every = max(1, x.nbytes // MOST_BYTES)
        self.column(x[: 1 if len(x) else 0])  # its checks, without float64 of the whole
        if x.dtype != "uint8":
            raise InputError(f"the data to fit are of type {x.dtype}, and images are of bytes; give uint8.")
        device = self.low.device
        for buffer, extreme in ((self.low, x.min(axis=0)), (self.high, x.max(axis=0))):
            buffer.copy_(self.channels_first(torch.from_numpy(extreme)[None, None]).reshape(self.pixels))
        images = self.channels_first(torch.from_numpy(x[::every].copy())[None].to(device))
        generator = torch.Generator().manual_seed(self.options.seed)
        networks = self.encoder, self.decoder
        draw_weights(networks, generator)
        train(networks, self.loss, images, self.options, generator)
        self.mark_fitted()

    def channels_first(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B · T, C, H, W)."""
        return self.image.encode(x).reshape(-1, *self.pixels)

    def latent(self, images: Tensor) -> Tensor:
        """(N, C, H, W) bytes → (N, cells, C') numbers to round."""
        x: Tensor = self.encoder(F.pad(self.unit(images), (0, self.padding[1], 0, self.padding[0]), mode="replicate"))
        return x.flatten(2).transpose(1, 2)

    def picture(self, codes: Tensor) -> Tensor:
        """(N, cells, C') rounded numbers → (N, C, H, W) pixels of about [−1, 1]."""
        x: Tensor = self.decoder(codes.transpose(1, 2).unflatten(2, tuple(self.cells)))
        return x[..., : self.pixels[1], : self.pixels[2]]

    def loss(self, images: Tensor) -> Tensor:
        """() mean squared error of images (N, C, H, W)."""
        return F.mse_loss(self.picture(self.quantizer(self.latent(images))), self.unit(images))

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) bytes → (B, T, n), the cells row by row."""
        self.values(x[:, :0])  # its checks; the bytes stay bytes
        with no_autocast(x.device.type):
            images = torch.minimum(torch.maximum(self.channels_first(x.to(torch.uint8)), self.low), self.high)
            return self.quantizer.ids(self.latent(images)).reshape(*x.shape[:2], self.num_tokens)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T, n) → (B, T, …) bytes."""
        codes = self.quantizer.codes(self.ids(tokens)).flatten(0, 1)
        with no_autocast(tokens.device.type):
            least, span = self.span()
            pixels = ((self.picture(codes) + 1) / 2 * span + least).round().clamp(0, BYTE).to(torch.uint8)
        images = torch.minimum(torch.maximum(pixels, self.low), self.high)
        return self.image.decode(images.reshape(*tokens.shape[:2], 1, self.image.token_width))

    def outside(self, x: Tensor) -> Tensor:
        self.values(x[:, :0])
        images = self.channels_first(x)
        clipped = (images < self.low) | (images > self.high)
        return self.image.decode(clipped.reshape(*x.shape[:2], 1, self.image.token_width))

    def span(self) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) the least byte of each channel in the data, and how far its others reach. Where bytes are ids of things, as in MiniGrid, they use
        a small part of 0 … 255."""
        least = self.low.amin(dim=(1, 2), keepdim=True).float()
        return least, (self.high.amax(dim=(1, 2), keepdim=True) - least).clamp_min(1)

    def unit(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) as numbers in [−1, 1]."""
        least, span = self.span()
        return (images - least) / span * 2 - 1


def encoder(channels: int, width: int, halvings: int, inner: int) -> nn.Sequential:
    """(N, C, H, W) → (N, inner, H / 2^halvings, W / 2^halvings)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, device="meta"), nn.ReLU()]
    for _ in range(halvings):
        layers += [nn.Conv2d(width, width, 4, 2, 1, device="meta"), nn.ReLU()]
    return weights_as_buffers(nn.Sequential(*layers, nn.Conv2d(width, inner, 1, device="meta")))


def decoder(channels: int, width: int, halvings: int, inner: int) -> nn.Sequential:
    """The inverse in shape. Pixels are doubled and then convolved: transposed convolutions leave a pattern of squares."""
    layers: list[nn.Module] = [nn.Conv2d(inner, width, 1, device="meta"), nn.ReLU()]
    for _ in range(halvings):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, device="meta"), nn.ReLU()]
    return weights_as_buffers(nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1, device="meta")))
