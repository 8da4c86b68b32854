"""Where the time of a rollout went: into the environments or into the model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timing:
    """Seconds and steps of a rollout, which adds to them as it goes."""

    env_seconds: float = 0.0
    """In which environments were reset and stepped: in this process, or in all workers together."""
    waited_seconds: float = 0.0
    """In which this process did nothing but wait for them; without workers the same as `env_seconds`."""
    model_seconds: float = 0.0
    """In which the policy chose actions."""
    wall_seconds: float = 0.0
    """From the first to the last, the start of workers included."""
    steps: int = 0
    """Environment steps of the episodes that were played to their ends."""
    env_workers: int = 0
    """Processes in which the environments ran; 0 for this one."""

    jobs: int = 0
    """Other processes that played pieces of the episodes, over which the seconds are added up, all but `wall_seconds`; 0 for none."""

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.wall_seconds if self.wall_seconds else 0.0

    def text(self) -> str:
        """One line for a reader."""
        where = ""
        if self.env_workers:
            where = f" in {self.env_workers} worker{'s' if self.env_workers > 1 else ''}, this process waited {self.waited_seconds:.1f} s"
        played = "" if not self.jobs else ", by 1 job" if self.jobs == 1 else f", by {self.jobs} jobs"
        return (
            f"environment {self.env_seconds:.1f} s{where}; model {self.model_seconds:.1f} s; {self.steps:,} steps in {self.wall_seconds:.1f} s, "
            f"{self.steps_per_second:,.0f} steps/s{played}"
        )

    def add(self, piece: "Timing") -> None:
        """Add what somebody else took for a piece; its time on the clock is not added, as others ran beside it."""
        for name in ("env_seconds", "waited_seconds", "model_seconds", "steps"):
            setattr(self, name, getattr(self, name) + getattr(piece, name))

    @contextmanager
    def adding(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to one of the numbers."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)
