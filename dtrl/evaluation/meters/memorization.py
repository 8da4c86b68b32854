"""Memorisation: a model that knows the episodes it was trained on by heart, and errs more on others. E episodes."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dtrl.acting import Policy
from dtrl.evaluation.meters.exposure import EPISODES, STEPS, drawn, errors_along
from dtrl.evaluation.meters.finding import RESAMPLES, ActionScale, Finding
from dtrl.trajectories import Trajectories

METER = "memorisation"
SHARE = 0.1
"""An error that is a tenth smaller on episodes of its training than on others is a gap."""
LATE = 0.75
"""A held-out loss that was lowest in the last quarter of the training has not risen yet: more updates may still help."""
Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def memorization(
    policy: Policy,
    learnt: Trajectories,
    held_out: Trajectories,
    losses: Mapping[int, float],
    episodes: int = EPISODES,
    steps: int = STEPS,
    seed: int = 0,
) -> Finding:
    """How much smaller the action error on recorded pasts is on episodes that the model was trained on than on those held out.

    `losses` are the held-out ones by update, as they were logged. Trips where the lower end of the 95 % interval of the share, over episodes of both kinds, is
    above 0.1, and the held-out loss was lowest before the last quarter of the training: a gap alone does no harm while that loss still falls."""
    if policy.block_length > 1:
        return Finding(METER, None, "a policy that decides chunks of actions is not measured step by step.")
    if held_out.num_episodes < 2:
        return Finding(METER, None, "only one episode was held out, and that may be an odd one; hold out more.")
    scale = ActionScale(learnt)
    own, other = (errors_of(policy, drawn(some, episodes, seed), scale, steps) for some in (learnt, held_out))
    share, interval = smaller(own, other)
    means = {"learnt": float(own[0].sum() / own[1].sum()), "held_out": float(other[0].sum() / other[1].sum())}
    says = (
        f"action error {means['learnt']:.3g} on episodes of its training, {means['held_out']:.3g} on {held_out.num_episodes} that were held out: "
        f"smaller by {share:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"
    )
    numbers = {**means, "share": share, "share_ci95": list(interval)}
    risen = True
    if losses:
        lowest, last = lowest_at(losses), max(losses)
        risen = lowest <= LATE * last
        numbers |= {"lowest_at": lowest, "updates": last}
        says += f"; the loss on the latter was lowest after {lowest:,} of {last:,} updates"
    advice = "fewer --updates (compare returns: they may grow for a while after that loss has turned), a higher --dropout, a smaller --width, or more data."
    return Finding(METER, not (interval[0] > SHARE and risen), f"{says}.", advice, numbers)


def errors_of(policy: Policy, episodes: Trajectories, scale: ActionScale, steps: int) -> Sums:
    """(E,) summed error of each episode on its recorded past, and (E,) the number of steps."""
    errors = errors_along(policy, episodes, scale, steps, own=False)
    return np.nansum(errors, axis=0), np.isfinite(errors).sum(axis=0).astype(np.float64)


def smaller(own: Sums, other: Sums, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """1 − mean error of the one kind / that of the other, and its 95 % percentile interval from resamples of the episodes of each kind; 0 where the other
    has no error."""

    def mean(sums: Sums, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(sums[0][rows].sum(axis=-1) / sums[1][rows].sum(axis=-1))

    def share(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(two > 0, 1 - one / np.where(two > 0, two, 1.0), 0.0)

    random = np.random.default_rng(seed)
    resampled = [mean(x, random.integers(len(x[0]), size=(RESAMPLES, len(x[0])))) for x in (own, other)]
    value = share(*(mean(x, np.arange(len(x[0]))) for x in (own, other)))
    low, high = np.quantile(share(*resampled), [0.025, 0.975])
    return float(value), (float(low), float(high))


def lowest_at(losses: Mapping[int, float]) -> int:
    """The update around which the loss was lowest, in the mean of a twentieth of the entries: a single one may be low by chance."""
    updates = sorted(losses)
    width = max(1, len(updates) // 20)
    means = np.convolve([losses[update] for update in updates], np.full(width, 1 / width), mode="valid")
    return updates[int(means.argmin()) + (width - 1) // 2]
