"""`perdure repair`: take back a part of a fine-tuning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError, printable
from perdure.reports.output import emit, first_process, working

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.repair import Repair
    from perdure.streams.task import TaskStream


def repair(
    base: str,
    tuned: str,
    general: str,
    tasks: list[Path],
    out: Path | None,
    as_json: bool,
    rows: int,
    texts: int,
    **settings: Any,
) -> int:
    """Repair `tuned` and show what was tried; returns the exit code, 1 if nothing qualifies."""
    folder = _beside(tuned) if out is None else out
    if folder.exists():
        raise RunError(
            f"{folder}: exists already, and nothing is overwritten", "choose another --out"
        )
    from perdure.audit.runs import tell_changed_rows
    from perdure.repair.halves import read_tasks, read_texts
    from perdure.reports import make_display

    def check(recipe: Recipe, stream: TaskStream) -> None:
        # The general text is that of --general, not the recipe's.
        only_rows = recipe.model_copy(update={"general": None})
        tell_changed_rows((base, tuned), only_rows, stream, bool(settings["accept_changes"]))

    read = read_tasks(tasks, check), read_texts(general)
    display = make_display(json=as_json)
    with working(), display:
        from perdure.repair import Sizes
        from perdure.repair import repair as search

        found = search(
            base,
            tuned,
            *read,
            out=folder,
            sizes=Sizes(texts=texts, rows=rows),
            on_progress=partial(display.scoring, "repair"),
            **settings,
        )
        display.message(f"repair: rows are read with {found.template}")
    if as_json:
        emit(found.as_dict())
    elif first_process():
        _show(found, folder)
    return 0 if found.chosen is not None else 1


def _beside(tuned: str) -> Path:
    """`TUNED-repaired` beside a local model, in the current folder for a hub id."""
    path = Path(tuned.removeprefix("package:")).expanduser()
    path = path.resolve() if path.name in ("", "..") else path
    name = f"{path.stem if path.suffix == '.gguf' else path.name}-repaired"
    return path.with_name(name) if path.exists() else Path(name)


def _show(found: Repair, folder: Path) -> None:
    from rich.console import Console

    console = Console()
    for table in found.tables():
        console.print(table)
    for note in found.notes:
        print(printable(f"note: {note}"))
    if found.chosen is None:
        print(printable(f"nothing was repaired: {found.reason}"))
    else:
        print(f"model: {folder / 'model'}")
    print(f"curve: {folder / 'curve.svg'}")
