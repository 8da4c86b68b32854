"""Pieces of one work, done by processes of this machine or on the machines of a Ray cluster. What comes of a piece depends on the piece alone.

A work is given as `make`, which each process calls once, when its first piece has come: it returns the function that does a piece. Both `make` and the
results are sent from process to process. Files are written by whoever asked for the work: other machines need not share any."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from dtrl.cluster import connected, number_of_tasks, run_tasks_on
from dtrl.errors import InputError
from dtrl.pool import check_jobs, one_thread
from dtrl.processes import follow_parent, sheltered_from_save_signal

Make = Callable[[], Callable[[Any], Any]]


@dataclass(frozen=True)
class Hands:
    """Who does the pieces."""

    jobs: int
    """How many pieces are done at once."""
    do: Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]
    """Pieces → (number of the piece, what came of it), as they end. Raises the InputError of a piece, and then does no more."""


@contextmanager
def hands(make: Make, jobs: int | None, ray: str | None, lost: str) -> Iterator[Hands]:
    """Those that do the pieces of a work: `jobs` processes, or where `ray` is the address of a cluster as many of its tasks (None: as many as it has
    processors). They end with the block.

    `lost` is the sentence of the InputError where a process is ended by somebody else; Ray begins its piece again before."""
    check_jobs(jobs)
    if ray is None:
        with processes(make, jobs or 1, lost) as ours:
            yield ours
        return
    with connected(ray) as client:
        count = number_of_tasks(client, ray, jobs)
        yield Hands(count, run_tasks_on(client, make, count, lost))


@contextmanager
def processes(make: Make, jobs: int, lost: str) -> Iterator[Hands]:
    """Processes of this machine, each on one thread. They are spawned: a fork would copy the locks of torch's threads."""
    context = multiprocessing.get_context("spawn")
    with sheltered_from_save_signal():
        executor = ProcessPoolExecutor(jobs, context, begin, (make,))
    with executor as pool, ended_with(pool):

        def do(pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            with one_thread(), sheltered_from_save_signal():  # a process is started when a piece waits for one
                futures = {pool.submit(do_piece, piece): number for number, piece in enumerate(pieces)}
            try:
                for future in as_completed(list(futures)):
                    yield futures.pop(future), future.result()  # popped, as a result may be large
            except BrokenProcessPool as error:
                raise InputError(lost) from error

        yield Hands(jobs, do)


@contextmanager
def ended_with(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the processes at once if the block fails: what they are doing is done again another time."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)  # waits for the pool's own thread, which waits for the processes
        raise


_work: list[Make] = []
"""Of a spawned process: makes, when there is a piece, what does it, so that an error is that of a piece."""


def begin(make: Make) -> None:
    """First thing in a spawned process."""
    follow_parent()
    _work.append(cache(make))


def do_piece(piece: Any) -> Any:
    return _work[0]()(piece)
