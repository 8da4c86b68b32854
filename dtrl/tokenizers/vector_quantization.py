"""Vector quantization and residual vector quantization: a vector is the nearest of K codes, the rest that this leaves the nearest of K others, and so
on [van den Oord et al. 2017, arXiv:1711.00937; Zeghidour et al. 2021, arXiv:2107.03312; of actions: Lee et al. 2024, arXiv:2403.03181]."""

from collections.abc import Sequence
from typing import Any, Self

import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.autoencoder import FitOptions, draw_weights, perceptron, train
from dtrl.tokenizers.bins import is_vector
from dtrl.tokenizers.normalization import Chunked, no_autocast

DECAY = 0.99
"""Of the moving averages that codes are."""
SMOOTHING = 1e-5
"""Added to the count of each code, so that none is divided by 0."""
DEAD = 0.03
"""A code whose moving count is below this share of the mean one is replaced."""
COMMITMENT = 0.25
"""Weight of the distance between what the encoder makes and its code [van den Oord et al. 2017, §3.2]."""
ITERATIONS = 10
"""Of k-means, for the first codes."""
START = 100
"""Chunks a code that k-means is run on; the moving averages see all of them."""
MOST_DISTANCES = 2**24
"""Numbers of a table of distances held at once, 64 MB."""

FIT = FitOptions(steps=1000)


