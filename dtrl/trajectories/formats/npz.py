"""NPZ files of flat arrays: D4RL's or Gymnasium's names, episodes ended by flags or given by offsets.

With `episode_starts`, `episode_ends` (the row after the last) or `episode_lengths` the offsets split, and the flags, where there are any, only
tell a termination from a truncation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.archives import read_npz
from dtrl.errors import InputError
from dtrl.trajectories.columns import Array
from dtrl.trajectories.formats.environment import Environment
from dtrl.trajectories.formats.flat import ALIASES, Flat, flags, from_fields, same_lengths

OFFSETS = ("episode_starts", "episode_ends", "episode_lengths")
FINALS = "final_observations"


def read(path: Path, env: Environment | None, columns: object = None) -> Flat:
    known = [name for names in ALIASES.values() for name in names] + [*OFFSETS, FINALS]
    fields, ignored = read_npz(path, str(path), known.__contains__)
    offsets = [name for name in OFFSETS if name in fields]
    flat = from_offsets(fields, offsets[0], path) if offsets else from_fields(fields, str(path), env)
    if FINALS in fields:
        same_lengths({FINALS: fields[FINALS]}, str(path))
        if len(fields[FINALS]) != len(flat.starts):
            raise InputError(f"{FINALS} of {path} have {len(fields[FINALS])} rows for {len(flat.starts)} episodes.")
        flat.finals = fields[FINALS]
    if ignored:
        flat.assumed["ignored"] = ", ".join(ignored)
    return flat


def from_offsets(fields: Mapping[str, Array], offsets: str, path: Path) -> Flat:
    found = {name: next((alias for alias in aliases if alias in fields), None) for name, aliases in ALIASES.items()}
    for name in ("observations", "actions", "rewards"):
        if found[name] is None:
            raise InputError(f"{path} has no {name}; it holds {', '.join(sorted(fields))}.")
    same_lengths({alias: fields[alias] for alias in found.values() if alias is not None}, str(path))
    steps = len(fields["rewards"])
    starts = starts_of(fields[offsets], offsets, steps, path)
    last = np.append(starts, steps)[1:] - 1
    terminations, truncations = np.zeros(steps, dtype=bool), np.zeros(steps, dtype=bool)
    for name, target in (("terminations", terminations), ("truncations", truncations)):
        alias = found[name]
        if alias is None:
            continue
        marked = flags(fields[alias], alias, str(path))
        inner = marked.copy()
        inner[last] = False
        if inner.any():
            raise InputError(
                f"{alias} of {path} is set at row {int(np.argmax(inner))}, which by {offsets} is not the last of its episode."
            )
        target |= marked
    truncations[last] |= ~terminations[last] & ~truncations[last]
    ends = (
        f"terminated where {found['terminations']} says so"
        if found["terminations"]
        else "no terminals, so all count as truncated"
    )
    flat = Flat(
        fields["observations"], fields["actions"], fields["rewards"], terminations, truncations, starts,
        assumed={"columns": ", ".join(alias for alias in found.values() if alias), "episodes": f"by {offsets}; {ends}"},
    )  # fmt: skip
    if found["next_observations"] is not None:
        flat.finals = fields["next_observations"][last]
    return flat


def starts_of(values: Array, name: str, steps: int, path: Path) -> Any:
    """(E,) the row at which each episode begins, checked against the number of steps."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise InputError(f"{name} of {path} must be a list of whole numbers, one an episode.")
    values = values.astype(np.int64)
    if name == "episode_lengths":
        edges = np.append(0, np.cumsum(values))
    elif name == "episode_ends":
        edges = np.append(0, values)
    else:
        edges = values if values[-1] == steps else np.append(values, steps)
    if edges[0] != 0 or edges[-1] != steps or (np.diff(edges) <= 0).any():
        raise InputError(
            f"{name} of {path} do not cut its {steps} steps into episodes: they must rise from the first row to the last, with a step or more each."
        )
    return edges[:-1]
