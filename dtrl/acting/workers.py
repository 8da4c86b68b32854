"""Environments in worker processes, in groups that take turns: while the environments of one group step, the model computes for the other.

Every worker plays rows of every group, so that all of them work for whichever steps. Numbers pass through shared memory: of observations what the policy
sees, then actions, rewards, ends and action masks. A pipe to each worker says whose turn it is.

An episode begins in the step after the end of the one before it, as in Gymnasium's autoreset mode NEXT_STEP, but with a seed of its own; a row without an
episode does nothing. B rows of a group."""

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from itertools import accumulate
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper

from dtrl.acting.masks import ACTION_MASK
from dtrl.acting.worker import Job, arrays, work
from dtrl.errors import InputError
from dtrl.spaces import leaves, unflatten

Array = npt.NDArray[Any]
ANSWER_SECONDS = 600.0
"""After which a worker is taken to hang. The first answer includes its start, the making of its environments, and their resets."""
CLOSE_SECONDS = 10.0
"""That a worker may take to close its environments."""


class Workers:
    """The processes. They end with the block of the context manager; `groups` are the vector environments to play in."""

    def __init__(self, job: Job, sizes: Sequence[int], workers: int) -> None:
        rows, starts = sum(sizes), [0, *accumulate(sizes)]
        self.count = workers = min(workers, rows)
        layout = job.layout(rows, workers)
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
        buffers = {
            key: context.RawArray("b", max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
            for key, (shape, dtype) in layout.items()
        }
        self.shared = arrays(layout, buffers)
        self.seeds: list[int | None] = [None] * rows
        self.steps = np.zeros(rows, dtype=np.int64)
        """Number of the step that each row takes, from 0; −1 for a reset."""
        self.processes: list[Any] = []
        self.pipes: list[Any] = []
        self.groups = [
            WorkerGroup(self, job, number, start, size)
            for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ]
        send_job = CloudpickleWrapper(job)  # type: ignore[arg-type]  # it takes more than functions
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                self.pipes.append(ours)
                rows_of = [group.rows_of(worker) for group in self.groups]
                process = context.Process(
                    target=work,
                    args=(worker, send_job, layout, buffers, rows_of, theirs),
                    name=f"dtrl-env-worker-{worker}",
                    daemon=True,
                )
                process.start()
                self.processes.append(process)
                theirs.close()
        except BaseException as error:
            self.close(0.0)
            if isinstance(error, Exception):
                raise InputError(
                    f"the environment cannot be sent to a worker process ({type(error).__name__}: {' '.join(str(error).split())}); "
                    "give the id of a registered one, or use 0 env workers."
                ) from error
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(CLOSE_SECONDS if kind is None else 1.0)

    def close(self, seconds: float) -> None:
        """Let the workers close their environments for so long, and end those that are not ready then."""
        for pipe in self.pipes:
            pipe.close()
        until = perf_counter() + seconds
        for process in self.processes:
            process.join(max(0.0, until - perf_counter()))
        for end in ("terminate", "kill"):
            for process in self.processes:
                if process.is_alive():
                    getattr(process, end)()
                    process.join(1.0)

    @property
    def env_seconds(self) -> float:
        """That all workers have spent in their environments."""
        return float(self.shared["seconds", ""].sum())

    def send(self, worker: int, message: bytes) -> None:
        try:
            self.pipes[worker].send_bytes(message)
        except OSError:  # it has ended, and may have left an answer that says why
            return

    def receive(self, worker: int) -> None:
        """Wait for a worker's answer. Raises InputError where an environment has failed, or the worker has ended or does not answer."""
        pipe = self.pipes[worker]
        try:
            if not pipe.poll(ANSWER_SECONDS):
                raise InputError(
                    f"{self.where(self.row_of(worker))} has not answered for {ANSWER_SECONDS:g} seconds; play with 0 env workers to see what it waits for."
                )
            answer = pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self.processes[worker].join(1.0)
            raise InputError(
                f"the worker process of {self.where(self.row_of(worker))} has ended (exit code {self.processes[worker].exitcode}); was it for want of memory, "
                'use fewer env workers; and a script that starts workers does so under `if __name__ == "__main__":`.'
            ) from error
        if answer:
            self.explain(json.loads(answer))

    def explain(self, fault: dict[str, Any]) -> NoReturn:
        said = fault["message"] or (
            f"{self.where(fault['row'])} raised {fault['error'].rstrip('.')}; the environment is at fault, and with 0 env workers a debugger can follow it."
        )
        raise InputError(said) from RuntimeError(f"in worker process:\n{fault['traceback']}")

    def row_of(self, worker: int) -> int:
        """The row that a worker plays, or played last."""
        return int(self.shared["row", ""][worker])

    def where(self, row: int) -> str:
        """Which environment, and how far it is."""
        at = "its reset" if self.steps[row] < 0 else f"step {self.steps[row]}"
        return f"environment {row}, at {at} (seed {self.seeds[row]}),"


class WorkerGroup:
    """Some rows of the workers' environments, for a policy: what `Rows` takes for a vector environment."""

    def __init__(self, workers: Workers, job: Job, number: int, first_row: int, rows: int) -> None:
        self.workers, self.number, self.first_row, self.num_envs = workers, number, first_row, rows
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = job.policy_spaces[0]
        own = slice(first_row, first_row + rows)
        self.columns = {key: values[own] for key, values in workers.shared.items()}
        self.playing = [worker for worker in range(workers.count) if self.rows_of(worker)]

    def rows_of(self, worker: int) -> list[int]:
        """Row r is worker r mod W's, so that groups smaller than W fall to different workers."""
        count, first = self.workers.count, self.first_row
        return list(range(first + (worker - first) % count, first + self.num_envs, count))

    def reset(self, *, seed: Sequence[int | None]) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every row."""
        self.send(dict(enumerate(seed)))
        observations, _, _, _, info = self.step_wait()
        return observations, info

    def step_async(self, actions: Mapping[str, Array], resets: Mapping[int, int | None]) -> None:
        """Begin a step, with (B, …) actions by path; rows in `resets` begin an episode instead, with that seed."""
        for path, values in actions.items():
            np.copyto(self.columns["actions", path], values, casting="same_kind")
        self.send(resets)

    def send(self, resets: Mapping[int, int | None]) -> None:
        all_rows = {self.first_row + row: None if seed is None else int(seed) for row, seed in resets.items()}
        self.workers.steps[self.first_row : self.first_row + self.num_envs] += 1
        for row, seed in all_rows.items():
            self.workers.seeds[row], self.workers.steps[row] = seed, -1
        for worker in self.playing:
            own = [(row, seed) for row, seed in all_rows.items() if row % self.workers.count == worker]
            self.workers.send(worker, json.dumps([self.number, own]).encode())

    def step_wait(self) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """What the rows show, their rewards (B,) and ends (B,), and the action masks, as Gymnasium's `step` returns them.

        What they show is overwritten by the next step."""
        for worker in self.playing:
            self.workers.receive(worker)
        columns = self.columns
        parts = {leaf.path: columns["observations", leaf.path] for leaf in leaves(self.single_observation_space)}
        for values in parts.values():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = self.first_row + int(np.argwhere(~np.isfinite(values))[0][0])
                raise InputError(f"{self.workers.where(row)} showed NaN or infinity; the environment is at fault.")
        rewards, terminated, truncated = (
            columns[name, ""].copy() for name in ("rewards", "terminations", "truncations")
        )
        masked, info = columns["masked", ""].copy(), {}
        if masked.any():
            info = {ACTION_MASK: columns["mask", ""].copy(), f"_{ACTION_MASK}": masked}
        return unflatten(self.single_observation_space, parts), rewards, terminated, truncated, info
