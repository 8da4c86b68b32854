"""Side-by-side runs against other libraries: `dtrl bench NAME [--json FILE]`. Results: benchmarks/RESULTS.md.

Each `run` returns a document with `results`, a row a comparison: `ratio` is the peer's time over dtrl's, both the 10th percentile of times
taken in turns in one process; above 1 dtrl is faster."""

from types import ModuleType

from dtrl.bench import acting, contexts, decoding, loading, memory, processes, recording, rollouts, startup, training

BENCHMARKS: dict[str, ModuleType] = {
    "acting": acting,
    "contexts": contexts,
    "decoding": decoding,
    "rollouts": rollouts,
    "training": training,
    "processes": processes,
    "loading": loading,
    "recording": recording,
    "memory": memory,
    "startup": startup,
}
"""Each has `run`, every parameter of which is a number or a path with a default, and `table`, which shows what `run` returns."""

__all__ = ["BENCHMARKS"]
