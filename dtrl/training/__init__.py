"""Trajectories → a trained policy: the loop, its checkpoints and its log."""

from dtrl.training.online import finetune
from dtrl.training.trainer import Event, train

__all__ = ["Event", "finetune", "train"]
