"""One call of a policy's programs: the inputs at fixed places in memory, the past between calls, and which program is run when.

B environments, D width, L tokens of a refill."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dtrl.acting.engines.base import Array, Engine, Run
from dtrl.acting.engines.past import Past, Sizes
from dtrl.acting.state import Begins

Heads = dict[str, list[Array]]


class Call:
    """`values` (B, 1, …) by field, through `now`, and `timesteps` (B, 1, m) are written by the caller before each `forward`.

    `sizes` are None for a model without memory; `rows` is the number of rows that the engine takes, where that is fixed."""

    def __init__(
        self,
        engine: Engine,
        values: list[Array],
        timesteps: Array,
        sizes: Sizes | None,
        rows: int | None,
    ) -> None:
        self.engine, self.values, self.timesteps, self.rows = engine, values, timesteps, rows
        self.now = [value[:, 0] for value in values]
        """(B, …) views of the values, without the axis of steps."""
        self.past = None if sizes is None else Past(len(timesteps), sizes)
        self.bound: dict[str, Run] = {}
        self.where: Array | None = None

    def forward(self, first: Begins) -> Heads:
        """What the heads say, by field: (B, 1, …) each. Rows in `first` begin an episode."""
        if self.past is None:
            return self.run("step")["heads"]  # type: ignore[no-any-return]
        base, full = self.past.begin(first)
        if len(full) == len(base):
            return self.refill(self.past, base, full, self.run("embed"))
        self.past.prepare(base)
        out = self.run("step")
        if len(full):
            return self.refill(self.past, base, full, out)
        self.past.write(base, out["past"], out["tokens"])
        return out["heads"]  # type: ignore[no-any-return]

    def run(self, name: str) -> Any:
        """Run `step` or `embed`, bound anew where the past has moved."""
        if self.past is not None and self.where is not self.past.keys_values:
            self.bound, self.where = {}, self.past.keys_values
        if name not in self.bound:
            given: dict[str, Any] = {"values": self.values, "timesteps": self.timesteps}
            if self.past is not None and name == "step":
                given |= self.past.inputs()
            self.bound[name] = self.engine.bind(name, **given)
        return self.bound[name]()

    def refill(self, past: Past, base: Array, which: Array, out: Mapping[str, Any]) -> Heads:
        """`forward` where the rows `which` have no room for the call, and the others took the step `out`."""
        window = past.window(which, base, out["tokens"])
        # where the number of rows is fixed, the rest is computed in vain
        missing = 0 if self.rows is None else self.rows - len(which)
        whole = np.concatenate([window, np.zeros((missing, *window.shape[1:]), np.float32)])
        anew = self.engine.run("refill", tokens=whole)
        n = len(which)
        if n < len(base):
            rest = np.setdiff1d(np.arange(len(base)), which)
            past.write(base, out["past"], out["tokens"], rest)
        past.refill(which, window, anew["past"][:, :n])
        if n == len(base):
            return {name: [part[:n] for part in parts] for name, parts in anew["heads"].items()}
        heads = {name: [part.copy() for part in parts] for name, parts in out["heads"].items()}
        for name, parts in heads.items():
            for part, new in zip(parts, anew["heads"][name], strict=True):
                part[which] = new[:n]
        return heads
