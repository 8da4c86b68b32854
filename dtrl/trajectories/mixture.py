"""Several datasets as one: their episodes one after the other, and how often windows are drawn from each.

Minari's `combine_datasets` is not used: it ignores filters, and drops reference returns."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtrl.errors import InputError
from dtrl.spaces import same_space
from dtrl.trajectories import cache
from dtrl.trajectories.columns import Array, Mixture, Origin, Trajectories


def mix(parts: Sequence[Trajectories], weights: Sequence[float] | None = None) -> Trajectories:
    """The episodes of all parts, in their order. With weights, a window comes from part i with probability wᵢ / Σw, whatever its size.

    Raises InputError where spaces, discount or delay disagree, naming both parts, and for weights that are not one positive number a part."""
    if not parts:
        raise InputError("no dataset was given; name one or more.")
    check_weights(weights, len(parts))
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        for role, one, two in (
            ("observation", first.observation_space, other.observation_space),
            ("action", first.action_space, other.action_space),
        ):
            if not same_space(one, two):
                raise InputError(
                    f"the {role} space of {first.origin.name} is {one}, and that of {other.origin.name} is {two}; only datasets of the same spaces are "
                    "mixed (a file gets those of its environment with env)."
                )
        if (first.discount, first.delayed) != (other.discount, other.delayed):
            raise InputError(
                f"{first.origin.name} and {other.origin.name} were loaded with other discounts or delays; load them alike."
            )
    columns = joined(parts)
    starts = columns.pop("episode_starts")
    mixture = None
    if weights is not None:
        mixture = Mixture(
            np.repeat(np.arange(len(parts)), [part.num_episodes for part in parts]), tuple(float(w) for w in weights)
        )
    origin = common_origin(parts, weights)
    spaces = first.observation_space, first.action_space
    return Trajectories(columns, np.asarray(starts), *spaces, origin, first.discount, first.delayed, mixture)


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    if weights is None:
        return
    if len(weights) != count:
        raise InputError(f"{len(weights)} weights were given for {count} datasets; give one for each.")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"weight {weight:g} must be a positive number; leave the dataset out for none of it.")


def joined(parts: Sequence[Trajectories]) -> dict[str, Array]:
    """The parts' columns end to end, and `episode_starts`: from the cache, in memory only where a part has no fingerprint."""
    steps = [part.num_steps for part in parts]
    before = np.cumsum(steps) - steps
    starts = np.concatenate([part.episode_starts + b for part, b in zip(parts, before, strict=True)])

    def build(allocate: Any) -> dict[str, Array]:
        columns = {}
        for name, column in parts[0].columns.items():
            pieces = [part.columns[name] for part in parts]
            shape = (sum(map(len, pieces)), *column.shape[1:])
            columns[name] = np.concatenate(pieces, out=allocate(name, shape, column.dtype))
        return {**columns, "episode_starts": starts}

    def fits(columns: dict[str, Array]) -> bool:
        expected = {
            name: ((sum(len(part.columns[name]) for part in parts), *column.shape[1:]), column.dtype)
            for name, column in parts[0].columns.items()
        }
        found = {name: (np.shape(column), column.dtype) for name, column in columns.items() if name in expected}
        return found == expected and np.array_equal(columns.get("episode_starts", ()), starts)

    marks = [[part.origin.fingerprint, part.num_episodes, part.num_steps] for part in parts]
    if any(part.origin.fingerprint is None for part in parts):
        return build(lambda name, shape, dtype: np.empty(shape, dtype))
    key = hashlib.sha256(f"mixture {json.dumps(marks)}".encode()).hexdigest()
    return cache.find(key, fits) or cache.store(key, build, fits)


def common_origin(parts: Sequence[Trajectories], weights: Sequence[float] | None) -> Origin:
    """Names and fingerprints of all parts; environment and reference returns where those that state one agree."""
    origins = tuple(part.origin for part in parts)
    named = {environment_id(o.env_spec): o.env_spec for o in reversed(origins) if o.env_spec is not None}
    references = {o.reference for o in origins if o.reference is not None}
    fingerprint = None
    if all(o.fingerprint is not None for o in origins):
        marks = {
            "parts": [o.fingerprint for o in origins],
            "weights": None if weights is None else list(map(float, weights)),
        }
        fingerprint = hashlib.sha256(json.dumps(marks).encode()).hexdigest()
    return Origin(
        " + ".join(o.name for o in origins),
        env_spec=next(iter(named.values())) if len(named) == 1 else None,
        reference=references.pop() if len(references) == 1 else None,
        fingerprint=fingerprint,
        parts=origins,
        lossy_images=any(o.lossy_images for o in origins),
    )


def environment_id(env_spec: str | None) -> str | None:
    try:
        return str(json.loads(env_spec or "{}").get("id"))
    except (ValueError, AttributeError):
        return env_spec
