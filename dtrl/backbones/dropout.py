"""Dropout with random bits: on the CPU four decisions are taken from each 64-bit number, several times faster than torch's one draw an element.

A compiled model draws its own numbers in the loop that uses them."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 65536
"""Rates are multiples of 1 / LEVELS: a decision compares 16 bits."""


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero a share `rate` of x, and scale the rest so that the mean stays."""
    if rate == 0:
        return x
    return x * scaled_mask(x, rate) if by_bits(x) else F.dropout(x, rate)


def add_dropped(x: Tensor, branch: Tensor, rate: float) -> Tensor:
    """x + dropout(branch, rate), the end of a residual branch, in one pass."""
    if rate == 0 or not by_bits(x):
        return x + dropout(branch, rate)
    return torch.addcmul(x, branch, scaled_mask(branch, rate))


def by_bits(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def scaled_mask(x: Tensor, rate: float) -> Tensor:
    """0 for a share `rate` of the entries, and 1 / (1 − rate) for the others, in the shape and dtype of x."""
    dropped = min(round(rate * LEVELS), LEVELS - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    mask = torch.empty(x.shape, dtype=x.dtype)
    # written as numbers at once: turning bool into float costs as much as drawing
    torch.ge(bits.view(torch.int16)[: x.numel()].view(x.shape), dropped - LEVELS // 2, out=mask)
    return mask.mul_(LEVELS / (LEVELS - dropped))
