"""Distributions → tokens."""

from dtrl.decoding.choice import choose
from dtrl.decoding.processors import PROCESSORS, process

__all__ = ["PROCESSORS", "choose", "process"]
