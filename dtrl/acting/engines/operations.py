"""torch's operations in NumPy, by torch's names: what a program's nodes compute."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError

Array = npt.NDArray[Any]

ZERO = np.array(0, np.float32)
"""As an array, since NumPy converts a number at every call."""
FEW_ROWS = 4
"""Up to so many rows, a product by a matrix is faster row by row: BLAS's matrix product is made for more."""


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    out: Array = np.matmul(weight, rows[:, :, None]) if len(rows) <= FEW_ROWS else rows @ weight.T
    out = out.reshape(*x.shape[:-1], len(weight))
    if bias is not None:
        out += bias
    return out


def layer_norm(x: Array, shape: Sequence[int], weight: Array, bias: Array, eps: float = 1e-5, *_: Any) -> Array:
    out = standardize(x, eps)
    out *= weight * np.float32(math.sqrt(x.shape[-1]))
    out += bias
    return out


def standardize(x: Array, eps: float = 1e-5, *_: Any) -> Array:
    """The n entries of the last axis, centred and divided by √n deviations: a layer norm without weights and without its factor √n (`folding`)."""
    averaging, least = constants_of_norm(x.shape[-1], eps)
    centred: Array = x - np.vecdot(x, averaging)[..., None]
    length = np.vecdot(centred, centred)
    length += least
    np.sqrt(length, out=length)
    centred /= length[..., None]
    return centred


@lru_cache
def constants_of_norm(n: int, eps: float) -> tuple[Array, Array]:
    """(n,), a product by which is a mean, and cheaper than one, and n · eps; as arrays, since NumPy converts a number at every call."""
    return np.full(n, 1 / n, np.float32), np.array(n * eps, np.float32)


def rms_norm(x: Array, shape: Sequence[int], weight: Array, eps: float | None = None) -> Array:
    square = np.einsum("...i,...i->...", x, x)[..., None] * np.float32(1 / x.shape[-1])
    out: Array = x / np.sqrt(square + np.float32(np.finfo(np.float32).eps if eps is None else eps)) * weight
    return out


def softmax(x: Array, axis: int, *_: Any) -> Array:
    e: Array = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))
    e /= np.add.reduce(e, axis=axis, keepdims=True)
    return e


