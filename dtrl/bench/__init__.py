"""Side-by-side runs against other libraries: `python -m dtrl.bench acting|training|loading [--json FILE]`. Results: benchmarks/RESULTS.md.

Each `run` returns a document with `results`, a row a comparison: `ratio` is the peer's time over dtrl's, both the 10th percentile of times
taken in turns in one process; above 1 dtrl is faster."""

from collections.abc import Callable
from typing import Any

from dtrl.bench import acting, loading, training
from dtrl.bench.timing import table

BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "acting": acting.run,
    "training": training.run,
    "loading": loading.run,
}
"""Every parameter of every `run` is a number with a default."""

__all__ = ["BENCHMARKS", "table"]
