"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.tokenizers.base import Fitted, Tokenizer, numbers_of
from dtrl.tokenizers.bins import Quantile, Uniform
from dtrl.tokenizers.byte_pairs import BytePairs
from dtrl.tokenizers.categories import Categories
from dtrl.tokenizers.components import Components
from dtrl.tokenizers.continuous import Continuous
from dtrl.tokenizers.finite_scalar import FiniteScalar
from dtrl.tokenizers.frequency import Frequency
from dtrl.tokenizers.image import Image
from dtrl.tokenizers.image_codes import ImageCodes
from dtrl.tokenizers.k_means import KMeans
from dtrl.tokenizers.mu_law import MuLaw
from dtrl.tokenizers.offset import Offset
from dtrl.tokenizers.one_hot import OneHot
from dtrl.tokenizers.sequential import Sequential
from dtrl.tokenizers.vector_quantization import VectorQuantization

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
    "byte_pairs": BytePairs,
    "finite_scalar": FiniteScalar,
    "frequency": Frequency,
    "image_codes": ImageCodes,
    "sequential": Sequential,
    "vector_quantization": VectorQuantization,
}

__all__ = [
    "TOKENIZERS",
    "BytePairs",
    "Categories",
    "Components",
    "Continuous",
    "FiniteScalar",
    "Fitted",
    "Frequency",
    "Image",
    "ImageCodes",
    "KMeans",
    "MuLaw",
    "Offset",
    "OneHot",
    "Quantile",
    "Sequential",
    "Tokenizer",
    "Uniform",
    "VectorQuantization",
    "numbers_of",
]
