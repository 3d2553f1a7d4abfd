"""`perdure extend`: learn more tasks where a finished run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import Accept, Json, NewRun, RunPath, Trust


@handle_errors
def extend(
    run: RunPath,
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="Holds only what is new: the new tasks."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As in `perdure run`.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of RECIPE: rows shaped like the last task's."),
    ] = None,
    out: NewRun = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Validate recipe and data, estimate time; load no weights."),
    ] = False,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Learn more tasks where RUN ended; old data are not needed, and RUN stays as it is."""
    from perdure.commands.learn import beginning, finish, free_name, refusals, tell_of_plan
    from perdure.extension import extend as begin
    from perdure.extension import extension_recipe, plan_extension, prepare_extension
    from perdure.reports import make_display
    from perdure.reports.output import first_process, working
    from perdure.run import Run
    from perdure.run.place import refused

    if recipe is not None and "=" in str(recipe):  # --data, then KEY=VALUE
        recipe, overrides = None, [str(recipe), *(overrides or [])]
    old = Run.open(run)
    new = extension_recipe(old, recipe, overrides or [], data=data)
    target = out or free_name(new)
    display: Any = make_display(json=as_json)
    with beginning(check):
        no_place = refused(target) if first_process() else None
        if no_place is not None and not check:
            raise no_place
        with working(), display:  # the new rows are read before anything is made
            ready = prepare_extension(old, new, accept_changes=accept_changes, display=display)
            planned = plan_extension(old, new, ready) if check else None
        if planned is not None:
            tell_of_plan(planned, new, ready.prepared, target, no_place, as_json)
            return
        for lack in refusals(new, ready.prepared):
            raise lack
        made = begin(old, new, target, accept_changes=accept_changes, ready=ready)
    from perdure.loop import learn

    if first_process() and not as_json:
        display.message(f"run directory: {made.path}")
    with working(made.path), display:
        learn(new, made, display=display, prepared=ready.prepared)
    finish(made, as_json)
