"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.tokenizers.base import Tokenizer
from dtrl.tokenizers.byte_pairs import BytePairs
from dtrl.tokenizers.categories import Categories
from dtrl.tokenizers.continuous import Continuous
from dtrl.tokenizers.finite_scalar import FiniteScalar
from dtrl.tokenizers.frequency import Frequency
from dtrl.tokenizers.image import Image
from dtrl.tokenizers.image_codes import ImageCodes
from dtrl.tokenizers.one_hot import OneHot
from dtrl.tokenizers.sequential import Sequential
from dtrl.tokenizers.vector_quantization import VectorQuantization

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "continuous": Continuous,
    "categories": Categories,
    "one_hot": OneHot,
    "image": Image,
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
    "Continuous",
    "FiniteScalar",
    "Frequency",
    "Image",
    "ImageCodes",
    "OneHot",
    "Sequential",
    "Tokenizer",
    "VectorQuantization",
]
