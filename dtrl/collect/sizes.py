"""How large a dataset is: which episodes of its behaviours it has, where sizes are given in episodes or in steps, by behaviour or for all of them together.

It depends on the lengths of the episodes alone, and each episode has its own seed: so it does not matter who played them, in which order, or how many
were played that are not needed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dtrl.errors import InputError

if TYPE_CHECKING:
    from dtrl.collect.recipes import Behaviour, Recipe


def counts_of(recipe: "Recipe", lengths: Sequence[Sequence[int]], guess: int) -> list[int]:
    """How many episodes of each behaviour the dataset has: always the first ones, numbered as they are played.

    One after the other comes the next episode of the behaviour that is furthest from its size, until each has its own or, where the recipe says how large
    the dataset is, all together have that, or a replay buffer has no more to give. `lengths` are the steps of the episodes that are known, all of them of a
    replay buffer; of others the mean of those of the same behaviour is assumed, and `guess` where there is none. The answer is final when it counts no
    episode that is not known."""
    total = recipe.steps or recipe.episodes
    sizes = [size_of(b, in_proportion=total is not None) for b in recipe.behaviour]
    assumed = [sum(known) / len(known) if known else guess for known in lengths]
    counts, steps = [0] * len(lengths), [0.0] * len(lengths)

    def share(i: int) -> float:
        behaviour = recipe.behaviour[i]
        if total is None and behaviour.policy == "replay" and counts[i] == len(lengths[i]):
            return math.inf
        return (counts if behaviour.episodes else steps)[i] / sizes[i]

    while total is None or sum(steps if recipe.steps else counts) < total:
        i = min(range(len(counts)), key=share)
        known = counts[i] < len(lengths[i])
        if (total is None and share(i) >= 1) or (recipe.behaviour[i].policy == "replay" and not known):
            break
        steps[i] += lengths[i][counts[i]] if known else assumed[i]
        counts[i] += 1
    return counts


def size_of(behaviour: "Behaviour", in_proportion: bool) -> float:
    """In the unit in which the behaviour has it. A replay buffer without one is recorded whole; in proportion to others the steps that it saw count."""
    if behaviour.policy == "replay" and behaviour.steps is None:
        return float(behaviour.checkpoint or 0) if in_proportion else math.inf
    return float(behaviour.episodes or behaviour.steps or 0)


def spread(count: int) -> list[int]:
    """The numbers below `count` in such an order that any of the first ones lie evenly between all: by their binary digits, read from the back
    [van der Corput 1935]. In this order the episodes of a replay buffer are taken, so that fewer of them are still from the whole training."""
    digits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda i: int(f"{i:0{digits}b}"[::-1], 2))


def check_size(recipe: "Recipe") -> None:
    """Of the whole dataset, where it is given."""
    where = recipe.source
    if recipe.episodes is not None and recipe.steps is not None:
        raise InputError(
            f"{where}: the dataset is to have {recipe.episodes} episodes and {recipe.steps} steps; give one of the two."
        )
    for name, size in (("episodes", recipe.episodes), ("steps", recipe.steps)):
        if size is not None and size < 1:
            raise InputError(f"{where}: {name} {size} of the dataset must be 1 or more; or leave them out.")
    if recipe.steps is not None and all(b.policy == "replay" for b in recipe.behaviour):
        most = sum(b.checkpoint or 0 for b in recipe.behaviour)
        if recipe.steps > most:
            raise InputError(
                f"{where}: a replay buffer of {most} steps cannot give {recipe.steps}; ask for fewer, train for longer in a recipe of your own, or give "
                "policies along a training run instead (--policy)."
            )


def check_behaviour_size(behaviour: "Behaviour", where: str) -> None:
    episodes, steps = behaviour.episodes, behaviour.steps
    if episodes is not None and steps is not None:
        raise InputError(f"{where}: it has episodes {episodes} and steps {steps}; give one of the two.")
    for name, size in (("episodes", episodes), ("steps", steps)):
        if size is not None and size < 1:
            raise InputError(f"{where}: {name} {size} must be 1 or more; or leave the behaviour out.")
    if behaviour.policy != "replay" and episodes is None and steps is None:
        raise InputError(f"{where}: it has no size; add episodes, or steps.")
    if behaviour.policy == "replay" and steps is not None and steps > (behaviour.checkpoint or 0):
        raise InputError(
            f"{where}: steps {steps} of a replay buffer are more than it saw until its checkpoint, {behaviour.checkpoint}; ask for fewer."
        )
