"""Distributions → tokens."""

from dtrl.decoding.choice import choose
from dtrl.decoding.masks import mask_actions
from dtrl.decoding.processors import PROCESSORS, process

__all__ = ["PROCESSORS", "choose", "mask_actions", "process"]
