"""The episodes of a recipe's behaviours, played by one process or by several; the same either way."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dtrl.collect.array_policy import ArrayPolicy
from dtrl.collect.behaviour import actor, play, seeds_of
from dtrl.collect.environments import environment_spec, make_environment
from dtrl.collect.episodes import check_finite, to_bytes
from dtrl.collect.recipes import Recipe
from dtrl.errors import InputError
from dtrl.files import write_atomically
from dtrl.processes import follow_parent
from dtrl.registration import import_modules

PIECES = 50
"""Files into which the episodes of a behaviour are divided; an interruption costs one of them a process."""


class Player:
    """An environment and the policies of a recipe, which can play any of its episodes."""

    def __init__(self, recipe: Recipe, spec: Any, policies: dict[int, ArrayPolicy]) -> None:
        self.recipe = recipe
        self.env = make_environment(recipe, spec)
        self.acts = [actor(behaviour, policies.get(i)) for i, behaviour in enumerate(recipe.behaviour)]

    def record(self, path: Path, index: int, numbers: range, played: Callable[[], object]) -> None:
        """Play these episodes of a behaviour into a file."""
        episodes, behaviour = [], self.recipe.behaviour[index]
        for number in numbers:
            seeds = seeds_of(self.recipe.seed, index, number)
            episodes.append(play(self.env, self.acts[index], seeds, behaviour.reset_options))
            whose = f"episode {number} of {behaviour.name} (seed {seeds[0]})"
            check_finite(vars(episodes[-1]), whose, f"{self.recipe.env}, or what acts in it, needs a repair.")
            played()
        write_atomically(path, to_bytes(episodes))


def pieces(folder: Path, recipe: Recipe) -> list[tuple[Path, int, range]]:
    """Files of episodes: path, index of the behaviour, and the numbers of its episodes. In the order of the dataset."""
    found = []
    for index, behaviour in enumerate(recipe.behaviour):
        count = behaviour.episodes or 0
        size = max(1, count // PIECES)
        for first in range(0, count, size):
            path = folder / "episodes" / f"{index}-{first}.npz"
            found.append((path, index, range(first, min(first + size, count))))
    return found


def files_of(folder: Path, recipe: Recipe) -> list[list[Path]]:
    """The files of episodes of each behaviour, in the order of the dataset."""
    files: list[list[Path]] = [[] for _ in recipe.behaviour]
    for path, index, _ in pieces(folder, recipe):
        files[index].append(path)
    for some, behaviour in zip(files, recipe.behaviour, strict=True):
        if behaviour.policy == "replay":
            some.append(folder / f"replay-{behaviour.checkpoint}.npz")
    return files


def play_missing(
    folder: Path,
    recipe: Recipe,
    policies: dict[int, ArrayPolicy],
    jobs: int,
    progress: bool,
    modules: Sequence[str] = (),
) -> None:
    """Play the episodes that are not in the folder, with `jobs` processes, which import the modules first."""
    from tqdm import tqdm

    todo = [piece for piece in pieces(folder, recipe) if not piece[0].is_file()]
    missing = {index: sum(len(piece[2]) for piece in todo if piece[1] == index) for _, index, _ in todo}
    if not todo:
        return
    with ExitStack() as stack:
        bars = {
            index: stack.enter_context(
                tqdm(
                    total=recipe.behaviour[index].episodes,
                    initial=(recipe.behaviour[index].episodes or 0) - count,
                    desc=recipe.behaviour[index].name,
                    unit="episode",
                    disable=None if progress else True,
                )
            )
            for index, count in missing.items()
        }
        spec = environment_spec(recipe)
        if jobs == 1:
            player = Player(recipe, spec, policies)
            for path, index, numbers in todo:
                player.record(path, index, numbers, bars[index].update)
            player.env.close()
        else:
            for index, count in played_by_processes(recipe, spec, policies, todo, min(jobs, len(todo)), modules):
                bars[index].update(count)


def played_by_processes(
    recipe: Recipe,
    spec: Any,
    policies: dict[int, ArrayPolicy],
    todo: list[tuple[Path, int, range]],
    jobs: int,
    modules: Sequence[str],
) -> Iterator[tuple[int, int]]:
    """Have processes record the pieces; index and number of episodes of each as it is done.

    They are spawned: a fork would copy the locks of torch's threads."""
    if not isinstance(spec.entry_point, str):
        if not modules:
            raise InputError(
                f"{recipe.source}: env {recipe.env!r} is registered with an object of this process, which others cannot make; register it "
                'with an entry point in the form "module:Class", name the module that registers it (--import, or modules), or use one job.'
            )
        spec = None  # the modules register it there
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, begin, (recipe, spec, policies, modules)) as pool, ended_with(pool):
        futures = {pool.submit(record, *piece): piece for piece in todo}
        try:
            for future in as_completed(futures):
                future.result()
                _, index, numbers = futures[future]
                yield index, len(numbers)
        except BrokenProcessPool as error:
            raise InputError(
                f"{recipe.source}: a process that played episodes was ended, maybe for want of memory; what was recorded is kept, run "
                "it again with fewer jobs."
            ) from error


@contextmanager
def ended_with(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the processes at once if the block fails: what they are playing is played again another time."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


_player: list[Callable[[], Player]] = []
"""Of a spawned process: makes its only one, when there is something to play, so that an error is that of a task."""


def begin(recipe: Recipe, spec: Any, policies: dict[int, ArrayPolicy], modules: Sequence[str]) -> None:
    """First thing in a spawned process."""
    follow_parent()

    @cache
    def player() -> Player:
        import_modules(modules)
        return Player(recipe, spec, policies)

    _player.append(player)


def record(path: Path, index: int, numbers: range) -> None:
    _player[0]().record(path, index, numbers, lambda: None)
