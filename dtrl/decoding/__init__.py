"""Distributions → tokens."""

from dtrl.decoding.choice import choose
from dtrl.decoding.masks import mask_actions
from dtrl.decoding.processors import HISTORY_PROCESSORS, PROCESSORS, process

__all__ = ["HISTORY_PROCESSORS", "PROCESSORS", "choose", "mask_actions", "process"]
