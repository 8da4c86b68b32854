"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.tokenizers.base import Tokenizer
from dtrl.tokenizers.categories import Categories
from dtrl.tokenizers.continuous import Continuous
from dtrl.tokenizers.image import Image
from dtrl.tokenizers.one_hot import OneHot

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "continuous": Continuous,
    "categories": Categories,
    "one_hot": OneHot,
    "image": Image,
}

__all__ = ["TOKENIZERS", "Categories", "Continuous", "Image", "OneHot", "Tokenizer"]
