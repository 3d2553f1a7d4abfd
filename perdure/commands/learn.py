"""`perdure run` and `perdure resume`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure.commands.output import emit, first_process, summary, working
from perdure.config import Recipe, load_recipe
from perdure.errors import RunError, UsageError
from perdure.run import Run


def run(path: Path, overrides: Sequence[str], out: Path | None, check: bool, as_json: bool) -> None:
    """Learn a recipe's tasks; all that can be wrong is looked for before weights are loaded."""
    from perdure.commands.check import examine, show
    from perdure.reports import make_display
    from perdure.streams import build_stream

    recipe = load_recipe(path, overrides)
    target = out or _free(recipe)
    if not check and first_process() and target.exists():
        raise RunError(
            f"{target}: exists already, and a run is never overwritten",
            (f"go on with it: perdure resume {target}", "or choose another --out"),
        )
    with working():
        stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
        display: Any = make_display(json=as_json)
        with display, _placed(recipe):
            plan = examine(recipe, stream, display, estimate=check)
    if plan is not None:
        emit(plan.to_dict()) if as_json else show(plan)
        return
    made = Run.create(target, recipe)
    if first_process() and not as_json:
        display.message(f"run directory: {made.path}")
    with working(made.path):
        from perdure.loop import learn

        with display:
            learn(recipe, made, display=display, stream=stream)
    _finish(made, as_json)


@contextmanager
def _placed(recipe: Recipe) -> Iterator[None]:
    """Put file and line before a message that begins with a recipe's key."""
    try:
        yield
    except UsageError as error:
        key, colon, rest = error.what.partition(": ")
        if not colon or key.partition(".")[0] not in Recipe.model_fields or " " in key:
            raise
        remedy = (*error.remedy, "nothing was loaded or written")
        raise type(error)(f"{recipe.place(key)}: {rest}", remedy) from error


def resume(path: Path, as_json: bool) -> None:
    """Go on with a run that was interrupted; a finished one is only shown."""
    from perdure.reports import make_display

    made = Run.open(path)
    if made.state != "finished":
        with working(path):
            from perdure.loop import learn

            display: Any = make_display(json=as_json)
            with display:
                learn(made.recipe, made, display=display)
    _finish(made, as_json)


def _finish(made: Run, as_json: bool) -> None:
    from perdure.reports import score_table, write_report

    if not first_process():
        return
    page = write_report([made], made.path / "report.html")
    if as_json:
        emit({**summary(made), "report": str(page)})
        return
    score_table([made])
    print(f"report: {page}")


def _free(recipe: Recipe) -> Path:
    """runs/NAME-TIME, with a number behind it if two begin in the same second."""
    name = f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}".replace(" ", "-")
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path
