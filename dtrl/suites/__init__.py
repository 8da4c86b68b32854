"""Comparing methods: datasets × entries × seeds under one protocol, each run a training run of its own, with tables and intervals.

suite         what a suite is, and reading it from TOML        data         its datasets, made where they are missing
cells         one dataset, entry and seed: its folder          running      training and evaluating it
pool          processes that take cells                        benchmark    all of it, from the checks to the tables
results       scores, aggregates and comparisons               table, figures, page   Markdown, plots, HTML"""

from dtrl.suites.benchmark import run_suite
from dtrl.suites.suite import Suite, list_suites, load_suite

__all__ = ["Suite", "list_suites", "load_suite", "run_suite"]
