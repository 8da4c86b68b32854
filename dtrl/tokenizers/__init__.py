"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.tokenizers.base import Fitted, Tokenizer
from dtrl.tokenizers.bins import Quantile, Uniform
from dtrl.tokenizers.categories import Categories
from dtrl.tokenizers.components import Components
from dtrl.tokenizers.continuous import Continuous
from dtrl.tokenizers.image import Image
from dtrl.tokenizers.k_means import KMeans
from dtrl.tokenizers.mu_law import MuLaw
from dtrl.tokenizers.one_hot import OneHot

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "continuous": Continuous,
    "categories": Categories,
    "one_hot": OneHot,
    "image": Image,
    "uniform": Uniform,
    "quantile": Quantile,
    "mu_law": MuLaw,
    "k_means": KMeans,
    "components": Components,
}

__all__ = [
    "TOKENIZERS",
    "Categories",
    "Components",
    "Continuous",
    "Fitted",
    "Image",
    "KMeans",
    "MuLaw",
    "OneHot",
    "Quantile",
    "Tokenizer",
    "Uniform",
]
