"""JSON and TOML: read as the standard library reads them, and never so deep that whoever walks them fails."""

import json
import tomllib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dtrl.documents import DEEPEST, parse_json, parse_toml
from dtrl.errors import LONGEST, InputError, reason_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_a_json_text_is_read_as_json_reads_it(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
@pytest.mark.parametrize("depth", [DEEPEST + 2, 900, 100_000])
def test_a_json_text_that_is_nested_too_deep_is_refused(brackets, depth):
    opening, closing = brackets[:-1], brackets[-1]
    middle = "1" if ":" in opening else ""
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels"):
        parse_json(opening * depth + middle + closing * depth)
    assert parse_json(opening * DEEPEST + middle + closing * DEEPEST)


@pytest.mark.parametrize("depth", [DEEPEST + 2, 5_000])
def test_a_toml_text_that_is_nested_too_deep_is_refused(depth):
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels"):
        parse_toml(f"a = {'[' * depth}{']' * depth}")
    assert parse_toml("a = [[1]]") == tomllib.loads("a = [[1]]")


def test_a_message_is_one_printable_line_of_a_page_at_most():
    """What a file holds may be shown; it moves no cursor, and floods no terminal."""
    assert str(InputError("a \x1b[2J b\nc")) == r"a \x1b[2J b\nc"
    long = str(InputError("begin " + "x" * 100_000 + " do this."))
    assert len(long) < LONGEST
    assert long.startswith("begin xx")
    assert long.endswith("xx do this.")
    assert reason_of(KeyError("a\n" * 500)).startswith("KeyError: ")
    assert len(reason_of(ValueError("y" * 500))) < 200
