"""What heads say → tokens, in NumPy: `dtrl.decoding` for policies that act without torch, with the same conventions and the same random numbers.

B rows, V values of a choice, d entries of a vector."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.acting.engines.operations import softmax
from dtrl.config import DecodingConfig
from dtrl.errors import InputError

Array = npt.NDArray[Any]
Generators = Sequence[np.random.Generator]


def choose_vector(kind: str, parameters: list[Array], config: DecodingConfig, generators: Generators) -> Array:
    """(B, d) from a location (B, d) and, where the head has one, a deviation."""
    location = parameters[0]
    if kind != "point" and not config.greedy:
        noise = np.stack([g.standard_normal(location.shape[1:]) for g in generators]).astype(location.dtype)
        location = location + location.dtype.type(config.temperature) * parameters[1] * noise
    return np.tanh(location) if kind == "tanh_gaussian" else location


def choose_id(logits: Array, config: DecodingConfig, generators: Generators) -> Array:
    """(B,) from logits (B, V). Raises InputError for strategies and options that need tokens one after the other."""
    config.refuse_sequences()
    if config.greedy:
        return np.asarray(logits.argmax(axis=-1))
    cumulative = softmax(process(logits, config).astype(np.float64), -1).cumsum(axis=-1)
    u = np.array([g.random() for g in generators]) * cumulative[:, -1]
    return np.asarray(np.minimum((cumulative <= u[:, None]).sum(axis=-1), logits.shape[-1] - 1))


def allow(logits: Array, allowed: Array, sizes: Sequence[int]) -> Array:
    """Logits (B, Σ V) of choices of the given `sizes` without what is not `allowed`. Raises InputError where nothing is left of a choice."""
    begin = 0
    for i, size in enumerate(sizes):
        empty = np.flatnonzero(~allowed[:, begin : begin + size].any(axis=1))
        if len(empty):
            choice = f" of choice {i}" if len(sizes) > 1 else ""
            raise InputError(
                f"the action mask of environment {empty[0]} allows no value{choice}; the environment is at fault."
            )
        begin += size
    return np.where(allowed, logits, -np.inf).astype(logits.dtype)


def process(logits: Array, config: DecodingConfig) -> Array:
    """Temperature, then the cuts; the order and the ties of `dtrl.decoding.processors`."""
    check(logits, "the model, or the action mask,")
    if config.temperature != 1:
        limits = np.finfo(logits.dtype)
        divisor = min(max(config.temperature, float(limits.tiny)), float(limits.max))
        logits = (logits - logits.max(axis=-1, keepdims=True)) / logits.dtype.type(divisor)
    if config.top_k:
        order = np.argsort(-logits, axis=-1, kind="stable")
        logits = keep(logits, order, np.broadcast_to(np.arange(logits.shape[-1]) < config.top_k, order.shape))
    if config.top_p != 1:
        order = np.argsort(-logits, axis=-1, kind="stable")
        probabilities = np.take_along_axis(softmax(logits, -1), order, axis=-1)
        logits = keep(logits, order, probabilities.cumsum(axis=-1) - probabilities < config.top_p)
    if config.min_p:
        probabilities = softmax(logits, -1)
        logits = np.where(probabilities < config.min_p * probabilities.max(axis=-1, keepdims=True), -np.inf, logits)
    if config.typical_p != 1:
        logits = typical(logits, config.typical_p)
    return logits


def typical(logits: Array, p: float) -> Array:
    possible = np.isfinite(logits)
    finite = np.where(possible, logits - logits.max(axis=-1, keepdims=True), 0)
    total = np.where(possible, np.exp(finite), 0).sum(axis=-1, keepdims=True)
    surprise = np.where(possible, np.log(total) - finite, np.inf)
    probabilities = np.exp(-surprise)
    entropy = np.where(possible, probabilities * np.where(possible, surprise, 0), 0).sum(axis=-1, keepdims=True)
    order = np.argsort(np.abs(surprise - entropy), axis=-1, kind="stable")
    probabilities = np.take_along_axis(probabilities, order, axis=-1)
    return keep(logits, order, probabilities.cumsum(axis=-1) - probabilities < p)


def check(logits: Array, stage: str) -> None:
    empty = np.flatnonzero(~np.isfinite(logits.max(axis=-1)))
    if len(empty):
        raise InputError(
            f"{stage} left no token to choose from in row {empty[0]}: every logit is −∞, or one is not a number."
        )


def keep(logits: Array, order: Array, kept: Array) -> Array:
    mask = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(mask, order, kept, axis=-1)
    return np.where(mask, logits, -np.inf).astype(logits.dtype)
