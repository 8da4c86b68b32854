"""One call of a policy's programs with the past on the device, so that CUDA can replay it whole [torch's notes on CUDA, "CUDA graphs"].

A graph holds the copies of the inputs, the program, what is written to the past, and the copy of what the heads say; from call to call only what lies
at these addresses changes. Nothing is read back before the whole is done.

B environments, D width, m tokens of a call, C slots, L tokens of a refill."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtrl.acting.engines.base import Array, named
from dtrl.acting.engines.past import Extent, Sizes
from dtrl.acting.engines.program import Program
from dtrl.acting.state import Begins
from dtrl.backbones.cache import additive, in_slots, visible


class DeviceCall:
    """`values` (B, 1, …) by field, through `now`, and `timesteps` (B, 1, m) are written by the caller before each `forward`, as those of a `Call`.

    The first call of a kind runs one kernel after the other, since libraries allocate in it; the second is captured, and replayed from there on.
    `capture=False` runs the same function without a graph, on any device."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        values: list[Array],
        timesteps: Array,
        sizes: Sizes | None,
        device: str,
        capture: bool,
    ) -> None:
        self.programs, self.device, self.capture = programs, device, capture
        rows = len(timesteps)
        inputs = [torch.from_numpy(part) for part in (*values, timesteps, np.zeros(rows, np.int64))]
        self.host = [self.at_fixed_place(part.shape, part.dtype) for part in inputs]
        *self.values, self.timesteps, self.base = [part.numpy() for part in self.host]
        self.now = [value[:, 0] for value in self.values]
        """(B, …) views of the values, without the axis of steps."""
        self.heads: dict[str, list[Tensor]] = {}
        self.graphs: dict[str, torch.cuda.CUDAGraph | None] = {}
        self.extent = None if sizes is None else Extent(rows, sizes)
        self.keys_values = self.tokens = torch.empty(0, device=device)
        if sizes is not None:
            self.keys_values = self.room(sizes)
            if sizes.kind == "block":
                self.tokens = torch.zeros(rows, sizes.capacity, sizes.width, device=device)
            self.rows = torch.arange(rows, device=device)[:, None]

    def at_fixed_place(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Zeros on the host, where the device reads and writes by itself."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.capture)

    def room(self, sizes: Sizes) -> Tensor:
        """Zeros (layers, B, 2 · H_kv, C, D/H) for as many slots as the extent has."""
        assert self.extent is not None
        layers, heads, head_width = sizes.shape
        return torch.zeros(layers, len(self.base), heads, self.extent.slots, head_width, device=self.device)

    @torch.no_grad()
    def forward(self, first: Begins) -> dict[str, list[Array]]:
        """What the heads say, by field: (B, 1, …) each, overwritten by the next call. Rows in `first` begin an episode."""
        self.replay("step" if self.extent is None else self.begin(self.extent, first))
        return {name: [part.numpy() for part in parts] for name, parts in self.heads.items()}

    def begin(self, extent: Extent, first: Begins) -> str:
        """Move the rows' extents; returns the kind of the call: `step`, `refill` where no row has room, or `mixed`."""
        self.base[:], full = extent.begin(first)
        now, sizes = self.keys_values, extent.sizes
        if extent.slots > now.shape[3]:
            self.keys_values, self.graphs = self.room(sizes), {}
            self.keys_values[:, :, :, : now.shape[3]] = now
        if first is not None:  # weight 0 hides a number, and not what is none
            self.keys_values.index_fill_(1, torch.from_numpy(np.flatnonzero(first)).to(self.device), 0)
        extent.lengths = self.base + sizes.tokens
        extent.lengths[full] = sizes.kept
        return "step" if not len(full) else "refill" if len(full) == len(self.base) else "mixed"

    def replay(self, kind: str) -> None:
        """Do what `whole(kind)` does, and wait for it."""
        if not self.capture:
            self.whole(kind)
            return
        stream = torch.cuda.current_stream()
        if kind not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                self.whole(kind)
            stream.wait_stream(side)
            self.graphs[kind] = None
        else:
            graph = self.graphs[kind]
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.whole(kind)
                self.graphs[kind] = graph
            graph.replay()
        stream.synchronize()

    def whole(self, kind: str) -> None:
        """What is captured."""
        *values, timesteps, base = (part.to(self.device, non_blocking=True) for part in self.host)
        given: dict[str, Any] = {"values": values, "timesteps": timesteps}
        if self.extent is None:
            self.tell(self.run("step", **given)["heads"])
            return
        sizes, slots = self.extent.sizes, self.keys_values.shape[3]
        positions = base[:, None] + torch.arange(sizes.tokens, device=self.device)
        if kind == "refill":
            out = self.run("embed", **given)
        else:
            given |= {"positions": positions, "mask": self.mask(base, positions), "past": self.keys_values}
            out = self.run("step", **given)
        tokens, heads = out["tokens"], out.get("heads")
        if kind != "step":
            begin = sizes.capacity - sizes.before
            old = self.tokens[:, min(sizes.dropped, begin) : begin]
            window = torch.cat([old, tokens[:, max(0, sizes.dropped - begin) :]], dim=1)
            anew = self.run("refill", tokens=window)
        if kind != "refill":
            # tokens at negative positions go to slots that nobody sees before they are written
            self.keys_values[:, self.rows, :, positions % slots] = out["past"].permute(1, 3, 0, 2, 4)
            if sizes.kind == "block":
                self.tokens[self.rows, positions % slots] = tokens
        if kind != "step":
            full = base + sizes.tokens > sizes.capacity
            kept = self.tokens[:, : sizes.kept]
            kept.copy_(torch.where(full[:, None, None], window, kept))
            kept = self.keys_values[:, :, :, : sizes.kept]
            kept.copy_(torch.where(full[:, None, None, None], anew["past"], kept))
            heads = anew["heads"] if heads is None else mixed(heads, anew["heads"], full)
        self.tell(heads)

    def run(self, name: str, **inputs: Any) -> Any:
        return self.programs[name].run(**named(inputs))

    def mask(self, base: Tensor, positions: Tensor) -> Tensor:
        """(B, 1, m, C + m) additive: over the slots, each of which holds the newest token that fell to it, then over the call's own tokens."""
        assert self.extent is not None
        slots, tokens = self.keys_values.shape[3], positions.shape[1]
        held = in_slots(base[:, None] - 1, slots, slots, self.device)
        seen = visible(positions, torch.cat([held, positions], dim=1), self.extent.sizes.band)
        itself = torch.eye(tokens, dtype=torch.bool, device=self.device)
        return additive(seen | torch.nn.functional.pad(itself, (slots, 0)), torch.float32)[:, None]

    def tell(self, heads: Mapping[str, list[Tensor]]) -> None:
        """Copy what the heads say to its place on the host, which the first call makes."""
        for name, parts in heads.items():
            if name not in self.heads:
                self.heads[name] = [self.at_fixed_place(part.shape, part.dtype) for part in parts]
            for place, part in zip(self.heads[name], parts, strict=True):
                place.copy_(part, non_blocking=True)


def mixed(
    stepped: Mapping[str, list[Tensor]], anew: Mapping[str, list[Tensor]], full: Tensor
) -> dict[str, list[Tensor]]:
    """By field: of rows in `full` (B,) what was computed anew, of the others what the step gave."""
    return {
        name: [
            torch.where(full.view(-1, *[1] * (old.dim() - 1)), new, old)
            for old, new in zip(parts, anew[name], strict=True)
        ]
        for name, parts in stepped.items()
    }
