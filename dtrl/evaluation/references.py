"""Reference returns, between which a return is normalised: 0 is a random policy's mean return, 100 is an expert's.

[Fu et al. 2020, D4RL, §4, arXiv:2004.07219] introduced the scale. The references below belong to the current
versions of the environments and are not D4RL's: a score on one scale cannot be put beside a score on the other."""

import math
from dataclasses import dataclass, replace

from dtrl.errors import InputError

ROUNDING = 0.1
"""Of a standard error: so much a number may have changed by being rounded."""


@dataclass(frozen=True)
class Reference:
    """The two mean returns that make the scale, in the environment's reward units."""

    random: float
    """Mean return of a random policy: normalised score 0."""
    expert: float
    """Mean return of an expert: normalised score 100."""
    source: str
    """How the two were measured, in words."""
    random_error: float | None = None
    """Standard error of `random`, in reward units; None where nobody tells it, as for a dataset's own references."""
    expert_error: float | None = None
    """Standard error of `expert`; 0 where every episode had the same return."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.random) and math.isfinite(self.expert) and self.random != self.expert):
            raise InputError(
                f"reference returns {self.random} (random) and {self.expert} (expert) make no scale; "
                "give two finite numbers that differ."
            )

    def agrees_with(self, random: float, expert: float) -> bool:
        """Whether two other numbers are these, rounded: to a tenth of the standard errors, where these are known."""
        near_random = abs(random - self.random) <= ROUNDING * (self.random_error or 0.0)
        return near_random and abs(expert - self.expert) <= ROUNDING * (self.expert_error or 0.0)

    def text(self) -> str:
        """The scale in words, with standard errors where they are known: 0 is random (17.3 ± 1.6), 100 is expert (3,486 ± 48)."""
        low, high = with_error(self.random, self.random_error), with_error(self.expert, self.expert_error)
        return f"0 is random ({low}), 100 is expert ({high})"


def with_error(mean: float, error: float | None) -> str:
    """A mean and its standard error, if there is one: 3,486 ± 48."""
    if error is None:
        return f"{mean:,.6g}"
    return f"{mean:,.6g} ± {error:,.0f}" if error >= 10 else f"{mean:,.6g} ± {error:.2g}"


_ZOO = "100 episodes: uniform random actions; the Stable-Baselines3 zoo's agent"
_SEEDS = "100 episodes, seeds 0 to 99: uniform random actions; "

REFERENCE_RETURNS: dict[str, Reference] = {
    "CartPole-v1": Reference(20.5, 500.0, _ZOO, 1.0, 0.0),
    "Pendulum-v1": Reference(-1205.0, -145.3, _ZOO, 27.0, 8.8),
    "LunarLander-v3": Reference(-173.4, 242.0, _ZOO, 9.8, 2.7),
    "Hopper-v5": Reference(17.3, 3486.0, _ZOO, 1.6, 48.0),
    "HalfCheetah-v5": Reference(-294.0, 11_999.0, _ZOO, 7.8, 90.0),
    "Walker2d-v5": Reference(1.0, 4447.0, _ZOO, 0.6, 22.0),
    # benchmarks/references.py measures those below again
    "Acrobot-v1": Reference(
        -497.7, -87.2, _SEEDS + "PPO as the recipe acrobot trains it, its last behaviour", 1.6, 4.5
    ),
    # the closed form: right if min(-0.09(p+0.25)^2+0.03, 0.3(p+0.9)^4-0.008) < v < -0.07(p+0.38)^2+0.07, else left
    "MountainCar-v0": Reference(-200.0, -106.9, _SEEDS + "a closed-form policy of position and velocity", 0.0, 2.4),
    "LunarLanderContinuous-v3": Reference(
        -215.4,
        280.3,
        "1,000 episodes of uniform random actions; 100 of the controller that Gymnasium ships, seeds from 0",
        4.2,
        4.9,
    ),
    "MiniGrid-DoorKey-5x5-v0": Reference(
        0.041,
        0.9648,
        "1,000 episodes of uniform random actions; 100 of the shortest way, seeds from 0",
        0.0043,
        0.00065,
    ),
    "dtrl/KeyToDoor-v0": Reference(
        0.031, 1.0, "20,000 episodes of uniform random actions; its demonstrate(), which always succeeds", 0.0012, 0.0
    ),
    # the spread of 2,000 random episodes, 8.0, over the root of 20,000
    "dtrl/Stitch-v0": Reference(
        -47.5,
        9.5,
        "20,000 episodes of uniform random actions; the best ways, 11 and 8 from starts that are equally likely",
        0.056,
        0.0,
    ),
}
"""By environment id. An environment stands here once both of its numbers were measured, and not before."""


def reference_for(env_id: str | None, ref_min: float | None = None, ref_max: float | None = None) -> Reference | None:
    """The scale of an environment: the dataset's own references where it brings both, else the table's, else None.

    Where the two agree but for rounding, the table tells how they were measured. `ref_min` and `ref_max` are Minari's `ref_min_score` and
    `ref_max_score`. A pair that makes no scale (equal, or not finite) counts as not given: a dataset's careless metadata must not stop an
    evaluation."""
    known = REFERENCE_RETURNS.get(env_id) if env_id is not None else None
    if ref_min is not None and ref_max is not None:
        low, high = float(ref_min), float(ref_max)
        if math.isfinite(low) and math.isfinite(high) and low != high:
            if known is not None and known.agrees_with(low, high):
                return replace(known, random=low, expert=high)
            return Reference(low, high, "the dataset's own reference scores")
    return known
