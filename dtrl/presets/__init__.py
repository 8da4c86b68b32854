"""Presets: a method's network from its configuration, and what the data add to that."""

from dtrl.presets.methods import DRAFT, PRESETS, WHOLE_ACTIONS, build
from dtrl.presets.resolution import BINS, RETURN_DEVIATION, columns_for, resolve, training_data, window_length
from dtrl.presets.tokens import fields_of

__all__ = [
    "BINS",
    "DRAFT",
    "PRESETS",
    "RETURN_DEVIATION",
    "WHOLE_ACTIONS",
    "build",
    "columns_for",
    "fields_of",
    "resolve",
    "training_data",
    "window_length",
]
