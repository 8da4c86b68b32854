"""Episodes to Minari datasets: as a recipe had them played, or taken from trajectories. A dataset is written whole or not at all."""

import dataclasses
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium import spaces

from dtrl.collect.environments import OnePart, make_environment
from dtrl.collect.episodes import check_finite, file_lengths, from_file
from dtrl.collect.playing import chosen_episodes
from dtrl.collect.provenance import algorithm_name, dataset_provenance, description, episode_provenance
from dtrl.collect.recipes import DATASET_ID, Recipe
from dtrl.errors import InputError
from dtrl.spaces import NO_CHARACTER, Leaf, check_space, flatten, leaves, unflatten

# Only for annotations: the command line reads recipes without paying for these imports.
if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

    from dtrl.trajectories import Trajectories


def write_minari(
    trajectories: "Trajectories",
    dataset_id: str,
    *,
    description: str = "",
    algorithm: str = "",
    overwrite: bool = False,
) -> str:
    """Write trajectories, such as `dtrl.rollout` returns, as a Minari dataset and return its id; loaded again they are equal.

    Observations and actions are stored in the dtypes of their spaces, rewards undelayed and in float64. The environment and the
    reference returns of `trajectories.origin` go into the metadata; the environment is not made. `description` is by default the
    origin's name, `algorithm` says what acted. As in `make_dataset`, a failure leaves nothing and replaces nothing.

    InputError if the dataset exists, the id is malformed, `load_trajectories` could not read the spaces, there is no episode, or
    a value is not finite or does not fit the dtype of its space."""
    check_target(dataset_id, overwrite)
    check_space(trajectories.observation_space, "observation", "the trajectories")
    check_space(trajectories.action_space, "action", "the trajectories")
    if not trajectories.num_episodes:
        raise InputError(f"the trajectories to write as {dataset_id} hold no episode; give one or more.")
    write_whole(dataset_id, lambda: write_trajectories(trajectories, dataset_id, description, algorithm))
    return dataset_id


def check_target(dataset_id: str, overwrite: bool) -> None:
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
        raise InputError(
            f"the dataset {dataset_id} exists in {target}; overwrite it (overwrite=True, --overwrite), or choose another id (--as)."
        )


def write_whole(dataset_id: str, write: Callable[[], None], folder: Path | None = None) -> None:
    """Have `write` make the dataset aside, in `folder` or in Minari's, and move it into place when it is complete."""
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    target, namespace = get_dataset_path(dataset_id), dataset_id.rpartition("/")[0]
    # Minari skips folders whose name begins with a dot.
    with tempfile.TemporaryDirectory(
        prefix="writing-" if folder else ".dtrl-", dir=folder or get_dataset_path()
    ) as aside:
        with minari_folder(aside):
            write()
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        if target.exists():
            target.rename(Path(aside) / "replaced")
        (Path(aside) / dataset_id).rename(target)


@contextmanager
def minari_folder(folder: str) -> Iterator[None]:
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


def create(
    dataset_id: str,
    episodes: "Iterable[EpisodeBuffer]",
    env_spec: str | None,
    reference: tuple[float, float] | None = None,
    **metadata: Any,
) -> "MinariDataset":
    """`minari.create_dataset_from_buffers` without its lossy images, and silent about what is not known here.

    `env_spec` is the EnvSpec in JSON; one that Minari could not read is left out. `reference` are the returns that stand for 0 and 1 in normalised scores."""
    import minari

    with warnings.catch_warnings():
        # It is the recipe, or the origin, that says where the data come from; their author is not known here.
        unknown = "code_permalink|author|author_email|algorithm_name|eval_env"
        warnings.filterwarnings("ignore", message=f"`({unknown})` is set to None|env_spec is None")
        dataset = minari.create_dataset_from_buffers(dataset_id, episodes, jpeg_encoding=False, **metadata)
    # Given these to begin with, Minari would make the environment.
    if (readable := readable_env_spec(env_spec)) is not None:
        dataset.storage.update_metadata({"env_spec": readable})
    if reference is not None:
        low, high = reference
        dataset.storage.update_metadata({"ref_min_score": float(low), "ref_max_score": float(high)})
    return dataset


