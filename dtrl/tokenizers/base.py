"""What every tokenizer offers, and the checks that those share whose numbers are fitted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.spaces import Space


class Tokenizer(nn.Module, ABC):
    """Turns values into tokens and back. Fitted numbers are buffers, so they are saved with the model and move with it.

    h is `block_length`, the steps one block of tokens covers; n is `num_tokens`, the tokens of a block."""

    vocab_size: int | None
    """Number of ids, one for all n tokens, or None where a token is a real vector."""
    num_tokens: int
    block_length: int
    token_width: int
    """Entries of a real-vector token, d; 1 for ids."""
    grid: tuple[int, int, int] | None = None
    """(C, H, W) where a token is an image, of d = C · H · W entries, which convolutions may embed; else None."""
    sizes: Sequence[int] | None = None
    """Of several choices at once: the numbers of their values, which each id, or each part of the vector, has; else None."""
    padding_id: int | None = None
    """Id that fills up a block which needs fewer than n tokens; None where every block needs all."""

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """One for values of a simple space, with its defaults; None where it is not for such a space. `size` is the number of ids, where that can be
        chosen."""
        return None

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        """The same for chunks of h = `block_length` steps, seen as a whole; None where it sees one step at a time."""
        return None

    @abstractmethod
    def fit(self, x: npt.NDArray[Any]) -> None:
        """Set the buffers from a column of data (N, …), or from its chunks (N, h, …) where h > 1, in env units."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) env units → (B, T/h, n) int64 ids, or (B, T/h, n, d) real vectors when `vocab_size` is None."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """The inverse of `encode`: (B, T/h, n) or (B, T/h, n, d) → (B, T, …) env units."""

    def complete(self, ids: Tensor) -> Tensor:
        """(B, j) the first j ids of blocks → (B,) bool: those that need no more, so that nothing but `padding_id` follows."""
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def outside(self, x: Tensor) -> Tensor:
        """(B, T, …) env units → bool of the same shape: the values beyond the range that `encode` can express. It clips them to it and drops nothing."""
        return torch.zeros_like(x, dtype=torch.bool)


class Fitted(Tokenizer):
    """A tokenizer of numbers of one shape that needs `fit`, or a state dict of a fitted one, before it encodes and decodes.

    The checks raise InputError; none of them reads a number back from a GPU."""

    fitted: Tensor
    """() bool, saved."""

    def __init__(self, shape: tuple[int, ...], block_length: int = 1) -> None:
        super().__init__()
        self.shape, self.block_length = tuple(shape), block_length
        self.entries = int(np.prod(self.shape, dtype=np.int64))
        if not self.entries:
            raise InputError(f"values of shape {self.shape} have no entry; there is nothing to tokenize.")
        self.token_width = 1
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        # What `fitted` says, on the host: to ask a buffer on a GPU, the host would have to wait for it.
        self.ready = False
        nn.Module.register_load_state_dict_post_hook(self, note_fitted)

    def mark_fitted(self) -> None:
        """The last thing that `fit` does."""
        self.fitted.fill_(True)
        self.ready = True

    def column(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(N, …) or, where h > 1, (N, h, …) data to fit → (N, entries) or (N, h, entries) float64. Raises InputError for other shapes, no data, NaN and
        infinity."""
        leading = 1 if self.block_length == 1 else 2
        chunks = self.block_length == 1 or (x.ndim >= 2 and x.shape[1] == self.block_length)
        if x.ndim != leading + len(self.shape) or x.shape[leading:] != self.shape or not chunks:
            rows = "N" if self.block_length == 1 else f"N, {self.block_length}"
            raise InputError(
                f"the data to fit have shape {x.shape}, and the tokenizer is for ({', '.join([rows, *map(str, self.shape)])}); "
                "give a column of the space it was made for."
            )
        if not len(x):
            raise InputError("the data to fit have no row; give at least one.")
        check_finite(x, "the data to fit", len(self.shape))
        return x.reshape(*x.shape[:leading], self.entries).astype(np.float64)

    def values(self, x: Tensor) -> Tensor:
        """(B, T, …) values to encode → (B, T, entries), of float32 or wider. Raises InputError before `fit`, for another shape than that of the space, for a
        T that is no multiple of h, and, of tensors on the CPU, for NaN and infinity."""
        self.require_fitted()
        if x.shape[2:] != self.shape or x.dim() < 2:
            raise InputError(
                f"the values to encode have shape {tuple(x.shape)}, and the tokenizer was fitted on values of shape {self.shape} a step; "
                "give (B, T, …) of the same space."
            )
        if x.shape[1] % self.block_length:
            raise InputError(
                f"{x.shape[1]} steps cannot be cut into blocks of {self.block_length}; leave the last {x.shape[1] % self.block_length} out."
            )
        check_finite(x, "the values to encode", len(self.shape))
        # by hand, as flatten(2) has no answer for a scalar's missing axis
        return wide(x).reshape(x.shape[0], x.shape[1], self.entries)

    def ids(self, tokens: Tensor) -> Tensor:
        """(B, T/h, n) ids to decode, brought into the vocabulary. Raises InputError before `fit` and for another n."""
        self.require_fitted()
        if tokens.dim() != 3 or tokens.shape[2] != self.num_tokens:
            raise InputError(
                f"the tokens to decode have shape {tuple(tokens.shape)}, and the tokenizer has {self.num_tokens} a block; give (B, T/h, {self.num_tokens})."
            )
        assert self.vocab_size is not None
        return tokens.clamp(0, self.vocab_size - 1)

    def shaped(self, values: Tensor) -> Tensor:
        """(B, T, entries) → (B, T, …)."""
        return values.reshape(values.shape[0], values.shape[1], *self.shape)

    def require_fitted(self) -> None:
        if not self.ready:
            raise InputError(
                f"this {type(self).__name__} has seen no data; fit it first, or load a fitted one's state."
            )


def numbers_of(tokenizer: Tokenizer, logits: Tensor) -> Tensor:
    """(V,) the number that each id of a tokenizer of one token stands for, in env units, for logits (…, V) over its ids, on their device."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return tokenizer.decode(ids[:, None, None]).flatten()


def note_fitted(module: nn.Module, _: object) -> None:
    """After a state dict was loaded."""
    assert isinstance(module, Fitted)
    module.ready = bool(module.fitted)


def wide(x: Tensor) -> Tensor:
    """As floating-point numbers of at least 32 bits: sixteen would not tell 256 bins apart."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_finite(x: npt.NDArray[Any] | Tensor, name: str, axes: int = 1) -> None:
    """Raise InputError naming the dimension where `x` holds NaN or infinity. Its last `axes` axes are the dimensions.

    Of tensors only those on the CPU are looked at, and none while torch compiles or exports: elsewhere the host would wait for the device, and data
    were looked at when they were loaded."""
    if isinstance(x, Tensor):
        if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return
        # NumPy's test takes a tenth of the time of torch's for the few values of a step
        x = (wide(x) if x.is_floating_point() else x).detach().numpy()
    if x.dtype.kind != "f" or np.isfinite(x).all():
        return
    place = tuple(np.argwhere(~np.isfinite(x))[0].tolist())
    row, dimension = place[: len(place) - axes], place[len(place) - axes :]
    where = f"dimension {', '.join(map(str, dimension))}" if dimension else "their only dimension"
    raise InputError(
        f"{name} hold {x[place]} in {where} (row {', '.join(map(str, row))}); tokens stand for finite numbers: correct the data, or leave the row out."
    )
