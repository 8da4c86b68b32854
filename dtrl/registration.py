"""Which package registers an environment's id with Gymnasium, and importing it.

An id may come from a dataset or a recipe, and no file shall choose what is imported. So only the packages of the table below are imported because of
an id; all others are named by the user, as in `--import MODULE`."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dtrl.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

PACKAGES = {"ALE/": "ale_py", "BabyAI-": "minigrid", "Fetch": "gymnasium_robotics", "MiniGrid-": "minigrid"}
"""Beginning of an environment's id → the package that registers it when it is imported."""

EXTRAS = {
    "gymnasium.envs.box2d.": "box2d",
    "gymnasium.envs.classic_control.": "classic",
    "gymnasium.envs.mujoco.": "mujoco",
    "minigrid.": "minigrid",
}
"""Beginning of the module that an environment's code is in → the extra of dtrl that installs what it needs."""


def package_of(env_id: str) -> str | None:
    """The one of `PACKAGES` that registers an environment."""
    return next((package for beginning, package in PACKAGES.items() if env_id.startswith(beginning)), None)


def install_hint(env_id: str) -> str:
    """What installs the packages that an environment needs: `pip install 'dtrl[box2d]'`, or a package; "" where dtrl does not know."""
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    code = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else ""
    package = package_of(env_id)
    code = code or f"{package}."
    extra = next((extra for beginning, extra in EXTRAS.items() if code.startswith(beginning)), None)
    if extra is not None:
        return f"`pip install 'dtrl[{extra}]'`"
    return f"`pip install {package}`" if package is not None else ""


def import_packages(env_id: str, options: Mapping[str, Any] | None = None) -> None:
    """Import what `PACKAGES` has for an environment that Gymnasium does not know yet, where it is installed.

    `options` are the arguments with which it will be made: those of `dtrl/DelayedReward-v0` name another environment as `env_id`."""
    import gymnasium

    for name in (env_id, (options or {}).get("env_id")):
        if isinstance(name, str) and (package := package_of(name)) is not None and name not in gymnasium.registry:
            with contextlib.suppress(ImportError):
                gymnasium.register_envs(importlib.import_module(package))


def registered(env_id: str, options: Mapping[str, Any] | None = None, where: str = "") -> "EnvSpec":
    """What Gymnasium has registered under an id. A module in the id ("module:Env-v0") is not imported.

    `where` begins the error, as in "recipe.toml: ". Raises InputError for an unknown id."""
    import gymnasium

    import_packages(env_id, options)
    if env_id not in gymnasium.registry:
        hint = "import the package that registers it (on the command line, --import PACKAGE)"
        near = did_you_mean(env_id, list(gymnasium.registry))
        if (package := package_of(env_id)) is not None:
            hint = f"`pip install {package}`, which has it."
        else:  # all the known ones would fill a page
            hint += f", or {near}" if near.startswith("did you mean") else "."
        raise InputError(f"{where}environment {env_id!r} is not registered with Gymnasium: {hint}")
    return gymnasium.registry[env_id]


def import_modules(names: Iterable[str]) -> None:
    """Import the modules that a user names, which register environments; those of the working directory are found too.

    Raises InputError for a name that is no module's, a module that is not there, and one that fails."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that no file there hides an installed package
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"{name!r} is no name of a module; write it as Python's import does, such as my_rooms.")
        try:
            importlib.import_module(name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
                raise InputError(
                    f"there is no module {name!r} to import; install its package, or go to the folder in which {name.partition('.')[0]}.py is."
                ) from error
            reason = " ".join(str(error).split())
            raise InputError(
                f"the module {name!r} cannot be imported ({type(error).__name__}: {reason}); correct it there."
            ) from error
