"""Reference returns, between which a return is normalised: 0 is a random policy's mean return, 100 is an expert's.

[Fu et al. 2020, D4RL, §4, arXiv:2004.07219] introduced the scale. The references below belong to the current
versions of the environments and are not D4RL's: a score on one scale cannot be put beside a score on the other."""

import math
from dataclasses import dataclass

from dtrl.errors import InputError


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

REFERENCE_RETURNS: dict[str, Reference] = {
    "CartPole-v1": Reference(random=20.5, expert=500.0, source=_ZOO),
    "Pendulum-v1": Reference(random=-1205.0, expert=-145.3, source=_ZOO),
    "LunarLander-v3": Reference(random=-173.4, expert=242.0, source=_ZOO),
    "Hopper-v5": Reference(random=17.3, expert=3486.0, source=_ZOO),
    "HalfCheetah-v5": Reference(random=-294.0, expert=11_999.0, source=_ZOO),
    "Walker2d-v5": Reference(random=1.0, expert=4447.0, source=_ZOO),
    "Acrobot-v1": Reference(
        random=-496.8,
        expert=-81.4,
        source="100 episodes, seeds 0 to 99: uniform random actions; Stable-Baselines3's PPO after 409,600 steps, deterministic",
    ),
    # the closed form: right if min(-0.09(p+0.25)^2+0.03, 0.3(p+0.9)^4-0.008) < v < -0.07(p+0.38)^2+0.07, else left
    "MountainCar-v0": Reference(
        random=-200.0,
        expert=-106.9,
        source="100 episodes, seeds 0 to 99: uniform random actions; a closed-form policy of position and velocity",
    ),
}
"""By environment id. An environment stands here once both of its numbers were measured, and not before."""


def reference_for(env_id: str | None, ref_min: float | None = None, ref_max: float | None = None) -> Reference | None:
    """The scale of an environment: the dataset's own references where it brings both, else the table's, else None.

    Where the two agree it is the table's, which knows how they were measured. `ref_min` and `ref_max` are Minari's `ref_min_score` and
    `ref_max_score`. A pair that makes no scale (equal, or not finite) counts as not given: a dataset's careless metadata must not stop an
    evaluation."""
    known = REFERENCE_RETURNS.get(env_id) if env_id is not None else None
    if ref_min is not None and ref_max is not None:
        low, high = float(ref_min), float(ref_max)
        agrees = known is not None and (low, high) == (known.random, known.expert)
        if math.isfinite(low) and math.isfinite(high) and low != high and not agrees:
            return Reference(low, high, "the dataset's own reference scores")
    return known
