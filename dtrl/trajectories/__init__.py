"""Datasets → `Trajectories`: flat columns and episode offsets, in env units. The start of everything else."""

from dtrl.trajectories.columns import Trajectories, returns_to_go
from dtrl.trajectories.describe import Description, describe
from dtrl.trajectories.sources import load_trajectories, local_datasets

__all__ = ["Description", "Trajectories", "describe", "load_trajectories", "local_datasets", "returns_to_go"]
