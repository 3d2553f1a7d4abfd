"""Kinds of task: what a row is, which formats make one, which metrics score it, who learns it.

A kind is one `Kind` record in one file of this folder. Another package adds one without touching
Perdure, in its `pyproject.toml`:

    [project.entry-points."perdure.kinds"]
    sentence-pairs = "my_package.pairs:KIND"
"""

from perdure.streams.kinds.base import Format, Kind, Metric

__all__ = ["Format", "Kind", "Metric"]
