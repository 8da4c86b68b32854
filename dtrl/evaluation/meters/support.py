"""Out of support ("hallucination"): returns, actions and observations such as the data do not hold, on which a model can only guess."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.acting.summary import DataSummary
from dtrl.evaluation.meters.finding import Finding
from dtrl.trajectories import Trajectories

SHARE = 0.05
SHARE_AT_STEP = 0.25
"""At one timestep the data are few and their range narrow, so more steps may lie beyond it before that is told."""
SLACK = 1e-5
"""Share of a range by which rounding may lead beyond it."""
Numbers = npt.NDArray[np.float64]


def asked_along(played: Trajectories, targets: Numbers, data: DataSummary) -> Numbers:
    """(N,) the return-to-go that the policy was told at each step, for the target (E,) of each episode."""
    out = np.empty(played.num_steps)
    for target, begin, end in zip(targets, played.episode_starts, played.episode_ends, strict=True):
        asked = float(target)
        for row in range(begin, end):
            out[row] = asked
            if not data.delayed:
                asked = (asked - float(played.rewards[row])) / data.discount
    return out


def range_by_step(trajectories: Trajectories) -> tuple[Numbers, Numbers]:
    """(T,) least and largest return-to-go at each timestep of the data."""
    steps = np.arange(trajectories.num_steps) - np.repeat(trajectories.episode_starts, trajectories.episode_lengths)
    low, high = (np.full(int(trajectories.episode_lengths.max()), x) for x in (np.inf, -np.inf))
    np.minimum.at(low, steps, trajectories.returns_to_go)
    np.maximum.at(high, steps, trajectories.returns_to_go)
    return low, high


def outside(values: Numbers, low: Any, high: Any) -> npt.NDArray[np.bool_]:
    slack = SLACK * np.maximum(np.asarray(high) - low, np.maximum(np.abs(low), np.abs(high)))
    return np.asarray((values < low - slack) | (values > high + slack))


def outside_columns(played: Trajectories, trajectories: Trajectories, role: str) -> dict[str, npt.NDArray[np.bool_]]:
    """Name of each Box among the observations or actions → (N, n) bool: the numbers of the played steps outside the data's range."""
    out = {}
    for (name, space, ours), (_, _, theirs) in zip(played.parts(role), trajectories.parts(role), strict=True):
        if isinstance(space, spaces.Box):
            flat = theirs.reshape(len(theirs), -1)
            out[name] = outside(ours.reshape(len(ours), -1).astype(np.float64), flat.min(axis=0), flat.max(axis=0))
    return out


def out_of_support(
    played: Trajectories, targets: Numbers, trajectories: Trajectories, data: DataSummary, told: bool = True
) -> list[Finding]:
    """Shares of the played steps at which the policy is told a return (unless `told` is False), acts, or sees what the data do not hold.

    Returns trip above 5 % beyond the whole range of the data, or 25 % beyond the range at the timestep; actions and observations above 5 % of steps with any
    number beyond the data's least and largest."""
    findings = [returns_out_of_support(played, targets, trajectories, data)] if told else []
    for role in ("actions", "observations"):
        columns = outside_columns(played, trajectories, role)
        if columns:
            findings.append(numbers_out_of_support(role, np.concatenate(list(columns.values()), axis=1)))
    return findings


def returns_out_of_support(
    played: Trajectories, targets: Numbers, trajectories: Trajectories, data: DataSummary
) -> Finding:
    asked, (low, high) = asked_along(played, np.asarray(targets, dtype=np.float64), data), range_by_step(trajectories)
    step = np.arange(played.num_steps) - np.repeat(played.episode_starts, played.episode_lengths)
    step = np.minimum(step, len(low) - 1)
    whole, here = outside(asked, low.min(), high.max()), outside(asked, low[step], high[step])
    above = here & (asked > high[step])
    numbers = {"beyond_range": whole.mean(), "beyond_range_at_step": here.mean(), "above_at_step": above.mean()}
    says = (
        f"{whole.mean():.1%} of the steps are told a return-to-go beyond all of the data's ({low.min():,.6g} … {high.max():,.6g}), "
        f"{here.mean():.1%} one beyond those at that timestep ({above.mean():.1%} above)."
    )
    fine = bool(whole.mean() <= SHARE and here.mean() <= SHARE_AT_STEP)
    too_low = above.sum() < (here & ~above).sum()
    advice = "a higher target: it earns more than it was asked for." if too_low else "a lower target, or --clip-return."
    return Finding("returns out of support", fine, says, advice, {name: float(x) for name, x in numbers.items()})


ADVICE = {
    "actions": "a squashed head (--head tanh_gaussian), a lower --temperature, or more data.",
    "observations": "data from where the policy goes (record it), --observation-noise 0.1, or a lower target.",
}


def numbers_out_of_support(role: str, beyond: npt.NDArray[np.bool_]) -> Finding:
    """Of the actions or observations; `beyond` (N, n) says which numbers of each step are outside the data's range."""
    share, by_dimension = float(beyond.any(axis=1).mean()), beyond.mean(axis=0)
    worst = int(by_dimension.argmax())
    where = f" (most often in dimension {worst}: {by_dimension[worst]:.1%})" if share else ""
    numbers = {"share": share, "by_dimension": [float(x) for x in by_dimension]}
    says = f"{share:.1%} of the steps have {role} beyond the least and largest of the data{where}."
    return Finding(f"{role} out of support", share <= SHARE, says, ADVICE[role], numbers)
