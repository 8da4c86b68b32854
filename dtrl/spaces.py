"""Observation and action spaces: which ones dtrl can tokenize, the simple parts of composite ones, and their form in JSON files.

A composite space (Dict, Tuple, nested) is a tree; dtrl works on its *leaves*, each with a path: "" for a space that is simple itself, "image" or
"goal/position" in Dicts, "0/1" in Tuples. A leaf has one column in the trajectories, one field in the model, and one array in a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.documents import parse_json
from dtrl.errors import InputError

Space = spaces.Space[Any]
Array = npt.NDArray[Any]
SIMPLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Text)
BYTE = 255
"""Largest value of a pixel."""
LONGEST_TEXT = 2**16
"""Characters of a text: far beyond what a model looks at in one step, and a space states its length without holding one."""
NO_CHARACTER = 0
"""Id of the places of a text beyond its end; the characters of the space's charset follow, in its order."""


@dataclass(frozen=True)
class Leaf:
    """A simple space and where it stands in the whole one."""

    path: str
    space: Space

    def name(self, whole: str) -> str:
        """Of its column or field: `observations` for a simple space, `observations/goal/position` for a part of a composite one."""
        return f"{whole}/{self.path}" if self.path else whole


def leaves(space: Space) -> tuple[Leaf, ...]:
    """The simple spaces of a space, in the space's own order; the space itself where it is simple."""
    return tuple(Leaf("/".join(keys), part) for keys, part in walk(space))


