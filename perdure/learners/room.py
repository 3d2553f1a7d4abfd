"""What a run asks of the machine that it is started on, told before a weight is loaded.

A recipe may be right and still ask for what is not there: memory, disk, processes, an optimizer's
package. A check says so; a run refuses.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from perdure.engine.batching import split_batch
from perdure.errors import UsageError, one_line
from perdure.failures import free_mb
from perdure.learners.work import works
from perdure.models.training_memory import PROCESS_MB, checkpoints_mb, scoring_mb, training_mb
from perdure.streams.kinds import kind, metric

if TYPE_CHECKING:
    from perdure.engine.rows import RowEncoder
    from perdure.models.inspect import ModelFacts
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import Task, TaskStream

DOUBT = 4
"""The estimate of memory is good to a factor of two: one this much too large cannot be right, and
one that is less too large is told."""
_PACKAGES = {
    "adamw_8bit": ("bitsandbytes", "bitsandbytes"),
    "paged_adamw_8bit": ("bitsandbytes", "bitsandbytes"),
    "lion_32bit": ("bitsandbytes", "bitsandbytes"),
    "lion_8bit": ("bitsandbytes", "bitsandbytes"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
"""The module of an optimizer that torch does not have, and the package that brings it."""
UNKNOWN = 1 << 40
_GUESS = "the estimate is good to a factor of two"
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def machine_mb() -> int:
    """Memory of one process, in MiB: the GPU's, else its share of this machine's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory) >> 20
    if not hasattr(os, "sysconf"):  # Windows
        return UNKNOWN
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP.read_text("ascii").strip() if _CGROUP.is_file() else ""
    if limit.isdecimal():  # of a container
        most = min(most, int(limit))
    return (most >> 20) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def lacks(
    recipe: Recipe, stream: TaskStream, encoder: RowEncoder | None, facts: ModelFacts | None
) -> Iterator[UsageError]:
    """Yield what a run of a recipe lacks here; each begins with the recipe's place.

    Args: encoder: with the stream's rows; facts: of the base model. Without them memory is not
        known.
    """
    world, size = int(os.environ.get("WORLD_SIZE", "1")), recipe.model.fsdp_size
    if size > 1 and size != world:
        yield UsageError(
            f"{recipe.place('model.fsdp_size')}: {size}: but {world} process(es) run",
            f"start it with: torchrun --nproc_per_node {size} -m perdure ...",
        )
    import torch

    if recipe.model.attention == "flex_attention" and not torch.cuda.is_available():
        yield UsageError(  # torch would end the process at the first backward pass, without a word
            f"{recipe.place('model.attention')}: flex_attention: cannot be trained without a GPU",
            "leave it out, or write sdpa",
        )
    module, package = _PACKAGES.get(recipe.train.optimizer, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        yield UsageError(
            f"{recipe.place('train.optimizer')}: {recipe.train.optimizer}: {package} is not "
            "installed",
            f"pip install {package}",
        )
    if (found := _short(recipe, stream, encoder, facts)) and found.mb > DOUBT * machine_mb():
        assert facts is not None
        yield _too_much(recipe, stream, facts, found)


def too_large(
    recipe: Recipe,
    stream: TaskStream,
    encoder: RowEncoder | None,
    facts: ModelFacts | None,
    place: Path,
    learned: int = 0,
) -> Iterator[str]:
    """Yield what is said of a run that may be too large for this machine, each in one line.

    Args: place: the run directory, or where it will be; learned: tasks whose checkpoints it has.
    """
    if facts is None:
        return
    found = _short(recipe, stream, encoder, facts)
    if found is not None and found.mb <= DOUBT * machine_mb():
        error = _too_much(recipe, stream, facts, found)
        yield f"{error.what}; {_GUESS}; {one_line(error.remedy)}"
    if not kind(stream.tasks[0].kind).writes:  # a classifier saves what changed, which is not known
        return
    from perdure.reports.format import memory

    count = len(stream.tasks) - learned
    needed, there = checkpoints_mb(recipe, count, facts.trainable), free_mb(place)
    if needed > there:
        fewer = ", or save.tasks: last" if recipe.save.tasks == "all" and count > 2 else ""
        yield (
            f"{recipe.place('save')}: checkpoints take about {memory(needed)}, and "
            f"{memory(there)} are free at {place}; {_GUESS}; free some, choose another --out"
            f"{fewer}"
        )


class Need(NamedTuple):
    """Memory of one process at its most expensive, in MiB, and whether that is scoring."""

    mb: int
    scoring: bool = False


def _short(
    recipe: Recipe, stream: TaskStream, encoder: RowEncoder | None, facts: ModelFacts | None
) -> Need | None:
    """The memory that is needed, where there is less; None: it is enough, or not known."""
    if encoder is None or facts is None or _sharded():
        return None
    needed = need(recipe, stream, encoder, facts)
    return needed if needed.mb > machine_mb() else None


def _sharded() -> bool:
    """Whether accelerate shares the weights out: then no estimate is known."""
    return any(
        os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
        for name in ("FSDP", "DEEPSPEED")
    )


def need(recipe: Recipe, stream: TaskStream, encoder: RowEncoder, facts: ModelFacts) -> Need:
    """Memory of one process at the most expensive task; in bf16, unless fp32 is asked for."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    precision = "fp32" if recipe.train.precision == "fp32" else "bf16"
    heads, most = _of_heads(recipe, stream, facts), Need(PROCESS_MB)
    facts = replace(facts, parameters=facts.parameters + heads, trainable=facts.trainable + heads)
    for task, work in zip(stream, works(recipe, stream, 0), strict=True):
        own = recipe.of_task(task.learn)
        longest = max(work.widths(encoder), default=0)
        longest += task.max_new_tokens if task.learn == "rl" else 0
        micro = split_batch(own, world, task.learn)[0]
        trained = Need(training_mb(own, facts, micro, longest, precision))
        scored = Need(_scoring_mb(recipe, task, encoder, facts, precision), scoring=True)
        most = max(most, trained, scored, key=lambda one: one.mb)
    return most


def _of_heads(recipe: Recipe, stream: TaskStream, facts: ModelFacts) -> int:
    """Numbers of a classifier's heads once all classes are there, those kept for later among them;
    without biases."""
    if kind(stream.tasks[0].kind).writes:
        return 0
    kept, classes = recipe.model.head.preallocate, len(stream.classes)
    return facts.hidden * (max(kept, classes) if isinstance(kept, int) else classes)


def _scoring_mb(
    recipe: Recipe, task: Task, encoder: RowEncoder, facts: ModelFacts, precision: str
) -> int:
    widths, writes = encoder.lengths((task.name, "test")), kind(task.kind).writes
    longest, scoring = max(widths, default=0), recipe.scoring
    at_once = scoring.prompts_at_once if writes else scoring.texts_at_once(longest)
    rows = min(at_once, len(widths), scoring.max_test_rows or len(widths))
    written = task.max_new_tokens if writes and metric(task.metric).needs == "text" else 0
    sizes = facts if writes else replace(facts, vocab=0)
    return scoring_mb(sizes, rows, longest, written, precision)


def _too_much(recipe: Recipe, stream: TaskStream, facts: ModelFacts, needed: Need) -> UsageError:
    """Say which key is to blame: the adapters' rank, the classes that are kept for later, the
    batch, or the base model itself."""
    train, rl = recipe.train, recipe.rl
    there, doing = machine_mb(), "scoring" if needed.scoring else "training"
    heads = 16 * _of_heads(recipe, stream, facts)
    bytes_of_rank = 16 * facts.trainable if recipe.model.tuning == "lora" else 0
    section = "rl" if rl and (rl.batch_size or rl.micro_batch_size) else "train"
    if bytes_of_rank >> 20 > there:
        key, remedy = "model.lora.r", "lower it: 8 to 64 are usual"
    elif isinstance(recipe.model.head.preallocate, int) and heads >> 20 > there:
        key, remedy = "model.head.preallocate", "give as many as there will ever be classes"
    elif needed.scoring and recipe.scoring.batch_size != 1:
        key, remedy = "scoring.batch_size", "lower it: no score depends on it"
    elif not needed.scoring and max(train.batch_size, (rl and rl.batch_size) or 0) > 1:
        given = train.micro_batch_size or (rl and rl.micro_batch_size)
        key = f"{section}.{'micro_batch_size' if given else 'batch_size'}"
        remedy = f"lower {section}.micro_batch_size: it divides a batch without changing it"
    else:
        key, remedy = "model.path", "take a smaller model, model.tuning: lora, or more GPUs"
    return UsageError(
        f"{recipe.place(key)}: {doing} takes about {needed.mb / 1024:,.1f} GB of memory in each "
        f"process, and there are {there / 1024:,.1f} GB here",
        remedy,
    )
