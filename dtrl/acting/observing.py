"""Observations as they come → arrays by path, checked against the space. What a space says of them is found out once: this stands in every step of acting.

B environments."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.spaces import BYTE, Space, column_layout, contains, flatten, leaves, numbers_of

Array = npt.NDArray[Any]


class ObservationReader:
    """Reads observations of one space, and batches of them."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.composite = isinstance(space, (spaces.Dict, spaces.Tuple))
        self.takes_dicts = self.composite or isinstance(space, spaces.Text)
        self.leaves = {leaf.path: LeafReader(leaf.space) for leaf in leaves(space)}

    def read(self, observation: Any) -> tuple[dict[str, Array], bool]:
        """The parts of an observation, or of a batch of B, as arrays (B, …) by path, and whether a single one was given.

        Raises InputError for a shape, a type or a value that does not fit the space."""
        if isinstance(observation, (tuple, dict)) and not self.takes_dicts:
            raise InputError(
                f"observation is a {type(observation).__name__}, and the policy's space is {self.space}; "
                "Gymnasium's reset returns (observation, info): pass only the first."
            )
        if not self.composite:
            values, single = self.leaves[""].read(observation)
            return {"": values}, single
        out, singles = {}, set()
        parts = flatten(self.space, observation)
        for path, leaf in self.leaves.items():
            out[path], single = leaf.read(parts[path])
            singles.add(single)
        sizes = {len(values) for values in out.values()}
        if len(singles) != 1:
            raise InputError(
                "some parts of the observation are single values and some are batches; give all of one kind."
            )
        if len(sizes) != 1:
            raise InputError(
                f"the parts of the observations are for {sorted(sizes)} environments; give all of one size."
            )
        return out, singles.pop()


class LeafReader:
    """Reads values of a simple space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.shape, self.dtype = column_layout(space)
        self.pixels = self.dtype is np.uint8
        self.numbers = self.dtype is np.float32
        self.listed = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))

    def read(self, observation: Any) -> tuple[Array, bool]:
        """(B, …) and whether a single value was given, as `ObservationReader.read`."""
        shape = self.shape
        try:
            values = numbers_of(self.space, observation)
            if self.pixels and values.dtype.kind in "iu":
                values = bytes_of(values, self.space)
            values = values.astype(self.dtype, casting="same_kind", copy=False)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                f"observation {str(observation)[:80]!r} does not fit {self.space} ({error}); give an array of its numbers."
            ) from error
        single = values.shape == shape
        if single:
            values = values[None]
        if values.shape[1:] != shape or values.ndim != len(shape) + 1:
            raise InputError(
                f"observations have shape {values.shape}, and the policy was trained on {self.space}; give {shape}, or a batch of them."
            )
        if self.listed and not contains(self.space, values).all():
            raise InputError(
                f"observations {values.tolist()} are not all in {self.space}, on which the policy was trained."
            )
        if self.numbers and np.count_nonzero(np.isfinite(values)) < values.size:  # half of all()'s time
            raise InputError(
                f"the observation of environment {int(np.argwhere(~np.isfinite(values))[0][0])} holds NaN or infinity; the environment is at fault."
            )
        return values, single

    def wrong(self, values: Array) -> dict[int, str]:
        """Row → what is wrong with it, of a batch (B, …) of numbers that have the shape of the space: the end of a sentence."""
        axes = tuple(range(1, values.ndim))
        if self.numbers:
            finite = np.isfinite(values)
            if np.count_nonzero(finite) == values.size:
                return {}
            return dict.fromkeys(np.flatnonzero(~finite.all(axis=axes)).tolist(), "NaN or infinity")
        if self.listed:
            good = contains(self.space, values)
        elif self.pixels and values.dtype != np.uint8:
            good = np.asarray(((values >= 0) & (values <= BYTE)).all(axis=axes))
        else:
            return {}
        return {
            row: f"{values[row].tolist()!s:.80}, which is not in {self.space}" for row in np.flatnonzero(~good).tolist()
        }


def bytes_of(values: Array, space: Space) -> Array:
    """Pixels of any integer type as bytes."""
    if values.dtype != np.uint8 and values.size and (values.min() < 0 or values.max() > BYTE):
        raise InputError(
            f"an observation of {space} holds {values.min()} … {values.max()}; pixels are whole numbers from 0 to {BYTE}."
        )
    return values.astype(np.uint8, copy=False)
