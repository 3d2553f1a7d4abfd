"""Tasks of lm-eval (EleutherAI's evaluation harness, the extra `general`) by name or from a file.

Everything here happens before a weight is loaded: names are looked up in lm-eval's own list, task
files are read, and data sets that are not in the cache are downloaded.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from perdure.consent import ConsentError, demand
from perdure.errors import SHOWN, UsageError, brief, one_line
from perdure.recipe.general import is_task_file
from perdure.recipe.mistakes import Mistake, near
from perdure.streams.hub import asked_once

if TYPE_CHECKING:
    from perdure.recipe.general import GeneralConfig

INSTALL = "pip install perdure[general]"
SEED = 1234
"""Draws a task's examples (few-shot). lm-eval's own default; the same at every scoring."""


def mistakes(tasks: Sequence[Any]) -> Iterator[Mistake]:
    """What is wrong with the entries of `general.tasks`; the keys are their positions.

    Files must be absolute paths; one that is not there, and what is no text, is not told here.
    """
    if tasks and importlib.util.find_spec("lm_eval") is None:
        yield Mistake((), "lm-eval is not installed", INSTALL)
        return
    names: list[str] = []
    unknown = 0
    for i, entry in enumerate(tasks):
        task = str(entry)
        if isinstance(entry, dict | list) or (is_task_file(task) and not Path(task).is_file()):
            continue
        try:
            _demand(task)
            name = _config(task).get("task")
        except ConsentError as error:
            yield Mistake((i,), error.what, one_line(error.remedy))
            continue
        except Exception as error:  # whatever lm-eval's reader of YAML raises
            yield Mistake((i,), f"the task file is broken: {_line(error)}", "see lm-eval's guide")
            continue
        if not isinstance(name, str):  # a group's file lists its members there
            yield Mistake((i,), "the file is not of one task", "begin it with task: NAME")
            continue
        if not is_task_file(task) and task not in (known := _manager(True).all_tasks):
            unknown += 1
            close = near(task, known) if unknown <= SHOWN else ""  # it takes a while of each
            hint = " ".join(filter(None, [close, "all of them: lm-eval ls tasks"]))
            yield Mistake((i,), f'no lm-eval task is called "{brief(task)}"', hint)
        elif name in names:
            yield Mistake((i,), f'"{name}" comes twice', "give the task file's task another name")
        names.append(name)


def load(general: GeneralConfig | None) -> dict[str, Any]:
    """The tasks to score by name, each as lm-eval loads it; a run loads them once.

    A tag, or a group without a score of its own, stands for its members. Data sets that are not in
    the cache are downloaded from the hub.

    Raises:
        ConsentError: a task file, where the user has not said that code may run.
        UsageError: one of `mistakes`; a task or its data cannot be read, or the task needs what is
            not there: pictures or sound, or leave to run code that the model writes.
    """
    if general is None or not general.tasks:
        return {}
    for task in general.tasks:
        _demand(task)
    for mistake in mistakes(general.tasks):
        place = ".".join(map(str, ("general.tasks", *mistake.key)))
        raise UsageError(f"{place}: {mistake.what}", mistake.remedy)
    found = _load(general.tasks, general.num_fewshot)
    if general.group is not None:
        _check_group(general.group, found)
    return found


def _check_group(group: str, loaded: Mapping[str, Any]) -> None:
    """Refuse a field that the documents of no task have."""
    fields: dict[str, None] = {}
    for whole in loaded.values():
        for task in whole["tasks"].values():
            fields |= dict.fromkeys(map(str, next(iter(task.eval_docs), {})))
    if group not in fields:
        hint = filter(None, [near(group, list(fields)), f"fields there are: {', '.join(fields)}"])
        raise UsageError(f'general.group: no task\'s documents have a field "{group}"', [*hint])


def _load(tasks: Sequence[str], num_fewshot: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in tasks:
        with quiet(), seeded(), asked_once():
            try:
                manager = _manager(not is_task_file(task))
                whole = _read(manager, task)
            except Exception as error:  # of lm-eval, of datasets, or of the task's own code
                raise UsageError(
                    f"general.tasks: {task}: {_line(error)}",
                    "check the task file, and the data that it names"
                    if is_task_file(task)
                    else "its data come from the hub: allow the download once, without "
                    "HF_HUB_OFFLINE; later the cache is enough",
                ) from error
            group = whole.get("groups", {}).get(task)
            for part in _scored([group] if group else list(whole["tasks"].values())):
                found[_name(part)] = manager.load([part])
    for name, loaded in found.items():
        for task in loaded["tasks"].values():
            _check(name, task)
            _set_examples(task, num_fewshot)
            if any(map(is_task_file, tasks)):
                _try_requests(name, task)
    return found


def _try_requests(name: str, task: Any) -> None:
    """Make the requests of all documents, as scoring does: a cell of one's own file may be such
    that lm-eval cannot, and it would end in the middle of a run."""
    with quiet(), seeded():
        try:
            task.build_all_requests()
        except Exception as whole:  # of lm-eval, or of the task's own code
            place, why = "", whole
            for number, _ in enumerate(task.eval_docs):
                try:
                    task.build_all_requests(samples=[number])
                except Exception as error:
                    place, why = f"document {number + 1}: ", error
                    break
            raise UsageError(
                f"general.tasks: {name}: {place}lm-eval cannot ask it: "
                f"{type(why).__name__}: {_line(why)}",
                "look at this row, and at what the task file says of its columns",
            ) from why


def _demand(task: str) -> None:
    """A task file runs code in more ways than can be told by looking at it.

    Besides `!function` and `class` there are metrics, which `evaluate` downloads as Python, and
    templates, which lm-eval renders without a sandbox. Its own tasks are installed code.
    """
    if is_task_file(task):
        demand(f"{task}: a task file of lm-eval's is code")


def _scored(parts: Sequence[Any]) -> Iterator[Any]:
    """Tasks, and groups that have a score of their own; of other groups their members."""
    for part in parts:
        if hasattr(part, "has_aggregation") and not part.has_aggregation:
            yield from _scored(list(part))
        else:
            yield part


def _name(part: Any) -> str:
    return str(part.name if hasattr(part, "has_aggregation") else part.task_name)


def _check(name: str, task: Any) -> None:
    for mark, what in (("UNSAFE_CODE", "runs code that the model writes"),
                       ("MULTIMODAL", "asks about more than text")):  # fmt: skip
        if getattr(task, mark, False):
            raise UsageError(
                f"general.tasks: {name}: {what}", "leave it out, or run lm-eval itself"
            )


def _set_examples(task: Any, wanted: int | None) -> None:
    """Set how many examples stand before a question; a task that says 0 keeps to it."""
    own = task.get_config("num_fewshot")
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)


@functools.cache
def _manager(with_index: bool) -> Any:
    """lm-eval's list of tasks. Reading the thousands that it ships takes a while."""
    if with_index:  # told at once: the import alone takes seconds
        logging.getLogger("perdure").warning(
            "reading lm-eval's list of tasks, to look names up: it takes some seconds"
        )
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager(include_defaults=with_index)


