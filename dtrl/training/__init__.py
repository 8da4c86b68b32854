"""Trajectories → a trained policy: the loop, its checkpoints and its log."""

from dtrl.training.callbacks import Event
from dtrl.training.online import finetune
from dtrl.training.trainer import train

__all__ = ["Event", "finetune", "train"]
