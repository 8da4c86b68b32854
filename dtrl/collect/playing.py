"""The episodes of a recipe's behaviours, played by one process, by several, or on several machines; the same either way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from dtrl.collect.array_policy import ArrayPolicy
from dtrl.collect.behaviour import actor, play, seeds_of
from dtrl.collect.environments import environment_spec, make_environment
from dtrl.collect.episodes import check_finite, file_lengths, to_bytes
from dtrl.collect.recipes import Recipe
from dtrl.collect.sizes import counts_of, spread
from dtrl.errors import InputError
from dtrl.files import write_atomically
from dtrl.pieces import hands
from dtrl.registration import import_modules

PIECE = 25
"""The next file of a behaviour has one episode for so many that there are, and at least one; an interruption costs one file a process."""
GUESSED_LENGTH = 1_000
"""Steps that an episode is taken to have before any was played, in an environment without a limit."""

Piece = tuple[Path, int, range]
"""A file of episodes, the index of its behaviour, and their numbers."""


class Player:
    """An environment and the policies of a recipe, which can play any of its episodes."""

    def __init__(self, recipe: Recipe, spec: Any, policies: dict[int, ArrayPolicy]) -> None:
        self.recipe = recipe
        self.env = make_environment(recipe, spec)
        self.acts = [actor(behaviour, policies.get(i)) for i, behaviour in enumerate(recipe.behaviour)]

    def record(self, path: Path, index: int, numbers: range, played: Callable[[], object]) -> None:
        """Play these episodes of a behaviour into a file."""
        write_atomically(path, self.content(index, numbers, played))

    def content(self, index: int, numbers: range, played: Callable[[], object]) -> bytes:
        """Play these episodes of a behaviour; what a file of them holds."""
        episodes, behaviour = [], self.recipe.behaviour[index]
        for number in numbers:
            seeds = seeds_of(self.recipe.seed, index, number)
            episodes.append(play(self.env, self.acts[index], seeds, behaviour.reset_options))
            whose = f"episode {number} of {behaviour.name} (seed {seeds[0]})"
            check_finite(vars(episodes[-1]), whose, f"{self.recipe.env}, or what acts in it, needs a repair.")
            played()
        return to_bytes(episodes)


def pieces(folder: Path, recipe: Recipe, index: int) -> Iterator[Piece]:
    """The files of a behaviour's episodes, one after the other: without end, unless it is known beforehand how many there are.

    Where one ends does not depend on the size of the dataset, which may not be known before the episodes are."""
    behaviour = recipe.behaviour[index]
    decided = behaviour.episodes if (recipe.steps or recipe.episodes) is None else None
    first = 0
    while decided is None or first < decided:
        end = first + max(1, first // PIECE)
        numbers = range(first, end if decided is None else min(end, decided))
        yield folder / "episodes" / f"{index}-{first}.npz", index, numbers
        first = numbers.stop


def pieces_until(folder: Path, recipe: Recipe, index: int, count: int) -> Iterator[Piece]:
    """The files that hold the first `count` episodes of a behaviour; the last may hold more."""
    return takewhile(lambda piece: piece[2].start < count, pieces(folder, recipe, index))


def lengths_of(folder: Path, recipe: Recipe) -> list[list[int]]:
    """The steps of the episodes of each behaviour that are there, as far as none is missing; of a replay buffer in the order in which they are taken."""
    found: list[list[int]] = []
    for index, behaviour in enumerate(recipe.behaviour):
        if behaviour.policy == "replay":
            lengths = file_lengths(folder / f"replay-{behaviour.checkpoint}.npz")
            found.append([lengths[i] for i in spread(len(lengths))])
            continue
        there = takewhile(lambda piece: piece[0].is_file(), pieces(folder, recipe, index))
        found.append([length for path, _, _ in there for length in file_lengths(path)])
    return found


def chosen_episodes(folder: Path, recipe: Recipe) -> list[list[tuple[Path, list[int]]]]:
    """For each behaviour the files of its episodes, and which of each file the dataset has; in the order of the dataset."""
    lengths = lengths_of(folder, recipe)
    chosen: list[list[tuple[Path, list[int]]]] = []
    for index, count in enumerate(counts_of(recipe, lengths, GUESSED_LENGTH)):
        behaviour = recipe.behaviour[index]
        if behaviour.policy == "replay":
            path = folder / f"replay-{behaviour.checkpoint}.npz"
            chosen.append([(path, sorted(spread(len(lengths[index]))[:count]))])
            continue
        needed = pieces_until(folder, recipe, index, count)
        chosen.append([(path, list(range(min(len(numbers), count - numbers.start)))) for path, _, numbers in needed])
    return chosen


def missing(folder: Path, recipe: Recipe, guess: int) -> tuple[list[Piece], list[int]]:
    """The files that are still to be played, as far as can be told from those that were, and how many episodes of each behaviour there will be."""
    counts = counts_of(recipe, lengths_of(folder, recipe), guess)
    todo: list[Piece] = []
    for index, count in enumerate(counts):
        if recipe.behaviour[index].policy != "replay":
            todo += [piece for piece in pieces_until(folder, recipe, index, count) if not piece[0].is_file()]
    return todo, counts


def play_missing(
    folder: Path,
    recipe: Recipe,
    policies: dict[int, ArrayPolicy],
    jobs: int | None,
    progress: bool,
    modules: Sequence[str] = (),
    ray: str | None = None,
) -> None:
    """Play the episodes that are not in the folder, with `jobs` processes or tasks of the Ray cluster at an address, which import the modules first.

    Of sizes in steps it turns out while playing how many episodes they take; some may be played that the dataset does not need."""
    spec = environment_spec(recipe)
    guess = spec.max_episode_steps or GUESSED_LENGTH
    todo, counts = missing(folder, recipe, guess)
    if not todo:
        return
    with ExitStack() as stack:
        bars = Bars(recipe, stack, hidden=None if progress else True)
        play = stack.enter_context(player_of(recipe, spec, policies, jobs, modules, ray))
        while todo:
            bars.expect(todo, counts)
            play(todo, bars.played)
            todo, counts = missing(folder, recipe, guess)


class Bars:
    """Progress on a terminal: a bar for each behaviour that plays."""

    def __init__(self, recipe: Recipe, stack: ExitStack, hidden: bool | None) -> None:
        self.recipe, self.stack, self.hidden = recipe, stack, hidden
        self.bars: dict[int, Any] = {}

    def expect(self, todo: Sequence[Piece], counts: Sequence[int]) -> None:
        """Say how many episodes there will be, which is known better from round to round."""
        from tqdm import tqdm

        for index in {piece[1] for piece in todo}:
            coming = sum(len(numbers) for _, i, numbers in todo if i == index)
            if index not in self.bars:
                name, before = self.recipe.behaviour[index].name, max(0, counts[index] - coming)
                bar = tqdm(initial=before, desc=name, unit="episode", disable=self.hidden)
                self.bars[index] = self.stack.enter_context(bar)
            self.bars[index].total = max(counts[index], self.bars[index].n + coming)
            self.bars[index].refresh()

    def played(self, index: int, count: int) -> None:
        self.bars[index].update(count)


Play = Callable[[Sequence[Piece], Callable[[int, int], None]], None]
"""Plays pieces, and tells the index of the behaviour and the number of episodes as they are done."""


@contextmanager
def player_of(
    recipe: Recipe,
    spec: Any,
    policies: dict[int, ArrayPolicy],
    jobs: int | None,
    modules: Sequence[str],
    ray: str | None = None,
) -> Iterator[Play]:
    """What plays: this process, `jobs` others, or the tasks of a Ray cluster."""
    if ray is not None or (jobs or 1) > 1:
        with others_that_play(recipe, spec, policies, jobs, modules, ray) as play:
            yield play
        return
    player = Player(recipe, spec, policies)

    def alone(todo: Sequence[Piece], played: Callable[[int, int], None]) -> None:
        for path, index, numbers in todo:
            player.record(path, index, numbers, partial(played, index, 1))

    yield alone
    player.env.close()


@contextmanager
def others_that_play(
    recipe: Recipe,
    spec: Any,
    policies: dict[int, ArrayPolicy],
    jobs: int | None,
    modules: Sequence[str],
    ray: str | None,
) -> Iterator[Play]:
    """Other processes that play pieces, which this one writes."""
    if not isinstance(spec.entry_point, str):
        if not modules:
            raise InputError(
                f"{recipe.source}: env {recipe.env!r} is registered with an object of this process, which others cannot make; register it "
                'with an entry point in the form "module:Class", name the module that registers it (--import, or modules), or use one job.'
            )
        spec = None  # the modules register it there
    lost = (
        f"{recipe.source}: a process that played episodes was ended, maybe for want of memory; what was recorded is kept, run it again with fewer "
        "jobs."
    )
    with hands(partial(recorder, recipe, spec, policies, tuple(modules)), jobs, ray, lost) as others:

        def play(todo: Sequence[Piece], played: Callable[[int, int], None]) -> None:
            for number, content in others.do([(index, numbers) for _, index, numbers in todo]):
                path, index, numbers = todo[number]
                write_atomically(path, content)
                played(index, len(numbers))

        yield play


def recorder(
    recipe: Recipe, spec: Any, policies: dict[int, ArrayPolicy], modules: Sequence[str]
) -> Callable[[tuple[int, range]], bytes]:
    """In another process, what plays a piece."""
    import_modules(modules)
    player = Player(recipe, spec, policies)
    return lambda piece: player.content(*piece, lambda: None)
