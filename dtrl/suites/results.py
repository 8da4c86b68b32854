"""From the finished cells of a suite to what they say: scores by dataset and entry, aggregates with intervals, comparisons with the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import dtrl
from dtrl.acting.environments import environment_id
from dtrl.evaluation.aggregates import (
    AGGREGATES,
    aggregate,
    mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from dtrl.evaluation.report import plain
from dtrl.evaluation.statistics import normalized
from dtrl.suites.cells import Cell, read_cell
from dtrl.suites.data import Prepared
from dtrl.suites.suite import Suite

CHECKPOINTS = ("last", "best")
"""Which of a run's checkpoints: the one at its end, and the one that evaluations during training liked best."""
PROFILE_POINTS = 61
Scores = dict[str, dict[int, float]]
"""Dataset → seed → score of one entry."""


@dataclass(frozen=True)
class Table:
    """The scores of all entries at one kind of checkpoint."""

    returns: dict[str, Scores]
    """Label → mean returns, in reward units."""
    scores: dict[str, Scores]
    """Label → the same, normalised."""


def results_of(
    suite: Suite,
    prepared: Sequence[Prepared],
    cells: Sequence[Cell],
    skipped: Mapping[str, str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The document results.json, of those cells that are finished.

    `skipped`: dataset → why its environment is missing; `failed`: cell → what went wrong."""
    found = [(cell, document) for cell in cells if (document := read_cell(cell.folder)) and document["finished"]]
    tables = {checkpoint: table_of(found, checkpoint) for checkpoint in CHECKPOINTS}
    labels = list(dict.fromkeys(cell.entry.label for cell in cells))
    document = {
        "suite": suite.name,
        "description": suite.description,
        "dtrl": dtrl.__version__,
        "seeds": list(suite.seeds),
        "metrics": list(suite.metrics),
        "baseline": suite.baseline,
        "entries": {entry.label: {"kind": entry.kind, **entry.options} for entry in suite.entries},
        "datasets": [dataset_row(suite, p) for p in prepared],
        "skipped": dict(skipped),
        "failed": dict(failed),
        "missing": [cell.name for cell in cells if cell not in [done for done, _ in found]],
        "cells": [cell_row(cell, document) for cell, document in found],
        "checkpoints": {
            checkpoint: {
                "by_dataset": by_dataset(prepared, labels, table),
                "overall": overall(suite, labels, table),
                "against": against(suite, labels, table),
                "profiles": profiles(labels, table),
            }
            for checkpoint, table in tables.items()
        },
    }
    result = plain(document)
    assert isinstance(result, dict)
    return result


def table_of(found: Sequence[tuple[Cell, Mapping[str, Any]]], checkpoint: str) -> Table:
    """Scores of the finished cells. What has no checkpoints to choose from is the same in both tables."""
    table = Table({}, {})
    for cell, document in found:
        achieved = (document[checkpoint] or document["last"])["report"]["targets"][0]["mean"]
        label, dataset = cell.entry.label, cell.prepared.dataset.name
        score = float(normalized(achieved, cell.prepared.reference))
        table.returns.setdefault(label, {}).setdefault(dataset, {})[cell.seed] = achieved
        table.scores.setdefault(label, {}).setdefault(dataset, {})[cell.seed] = score
    return table


def columns(scores: Scores) -> list[list[float]]:
    """The scores of each dataset, in the order of the seeds."""
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in scores.values()]


def shared(scores: Scores, others: Scores) -> tuple[list[list[float]], list[list[float]]]:
    """Of two entries, the scores on the same datasets and seeds."""
    pairs = [
        [(scores[name][seed], others[name][seed]) for seed in sorted(scores[name].keys() & others[name].keys())]
        for name in scores
        if name in others
    ]
    whole = [pair for pair in pairs if pair]
    return [[x for x, _ in pair] for pair in whole], [[y for _, y in pair] for pair in whole]


def dataset_row(suite: Suite, prepared: Prepared) -> dict[str, Any]:
    protocol = suite.protocol_of(prepared.dataset)
    return {
        "dataset": prepared.dataset.name,
        "sha256": prepared.sha256,
        "episodes": prepared.episodes,
        "env": environment_id(prepared.env),
        "target_return": prepared.target_return,
        "reference": asdict(prepared.reference),
        "protocol": {**asdict(protocol), "eval_every": protocol.evaluated_every},
    }


def cell_row(cell: Cell, document: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": cell.prepared.dataset.name,
        "entry": cell.entry.label,
        "seed": cell.seed,
        "seconds": document["seconds"],
    }
    for checkpoint in CHECKPOINTS:
        if document[checkpoint] is not None:
            [target] = document[checkpoint]["report"]["targets"]
            row[checkpoint] = {name: target[name] for name in ("mean", "ci95", "iqm")}
            row[checkpoint] |= {
                "score": normalized(target["mean"], cell.prepared.reference),
                "update": document[checkpoint]["update"],
                "of": document[checkpoint].get("of"),
            }
    return row


def by_dataset(prepared: Sequence[Prepared], labels: Sequence[str], table: Table) -> dict[str, Any]:
    """Dataset → label → mean return and mean score over the seeds, each with its interval."""
    out: dict[str, dict[str, Any]] = {}
    for p in prepared:
        name = p.dataset.name
        rows = out.setdefault(name, {})
        for label in labels:
            if seeds := table.returns.get(label, {}).get(name):
                found = aggregate([[seeds[s] for s in sorted(seeds)]], mean)
                rows[label] = {
                    "runs": len(seeds),
                    "return": found.to_list(),
                    "score": normalized(found.to_list(), p.reference).tolist(),
                }
    return out


def overall(suite: Suite, labels: Sequence[str], table: Table) -> dict[str, Any]:
    """Label → the suite's metrics of its scores on all datasets."""
    return {
        label: {
            "runs": sum(map(len, columns(table.scores[label]))),
            "datasets": len(table.scores[label]),
            **{m: aggregate(columns(table.scores[label]), AGGREGATES[m]).to_list() for m in suite.metrics},
        }
        for label in labels
        if label in table.scores
    }


def against(suite: Suite, labels: Sequence[str], table: Table) -> dict[str, Any]:
    """Label → how it compares with the baseline on the datasets and seeds that both have."""
    out: dict[str, Any] = {}
    for label in labels:
        if label == suite.baseline or label not in table.scores or suite.baseline not in table.scores:
            continue
        ours, theirs = shared(table.scores[label], table.scores[suite.baseline])
        if ours:
            out[label] = {
                "runs": sum(map(len, ours)),
                "difference": paired_difference(ours, theirs).to_list(),
                "probability_of_improvement": probability_of_improvement(ours, theirs).to_list(),
            }
    return out


def profiles(labels: Sequence[str], table: Table) -> dict[str, Any]:
    """Thresholds over the range of all scores, and for each label the share of runs above them."""
    every = [score for label in table.scores.values() for column in columns(label) for score in column]
    if not every:
        return {"thresholds": [], "entries": {}}
    at = np.linspace(min(0.0, *every), max(100.0, *every), PROFILE_POINTS)
    entries = {}
    for label in labels:
        if label in table.scores:
            profile = performance_profile(columns(table.scores[label]), at)
            entries[label] = {"share": profile.share, "low": profile.low, "high": profile.high}
    return {"thresholds": at, "entries": entries}
