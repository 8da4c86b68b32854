"""What benchmarks/RESULTS.md claims, read from its tables, and whether a measurement bears it out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrl.errors import InputError

SHARE = 2 / 3
"""Of a claimed ratio, what must be reached: the machine that checks is another one, and is not idle."""
COLUMNS = ["work", "dtrl", "peer", "ratio", "goal"]
"""The heading of a table of claims; other tables are no ratios to a peer."""


@dataclass(frozen=True)
class Side:
    """What a ratio is of: dtrl's way of doing a piece of work, beside a peer's."""

    work: str
    dtrl: str
    peer: str

    def __str__(self) -> str:
        return f"{self.work}: {self.dtrl} beside {self.peer}"


def read_claims(text: str) -> dict[Side, float]:
    """Ratio of each row of the tables of a Markdown document whose heading is `COLUMNS`; a time in parentheses after dtrl's side is no part of its name.

    Raises InputError for a ratio that is no number, a row that stands twice, and a document without any."""
    claims: dict[Side, float] = {}
    for number, (work, dtrl, peer, ratio, _) in rows_of_claims(text):
        side = Side(work, re.sub(r" \([\d.,]+ m?s\)$", "", dtrl), peer)
        try:
            value = float(ratio.replace(",", ""))
        except ValueError as error:
            raise InputError(f"line {number}: the ratio {ratio!r} is not a number; write one such as 1,490.") from error
        if side in claims:
            raise InputError(f"line {number}: {side} stands twice; leave one of the rows.")
        claims[side] = value
    if not claims:
        raise InputError(f"there is no table with the columns {', '.join(COLUMNS)}; give benchmarks/RESULTS.md.")
    return claims


def rows_of_claims(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of the tables of claims."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells == COLUMNS:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            if len(cells) != len(COLUMNS):
                raise InputError(f"line {number} has {len(cells)} cells; its table has {len(COLUMNS)} columns.")
            yield number, cells


def measured(results: Sequence[Mapping[str, Any]]) -> dict[Side, float]:
    """Ratio of each row of a benchmark's document."""
    return {Side(row["work"], row["dtrl"], row["peer"]): float(row["ratio"]) for row in results if "peer" in row}


def best(runs: Sequence[Mapping[Side, float]]) -> dict[Side, float]:
    """The highest ratio of each row over runs of the same benchmark: what else runs on the machine hurts the shorter of two times more, which is dtrl's."""
    sides = {side for run in runs for side in run}
    return {side: max(run[side] for run in runs if side in run) for side in sides}


def below(claims: Mapping[Side, float], ratios: Mapping[Side, float]) -> list[Side]:
    """The claimed rows that were measured and stay below `SHARE` of their claim, in the order of the claims."""
    return [side for side, claim in claims.items() if side in ratios and ratios[side] < SHARE * claim]
