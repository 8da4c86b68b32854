"""Other libraries' models as dtrl's own. One file a library."""

from dtrl.interop.huggingface import from_transformers

__all__ = ["from_transformers"]
