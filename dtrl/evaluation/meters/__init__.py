"""Meters of the ways in which a policy that predicts actions from a sequence goes wrong: each measures one of them, and says in words what it found."""

from dtrl.evaluation.meters.exposure import exposure_bias, state_drift
from dtrl.evaluation.meters.finding import ActionScale, Finding
from dtrl.evaluation.meters.memorization import memorization
from dtrl.evaluation.meters.repetition import repeat_lift
from dtrl.evaluation.meters.support import out_of_support
from dtrl.evaluation.meters.swaps import history_swap, target_sensitivity

__all__ = [
    "ActionScale",
    "Finding",
    "exposure_bias",
    "history_swap",
    "memorization",
    "out_of_support",
    "repeat_lift",
    "state_drift",
    "target_sensitivity",
]
