"""Values in env units ↔ tokens. One file a kind; a new one is a file here, a row in `TOKENIZERS`, and its tests."""

from dtrl.spaces import Space
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
from dtrl.tokenizers.steps import Steps
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
    "Steps",
    "Tokenizer",
    "Uniform",
    "VectorQuantization",
    "numbers_of",
    "tokenizer_of_chunks",
]


def tokenizer_of_chunks(kind: str, space: Space, size: int | None, block_length: int) -> Tokenizer | None:
    """One of the table for chunks of so many steps of a simple space: seen as a whole where it can, else step by step. None where it is not for the space.

    `size` is the number of ids, where that can be chosen."""
    whole = TOKENIZERS[kind].for_chunks(space, size, block_length)
    if whole is not None:
        return whole
    one = TOKENIZERS[kind].for_space(space, size)
    return one if one is None or block_length == 1 else Steps(one, block_length)
