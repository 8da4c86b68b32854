"""Spaces: which ones have a tokenizer, when two are the same to a model, and their form in files."""

import numpy as np
import pytest
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.spaces import (
    check_space,
    column_layout,
    contains,
    flatten,
    is_image,
    leaves,
    numbers_of,
    same_space,
    space_from_json,
    space_to_json,
)

SUPPORTED = {
    "vector": spaces.Box(-1, 1, (2,)),
    "open vector": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "whole numbers": spaces.Box(0, 255, (4,), np.uint8),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "scalar": spaces.Box(-1, 1, ()),
    "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "ids": spaces.Discrete(5),
    "ids from -2": spaces.Discrete(5, start=-2),
    "choices": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
    "bits": spaces.MultiBinary(4),
    "dict": spaces.Dict(x=spaces.Discrete(2), y=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary((2, 2))])),
}
OBSERVED_ONLY = {
    "text": spaces.Text(6, charset="abc"),
    "dict with text": spaces.Dict(goal=spaces.Text(3), x=spaces.Discrete(2)),
}
UNSUPPORTED = {
    "sequence": (spaces.Sequence(spaces.Discrete(2)), "pad sequences to one length"),
    "graph": (spaces.Graph(spaces.Box(-1, 1, (2,)), None), "nodes and edges as Boxes"),
    "one of": (spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]), "a Discrete that chooses"),
    "sequence in a dict": (spaces.Dict(x=spaces.Sequence(spaces.Discrete(2))), r"its part 'x'.*pad sequences"),
    "text that is acted": (spaces.Text(5), "observed, not acted"),
    "nothing": (spaces.Box(-1, 1, (0,)), "no entry"),
    "no part": (spaces.Dict({}), "no part"),
    "slash": (spaces.Dict({"a/b": spaces.Discrete(2)}), 'may not contain "/"'),
}


@pytest.mark.parametrize("space", (SUPPORTED | OBSERVED_ONLY).values(), ids=SUPPORTED | OBSERVED_ONLY)
def test_a_space_survives_its_file(space):
    check_space(space, "observation", "somewhere")
    again = space_from_json(space_to_json(space))
    assert again == space
    assert same_space(again, space)


@pytest.mark.parametrize(("space", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_space_without_a_tokenizer_is_named_with_what_to_do(space, message):
    with pytest.raises(InputError, match=f"the action space of somewhere.*{message}"):
        check_space(space, "action", "somewhere")


def test_leaves_are_named_by_their_path():
    assert [leaf.path for leaf in leaves(SUPPORTED["dict"])] == ["x", "y/0", "y/1"]
    assert [leaf.name("observations") for leaf in leaves(SUPPORTED["vector"])] == ["observations"]


def test_columns_have_the_layout_of_their_kind():
    layouts = {name: column_layout(space) for name, space in (SUPPORTED | OBSERVED_ONLY).items() if "dict" not in name}
    assert layouts == {
        "vector": ((2,), np.float32),
        "open vector": ((3,), np.float32),
        "whole numbers": ((4,), np.float32),
        "matrix": ((2, 3), np.float32),
        "scalar": ((), np.float32),
        "image": ((7, 7, 3), np.uint8),
        "ids": ((), np.int64),
        "ids from -2": ((), np.int64),
        "choices": ((2, 2), np.int64),
        "bits": ((4,), np.int8),
        "text": ((6,), np.int64),
    }


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 255, (7, 7, 3), np.int64), True),
        (spaces.Box(0, 9, (7, 7, 3), np.uint8), True),
        (spaces.Box(0, 9, (7, 7, 3), np.int64), False),
        (spaces.Box(0, 255, (7, 7, 3), np.float32), False),
        (spaces.Box(0, 255, (7,), np.uint8), False),
    ],
    ids=str,
)
def test_pixels_are_bytes_or_whole_numbers_with_the_bounds_of_bytes(space, expected):
    assert is_image(space) is expected


def test_texts_become_the_ids_of_their_characters():
    space = spaces.Text(4, charset="abc")
    assert numbers_of(space, "cab").tolist() == [3, 1, 2, 0]
    assert numbers_of(space, ["a", b"bb"]).tolist() == [[1, 0, 0, 0], [2, 2, 0, 0]]
    assert numbers_of(space, np.array("ab")).tolist() == [1, 2, 0, 0]
    assert numbers_of(space, np.array(["c", "b"], object)).tolist() == [[3, 0, 0, 0], [2, 0, 0, 0]]
    for value in (np.array(3), np.array(None, object), [1.5]):
        with pytest.raises(InputError, match="holds texts; give a str"):
            numbers_of(space, value)
    for text in ("abcab", "xyz"):
        with pytest.raises(InputError, match="widen its max_length or its charset"):
            numbers_of(space, text)


@pytest.mark.parametrize(
    "value", [{"x": 1}, {"x": 1, "y": (0,)}, 3, (1, 2)], ids=["missing", "short", "number", "tuple"]
)
def test_a_value_that_lacks_a_part_is_refused(value):
    with pytest.raises(InputError):
        flatten(SUPPORTED["dict"], value)


SAME = {
    "another type": (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float64)),
    "bounds rounded to float32": (spaces.Box(-0.4, 0.4, (1,), np.float32), spaces.Box(-0.4, 0.4, (1,), np.float64)),
    "no bounds": (spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-np.inf, np.inf, (2,), np.float64)),
    "ids": (spaces.Discrete(3, start=1), spaces.Discrete(3, start=1)),
}
DIFFERENT = {
    "another width": (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (3,))),
    "other bounds": (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 2, (2,))),
    "one bound open": (spaces.Box(-1, 1, (2,)), spaces.Box(-1, np.inf, (2,))),
    "another number": (spaces.Discrete(3), spaces.Discrete(4)),
    "another start": (spaces.Discrete(3), spaces.Discrete(3, start=1)),
    "another kind": (spaces.Discrete(3), spaces.Box(0, 2, (1,))),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_spaces_of_the_same_values_are_the_same(one, other):
    assert same_space(one, other)
    assert same_space(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_spaces_of_other_values_are_not(one, other):
    assert not same_space(one, other)
    assert not same_space(other, one)


@pytest.mark.parametrize("name", [name for name, space in SUPPORTED.items() if not isinstance(space, spaces.Dict)])
def test_a_batch_is_asked_as_gymnasium_asks_each_value(name):
    """But for infinity, which Gymnasium takes for a number of an open vector."""
    space, random = SUPPORTED[name], np.random.default_rng(0)
    space.seed(0)
    values = np.stack([np.asarray(space.sample()) for _ in range(40)])
    moved = values.reshape(40, -1).copy()
    moved[::2, 0] += random.integers(-3, 4, 20).astype(values.dtype)
    values = moved.reshape(values.shape)
    if values.dtype.kind == "f":
        values.reshape(40, -1)[1, -1] = np.nan
    expected = [
        bool(
            space.contains(
                value if values.ndim > 1 else value.item() if isinstance(space, spaces.Discrete) else np.asarray(value)
            )
        )
        and bool(np.isfinite(value).all())
        for value in values
    ]
    np.testing.assert_array_equal(contains(space, values), expected)
    if values.dtype.kind == "f":
        assert not contains(space, np.full((1, *space.shape), np.inf, values.dtype)).any()
        assert not expected[1]
