"""The past of a program: what it keeps, and what its mask shows, beside a list of everything that happened."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dtrl.acting.engines.past import FIRST_SLOTS, Past, Sizes

TOKENS, BEFORE = 3, 1
"""Of a call, and of them those that belong to the step before."""


def shown(past, base, new):
    """By row and token of the call: the set of numbers that it sees, in the slots and in the call."""
    past.prepare(base)
    inputs = past.inputs()
    values = np.concatenate(
        [inputs["past"][0, :, 0, :, 0], np.broadcast_to(new[0, :, 0, :, 0], (len(base), TOKENS))], axis=1
    )
    seen = np.isfinite(np.broadcast_to(inputs["mask"][:, 0], (len(base), TOKENS, values.shape[1])))
    return [[set(values[row][seen[row, token]]) for token in range(TOKENS)] for row in range(len(base))]


@given(
    kind=st.sampled_from(["banded", "full"]),
    length=st.integers(1, 5),
    firsts=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30),
)
def test_every_token_sees_what_the_model_was_trained_to_see(kind, length, firsts):
    limit = length if kind == "banded" else 40
    band = (length, TOKENS) if kind == "banded" else None
    past = Past(3, Sizes(kind, limit, TOKENS, BEFORE, 4, (1, 2, 1), band))
    history: list[list[tuple[int, float]]] = [[] for _ in range(3)]  # (position, number) of each row's tokens
    number = 0.0
    for step, some in enumerate(firsts):
        first = np.array(some) | (step == 0)
        base, over = past.begin(first)
        assert not len(over)
        new = (number + np.arange(1, 3 * TOKENS + 1, dtype=np.float32)).reshape(3, TOKENS)
        number += 3 * TOKENS
        everything = np.broadcast_to(new[None, :, None, :, None], (1, 3, 2, TOKENS, 1))
        for row in np.flatnonzero(first):
            history[row].clear()
        whole = [past_tokens + [(int(base[row]) + i, float(new[row, i])) for i in range(TOKENS)] for row, past_tokens in enumerate(history)]  # fmt: skip
        for row, tokens in enumerate(shown(past, base, everything)):
            for i, seen in enumerate(tokens):
                query = int(base[row]) + i
                begin = 0 if band is None else (query // TOKENS - length + 1) * TOKENS
                expected = {value for position, value in whole[row] if max(0, begin) <= position <= query}
                assert seen == (expected | {float(new[row, i])})
        past.write(base, everything)
        history = [[pair for pair in tokens if pair[0] >= 0] for tokens in whole]
    assert past.lengths.tolist() == [len(tokens) for tokens in history]


def test_a_full_past_grows_and_keeps_what_it_has():
    past = Past(2, Sizes("full", 100, TOKENS, BEFORE, 4, (1, 2, 1)))
    assert past.keys_values.shape[3] == FIRST_SLOTS
    for step in range(100):
        base, _ = past.begin(np.full(2, step == 0))
        past.write(base, np.broadcast_to(np.arange(3.0)[:, None] + base[0], (1, 2, 2, TOKENS, 1)))
    assert past.keys_values.shape[3] == 300
    np.testing.assert_array_equal(past.keys_values[0, 1, 0, :299, 0], np.arange(299))
