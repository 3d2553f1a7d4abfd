"""Find kinds, formats and metrics by name: Perdure's, other packages', and a user's own metric.

Perdure's own are looked at first, and another package is imported only for a name that is not
among them, so that a broken package disturbs only those who use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

from perdure.errors import PerdureError, UsageError, one_line
from perdure.recipe.columns import check_cell
from perdure.recipe.data import SPLITS, TaskConfig
from perdure.recipe.mistakes import Mistake, near
from perdure.recipe.offers import load_offer, offered_twice, offers, own_object, owner
from perdure.streams.kinds.base import Format, Kind, Metric
from perdure.streams.kinds.classes import KIND as CLASSES
from perdure.streams.kinds.text import KIND as TEXT

BUILT_IN: tuple[Kind, ...] = (TEXT, CLASSES)
KINDS, METRICS = "perdure.kinds", "perdure.metrics"
"""The groups of entry points; a value is `module:KIND`, or `module:METRIC_OR_FUNCTION`."""


def kinds() -> tuple[Kind, ...]:
    """All kinds, Perdure's first; imports the packages that offer others.

    Raises:
        UsageError: a package's entry point does not lead to a `Kind`.
    """
    return (*BUILT_IN, *map(_kind_of, offers(KINDS)))


def kind(name: str) -> Kind:
    """Return the kind of this name.

    Raises:
        UsageError: no kind has this name, or two have it.
    """
    return _only(name, "kind", lambda known: known)


def format_of(name: str) -> tuple[Kind, Format]:
    """Return the format of this name and its kind.

    Raises:
        UsageError: no format has this name, or two kinds have one.
    """
    found = _only(name, "format", lambda known: [f for one in known for f in one.formats])
    homes = BUILT_IN if any(found in one.formats for one in BUILT_IN) else kinds()
    return next(one for one in homes if found in one.formats), found


def metric(name: str) -> Metric:
    """Return the metric of this name, or a user's own: "module:function", "file.py:function".

    What a user's own name leads to is a `Metric`, or a function f(prediction, answer) -> float.

    Raises:
        UsageError: no metric has this name, two have it, or there is no such function.
        ConsentError: a metric of the user's own, whose code may not run.
    """
    if ":" in name:
        return _own(name)
    offered = [point for point in offers(METRICS) if point.name == name]
    built_in = [one for home in BUILT_IN for one in home.metrics if one.name == name]
    if len(offered) + len(built_in) > 1:
        owners = ["perdure"] * len(built_in) + [owner(point) for point in offered]
        raise offered_twice("metric", name, owners)
    if offered:
        return _as_metric(load_offer(offered[0], "metric"), name, f"{owner(offered[0])}: {name}")
    return _only(name, "metric", lambda known: [m for one in known for m in one.metrics])


def metrics() -> list[str]:
    """Names of all metrics there are, Perdure's first."""
    return [
        *(one.name for home in BUILT_IN for one in home.metrics),
        *(one.name for point in offers(KINDS) for one in _kind_of(point).metrics),
        *(point.name for point in offers(METRICS)),
    ]


def every_metric() -> list[tuple[str, Metric | str, str]]:
    """All metrics there are, Perdure's first: name, record or what is wrong with it, and whose."""
    found: list[tuple[str, Metric | str, str]] = [
        (one.name, one, "perdure") for home in BUILT_IN for one in home.metrics
    ]
    for point in offers(KINDS):
        try:
            own = [one for one in _kind_of(point).metrics if not is_perdures(one.name)]
            found += [(one.name, one, owner(point)) for one in own]
        except PerdureError as error:
            found.append((point.name, error.what, owner(point)))
    for point in offers(METRICS):
        try:
            found.append((point.name, metric(point.name), owner(point)))
        except PerdureError as error:
            found.append((point.name, error.what, owner(point)))
    return found


def is_perdures(name: str) -> bool:
    """Whether a metric is Perdure's own, so that its name alone says all of it."""
    return any(one.name == name for home in BUILT_IN for one in home.metrics)


def known_metric(name: str) -> Metric | None:
    """The metric of a name that was recorded once; None if nobody here knows it any more.

    Of a user's own metric ("module:function") nothing is imported to read a record: None.
    """
    try:
        return None if ":" in name else metric(name)
    except PerdureError:
        return None


# --- a task's section


