"""Recipes: the dataclasses, and TOML files read into them and checked. What needs the environment is checked in behaviour.py."""

import dataclasses
import math
import re
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from dtrl.errors import InputError, did_you_mean

ALGORITHMS = {
    "A2C": ("Discrete", "Box"),
    "DDPG": ("Box",),
    "DQN": ("Discrete",),
    "PPO": ("Discrete", "Box"),
    "SAC": ("Box",),
    "TD3": ("Box",),
}
"""The Stable-Baselines3 algorithms that a recipe may train, and the action spaces each can act in."""
POLICIES = ("random", "checkpoint", "demonstrator")
DATASET_ID = re.compile(r"([\w-]{2,}/)*[\w-]+-v\d+", re.ASCII)
"""Minari's form; it refuses a namespace of one letter only after having made a folder for it."""


@dataclass(frozen=True)
class Algorithm:
    """A Stable-Baselines3 algorithm with its MlpPolicy, and when to keep a copy of that policy."""

    name: str
    """One of ALGORITHMS."""
    timesteps: int
    """Environment steps of training; an algorithm that learns once per rollout (PPO, A2C) rounds up to whole rollouts."""
    checkpoints: tuple[int, ...]
    """Ascending steps of training after which a copy of the policy is kept, as it stands then; the copy at `timesteps` is the
    trained policy."""
    envs: int = 1
    """Environments that are stepped side by side during training."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm's constructor, such as n_steps."""


@dataclass(frozen=True)
class Behaviour:
    """A policy and the episodes it plays."""

    policy: str
    """random: uniform over the action space; checkpoint: a copy of the trained policy; demonstrator: the `demonstrate()` of the
    environment."""
    episodes: int
    """Episodes to record."""
    checkpoint: int | None = None
    """Which copy: one of the algorithm's `checkpoints`, in steps of training."""
    deterministic: bool = False
    """Take the checkpoint's most likely action instead of drawing one."""
    epsilon: float = 0.0
    """Probability of a uniformly random action instead of the policy's; Discrete actions only."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise added to an action, in halves of the action's range; Box actions only. The sum is
    clipped to the range."""

    @property
    def name(self) -> str:
        """What the dataset's metadata call it, as in "checkpoint 4000, epsilon 0.1"."""
        parts = [self.policy if self.checkpoint is None else f"checkpoint {self.checkpoint}"]
        parts += ["deterministic"] if self.deterministic else []
        parts += [f"epsilon {self.epsilon:g}"] if self.epsilon else []
        parts += [f"noise {self.noise:g}"] if self.noise else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Reference:
    """Mean returns, in the environment's reward units, that stand for 0 and 1 in normalised scores."""

    random: float
    """Of uniformly random actions."""
    expert: float
    """Of a good policy."""


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made: one TOML file."""

    id: str
    """Id of the Minari dataset, namespace/name-vN."""
    env: str
    """Id of the Gymnasium environment."""
    seed: int
    """Seed of all that is drawn: initial weights, training, initial states, actions."""
    description: str
    """What the dataset holds and what it is for; stored in it."""
    behaviour: tuple[Behaviour, ...]
    """In the order in which their episodes stand in the dataset."""
    algorithm: Algorithm | None = None
    """What the checkpoints are copies of."""
    reference: Reference | None = None
    """Stored as Minari's ref_min_score and ref_max_score."""
    source: str = "the recipe"
    """The file it was read from, which error messages name; not a field of the file."""


