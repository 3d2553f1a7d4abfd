"""`perdure diagnose`: tell apart what a tuned model lost on each task."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from perdure.prepare import load_recipe
from perdure.recipe.schema import Recipe
from perdure.reports.output import emit, first_process, working


def diagnose(
    base: str,
    tuned: str,
    tasks: Path,
    as_json: bool,
    *,
    max_drop: float,
    alpha: float,
    rows: int | None,
    relearn: int,
    learning_rate: float,
    shots: int,
    seed: int,
    accept_changes: bool,
    adapter: str | None = None,
) -> None:
    """Diagnose the tasks of a recipe and print the verdicts with their evidence."""
    from perdure.audit.runs import tell_changed_rows
    from perdure.diagnose.diagnose import diagnose as examine
    from perdure.diagnose.measurements import Sizes
    from perdure.reports import make_display
    from perdure.streams import build_stream

    recipe = load_recipe(tasks, tasks_only=True)
    stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    tell_changed_rows((base, tuned), recipe, stream, accept_changes)
    display = make_display(json=as_json)
    with working(), display:
        found = examine(
            base,
            tuned,
            stream,
            max_drop=max_drop,
            alpha=alpha,
            names=label_names(recipe),
            sizes=Sizes(rows=rows, relearn_rows=relearn, learning_rate=learning_rate, shots=shots),
            seed=seed,
            accept_changes=accept_changes,
            adapter=adapter,
            on_progress=partial(display.scoring, "diagnose"),
        )
        display.message(f"both models are read with {found.template}")
    if as_json:
        emit(found.to_dict())
    elif first_process():
        from rich.console import Console

        console = Console()
        console.print(found.table())
        if any(task.evidence for task in found.tasks):
            console.print(found.evidence_table())


def label_names(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Task -> value in its data -> label: spellings that a lenient match takes for the label.

    Numbers are none: most are those of a hub data set's classes, which no model writes.
    """
    return {
        task.name: {k: v for k, v in (task.label_names or {}).items() if not k.isdecimal()}
        for task in recipe.stream.tasks or ()
    }
