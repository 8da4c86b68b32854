"""The claims of benchmarks/RESULTS.md are read as they stand, and a measurement below two thirds of one is found."""

import numpy as np
import pytest

from dtrl.bench.claims import SHARE, Side, below, best, measured, read_claims
from dtrl.bench.timing import compare
from dtrl.errors import InputError

HEADING = "| work | dtrl | peer | ratio | goal |\n|---|---|---|---|---|\n"
TEXT = f"""# Results

| work | arrays | peak | ratio | goal |
|---|---|---|---|---|
| loading | 60.0 MiB | 62.9 MiB | 1.05 | 1.1 |

{HEADING}| acting | dtrl block, onnx (0.4698 ms) | a peer, lean | 1,490 | 12 |
| acting | dtrl (banded) | a peer, lean | 2.5 |  |

| data | asked |
|---|---|
| x | 5 |
"""
ONNX, BANDED = Side("acting", "dtrl block, onnx", "a peer, lean"), Side("acting", "dtrl (banded)", "a peer, lean")


def test_claims_are_the_rows_beside_a_peer_without_their_times():
    assert read_claims(TEXT) == {ONNX: 1490.0, BANDED: 2.5}


def test_the_results_of_this_repository_can_be_read(repository):
    claims = read_claims((repository / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))
    assert len(claims) > 30
    assert all(ratio > 0 and "(" not in side.dtrl for side, ratio in claims.items())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("| a | b | c | fast | |", r"line 3: the ratio 'fast' is not a number"),
        ("| a | b | c | 1 | |\n| a | b (2 ms) | c | 2 | |", r"line 4: a: b beside c stands twice"),
        ("| a | b | 1 | |", r"line 3 has 4 cells"),
        ("", r"no table with the columns work, dtrl"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(rows, message):
    with pytest.raises(InputError, match=message):
        read_claims(HEADING + rows)


def test_a_row_below_two_thirds_of_its_claim_is_found():
    claims = {ONNX: 12.0, BANDED: 3.0}
    assert below(claims, {ONNX: 12 * SHARE, BANDED: 2.0}) == []
    assert below(claims, {ONNX: 12 * SHARE - 0.01, BANDED: 9.0}) == [ONNX]
    assert below(claims, {}) == [], "what was not measured is no shortfall"


def test_the_best_of_several_runs_counts_row_by_row():
    assert best([{ONNX: 3.0, BANDED: 1.0}, {ONNX: 2.0, BANDED: 4.0}]) == {ONNX: 3.0, BANDED: 4.0}
    assert best([]) == {}


def test_a_benchmarks_rows_are_named_as_the_claims_are():
    times = {"dtrl (banded)": [1.0, 1.0], "a peer, lean": [3.0, 3.0]}
    row = compare("acting", {name: np.array(t) for name, t in times.items()}, "dtrl (banded)", "a peer, lean")
    assert measured([row, {"work": "memory", "ratio": 1.0}]) == {BANDED: 3.0}
