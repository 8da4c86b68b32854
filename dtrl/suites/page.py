"""The results of a suite as one HTML file that needs no other: tables, and plots as pictures within it."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrl.evaluation.plots import DOTS_PER_INCH
from dtrl.files import write_atomically
from dtrl.suites.figures import aggregate_figure, profile_figure
from dtrl.suites.table import Sheet, facts, sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = {"aggregates.png": aggregate_figure, "profiles.png": profile_figure}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; font-variant-numeric: tabular-nums }
th { border-bottom: 2px solid #888; font-weight: 600 }
td.name, th.name { text-align: left }
p.note, li { color: #555 }
img { max-width: 100%; height: auto; display: block; margin: 1em 0 }
"""


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page to `path`, and the plots beside it as PNGs too."""
    plots = {name: png(make(results)) for name, make in PLOTS.items()} if results["cells"] else {}
    for name, content in plots.items():
        write_atomically(path.with_name(name), content)
    write_atomically(path, page(results, plots).encode())


def page(results: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The document."""
    title = html.escape(f"dtrl benchmark {results['suite']}")
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>',
        f"<h1>{title}</h1>\n<p>{html.escape(results['description'])}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in facts(results)) + "</ul>",
        *(picture(name, content) for name, content in plots.items()),
        *(table(sheet) for sheet in sheets(results)),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def table(sheet: Sheet) -> str:
    names = {i for i, head in enumerate(sheet.head) if head in ("entry", "dataset")}

    def row(cells: list[str], tag: str) -> str:
        marked = ((tag, ' class="name"' if i in names else "", html.escape(cell)) for i, cell in enumerate(cells))
        return "<tr>" + "".join(f"<{t}{attribute}>{text}</{t}>" for t, attribute, text in marked) + "</tr>"

    rows = "\n".join([row(sheet.head, "th"), *(row(cells, "td") for cells in sheet.rows)])
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in sheet.notes)
    return f"<h2>{html.escape(sheet.title)}</h2>\n<table>{rows}</table>\n{notes}"


def picture(name: str, content: bytes) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()