class Codebooks(nn.Module):
    """Vectors (…, d) ↔ ids (…, Q): Q layers of K codes. The codes are moving averages of the vectors that chose them."""

    codes: Tensor
    """(Q, K, d)."""
    counts: Tensor
    """(Q, K) moving average of how many vectors of a batch chose a code."""
    sums: Tensor
    """(Q, K, d) moving average of the sum of these vectors."""

    def __init__(self, layers: int, size: int, width: int) -> None:
        super().__init__()
        for name, number in (("layers", layers), ("codes", size)):
            if number < 1:
                raise InputError(f"{name} = {number} of a vector quantization cannot be; choose 1 or more.")
        self.register_buffer("codes", torch.zeros(layers, size, width))
        self.register_buffer("counts", torch.zeros(layers, size))
        self.register_buffer("sums", torch.zeros(layers, size, width))

    def ids(self, vectors: Tensor) -> Tensor:
        """(…, d) → (…, Q), greedily: each layer takes the code nearest to what the layers before it left over."""
        rest = vectors.flatten(0, -2)
        chosen = []
        for codes in self.codes:
            chosen.append(nearest(rest, codes))
            rest = rest - codes[chosen[-1]]
        return torch.stack(chosen, dim=-1).reshape(*vectors.shape[:-1], len(self.codes))

    def vectors(self, ids: Tensor) -> Tensor:
        """(…, Q) → (…, d), the sum of the layers' codes."""
        return torch.stack([codes[ids[..., i]] for i, codes in enumerate(self.codes)]).sum(dim=0)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, d) → the sum of the codes (N, d), with the gradient of the vectors (straight-through); the ids (N, Q); and the commitment (): summed over the
        layers, the mean squared distance of what a layer was given from its code, which moves only the vectors."""
        ids = self.ids(vectors.detach())
        rest, commitment = vectors, vectors.new_zeros(())
        for layer, codes in enumerate(self.codes):
            code = codes[ids[:, layer]]
            commitment = commitment + F.mse_loss(rest, code)
            rest = rest - code
        quantized = vectors.detach() - rest.detach()
        return vectors + (quantized - vectors).detach(), ids, commitment

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """First codes, by k-means of what each layer is given of the vectors (N, d)."""
        rest = vectors
        for layer, codes in enumerate(self.codes):
            codes.copy_(rest[draw(len(rest), len(codes), generator).to(rest.device)])
            for _ in range(ITERATIONS):
                ids = nearest(rest, codes)
                counts, sums = tallies(rest, ids, len(codes))
                codes.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), codes))
            ids = nearest(rest, codes)
            self.counts[layer] = torch.bincount(ids, minlength=len(codes))
            self.sums[layer] = codes * self.counts[layer, :, None]
            rest = rest - codes[ids]

    @torch.no_grad()
    def learn(self, vectors: Tensor, ids: Tensor, generator: torch.Generator | None = None) -> None:
        """Move the codes towards the means of the vectors (N, d) that chose them, n ← γ n + (1 − γ) · count and s ← γ s + (1 − γ) · sum, to s / n with
        n smoothed after Laplace [van den Oord et al. 2017, appendix A]. With a generator, codes that are hardly chosen are replaced by vectors of the batch."""
        rest = vectors
        for layer, codes in enumerate(self.codes):
            before = codes[ids[:, layer]]
            counts, sums = tallies(rest, ids[:, layer], len(codes))
            self.counts[layer].lerp_(counts, 1 - DECAY)
            self.sums[layer].lerp_(sums, 1 - DECAY)
            total = self.counts[layer].sum()
            smooth = (self.counts[layer] + SMOOTHING) / (total + len(codes) * SMOOTHING) * total
            codes.copy_(self.sums[layer] / smooth[:, None])
            if generator is not None:
                self.replace_dead(layer, rest, generator)
            rest = rest - before

    def replace_dead(self, layer: int, vectors: Tensor, generator: torch.Generator) -> None:
        """Codes of a layer that are hardly chosen become vectors of the batch (N, d), with the mean count: they have to be chosen to stay."""
        mean = self.counts[layer].mean()
        dead = self.counts[layer] < DEAD * mean
        drawn = vectors[draw(len(vectors), len(dead), generator).to(vectors.device)]
        self.codes[layer] = torch.where(dead[:, None], drawn, self.codes[layer])
        self.counts[layer] = torch.where(dead, mean, self.counts[layer])
        self.sums[layer] = torch.where(dead[:, None], drawn * mean, self.sums[layer])


class VectorQuantization(Chunked):
    """Chunks of h steps of numbers ↔ `num_tokens` = Q ids below K, of Q layers of K codes.

    The vectors that are quantized are the standardised chunks themselves, or, where `hidden` names the widths of its layers, what a small network makes
    of them, in `latent` numbers; another network makes the chunk again. `fit` trains networks and codes to the least squared error."""

    vocab_size: int

    def __init__(
        self,
        shape: tuple[int, ...],
        codes: int = 256,
        *,
        layers: int = 1,
        block_length: int = 1,
        hidden: Sequence[int] = (),
        latent: int | None = None,
        box: spaces.Box | None = None,
        options: FitOptions = FIT,
    ) -> None:
        super().__init__(shape, block_length, "deviations", box)
        width = self.entries * block_length
        if latent is not None and not hidden:
            raise InputError(
                f"latent = {latent} is the width that a network makes; give `hidden` too, or leave latent out."
            )
        inner = width if latent is None else latent
        if inner < 1:
            raise InputError(f"latent = {latent} of a vector quantization cannot be; choose 1 or more.")
        self.vocab_size, self.num_tokens, self.options = codes, layers, options
        self.codebooks = Codebooks(layers, codes, inner)
        self.encoder = perceptron((width, *hidden, inner)) if hidden else nn.Sequential()
        self.decoder = perceptron((inner, *reversed(hidden), width)) if hidden else nn.Sequential()

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """Two layers, for vectors."""
        return cls.for_chunks(space, size, 1)

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        return (
            cls(space.shape, size or 256, layers=2, block_length=block_length, box=space) if is_vector(space) else None
        )

    def fit(self, x: npt.NDArray[Any]) -> None:
        """Train on chunks (N, h, …), or (N, …) where h = 1."""
        chunks = self.normalized(x).flatten(1)
        generator = torch.Generator().manual_seed(self.options.seed)
        networks = self.encoder, self.decoder
        draw_weights(networks, generator)
        every = max(1, len(chunks) // (START * self.vocab_size))
        self.codebooks.start(self.encoder(chunks[::every]), generator)
        train(networks, lambda batch: self.loss(batch, generator), chunks, self.options, generator)
        self.mark_fitted()

    def loss(self, chunks: Tensor, generator: torch.Generator) -> Tensor:
        """() squared error of standardised chunks (N, h · D) and the commitment, for the networks; the codes learn on the way."""
        vectors = self.encoder(chunks)
        quantized, ids, commitment = self.codebooks(vectors)
        self.codebooks.learn(vectors.detach(), ids, generator)
        loss: Tensor = F.mse_loss(self.decoder(quantized), chunks) + COMMITMENT * commitment
        return loss

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, T/h, Q)."""
        with no_autocast(x.device.type):
            return self.codebooks.ids(self.encoder(self.chunks(x).flatten(2)))

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, Q) → (B, T, …), inside the range of the data."""
        with no_autocast(tokens.device.type):
            chunks = self.decoder(self.codebooks.vectors(self.ids(tokens)))
            return self.steps(chunks.unflatten(-1, (self.block_length, self.entries)))


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """(N, d), (K, d) → (N) the id of the nearest code, the first of equals: that of the least ‖c‖² / 2 − v · c."""
    half = codes.square().sum(dim=-1) / 2
    parts = vectors.split(max(1, MOST_DISTANCES // len(codes)))
    return torch.cat([torch.addmm(half, part, codes.T, alpha=-1).argmin(dim=-1) for part in parts])


def tallies(vectors: Tensor, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, d), (N) → how many vectors chose each of `size` codes (K), and their sums (K, d)."""
    counts = torch.bincount(ids, minlength=size).to(vectors.dtype)
    return counts, vectors.new_zeros(size, vectors.shape[1]).index_add_(0, ids, vectors)


def draw(population: int, count: int, generator: torch.Generator) -> Tensor:
    """(count) different ones of 0 … population − 1; where there are too few, each as often as the next."""
    order = torch.randperm(population, generator=generator)
    return order.repeat(-(-count // population))[:count]
