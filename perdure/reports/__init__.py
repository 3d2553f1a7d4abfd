"""What a run shows: progress and tables in the terminal, an HTML page, and a figure.

Every view reads the same digest of a run directory (`data.views`); no view computes a score.
Each view, and Jinja, rich and matplotlib with it, is imported when it is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily

if TYPE_CHECKING:
    from perdure.reports.data import RunData, RunView, views
    from perdure.reports.figures import write_figure
    from perdure.reports.html import write_report
    from perdure.reports.terminal import Display, NullDisplay, make_display, score_table

__all__ = [
    "Display",
    "NullDisplay",
    "RunData",
    "RunView",
    "make_display",
    "score_table",
    "views",
    "write_figure",
    "write_report",
]

_HOME = {
    "Display": "terminal",
    "NullDisplay": "terminal",
    "RunData": "data",
    "RunView": "data",
    "make_display": "terminal",
    "score_table": "terminal",
    "views": "data",
    "write_figure": "figures",
    "write_report": "html",
}


__getattr__ = lazily(__name__, _HOME)
