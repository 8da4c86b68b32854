"""Environments in worker processes, in groups that take turns: while the environments of one group step, the model computes for the other.

Every worker plays rows of every group, so that all of them work for whichever steps. Numbers pass through shared memory: of observations what the policy
sees, then actions, rewards, ends and action masks. A pipe to each worker says whose turn it is.

An episode begins in the step after the end of the one before it, as in Gymnasium's autoreset mode NEXT_STEP, but with a seed of its own; a row without an
episode does nothing. B rows of a group."""

import contextlib
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper

from dtrl.acting.faults import BESIDE, Fault, told
from dtrl.acting.masks import ACTION_MASK
from dtrl.acting.worker import Job, arrays, work
from dtrl.errors import InputError
from dtrl.processes import sheltered_from_save_signal
from dtrl.spaces import leaves, unflatten

Array = npt.NDArray[Any]
ANSWER_SECONDS = 600.0
"""After which an environment is taken to hang, where no other time is given; and a worker that has not made its environments by then."""
LOOKS = 8
"""How often in the time that a step may take it is looked whether another has begun: a hanging environment is found an eighth later at most."""
CLOSE_SECONDS = 10.0
"""That a worker may take to close its environments."""


class Workers:
    """The processes. They end with the block of the context manager; `groups` are the vector environments to play in.

    An environment may take `timeout` seconds for a step or a reset (None: `ANSWER_SECONDS`). A process that takes longer, or ends, is replaced."""

    def __init__(self, job: Job, sizes: Sequence[int], workers: int, timeout: float | None = None) -> None:
        rows, starts = sum(sizes), [0, *accumulate(sizes)]
        self.count = workers = min(workers, rows)
        self.timeout = ANSWER_SECONDS if timeout is None else timeout
        self.layout = job.layout(rows, workers)
        self.context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
        self.buffers = {
            key: self.context.RawArray("b", max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
            for key, (shape, dtype) in self.layout.items()
        }
        self.shared = arrays(self.layout, self.buffers)
        self.groups = [
            WorkerGroup(self, job, number, start, size)
            for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ]
        self.sent_job = CloudpickleWrapper(job)  # type: ignore[arg-type]  # it takes more than functions
        self.processes: dict[int, Any] = {}
        self.pipes: dict[int, Any] = {}
        self.ready: set[int] = set()
        """Workers that have made their environments."""
        self.asked: list[set[int]] = [set() for _ in range(workers)]
        """The groups that each worker has still to answer."""
        self.faults: dict[int, Fault] = {}
        """Row → what went wrong in it, until its group is told."""
        try:
            for worker in range(workers):
                self.start(worker)
        except BaseException:
            self.close(0.0)
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(CLOSE_SECONDS if kind is None else 1.0)

    def start(self, worker: int) -> None:
        ours, theirs = self.context.Pipe()
        self.pipes[worker] = ours
        rows = [group.rows_of(worker) for group in self.groups]
        process = self.context.Process(
            target=work,
            args=(worker, self.sent_job, self.layout, self.buffers, rows, theirs),
            name=f"dtrl-env-worker-{worker}",
            daemon=True,
        )
        try:
            with sheltered_from_save_signal():
                process.start()
        except Exception as error:
            raise InputError(
                f"the environment cannot be sent to a worker process ({told(error)}); give the id of a registered one, or use 0 env workers."
            ) from error
        self.processes[worker] = process
        theirs.close()

    def close(self, seconds: float) -> None:
        """Let the workers close their environments for so long, and end those that are not ready then."""
        for pipe in self.pipes.values():
            pipe.close()
        until = perf_counter() + seconds
        for process in self.processes.values():
            process.join(max(0.0, until - perf_counter()))
        for process in self.processes.values():
            end(process)

    @property
    def env_seconds(self) -> float:
        """That all workers have spent in their environments."""
        return float(self.shared["seconds", ""].sum())

    def send(self, worker: int, group: int, message: bytes) -> None:
        if worker not in self.processes:
            self.start(worker)
        self.asked[worker].add(group)
        with contextlib.suppress(OSError):  # it has ended, which shows when it does not answer
            self.pipes[worker].send_bytes(message)

    def receive(self, worker: int, group: int) -> None:
        """Wait for a worker's answer to a group, and keep the `faults` that it tells. A worker that has ended, or hangs, is given up, and has nothing to
        answer any more. Raises InputError where it does so before its environments are made, or where something else goes wrong in it."""
        if group not in self.asked[worker]:
            return
        try:
            if worker not in self.ready:
                self.wait_until_ready(worker)
            answer = self.pipes[worker].recv_bytes() if self.answers(worker) else None
        except (EOFError, OSError):
            self.give_up(worker, Fault("died", f"ended its worker process (exit code {self.exit_code(worker)})"))
            return
        if answer is None:
            self.give_up(worker, Fault("hung", f"has not answered for {self.timeout:g} seconds"))
            return
        self.asked[worker].discard(group)
        for fault in self.read(answer):
            cause = RuntimeError(f"in worker process:\n{fault['traceback']}")
            self.faults[fault["row"]] = Fault(fault["kind"], fault["said"], cause)

    def wait_until_ready(self, worker: int) -> None:
        try:
            if not self.pipes[worker].poll(ANSWER_SECONDS):
                raise InputError(
                    f"environment {self.row_of(worker)} was not made within {ANSWER_SECONDS:g} seconds in its worker process; make it with 0 env workers to "
                    "see what it waits for."
                )
            self.read(self.pipes[worker].recv_bytes())
        except (EOFError, OSError) as error:
            raise InputError(
                f"the worker process of environment {self.row_of(worker)} ended before its environments were made (exit code {self.exit_code(worker)}); was "
                'it for want of memory, use fewer env workers; and a script that starts workers does so under `if __name__ == "__main__":`.'
            ) from error
        self.ready.add(worker)

    def answers(self, worker: int) -> bool:
        """Whether the worker answers before one of its environments has taken too long; they play one after the other."""
        pipe, turns, making = self.pipes[worker], self.shared["turns", ""], self.shared["making", ""]
        turn, since = int(turns[worker]), perf_counter()
        while not pipe.poll(self.timeout / LOOKS):
            limit = max(self.timeout, ANSWER_SECONDS) if making[worker] else self.timeout
            if (now := int(turns[worker])) != turn:
                turn, since = now, perf_counter()
            elif perf_counter() - since >= limit:
                return False
        return True

    def read(self, answer: bytes) -> list[dict[str, Any]]:
        """The faults that an answer lists. Raises InputError for the one that ends a worker."""
        told = json.loads(answer or b"[]")
        if isinstance(told, dict):
            raise InputError(told["message"]) from RuntimeError(f"in worker process:\n{told['traceback']}")
        assert isinstance(told, list)
        return told

    def exit_code(self, worker: int) -> int | None:
        """Of a worker that is ending."""
        self.processes[worker].join(1.0)
        code = self.processes[worker].exitcode
        return None if code is None else int(code)

    def give_up(self, worker: int, fault: Fault) -> None:
        """End a worker; another process takes its place when there is something to do. The fault is that of the row which it played last; the other rows
        have to begin again, for no fault of theirs."""
        self.pipes.pop(worker).close()
        end(self.processes.pop(worker))
        for group in self.groups:
            self.faults |= dict.fromkeys(group.rows_of(worker), Fault(BESIDE))
        self.faults[self.row_of(worker)] = fault
        self.asked[worker].clear()
        self.ready.discard(worker)
        self.shared["making", ""][worker] = False

    def row_of(self, worker: int) -> int:
        """The row that a worker plays, or played last."""
        return int(self.shared["row", ""][worker])


def end(process: Any) -> None:
    """End a process that does not end by itself, and wait for it, so that nothing is left of it."""
    for how in ("terminate", "kill"):
        if process.is_alive():
            getattr(process, how)()
            process.join(1.0)


class WorkerGroup:
    """Some rows of the workers' environments, for a policy: what `Rows` takes for a vector environment."""

    def __init__(self, workers: Workers, job: Job, number: int, first_row: int, rows: int) -> None:
        self.workers, self.number, self.first_row, self.num_envs = workers, number, first_row, rows
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = job.policy_spaces[0]
        own = slice(first_row, first_row + rows)
        self.columns = {key: values[own] for key, values in workers.shared.items()}
        self.playing = [worker for worker in range(workers.count) if self.rows_of(worker)]
        self.told: dict[int, Fault] = {}
        self.spoilt: set[int] = set()
        """Rows that begin their next episodes in new environments."""

    def rows_of(self, worker: int) -> list[int]:
        """Row r is worker r mod W's, so that groups smaller than W fall to different workers."""
        count, first = self.workers.count, self.first_row
        return list(range(first + (worker - first) % count, first + self.num_envs, count))

    def faults(self) -> dict[int, Fault]:
        """Row of the group → what its environment did wrong in its last step or reset."""
        return self.told

    def replace(self, row: int) -> None:
        """Let the next reset of a row of the group be that of a new environment."""
        self.spoilt.add(row)

    def rest(self, idle: npt.NDArray[np.bool_]) -> None:
        """A row without an episode does nothing as it is."""

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
        begun = [
            (self.first_row + row, None if seed is None else int(seed), row in self.spoilt)
            for row, seed in resets.items()
        ]
        self.spoilt -= resets.keys()
        for worker in self.playing:
            own = [reset for reset in begun if reset[0] % self.workers.count == worker]
            self.workers.send(worker, self.number, json.dumps([self.number, own]).encode())

    def step_wait(self) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """What the rows show, their rewards (B,) and ends (B,), and the action masks, as Gymnasium's `step` returns them; of the rows in `faults`, which
        follow it, anything.

        What they show is overwritten by the next step."""
        for worker in self.playing:
            self.workers.receive(worker, self.number)
        faults, first = self.workers.faults, self.first_row
        self.told = {row: faults.pop(first + row) for row in range(self.num_envs) if first + row in faults}
        columns = self.columns
        parts = {leaf.path: columns["observations", leaf.path] for leaf in leaves(self.single_observation_space)}
        rewards, terminated, truncated = (
            columns[name, ""].copy() for name in ("rewards", "terminations", "truncations")
        )
        masked, info = columns["masked", ""].copy(), {}
        if masked.any():
            info = {ACTION_MASK: columns["mask", ""].copy(), f"_{ACTION_MASK}": masked}
        return unflatten(self.single_observation_space, parts), rewards, terminated, truncated, info
