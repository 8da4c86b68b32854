"""A suite of two entries, two seeds and four updates, on a dataset that takes a tenth of a second to make."""

from pathlib import Path

import pytest

from dtrl.pool import Done
from dtrl.suites import benchmark, page
from dtrl.suites.suite import read_suite

HERE = Path(__file__).parent


@pytest.fixture
def table():
    """The TOML table of the suite, to be changed."""
    return {
        "name": "tiny",
        "seeds": 2,
        "updates": 4,
        "eval_every": 2,
        "eval_episodes": 2,
        "episodes": 3,
        "options": {"width": 8, "layers": 1, "batch_size": 4, "context_length": 2, "device": "cpu"},
        "dataset": [{"recipe": "../collect/random.toml"}],
        "entry": [{"label": "DT", "preset": "dt"}, {"label": "BC", "preset": "bc"}],
    }


@pytest.fixture
def read():
    """Reads a table as if it stood in a file of this folder."""
    return lambda table: read_suite(table, str(HERE / "tiny.toml"))


@pytest.fixture
def here(monkeypatch):
    """Has tasks run in this process, as a new one takes seconds, and no plots drawn."""

    def run_tasks(tasks, jobs, modules=()):
        for name, task in tasks.items():
            try:
                task()
            except Exception as error:
                yield Done(name, 0.0, str(error), "a trace")
            else:
                yield Done(name, 0.0, None)

    monkeypatch.setattr(benchmark, "run_tasks", run_tasks)
    monkeypatch.setattr(page, "PLOTS", {})
