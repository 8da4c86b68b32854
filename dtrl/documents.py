"""JSON and TOML from files: whatever is wrong with a text is a ValueError, and a document is never nested so deep that whoever walks it fails."""

import json
import tomllib
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")
DEEPEST = 64
"""Levels of lists and tables in each other. What dtrl, Minari and Gymnasium write has less than 20; Python's own functions fail at a thousand."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for a text that is none, and for one that is nested deeper than DEEPEST."""
    return parsed(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises ValueError for a text that is none, and for one that is nested deeper than DEEPEST."""
    return parsed(tomllib.loads, text)


def parsed(loads: Callable[[Any], Value], text: str | bytes) -> Value:
    try:
        value = loads(text)
    except RecursionError as error:
        raise too_deep() from error
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [part for whole in level for part in parts_of(whole) if isinstance(part, list | dict)]
        if not level:
            return
    raise too_deep()


def parts_of(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def too_deep() -> ValueError:
    return ValueError(f"it is nested more than {DEEPEST} levels deep")
