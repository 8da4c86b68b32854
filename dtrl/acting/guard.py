"""Environments that report what goes wrong in them instead of raising it, so that one of many may fail without the others."""

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dtrl.acting.environments import descend
from dtrl.acting.faults import UNMADE, Fault, told
from dtrl.acting.masks import ACTION_MASK
from dtrl.errors import InputError
from dtrl.spaces import SIMPLE, Space, flatten, leaves, numbers_of, unflatten

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose steps and resets never raise: what goes wrong stands in `fault` until the next reset, and a blank observation is shown.

    Until then it does nothing more; the reset is that of a new environment. The info is left with the action mask, which is all that acting reads."""

    def __init__(self, make: Callable[[], "gymnasium.Env[Any, Any]"]) -> None:
        super().__init__(make())
        self.make = make
        self.fault: Fault | None = None
        self.spoilt = False
        """Whether the environment is to be replaced before it plays again."""
        self.resting = False
        """Whether no episode is played in it: then it does nothing."""
        self.fits = ObservationCheck(self.env.observation_space)
        self.blank = blank(self.env.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.fault = None
        if self.resting:
            return self.blank, {}
        try:
            if self.spoilt and not self.renew():
                return self.blank, {}
            observation, info = self.env.reset(seed=seed, options=options)
            self.fault = self.fits.fault(observation)
            info = mask_of(info)
        except Exception as error:
            self.fault = Fault.raised(error)
        return (self.blank, {}) if self.failed() else (observation, info)

    def step(self, action: Any) -> Step:
        if self.resting or self.fault is not None:
            return self.blank, 0.0, False, False, {}
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.fault = self.fits.fault(observation) or bad_reward(reward)
            terminated, truncated, info = bool(terminated), bool(truncated), mask_of(info)
        except Exception as error:
            self.fault = Fault.raised(error)
        if self.failed():
            return self.blank, 0.0, False, False, {}
        return observation, float(reward), terminated, truncated, info

    def failed(self) -> bool:
        self.spoilt = self.spoilt or self.fault is not None
        return self.fault is not None

    def renew(self) -> bool:
        """Replace the environment, and tell whether that could be done. The old one may be in any state, and so fail to close."""
        with contextlib.suppress(Exception):
            self.env.close()
        try:
            self.env = self.make()
        except Exception as error:
            self.fault = Fault(UNMADE, f"could not be made anew: {told(error)}", error)
            return False
        self.spoilt = False
        return True

    def close(self) -> None:
        with contextlib.suppress(Exception) if self.spoilt else contextlib.nullcontext():
            self.env.close()


class GuardedEnvs(SyncVectorEnv):
    """Guarded environments of this process as the rows of a vector environment."""

    def __init__(self, make: Callable[[], "gymnasium.Env[Any, Any]"], rows: int) -> None:
        super().__init__([lambda: Guard(make)] * rows, autoreset_mode=AutoresetMode.DISABLED)
        self.guards: list[Any] = self.envs

    def look_at(self, policy_space: Space, seen: tuple[str | int, ...]) -> None:
        """Tell the guards what a policy sees of the observations, which has to fit its space."""
        for guard in self.guards:
            guard.fits = ObservationCheck(guard.observation_space, policy_space, seen)

    def faults(self) -> dict[int, Fault]:
        """Row → what it did wrong in its last step or reset."""
        return {row: guard.fault for row, guard in enumerate(self.guards) if guard.fault is not None}

    def replace(self, row: int) -> None:
        """Let the row's next reset be that of a new environment."""
        self.guards[row].spoilt = True

    def rest(self, idle: npt.NDArray[np.bool_]) -> None:
        """(B,) in which rows no episode is played from now on."""
        for guard, resting in zip(self.guards, idle, strict=True):
            guard.resting = bool(resting)


class ObservationCheck:
    """Whether observations have the shapes and types of their space: `fault` says what is wrong. Their values are not looked at, but for texts."""

    def __init__(self, space: Space, policy_space: Space | None = None, seen: tuple[str | int, ...] = ()) -> None:
        self.space, self.seen, self.policy_space = space, seen, policy_space
        self.arrays = {
            leaf.path: leaf.space
            for leaf in leaves(space)
            if isinstance(leaf.space, SIMPLE) and not isinstance(leaf.space, spaces.Text)
        }
        self.texts = {
            leaf.path: leaf.space for leaf in leaves(policy_space or space) if isinstance(leaf.space, spaces.Text)
        }
        self.only = self.arrays.get("")
        """The space, where it is that of one array."""

    def fault(self, observation: Any) -> Fault | None:
        only = self.only
        if (
            only is not None
            and type(observation) is np.ndarray
            and observation.shape == only.shape
            and observation.dtype == only.dtype
        ):
            return None
        try:
            parts = flatten(self.space, observation)
            for path, space in self.arrays.items():
                if wrong := misfit(space, parts[path]):
                    return Fault("observation", f"showed {f'in {path} ' if path else ''}{wrong}")
            if self.texts:
                whole = self.policy_space or self.space
                shown = flatten(whole, descend(observation, self.seen))
                for path, text in self.texts.items():
                    numbers_of(text, shown[path])
        except (InputError, KeyError, IndexError, TypeError, ValueError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            return Fault("observation", f"showed what does not fit its space: {said}", error)
        return None


def misfit(space: Space, value: Any) -> str | None:
    """What is wrong with the shape or the type of a value of a space that is one array."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal lengths
        return f"{str(value)[:80]}, which is no array, and its space is {space}"
    if array.shape != (space.shape or ()):
        return f"an observation of shape {array.shape}, and its space is {space}"
    if not np.can_cast(array.dtype, space.dtype or array.dtype, "same_kind"):
        return f"an observation of type {array.dtype}, and its space is {space}"
    return None


def bad_reward(reward: Any) -> Fault | None:
    """What is wrong with a reward that is no number at all; NaN is found where the rewards of all rows are looked at."""
    if type(reward) is not float:
        try:
            float(reward)
        except (TypeError, ValueError):
            return Fault("reward", f"returned the reward {str(reward)[:80]}, which is no number")
    return None


def mask_of(info: Any) -> dict[str, Any]:
    return {ACTION_MASK: info[ACTION_MASK]} if ACTION_MASK in info else {}


def blank(space: Space) -> Any:
    """A value of a space, as near to zero as one can be; an empty text in the place of texts, and of what has no other form, as the missions of MiniGrid."""

    def of(part: Space) -> Any:
        if isinstance(part, spaces.Box):
            return np.clip(np.zeros(part.shape), part.low, part.high).astype(part.dtype)
        if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)):
            return np.asarray(part.start)
        return np.zeros(part.shape or (), part.dtype) if isinstance(part, spaces.MultiBinary) else ""

    return unflatten(space, {leaf.path: of(leaf.space) for leaf in leaves(space)})
