"""Episodes that training never sees, and how well the model predicts the actions in them. B windows, K steps.

Off-policy: it says whether the model has learnt or memorised, without an environment. It does not say what return it achieves."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.acting import Policy
from dtrl.trajectories import Trajectories
from dtrl.windows import Batch, Windows

MAX_WINDOWS = 256
"""At most so many windows are measured at a log entry: 5,120 actions at K = 20, some 5 % of the work of 50 updates of 64 windows."""


class HeldOut:
    """Windows of held-out episodes, the same at every measurement: the episodes cut end to end, or 256 of those windows, evenly spaced."""

    def __init__(self, policy: Policy, trajectories: Trajectories, length: int, batch_size: int) -> None:
        self.policy = policy
        h = policy.model.block_length
        self.windows = Windows(trajectories, length, batch_size, names=policy.model.sources, block_length=h)
        pairs = zip(trajectories.episode_starts, trajectories.episode_ends, strict=True)
        begins = np.concatenate([np.arange(start, end, h * length) for start, end in pairs])
        if len(begins) > MAX_WINDOWS:
            begins = begins[np.linspace(0, len(begins) - 1, MAX_WINDOWS).round().astype(np.int64)]
        self.starts = [begins[i : i + batch_size] for i in range(0, len(begins), batch_size)]

    def measure(self) -> dict[str, float]:
        """Scalars by tag: `val/loss`; `val/log_likelihood`, of an action given its past, in nats (of a deterministic head, minus the mean squared error in
        token units); and of each part of the action `val/action_rmse` in its own units, or `val/action_accuracy`. Where a block has several steps, an action is
        a chunk of them. Draws no random number."""
        model, sums = self.policy.model, defaultdict[str, float](float)
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            for starts in self.starts:
                self.add(self.windows.gather(starts).to(self.policy.device), sums)
        model.train(was_training)
        out = {"val/loss": sums["loss"] / sums["weight"], "val/log_likelihood": -sums["surprise"] / sums["steps"]}
        for name, leaf in self.policy.acted.items():
            mean = sums[f"wrong {name}"] / sums[f"entries {name}"]
            box = isinstance(leaf.space, spaces.Box)
            out |= {f"val/{name}_rmse": mean**0.5} if box else {f"val/{name}_accuracy": 1 - mean}
        return out

    def add(self, batch: Batch, sums: defaultdict[str, float]) -> None:
        """Add the sums over the steps of a batch."""
        model = self.policy.model
        loss = model.loss(batch)
        decided = dict.fromkeys(name for decision in self.policy.decisions for name in decision.names)
        sums["loss"] += float(loss.total)
        sums["weight"] += float(loss.weight)
        sums["steps"] += float(batch.valid.sum())
        sums["surprise"] += sum(float(loss.by_field[name][0]) for name in decided)
        modes = {name: mode for name, mode in self.modes(batch).items() if name in decided}
        valid = batch.valid.cpu().numpy()
        for name, leaf in self.policy.acted.items():
            ours, theirs = (
                self.policy.to_actions(modes, name)[valid.reshape(-1)],
                batch.values[name].cpu().numpy()[valid],
            )
            gap = self.gap(
                ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1), isinstance(leaf.space, spaces.Box)
            )
            sums[f"wrong {name}"] += float(gap.sum())
            sums[f"entries {name}"] += gap.size

    def modes(self, batch: Batch) -> dict[str, Tensor]:
        """Field → the most probable tokens (B · K, n) or (B · K, n, d), each given the recorded ones before it."""
        return {name: found.mode.flatten(0, 1) for name, found in self.policy.model(batch.cleared()).items()}

    @staticmethod
    def gap(ours: npt.NDArray[np.generic], theirs: npt.NDArray[np.generic], box: bool) -> npt.NDArray[np.float64]:
        if box:
            return np.asarray(np.square(ours.astype(np.float64) - theirs.astype(np.float64)))
        return np.asarray(ours != theirs, dtype=np.float64)


def split_off(trajectories: Trajectories, fraction: float, seed: int) -> tuple[Trajectories, Trajectories]:
    """The episodes to train on and those held out: `fraction` of all, drawn by the seed, at least one; see `Trajectories.split`."""
    held_out, rest = trajectories.split(fraction, seed)
    return rest, held_out
