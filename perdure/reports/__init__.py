"""What a run shows: progress and tables in the terminal, an HTML page, and a figure.

Every view reads the same digest of a run directory (`data.views`); no view computes a score.
Jinja, rich and matplotlib are imported when a view is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily

if TYPE_CHECKING:
    from perdure.reports.data import RunData as RunData
    from perdure.reports.data import RunView as RunView
    from perdure.reports.data import views as views
    from perdure.reports.figures import write_figure as write_figure
    from perdure.reports.html import write_report as write_report
    from perdure.reports.terminal import Display as Display
    from perdure.reports.terminal import NullDisplay as NullDisplay
    from perdure.reports.terminal import make_display as make_display
    from perdure.reports.terminal import score_table as score_table

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

__all__ = sorted(_HOME)

__getattr__ = lazily(__name__, _HOME)
