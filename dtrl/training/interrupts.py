"""Signals while a run trains: the update that is running is finished, and a checkpoint written. SIGINT and SIGTERM end the run then, SIGUSR1 does not."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dtrl.processes import SAVE_SIGNAL


class Interrupted(KeyboardInterrupt):
    """Training was interrupted by a signal, after a checkpoint. `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Interrupts(contextlib.AbstractContextManager["Interrupts"]):
    """Inside its `with`, SIGINT and SIGTERM are noted in `number`, and a second one ends the process at once; SIGUSR1 is counted, and the handler that was
    there before is called too. Only the main thread can ask for this.

    With `patient`, a second one is no other wish than the first: torchrun passes on what a scheduler has sent to every process already, and ends a worker
    that stays by SIGKILL."""

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.number = 0
        """Of the signal that came; 0 for none."""
        self.saves = self.saves_told = 0
        """How often SIGUSR1 came, and how often it had when that was asked last."""
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
            if SAVE_SIGNAL is not None:
                self.before[SAVE_SIGNAL] = signal.signal(SAVE_SIGNAL, self.note_save)
                signal.siginterrupt(SAVE_SIGNAL, False)  # an environment in C goes on waiting for what it waits for
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if not self.patient:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def note_save(self, number: int, frame: FrameType | None) -> None:
        self.saves += 1
        before = self.before[signal.Signals(number)]
        if callable(before):  # such as that of a program which asks its scheduler for another turn
            before(number, frame)

    def asked_to_save(self) -> bool:
        """Whether SIGUSR1 came since this was asked last. One that comes meanwhile is told the next time."""
        saves = self.saves
        asked, self.saves_told = saves > self.saves_told, saves
        return asked


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside its `with`, SIGTERM is raised as Ctrl-C is, where it is the main thread's: what has begun is ended in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "")

    before: object = None
    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # type: ignore[arg-type]