def write_recipe(recipe: Recipe, folder: Path, dataset_id: str) -> None:
    """The dataset of the episodes in the folder, which are read one file after the other."""
    from minari.data_collector import EpisodeBuffer

    files = chosen_episodes(folder, recipe)
    counts = [sum(len(which) for _, which in some) for some in files]
    if not sum(counts):
        raise InputError(f"{recipe.source}: no episode had ended where the replay buffer was taken; train for longer.")
    warn_of_less(recipe, dataset_id, files)
    env = make_environment(recipe)
    spec = spec_of(env.env if isinstance(env, OnePart) else env)  # Minari can't store the wrapper
    if spec is None:
        warnings.warn(
            f"the dataset {dataset_id} does not name its environment, as {recipe.env} is registered with an object; register it with an entry point "
            'in the form "module:Class", or name the environment whenever the dataset is used (env, --env)',
            stacklevel=2,
        )
    dataset = create(
        dataset_id,
        (
            EpisodeBuffer(**vars(episodes[i]))
            for some in files
            for file, which in some
            for episodes in [from_file(file, env.observation_space, env.action_space)]
            for i in which
        ),
        spec,
        (recipe.reference.random, recipe.reference.expert) if recipe.reference else None,
        observation_space=env.observation_space,
        action_space=env.action_space,
        algorithm_name=algorithm_name(recipe),
        description=description(recipe, counts),
    )
    env.close()
    dataset.storage.update_metadata(dataset_provenance(recipe))
    dataset.storage.update_episode_metadata(episode_provenance(recipe, counts))


def warn_of_less(recipe: Recipe, dataset_id: str, files: Sequence[Sequence[tuple[Path, Sequence[int]]]]) -> None:
    """Where a replay buffer had no more to give, and the dataset is smaller than it was to be."""
    lengths = [steps for some in files for file, which in some for steps in map(file_lengths(file).__getitem__, which)]
    for name, asked, there in (("episodes", recipe.episodes, len(lengths)), ("steps", recipe.steps, sum(lengths))):
        if asked is not None and there < asked:
            warnings.warn(
                f"{dataset_id} has {there} {name} instead of {asked}: there are no more whole episodes in the replay buffer",
                stacklevel=2,
            )


def write_trajectories(trajectories: "Trajectories", dataset_id: str, description: str, algorithm: str) -> None:
    origin = trajectories.origin
    create(
        dataset_id,
        (episode_buffer(trajectories, i) for i in range(trajectories.num_episodes)),
        origin.env_spec,
        origin.reference,
        observation_space=trajectories.observation_space,
        action_space=trajectories.action_space,
        algorithm_name=algorithm or None,
        description=description or origin.name,
    )


def episode_buffer(trajectories: "Trajectories", i: int) -> "EpisodeBuffer":
    """Episode `i` as Minari records it: observations (T+1, …), and all else (T, …)."""
    import numpy as np
    from minari.data_collector import EpisodeBuffer

    episode = trajectories.episode(i)
    check_finite(episode, f"episode {i}", "repair or remove that episode.")
    for name, space in (("observations", trajectories.observation_space), ("actions", trajectories.action_space)):
        parts = flatten(space, episode[name])
        stored = {leaf.path: as_stored(parts[leaf.path], leaf, leaf.name(name), i) for leaf in leaves(space)}
        episode[name] = unflatten(space, stored)
    episode["rewards"] = episode["rewards"].astype(np.float64)
    return EpisodeBuffer(**episode)


def as_stored(values: Any, leaf: Leaf, name: str, index: int) -> Any:
    """A leaf's values in the dtype of its space; texts as text. Raises InputError for a value that the dtype cannot hold."""
    import numpy as np

    if isinstance(leaf.space, spaces.Text):
        characters = sorted(leaf.space.characters)
        return ["".join(characters[i - 1] for i in row if i != NO_CHARACTER) for row in values]
    dtype = leaf.space.dtype
    with np.errstate(over="ignore", invalid="ignore"):  # what the dtype cannot hold changes, and is refused below
        stored = values.astype(dtype)
    wrong = stored != values
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0])
        raise InputError(
            f"{name} of episode {index} hold {values[first]} at step {first[0]}, which {np.dtype(dtype)} cannot store; repair "
            "or remove that episode, or give a space of another dtype."
        )
    return stored


def spec_of(env: "gymnasium.Env[Any, Any]") -> str | None:
    """The EnvSpec in JSON; None where the environment has none, or one that names an object."""
    try:
        return env.spec.to_json() if env.spec is not None else None
    except (TypeError, ValueError):
        return None


def readable_env_spec(env_spec: str | None) -> str | None:
    """The EnvSpec in a form that Minari can read; None if there is none or it does not parse. Nothing that it names is imported."""
    from gymnasium.envs.registration import EnvSpec

    from dtrl.acting.environments import parse

    known = {
        field.name for field in dataclasses.fields(EnvSpec) if field.init
    }  # older versions of Gymnasium wrote others too
    try:
        spec = {name: value for name, value in parse(env_spec or "").items() if name in known}
        spec.setdefault("additional_wrappers", [])
        text = json.dumps(spec)
        EnvSpec.from_json(text)
    except (InputError, TypeError, ValueError):
        return None
    return text
