"""Causal sequence mixers. One file a kind; a new one is a file here, a row in `BACKBONES`, and its tests.

B sequences, L tokens, D width, H heads, C slots of a cache."""

from dtrl.backbones.attention import Transformer
from dtrl.backbones.base import Backbone
from dtrl.backbones.cache import KeyValueState
from dtrl.backbones.pointwise import Pointwise

BACKBONES: dict[str, type[Backbone]] = {"attention": Transformer, "pointwise": Pointwise}

__all__ = ["BACKBONES", "Backbone", "KeyValueState", "Pointwise", "Transformer"]
