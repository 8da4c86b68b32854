"""SIGINT and SIGTERM while a run trains: the update that is running is finished, and a checkpoint written."""

import contextlib
import signal
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training was interrupted by a signal, after a checkpoint. `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Interrupts(contextlib.AbstractContextManager["Interrupts"]):
    """Inside its `with`, a signal is noted in `number`, and a second one ends the process at once. Only the main thread can ask for this.

    With `patient`, a second one is no other wish than the first: torchrun passes on what a scheduler has sent to every process already, and ends a worker
    that stays by SIGKILL."""

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.number = 0
        """Of the signal that came; 0 for none."""
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if not self.patient:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
