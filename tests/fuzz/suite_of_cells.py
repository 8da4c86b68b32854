"""A suite of one dataset, two entries and two seeds, whose cells are in a folder: for reading what a benchmark has left."""

from pathlib import Path

from dtrl.evaluation.references import Reference
from dtrl.evaluation.report import Report
from dtrl.suites.cells import Cell, cells_of, write_cell
from dtrl.suites.data import Prepared
from dtrl.suites.suite import Suite, read_suite

TABLE = {
    "name": "tiny", "seeds": 2, "updates": 4, "episodes": 2, "dataset": [{"id": "tests/cartpole-v0"}],
    "entry": [{"label": "DT", "preset": "dt"}, {"label": "BC", "preset": "bc"}],
}  # fmt: skip


def suite_and_data() -> tuple[Suite, Prepared]:
    suite = read_suite(TABLE, "tiny.toml")
    scale = Reference(20.0, 500.0, "a test")
    return suite, Prepared(suite.datasets[0], "nowhere", "CartPole-v1", {}, "0" * 64, 5, 100.0, scale)


def cells_in(folder: Path) -> list[Cell]:
    suite, prepared = suite_and_data()
    return list(cells_of(suite, prepared, folder))


def finished_cell(cell: Cell, report: Report) -> None:
    """Write what a finished cell writes."""
    found = {"update": 4, "report": report.to_dict()}
    finished = {
        "last": found,
        "best": found | {"of": 2},
        "parameters": 10,
        "parameters_sha256": "0" * 64,
        "seconds": 1.5,
    }
    write_cell(cell, finished)
