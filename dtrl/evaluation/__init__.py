"""Honest numbers: evaluation at several target returns, intervals, reports and plots."""

from dtrl.evaluation.protocol import evaluate, play, sweep
from dtrl.evaluation.references import REFERENCE_RETURNS, Reference, reference_for
from dtrl.evaluation.report import Report, TargetResult

__all__ = ["REFERENCE_RETURNS", "Reference", "Report", "TargetResult", "evaluate", "play", "reference_for", "sweep"]