def mistakes(task: TaskConfig, installed: bool = True) -> Iterator[Mistake]:
    """What is wrong in a task's section by its kind: format, columns, labels, metric.

    Args: installed: also that the metric can be imported; a recorded recipe is read without.
    """
    try:
        home, form = format_of(task.format)
    except PerdureError as error:
        known = [f.name for one in _kinds_that_load() for f in one.formats]
        if task.format in known:  # two have it
            yield Mistake(("format",), error.what, one_line(error.remedy))
            return
        meant = near(task.format, known)
        broken = "" if " is none of " in error.what else error.what
        what = f'"{task.format}" is none of {", ".join(known)}'
        yield Mistake(("format",), what, meant or broken)
        if not meant:
            return
        # What else is wrong is told too, as it would be with the format that was meant.
        task = task.model_copy(update={"format": meant.split('"')[1]})
        home, form = format_of(task.format)
    ours = (*form.columns, *form.optional)
    for name, source in task.columns.items():
        if name not in ours:
            hint = near(name, ours) or f"write them as {ours[0]}: your-column"
            what = f"format {form.name} has the columns {', '.join(ours)}"
            yield Mistake(("columns", name), what, hint)
        elif wrong := check_cell(source, one_column=name in form.whole):
            yield Mistake(("columns", name), *wrong)
    for key in sorted({key for one in BUILT_IN for f in one.formats for key in f.keys}):
        default = type(task).model_fields[key].default
        if key not in form.keys and getattr(task, key) != default:
            yield Mistake((key,), f"has no effect with format: {form.name}", "leave it out")
    if home.classes and task.test_of is not None:
        what = f"has no effect with format: {form.name}"
        yield Mistake(("test_of",), what, "leave it out: a class has rows of its own")
    for split in SPLITS:
        if isinstance(source := getattr(task, split), dict):
            for name in [*source, *(ours for ours in form.columns if ours not in source)]:
                if name not in ours:
                    what = f"format {form.name} has the columns {', '.join(ours)}"
                    yield Mistake((split, name), what, near(name, ours) or "take it out")
                elif name not in source:
                    what = f"has no file for {name}"
                    yield Mistake((split,), what, f"write {{..., {name}: FILE}}")
    yield from form.mistakes(task)
    if task.until is not None and "rl" not in home.ways:
        what = f"has no effect with format: {form.name}, whose answers are not sampled"
        yield Mistake(("until",), what, "leave it out")
    elif task.until is not None and task.learn == "none" and task.train is not None:
        yield Mistake(("until",), "has no effect with learn: none", "leave it out")
    if task.learn not in home.ways:
        what = f'"{task.learn}" is none of {", ".join(home.ways)}'
        yield Mistake(("learn",), what, near(task.learn, home.ways))
    if installed:
        yield from metric_mistakes(task.metric)


def metric_mistakes(name: str | None) -> Iterator[Mistake]:
    """What is wrong with a task's `metric`, at the key of this name; None is the default."""
    if name is None:
        return
    try:
        metric(name)
    except PerdureError as error:
        yield Mistake(("metric",), error.what, one_line(error.remedy))


def metric_of(task: TaskConfig) -> str:
    """The name of a task's metric, with its format's default filled in."""
    return task.metric or format_of(task.format)[1].metric


# --- other packages


def _only(name: str, what: str, of: Callable[[Any], Any]) -> Any:
    """The one kind, format or metric of this name."""
    found = [one for one in of(BUILT_IN) if one.name == name]
    if found:
        return found[0]
    homes = [(one, point) for point in offers(KINDS) for one in [_kind_of(point)]]
    found = [(one, point) for home, point in homes for one in of((home,)) if one.name == name]
    if len(found) > 1:
        raise offered_twice(what, name, [owner(point) for _, point in found])
    if found:
        return found[0][0]
    known = metrics() if what == "metric" else [one.name for one in of(kinds())]
    own = "or write your own as module:function" if what == "metric" else ""
    raise UsageError(f'"{name}" is none of {", ".join(known)}', near(name, known) or own)


def _kind_of(point: EntryPoint) -> Kind:
    found = load_offer(point, "kind")
    if not isinstance(found, Kind):
        raise UsageError(
            f"kind {point.name!r} of {owner(point)}: {point.value} is no Kind",
            "its entry point must name a perdure.streams.kinds.Kind",
        )
    taken = {one.name for one in BUILT_IN} | {f.name for one in BUILT_IN for f in one.formats}
    taken |= {m.name for one in BUILT_IN for m in one.metrics}
    parts: tuple[Kind | Format | Metric, ...] = (found, *found.formats, *found.metrics)
    for one in parts:
        # A kind may take a metric of Perdure's as it is.
        if one.name in taken and not (isinstance(one, Metric) and one == metric(one.name)):
            raise offered_twice(type(one).__name__.lower(), one.name, ["perdure", owner(point)])
    return found


def _kinds_that_load() -> Iterator[Kind]:
    """All kinds but those of broken packages, of which the caller has told already."""
    yield from BUILT_IN
    for point in offers(KINDS):
        try:
            yield _kind_of(point)
        except PerdureError:
            continue


# --- a user's own metric


def _own(name: str) -> Metric:
    return _as_metric(*own_object(name, "metric"), name)


def _as_metric(found: Any, name: str, place: str) -> Metric:
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise UsageError(
            f"{place} is neither a function nor a Metric",
            "write a function of (prediction, answer) that returns a number",
        )
    label = name.rpartition(":")[2].replace("_", " ")
    return Metric(name, label, needs="text", function=found)
