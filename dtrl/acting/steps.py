"""What the rows of a vector environment have gone through since their episodes began. B rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Key = tuple[str, str]
BLOCK_STEPS = 32


class StepLog:
    """Steps of all rows at once, so that a step costs a copy and no work a row. Steps that no row needs any more are forgotten, a block at a time."""

    def __init__(self, rows: int) -> None:
        self.blocks: list[dict[Key, Array]] = []
        """(BLOCK_STEPS, B, …) each."""
        self.begun = np.zeros(rows, dtype=np.int64)
        """(B,) the step at which each row's episode began."""
        self.length = 0

    def append(self, values: Mapping[Key, Array]) -> None:
        """One step: (B, …) of each column, always the same columns."""
        at = self.length % BLOCK_STEPS
        if self.length == BLOCK_STEPS * len(self.blocks):
            self.blocks.append({key: np.empty((BLOCK_STEPS, *v.shape), v.dtype) for key, v in values.items()})
        for key, value in values.items():
            self.blocks[-1][key][at] = value
        self.length += 1

    def begin(self, rows: npt.NDArray[np.bool_]) -> None:
        """Let the next step be the first of these rows."""
        self.begun[rows] = self.length
        while (unused := int(self.begun.min()) // BLOCK_STEPS) and self.blocks:
            del self.blocks[:unused]
            self.begun -= unused * BLOCK_STEPS
            self.length -= unused * BLOCK_STEPS

    def of(self, row: int) -> dict[Key, Array]:
        """(T, …) of each column: the steps of the row's episode."""
        begin = int(self.begun[row])
        first = begin // BLOCK_STEPS
        parts = {key: [block[key][:, row] for block in self.blocks[first:]] for key in self.blocks[-1]}
        start = first * BLOCK_STEPS
        return {key: np.concatenate(blocks)[begin - start : self.length - start] for key, blocks in parts.items()}
