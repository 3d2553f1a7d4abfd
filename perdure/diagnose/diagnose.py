"""What did a tuned model lose on a task: the knowledge, the way to answer, or the form of answers?

    found = diagnose("base-folder", "tuned-folder", stream)
    for task in found.tasks:
        print(task.task, task.loss, task.reason)

Measures are made in the order in which `perdure.diagnose.rule` asks for them, so a task
that lost nothing costs two scores a model. The rule is there; here are the measures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from perdure.audit.audit import (
    Model,
    adapter_in,
    load_model,
    name_of,
    one_of,
    reading_of,
    reading_told,
)
from perdure.audit.runs import tell_changed_bases, today_of
from perdure.consent import by_argument
from perdure.diagnose.case import Case
from perdure.diagnose.measurements import Measured, Progress, Sizes
from perdure.diagnose.result import Diagnosis, TaskDiagnosis, evidence
from perdure.diagnose.rule import decide
from perdure.errors import UsageError, task_named
from perdure.models.served import serve_only
from perdure.streams.kinds import kind, metric
from perdure.streams.rows import each_once
from perdure.streams.task import Task, TaskStream


@by_argument
def diagnose(
    base: Model,
    tuned: Model,
    stream: TaskStream | Sequence[Task],
    *,
    max_drop: float = 0.05,
    alpha: float = 0.05,
    names: Mapping[str, Mapping[str, str]] | None = None,
    sizes: Sizes | None = None,
    chat_template: str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    accept_changes: bool = False,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> Diagnosis:
    """Tell for each task what `tuned` lost against `base`. Both models are in memory at once.

    Loaded models keep their weights bit for bit: a short training is undone.

    Args:
        base: the model that could do the tasks: a path (`perdure.models.load_saved`) or a loaded
            (model, tokenizer). After several tasks that is the checkpoint after the task in
            question, not the model before it.
        tuned: the model to examine, likewise.
        stream: tasks; test rows are scored, a repeated row counts once. Train rows teach the
            probe and make up the short training and the examples.
        max_drop: drop of the mean score, 0 to 1, up to which nothing counts as lost.
        alpha: bound on the error of each end of each interval.
        names: task -> other spelling -> label, such as a recipe's `label_names`.
        chat_template: as in `Encoder`; None is the one that `tuned` was trained with.
        device: where both models go; None: a GPU if there is one, for models given by path.
        seed: of the bootstrap.
        accept_changes: go on although the base of a run that is read has changed since it began.
        adapter: of a `tuned` with several, given by path, this one answers all that is asked;
            None: what is served, by its router where it has one.
        trust_remote_code: code that the models, or a metric of your own, bring may run.
    Raises:
        UsageError: an option out of range, no task, one whose metric is perplexity, or no such
            adapter.
        ModelError: a model cannot be loaded.
        RunError: the base of a run has changed, and `accept_changes` is false.
        ConsentError: a model brings code, and nobody said that it may run.
        TrainingError: a model gives NaN.
    """
    started = time.perf_counter()
    tasks, sizes = tuple(stream), sizes or Sizes()
    _check(tasks, max_drop, alpha, sizes)
    only = adapter_in(tuned, adapter)
    tell_changed_bases((base, tuned), accept_changes)
    first, second = (load_model(model, "fp32", device) for model in (base, tuned))
    if only is not None:
        serve_only(second[0], only)
    reading = reading_of(tuned, second[1], chat_template)
    ours, theirs = (
        Measured(
            model,
            tokenizer,
            **reading,
            today=today_of(tuned),
            sizes=sizes,
            side=side,
            on_progress=on_progress,
        )
        for side, model, tokenizer in (
            ("base", first[0], one_of(first[1], second[1])),
            ("tuned", second[0], second[1]),
        )
    )
    found = []
    for task in tasks:
        spelled = (names or {}).get(task.name)
        found.append(
            diagnose_task(
                ours, theirs, task, max_drop=max_drop, alpha=alpha, names=spelled, seed=seed
            )
        )
    names_of = (name_of(base), name_of(tuned) + (f" ({adapter})" if adapter else ""))
    seconds = time.perf_counter() - started
    told = reading_told(theirs.encoder, first[1], second[1])
    return Diagnosis(*names_of, max_drop, alpha, seed, tuple(found), seconds, told)


def diagnose_task(
    base: Measured,
    tuned: Measured,
    task: Task,
    *,
    max_drop: float = 0.05,
    alpha: float = 0.05,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> TaskDiagnosis:
    """Tell what `tuned` lost on one task; what `base` has measured already is not done again.

    Args, Raises: as of `diagnose`.
    """
    task = replace(task, test=each_once(kind(task.kind), task.test, base.sizes.rows))
    case = Case(base, tuned, task, dict(names or {}), max_drop, alpha, seed)
    while (decision := decide(case.figures)).needs:
        for name in decision.needs:
            case.measure(name)
    fell = case.fell
    return TaskDiagnosis(
        task=task.name,
        metric=metric(task.metric).name,
        rows=len(task.test),
        loss=decision.loss,
        reason=decision.reason,
        decided_by=decision.decided_by,
        more_rows=decision.more_rows,
        fell=fell,
        means=case.means,
        figures=dict(case.figures.found),
        unavailable=dict(case.figures.unavailable),
        evidence=evidence(decision, case.answers, fell, case.before[fell], case.after[fell]),
        adapters=case.adapters,
    )


def _check(tasks: Sequence[Task], max_drop: float, alpha: float, sizes: Sizes) -> None:
    if not tasks:
        raise UsageError("diagnose: no tasks", "give --tasks a recipe that has some")
    if not 0 < max_drop < 1:
        raise UsageError(
            f"diagnose: --max-drop {max_drop:g}: must be above 0 and below 1", "0.05 is usual"
        )
    if not 0 < alpha < 0.5:
        raise UsageError(f"diagnose: --alpha {alpha:g}: must be between 0 and 0.5", "try 0.05")
    if not 0 < sizes.learning_rate < float("inf"):
        raise UsageError(f"diagnose: --learning-rate {sizes.learning_rate:g}: must be above 0")
    for task in tasks:
        kind(task.kind).demand("diagnose", task.name)
        found = metric(task.metric)
        if not found.scores_items:
            raise UsageError(
                f"diagnose: {task_named(task.name)}: with metric {found.name} nothing is answered",
                f"give it another metric, or take it out; perdure audit judges {found.name}",
            )
        if not found.higher_is_better:
            raise UsageError(
                f"diagnose: {task_named(task.name)}: of its metric {found.name} less is better",
                "give it a metric of right answers, or take it out; perdure audit judges this one",
            )
