"""A process that plays environments for another: what it is told, and what it does. Its side of `dtrl.acting.workers`."""

import contextlib
import importlib
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from dtrl.acting.environments import descend, parse
from dtrl.acting.masks import MaskReader
from dtrl.errors import InputError
from dtrl.processes import follow_parent
from dtrl.registration import import_packages
from dtrl.spaces import Space, flatten, leaves, numbers_of, unflatten

Array = npt.NDArray[Any]
Key = tuple[str, str]
"""Of a shared array: what it holds, and the path of the part."""
Layout = dict[Key, tuple[tuple[int, ...], Any]]
"""Shape and dtype of each shared array."""


@dataclass(frozen=True)
class Job:
    """What all workers play, and for whom."""

    make: Callable[[], "gymnasium.Env[Any, Any]"]
    env_spaces: tuple[Space, Space]
    """Observations and actions of an environment."""
    seen: tuple[str | int, ...]
    """Keys of the part of the observations that the policy sees."""
    policy_spaces: tuple[Space, Space]
    mask_size: int | None
    specs: list[EnvSpec] = field(default_factory=list)
    """Registered here, and maybe not yet in the other process."""

    def layout(self, rows: int, workers: int) -> Layout:
        """Of observations, what the policy sees: in the environment's dtype, and texts as the ids of their characters."""
        seen: Any = self.env_spaces[0]
        for key in self.seen:
            seen = seen[key]
        given = {leaf.path: leaf.space for leaf in leaves(seen)}
        layout: Layout = {("rewards", ""): ((rows,), np.float64), ("mask", ""): ((rows, self.mask_size or 0), np.bool_)}
        layout |= {(name, ""): ((rows,), np.bool_) for name in ("terminations", "truncations", "masked")}
        layout["row", ""] = (workers,), np.int64  # that each worker plays now
        layout["seconds", ""] = (workers,), np.float64  # that each has played, in all
        for leaf in leaves(self.policy_spaces[0]):
            if isinstance(leaf.space, spaces.Text):
                layout["observations", leaf.path] = (rows, leaf.space.max_length), np.int64
            else:
                layout["observations", leaf.path] = (rows, *(leaf.space.shape or ())), given[leaf.path].dtype
        for leaf in leaves(self.policy_spaces[1]):
            layout["actions", leaf.path] = (rows, *(leaf.space.shape or ())), leaf.space.dtype
        return layout


def arrays(layout: Layout, buffers: Mapping[Key, Any]) -> dict[Key, Array]:
    """The shared arrays, as this process sees them."""
    return {
        key: np.frombuffer(buffers[key], dtype, int(np.prod(shape))).reshape(shape)
        for key, (shape, dtype) in layout.items()
    }


def specs_of(env: str) -> list[EnvSpec]:
    """What is registered here for an environment's id, and for that of one that it wraps (`dtrl/DelayedReward-v0`)."""
    spec = parse(env)
    names = (spec["id"], spec["kwargs"].get("env_id"))
    return [gymnasium.registry[name] for name in names if isinstance(name, str) and name in gymnasium.registry]


def register(specs: Iterable[EnvSpec]) -> None:
    """Register what is not registered yet. Importing a module may do so by itself, and then the module wins."""
    for spec in specs:
        import_packages(spec.id, spec.kwargs)
        if spec.id not in gymnasium.registry and isinstance(spec.entry_point, str):
            with contextlib.suppress(ImportError):
                importlib.import_module(spec.entry_point.partition(":")[0])
        gymnasium.registry.setdefault(spec.id, spec)


class Seats:
    """The environments of one worker, by row."""

    def __init__(self, job: Job, shared: dict[Key, Array], worker: int) -> None:
        self.job, self.shared, self.worker = job, shared, worker
        self.masks = MaskReader(job.env_spaces[0], job.seen, job.mask_size)
        self.envs: dict[int, gymnasium.Env[Any, Any]] = {}
        self.running: set[int] = set()

    def make(self, rows: Iterable[int]) -> None:
        register(self.job.specs)
        for row in rows:
            self.shared["row", ""][self.worker] = row
            env = self.envs[row] = self.job.make()
            if (env.observation_space, env.action_space) != self.job.env_spaces:
                raise InputError(
                    f"environment {row} has the spaces {env.observation_space} and {env.action_space}, and the first one had {self.job.env_spaces[0]} and "
                    f"{self.job.env_spaces[1]}; give a function that makes all alike."
                )

    def play(self, rows: Iterable[int], resets: Mapping[int, int | None]) -> None:
        """Begin an episode in the rows of `resets`, with these seeds, and step the others whose episode goes on."""
        started = perf_counter()
        for row in rows:
            self.shared["row", ""][self.worker] = row
            if row in resets:
                observation, info = self.envs[row].reset(seed=resets[row])
                self.write(row, observation, 0.0, False, False, info)
            elif row in self.running:
                action = {
                    leaf.path: self.shared["actions", leaf.path][row].copy()
                    for leaf in leaves(self.job.policy_spaces[1])
                }
                self.write(row, *self.envs[row].step(unflatten(self.job.policy_spaces[1], action)))
        self.shared["seconds", ""][self.worker] += perf_counter() - started

    def write(self, row: int, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
        space, shared = self.job.policy_spaces[0], self.shared
        parts = flatten(space, descend(observation, self.job.seen))
        for leaf in leaves(space):
            value, place = numbers_of(leaf.space, parts[leaf.path]), shared["observations", leaf.path][row, ...]
            if value.shape != place.shape:
                raise InputError(
                    f"environment {row} showed an observation of shape {value.shape}, and its space is {leaf.space}; the environment is at fault."
                )
            np.copyto(place, value, casting="same_kind")
        mask = self.masks.read_one(observation, info, row)
        shared["masked", ""][row] = mask is not None
        if mask is not None:
            shared["mask", ""][row] = mask[0]
        shared["rewards", ""][row] = reward
        shared["terminations", ""][row], shared["truncations", ""][row] = terminated, truncated
        (self.running.discard if terminated or truncated else self.running.add)(row)

    def close(self) -> None:
        for env in self.envs.values():
            env.close()


def messages(pipe: Any) -> Iterator[Any]:
    """What the pipe brings until its other end is closed."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield json.loads(pipe.recv_bytes())


def work(worker: int, job: Any, layout: Layout, buffers: Any, rows: list[list[int]], pipe: Any) -> None:
    """Answer messages until the pipe is closed: the number of a group, whose rows are played, and the seeds of those that begin an episode.

    The answer is empty, or says what went wrong: the row, the whole message where dtrl has one, else the error, and the traceback. It ends the worker."""
    follow_parent()
    seats = Seats(job.fn, arrays(layout, buffers), worker)
    try:
        seats.make(row for group in rows for row in group)
        for group, resets in messages(pipe):
            seats.play(rows[group], dict(resets))
            pipe.send_bytes(b"")
    except Exception as error:
        text = " ".join(str(error).split())
        fault = {
            "row": int(seats.shared["row", ""][worker]),
            "message": text if isinstance(error, InputError) else None,
            "error": f"{type(error).__name__}: {text}" if text else type(error).__name__,
            "traceback": traceback.format_exc(),
        }
        with contextlib.suppress(OSError):
            pipe.send_bytes(json.dumps(fault).encode())
    finally:
        seats.close()
