"""The command line: `dtrl VERB …`. It parses, calls the library and prints; every decision is made below it.

Exit codes: 0 done, 1 some runs of a benchmark failed or another process of a training ended, 2 wrong input (one sentence on stderr), 130 or 143
interrupted after a checkpoint. Starting is fast because a verb's modules (torch, Gymnasium, Minari) are imported when it runs."""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from dtrl.errors import CellsFailedError, InputError, WorkerLostError
from dtrl.files import check_writable
from dtrl.processes import outlive_save_signal, refuse_workers, worker_numbers

RESULTS = ("json", "output", "plot")
"""Flags that name a file to be written when all is done."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence, and -1e3 taken for a number and not for a flag, as Python 3.14 does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")


def make_parser() -> Parser:
    """All verbs with their flags."""
    from dtrl import __version__
    from dtrl.cli import (
        bench,
        benchmark,
        critic,
        datasets,
        demo,
        doctor,
        dream,
        evaluate,
        export,
        finetune,
        tokenizers,
        train,
    )

    parser = Parser(prog="dtrl", description="Decision Transformers: reinforcement learning as sequence modelling.")
    parser.add_argument("--version", action="version", version=f"dtrl {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for module in (
        train,
        finetune,
        evaluate,
        critic,
        doctor,
        dream,
        datasets,
        tokenizers,
        export,
        benchmark,
        bench,
        demo,
    ):
        module.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code. A SIGUSR1 ends none."""
    outlive_save_signal()
    warnings.showwarning = show_warning  # type: ignore[assignment]
    try:
        parsed = make_parser().parse_args(arguments)
        if modules := vars(parsed).get("modules"):
            from dtrl.registration import import_modules

            import_modules(modules)
        for name in RESULTS:
            if (path := vars(parsed).get(name)) is not None:
                check_writable(path)
        if parsed.verb != "train":
            refuse_workers(f"dtrl {parsed.verb}")
        parsed.run(parsed)
        return 0
    except InputError as error:
        print(f"dtrl: {error}", file=sys.stderr)
        return 2
    except (CellsFailedError, WorkerLostError) as error:
        print(f"dtrl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"dtrl: {str(error) or 'interrupted.'}", file=sys.stderr)
        return 128 + int(getattr(error, "number", 2))
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0


def show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning as one line, without the source line that gave it; of several processes the first one gives it."""
    if worker_numbers()[0]:
        return
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
