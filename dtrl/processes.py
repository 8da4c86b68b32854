"""What a process does that another one has started."""

import multiprocessing
import os
import signal
import threading

from dtrl.errors import InputError


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


def follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # the parent was killed, and could not end this process

    threading.Thread(target=follow, daemon=True).start()
