"""The datasets of a suite, made where they are missing, and what each asks of a policy: environment, scale, target return."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dtrl.acting.environments import environment_id, make_environment, parse
from dtrl.collect import load_recipe, make_dataset
from dtrl.config import DataConfig
from dtrl.errors import InputError
from dtrl.evaluation.references import Reference, reference_for
from dtrl.registration import install_hint
from dtrl.suites.suite import Suite, SuiteDataset, recipe_path
from dtrl.trajectories import Trajectories, load_trajectories
from dtrl.trajectories.minari_files import read_metadata
from dtrl.trajectories.sources import local_datasets, locate


@dataclass(frozen=True)
class Source:
    """A dataset that is known: where it is or will be, and the environment in which its policies are evaluated."""

    dataset: SuiteDataset
    where: str
    """What `load_trajectories` takes."""
    env: str
    """An id, or an EnvSpec in JSON."""
    recipe: str | None
    """What has to be made first: a recipe's name or path."""
    missing: str | None
    """Why the environment cannot be made here, and what installs it."""


@dataclass(frozen=True)
class Prepared:
    """A dataset that is there, and what its runs have in common."""

    dataset: SuiteDataset
    where: str
    env: str
    options: Mapping[str, Any]
    """Those of DataConfig that the suite and the dataset set."""
    sha256: str
    """Of the data as they are loaded."""
    episodes: int
    target_return: float
    """What policies are asked for, from the data alone, in reward units."""
    reference: Reference
    """The scale of scores."""


def find(suite: Suite, dataset: SuiteDataset) -> Source:
    """Where a dataset is, or what makes it. Nothing is made; a Minari dataset that is not local is downloaded.

    Raises InputError, naming suite and dataset, where neither is known."""
    where = f"{suite.source}: dataset {dataset.name}"
    try:
        if dataset.recipe is not None and dataset.id not in local_datasets():
            recipe = load_recipe(recipe_path(dataset.recipe, where))
            if dataset.id != recipe.id:
                raise InputError(f"the recipe {dataset.recipe} makes {recipe.id}; leave the id out, or correct it.")
            env = dataset.env or json.dumps({"id": recipe.env, "kwargs": recipe.env_options})
            return Source(dataset, dataset.id, env, recipe.source, why_missing(env))
        beside = suite.path(dataset.id)
        named = str(beside) if beside.exists() else dataset.id
        if os.path.isfile(named):
            spec = dataset.env or load_trajectories(named).origin.env_spec
        else:
            spec = dataset.env or read_metadata(locate(named)).get("env_spec")
        if not spec:
            raise InputError("its data name no environment; add env, the id of one.")
        return Source(dataset, named, str(spec), None, why_missing(str(spec)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def why_missing(env: str) -> str | None:
    """Why an environment cannot be made here, with what installs it; None where it can."""
    try:
        make_environment(env).close()
    except InputError as error:
        hint = ""
        with suppress(InputError):
            spec = parse(env)
            inner = spec["kwargs"].get("env_id")
            hint = install_hint(spec["id"]) or (install_hint(inner) if isinstance(inner, str) else "")
        return f"{error} {f'It needs {hint}.' if hint else ''}".strip()
    return None


def make(recipe: str) -> str:
    """Make the dataset of a recipe, in this process."""
    return make_dataset(load_recipe(recipe), progress=False)


def prepare(suite: Suite, source: Source) -> Prepared:
    """Load a dataset once, and see what its runs have in common.

    Raises InputError where the data cannot be learned from, and where there is no scale for their scores."""
    dataset = source.dataset
    options = data_options({**suite.options, **dataset.options})
    where = f"{suite.source}: dataset {dataset.name}"
    trajectories = load_trajectories(source.where, **options)
    name = environment_id(source.env)
    reference = reference_for(name, *(trajectories.origin.reference or (None, None)))
    if dataset.reference is not None:
        reference = Reference(dataset.reference.random, dataset.reference.expert, "the suite's own reference scores")
    if reference is None:
        raise InputError(
            f"{where} has no reference returns, so its scores cannot be put beside others; add reference = {{ random = …, expert = … }}."
        )
    if trajectories.origin.fingerprint is None:
        raise InputError(f"{where} has no sha256; import it first (`dtrl datasets import`).")
    quantile = suite.protocol_of(dataset).target_quantile
    return Prepared(
        dataset,
        source.where,
        source.env,
        options,
        trajectories.origin.fingerprint,
        trajectories.num_episodes,
        target_of(trajectories, quantile),
        reference,
    )


def target_of(trajectories: Trajectories, quantile: float) -> float:
    """The return to ask for: a quantile of the returns of the episodes."""
    return float(np.quantile(trajectories.episode_returns, quantile))


def data_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that belong to DataConfig."""
    known = {f.name for f in fields(DataConfig)}
    return {name: value for name, value in options.items() if name in known}
