"""A suite from its beginning to its tables: check everything, make what is missing, run what is not finished, report what is there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dtrl.acting import load_policy
from dtrl.acting.critic import Critic
from dtrl.acting.environments import make_environment, seen_part
from dtrl.acting.rollouts import check_actions
from dtrl.collect import load_recipe
from dtrl.collect.environments import check_environment
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.files import write_atomically
from dtrl.pool import Done, run_tasks
from dtrl.presets import resolve, training_data
from dtrl.suites.cells import Cell, cells_of, is_finished
from dtrl.suites.data import Prepared, Source, data_options, find, make, prepare
from dtrl.suites.results import results_of
from dtrl.suites.running import RunCell, chosen
from dtrl.suites.suite import Suite, paths_in, read_seeds
from dtrl.training.optimization import check_device, choose_device
from dtrl.trajectories import load_trajectories

RESULTS_FILE, MARKDOWN_FILE, HTML_FILE = "results.json", "results.md", "results.html"
Say = Callable[[str], object]


@dataclass
class Benchmark:
    """A suite whose data are there and whose cells are known."""

    suite: Suite
    logdir: Path
    prepared: list[Prepared]
    cells: list[Cell]
    skipped: dict[str, str]
    """Dataset → why it is left out."""
    todo: list[Cell]
    """Cells that are not finished."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cell → what went wrong."""


