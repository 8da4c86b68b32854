"""`dtrl tokenizers report DATASET`."""

import argparse
from pathlib import Path
from typing import Any

from dtrl.cli.arguments import add_file_flags, add_flags, add_json, add_modules, given, load, write_json
from dtrl.config import DataConfig, SourceConfig


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "tokenizers",
        help="measure what tokenizers make of a dataset",
        description="Values as ids: how many tokens a step, how much of the vocabulary, and what is lost.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    report = actions.add_parser(
        "report",
        help="tokens a step, use of the vocabulary, error by dimension",
        description="Fit tokenizers to a dataset without every fifth episode, and measure on these what is lost.",
    )
    report.set_defaults(run=run)
    report.add_argument(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="a Minari id, a dataset's folder, or a file; several count as one",
    )
    report.add_argument(
        "--tokenizer",
        dest="tokenizers",
        nargs="+",
        metavar="NAME",
        help="uniform, quantile, … (default: every one that is for such values)",
    )
    report.add_argument(
        "--field",
        choices=("action", "observation", "reward", "return"),
        default="action",
        help="what is tokenized (default: action)",
    )
    report.add_argument(
        "--bins", type=int, metavar="K", help="ids, of tokenizers that leave the number open (default: their own)"
    )
    report.add_argument(
        "--chunk-length",
        type=int,
        metavar="H",
        help="steps that are tokenized together (default: each tokenizer's own)",
    )
    report.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw errors and frequencies")
    add_modules(report)
    add_json(report)
    add_file_flags(report)
    add_flags(report, DataConfig, "data")


def run(arguments: argparse.Namespace) -> None:
    from dtrl.evaluation.tokens import report_tokens

    trajectories = load(given(arguments, SourceConfig, DataConfig))
    report = report_tokens(trajectories, arguments.field, arguments.tokenizers, arguments.bins, arguments.chunk_length)
    print(report.table())
    write_json(arguments.json, report.to_dict())
    if arguments.plot is not None:
        from dtrl.evaluation.plots import save_figure
        from dtrl.evaluation.token_plots import tokens_figure

        save_figure(tokens_figure(report), arguments.plot)
