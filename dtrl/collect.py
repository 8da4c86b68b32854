"""Behaviour policies to Minari datasets: what `dtrl datasets make` does.

A *recipe* is a TOML file of the folder datasets/ that says how a dataset is made: which environment, which algorithm is trained
to get policies of different quality, and how many episodes each behaviour policy plays. The same recipe gives the same arrays
again, on the same machine and with the same versions.

    id = "cartpole/tiny-v0"
    env = "CartPole-v1"
    seed = 0
    description = "PPO after 4,000 steps with a tenth of the actions random, and random actions alone."

    [algorithm]
    name = "PPO"
    timesteps = 4_000
    checkpoints = [4_000]

    [[behaviour]]
    policy = "checkpoint"
    checkpoint = 4_000
    episodes = 40
    epsilon = 0.1

    [[behaviour]]
    policy = "random"
    episodes = 10
"""

import copy
import dataclasses
import inspect
import math
import os
import re
import tempfile
import tomllib
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from dtrl.errors import InputError, did_you_mean

# Only for annotations: the command line reads recipes without paying for these imports.
if TYPE_CHECKING:
    import gymnasium
    from minari.data_collector import EpisodeBuffer
    from stable_baselines3.common.base_class import BaseAlgorithm

    Act = Callable[[list[gymnasium.Env[Any, Any]], list[Any]], list[Any]]
    """Environments and their current observations to one action each."""

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
PARALLEL_EPISODES = 8
"""Episodes played side by side, so that one forward pass acts for all of them."""
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
    package = Path(__file__).parent
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
    recipe = _build(Recipe, table, str(path))
    recipe = dataclasses.replace(recipe, source=str(path))
    _check(recipe)
    return recipe


def make_dataset(
    recipe: Recipe, *, dataset_id: str | None = None, overwrite: bool = False, progress: bool = True
) -> str:
    """Train the recipe's algorithm, play its behaviours, write the Minari dataset and return its id.

    The dataset lies in Minari's folder (MINARI_DATASETS_PATH). A run that fails or is interrupted leaves nothing there, and with
    `overwrite` a dataset that exists is replaced only when the new one is complete. `progress` shows bars on a terminal. As
    Stable-Baselines3 does, this seeds the global generators of torch, numpy and random.

    InputError if the dataset exists, or if environment, algorithm and behaviours do not go together."""
    _check(recipe)
    dataset_id = dataset_id or recipe.id
    _check_target(dataset_id, overwrite)
    _check_environment(recipe)
    with _one_thread():
        model, checkpoints = _train(recipe, recipe.algorithm, progress) if recipe.algorithm else (None, {})
        episodes = []
        for index, behaviour in enumerate(recipe.behaviour):
            if model is not None and behaviour.checkpoint is not None:
                model.policy.load_state_dict(checkpoints[behaviour.checkpoint])
            episodes += _play(recipe, index, _actor(behaviour, model), progress)
    _write(recipe, episodes, dataset_id)
    return dataset_id


# Reading and checking a recipe

Part = TypeVar("Part", Algorithm, Behaviour, Reference, Recipe)
TYPE_NAMES = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "an integer",
    str: "a text",
    tuple: "a list",
}


def _build(kind: type[Part], table: dict[str, Any], where: str) -> Part:
    """A dataclass from its TOML table; unknown and missing fields and values of another type are refused."""
    known = {f.name: f for f in dataclasses.fields(kind) if f.name != "source"}
    values = {}
    for name, value in table.items():
        if name not in known:
            raise InputError(f"{where}: there is no field {name!r}; {did_you_mean(name, list(known))}")
        values[name] = _value(known[name].type, value, f"{where}: {name}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: the field {name!r} is missing; add it.")
    return kind(**values)


