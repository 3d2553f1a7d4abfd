"""Read item scores that another harness wrote: a file, or a folder of them. No torch here.

    samples_TASK_DATE.jsonl    lm-eval's logged samples (--log_samples), a line a document
    items/...jsonl of a run    rows and lm-eval's items that a run of Perdure's has scored
    LOG.json, LOG.eval         Inspect's logs; .eval is a zip of JSON files
    anything else .jsonl       a line an item: {"id": ..., "score": ..., "group"?, "task"?}

An item's score is from 0 to 1, more is better. Inspect's letters are read as its own accuracy reads
them: C is 1, P a half, I and N 0. Its epochs of one sample are items of one group.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import DataError, task_named
from perdure.recipe.mistakes import near
from perdure.scoring.lm_eval import METRICS

_SAMPLES = re.compile(r"samples_(.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
_HARNESS = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
            "doc_hash", "prompt_hash", "target_hash")  # fmt: skip
_LETTERS = {
    "C": 1.0,
    "P": 0.5,
    "I": 0.0,
    "N": 0.0,
    "YES": 1.0,
    "TRUE": 1.0,
    "NO": 0.0,
    "FALSE": 0.0,
}


@dataclass(frozen=True)
class Item:
    """One item's score, and where it was read."""

    place: str
    score: float
    group: str | None = None
    prompt: str | None = None
    answer: str = ""
    prediction: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what was asked, which must agree in both files."""


@dataclass
class TaskItems:
    """The items of one task by id, with the metric's name."""

    metric: str
    file: str
    items: dict[str, Item] = field(default_factory=dict)

    def add(self, key: str, item: Item) -> None:
        if key in self.items:
            raise DataError(
                f"{item.place}: id {key!r} is there already: {self.items[key].place}",
                "each item of a task needs its own id; write its task, or take one out",
            )
        self.items[key] = item


@dataclass(frozen=True)
class Wanted:
    """What to read of each item.

    `metric`: lm-eval's METRIC or METRIC,FILTER, Inspect's scorer or SCORER,KEY; None: the usual
    one. `group`: a field whose value items share that belong together: of lm-eval's `doc`, of
    Inspect's `metadata`, or of the line itself.
    """

    metric: str | None = None
    group: str | None = None


def read_scores(path: Path, wanted: Wanted) -> dict[str, TaskItems]:
    """Read the items of all tasks in a file or a folder.

    Raises:
        DataError: with file and line of what cannot be read as scores; a task that is there twice.
    """
    files = _files(path)
    found: dict[str, TaskItems] = {}
    for file in files:
        # A file that names no task is, in a folder, the task of its name; alone it has none.
        for name, task in _read(file, wanted, file.stem if path.is_dir() else "scores").items():
            if name in found:
                raise DataError(
                    f"{path}: {task_named(name)} is in two files: {found[name].file} "
                    f"and {task.file}",
                    "name one of the files, or move the older one away",
                )
            found[name] = task
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file", near(path.name, there) or "check the path")
    endings = (".jsonl", ".json", ".eval")
    files = sorted(p for p in path.rglob("*") if p.suffix in endings and p.is_file())
    samples = [p for p in files if _SAMPLES.fullmatch(p.name)]
    # Beside its samples lm-eval writes results_*.json, which holds no items.
    found = samples or [p for p in files if not p.name.startswith("results")]
    if not found:
        raise DataError(
            f"{path}: holds no scores of items",
            "lm-eval writes them with --log_samples; Inspect's logs are .eval or .json",
        )
    return found


def _read(file: Path, wanted: Wanted, unnamed: str) -> dict[str, TaskItems]:
    if zipfile.is_zipfile(file):
        return _inspect(file, *_zipped(file), wanted)
    if file.suffix == ".eval":
        raise DataError(f"{file}: is no zip file, as Inspect's .eval files are", "is it complete?")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if file.suffix == ".json":
        log = _parsed(text, str(file))
        if not isinstance(log, dict) or "samples" not in log or "eval" not in log:
            raise DataError(
                f'{file}: is no log of Inspect\'s: it has no "eval" and "samples"',
                "a line an item is .jsonl; lm-eval writes its items with --log_samples",
            )
        samples = log["samples"] or []
        return _inspect(file, log, ((f"sample {n}", s) for n, s in enumerate(samples, 1)), wanted)
    lines = list(_lines(file, text))
    if not lines:
        raise DataError(f"{file}: empty: no items", "one line for each item is needed")
    return (_harness if "doc_id" in lines[0][1] else _plain)(file, lines, wanted, unnamed)


