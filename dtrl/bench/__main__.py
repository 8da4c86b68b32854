"""`python -m dtrl.bench NAME`: every parameter of the benchmark's `run` is a flag."""

import argparse
import inspect
import json
import sys
from pathlib import Path

from dtrl.bench import BENCHMARKS, table
from dtrl.errors import InputError
from dtrl.files import write_atomically


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dtrl.bench", description="Compare dtrl with other libraries, on an otherwise idle machine."
    )
    verbs = parser.add_subparsers(dest="name", required=True)
    for name, run in BENCHMARKS.items():
        verb = verbs.add_parser(
            name,
            help=(sys.modules[run.__module__].__doc__ or "").splitlines()[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for parameter in inspect.signature(run).parameters.values():
            verb.add_argument(
                f"--{parameter.name.replace('_', '-')}", type=int, default=parameter.default, help="a number"
            )
        verb.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    options = vars(parser.parse_args())
    name, path = options.pop("name"), options.pop("json")
    try:
        results = BENCHMARKS[name](**options)
        if path is not None:
            write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
