"""Distributions → tokens."""

from dtrl.decoding.choice import allow, choose
from dtrl.decoding.processors import PROCESSORS, process

__all__ = ["PROCESSORS", "allow", "choose", "process"]