def _parsed(text: str | bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        at = f"{place}:{line}" if line is not None and not re.search(r":\d+$", place) else place
        why = getattr(error, "msg", str(error))
        raise DataError(f"{at}: broken JSON: {why}", "was it written to its end?") from error


def _lines(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{file}:{number}"
            values = _parsed(line, place)
            if not isinstance(values, dict):
                raise DataError(f"{place}: not a JSON object", 'write {"id": ..., "score": ...}')
            yield place, values


# --- a line an item


def _plain(
    file: Path, lines: list[tuple[str, dict[str, Any]]], wanted: Wanted, unnamed: str
) -> dict[str, TaskItems]:
    found: dict[str, TaskItems] = {}
    key = wanted.metric or "score"
    for place, values in lines:
        for needed in ("id", key):
            if values.get(needed) is None:
                raise DataError(
                    f'{place}: no "{needed}"',
                    [f"has: {', '.join(values)}", 'a line is {"id": ..., "score": 0 to 1}'],
                )
        name = str(values.get("task") or unnamed)
        group = wanted.group or "group"
        if wanted.group is not None and group not in values:
            raise _no_group(place, group, values)
        task = found.setdefault(name, TaskItems(key, str(file)))
        item = Item(
            place,
            _number(values[key], place, key),
            _label(values.get(group)),
            _text(values.get("prompt")) or None,
            _text(values.get("answer")),
            _text(values.get("prediction")),
            {"doc_hash": str(values["doc_hash"])} if "doc_hash" in values else {},
        )
        task.add(str(values["id"]), item)
    return found


# --- lm-eval


def _harness(
    file: Path, lines: list[tuple[str, dict[str, Any]]], wanted: Wanted, unnamed: str
) -> dict[str, TaskItems]:
    named = _SAMPLES.fullmatch(file.name)
    place, first = lines[0]
    metric, how = _harness_metric(place, first, lines, wanted)
    task = TaskItems(metric, str(file))
    for place, values in lines:
        if values.get("filter", how) != how:
            continue
        if metric not in values or "doc_id" not in values:
            raise DataError(f'{place}: no "{metric}" of a "doc_id"', "was it written to its end?")
        doc = values.get("doc")
        group = None
        if wanted.group is not None:
            if not isinstance(doc, dict) or wanted.group not in doc:
                raise _no_group(place, wanted.group, doc if isinstance(doc, dict) else {}, "doc")
            group = _label(doc[wanted.group])
        said = values.get("filtered_resps")
        said = said[0] if isinstance(said, list) and said else said
        hashes: dict[str, str] = {
            k: str(values[k]) for k in ("doc_hash", "target_hash") if k in values
        }
        item = Item(
            place,
            _number(values[metric], place, metric),
            group,
            _context(values.get("arguments")) or None,
            _text(values.get("target")),
            _text(said),
            hashes,
        )
        task.add(str(values["doc_id"]), item)
    return {named[1] if named else unnamed: task}


def _harness_metric(
    place: str, first: dict[str, Any], lines: list[tuple[str, dict[str, Any]]], wanted: Wanted
) -> tuple[str, str]:
    """The metric and the filter to read; lm-eval writes a line a document and filter."""
    listed = first.get("metrics")
    known = listed if isinstance(listed, list) else [k for k in first if k not in _HARNESS]
    filters = list(dict.fromkeys(str(v.get("filter", "none")) for _, v in lines))
    metric, comma, how = (wanted.metric or "").partition(",")
    if not metric:
        numbers = [k for k in known if isinstance(first.get(k), int | float)]
        metric = next((k for k in (*METRICS, *numbers) if k in numbers), "")
    if metric not in known:
        what = f"no metric {metric!r}" if metric else "no metric that is a number an item"
        raise DataError(f"{place}: {what}", f"--metric, one of: {', '.join(map(str, known))}")
    if comma and how not in filters:
        raise DataError(f"{place}: no filter {how!r}", f"one of: {', '.join(filters)}")
    return metric, how if comma else filters[0]


def _context(arguments: Any) -> str:
    """The text that was asked first; lm-eval names the arguments, older versions list them."""
    if isinstance(arguments, dict):
        arguments = [list(a.values()) if isinstance(a, dict) else a for a in arguments.values()]
    first = arguments[0] if isinstance(arguments, list) and arguments else ""
    first = first[0] if isinstance(first, list) and first else first
    return first if isinstance(first, str) and first.strip() else ""


# --- Inspect


def _zipped(file: Path) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    """The log's header, and its samples with their names."""
    archive = zipfile.ZipFile(file)

    def member(name: str) -> Any:
        try:
            return _parsed(archive.read(name), f"{file}: {name}")
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise DataError(
                f"{file}: {name}: cannot be unpacked: {error}",
                "write it as JSON: inspect log convert --to json, or inspect log dump",
            ) from error

    names = archive.namelist()
    heads = [n for n in ("header.json", "_journal/start.json") if n in names]
    if not heads:
        raise DataError(f"{file}: is no log of Inspect's: no header.json in it")
    samples = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
    return member(heads[0]), ((name, member(name)) for name in samples)


def _inspect(
    file: Path, log: dict[str, Any], samples: Iterable[tuple[str, Any]], wanted: Wanted
) -> dict[str, TaskItems]:
    about = log.get("eval")
    name = str(about.get("task") or file.stem) if isinstance(about, dict) else file.stem
    task: TaskItems | None = None
    for where, sample in samples:
        place = f"{file}: {where}"
        if not isinstance(sample, dict) or sample.get("id") is None:
            raise DataError(f'{place}: no "id"', "was the log written to its end?")
        scores = sample.get("scores") or ({"score": sample["score"]} if sample.get("score") else {})
        if not scores:
            continue  # it failed or was never reached: an item in one file only, or in none
        metric, value, score = _inspect_score(place, scores, wanted.metric)
        task = task or TaskItems(metric, str(file))
        identity, epoch = _label(sample["id"]), sample.get("epoch", 1)
        group = identity
        if wanted.group is not None:
            metadata = sample.get("metadata")
            if not isinstance(metadata, dict) or wanted.group not in metadata:
                raise _no_group(place, wanted.group, metadata or {}, "metadata")
            group = _label(metadata[wanted.group])
        prompt = _text(sample.get("input"))
        item = Item(
            place,
            _number(value, place, metric),
            group,
            prompt or None,
            _text(sample.get("target")),
            _text(score.get("answer")),
            {"input": prompt} if prompt else {},
        )
        task.add(f"{identity} (epoch {epoch})" if epoch != 1 else str(identity), item)
    if task is None:
        raise DataError(f"{file}: no sample has a score", "was the log written to its end?")
    return {name: task}


def _inspect_score(
    place: str, scores: dict[str, Any], wanted: str | None
) -> tuple[str, Any, dict[str, Any]]:
    scorer, _, key = (wanted or next(iter(scores))).partition(",")
    if scorer not in scores:
        raise DataError(f"{place}: no scorer {scorer!r}", f"one of: {', '.join(scores)}")
    score = scores[scorer]
    score = score if isinstance(score, dict) else {"value": score}
    value = score.get("value")
    if isinstance(value, dict):
        if key not in value:
            known = ", ".join(f"{scorer},{one}" for one in value)
            raise DataError(f"{place}: {scorer} has several values", f"--metric, one of: {known}")
        return f"{scorer},{key}", value[key], score
    return scorer, value, score


# --- values


def _number(value: Any, place: str, name: str) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = _LETTERS.get(value.strip().upper(), value)
    if not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
        raise DataError(
            f"{place}: {name} is {json.dumps(value)[:80]}, not a number from 0 to 1",
            "only of such scores can a number of items bound the mean; name another with --metric",
        )
    return float(value)


def _label(value: Any) -> str | None:
    """A group's or an id's name; equal values have equal names."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _no_group(place: str, group: str, values: Mapping[str, Any], of: str = "") -> DataError:
    inside = f"{of} has" if of else "has"
    return DataError(
        f'{place}: no "{group}"{f" in {of}" if of else ""}, which --group names',
        [*filter(None, [near(group, list(values))]), f"{inside}: {', '.join(map(str, values))}"],
    )
