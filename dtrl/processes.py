"""What a process does that another one has started, or that was sent a signal for somebody else."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

from dtrl.errors import InputError

SAVE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)
"""Asks a training for a checkpoint, and ends every process that does not know of it. Windows has none."""


def worker_numbers() -> tuple[int, int, int, int]:
    """The number of this process, from 0, among those that torchrun has started on all machines, and how many they are; the same on this machine alone.

    (0, 1, 0, 1) where nothing says that there are others."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 0, 1, 0, 1
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return rank, size, int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def refuse_workers(what: str) -> None:
    """Raise InputError where torchrun has started several processes of something that is of one."""
    size = worker_numbers()[1]
    if size > 1:
        raise InputError(f"{what} runs in one process, and torchrun has started {size}; of dtrl it starts train alone.")


def outlive_save_signal() -> None:
    """Let SIGUSR1 do nothing until a training listens to it. Only the main thread can ask for this; a handler that is there already stays.

    It is not ignored, but handled: that ends with exec, so what an environment starts is as everywhere else (xvfb-run waits for a SIGUSR1)."""
    if SAVE_SIGNAL is None:
        return
    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(SAVE_SIGNAL) == signal.SIG_DFL:
            signal.signal(SAVE_SIGNAL, lambda number, frame: None)
            signal.siginterrupt(SAVE_SIGNAL, False)
            # an interpreter that ends takes its handlers back, and would be ended by one that comes then
            atexit.register(signal.signal, SAVE_SIGNAL, signal.SIG_IGN)


@contextlib.contextmanager
def sheltered_from_save_signal() -> Iterator[None]:
    """What is started in the block is not ended by a SIGUSR1 that comes to the whole process group before it can say what it does with one.

    The signal stays blocked in the new process until that calls `follow_parent`, and for ever in multiprocessing's resource tracker, which lives as long as
    this process."""
    if SAVE_SIGNAL is None:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE_SIGNAL})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Leave Ctrl-C and SIGUSR1 to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outlive_save_signal()
    if SAVE_SIGNAL is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SAVE_SIGNAL})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # the parent was killed, and could not end this process

    threading.Thread(target=follow, daemon=True).start()
