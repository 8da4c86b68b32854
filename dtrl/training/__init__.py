"""Trajectories → a trained policy: the loop, its checkpoints and its log."""

from dtrl.training.trainer import Event, train

__all__ = ["Event", "train"]
