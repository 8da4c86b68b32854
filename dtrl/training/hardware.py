"""How much of the hardware an update uses: the operations that its model needs, and the rate at which this machine multiplies matrices."""

import copy
import time
from functools import lru_cache

import torch

from dtrl.sequence_model import SequenceModel
from dtrl.windows import Batch

SMALLEST, LARGEST = 256, 8192
"""Sides of the square matrices that are multiplied to measure the machine's rate."""


def update_flops(model: SequenceModel, batch: Batch) -> int:
    """Floating-point operations of the matrix products and convolutions in the forward and backward pass of one batch; a multiplication and an
    addition count as two.

    Counted from the model itself, on torch's meta device, where nothing is computed. Attention counts in full, hidden keys included, as is usual
    [Chowdhery et al. 2022, appendix B, arXiv:2204.02311]; what a recomputation would add does not."""
    from torch.utils.flop_counter import FlopCounterMode

    meta = torch.device("meta")
    shapes = copy.deepcopy(model).to(meta)
    with FlopCounterMode(display=False) as counter:
        shapes.loss(batch.to(meta)).total.backward()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, with the threads and rounding of now: the fastest of those that fit in some 0.2 s.

    Measured once a process."""
    return _matmul_rate(device, dtype, torch.get_num_threads(), torch.get_float32_matmul_precision())


@lru_cache
def _matmul_rate(
    device: torch.device, dtype: torch.dtype, threads: int, products: str, budget_seconds: float = 0.2
) -> float:
    begun, size, fastest = time.perf_counter(), SMALLEST, 0.0
    while fastest == 0 or time.perf_counter() - begun < budget_seconds:
        # not zeros or ones, which a GPU multiplies faster than other numbers: they take less power
        matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
        torch.mm(matrix, matrix)  # a library's first call of a size is not the rate that it keeps
        seconds = [time_of_product(matrix) for _ in range(4)]
        fastest = max(fastest, 2 * size**3 / min(seconds))
        next_size_seconds = 5 * 8 * min(seconds)  # five products, of eight times the work each
        if size < LARGEST and time.perf_counter() - begun + next_size_seconds < budget_seconds:
            size *= 2
    return fastest


def time_of_product(matrix: torch.Tensor) -> float:
    synchronize(matrix.device)
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    synchronize(matrix.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
