"""Repetition: a policy that does again what it has just done, more often than the data."""

import numpy as np
import numpy.typing as npt

from dtrl.evaluation.meters.finding import RESAMPLES, WITHOUT_ACTIONS, ActionScale, Finding, actions_at
from dtrl.trajectories import Trajectories

NEARLY = 0.05
"""Standard deviations of the data's actions by which each number of a repeated action may differ."""
BEST = 0.25
"""The policy is asked for a high return, so it is compared with this share of the data's episodes, the best."""
MORE = 0.1
MAX_EPISODES = 200


def repeats_by_episode(trajectories: Trajectories, scale: ActionScale) -> npt.NDArray[np.float64]:
    """(E, 2): how often an action of each episode repeats the one before it, and how often it could have."""
    rows = np.setdiff1d(np.arange(trajectories.num_steps), trajectories.episode_starts)
    gaps = scale.gaps(actions_at(trajectories, rows), actions_at(trajectories, rows - 1))
    same = np.logical_and.reduce([(gap <= (0 if choice else NEARLY**2)).all(axis=1) for gap, choice in gaps])
    episode = np.searchsorted(trajectories.episode_starts, rows, side="right") - 1
    repeated = np.bincount(episode, same, minlength=trajectories.num_episodes)
    return np.stack([repeated, trajectories.episode_lengths - 1], axis=1).astype(np.float64)


def repeat_lift(played: Trajectories, trajectories: Trajectories, seed: int = 0) -> Finding:
    """How much more often an action repeats the one before it in the policy's episodes than in the best quarter of the data's.

    A repeat is the same choice, or a vector each of whose numbers is within 0.05 standard deviations. The 95 % intervals are percentiles over resampled
    episodes of both. Trips where the lower end of the difference of the two shares is above 0.1."""
    meter, scale, random = "repetition", ActionScale(trajectories), np.random.default_rng(seed)
    best = trajectories.best(BEST)
    if best.num_episodes > MAX_EPISODES:
        best = best.select(np.sort(random.permutation(best.num_episodes)[:MAX_EPISODES]))
    counts = [repeats_by_episode(t, scale) for t in (played, best)]
    if not all(c[:, 1].sum() > 0 for c in counts):
        return Finding(meter, None, "needs episodes of two steps or more.")
    ours, theirs = (float(c[:, 0].sum() / c[:, 1].sum()) for c in counts)
    shares = []
    for c in counts:
        drawn = c[random.integers(len(c), size=(RESAMPLES, len(c)))].sum(axis=1)
        shares.append(drawn[:, 0] / np.maximum(drawn[:, 1], 1))
    low, high = np.quantile(shares[0] - shares[1], [0.025, 0.975])
    lift = ours / theirs if theirs > 0 else None
    ends = [float(q) for q in np.quantile(shares[0] / shares[1], [0.025, 0.975])] if (shares[1] > 0).all() else None
    numbers = {
        "policy": ours,
        "data": theirs,
        "lift": lift,
        "lift_ci95": ends,
        "difference_ci95": [float(low), float(high)],
    }
    times = (
        ""
        if lift is None
        else f", {lift:.2f} times as often" + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")
    )
    says = f"{ours:.1%} of its actions repeat the one before, {theirs:.1%} in the best quarter of the data{times}."
    advice = (
        f"--strategy sample; in training {WITHOUT_ACTIONS}, --scheduled-sampling 0.5 or a shorter --context-length."
    )
    return Finding(meter, not low > MORE, says, advice, numbers)
