"""Recipes as TOML files: finding them, and reading them into dataclasses."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from dtrl.collect.recipes import Algorithm, Behaviour, Recipe, Reference, check_recipe
from dtrl.documents import parse_toml
from dtrl.errors import InputError, did_you_mean


def list_recipes() -> dict[str, Path]:
    """Names of the recipes that come with dtrl, and their files."""
    # In an install datasets/ lies in the package, in a checkout beside it. Not importlib.resources: in an editable install it
    # does not find a folder that has no Python file.
    package = Path(__file__).parent.parent
    for folder in (package / "datasets", package.parent / "datasets"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def read_named_toml(
    kind: str, name_or_path: str | Path, shipped: Mapping[str, Path]
) -> tuple[Path, str, dict[str, Any]]:
    """Path, text and table of a TOML file: one that comes with dtrl under that name, or any by its path. `kind`, such as recipe, is for the errors.

    Raises InputError for an unknown name, and for a file that cannot be read."""
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if path.suffix != ".toml":
        raise InputError(
            f"there is no TOML file and no {kind} {str(name_or_path)!r}; {did_you_mean(str(name_or_path), list(shipped))}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        return path, text, parse_toml(text)
    except OSError as error:
        raise InputError(
            f"{kind} {path} cannot be read ({error.strerror}); the {kind}s of dtrl are {', '.join(shipped)}."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file: {error}; correct it there.") from error


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name, or in that .toml file. InputError for an unknown name and for any mistake in the file."""
    path, text, table = read_named_toml("recipe", name_or_path, list_recipes())
    recipe = build(Recipe, table, str(path))
    recipe = dataclasses.replace(recipe, source=str(path), text=text)
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
    known = {f.name: f for f in dataclasses.fields(kind) if f.name not in ("source", "text")}
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