class TaskFile:
    """What a task file says: lm-eval builds this in place of the task, so that no data are read."""

    task_name = "a file that is only read"

    def __init__(self, config: dict[str, Any]) -> None:
        self.says = config


def _config(task: str) -> dict[str, Any]:
    """A task file as lm-eval reads it; of a name, just that."""
    if not is_task_file(task):
        return {"task": task}
    with TemporaryDirectory() as folder:
        nameless = Path(folder, "nameless.yaml")  # what holds where the file names no task
        nameless.write_text("task: [nameless]", "utf-8")
        included = json.dumps([str(nameless), task], ensure_ascii=False)
        reader = Path(folder, "reader.yaml")
        reader.write_text(
            f"include: {included}\nclass: !function {__name__}.{TaskFile.__name__}\n", "utf-8"
        )
        [found] = _manager(False).load([str(reader)])["tasks"].values()
    config: dict[str, Any] = found.says
    return config


def _read(manager: Any, task: str) -> Any:
    """Load a task by name, or from a file, whose data files are found beside it."""
    options = (_config(task).get("dataset_kwargs") or {}) if is_task_file(task) else {}
    given = options.get("data_files")
    files = _beside(Path(task).parent, given)
    if files == given:
        return manager.load([task])
    with TemporaryDirectory() as folder:
        path = Path(folder, Path(task).name)
        changed = {"include": task, "dataset_kwargs": {**options, "data_files": files}}
        path.write_text(json.dumps(changed, ensure_ascii=False, default=str), "utf-8")
        return manager.load([str(path)])


def _beside(folder: Path, files: Any) -> Any:
    """Relative paths from the task file's folder where the file is there, else as they are."""
    if isinstance(files, Mapping):
        return {split: _beside(folder, each) for split, each in files.items()}
    if isinstance(files, list):
        return [_beside(folder, each) for each in files]
    if files is None:
        return None
    return str(folder / files) if (folder / str(files)).exists() else files


def _line(error: BaseException) -> str:
    """What an error says in one line, and the error that it was raised from: `datasets` tells in
    the first only that something went wrong."""
    whole = str(error).strip().partition("\n")[0] or type(error).__name__
    inner = "" if error.__cause__ is None else _line(error.__cause__)
    return whole if not inner or inner in whole else f"{whole}: {inner}"


@contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's seeds inside; afterwards all random numbers go on as if nothing had been drawn."""
    import numpy as np
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    # Asking for a GPU that is not in use yet would take memory of the first one.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            random.seed(0)
            np.random.seed(SEED)
            torch.default_generator.manual_seed(SEED)
            if devices:
                torch.cuda.manual_seed(SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no log line of lm-eval's: the display tells how far scoring is.

    Nor of the data sets that it loads. Other bars of tqdm's in this process stay as they are.
    """
    import datasets
    from huggingface_hub import utils as hub
    from lm_eval.api import task

    loggers = {logging.getLogger("lm_eval"): logging.ERROR}
    loggers[logging.getLogger("datasets")] = logging.CRITICAL  # it raises what it logs as an error
    levels, bars = {logger: logger.level for logger in loggers}, task.tqdm
    shown = [of for of in (datasets, hub) if not of.are_progress_bars_disabled()]
    for logger, level in loggers.items():
        logger.setLevel(level)
    task.tqdm = functools.partial(bars, disable=True)  # it has no option for the bar of its prompts
    for of in shown:
        of.disable_progress_bars()
    try:
        yield
    finally:
        for of in shown:
            of.enable_progress_bars()
        task.tqdm = bars
        for logger, level in levels.items():
            logger.setLevel(level)
