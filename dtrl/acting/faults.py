"""What an environment did that it should not have done, and what is to be done then."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dtrl.errors import InputError

ON_ENV_ERROR = ("raise", "skip", "retry")
"""End the rollout; lose the episode and go on; or begin it again in a new environment, `RETRIES` times at most, and lose it then."""
RETRIES = 2
FAULTS = {
    "raised": "raised an error",
    "died": "ended the worker process",
    "hung": "did not answer in time",
    "observation": "showed no valid observation",
    "reward": "returned no valid reward",
}
"""Kinds of faults, in the words of a report."""
UNMADE = "unmade"
"""Kind of what cannot be made anew after a fault: it would take one episode after the other, for no fault of theirs, so it ends a rollout at once."""
BESIDE = "beside"
"""Kind of what befell an episode whose worker process was ended by the environment of another. It is no fault: the episode begins again."""

MAX_SAID = 300
"""Characters of an exception's text in a message: some show whole arrays."""


@dataclass(frozen=True)
class Fault:
    """What an environment did in one step or reset."""

    kind: str
    """Of `FAULTS`, or UNMADE, or BESIDE."""
    said: str = ""
    """The end of a sentence that begins with the environment."""
    cause: BaseException | None = dataclasses.field(default=None, compare=False)
    """Where it comes from, with the traceback."""

    @classmethod
    def raised(cls, error: Exception) -> "Fault":
        return cls("raised", f"raised {told(error)}", error)


def told(error: Exception) -> str:
    """An exception in one line, without a full stop: its type and the beginning of what it says."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:MAX_SAID].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class EpisodeFault:
    """A fault, and the episode that it befell."""

    episode: int
    """Number of the episode, in the order in which the episodes were given."""
    target_return: float
    seed: int
    env: int
    """Index of the environment."""
    step: int | None
    """Number of the step, from 0; None for a fault at the reset."""
    kind: str
    """Of `FAULTS`."""
    message: str
    """One sentence: environment, step, seed, and what happened."""
    attempt: int
    """How often the episode had been begun, this time included."""
    lost: bool
    """Whether the episode was given up; else it began again."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def where(env: int, step: int | None, seed: int | None) -> str:
    """Which environment, and how far it is: the beginning of a sentence."""
    return f"environment {env}, at {'its reset' if step is None else f'step {step}'} (seed {seed}),"


def check_on_env_error(on_env_error: str) -> None:
    if on_env_error not in ON_ENV_ERROR:
        raise InputError(f"on_env_error is {on_env_error!r}; choose one of {', '.join(ON_ENV_ERROR)}.")