def walk(space: Space) -> list[tuple[tuple[str, ...], Space]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [((str(key), *keys), leaf) for key, part in parts for keys, leaf in walk(part)]
    return [((), space)]


def check_space(space: Space, role: str, where: str) -> None:
    """Refuse a space that has no tokenizer. `role` is "observation" or "action"; `where` names the dataset or env."""
    found = leaves(space)
    if not found:
        raise InputError(f"the {role} space of {where} is {space}, which has no part; there is nothing to learn from.")
    for leaf in found:
        part = f" (its part {leaf.path!r})" if leaf.path else ""
        known = isinstance(leaf.space, SIMPLE) and not (role == "action" and isinstance(leaf.space, spaces.Text))
        if not known or any("/" in key for key in keys_of(space)):
            raise InputError(
                f"the {role} space of {where}{part} is {leaf.space if leaf.path else space}, which dtrl cannot tokenize: {advice(leaf.space)}"
            )
        if isinstance(leaf.space, spaces.Text) and leaf.space.max_length > LONGEST_TEXT:
            raise InputError(
                f"the {role} space of {where}{part} has texts of up to {leaf.space.max_length} characters, and each is a token; "
                f"shorten them to {LONGEST_TEXT} or less."
            )
        if not np.prod(column_layout(leaf.space)[0]):
            raise InputError(f"the {role} space of {where}{part} is {leaf.space}, which has no entry; leave it out.")


def keys_of(space: Space) -> list[str]:
    return [key for keys, _ in walk(space) for key in keys]


def advice(space: Space) -> str:
    """What to do instead of a space that dtrl cannot tokenize."""
    if isinstance(space, spaces.Text):
        return "text can be observed, not acted; use Discrete or MultiDiscrete."
    if isinstance(space, SIMPLE):
        return 'a name in a Dict may not contain "/"; rename it.'
    kinds = {
        spaces.Sequence: "pad sequences to one length, in a Box or MultiDiscrete",
        spaces.Graph: "give nodes and edges as Boxes of fixed size",
        spaces.OneOf: "give a Dict of the alternatives and a Discrete that chooses",
    }
    use = next((text for kind, text in kinds.items() if isinstance(space, kind)), "wrap the environment")
    return f"{use} (Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dict or Tuple of them are known)."


def column_layout(space: Space) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape of one value and dtype of the column that holds a simple space's values.

    Float32 for numbers, uint8 for images (`is_image`), int8 for bits, int64 for ids; the characters of a text are ids, `NO_CHARACTER` after its end."""
    if isinstance(space, spaces.Discrete):
        return (), np.int64
    if isinstance(space, spaces.Text):
        return (int(space.max_length),), np.int64
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return space.shape, np.int64 if isinstance(space, spaces.MultiDiscrete) else np.int8
    return space.shape or (), np.uint8 if is_image(space) else np.float32


def choices_of(space: Space) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Sizes and starts of the choices of a space that has several at once."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.astype(np.int64), space.start.astype(np.int64)
    if isinstance(space, spaces.MultiBinary):
        return np.full(space.shape, 2), None
    assert isinstance(space, spaces.Text)
    return np.full(space.max_length, len(space.characters) + 1), None


def is_image(space: Space) -> bool:
    """Whether a space holds pixels: bytes on a grid, with channels first or last or without, of one frame or of a stack.

    Whole numbers of another type are bytes where every bound is 0 and 255, and are kept as such."""
    if not isinstance(space, spaces.Box) or not 2 <= len(space.shape) <= 4:
        return False
    whole = space.dtype.kind in "iu" and bool((space.low == 0).all() and (space.high == BYTE).all())
    return space.dtype == np.uint8 or whole


def same_space(one: Space, other: Space) -> bool:
    """Whether two spaces hold the same values as far as a model is concerned: paths, kinds, shapes, numbers, and bounds up to rounding; not dtype."""
    ours, theirs = leaves(one), leaves(other)
    return [leaf.path for leaf in ours] == [leaf.path for leaf in theirs] and all(
        same_leaf(a.space, b.space) for a, b in zip(ours, theirs, strict=True)
    )


def same_leaf(one: Space, other: Space) -> bool:
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        alike = one.shape == other.shape and is_image(one) == is_image(other)
        return alike and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    if isinstance(one, spaces.Text) and isinstance(other, spaces.Text):
        return one.max_length == other.max_length and one.characters == other.characters
    return type(one) is type(other) and isinstance(one, SIMPLE) and bool(one == other)


# values


def flatten(space: Space, value: Any) -> dict[str, Any]:
    """The parts of a value, or of a batch of values, by the paths of the space's leaves. Raises InputError where parts are missing."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        keys: list[Any] = list(space.spaces) if isinstance(space, spaces.Dict) else list(range(len(space.spaces)))
        kind = Mapping if isinstance(space, spaces.Dict) else (tuple, list)
        if not isinstance(value, kind) or (isinstance(space, spaces.Tuple) and len(value) != len(keys)):
            raise InputError(
                f"{str(value)[:80]} does not fit {space}; give {'a dict' if isinstance(space, spaces.Dict) else 'a tuple'} of its parts."
            )
        missing = [key for key in keys if isinstance(space, spaces.Dict) and key not in value]
        if missing:
            raise InputError(f"the part {missing[0]!r} of {space} is missing; give all of {', '.join(map(str, keys))}.")
        return {
            f"{key}/{path}" if path else str(key): part
            for key in keys
            for path, part in flatten(space.spaces[key], value[key]).items()
        }
    return {"": value}


def unflatten(space: Space, parts: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return parts[""]

    def build(part: Space, path: str) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: build(child, f"{path}{key}/") for key, child in part.spaces.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(build(child, f"{path}{i}/") for i, child in enumerate(part.spaces))
        return parts[path[:-1]]

    return build(space, "")


def stack(space: Space, values: Sequence[Any]) -> Any:
    """Single values of a space as one batch, in the form in which vector environments give it: texts stay text."""
    parts = [flatten(space, value) for value in values]
    columns: dict[str, Any] = {}
    for leaf in leaves(space):
        column = [part[leaf.path] for part in parts]
        columns[leaf.path] = (
            column if isinstance(leaf.space, spaces.Text) else np.asarray(column, dtype=leaf.space.dtype)
        )
    return unflatten(space, columns)


def numbers_of(space: Space, value: Any) -> Array:
    """A value, or a batch of values, of a simple space as an array: texts become the ids of their characters."""
    if not isinstance(space, spaces.Text):
        return np.asarray(value)
    if isinstance(value, (str, bytes)):
        return text_ids(space, value)
    values = value if isinstance(value, (list, tuple)) else np.asarray(value)
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iu" and values.ndim:
            return values
        if not values.ndim:
            return text_ids(space, values.item())
    return np.stack([text_ids(space, text) for text in values]) if len(values) else np.zeros((0, space.max_length), int)


def contains(space: Space, values: Array) -> npt.NDArray[np.bool_]:
    """(B,) whether a simple space of numbers holds each of a batch (B, …). NaN and infinity are in none."""
    if isinstance(space, spaces.Box):
        good = np.isfinite(values) & (values >= space.low) & (values <= space.high)
    elif isinstance(space, spaces.MultiBinary):
        good = (values == 0) | (values == 1)
    else:
        assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
        size = space.n if isinstance(space, spaces.Discrete) else space.nvec
        good = (values >= space.start) & (values < space.start + size)
    return np.asarray(good.all(axis=tuple(range(1, good.ndim))))


def text_ids(space: spaces.Text, text: Any) -> Array:
    """(max_length,) ids of a text's characters. Raises InputError for a text that is too long, or a character outside the charset."""
    text = text.decode() if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise InputError(f"{text!r} is a {type(text).__name__}, and {space} holds texts; give a str.")
    number = {character: i + 1 for i, character in enumerate(sorted(space.characters))}
    if len(text) > space.max_length or not set(text) <= number.keys():
        raise InputError(f"the text {text[:60]!r} does not fit {space}; widen its max_length or its charset.")
    ids = np.full(space.max_length, NO_CHARACTER, dtype=np.int64)
    ids[: len(text)] = [number[character] for character in text]
    return ids


def space_to_json(space: Space) -> str:
    from minari.serialization import serialize_space

    return str(serialize_space(space))


def space_from_json(text: str) -> Space:
    """The space that `space_to_json` wrote. Raises ValueError for any other text."""
    from minari.serialization import deserialize_space

    document = parse_json(text)
    try:
        space: Space = deserialize_space(document)
    except Exception as error:  # what is wrong in a text may break any line of Minari's and Gymnasium's
        raise ValueError(f"it holds no space that Gymnasium knows ({type(error).__name__}: {error})") from error
    return space