def run_suite(
    suite: Suite,
    logdir: str | Path,
    *,
    jobs: int = 1,
    allow_missing: bool = False,
    modules: Sequence[str] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run what is not finished of a suite, with so many processes, and write LOGDIR/results.json, results.md, results.html and plots; returns the results.

    Cells that are finished under LOGDIR are kept, and half-trained ones go on. A cell that fails, or whose process dies, leaves the others alone; it stands
    under "failed" in the results, and the next run tries it again. `say` is told a line for each step.

    Raises InputError before anything runs for an unknown dataset, one whose environment is not installed (unless `allow_missing`, which leaves it out),
    settings that do not go with the data, data of another kind than their environment, a device that this machine lacks, and cells that were begun with
    other settings."""
    benchmark = prepare_suite(suite, Path(logdir), jobs, allow_missing, modules, say)
    run_cells(benchmark, jobs, modules, say)
    return write_results(benchmark)


def prepare_suite(
    suite: Suite, logdir: Path, jobs: int, allow_missing: bool, modules: Sequence[str] = (), say: Say = print
) -> Benchmark:
    """Find every dataset, make those that are missing, and check every entry on each; see `run_suite`."""
    sources = [find(suite, dataset) for dataset in suite.datasets]
    skipped = {s.dataset.name: s.missing for s in sources if s.missing is not None}
    if skipped and not allow_missing:
        name, why = next(iter(skipped.items()))
        raise InputError(f"{suite.source}: dataset {name}: {why} Or leave it out by --allow-missing.")
    sources = [source for source in sources if source.missing is None]
    if not sources:
        raise InputError(f"{suite.source}: no dataset has an environment that is installed; there is nothing to run.")
    for source in sources:
        check_files(suite, source)
    make_missing(sources, jobs, modules, say)
    sources = [find(suite, source.dataset) for source in sources]  # as data that were there before are found
    prepared = [prepare(suite, source) for source in sources]
    for p in prepared:
        check_entries(suite, p)
    cells = [cell for p in prepared for cell in cells_of(suite, p, logdir)]
    todo = [cell for cell in cells if not is_finished(cell)]
    check_devices(suite, todo)
    return Benchmark(suite, logdir, prepared, cells, skipped, todo)


def check_files(suite: Suite, source: Source) -> None:
    """Read the policies that stand for entries: a file that is none is refused before anything is trained."""
    from dtrl.interop.stable_baselines import load_actor

    for entry in suite.entries:
        if (file := entry.files.get(source.dataset.name)) is not None:
            load_actor(suite.path(file), source.env)


def make_missing(sources: Sequence[Source], jobs: int, modules: Sequence[str], say: Say) -> None:
    """Make the datasets that have only a recipe yet."""
    recipes = {s.dataset.name: s.recipe for s in sources if s.recipe is not None}
    for recipe in recipes.values():
        check_environment(load_recipe(recipe))
    if recipes:
        say(f"making {', '.join(recipes)} …")
    for done in run_tasks({name: partial(make, recipe) for name, recipe in recipes.items()}, jobs, modules):
        if done.error is not None:
            raise InputError(f"dataset {done.name} could not be made: {done.error}")
        say(f"made {done.name} in {done.seconds:.0f} s")


def check_entries(suite: Suite, prepared: Prepared) -> None:
    """Whether every entry can learn from a dataset, and then act in its environment. Raises InputError, naming the two."""
    loaded: dict[str, Any] = {}
    env = make_environment(prepared.env)
    shown, acted = env.observation_space, env.action_space
    env.close()
    for entry in suite.entries:
        if entry.kind != "train":
            continue
        options = suite.options_of(prepared.dataset, entry)
        data = data_options(options)
        key = json.dumps(data, sort_keys=True)
        try:
            if key not in loaded:
                loaded[key] = load_trajectories(prepared.where, **data)
            config = ModelConfig(**chosen(options, ModelConfig))
            learned = training_data(config, loaded[key])
            resolve(config, learned)
            seen_part(shown, learned.observation_space, None, prepared.dataset.name)
            check_actions(acted, learned.action_space, prepared.dataset.name)
            check_other_models(options)
        except InputError as error:
            raise InputError(f"{suite.source}: {entry.label} on {prepared.dataset.name}: {error}") from error


def check_devices(suite: Suite, cells: Sequence[Cell]) -> None:
    """Whether this machine has what the cells that are to be trained ask for. Raises InputError, naming dataset and entry."""
    for cell in cells:
        if cell.entry.kind != "train":
            continue
        config = TrainingConfig(**chosen(cell.options, TrainingConfig))
        try:
            check_device(config, choose_device(config.device))
        except InputError as error:
            raise InputError(f"{suite.source}: {cell.entry.label} on {cell.prepared.dataset.name}: {error}") from error


def check_other_models(options: Mapping[str, Any]) -> None:
    """Read the critic and the drafting policy that a run is to act with. Raises InputError for a file that is none."""
    for name in paths_in(options):
        if name == "critic":
            Critic.load(options[name])
        else:
            load_policy(options[name])


def run_cells(benchmark: Benchmark, jobs: int, modules: Sequence[str] = (), say: Say = print) -> None:
    """Run the cells that are not finished. What went wrong is kept in `benchmark.failed`, with a trace in the cell's error.txt."""
    todo = {cell.name: cell for cell in benchmark.todo if cell.entry.kind != "external"}
    kept = len(benchmark.cells) - len(benchmark.todo)
    if kept:
        say(f"{kept} of {len(benchmark.cells)} cells are finished already")
    for number, done in enumerate(run_tasks({n: RunCell(c) for n, c in todo.items()}, jobs, modules), kept + 1):
        say(f"[{number}/{len(benchmark.cells)}] {done.name}: {done.error or 'done'} ({done.seconds:.0f} s)")
        note(benchmark, todo[done.name], done)


def note(benchmark: Benchmark, cell: Cell, done: Done) -> None:
    """Remember a failure, or forget one of an earlier try."""
    trace = cell.folder / "error.txt"
    if done.error is None:
        trace.unlink(missing_ok=True)
        return
    benchmark.failed[done.name] = done.error
    write_atomically(trace, f"{done.error}\n\n{done.trace or ''}".encode())


def write_results(benchmark: Benchmark) -> dict[str, Any]:
    """Write results.json, the tables and the plots of the cells that are finished; returns the document."""
    from dtrl.suites.page import write_page
    from dtrl.suites.table import markdown

    results = results_of(benchmark.suite, benchmark.prepared, benchmark.cells, benchmark.skipped, benchmark.failed)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(benchmark.logdir / RESULTS_FILE, text.encode())
    write_atomically(benchmark.logdir / MARKDOWN_FILE, markdown(results).encode())
    write_page(results, benchmark.logdir / HTML_FILE)
    return results


def with_changes(suite: Suite, changes: Mapping[str, Any]) -> Suite:
    """The suite with another protocol or other seeds, for all of its datasets."""
    protocol = {name: value for name, value in changes.items() if name != "seeds"}
    datasets = tuple(
        replace(d, protocol={name: value for name, value in d.protocol.items() if name not in protocol})
        for d in suite.datasets
    )
    seeds = read_seeds(changes["seeds"], suite.source) if "seeds" in changes else suite.seeds
    return replace(suite, protocol=replace(suite.protocol, **protocol), datasets=datasets, seeds=seeds)
