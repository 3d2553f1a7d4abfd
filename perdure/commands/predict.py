"""`perdure predict`: what a run's model answers to rows without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import RunPath, Trust


@handle_errors
def predict(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows: .csv .tsv .jsonl .parquet, .txt lines.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Must not exist.  [default: print the lines]"),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Ask the model after N tasks.  [default: last]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask as this task.  [default: all classes, or last]"),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Holds the text.  [default: as in the run's recipe]"),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(metavar="FROM-TO", help="Translate so, like en-de.  [default: as the recipe]"),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Also if recipe or base have changed.")
    ] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Answer FILE's rows by RUN's model: a JSON line a row, in order, with the three best."""
    from perdure.errors import UsageError
    from perdure.files import try_place, write_atomic
    from perdure.learners.listener import Silent
    from perdure.paths import no_file, no_place
    from perdure.predictor import open_predictor
    from perdure.reports import make_display
    from perdure.reports.output import escaped, first_process, working

    if out is not None and out.exists():
        raise UsageError(f"{out}: exists already", "choose another --out")
    if out is not None and (what := no_place(out)):
        raise UsageError(f"{out}: {what}", "choose another --out")
    if what := no_file(file):
        raise UsageError(f"{file}: {what}", "give a file of rows: .csv .tsv .jsonl .parquet .txt")
    if out is not None and first_process():
        try_place(out)
    display: Any = make_display()
    answers = []
    with working(), display:
        ask = open_predictor(
            run, after=after, task=task, column=column, direction=direction,
            accept_changes=accept_changes, listener=Silent(),
        ).suited(file)  # fmt: skip
        rows = ask.file(file)

        def progress(done: int, total: int) -> None:
            display.doing(str(run), "answering", file.name, done, total)

        answers = [json.dumps(a, ensure_ascii=False) for a in ask.each(rows, progress)]
    if not first_process():
        return
    failed: OSError | None = None
    if out is not None:
        try:
            write_atomic(out, "".join(line + "\n" for line in answers))
        except OSError as error:  # hours of work: they are printed instead
            failed = error
        else:
            print(f"answers: {out}")
            return
    for line in answers:
        print(escaped(line))
    if failed is not None:
        raise failed
