"""The optimiser, its learning rate, and the device it runs on."""

import math

import torch

from dtrl.config import TrainingConfig
from dtrl.errors import InputError
from dtrl.sequence_model import SequenceModel


def learning_rate(update: int, config: TrainingConfig) -> float:
    """The rate of update number `update`, counted from 1: linear warm-up, then constant, or half a cosine down to a tenth."""
    warmup = config.warmup_updates
    scale = min(1.0, update / (warmup + 1))
    if config.schedule == "cosine" and update > warmup:
        progress = (update - warmup) / max(1, config.updates - warmup)
        scale = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * scale


def make_optimizer(model: SequenceModel, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"device {name!r} cannot be used here ({reason}); use auto or cpu.") from error
    return device
