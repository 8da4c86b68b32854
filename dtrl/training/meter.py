"""What training measures between two log entries."""

import time

import numpy as np
import torch
from torch import Tensor

from dtrl.config import TrainingConfig
from dtrl.sequence_model import SequenceModel


class Meter:
    """Means over the updates since the last reading. `hardware` is (FLOPs of an update, FLOP/s of a matrix product here), where both were counted."""

    def __init__(self, model: SequenceModel, config: TrainingConfig, window: int) -> None:
        self.steps_per_update = config.batch_size * window * model.block_length
        self.tokens_per_step = model.tokens_per_step / model.block_length
        self.fields = list(model.head_of)
        self.bounded = model.bounded
        self.hardware: tuple[int, float] | None = None
        self.rows: list[tuple[int, Tensor]] = []
        """Update → the measures of `Update.gradients`, where they were left: on the device until somebody reads them."""
        self.start()

    def start(self) -> None:
        self.started = self.since = time.monotonic()
        self.batch_seconds = self.update_seconds = 0.0

    def add(self, update: int, measures: Tensor, batch_seconds: float, update_seconds: float) -> None:
        """An update, the time that its batch took on the host, and that of all of it."""
        self.rows.append((update, measures))
        self.batch_seconds += batch_seconds
        self.update_seconds += update_seconds

    def values(self) -> list[tuple[int, list[float]]]:
        """Update → its measures as numbers. Waits for the device, and that counts as updating."""
        began = time.monotonic()
        numbers = torch.stack([measures for _, measures in self.rows]).tolist() if self.rows else []
        self.update_seconds += time.monotonic() - began
        return [(update, row) for (update, _), row in zip(self.rows, numbers, strict=True)]

    def read(self, rate: float) -> dict[str, float]:
        """The scalars of a log entry; begins anew."""
        rows = [row for _, row in self.values()]
        now = time.monotonic()
        speed = len(rows) / max(now - self.since, 1e-9)
        out = {
            "train/loss": mean([row[0] for row in rows]),
            "train/gradient_norm": mean([row[1] for row in rows]),
            "train/learning_rate": rate,
            "time/fps": speed * self.steps_per_update,
            "time/updates_per_second": speed,
            "time/tokens_per_second": speed * self.steps_per_update * self.tokens_per_step,
            "time/time_elapsed": now - self.started,
            "time/batch_share": self.batch_seconds / max(self.update_seconds, 1e-9),
        }
        if self.hardware is not None:
            flops, flops_per_second = self.hardware
            achieved = flops * len(rows) / max(self.update_seconds, 1e-9)
            out["train/model_flops_utilization"] = achieved / flops_per_second
        triples = [(f"{name}_loss", f"{name}_error") for name in self.fields]
        triples += [(f"{name}_entropy", f"{name}_entropy_multiplier") for name in self.bounded]
        for i, tags in enumerate(triples):  # two sums and the number of tokens
            at = 2 + 3 * i
            for j, tag in enumerate(tags):
                out[f"train/{tag}"] = mean([row[at + j] / max(row[at + 2], 1) for row in rows])
        self.rows, self.since = [], now
        self.batch_seconds = self.update_seconds = 0.0
        return out


def mean(numbers: list[float]) -> float:
    return float(np.mean(numbers))
