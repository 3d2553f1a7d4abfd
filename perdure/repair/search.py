"""Search the weights between base and tuned model for general ability regained, the task kept.

    found = repair("base", "tuned", tasks, texts, out="tuned-repaired")

Candidates are scored on one half of the texts and of each task's test rows. Of those that keep
enough of what the tuned model gained on every task, the one with the lowest loss on general texts
is chosen, and then measured on the other half.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from perdure.audit.runs import tell_changed_bases
from perdure.consent import by_argument
from perdure.errors import UsageError
from perdure.models.told import template_told
from perdure.repair.candidates import BASE, TUNED
from perdure.repair.choice import Grid, contenders, find, notes, reason
from perdure.repair.halves import halve
from perdure.repair.meter import Meter, Progress, Sizes
from perdure.repair.output import new_folder, write
from perdure.repair.path import load_line
from perdure.repair.result import Point, Repair, Report, shares
from perdure.streams.kinds import kind
from perdure.streams.task import Task


@by_argument
def repair(
    base: str | Path,
    tuned: str | Path,
    tasks: Sequence[Task],
    general: Sequence[str],
    *,
    out: str | Path | None = None,
    max_task_loss: float = 0.02,
    steps: int = 0,
    grid: Grid | None = None,
    sizes: Sizes | None = None,
    precision: str = "fp32",
    seed: int = 0,
    device: torch.device | str | None = None,
    accept_changes: bool = False,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> Repair:
    """Take back as much of a fine-tuning as its tasks allow.

    Args:
        base, tuned: a model folder, a run directory or a task checkpoint in it, a GGUF file, a
            hub id; `tuned` may also be a LoRA adapter on `base`.
        tasks: what the tuned model should still be able to do; their test rows are scored.
        general: texts on which it should lose less.
        out: a new folder for the model, `curve.svg` and `curve.json`; None writes nothing.
        max_task_loss: share of each task's gain over the base that may be lost, 0 to below 1.
        steps: optimizer steps of `gere` from the best candidate, on the tasks' training rows and
            a half of the texts that would search otherwise.
        precision: "bf16" computes in bf16; the weights that are mixed stay fp32.
        seed: of the halves, and of the training.
        device: None is a GPU if there is one.
        accept_changes: go on although the base of a run that is read has changed since it began.
        adapter: of a `tuned` with several, the one to repair.
        trust_remote_code: code that the models, or a metric of your own, bring may run.
    Raises:
        UsageError: an option out of range, no task, or two models with the same weights, or no
            such adapter.
        DataError: a half would have no text or no rows.
        ModelError: a model cannot be loaded, or the two do not belong together.
        ConsentError: a model brings code, and nobody said that it may run.
        RunError: `out` exists; or the base of a run has changed, and `accept_changes` is false.
    """
    started = time.perf_counter()
    grid, sizes = grid or Grid(), sizes or Sizes()
    _check(tasks, max_task_loss, steps, precision)
    tell_changed_bases((base, tuned), accept_changes)
    search, report = halve(general, tasks, (sizes.texts, sizes.rows), seed)
    replayed: tuple[str, ...] = ()
    if steps:  # a text that is trained on must not choose
        middle = (len(search.texts) + 1) // 2
        replayed = search.texts[middle:]
        search = replace(search, texts=search.texts[:middle])
        if not replayed:
            raise UsageError("--steps: too few general texts", "give eight or more")
    with new_folder(out) as draft:
        line = load_line(str(base), str(tuned), precision=precision, adapter=adapter)
        if device is None and torch.cuda.is_available():
            device = "cuda"
        if device is not None:
            line.model.to(device)
        meter = Meter(line, search, sizes, precision, on_progress)
        meter.expect(grid.evaluations(line) + 3)
        before = meter.figures(BASE, report), meter.figures(TUNED, report)
        points = find(meter.point, line, grid, max_task_loss)
        chosen = _best(meter, points, max_task_loss)
        if steps:
            from perdure.repair.finetune import polish

            begin = chosen or points[1]
            polish(line, begin.candidate, tasks, replayed, steps, sizes, precision, seed)
            trained = meter.trained(begin.candidate)
            points.append(trained)
            better = trained.figures.general < begin.figures.general
            if better and contenders([*points[:2], trained], max_task_loss):
                chosen = trained
        reported = None
        if chosen is not None:
            if chosen.candidate.kind != "gere":
                line.put(chosen.candidate)
            line.round()
            after = meter.figures(None, report)
            reported = Report(*before, after, *shares(meter.metrics, *before, after))
        found = Repair(
            base=str(base),
            tuned=str(tuned) + (f" ({adapter})" if adapter else ""),
            max_task_loss=max_task_loss,
            seed=seed,
            rows={"search": search.counts, "report": report.counts},
            points=tuple(points),
            chosen=None if chosen is None else chosen.candidate,
            reason=reason(points, max_task_loss) if chosen is None else "",
            report=reported,
            notes=tuple(notes(points, search, meter.metrics, max_task_loss)),
            metrics=meter.metrics,
            seconds=time.perf_counter() - started,
            folder=None if out is None else Path(out),
            model=None if chosen is None else line.model,
            tokenizer=line.tokenizer,
            template=template_told(line.encoder(), line.tokenizer.chat_template),
        )
        if draft is not None:
            write(found, line, draft)
    return found


def _check(tasks: Sequence[Task], max_task_loss: float, steps: int, precision: str) -> None:
    if not tasks:
        raise UsageError("repair: no task", "name a recipe with the tuned model's tasks: --task")
    for task in tasks:
        kind(task.kind).demand("repair", task.name)
    if not 0 <= max_task_loss < 1:
        raise UsageError(
            f"repair: --max-task-loss {max_task_loss:g}: must be 0 or more and below 1",
            "0.02 keeps 98 % of what each task gained",
        )
    if steps < 0:
        raise UsageError(f"repair: --steps {steps}: must be 0 or more")
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"repair: --precision {precision}: unknown", "one of: fp32, bf16")


def _best(meter: Meter, points: Sequence[Point], max_task_loss: float) -> Point | None:
    """The qualified candidate with the lowest general loss; of about equal ones, answers decide."""
    some = contenders(points, max_task_loss)
    if len(some) < 2:
        return some[0] if some else None
    losses = {point.candidate: meter.answer_loss(point.candidate) for point in some}
    return min(some, key=lambda point: losses[point.candidate])
