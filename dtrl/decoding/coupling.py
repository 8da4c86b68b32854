"""Speculative sampling of continuous tokens: one Gaussian's sample turned into another's, and left as it is as often as that is possible.

B rows, d entries of a token."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dtrl.decoding.choice import draw


def reflect(
    sample: Tensor,
    draft_mean: Tensor,
    target_mean: Tensor,
    deviation: Tensor,
    generators: Sequence[np.random.Generator],
) -> tuple[Tensor, Tensor]:
    """A sample (B, d) of N(target_mean, σ²), from one of N(draft_mean, σ²), and whether it is the same one (B,): the reflection-maximal coupling
    [as speculative sampling: De Bortoli et al. 2025, arXiv:2501.05370].

    The sample is accepted with probability min(1, p / q); a rejected one is reflected at the plane between the two means, in units of σ, and needs no further
    draw. So a row draws one uniform number, and accepts with probability 2 Φ(−‖(draft_mean − target_mean) / σ‖ / 2), the most that is possible. Both
    Gaussians are diagonal, with the same `deviation` σ (B, d) > 0; squashed ones are coupled before the tanh."""
    offset = (draft_mean - target_mean) / deviation
    noise = (sample - draft_mean) / deviation
    log_ratio = -(noise * offset).sum(dim=-1) - offset.square().sum(dim=-1) / 2  # log p − log q
    uniforms = draw(generators, sample.shape[:1], log_ratio.double(), "random")
    accepted = uniforms < log_ratio.double().exp()
    length = offset.norm(dim=-1, keepdim=True)
    direction = offset / length.clamp(min=torch.finfo(length.dtype).tiny)
    reflected = noise - 2 * (noise * direction).sum(dim=-1, keepdim=True) * direction
    return torch.where(accepted[:, None], sample, target_mean + deviation * reflected), accepted
