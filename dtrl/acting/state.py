"""What a policy carries from one step to the next.

B environments, A width of an action."""

from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from dtrl.errors import InputError

Array = npt.NDArray[Any]
Begins = npt.NDArray[np.bool_] | None
"""(B,) which rows begin an episode; None where no row does, as at most steps, which then ask no array."""


@dataclass
class PolicyState:
    """What B environments carry from one call of `predict` to the next. It is updated in place."""

    context: Any
    """What the model looks back on: a `Context`, or an engine's `Past`."""
    target_returns: npt.NDArray[np.float64]
    """(B,) asked return of the episodes in progress."""
    returns_to_go: npt.NDArray[np.float64]
    """(B,) what is still asked for; lowered by `reward` at the next call."""
    reward: npt.NDArray[np.float64]
    """(B,) reward seen since the last call. Add to it after a step: `state.reward[i] += reward`."""
    timesteps: npt.NDArray[np.int64]
    """(B,) steps since the episode began."""
    actions: dict[str, Array]
    """Path of each leaf of the action space ("" for a simple one) → (B, …) the last actions, in env units."""
    generators: list[np.random.Generator]
    """One a row, for sampling."""
    last_reward: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(B,) what the last action earned, once the step that follows it has begun."""
    recent: Any = None
    """(B, T) ids of the last actions, right-padded with −1, where the decoding looks back on them."""
    draft_context: Any = None
    """What the model that guesses ahead looks back on, where one does; None where it has seen nothing, or has missed a step."""
    speculation: Any = None
    """How well a draft has guessed so far (`dtrl.decoding.progress.Speculation`)."""
    chunks: dict[str, Array] = field(default_factory=dict)
    """Path → (B, H, …) the actions that were decided last, where several are decided at once, in env units."""
    left: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(B,) how many of them are still to be executed."""
    idle: npt.NDArray[np.bool_] | None = None
    """(B,) rows in which no episode is played, and for which nothing has to be decided; None where that is not known."""
    started: bool = False


def zero_where(first: Begins, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts (B,) of which those of rows that begin an episode are 0."""
    return counts if first is None else np.where(first, 0, counts)


def replaced(
    counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], by: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Counts (B,) of which those of the rows (B′,) are others (B′,); the given ones stay as they are."""
    out = counts.copy()
    out[rows] = by
    return out


def kept_steps(length: int) -> int:
    """Steps a block context still holds after it dropped the rest, the newest included."""
    return max(1, length // 2)


def dropped_steps(length: int) -> int:
    """Steps that a block context drops, of its `length` and the newest."""
    return length - kept_steps(length) + 1


def refilled_tokens(length: int, tokens: int, before: int) -> int:
    """Tokens that are left then, of `tokens` a step: the newest step's last `before` come only with the next call."""
    return kept_steps(length) * tokens - before


def refuse_longer(step: int, length: int) -> NoReturn:
    """What a `full` context says of an episode that is longer than those the model has seen."""
    raise InputError(
        f"an episode has reached step {step}, and this model was trained on episodes of at most {length} steps; "
        "train with attention window or banded, which forget, or on longer episodes."
    )
