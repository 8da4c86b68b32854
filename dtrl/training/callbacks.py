"""What a callback of a training is told, and what it may answer."""

from collections.abc import Callable
from dataclasses import dataclass

from dtrl.acting import Policy
from dtrl.training.logging import RunLogger


@dataclass(frozen=True)
class Event:
    """What a callback is told."""

    kind: str
    """"start" before the first update, "update" after each one, "end" after the last."""
    update: int
    """Updates done."""
    read: Callable[[], Policy]
    """Gives the policy."""
    logger: RunLogger | None
    """The run's log; None without a logdir, and where a finished run is resumed, which has logged all it has to say."""

    @property
    def policy(self) -> Policy:
        """The policy as it is after these updates. With `fsdp` it is put together when it is asked for, and is only there for this call."""
        return self.read()


Callback = Callable[[Event], bool | None]
"""Called with every event; returning False for an "update" ends training after a checkpoint."""
