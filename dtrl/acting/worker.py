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
from dtrl.acting.faults import Fault, told
from dtrl.acting.guard import Guard, ObservationCheck, Step
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
        layout["row", ""] = (workers,), np.int64  # that each worker plays now, or played last
        layout["turns", ""] = (workers,), np.int64  # how many steps and resets each has begun
        layout["making", ""] = (workers,), np.bool_  # which make a new environment, for which there is more time
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
        self.envs: dict[int, Guard] = {}
        self.running: set[int] = set()

    def make(self, rows: Iterable[int]) -> None:
        register(self.job.specs)
        for row in rows:
            self.at(row)
            env = self.envs[row] = Guard(self.made)
            if (env.observation_space, env.action_space) != self.job.env_spaces:
                raise InputError(
                    f"environment {row} has the spaces {env.observation_space} and {env.action_space}, and the first one had {self.job.env_spaces[0]} and "
                    f"{self.job.env_spaces[1]}; give a function that makes all alike."
                )
            env.fits = ObservationCheck(env.observation_space, self.job.policy_spaces[0], self.job.seen)

    def made(self) -> "gymnasium.Env[Any, Any]":
        """A new environment."""
        self.shared["making", ""][self.worker] = True
        try:
            return self.job.make()
        finally:
            self.shared["turns", ""][self.worker] += 1
            self.shared["making", ""][self.worker] = False

    def at(self, row: int) -> None:
        """Tell which row it is that plays from now on."""
        self.shared["row", ""][self.worker] = row
        self.shared["turns", ""][self.worker] += 1

    def play(self, rows: Iterable[int], resets: Mapping[int, tuple[int | None, bool]]) -> dict[int, Fault]:
        """Begin an episode in the rows of `resets`, with a seed and maybe in a new environment, and step the others whose episode goes on; returns what
        went wrong, by row."""
        started, faults = perf_counter(), {}
        for row in rows:
            env = self.envs[row]
            if row in resets:
                self.at(row)
                seed, anew = resets[row]
                env.spoilt = env.spoilt or anew
                observation, info = env.reset(seed=seed)
                step: Step = observation, 0.0, False, False, info
            elif row in self.running:
                self.at(row)
                action = {
                    leaf.path: self.shared["actions", leaf.path][row].copy()
                    for leaf in leaves(self.job.policy_spaces[1])
                }
                step = env.step(unflatten(self.job.policy_spaces[1], action))
            else:
                continue
            if env.fault is None:
                self.write(row, *step)
            else:
                faults[row] = env.fault
                self.running.discard(row)
        self.shared["seconds", ""][self.worker] += perf_counter() - started
        return faults

    def write(
        self, row: int, observation: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        space, shared = self.job.policy_spaces[0], self.shared
        parts = flatten(space, descend(observation, self.job.seen))
        for leaf in leaves(space):
            value = numbers_of(leaf.space, parts[leaf.path])
            np.copyto(shared["observations", leaf.path][row, ...], value, casting="same_kind")
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
    """Say when the environments are made; then answer messages until the pipe is closed: the number of a group, whose rows are played, and of those that
    begin an episode the row, the seed, and whether in a new environment.

    The answer is empty, or lists what the environments did wrong: row, kind, words and traceback. Anything else that goes wrong ends the worker, with an
    answer that says so in a sentence where dtrl has one."""
    follow_parent()
    seats = Seats(job.fn, arrays(layout, buffers), worker)
    try:
        seats.make(row for group in rows for row in group)
        pipe.send_bytes(b"")
        for group, resets in messages(pipe):
            faults = seats.play(rows[group], {row: (seed, anew) for row, seed, anew in resets})
            pipe.send_bytes(
                json.dumps([answer(row, fault) for row, fault in faults.items()]).encode() if faults else b""
            )
    except Exception as error:
        text = " ".join(str(error).split())
        end = {
            "message": text
            if isinstance(error, InputError)
            else f"environment {seats.shared['row', ''][worker]} raised {told(error)} in its worker process; with 0 env workers a debugger can follow it.",
            "traceback": traceback.format_exc(),
        }
        with contextlib.suppress(OSError):
            pipe.send_bytes(json.dumps(end).encode())
    finally:
        seats.close()


def answer(row: int, fault: Fault) -> dict[str, Any]:
    """A fault as JSON values."""
    lines = [] if fault.cause is None else traceback.format_exception(fault.cause)
    return {"row": row, "kind": fault.kind, "said": fault.said, "traceback": "".join(lines)}
