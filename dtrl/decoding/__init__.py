"""Distributions → tokens: one of each (`choose`), or sequences of them from a stream (`generate`)."""

from dtrl.decoding.beam import Beams, beam_search
from dtrl.decoding.choice import choose
from dtrl.decoding.contrastive import contrast, guide, paired
from dtrl.decoding.coupling import reflect
from dtrl.decoding.drafts import Draft, FactorisedDraft, NgramDraft, StreamDraft
from dtrl.decoding.generate import STRATEGIES, Generated, generate, tokens
from dtrl.decoding.masks import mask_actions
from dtrl.decoding.processors import HISTORY_PROCESSORS, PROCESSORS, process
from dtrl.decoding.progress import Speculation, Stop
from dtrl.decoding.speculative import speed_up
from dtrl.decoding.stream import PairedStream, RecomputedStream, TokenStream

__all__ = [
    "HISTORY_PROCESSORS",
    "PROCESSORS",
    "STRATEGIES",
    "Beams",
    "Draft",
    "FactorisedDraft",
    "Generated",
    "NgramDraft",
    "PairedStream",
    "RecomputedStream",
    "Speculation",
    "Stop",
    "StreamDraft",
    "TokenStream",
    "beam_search",
    "choose",
    "contrast",
    "generate",
    "guide",
    "mask_actions",
    "paired",
    "process",
    "reflect",
    "speed_up",
    "tokens",
]
