"""What a run shows: progress and tables in the terminal, an HTML page, and a figure.

Every view reads the same digest of a run directory (`data.views`); no view computes a score.
Jinja, rich and matplotlib are imported when a view is drawn.
"""

from __future__ import annotations

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
