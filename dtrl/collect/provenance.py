"""Where a dataset comes from, as its metadata tell it, and what would have to be equal for it to come out the same."""

import dataclasses
import hashlib
import json
import platform
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium

import dtrl
from dtrl.collect.environments import environment_spec
from dtrl.collect.reading import build
from dtrl.collect.recipes import ALGORITHMS, Recipe

SIMULATORS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "Box2D", "minigrid": "minigrid"}
"""How the entry point of an environment begins, and the package that moves it."""


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields, as its file has them."""
    table = dataclasses.asdict(recipe)
    return {name: value for name, value in table.items() if name not in ("source", "text")}


def fingerprint(recipe: Recipe) -> str:
    """A hash of all that decides the episodes: the recipe's fields, the files it names, the environment's code, and the versions of what runs."""
    parts = [
        fields_of(dataclasses.replace(recipe, description="", reference=None)),
        file_hashes(recipe),
        versions(recipe),
        [hashlib.sha256(file.read_bytes()).hexdigest() for file in environment_files(recipe)],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def text_hash(recipe: Recipe) -> str | None:
    """SHA-256 of the text of the recipe's file; None for a recipe that was made or changed in Python."""
    if recipe.text is None or fields_of(build(Recipe, tomllib.loads(recipe.text), "")) != fields_of(recipe):
        return None
    return hashlib.sha256(recipe.text.encode()).hexdigest()


def file_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files that behaviours name."""
    names = [name for b in recipe.behaviour for name in (b.path, b.normalize) if name is not None]
    folder = Path(recipe.source).parent
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def names_of_files(recipe: Recipe) -> dict[str, str]:
    """Path of a file that behaviours name → how the metadata name it. Where it lay on the machine that made the dataset is nobody's business, unless the
    name alone could be that of two files."""
    paths = list(file_hashes(recipe))
    short = [Path(path).name if Path(path).is_absolute() else path for path in paths]
    return {path: name if short.count(name) == 1 else path for path, name in zip(paths, short, strict=True)}


def environment_modules(recipe: Recipe) -> list[str]:
    """Modules in which the recipe's environment is, and the one inside that its options name."""
    entries = [environment_spec(recipe).entry_point]
    inner = recipe.env_options.get("env_id")
    if isinstance(inner, str) and inner in gymnasium.registry:
        entries.append(gymnasium.registry[inner].entry_point)
    return [entry.partition(":")[0] if isinstance(entry, str) else str(entry.__module__) for entry in entries if entry]


def environment_files(recipe: Recipe) -> list[Path]:
    """The files of these modules, which a user may have changed since."""
    files = [getattr(sys.modules.get(module), "__file__", None) for module in environment_modules(recipe)]
    return [Path(file) for file in files if file is not None]


def versions(recipe: Recipe) -> dict[str, str]:
    """Versions of the packages that decide the episodes."""
    names = ["gymnasium", "numpy"]
    modules = environment_modules(recipe)
    names += [name for beginning, name in SIMULATORS.items() if any(m.startswith(beginning) for m in modules)]
    if recipe.algorithm:
        names += ["torch", "stable_baselines3", ALGORITHMS[recipe.algorithm.name].package]
    return {"dtrl": dtrl.__version__, "python": platform.python_version()} | {name: version(name) for name in names}


def dataset_provenance(recipe: Recipe) -> dict[str, Any]:
    """What the metadata of a dataset tell beside Minari's own fields; values that JSON has."""
    names = names_of_files(recipe)
    behaviours = [
        {**vars(b), "path": names.get(b.path or "", b.path), "normalize": names.get(b.normalize or "", b.normalize)}
        for b in recipe.behaviour
    ]
    found: dict[str, Any] = {
        "recipe": {**fields_of(recipe), "behaviour": behaviours},
        "recipe_file": Path(recipe.source).name,
        "recipe_sha256": text_hash(recipe),
        "versions": versions(recipe),
        "policy_files": {names[path]: digest for path, digest in file_hashes(recipe).items()},
    }
    if recipe.algorithm:
        from dtrl.collect.training import settings

        found["algorithm"] = dataclasses.asdict(recipe.algorithm) | {
            "options": settings(recipe.algorithm.name, recipe.source) | recipe.algorithm.options,
            "policy": "MlpPolicy",
            "device": "cpu",
            "seed": recipe.seed,
        }
    return dict(json.loads(json.dumps(found, default=str)))


def episode_provenance(recipe: Recipe, counts: Sequence[int]) -> list[dict[str, str]]:
    """What is stored with each episode; its seed is there already. `counts` are the episodes of each behaviour.

    Options of `reset` are in JSON, as attributes of HDF5 cannot nest."""
    return [
        {
            "behaviour": behaviour.name,
            "policy": behaviour.source,
            "noise": behaviour.disturbance or "none",
            "reset_options": json.dumps(behaviour.reset_options),
        }
        for behaviour, count in zip(recipe.behaviour, counts, strict=True)
        for _ in range(count)
    ]


def description(recipe: Recipe, counts: Sequence[int]) -> str:
    parts = [f"{count} episodes of {b.name}" for b, count in zip(recipe.behaviour, counts, strict=True)]
    return f"{recipe.description} Seed {recipe.seed}: {'; '.join(parts)}."


def algorithm_name(recipe: Recipe) -> str:
    """Minari's field of that name."""
    if recipe.algorithm is None:
        return ", ".join(dict.fromkeys(behaviour.name for behaviour in recipe.behaviour))
    package = ALGORITHMS[recipe.algorithm.name].package
    return f"{recipe.algorithm.name} of {package} {version(package)}"
