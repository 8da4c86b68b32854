"""What an action follows: windows of recorded episodes, of which one thing is exchanged, and how far the action then moves. P windows.

What is exchanged comes from another episode at the same timestep, so each part of a window stays one that the data hold."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.acting import Policy
from dtrl.evaluation.meters.finding import WITHOUT_ACTIONS, ActionScale, Array, Finding, actions_at
from dtrl.evaluation.statistics import mean_ci95
from dtrl.presets import window_length
from dtrl.trajectories import Trajectories
from dtrl.windows import Batch, Windows

PROBES = 256
DEAF = 0.05
"""An action that moves by less than this share of the actions' spread when only the return changes does not follow the return."""


class Probes:
    """Windows that end at random steps with a past, and for each one that ends at the same timestep of another episode."""

    def __init__(self, policy: Policy, trajectories: Trajectories, count: int = PROBES, seed: int = 0) -> None:
        self.policy, self.scale = policy, ActionScale(trajectories)
        random, lengths = np.random.default_rng(seed), trajectories.episode_lengths
        rows, partners, steps = [], [], []
        second = int(np.sort(lengths)[-2]) if len(lengths) > 1 else 0
        open_to = np.minimum(lengths, second) - 1  # steps 1 … of which another episode has the same
        weights = np.maximum(open_to, 0)
        drawn = (
            random.choice(len(lengths), size=count, p=weights / weights.sum()) if weights.sum() else np.zeros(0, int)
        )
        for episode in drawn:
            step = int(random.integers(1, open_to[episode] + 1))
            others = np.flatnonzero(lengths > step)
            other = random.choice(others[others != episode])
            rows.append(trajectories.episode_starts[episode] + step)
            partners.append(trajectories.episode_starts[other] + step)
            steps.append(step)
        self.rows, self.partners = np.array(rows, dtype=np.int64), np.array(partners, dtype=np.int64)
        if not len(rows):
            return
        length, h = window_length(policy.config), policy.block_length
        windows = Windows(trajectories, length, 1, names=policy.model.sources, block_length=h)
        self.last = np.minimum(np.array(steps) // h, length - 1)
        self.batch, self.other = (windows.gather(at - h * self.last) for at in (self.rows, self.partners))
        self.recorded = actions_at(trajectories, self.rows)
        self.before = self.actions(self.batch)

    def actions(self, batch: Batch) -> dict[str, Array]:
        """Path → the model's most probable actions (P, …) at the last step of each window, in env units; of a chunk the first."""
        policy, row = self.policy, torch.arange(len(self.rows))
        names = dict.fromkeys(name for decision in policy.decisions for name in decision.names)
        with torch.inference_mode():
            distributions = policy.model(batch.cleared().to(policy.device))
            tokens = {name: distributions[name].mode[row, torch.from_numpy(self.last)] for name in names}
            actions = {leaf.path: policy.to_actions(tokens, name) for name, leaf in policy.acted.items()}
            return actions if policy.block_length == 1 else {path: chunks[:, 0] for path, chunks in actions.items()}

    def moved(self, change: Callable[[str, Tensor, Tensor], Tensor]) -> npt.NDArray[np.float64]:
        """(P,) how far the action moves when each column becomes `change(name, own, other)`."""
        values = {name: change(name, own, self.other.values[name]) for name, own in self.batch.values.items()}
        return self.scale.distance(self.before, self.actions(Batch(values, self.batch.timesteps, self.batch.valid)))

    def where(self, mask: Tensor, own: Tensor, other: Tensor) -> Tensor:
        return torch.where(mask.view(*mask.shape, *[1] * (own.dim() - 2)), other, own)

    def swap_history(self) -> npt.NDArray[np.float64]:
        """(P,) how far the action moves when all actions before it are another episode's."""
        past = torch.arange(self.batch.valid.shape[1]) < torch.from_numpy(self.last)[:, None]
        return self.moved(lambda name, own, other: self.where(past, own, other) if name in self.policy.acted else own)

    def swap_observation(self) -> npt.NDArray[np.float64]:
        """(P,) how far it moves when the last observation is another episode's."""
        now = torch.arange(self.batch.valid.shape[1]) == torch.from_numpy(self.last)[:, None]
        return self.moved(lambda name, own, other: self.where(now, own, other) if name in self.policy.observed else own)

    def swap_return(self) -> npt.NDArray[np.float64]:
        """(P,) how far it moves when the return-to-go is another episode's: all return tokens of the window are shifted by one number."""
        row, last = torch.arange(len(self.rows)), torch.from_numpy(self.last)

        def shifted(name: str, own: Tensor, other: Tensor) -> Tensor:
            return own + (other[row, last] - own[row, last])[:, None] if name == "return" else own

        return self.moved(shifted)


def sees(policy: Policy, source: str) -> bool:
    """Whether a column, or a part of it, is in the model's context."""
    return any(f.in_context and not f.hidden and f.source.split("/")[0] == source for f in policy.model.fields)


def history_swap(policy: Policy, probes: Probes) -> Finding:
    """Does the action follow the actions before it rather than what is observed? [de Haan et al. 2019, arXiv:1905.11979; Wen et al. 2020,
    arXiv:2010.14876]

    Trips where the action moves more for another history of actions than for another observation: the lower end of the 95 % interval of the difference
    is above 0, which a policy that follows both alike does in 2.5 % of cases."""
    meter = "action history"
    if not sees(policy, "action"):
        return Finding(meter, True, f"preset {policy.config.preset} does not see past actions, so it cannot copy them.")
    if not len(probes.rows):
        return Finding(meter, None, "needs two episodes of two steps or more.")
    history, observation = probes.swap_history(), probes.swap_observation()
    difference, (low, high) = mean_ci95(history - observation)
    numbers = {
        "history": float(history.mean()),
        "observation": float(observation.mean()),
        "difference": difference,
        "difference_ci95": [low, high],
    }
    says = (
        f"with the past actions of another episode the action moves by {history.mean():.3g}, with its last observation by {observation.mean():.3g} "
        f"(difference {difference:.3g} [{low:.3g}, {high:.3g}]; two random actions differ by {probes.scale.spread:.3g})."
    )
    advice = f"{WITHOUT_ACTIONS}, a shorter --context-length, or --scheduled-sampling 0.5, unless the task is to go on with what was begun."
    return Finding(meter, not low > 0, says, advice, numbers)


def target_sensitivity(policy: Policy, probes: Probes) -> Finding:
    """Does the action move when only the return changes? In shares of the spread of the data's actions; trips where the whole 95 % interval is below 0.05."""
    meter = "sensitivity to the target"
    if not sees(policy, "return"):
        says = f"preset {policy.config.preset} is told no return, so it acts the same whatever is asked for."
        return Finding(meter, False, says, "preset dt, if the return is to be chosen.", {"share": 0.0})
    if not len(probes.rows) or not probes.scale.spread > 0:
        return Finding(meter, None, "needs two episodes of two steps or more, and actions that differ.")
    mean, (low, high) = mean_ci95(probes.swap_return() / probes.scale.spread)
    says = f"with the return-to-go of another episode the action moves by {mean:.3g} [{low:.3g}, {high:.3g}] of the distance of two random actions."
    advice = "more updates, a smaller --return-scale, or data of more mixed quality; `dtrl evaluate RUN --sweep` shows what it does to the returns."
    return Finding(meter, not high < DEAF, says, advice, {"share": mean, "share_ci95": [low, high]})
