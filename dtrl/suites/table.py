"""The tables of a suite's results, as data, and as Markdown. Every number stands with its interval; last and best checkpoint side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrl.evaluation.references import Reference

NAMES = {"iqm": "IQM", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}
"""Aggregates as they are written in a heading."""
BOTH = {"last": "last", "best": "best*"}


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a Markdown document."""
    parts = [f"# {results['suite']}", results["description"], *[f"* {line}" for line in facts(results)]]
    text = "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:]) + "\n"
    for sheet in sheets(results):
        lines = [sheet.head, ["---"] * len(sheet.head), *sheet.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
        text += f"\n## {sheet.title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in sheet.notes)
    return text


def facts(results: Mapping[str, Any]) -> list[str]:
    """How the numbers were made, and what is not among them."""
    seeds = results["seeds"]
    lines = [
        f"{len(seeds)} seeds of training ({', '.join(map(str, seeds))}); a score is the mean return of a run's evaluation, 0 for random actions and "
        f"100 for the expert of the dataset's scale. dtrl {results['dtrl']}.",
        "Brackets hold 95 % intervals by the stratified bootstrap over runs: they are about other seeds on these datasets, and too narrow for few seeds.",
        f"best*: the best of {evaluations(results)} evaluations during training, chosen in the environment, hence optimistic; evaluated anew on the same other "
        "episodes as the last checkpoint. Entries that are not trained here have one policy, which stands in both columns.",
        "The return asked for is a quantile of the returns in the data; nothing was tuned in the environment.",
    ]
    lines += [f"left out: {name}: {why}" for name, why in results["skipped"].items()]
    lines += [f"failed: {name}: {why}" for name, why in results["failed"].items()]
    if waiting := [name for name in results["missing"] if name not in results["failed"]]:
        lines.append(f"not finished: {', '.join(waiting)}")
    return lines


def evaluations(results: Mapping[str, Any]) -> str:
    """How many evaluations the best checkpoints are the best of."""
    counts = sorted({row["best"]["of"] for row in results["cells"] if "best" in row})
    return " or ".join(map(str, counts)) or "no"


def sheets(results: Mapping[str, Any]) -> list[Sheet]:
    """All tables: over all datasets, beside the baseline, and dataset by dataset."""
    return [overall(results), against(results), by_dataset(results)]


def overall(results: Mapping[str, Any]) -> Sheet:
    last, best = (results["checkpoints"][name]["overall"] for name in BOTH)
    metrics, count = results["metrics"], len(results["datasets"])
    head = ["entry", "runs", *(f"{NAMES[m]}, {BOTH[c]}" for m in metrics for c in BOTH)]
    rows = [
        [
            label if row["datasets"] == count else f"{label} ({row['datasets']} of {count} datasets)",
            str(row["runs"]),
            *(interval(side[label][m]) for m in metrics for side in (last, best)),
        ]
        for label, row in last.items()
    ]
    note = "IQM: the mean of the middle half of all runs [Agarwal et al. 2021, arXiv:2108.13264]."
    return Sheet(f"All datasets, normalised ({count})", head, rows, [note] if "iqm" in metrics else [])


def against(results: Mapping[str, Any]) -> Sheet:
    last, best = (results["checkpoints"][name]["against"] for name in BOTH)
    what = {"difference": "difference of means", "probability_of_improvement": "probability of improvement"}
    head = ["entry", "pairs", *(f"{words}, {BOTH[c]}" for words in what.values() for c in BOTH)]
    rows = [
        [
            label,
            str(row["runs"]),
            *(
                interval(side[label][name], decimals=1 if name == "difference" else 2)
                for name in what
                for side in (last, best)
            ),
        ]
        for label, row in last.items()
    ]
    notes = [
        "Pairs have the same dataset, seed and episodes. The probability is that a run of the entry scores higher than one of the baseline on the same dataset."
    ]
    return Sheet(f"Beside {results['baseline']}", head, rows, notes)


def by_dataset(results: Mapping[str, Any]) -> Sheet:
    last, best = (results["checkpoints"][name]["by_dataset"] for name in BOTH)
    head = ["dataset", "updates", "episodes", "asked", "entry", "runs"]
    head += [f"{what}, {BOTH[c]}" for what in ("return", "score") for c in BOTH]
    rows = []
    for dataset in results["datasets"]:
        name, protocol = dataset["dataset"], dataset["protocol"]
        about = [name, f"{protocol['updates']:,}", str(protocol["episodes"]), f"{dataset['target_return']:,.6g}"]
        for label, row in last[name].items():
            cells = [
                interval(side[name][label][w], decimals(dataset, w))
                for w in ("return", "score")
                for side in (last, best)
            ]
            rows.append([*about, label, str(row["runs"]), *cells])
            about = [""] * len(about)
    notes = [
        "Means over the seeds. Updates of a run, episodes of an evaluation, the return asked for; entries that are not trained have no updates.",
        *(
            f"{d['dataset']}: {d['episodes']:,} episodes, sha256 {d['sha256'][:12]}…; {Reference(**d['reference']).text()}; {d['reference']['source']}."
            for d in results["datasets"]
        ),
    ]
    return Sheet("Each dataset", head, rows, notes)


def decimals(dataset: Mapping[str, Any], what: str) -> int:
    """Of a score one; of a return so many that a hundredth of the scale's width can be read."""
    width = abs(dataset["reference"]["expert"] - dataset["reference"]["random"])
    return 1 if what == "score" or 10 <= width < 1_000 else 0 if width >= 1_000 else 3


def interval(values: Sequence[float], decimals: int = 1) -> str:
    """A number with its interval: "71.2 [65.0, 77.1]"."""
    value, low, high = (f"{v:,.{decimals}f}".replace("-", "−") for v in values)
    return f"{value} [{low}, {high}]"
