"""`perdure compare` and `perdure report`: tables and pages over runs; nothing is computed anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import RunError
from perdure.reports.output import emit, summary
from perdure.run import Run


def compare(paths: Sequence[Path], out: Path | None, figure: Path | None, as_json: bool) -> None:
    from perdure.reports import score_table, write_figure, write_report

    runs = [Run.open(path) for path in paths]
    name = _new(out or Path(f"compare-{time.strftime('%Y%m%d-%H%M%S')}.html"))
    picture = None if figure is None else write_figure(runs, _new(figure))
    page = write_report(runs, name)
    if as_json:
        pages = {"report": str(page), "figure": None if picture is None else str(picture)}
        emit({"runs": [summary(run) for run in runs], **pages})
        return
    score_table(runs)
    print(f"report: {page}")
    if picture is not None:
        print(f"figure: {picture}")


def report(path: Path, out: Path | None, as_json: bool) -> None:
    from perdure.reports import write_report

    run = Run.open(path)
    page = write_report([run], run.path / "report.html" if out is None else _new(out))
    if as_json:
        emit({"report": str(page)})
    else:
        print(page)


def _new(out: Path) -> Path:
    if out.exists():
        raise RunError(f"{out}: exists already", "choose another --out, or remove it first")
    return out
