"""Spaces: which ones have a tokenizer, when two are the same to a model, and their form in files."""

import numpy as np
import pytest
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.spaces import check_space, column_layout, same_space, space_from_json, space_to_json

SUPPORTED = {
    "vector": spaces.Box(-1, 1, (2,)),
    "open vector": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "whole numbers": spaces.Box(0, 255, (4,), np.uint8),
    "ids": spaces.Discrete(5),
    "ids from -2": spaces.Discrete(5, start=-2),
}
UNSUPPORTED = {
    "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "scalar": spaces.Box(-1, 1, ()),
    "nothing": spaces.Box(-1, 1, (0,)),
    "dict": spaces.Dict(x=spaces.Discrete(2)),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
}


@pytest.mark.parametrize("space", SUPPORTED.values(), ids=SUPPORTED)
def test_a_space_survives_its_file(space):
    check_space(space, "action", "somewhere")
    again = space_from_json(space_to_json(space))
    assert again == space
    assert same_space(again, space)


@pytest.mark.parametrize("space", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_space_without_a_tokenizer_is_named(space):
    with pytest.raises(
        InputError, match=r"the action space of somewhere is .*cannot tokenize.*FlattenObservation"
    ) as caught:
        check_space(space, "action", "somewhere")
    assert str(space) in str(caught.value)


def test_columns_hold_vectors_or_ids():
    assert column_layout(SUPPORTED["open vector"]) == ((3,), np.float32)
    assert column_layout(SUPPORTED["ids"]) == ((), np.int64)


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