def attend(query: Array, new: Array, past: Array | None, mask: Array) -> Array:
    """`dtrl.backbones.cache.GivenPast.mix`."""
    rows, heads, tokens, width = query.shape
    shared = new.shape[1] // 2
    if heads != shared:
        query = query.reshape(rows, shared, -1, width)
        mask = np.tile(mask, (1, 1, heads // shared, 1))
    query = query * np.float32(1 / math.sqrt(width))
    weights = np.empty((*query.shape[:3], mask.shape[3]), np.float32)
    slots = 0 if past is None else past.shape[2]
    np.matmul(query, new[:, :shared].swapaxes(2, 3), out=weights[..., slots:])
    if past is not None:
        np.matmul(query, past[:, :shared].swapaxes(2, 3), out=weights[..., :slots])
    weights += mask
    weights -= np.maximum.reduce(weights, axis=3, keepdims=True)
    np.exp(weights, out=weights)
    mixed: Array = weights[..., slots:] @ new[:, shared:]
    if past is not None:
        mixed += weights[..., :slots] @ past[:, shared:]
    mixed /= np.add.reduce(weights, axis=3, keepdims=True)
    return mixed.reshape(rows, heads, tokens, width)


def log_softmax(x: Array, axis: int, *_: Any) -> Array:
    x = x - np.maximum.reduce(x, axis=axis, keepdims=True)
    return np.asarray(x - np.log(np.add.reduce(np.exp(x), axis=axis, keepdims=True)))


def logsumexp(x: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    largest = np.maximum.reduce(x, axis=tuple(axes), keepdims=True)
    total = np.log(np.add.reduce(np.exp(x - largest), axis=tuple(axes), keepdims=True)) + largest
    return np.asarray(total if keepdims else np.squeeze(total, tuple(axes)))


def gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
    from scipy.special import erf

    return np.asarray(np.float32(0.5) * x * (1 + erf(x * np.float32(1 / math.sqrt(2)))), dtype=x.dtype)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def clamp(x: Array, low: float | None = None, high: float | None = None) -> Array:
    return np.clip(x, low, high)


def split(x: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    return [x[piece] for piece in pieces(tuple(sizes), axis % x.ndim)]


@lru_cache
def pieces(sizes: tuple[int, ...], axis: int) -> list[tuple[slice, ...]]:
    """Indices of consecutive parts of an axis."""
    before = (slice(None),) * axis
    ends = itertools.accumulate(sizes)
    return [(*before, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def stack(parts: Sequence[Array], axis: int = 0) -> Array:
    """np.stack, for arrays of one shape, in less time where they are stacked in front."""
    return np.array(parts) if axis == 0 else np.stack(parts, axis=axis)


def reshape(x: Array, sizes: Sequence[int]) -> Array:
    return x.reshape(sizes)


def chunk(x: Array, count: int, axis: int = 0) -> list[Array]:
    return split(x, [x.shape[axis] // count] * count, axis)


def slice_of(x: Array, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    where: list[Any] = [slice(None)] * x.ndim
    where[axis] = slice(start, end, step)
    return np.asarray(x[tuple(where)])


def select(x: Array, axis: int, index: int) -> Array:
    return x[(slice(None),) * (axis % x.ndim) + (index,)]


def unsqueeze(x: Array, axis: int) -> Array:
    return x[(slice(None),) * (axis % (x.ndim + 1)) + (None,)]


def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    end %= x.ndim
    return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])


def unflatten(x: Array, axis: int, sizes: Sequence[int]) -> Array:
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def expand(x: Array, sizes: Sequence[int], *_: Any) -> Array:
    lead = len(sizes) - x.ndim
    return np.broadcast_to(x, [x.shape[i - lead] if n == -1 else n for i, n in enumerate(sizes)])


def scatter(x: Array, axis: int, index: Array, value: Any) -> Array:
    out = x.copy()
    np.put_along_axis(out, index, value, axis=axis)
    return out


def convolution(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = (1, 1), padding: Any = (0, 0), *_: Any
) -> Array:
    """(N, C, H, W) by windows laid out flat."""
    (down, across), (above, left) = stride, padding
    x = np.pad(x, ((0, 0), (0, 0), (above, above), (left, left)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::down, ::across]
    rows, _, height, width = windows.shape[:4]
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(rows * height * width, -1)
    out = flat @ weight.reshape(len(weight), -1).T
    if bias is not None:
        out += bias
    return np.ascontiguousarray(out.reshape(rows, height, width, -1).transpose(0, 3, 1, 2))


def pad(x: Array, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    if mode != "constant":
        raise InputError(f"the numpy engine pads with constants, not by {mode}; export for another engine.")
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    return np.pad(x, pairs, constant_values=value or 0)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "aten.linear.default": linear,
    "aten.layer_norm.default": layer_norm,
    "dtrl.standardize": standardize,
    "aten.rms_norm.default": rms_norm,
    "aten.matmul.default": np.matmul,
    "dtrl.attend.default": attend,
    "aten.softmax.int": softmax,
    "aten.log_softmax.int": log_softmax,
    "aten.logsumexp.default": logsumexp,
    "aten.dropout.default": lambda x, *_: x,  # which acting has none of
    "aten.relu.default": lambda x: np.maximum(x, ZERO),
    "aten.gelu.default": gelu,
    "aten.silu.default": lambda x: x / (1 + np.exp(-x)),
    "aten.tanh.default": np.tanh,
    "aten.sigmoid.default": sigmoid,
    "aten.exp.default": np.exp,
    "aten.cos.default": np.cos,
    "aten.sin.default": np.sin,
    "aten.neg.default": np.negative,
    "aten.add.Tensor": np.add,
    "aten.sub.Tensor": np.subtract,
    "aten.mul.Tensor": np.multiply,
    "aten.div.Tensor": np.true_divide,
    "aten.minimum.default": np.minimum,
    "aten.clamp.default": clamp,
    "aten.clamp_min.default": lambda x, low: np.maximum(x, low),
    "aten.clamp_max.default": lambda x, high: np.minimum(x, high),
    "aten.cat.default": lambda parts, axis=0: np.concatenate(parts, axis=axis),
    "aten.stack.default": stack,
    "aten.split_with_sizes.default": split,
    "aten.split.sizes": split,
    "aten.chunk.default": chunk,
    "aten.slice.Tensor": slice_of,
    "aten.select.int": select,
    "aten.view.default": reshape,
    "aten.reshape.default": reshape,
    "aten.flatten.using_ints": flatten,
    "aten.unflatten.int": unflatten,
    "aten.unsqueeze.default": unsqueeze,
    "aten.squeeze.dim": np.squeeze,
    "aten.transpose.int": lambda x, one, other: x.swapaxes(one, other),
    "aten.permute.default": np.transpose,
    "aten.movedim.int": np.moveaxis,
    "aten.expand.default": expand,
    "aten.broadcast_tensors.default": lambda parts: np.broadcast_arrays(*parts),
    "aten.repeat.default": np.tile,
    "aten.contiguous.default": lambda x, *_: x,
    "aten.embedding.default": lambda table, ids, *_: table[ids],
    "aten.to.dtype": lambda x, dtype, *_: x.astype(dtype, copy=False),
    "aten._to_copy.default": lambda x, dtype: x.astype(dtype, copy=False),
    "aten.arange.default": lambda end, dtype="int64": np.arange(end, dtype=dtype),
    "aten.zeros.default": lambda sizes, dtype="float32": np.zeros(sizes, dtype),
    "aten.full.default": lambda sizes, value, dtype="float32": np.full(sizes, value, dtype),
    "aten.triu.default": np.triu,
    "aten.scatter_.value": scatter,
    "aten.scatter.value": scatter,
    "aten.conv2d.default": convolution,
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": lambda x, widths, value=0.0: pad(x, widths, value=value),
    "aten.sym_size.int": lambda x, axis: x.shape[axis],
    "getitem": operator.getitem,
    "add": operator.add,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
}
"""torch's name of an operation → what does the same to arrays."""


ALIASES = {
    *("unsqueeze.default", "squeeze.dim", "transpose.int", "permute.default", "movedim.int", "select.int", "slice.Tensor"),
    *("view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "expand.default", "contiguous.default"),
    *("chunk.default", "split_with_sizes.default", "split.sizes", "sym_size.int", "to.dtype", "_to_copy.default"),
    "getitem",
}  # fmt: skip
"""Operations that may give a view of what they are given."""