def _value(annotation: Any, value: Any, where: str) -> Any:
    """A TOML value as the type that a dataclass field declares."""
    wanted = get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation
    plain = get_origin(wanted) or wanted
    toml_type = dict if dataclasses.is_dataclass(plain) else plain
    if plain is float and type(value) is int:
        value = float(value)
    if plain is tuple and type(value) is list:
        item_type = get_args(wanted)[0]
        return tuple(_value(item_type, item, f"{where} {number}") for number, item in enumerate(value, 1))
    if type(value) is not toml_type:
        raise InputError(f"{where} is {value!r}; {TYPE_NAMES[toml_type]} is expected.")
    return _build(plain, value, where) if dataclasses.is_dataclass(plain) else value  # type: ignore[type-var, arg-type]


def _check(recipe: Recipe) -> None:
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
        _check_algorithm(recipe.algorithm, f"{where}: algorithm")
    if not recipe.behaviour:
        raise InputError(f"{where}: behaviour is an empty list; add at least one [[behaviour]] table.")
    for number, behaviour in enumerate(recipe.behaviour, 1):
        _check_behaviour(behaviour, recipe.algorithm, f"{where}: behaviour {number}")


def _check_algorithm(algorithm: Algorithm, where: str) -> None:
    if algorithm.name not in ALGORITHMS:
        raise InputError(f"{where}.name {algorithm.name!r} is unknown; use one of {', '.join(ALGORITHMS)}.")
    if algorithm.timesteps < 1 or algorithm.envs < 1:
        raise InputError(f"{where}: timesteps {algorithm.timesteps} and envs {algorithm.envs} must both be 1 or more.")
    steps = algorithm.checkpoints
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] > algorithm.timesteps:
        raise InputError(
            f"{where}.checkpoints {list(steps)} must be ascending numbers of steps from 1 to timesteps {algorithm.timesteps}."
        )


def _check_behaviour(behaviour: Behaviour, algorithm: Algorithm | None, where: str) -> None:
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


def _check_environment(recipe: Recipe) -> None:
    """Whether the environment exists and suits the algorithm and every behaviour."""
    import gymnasium
    import numpy as np

    from dtrl.spaces import check_space

    try:
        env = gymnasium.make(recipe.env)
    except (gymnasium.error.Error, ImportError) as error:
        known = list(gymnasium.registry)
        hint = "install what it needs." if recipe.env in known else did_you_mean(recipe.env, known)
        raise InputError(f"{recipe.source}: env {recipe.env!r} cannot be made ({error}); {hint}") from error
    space, has_demonstrator = env.action_space, hasattr(env.unwrapped, "demonstrate")
    check_space(env.observation_space, "observation", recipe.env)
    check_space(space, "action", recipe.env)
    env.close()
    kind = type(space).__name__
    if recipe.algorithm and kind not in ALGORITHMS[recipe.algorithm.name]:
        able = [name for name, kinds in ALGORITHMS.items() if kind in kinds]
        raise InputError(
            f"{recipe.source}: {recipe.algorithm.name} cannot act in the {kind} actions of {recipe.env}; use one of {able}."
        )
    for number, behaviour in enumerate(recipe.behaviour, 1):
        where = f"{recipe.source}: behaviour {number}"
        if behaviour.policy == "demonstrator" and not has_demonstrator:
            raise InputError(f"{where}: {recipe.env} has no demonstrate() method; use policy random or checkpoint.")
        if behaviour.epsilon and kind != "Discrete":
            raise InputError(f"{where}: epsilon needs Discrete actions, {recipe.env} has {space}; use noise.")
        if behaviour.noise and not (
            isinstance(space, gymnasium.spaces.Box) and np.isfinite([space.low, space.high]).all()
        ):
            raise InputError(
                f"{where}: noise needs bounded Box actions, {recipe.env} has {space}; use epsilon for Discrete ones."
            )


