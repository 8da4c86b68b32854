"""The environment a dataset names, built without running anything the dataset says.

Minari stores an EnvSpec in each dataset: a JSON text with import paths in it. Gymnasium would import and call them. Here the text only chooses among
what is registered already: its id must be known to Gymnasium, and its entry point must be the one registered under that id."""

import json
from typing import Any

import gymnasium

from dtrl.errors import InputError, did_you_mean


def make_environment(env: str, render_mode: str | None = None) -> "gymnasium.Env[Any, Any]":
    """The environment of an id (`CartPole-v1`) or of an EnvSpec in JSON.

    Raises InputError for an unknown id, an entry point other than the registered one, wrappers, and missing packages (with Gymnasium's own hint)."""
    spec = parse(env)
    name, kwargs = spec["id"], spec["kwargs"]
    if name not in gymnasium.registry:
        near = did_you_mean(name, list(gymnasium.registry))
        hint = (
            near if near.startswith("did you mean") else "give another with env."
        )  # all the known ones would fill a page
        raise InputError(
            f"environment {name!r} is not registered with Gymnasium: import the package that registers it, or {hint}"
        )
    registered = gymnasium.registry[name]
    if "entry_point" in spec and spec["entry_point"] != registered.entry_point:
        raise InputError(
            f"the data name {spec['entry_point']!r} as the code of {name}, and the one registered here is {registered.entry_point!r}; register that "
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
        spec = json.loads(env)
        spec["kwargs"] = dict(spec.get("kwargs") or {})
        assert isinstance(spec["id"], str)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            "the environment that the data name is not an EnvSpec in JSON; give the environment's id with env."
        ) from error
    return dict(spec)


def environment_id(env: str | None) -> str | None:
    return None if env is None else str(parse(env)["id"])
