"""What training measures between two log entries."""

import time

import numpy as np

from dtrl.config import TrainingConfig
from dtrl.sequence_model import SequenceModel


class Meter:
    """Means over the updates since the last reading."""

    def __init__(self, model: SequenceModel, config: TrainingConfig, window: int) -> None:
        self.steps_per_update = config.batch_size * window
        self.tokens_per_step = model.tokens_per_step
        self.started = self.since = time.monotonic()
        self.rows: list[tuple[float, float, dict[str, tuple[float, float]]]] = []

    def add(self, loss: float, norm: float, fields: dict[str, tuple[float, float]]) -> None:
        self.rows.append((loss, norm, fields))

    def read(self, rate: float) -> dict[str, float]:
        now = time.monotonic()
        speed = len(self.rows) / max(now - self.since, 1e-9)
        out = {
            "train/loss": float(np.mean([loss for loss, _, _ in self.rows])),
            "train/gradient_norm": float(np.mean([norm for _, norm, _ in self.rows])),
            "train/learning_rate": rate,
            "time/fps": speed * self.steps_per_update,
            "time/updates_per_second": speed,
            "time/tokens_per_second": speed * self.steps_per_update * self.tokens_per_step,
            "time/time_elapsed": now - self.started,
        }
        for name in self.rows[0][2]:
            out[f"train/{name}_loss"] = float(np.mean([fields[name][0] for _, _, fields in self.rows]))
            out[f"train/{name}_error"] = float(np.mean([fields[name][1] for _, _, fields in self.rows]))
        self.rows, self.since = [], now
        return out
