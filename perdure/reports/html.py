"""The report: one self-contained HTML page over one run or several, methods side by side.

No script, no font and no picture comes from elsewhere, and a Content-Security-Policy in the page
holds it to that. Charts are inline SVG in the page's own colours, so dark mode and print need no
second set; each has a text alternative. All text is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.drafts import sweep
from perdure.errors import UsageError
from perdure.files import replacing
from perdure.reports import (
    averaging,
    caps,
    classes,
    colours,
    format,
    full,
    general,
    maps,
    no_class,
    pool_views,
    probed,
    provenance,
    ranking,
    reinforced_views,
    sections,
    telling,
    tradeoff,
    training,
    words,
)
from perdure.reports.charts import COLOURS, DASHES, MARKERS
from perdure.reports.data import RunData, RunView, comparable, views
from perdure.reports.seeds import grouped, seed_of

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
_RECIPE = 400
"""Lines of a recipe that a page shows."""


def write_report(runs: Sequence[RunData], out: Path) -> Path:
    """Write the page over `runs` to `out`, at once or not at all; return `out`.

    Of a long stream all numbers are written beside it (`full`).

    Raises: UsageError if there is no run to report; OSError if `out` cannot be written.
    """
    return write_page(_digested(runs), out)


def write_page(shown: Sequence[RunView], out: Path) -> Path:
    """The same of runs that are digested already."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = _rendered(shown, full.written(shown, out))
    sweep(out.parent)
    with replacing(out) as half:
        half.write_text(text, encoding="utf-8", errors="replace")
    return out


def render(runs: Sequence[RunData]) -> str:
    """The page as text. The same runs give the same page.

    Raises: UsageError if `runs` is empty.
    """
    return _rendered(_digested(runs), [])


def _digested(runs: Sequence[RunData]) -> list[RunView]:
    if not runs:
        raise UsageError("report: no run given", "name a run directory: perdure report RUN")
    return grouped(views(runs))


def _rendered(shown: Sequence[RunView], files: Sequence[tuple[str, str]]) -> str:
    return _templates().get_template("report.html.j2").render(page=page(shown, files))


@cache
def _templates() -> Environment:
    """The folder's templates, which are compiled once a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(colours=COLOURS, dashes=DASHES, markers=MARKERS, dash=format.DASH)
    env.filters.update(
        number=format.number,
        signed=format.signed,
        significant=format.significant,
        percent=format.percent,
        duration=format.duration,
        memory=format.memory,
        count=format.count,
        breakable=format.breakable,
    )
    return env


def page(runs: Sequence[RunView], files: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """All that the template prints, by section.

    Args: files: what was written beside the page, and what is in each.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    return {
        "title": " vs ".join(names[:3]) + (" …" if len(names) > 3 else ""),
        "headline": ranking.headline(runs),
        "several": len(runs) > 1,
        "comparable": comparable(runs),
        "resolution": words.resolution([t for run in runs for t in run.tasks]),
        "facts": sections.facts(runs),
        "methods": [
            {
                "label": run.label,
                "slot": slot,
                "story": words.story(run),
                "general": "; ".join(filter(None, (words.general_story(run), no_class.line(run)))),
                "state": run.state,
            }
            for slot, run in enumerate(runs)
        ],
        "unfinished": [
            (run.label, "not scored at the end" if run.state == "finished" else run.state)
            for run in runs
            if not run.complete
        ],
        "accepted": provenance.accepted(runs),
        "retention": sections.retention(runs),
        "summary": sections.summary(runs),
        "map_sets": maps.map_sets(runs),
        "classes": classes.sections(runs),
        "probed": probed.sections(runs),
        "averaging": {
            "intro": averaging.INTRO,
            "deciles": averaging.DECILES,
            "runs": averaging.sections(runs),
        },
        "reinforced": reinforced_views.section(runs),
        "pools": pool_views.sections(runs),
        "tradeoffs": tradeoff.tradeoffs(runs),
        "map_width": maps.map_width(runs),
        "ramps": colours.ramp_css(),
        "tasks": sections.task_charts(runs),
        "changes": sections.changes(runs),
        "unread": any(one.unread for run in runs for one in run.members),
        "many": any(
            run.scenario and maps.MANY <= len(run.tasks) <= caps.MOST_MAPPED for run in runs
        ),
        "charts_words": telling.charts_words(runs),
        "rows_words": telling.rows_words(runs),
        "files": files,
        "bounded_rows": any(run.evidence.large for run in runs),
        "has_base": sections.has_base(runs),
        "general": sections.general(runs),
        "general_tasks": general.task_charts(runs),
        "general_changes": general.changes(runs),
        "losses": training.losses(runs),
        "own_losses": bool(training.sums(runs)) or any(r.logged("task_loss") for r in runs),
        "sums": training.sums(runs),
        "logged": training.logged_words(runs),
        "method_losses": training.method_losses(runs),
        "gauges": training.gauges(runs),
        "cost": provenance.cost(runs),
        "unseen": sections.unseen(runs),
        "differences": provenance.differences(runs),
        "seeds": words.SEEDS if any(run.told for run in runs) else "",
        "recipes": [
            {
                "label": run.label,
                "text": _first_lines(run.recipe_text),
                "note": f"of seed {seed_of(run.members[0])}; the others differ in the seed alone"
                if run.told
                else "",
            }
            for run in runs
        ],
        "environments": provenance.environments(runs),
        "reproduce": provenance.reproduce(runs),
    }


def _first_lines(text: str) -> str:
    """A recipe as it is; of a thousand tasks' its beginning."""
    lines = text.splitlines(keepends=True)
    if len(lines) <= _RECIPE:
        return text
    return f"{''.join(lines[:_RECIPE])}# ... {len(lines) - _RECIPE:,} more lines in recipe.yaml\n"
