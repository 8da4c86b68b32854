"""Every setting of dtrl, with its default, in one place: frozen dataclasses that the Python API, the command line and TOML files share.

A field's `help` is its documentation; the command line prints it. Nothing here imports torch."""

from dtrl.config.data import DataConfig, SourceConfig, texts
from dtrl.config.decoding import DRAFTS, STRATEGIES, DecodingConfig
from dtrl.config.model import ModelConfig
from dtrl.config.options import plain_type, split_options
from dtrl.config.training import ONLINE_TRAINING, CriticConfig, OnlineConfig, TrainingConfig

__all__ = [
    "DRAFTS",
    "ONLINE_TRAINING",
    "STRATEGIES",
    "CriticConfig",
    "DataConfig",
    "DecodingConfig",
    "ModelConfig",
    "OnlineConfig",
    "SourceConfig",
    "TrainingConfig",
    "plain_type",
    "split_options",
    "texts",
]
