"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.tokenizers.base import Tokenizer
from dtrl.tokenizers.categories import Categories
from dtrl.tokenizers.continuous import Continuous

TOKENIZERS: dict[str, type[Tokenizer]] = {"continuous": Continuous, "categories": Categories}

__all__ = ["TOKENIZERS", "Categories", "Continuous", "Tokenizer"]
