"""The environment a dataset names, built without running anything the dataset says.

Minari stores an EnvSpec in each dataset: a JSON text with import paths in it. Gymnasium would import and call them. Here the text only chooses among
what is registered already: its id must be known to Gymnasium, and its entry point must be the one registered under that id."""

import os
import sys
from typing import Any

import gymnasium
from gymnasium import spaces

from dtrl.documents import parse_json
from dtrl.errors import InputError, did_you_mean
from dtrl.registration import registered
from dtrl.spaces import SIMPLE, Space, same_space


def make_environment(env: str, render_mode: str | None = None) -> "gymnasium.Env[Any, Any]":
    """The environment of an id (`CartPole-v1`) or of an EnvSpec in JSON.

    Raises InputError for an unknown id, an entry point other than the registered one, wrappers, and missing packages (with Gymnasium's own hint)."""
    spec = parse(env)
    name, kwargs = spec["id"], spec["kwargs"]
    found = registered(name, kwargs)
    if "entry_point" in spec and spec["entry_point"] != found.entry_point:
        raise InputError(
            f"the data name {spec['entry_point']!r} as the code of {name}, and the one registered here is {found.entry_point!r}; register that "
            "environment yourself, or give another with env."
        )
    if spec.get("additional_wrappers"):
        wrappers = ", ".join(
            str(w.get("name", w)) if isinstance(w, dict) else str(w) for w in spec["additional_wrappers"]
        )
        raise InputError(
            f"the data were recorded through wrappers ({wrappers}), which dtrl does not build from a dataset; "
            "make the environment yourself and give it with env."
        )
    if "max_episode_steps" in spec and spec["max_episode_steps"] is not None:
        kwargs["max_episode_steps"] = spec["max_episode_steps"]
    kwargs.pop("render_mode", None)
    if render_mode is not None:  # an environment that draws nothing need not know the word
        kwargs["render_mode"] = render_mode
        if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # which pygame draws with, and which looks for a desktop
    try:
        return gymnasium.make(name, **kwargs)
    except Exception as error:
        raise InputError(
            f"environment {name} cannot be made ({type(error).__name__}: {' '.join(str(error).split())})."
        ) from error


def parse(env: str) -> dict[str, Any]:
    """An EnvSpec's JSON, or {"id": …} for a plain id."""
    if not env.lstrip().startswith("{"):
        return {"id": env, "kwargs": {}}
    try:
        spec = parse_json(env)
        spec["kwargs"] = dict(spec.get("kwargs") or {})
        assert isinstance(spec["id"], str)
        assert isinstance(spec.get("additional_wrappers"), list | tuple | None)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise InputError(
            "the environment that the data name is not an EnvSpec in JSON; give the environment's id with env."
        ) from error
    return dict(spec)


def seen_part(given: Space, trained: Space, wanted: str | None, dataset: str) -> tuple[str | int, ...]:
    """The keys that lead from an environment's observation to what the policy was trained on; none where that is the whole.

    `wanted` is the path of a part ("image"); without it, the whole is taken where it fits, and else the only part that does. Raises InputError where none
    does, or several do. A Dict fits where it has more parts than the policy knows."""
    parts = {"/".join(map(str, keys)): (keys, space) for keys, space in parts_of(given)}
    if wanted is not None:
        if wanted not in parts:
            raise InputError(
                f"the environment's observation has no part {wanted!r}; {did_you_mean(wanted, [p for p in parts if p])}"
            )
        fitting = [wanted] if fits(trained, parts[wanted][1]) else []
    else:
        fitting = [""] if fits(trained, given) else [path for path, (_, space) in parts.items() if fits(trained, space)]
    if len(fitting) > 1:
        raise InputError(
            f"the policy was trained on {trained}, and {', '.join(fitting)} of the environment's observation are such; choose one with observation."
        )
    if not fitting:
        raise InputError(
            f"the observation space of the environment is {given}, and the policy was trained on {dataset} with {trained}; "
            "evaluate it in the environment of its data."
        )
    return parts[fitting[0]][0]


def parts_of(space: Space) -> list[tuple[tuple[str | int, ...], Space]]:
    """The space itself and all parts of it, each with the keys that lead there."""
    inner: list[tuple[str | int, Space]] = []
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = list(enumerate(space.spaces))
    return [((), space), *(((key, *keys), part) for key, child in inner for keys, part in parts_of(child))]


def fits(trained: Space, given: Space) -> bool:
    """Whether every value of `given` holds what a policy with the space `trained` needs."""
    if isinstance(trained, spaces.Dict):
        return isinstance(given, spaces.Dict) and all(
            key in given.spaces and fits(part, given.spaces[key]) for key, part in trained.spaces.items()
        )
    if isinstance(trained, spaces.Tuple):
        return (
            isinstance(given, spaces.Tuple)
            and len(given.spaces) == len(trained.spaces)
            and all(map(fits, trained.spaces, given.spaces))
        )
    if isinstance(trained, spaces.Text) and not isinstance(given, (*SIMPLE, spaces.Dict, spaces.Tuple)):
        return True  # a space of the environment's own, as MiniGrid's missions; its texts are checked one by one
    return same_space(trained, given)


def descend(observation: Any, keys: tuple[str | int, ...]) -> Any:
    """The part of an observation, or of a batch of them, to which the keys lead."""
    for key in keys:
        observation = observation[key]
    return observation


def environment_id(env: str | None) -> str | None:
    return None if env is None else str(parse(env)["id"])
