"""One line on texts of no class, for the terminal and the page."""

from __future__ import annotations

from statistics import fmean

from perdure.reports.data import RunView
from perdure.reports.format import number

BEGIN = "no_class/"


def line(run: RunView) -> str:
    """What a run's newest task left of the figures of `perdure.scoring.no_class`; "" where there
    are none. Of several seeds each is the mean."""
    newest = [figures for member in run.members if (figures := _newest(member))]
    if not newest:
        return ""
    mean = {name: fmean(f[name] for f in newest if name in f) for name in newest[0]}
    said = f"texts of no class: AUROC {number(mean['auroc'], 3)}"
    if "accuracy" in mean:
        said += f", accuracy {number(mean['accuracy'], 3)} with those below a share of "
        said += f"{number(mean['threshold'], 3)} taken for none"
    else:
        said += " (no threshold: it needs validation texts of both kinds)"
    return said


def _newest(run: RunView) -> dict[str, float]:
    found: dict[int, dict[str, float]] = {}
    for fact in run.facts:
        if fact["name"].startswith(BEGIN):
            name = fact["name"].removeprefix(BEGIN)
            found.setdefault(fact["after"], {})[name] = fact["value"]
    return found[max(found)] if found else {}