# Training and playing


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more threads, and the number of threads would change the rounding of sums."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(recipe: Recipe, algorithm: Algorithm, progress: bool) -> "tuple[BaseAlgorithm, dict[int, dict[str, Any]]]":
    """The trained model, and the parameters of its policy at each checkpoint.

    In one call of `learn`: schedules (DQN's exploration) run over the steps of a call and would start anew in every further one."""
    from tqdm import tqdm

    model = _untrained(recipe, algorithm)
    kept = {}
    due = deque(step for step in algorithm.checkpoints if step < algorithm.timesteps)

    with tqdm(
        total=algorithm.timesteps, desc=f"training {algorithm.name}", unit="step", disable=None if progress else True
    ) as bar:

        def keep(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
            bar.update(model.num_timesteps - bar.n)
            while due and model.num_timesteps >= due[0]:
                kept[due.popleft()] = copy.deepcopy(model.policy.state_dict())
            return True

        model.learn(algorithm.timesteps, callback=keep)
    kept[algorithm.timesteps] = copy.deepcopy(model.policy.state_dict())
    return model, kept


def _untrained(recipe: Recipe, algorithm: Algorithm) -> "BaseAlgorithm":
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    constructor = vars(stable_baselines3)[algorithm.name]
    ours = ("self", "policy", "env", "seed", "device", "_init_setup_model")
    known = [name for name in inspect.signature(constructor).parameters if name not in ours]
    for name in algorithm.options:
        if name not in known:
            raise InputError(f"{recipe.source}: {algorithm.name} has no option {name!r}; {did_you_mean(name, known)}")
    env = make_vec_env(recipe.env, n_envs=algorithm.envs, seed=recipe.seed)
    try:
        model: BaseAlgorithm = constructor("MlpPolicy", env, seed=recipe.seed, device="cpu", **algorithm.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"{recipe.source}: {algorithm.name} refuses algorithm.options {algorithm.options}: {error}"
        ) from error
    return model


def _actor(behaviour: Behaviour, model: "BaseAlgorithm | None") -> "Act":
    """How a behaviour acts. All that is drawn comes from the action spaces' own generators, save a checkpoint's choice (torch)."""
    import gymnasium
    import numpy as np

    def act(envs: "list[gymnasium.Env[Any, Any]]", observations: list[Any]) -> list[Any]:
        spaces = [env.action_space for env in envs]
        if behaviour.policy == "random":
            return [space.sample() for space in spaces]
        if behaviour.policy == "demonstrator":
            actions = [env.unwrapped.demonstrate() for env in envs]  # type: ignore[attr-defined]
        else:
            assert model is not None
            actions = list(model.predict(np.stack(observations), deterministic=behaviour.deterministic)[0])
        return [disturbed(action, space) for action, space in zip(actions, spaces, strict=True)]

    def disturbed(action: Any, space: "gymnasium.Space[Any]") -> Any:
        if behaviour.epsilon and space.np_random.random() < behaviour.epsilon:
            return space.sample()
        if behaviour.noise:
            assert isinstance(space, gymnasium.spaces.Box)
            noise = behaviour.noise * (space.high - space.low) / 2 * space.np_random.standard_normal(space.shape)
            return np.clip(action + noise, space.low, space.high).astype(space.dtype)
        return action

    return act


def _play(recipe: Recipe, index: int, act: "Act", progress: bool) -> "list[EpisodeBuffer]":
    """The episodes of one behaviour, several at a time; each begins with a seed of its own, which is recorded."""
    import gymnasium
    import numpy as np
    import torch
    from minari.data_collector import EpisodeBuffer
    from tqdm import tqdm

    count = recipe.behaviour[index].episodes
    # An action space seeded like its environment would draw the very numbers that chose the initial state, hence two seeds.
    *seeds, torch_seed = np.random.SeedSequence([recipe.seed, index]).generate_state(2 * count + 1).tolist()
    torch.manual_seed(torch_seed)
    buffers = [EpisodeBuffer(seed=seed, observations=[], actions=[]) for seed in seeds[:count]]
    waiting = deque(range(count))

    def begin(env: "gymnasium.Env[Any, Any]") -> "tuple[gymnasium.Env[Any, Any], EpisodeBuffer]":
        number = waiting.popleft()
        env.action_space.seed(seeds[count + number])
        buffers[number].observations.append(env.reset(seed=seeds[number])[0])
        return env, buffers[number]

    envs = [gymnasium.make(recipe.env, disable_env_checker=True) for _ in range(min(PARALLEL_EPISODES, count))]
    running = [begin(env) for env in envs]
    with tqdm(
        total=count, desc=recipe.behaviour[index].name, unit="episode", disable=None if progress else True
    ) as bar:
        while running:
            actions = act([env for env, _ in running], [buffer.observations[-1] for _, buffer in running])
            ended = [_step(env, buffer, action) for (env, buffer), action in zip(running, actions, strict=True)]
            bar.update(sum(ended))
            running = [
                begin(pair[0]) if done else pair
                for pair, done in zip(running, ended, strict=True)
                if not done or waiting
            ]
    for env in envs:
        env.close()
    return buffers


def _step(env: "gymnasium.Env[Any, Any]", buffer: "EpisodeBuffer", action: Any) -> bool:
    """Take one step and record it; whether the episode ended."""
    observation, reward, terminated, truncated, _ = env.step(action)
    buffer.actions.append(action)
    buffer.observations.append(observation)
    buffer.rewards.append(float(reward))
    buffer.terminations.append(terminated)
    buffer.truncations.append(truncated)
    return bool(terminated or truncated)


# Writing


def _check_target(dataset_id: str, overwrite: bool) -> None:
    from minari.storage import get_dataset_path

    if not DATASET_ID.fullmatch(dataset_id):
        raise InputError(f"{dataset_id!r} is no Minari dataset id; write namespace/name-v0.")
    try:
        target = get_dataset_path(dataset_id)
    except OSError as error:
        raise InputError(f"Minari's folder cannot be used: {error}; point MINARI_DATASETS_PATH to another.") from error
    if target.exists() and not (target / "data").is_dir():
        raise InputError(f"{target} exists and is no dataset; choose another dataset id.")
    if target.exists() and not overwrite:
        raise InputError(f"the dataset {dataset_id} exists in {target}; ask to overwrite it, or choose another id.")


def _write(recipe: Recipe, episodes: "list[EpisodeBuffer]", dataset_id: str) -> None:
    """Written aside and moved into place when it is complete."""
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    target, namespace = get_dataset_path(dataset_id), dataset_id.rpartition("/")[0]
    # Minari skips folders whose name begins with a dot.
    with tempfile.TemporaryDirectory(prefix=".dtrl-", dir=get_dataset_path()) as aside:
        with _minari_folder(aside):
            _write_in_place(recipe, episodes, dataset_id)
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        if target.exists():
            target.rename(Path(aside) / "replaced")
        (Path(aside) / dataset_id).rename(target)


@contextmanager
def _minari_folder(folder: str) -> Iterator[None]:
    """Minari has no other way to be told where to write."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _write_in_place(recipe: Recipe, episodes: "list[EpisodeBuffer]", dataset_id: str) -> None:
    import minari

    summary = "; ".join(f"{behaviour.episodes} episodes of {behaviour.name}" for behaviour in recipe.behaviour)
    with warnings.catch_warnings():
        # It is the recipe that says where the data come from; its author is not known here.
        warnings.filterwarnings("ignore", message="`(code_permalink|author|author_email)` is set to None")
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            env=recipe.env,
            eval_env=recipe.env,
            algorithm_name=_algorithm_name(recipe),
            description=f"{recipe.description} Seed {recipe.seed}: {summary}.",
            ref_min_score=recipe.reference.random if recipe.reference else None,
            ref_max_score=recipe.reference.expert if recipe.reference else None,
            jpeg_encoding=False,  # lossy
        )
    recipe_fields = dataclasses.asdict(dataclasses.replace(recipe, source=Path(recipe.source).name))
    dataset.storage.update_metadata({"recipe": recipe_fields})
    dataset.storage.update_episode_metadata(
        [{"behaviour": b.name} for b in recipe.behaviour for _ in range(b.episodes)]
    )


def _algorithm_name(recipe: Recipe) -> str:
    from importlib.metadata import version

    if recipe.algorithm is None:
        return ", ".join(dict.fromkeys(behaviour.name for behaviour in recipe.behaviour))
    return f"{recipe.algorithm.name} of stable_baselines3 {version('stable_baselines3')}"
