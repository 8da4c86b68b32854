"""The one exception that means "the input is wrong, and here is what to do about it"."""


class InputError(ValueError):
    """Input that dtrl cannot work with. Its message is one sentence that names the file, field or value, says what was
    expected, and what to do; the command line prints it and leaves with exit code 2."""


class CellsFailedError(Exception):
    """Some runs of a benchmark failed, and the others' results are written; the command line prints the message and leaves with exit code 1."""


class WorkerLostError(Exception):
    """Another process of a training ended, so that this one cannot go on; the command line prints the message and leaves with exit code 1."""


def did_you_mean(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The words "did you mean x?" for the known name nearest to `name`, or the list of known names: the end of a message."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none is known"
