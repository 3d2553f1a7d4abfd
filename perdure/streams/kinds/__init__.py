"""Kinds of task: what a row is, which formats make one, which metrics score it, who learns it.

A kind is one `Kind` record in one file of this folder. Another package adds one without touching
Perdure, or a metric alone, in its `pyproject.toml`:

    [project.entry-points."perdure.kinds"]
    sentence-pairs = "my_package.pairs:KIND"

    [project.entry-points."perdure.metrics"]
    word_overlap = "my_package.scores:word_overlap"

A recipe names a metric of its user's own as `metric: my_scores:word_overlap`, a function in the
file my_scores.py beside it, or in a module that can be imported.
"""

from perdure.streams.kinds.base import Format, Kind, Metric, Row
from perdure.streams.kinds.find import (
    format_of,
    is_perdures,
    kind,
    kinds,
    known_metric,
    metric,
    metric_mistakes,
    metric_of,
    metrics,
    mistakes,
)
from perdure.streams.kinds.text import EXACT_MATCH, GENERATION, LABEL_LIKELIHOOD, PERPLEXITY

__all__ = [
    "EXACT_MATCH",
    "GENERATION",
    "LABEL_LIKELIHOOD",
    "PERPLEXITY",
    "Format",
    "Kind",
    "Metric",
    "Row",
    "format_of",
    "is_perdures",
    "kind",
    "kinds",
    "known_metric",
    "metric",
    "metric_mistakes",
    "metric_of",
    "metrics",
    "mistakes",
]
