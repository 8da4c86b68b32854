"""The log of a vector environment's steps, beside a list for every row."""

import numpy as np

from dtrl.acting.steps import BLOCK_STEPS, StepLog


def test_the_steps_of_a_row_are_those_since_its_episode_began():
    """Episodes begin at random, rows at different times; what no row needs is forgotten."""
    random, rows = np.random.default_rng(0), 3
    log, lists, most = StepLog(rows), [[] for _ in range(rows)], 0
    for step in range(20 * BLOCK_STEPS):
        values = random.normal(size=(rows, 2)).astype(np.float32)
        log.append({("observations", ""): values, ("rewards", ""): np.full(rows, float(step))})
        for row in range(rows):
            lists[row].append((values[row], step))
            found = log.of(row)
            np.testing.assert_array_equal(found["observations", ""], [value for value, _ in lists[row]])
            np.testing.assert_array_equal(found["rewards", ""], [step for _, step in lists[row]])
        begun = random.random(rows) < 0.03
        log.begin(begun)
        for row in np.flatnonzero(begun):
            lists[row].clear()
        most = max(most, len(log.blocks))
    assert most < 15, "nothing was ever forgotten"