def list_recipes() -> dict[str, Path]:
    """Names of the recipes that come with dtrl, and their files."""
    # In an install datasets/ lies in the package, in a checkout beside it. Not importlib.resources: in an editable install it
    # does not find a folder that has no Python file.
    package = Path(__file__).parent.parent
    for folder in (package / "datasets", package.parent / "datasets"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name, or in that .toml file. InputError for an unknown name and for any mistake in the file."""
    recipes = list_recipes()
    path = recipes.get(str(name_or_path), Path(name_or_path))
    if path.suffix != ".toml":
        raise InputError(f"there is no recipe {str(name_or_path)!r}; {did_you_mean(str(name_or_path), list(recipes))}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"recipe {path} cannot be read ({error.strerror}); the recipes of dtrl are {', '.join(recipes)}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file: {error}; correct it there.") from error
    recipe = build(Recipe, table, str(path))
    recipe = dataclasses.replace(recipe, source=str(path))
    check_recipe(recipe)
    return recipe


Part = TypeVar("Part", Algorithm, Behaviour, Reference, Recipe)
TYPE_NAMES = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "an integer",
    str: "a text",
    tuple: "a list",
}


def build(kind: type[Part], table: dict[str, Any], where: str) -> Part:
    """A dataclass from its TOML table; unknown and missing fields and values of another type are refused."""
    known = {f.name: f for f in dataclasses.fields(kind) if f.name != "source"}
    values = {}
    for name, value in table.items():
        if name not in known:
            raise InputError(f"{where}: there is no field {name!r}; {did_you_mean(name, list(known))}")
        values[name] = checked(known[name].type, value, f"{where}: {name}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: the field {name!r} is missing; add it.")
    return kind(**values)


def checked(annotation: Any, value: Any, where: str) -> Any:
    """A TOML value as the type that a dataclass field declares."""
    wanted = get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation
    plain = get_origin(wanted) or wanted
    toml_type = dict if dataclasses.is_dataclass(plain) else plain
    if plain is float and type(value) is int:
        value = float(value)
    if plain is tuple and type(value) is list:
        item_type = get_args(wanted)[0]
        return tuple(checked(item_type, item, f"{where} {number}") for number, item in enumerate(value, 1))
    if type(value) is not toml_type:
        raise InputError(f"{where} is {value!r}; {TYPE_NAMES[toml_type]} is expected.")
    return build(plain, value, where) if dataclasses.is_dataclass(plain) else value  # type: ignore[type-var, arg-type]


def check_recipe(recipe: Recipe) -> None:
    """What can be told without making the environment."""
    where = recipe.source
    if not DATASET_ID.fullmatch(recipe.id):
        raise InputError(f"{where}: id {recipe.id!r} is no Minari dataset id; write namespace/name-v0.")
    if recipe.seed < 0:
        raise InputError(f"{where}: seed {recipe.seed} is negative; 0 is the usual seed.")
    if recipe.reference and not recipe.reference.random < recipe.reference.expert:
        raise InputError(
            f"{where}: reference.expert {recipe.reference.expert:g} must exceed reference.random {recipe.reference.random:g}."
        )
    if recipe.algorithm:
        check_algorithm(recipe.algorithm, f"{where}: algorithm")
    if not recipe.behaviour:
        raise InputError(f"{where}: behaviour is an empty list; add at least one [[behaviour]] table.")
    for number, behaviour in enumerate(recipe.behaviour, 1):
        check_behaviour(behaviour, recipe.algorithm, f"{where}: behaviour {number}")


def check_algorithm(algorithm: Algorithm, where: str) -> None:
    if algorithm.name not in ALGORITHMS:
        raise InputError(f"{where}.name {algorithm.name!r} is unknown; use one of {', '.join(ALGORITHMS)}.")
    if algorithm.timesteps < 1 or algorithm.envs < 1:
        raise InputError(f"{where}: timesteps {algorithm.timesteps} and envs {algorithm.envs} must both be 1 or more.")
    steps = algorithm.checkpoints
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] > algorithm.timesteps:
        raise InputError(
            f"{where}.checkpoints {list(steps)} must be ascending numbers of steps from 1 to timesteps {algorithm.timesteps}."
        )


def check_behaviour(behaviour: Behaviour, algorithm: Algorithm | None, where: str) -> None:
    if behaviour.policy not in POLICIES:
        raise InputError(f"{where}: policy {behaviour.policy!r} is unknown; use one of {', '.join(POLICIES)}.")
    if behaviour.episodes < 1:
        raise InputError(f"{where}: episodes {behaviour.episodes} must be 1 or more; or leave the behaviour out.")
    if not 0 <= behaviour.epsilon <= 1:
        raise InputError(f"{where}: epsilon {behaviour.epsilon:g} is no probability; choose a number from 0 to 1.")
    if not (behaviour.noise >= 0 and math.isfinite(behaviour.noise)):
        raise InputError(f"{where}: noise {behaviour.noise:g} must be 0 or a positive number of half action ranges.")
    if behaviour.policy == "random" and (behaviour.epsilon or behaviour.noise):
        raise InputError(f"{where}: policy random is random already; leave epsilon and noise out.")
    if behaviour.policy != "checkpoint" and (behaviour.checkpoint is not None or behaviour.deterministic):
        raise InputError(f"{where}: checkpoint and deterministic need policy 'checkpoint', not {behaviour.policy!r}.")
    if behaviour.policy == "checkpoint":
        kept = algorithm.checkpoints if algorithm else ()
        if not algorithm:
            raise InputError(
                f"{where}: policy 'checkpoint' needs an [algorithm] table that says what is trained; add one."
            )
        if behaviour.checkpoint not in kept:
            raise InputError(
                f"{where}: checkpoint {behaviour.checkpoint} is not kept; choose one of algorithm.checkpoints {list(kept)}."
            )
