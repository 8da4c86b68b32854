"""The one exception that means "the input is wrong, and here is what to do about it"."""

LONGEST = 2_000
"""Characters of a message."""


class InputError(ValueError):
    """Input that dtrl cannot work with. Its message is one sentence that names the file, field or value, says what was
    expected, and what to do; the command line prints it and leaves with exit code 2.

    A message may show what stands in a file. Control characters, which could move the cursor of a terminal, are shown as such, and the middle of a
    message that is longer than a page is left out."""

    def __init__(self, message: object = "") -> None:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
        super().__init__(text)


class CellsFailedError(Exception):
    """Some runs of a benchmark failed, and the others' results are written; the command line prints the message and leaves with exit code 1."""


class WorkerLostError(Exception):
    """Another process of a training ended, so that this one cannot go on; the command line prints the message and leaves with exit code 1."""


def reason_of(error: Exception) -> str:
    """What another library's exception says, for the brackets of a message: its kind and its first words, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def did_you_mean(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The words "did you mean x?" for the known name nearest to `name`, or the list of known names: the end of a message."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none is known"
