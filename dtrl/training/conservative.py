"""Conservative conditioning: whoever asks for more than the data hold gets what their best episodes did. B windows, K steps.

The regulariser of ConserWeightive Behavioural Cloning [Nguyen et al. 2022, arXiv:2210.05158]. Its weighting of trajectories is not here; `sampling`
return is a weighting by rank."""

import numpy as np
import torch

from dtrl.acting import Policy
from dtrl.errors import InputError
from dtrl.trajectories import Trajectories
from dtrl.windows import EPISODE_RETURN, Batch

TOP_QUANTILE = 0.95
"""Episodes that return at least this quantile of the data's are the best, as in the paper."""


class Conservative:
    """From a batch, the windows of the best episodes with their returns-to-go raised beyond the data's maximum.

    One number is added to all returns-to-go of a window: what the episode lacks to the maximum, and up to `width` more, drawn evenly from torch's generator.
    `width` is the maximum less the 10 % quantile, or less 0 where that is lower: for Hopper's returns about the paper's √12 · 1000."""

    def __init__(self, policy: Policy, trajectories: Trajectories) -> None:
        if "return" not in policy.model.sources:
            raise InputError(
                f"conservative raises the return that the model is told, and preset {policy.config.preset} is told none; leave it out."
            )
        returns = trajectories.episode_returns
        # the least of them itself, so that rounding the column to float32 leaves none of them out
        best = returns[returns >= np.quantile(returns, TOP_QUANTILE)]
        self.threshold, self.highest = float(np.float32(best.min())), float(np.float32(returns.max()))
        self.width = self.highest - min(float(np.quantile(returns, 0.1)), 0.0)

    def __call__(self, batch: Batch, seen: Batch) -> tuple[Batch, Batch]:
        """The windows, valid only where they are of the best episodes, and `seen` with the raised returns-to-go."""
        whole = batch.values[EPISODE_RETURN][:, :1]  # a window's first step is never padding
        valid = batch.valid & (whole >= self.threshold)
        raised = self.highest - whole + self.width * torch.rand_like(whole)
        values = {**seen.values, "return": seen.values["return"] + raised}
        return Batch(batch.values, batch.timesteps, valid), Batch(values, batch.timesteps, batch.valid)
