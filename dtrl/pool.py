"""Tasks shared among processes. A task that fails, and a process that dies, take nothing with them but that task."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from dtrl.errors import InputError
from dtrl.processes import follow_parent, sheltered_from_save_signal
from dtrl.registration import import_modules

Task = Callable[[], object]
"""Without arguments, and such that it can be sent to another process."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What libraries of linear algebra read when they are loaded."""
SECONDS_TO_STOP = 60.0
"""So long a process has to write a checkpoint when it is stopped; then it is killed."""


@dataclass(frozen=True)
class Done:
    """A task that came to an end."""

    name: str
    seconds: float
    error: str | None
    """What went wrong; None where nothing did."""
    trace: str | None = None
    """Where, for an error that is not one of input."""


class Worker:
    """A process that runs one task after another, on one thread."""

    def __init__(self, modules: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, tuple(modules)))
        with one_thread(), sheltered_from_save_signal():
            self.process.start()
        theirs.close()
        self.task, self.began = "", 0.0

    def give(self, name: str, task: Task) -> None:
        self.task, self.began = name, time.perf_counter()
        try:
            self.connection.send(task)
        except BrokenPipeError:
            pass  # it has died meanwhile, which `receive` finds

    def receive(self) -> Done:
        """What came of its task, which is over or with which it has died."""
        try:
            error, trace = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            error, trace = f"its process died ({describe(self.process.exitcode)})", None
        return Done(self.task, time.perf_counter() - self.began, error, trace)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def close(self) -> None:
        """Let the process end: it does so when nothing can come any more."""
        self.connection.close()
        self.process.join(SECONDS_TO_STOP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run_tasks(tasks: Mapping[str, Task], jobs: int, modules: Sequence[str] = ()) -> Iterator[Done]:
    """Run the tasks in their order with so many processes, each on one thread; yields what comes of each as it ends.

    `modules` are imported first in each. A caller that stops early, as by Ctrl-C, has the processes stopped: training writes a checkpoint first. Raises
    InputError for fewer than 1 job."""
    check_jobs(jobs)
    waiting = list(tasks.items())[::-1]
    workers: list[Worker] = []
    try:
        while waiting and len(workers) < jobs:
            workers.append(Worker(modules))
            workers[-1].give(*waiting.pop())
        while workers:
            ready = wait([worker.connection for worker in workers])
            for worker in [w for w in workers if w.connection in ready]:
                done = worker.receive()
                if done.error is not None and not worker.alive:
                    workers.remove(worker)
                    worker.close()
                    if waiting:
                        workers.append(Worker(modules))
                        workers[-1].give(*waiting.pop())
                elif waiting:
                    worker.give(*waiting.pop())
                else:
                    workers.remove(worker)
                    worker.close()
                yield done
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.close()


def check_jobs(jobs: int | None) -> None:
    """Raise InputError for fewer than 1 job; None is whatever is usual."""
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs {jobs} must be 1 or more; it is the number of processes.")


def serve(connection: "Connection[Any, Any]", modules: tuple[str, ...]) -> None:
    """What the process does: run what comes until nothing more can come."""
    follow_parent()
    # what is not training has no checkpoint to write, and ends by an exception, so that it leaves no semaphore behind
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # of training: after a checkpoint
        while True:
            try:
                task = connection.recv()
            except (EOFError, OSError):
                return
            error, trace = None, None
            try:
                import_modules(modules)
                task()
            except InputError as wrong:
                error = str(wrong)
            except Exception as failure:
                error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
                trace = traceback.format_exc()
            connection.send((error, trace))


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started in the block have libraries that use one thread."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def describe(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
