"""Recipes from recipes: one of another size, and one whose policies come from files instead of a training.

Each is a recipe like any other, with an id of its own, so that its dataset is not taken for that of the recipe it comes from."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrl.collect.array_policy import snapshots_of
from dtrl.collect.recipes import Behaviour, Recipe, check_recipe
from dtrl.errors import InputError, did_you_mean


def resized(recipe: Recipe, *, steps: int | None = None, episodes: int | None = None) -> Recipe:
    """The recipe of a dataset with so many steps, or so many episodes, of the same behaviours in the same proportion; none of the two leaves it as it is.

    A size in steps is that of as many whole episodes as it takes. InputError for a size that is not positive, for both, and where a replay buffer cannot
    give as much."""
    if steps is None and episodes is None:
        return recipe
    size = f"{steps}-steps" if steps is not None else f"{episodes}-episodes"
    other = dataclasses.replace(recipe, id=varied(recipe.id, size), steps=steps, episodes=episodes)
    check_recipe(other)
    return other


def varied(dataset_id: str, how: str) -> str:
    """The id of a dataset that is not the one of the recipe: hopper/medium-v0 to hopper/medium-100000-steps-v0."""
    name, _, version = dataset_id.rpartition("-v")
    return f"{name}-{how}-v{version}"


@dataclass(frozen=True)
class PolicyFile:
    """A policy that stands for a checkpoint of a recipe's training."""

    path: Path
    """An .npz of plain arrays, or a .zip of Stable-Baselines3; from the working directory."""
    snapshot: str | None = None
    """Which policy of an .npz that holds several, along a training run."""
    checkpoint: int | None = None
    """For which checkpoint it stands; None where the recipe has one alone."""

    @staticmethod
    def parse(text: str) -> "PolicyFile":
        """From [STEP=]FILE[:SNAPSHOT], as the command line has it. InputError for what has another form."""
        found = re.fullmatch(r"(?:(?P<step>[\d_]+)=)?(?P<path>.+?\.(?:npz|zip))(?::(?P<snapshot>[^:]+))?", text)
        if not found:
            raise InputError(
                f"policy {text!r} is not [STEP=]FILE[:SNAPSHOT] with a file in .npz or .zip; write for instance 200_000=policies.npz:it100."
            )
        step = found["step"]
        return PolicyFile(Path(found["path"]), found["snapshot"], None if step is None else int(step))


def with_policies(recipe: Recipe, files: Sequence[PolicyFile]) -> Recipe:
    """The recipe without its training: policies of files play in place of its checkpoints, with the same sizes and the same noise.

    A replay buffer is imitated, by all policies of a file along a training run up to the snapshot that stands for the checkpoint: each plays an equal part
    of the steps that the buffer has. No file leaves the recipe as it is, and files for checkpoints that it does not have are left aside. InputError where
    nothing is trained, where a checkpoint has no file or two, and where it is not clear for which a file stands."""
    if not files:
        return recipe
    where, algorithm = recipe.source, recipe.algorithm
    needed = sorted({b.checkpoint for b in recipe.behaviour if b.checkpoint is not None})
    if algorithm is None or not needed:
        raise InputError(f"{where}: nothing is trained, so no policy can stand for what is; leave --policy out.")
    found: dict[int, PolicyFile] = {}
    for file in files:
        if file.checkpoint is None and len(needed) > 1:
            raise InputError(
                f"{where}: the checkpoints are {needed}; say for which {file.path} stands, as in {needed[0]}={file.path}."
            )
        step = needed[0] if file.checkpoint is None else file.checkpoint
        if step in found:
            raise InputError(
                f"{where}: {found[step].path} and {file.path} both stand for checkpoint {step}; leave one out."
            )
        found[step] = file
    if absent := [step for step in needed if step not in found]:
        raise InputError(f"{where}: no policy stands for checkpoint {absent[0]}; add --policy {absent[0]}=FILE.")
    behaviours = [
        other
        for b in recipe.behaviour
        for other in (substitutes(b, found[b.checkpoint], where) if b.checkpoint is not None else [b])
    ]
    other = dataclasses.replace(
        recipe,
        id=varied(recipe.id, "files"),
        algorithm=None,
        behaviour=tuple(behaviours),
        description=f"{recipe.description} But nothing was trained: policies of files stand for those of {algorithm.name}.",
    )
    check_recipe(other)
    return other


def substitutes(behaviour: Behaviour, file: PolicyFile, where: str) -> list[Behaviour]:
    """What plays in place of a behaviour."""
    path = str(file.path.resolve())  # not from the folder of the recipe, where the paths of its own behaviours begin
    if behaviour.policy == "checkpoint":
        return [dataclasses.replace(behaviour, policy="file", checkpoint=None, path=path, snapshot=file.snapshot)]
    names = snapshots_of(file.path) if file.path.suffix == ".npz" else []
    if names and file.snapshot is not None:
        if file.snapshot not in names:
            raise InputError(f"{file.path} holds no snapshot {file.snapshot!r}; {did_you_mean(file.snapshot, names)}")
        names = names[: names.index(file.snapshot) + 1]
    if not names:
        raise InputError(
            f"{where}: a replay buffer is imitated by policies along a training run, and {file.path} does not hold several; give a file that does."
        )
    size, rest = divmod(behaviour.steps or behaviour.checkpoint or 0, len(names))
    return [
        Behaviour("file", path=path, snapshot=name, steps=size + (i < rest), reset_options=behaviour.reset_options)
        for i, name in enumerate(names)
    ]
