"""`perdure compare` and `perdure report`: tables and pages over runs; no score is computed anew."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import RunError, UsageError, printable
from perdure.reports.output import emit
from perdure.run import Run


def compare(
    paths: Sequence[Path],
    out: Path | None,
    figure: Path | None,
    as_json: bool,
    table: str | None = None,
) -> None:
    """Show runs side by side; runs that differ in their seed alone are one method.

    With `table` only that is written, to `out` or to stdout.
    """
    from perdure.reports import full
    from perdure.reports.data import views
    from perdure.reports.figures import write_picture
    from perdure.reports.html import write_page
    from perdure.reports.numbers import of_groups, of_run
    from perdure.reports.seeds import grouped
    from perdure.reports.terminal import show_tables

    if table is not None:
        return _table(paths, out, figure, as_json, table)
    runs = [Run.open(path) for path in paths]
    name = _new(out or Path(f"compare-{time.strftime('%Y%m%d-%H%M%S')}.html"))
    single = views(runs)  # read once for all that is written and shown
    shown = grouped(single)
    for beside in full.files(shown, name):
        _new(beside)
    picture = None if figure is None else write_picture(shown, _new(figure))
    try:
        page = write_page(shown, name)
    except OSError:
        if picture is not None:  # the same command, run again, makes both
            picture.unlink(missing_ok=True)
        raise
    if as_json:
        pages = {"report": str(page), "figure": None if picture is None else str(picture)}
        emit({"runs": list(map(of_run, single)), **of_groups(shown), **pages})
        return None
    show_tables(shown)
    print(f"report: {page}")
    if picture is not None:
        print(f"figure: {picture}")
    return None


def _table(
    paths: Sequence[Path], out: Path | None, figure: Path | None, as_json: bool, form: str
) -> None:
    from perdure.files import write_atomic
    from perdure.reports.tables import table

    for name, given in (("figure", figure is not None), ("json", as_json)):
        if given:
            raise UsageError(f"--{name}: has no effect with --table", "leave one of them out")
    text = table([Run.open(path) for path in paths], form)
    if out is None:
        sys.stdout.write(_for_terminal(text))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_new(out), text)
        print(out)


def _for_terminal(text: str) -> str:
    """Text of several lines without what steers a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def report(path: Path, out: Path | None, as_json: bool) -> None:
    from perdure.reports import full
    from perdure.reports.data import views
    from perdure.reports.html import write_page
    from perdure.reports.numbers import of_run

    run = Run.open(path)
    place = run.path / "report.html" if out is None else _new(out)
    shown = views([run])
    for beside in full.files(shown, place) if out is not None else ():
        _new(beside)
    page = write_page(shown, place)
    if as_json:
        emit({**of_run(shown[0]), "report": str(page)})
    else:
        print(page)


def _new(out: Path) -> Path:
    if out.exists():
        raise RunError(f"{out}: exists already", "choose another --out, or remove it first")
    return out
