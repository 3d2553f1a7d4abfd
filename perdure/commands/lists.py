"""`perdure methods`, `metrics`, `streams`, `recipes`: what there is, a line each. No torch here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError
from perdure.recipe.mistakes import near
from perdure.reports.output import emit, lines
from perdure.streams.kinds.base import Metric

if TYPE_CHECKING:
    from perdure.streams.named.base import ClassStream


def methods(name: str | None, as_json: bool) -> None:
    from perdure.methods import registry

    if name is not None:
        _options(name, as_json)
        return
    found = registry.described()
    if as_json:
        about = [{"name": each, "about": text, "whole": whole} for each, text, whole in found]
        emit([{k: v for k, v in one.items() if k != "whole" or not v} for one in about])
    else:
        lines([(each, text) for each, text, _ in found])


def _options(name: str, as_json: bool) -> None:
    """One method in full; loads it, and so torch."""
    import inspect

    from perdure.methods import registry

    kind = registry.load(name)
    text = inspect.getdoc(inspect.getmodule(kind)) or ""
    options = {
        key: {
            "default": None
            if field.is_required()
            else field.get_default(call_default_factory=True),
            "description": field.description or "",
        }
        for key, field in kind.Config.model_fields.items()
    }
    if as_json:
        emit({"name": name, "about": text, "options": options})
        return
    print(f"{name}: {text}\n\nOptions:" if options else f"{name}: {text}\n\nNo options.")
    lines(
        [
            (f"  {key}: {'required' if field.is_required() else options[key]['default']}",
             field.description or "")
            for key, field in kind.Config.model_fields.items()
        ]
    )  # fmt: skip


def metrics(as_json: bool) -> None:
    """Names, ranges, directions, what scoring needs, and whose they are."""
    from perdure.streams.kinds.find import every_metric

    found = every_metric()
    if as_json:
        emit([_as_data(name, known, owner) for name, known, owner in found])
        return
    table = [
        (name, *_columns(known), f"of {owner}") if isinstance(known, Metric) else
        (name, f"broken: {known}", "", "", f"of {owner}")
        for name, known, owner in found
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in table if row[2]) for i in range(4)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]] if row[2] else [cells[0], row[1], row[4]]).rstrip())


def _columns(metric: Metric) -> tuple[str, str, str]:
    low, high = (f"{end:g}" if math.isfinite(end) else "" for end in (metric.low, metric.high))
    ends = f"{low} to {high}" if low and high else f"from {low}" if low else "any number"
    better = "higher is better" if metric.higher_is_better else "lower is better"
    return ends, better, f"needs {metric.needs}"


def _as_data(name: str, known: Metric | str, owner: str) -> dict[str, Any]:
    if isinstance(known, str):
        return {"name": name, "from": owner, "broken": known}
    return {
        "name": name, "label": known.label, "low": known.low, "high": known.high,
        "higher_is_better": known.higher_is_better, "needs": known.needs,
        "pooling": known.pooling, "from": owner,
    }  # fmt: skip


def streams(name: str | None, as_json: bool) -> None:
    from perdure.streams import CLASS_STREAMS, STREAMS, abouts

    if name is None:
        _show(list(abouts().items()), as_json)
    elif name in CLASS_STREAMS:
        _class_stream(CLASS_STREAMS[name], as_json)
    elif name in STREAMS:
        _demo(name, as_json)
    else:
        known = list(abouts())
        hint = near(name, known) or f"there are: {', '.join(known)}"
        raise UsageError(f'no stream is called "{name}"', hint)


def _class_stream(stream: ClassStream, as_json: bool) -> None:
    """One named stream of classes, without its data."""
    count, classes = stream.counts
    splits = ("training", "validation", "test")
    sizes = dict(zip(splits, stream.rows, strict=True))
    tasks: list[dict[str, Any]] = [
        {"name": f"task {number}", "classes": list(names)}
        for number, names in enumerate(stream.tasks or [()] * count, 1)
    ]
    facts: dict[str, Any] = {
        "name": stream.name,
        "about": stream.about,
        "format": stream.format,
        "licence": stream.licence,
        "citation": stream.citation,
        "from": stream.home,
        "folder": [*stream.files, *(f"{file} (if it is there)" for file in stream.more)],
        "hub": list(stream.hub),
        "order": stream.order,
        "remark": stream.remark,
    }
    if as_json:
        emit({**facts, "classes": classes, "rows": sizes, "tasks": tasks})
        return
    rows = [f"{n:,} {split}" for split, n in sizes.items() if n is not None]
    if not stream.validated:
        rows.append("validation rows are set aside from the training rows")
    said = {key: ", ".join(v) if isinstance(v, list) else v for key, v in facts.items()}
    said["hub"] = said["hub"] or "on none: give folder"
    said["classes"] = f"{classes} in {count} tasks"
    said["rows"] = ", ".join(rows) or "as many as the data has"
    print(f"{stream.name}: {stream.about}\n")
    lines([(key, text) for key, text in said.items() if text and key not in ("name", "about")])
    print()
    if stream.tasks:
        lines([(task["name"], ", ".join(task["classes"])) for task in tasks])
    else:
        print("the data names the classes")


def _demo(name: str, as_json: bool) -> None:
    """A built-in stream, whose data is at hand."""
    from perdure.streams import STREAMS
    from perdure.streams.named.demo import LICENCES

    about, build = STREAMS[name]
    found: list[dict[str, Any]] = [
        {
            "name": task.name,
            "classes": list(task.labels),
            "rows": {
                "training": len(task.train),
                "validation": len(task.validation),
                "test": len(task.test),
            },
            "from": task.source,
        }
        for task in build(0, None)
    ]
    licence = LICENCES[name]
    if as_json:
        emit({"name": name, "about": about, "licence": licence, "tasks": found})
        return
    print(f"{name}: {about}\n\nlicence  {licence}\n")
    lines(
        [
            (
                str(task["name"]),
                f"{task['rows']['training']}, {task['rows']['validation']} and "
                f"{task['rows']['test']} rows of {task['from']}: {', '.join(task['classes'])}",
            )
            for task in found
        ]
    )


def recipes(as_json: bool) -> None:
    from perdure import recipes

    _show([(name, recipes.describe(name)) for name in recipes.names()], as_json)


def copy_recipe(name: str, destination: Path) -> None:
    from perdure import recipes

    for path in recipes.copy(name, destination):
        print(path)


def _show(found: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        emit([{"name": name, "about": about} for name, about in found])
    else:
        lines(found)
