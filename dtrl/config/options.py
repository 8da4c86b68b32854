"""How a setting is declared and checked: a field with its default, its help and its choices."""

import dataclasses
import math
from dataclasses import field, fields
from typing import Any

from dtrl.errors import InputError, did_you_mean


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


LARGEST = 2**1000
"""Whole numbers from here on are no floats, and comparing them fails."""


def check_choices(config: Any) -> None:
    """Refuse a value that its field does not list, and one of the wrong type, by name."""
    for f in fields(config):
        value, choices = getattr(config, f.name), f.metadata.get("choices")
        if choices and value not in choices and not (value is None and f.default is None):
            nearest, known = did_you_mean(str(value), choices), f"one of {', '.join(choices)}"
            hint = f"{nearest} ({known})" if nearest.endswith("?") else known
            raise InputError(f"{f.name} {value!r} is unknown: {hint}.")
        if value is None and f.default is None:
            continue
        wanted = plain_type(f)
        if type(value) is int and abs(value) >= LARGEST:
            raise InputError(f"{f.name} has hundreds of digits; give a smaller number.")
        if wanted is float and type(value) is int:
            object.__setattr__(config, f.name, float(value))
        elif type(value) is not wanted:
            raise InputError(f"{f.name} {value!r} is a {type(value).__name__}; a {wanted.__name__} is expected.")


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} {value} must be a positive number.")


def plain_type(f: "dataclasses.Field[Any]") -> type:
    """The type of an option that is not None: `int` for `int | None`."""
    kinds: list[type] = [
        t for t in getattr(f.type, "__args__", (f.type,)) if isinstance(t, type) and t is not type(None)
    ]
    return kinds[0]


def split_options(options: dict[str, Any], *parts: type) -> list[dict[str, Any]]:
    """Share out named options among the dataclasses that have them; an unknown name is an error that suggests the nearest."""
    known = {f.name: i for i, part in enumerate(parts) for f in fields(part)}
    shares: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in options.items():
        if name not in known:
            raise InputError(f"there is no option {name!r}; {did_you_mean(name, sorted(known))}")
        shares[known[name]][name] = value
    return shares
