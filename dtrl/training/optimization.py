"""The optimiser, its learning rate, and the device that it and the data are on."""

import math
import warnings
from typing import Any

import torch

from dtrl.config import TrainingConfig
from dtrl.errors import InputError
from dtrl.sequence_model import SequenceModel
from dtrl.training.hardware import matmul_rate
from dtrl.windows import ResidentWindows, Windows


def learning_rate(update: int, config: TrainingConfig) -> float:
    """The rate of update number `update`, counted from 1: linear warm-up, then constant, or half a cosine down to a tenth."""
    warmup = config.warmup_updates
    scale = min(1.0, update / (warmup + 1))
    if config.schedule == "cosine" and update > warmup:
        progress = (update - warmup) / max(1, config.updates - warmup)
        scale = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * scale


def make_optimizer(model: SequenceModel, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all parameters. The multipliers of the loss are in a group of their own that no decay pulls anywhere."""
    duals = list(model.log_multipliers.parameters())
    others = [p for p in model.parameters() if all(p is not dual for dual in duals)]
    groups: list[dict[str, Any]] = [{"params": others}, *([{"params": duals, "weight_decay": 0.0}] if duals else [])]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


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


def check_precision(config: TrainingConfig, device: torch.device) -> None:
    """Warn where bf16 is slower than fp32: on a processor without instructions for it."""
    if config.precision != "bf16" or device.type != "cpu":
        return
    half, full = (matmul_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    if half < full:
        warnings.warn(
            f"this processor multiplies bf16 matrices {full / half:.2g} times more slowly than fp32 ones; "
            "training goes on, and --precision fp32 is faster here.",
            stacklevel=2,
        )


def check_device(config: TrainingConfig, device: torch.device) -> None:
    """Raise InputError for settings that need another device than the run's."""
    if config.precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise InputError(
            f"precision tf32 needs an NVIDIA GPU of compute capability 8.0 or more and this run is on {device}; use fp32 there."
        )
    if config.cuda_graph and device.type != "cuda":
        missing = "no CUDA device is available here" if not torch.cuda.is_available() else "give --device cuda"
        raise InputError(f"cuda_graph needs a CUDA device and this run is on {device} ({missing}); leave it out there.")


def resident_windows(windows: Windows, config: TrainingConfig, device: torch.device) -> ResidentWindows | None:
    """The windows of data that lie on the device; None where they stay in the host's memory.

    Raises InputError where they were to lie on the device, and take more than half of the memory that is free on it."""
    wanted = "always" if config.cuda_graph else config.data_on_device
    if wanted == "never" or (wanted == "auto" and device.type != "cuda"):
        return None
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if windows.nbytes > free / 2:
            if wanted == "auto":
                return None
            raise InputError(
                f"the data take {windows.nbytes / 2**20:,.0f} MiB, more than half of the {free / 2**20:,.0f} MiB that are free on {device}; "
                "leave data_on_device at auto, without cuda_graph."
            )
    return ResidentWindows(windows, device)
