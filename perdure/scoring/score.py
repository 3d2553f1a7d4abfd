"""Score a model on a task's rows: which label it finds likely, what it writes, or its perplexity.

What is computed is what the metric's record needs (`perdure.streams.kinds.Metric`):

    labels       1 if the answer is the label with the highest log-likelihood, summed over its
                 tokens and the token that ends the turn (so it is the probability of exactly this
                 answer; no division by length), else 0. Nothing is generated.
    text         the text that greedy decoding writes, compared by the metric's function
    likelihood   exp of the mean negative log-likelihood of all answer tokens, the ending token
                 among them; given the right answers, nothing is generated

A task's score is the mean of its items, or, where the record says so, pooled over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from perdure.errors import DataError, UsageError, brief
from perdure.models.chat import Encoder
from perdure.models.generate import Written, batches_alike, generate_whole
from perdure.models.weights import evaluating, is_sharded
from perdure.processes import Progress, over_ranks, world_size
from perdure.scoring.answers import ranked
from perdure.scoring.likelihood import Pair, score_pairs
from perdure.scoring.metrics import item_score, mean
from perdure.scoring.reading import Reading, read
from perdure.streams.kinds import EXACT_MATCH, Metric, is_perdures, kind, known_metric, metric
from perdure.streams.labels import same_tokens
from perdure.streams.rows import row_key
from perdure.streams.task import Row, Task, place_of


@dataclass(frozen=True)
class TaskScore:
    """The score of one task and of each of its rows.

    An item is `{"id", "score", "prediction", "answer", "prompt"}`: `id` is a hash of prompt and
    answer (the n-th copy of a row ends in "-n"), `score` is in the metric's range; for perplexity
    it is the row's own, with `loss` (nats a token) and `tokens` beside it. `group` is in it where
    the task declares what rows belong together. Of a task whose answers are tagged `prediction` is
    what stands in them, and `raw`, `reasoning` and `problem` are beside it
    (`perdure.scoring.reading`).

    `measures` holds every measure of the task by name, `score` under its metric's name first.
    """

    score: float
    metric: str
    higher_is_better: bool
    items: list[dict[str, Any]]
    measures: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    """What a line of scores.jsonl says of a metric that is not Perdure's own: a report is read
    where nobody knows that metric any more."""

    def __post_init__(self) -> None:
        others = {name: value for name, value in self.measures.items() if name != self.metric}
        object.__setattr__(self, "measures", {self.metric: self.score, **others})


def score_task(
    model: nn.Module,
    encoder: Encoder,
    task: Task,
    *,
    batch_size: int = 16,
    split: str = "test",
    max_rows: int | None = None,
    device: torch.device | str | None = None,
    accelerator: Any = None,
    on_progress: Progress | None = None,
    adapters: Sequence[str] | None = None,
) -> TaskScore:
    """Score `model` on a split of `task` by the task's metric.

    The model is in evaluation mode meanwhile; its training flags, generation settings and the
    global random state are afterwards what they were.

    Args:
        batch_size: prompts in a forward pass.
        max_rows: score only the first this many rows of the split.
        device: moves the model there first; None leaves it where it is.
        accelerator: under several processes each scores its share, and all return the same.
        on_progress: called as on_progress(done, total), in rows.
        adapters: of a metric that reads what the model writes, the adapter of each row by name;
            None: those that are active. See `perdure.scoring.routed` for other metrics.
    Raises:
        DataError: the split is empty, or a labelled task's answer is none of its labels.
        UsageError: no such metric, or a user's own failed or gave a number outside its range; or
            the rows have no prompt and no answer.
        TrainingError: the model gives NaN.
    """
    rows = _rows(task, split, max_rows)
    if device is not None:
        model.to(device)

    def progress(done: float) -> None:
        if on_progress is not None:
            on_progress(round(done * len(rows)), len(rows))

    found = metric(task.metric)
    if found.needs not in _COMPUTED:
        raise UsageError(
            f"task {task.name!r}: metric {found.name} needs {found.needs}, which only the learner "
            f"of its own kind computes",
            f"take a metric of the kind {task.kind}",
        )
    kind(task.kind).demand("scoring", task.name)
    run = _Run(model, encoder, task, found, batch_size, accelerator, progress, adapters)
    with evaluating(model), torch.no_grad():
        items = _COMPUTED[found.needs](run, rows)
    score, how = pooled(task.metric, items), {}
    if not is_perdures(found.name):
        how = {"label": found.label, "low": found.low, "high": found.high}
    return TaskScore(score, found.name, found.higher_is_better, items, recorded=how)


def answer_rows(
    model: nn.Module,
    encoder: Encoder,
    task: Task,
    rows: Sequence[Row],
    *,
    batch_size: int = 16,
    accelerator: Any = None,
) -> list[dict[str, Any]]:
    """Answer rows of `task` whose own answers nobody knows, as they would be scored.

    Returns: `text` and `answer` of each row; where the task's metric compares labels also `score`,
        the answer's share of the labels' likelihoods, and `best`, the three likeliest; where its
        answers are tagged `reasoning`, and why there is none, `problem`.

    Raises:
        DataError: a prompt and the longest answer do not fit into the model.
    """
    known = known_metric(task.metric)  # a user's own metric reads what the model writes
    by_labels = known is not None and known.needs == "labels"
    own = known if known is not None else EXACT_MATCH
    run = _Run(model, encoder, task, own, batch_size, accelerator, lambda done: None)
    _refuse_long(run, rows)
    texts = [row.get("source") or _text(row["prompt"][-1:]) for row in rows]
    with evaluating(model), torch.no_grad():
        if by_labels:
            sums = _label_sums(run, rows)
            found = [ranked("answer", task.labels, torch.tensor(one)) for one in sums]
        else:
            found = [
                {"answer": one.answer} | {k: v for k, v in one.said.items() if k != "raw"}
                for one in _written(run, rows)
            ]
    return [{"text": text, **one} for text, one in zip(texts, found, strict=True)]


def _refuse_long(run: _Run, rows: Sequence[Row]) -> None:
    config: Any = run.model.config
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is None:
        return
    for row in rows:
        if (long := len(run.encoder.prompt_ids(row)) + run.task.max_new_tokens) > most:
            place = f"{where}: " if (where := place_of(row)) else ""
            raise DataError(
                f'{place}the text "{brief(_text(row["prompt"][-1:]))}" and an answer to it: {long} '
                f"tokens, and the model reads {most}",
                "shorten the text, or leave the row out",
            )


def pooled(name: str, items: Sequence[Mapping[str, Any]]) -> float:
    """Return a task's score from its items: their mean, or over all tokens, as its metric says."""
    if metric(name).scores_items:
        return mean([item["score"] for item in items])
    tokens = sum(item["tokens"] for item in items)
    return perplexity(math.fsum(item["loss"] * item["tokens"] for item in items) / tokens)


def perplexity(loss: float) -> float:
    """Return exp(loss), infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    encoder: Encoder
    task: Task
    metric: Metric
    batch_size: int
    accelerator: Any
    progress: Any
    adapters: Sequence[str] | None = None


def _by_labels(run: _Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    labels = run.task.labels
    _check_labels(run.task, rows)
    sums = _label_sums(run, rows)
    best = [labels[of_row.index(max(of_row))] for of_row in sums]  # the first one of equals
    return _items(
        run.task, rows, best, [float(b == row["answer"]) for b, row in zip(best, rows, strict=True)]
    )


def _label_sums(run: _Run, rows: Sequence[Row]) -> list[list[float]]:
    """The log-likelihood of each label of the task behind each row's prompt."""
    labels = run.task.labels
    answers = [run.encoder.answer_ids(label) for label in labels]
    for same in same_tokens(run.task.name, labels, run.encoder.answer_ids):
        raise same  # an audited model may have another tokenizer than the one that was checked
    prompts = [run.encoder.prompt_ids(row) for row in rows]
    pairs: list[Pair] = [(prompt, answer) for prompt in prompts for answer in answers]
    sums = [float(found.sum()) for found in _pairs(run, pairs)]
    return [sums[start : start + len(labels)] for start in range(0, len(sums), len(labels))]


def _by_likelihood(run: _Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = _pairs(run, [run.encoder.parts(row) for row in rows])
    losses = [-float(one.mean()) for one in found]
    items = _items(run.task, rows, [""] * len(rows), [perplexity(loss) for loss in losses])
    for item, one, loss in zip(items, found, losses, strict=True):
        item.update(loss=loss, tokens=len(one))
    return items


def _pairs(run: _Run, pairs: Sequence[Pair]) -> list[torch.Tensor]:
    return score_pairs(
        run.model,
        pairs,
        batch_size=run.batch_size,
        accelerator=run.accelerator,
        on_progress=run.progress,
    )


def _by_generation(run: _Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    read = _written(run, rows)
    answers = [row.get("target") or run.encoder.answer_text(row) for row in rows]
    scores = [
        item_score(run.task.name, run.metric, one.answer, answer, row)
        for one, answer, row in zip(read, answers, rows, strict=True)
    ]
    items = _items(run.task, rows, [one.answer for one in read], scores)
    return [
        {**item, "answer": answer, **one.said}
        for item, answer, one in zip(items, answers, read, strict=True)
    ]


def _written(run: _Run, rows: Sequence[Row]) -> list[Reading]:
    """What greedy decoding writes behind each row's prompt, as the task reads it."""
    prompts = [run.encoder.prompt_ids(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))  # like lengths together
    synced = is_sharded(run.model) and world_size() > 1
    # All processes have the same prompts here, and make the same trial.
    size = min(run.batch_size, len(prompts))
    if size > 1 and not batches_alike(run.model, run.encoder, prompts, synced=synced):
        size = 1
    batches = [order[k : k + size] for k in range(0, len(order), size)]

    def work(batch: list[int]) -> list[Written]:
        return generate_whole(
            run.model,
            run.encoder,
            [prompts[i] for i in batch],
            max_new_tokens=run.task.max_new_tokens,
            synced=synced,
            adapters=None if run.adapters is None else [run.adapters[i] for i in batch],
        )

    def done(count: int) -> None:
        run.progress(count / len(batches))

    texts = over_ranks(batches, work, accelerator=run.accelerator, on_progress=done)
    written = {
        i: text
        for batch, part in zip(batches, texts, strict=True)
        for i, text in zip(batch, part, strict=True)
    }
    prefilled = run.task.answer != "plain" and run.encoder.prefilled(rows[0])
    return [read(written[i], run.task.answer, prefilled) for i in range(len(rows))]


_COMPUTED: dict[str, Callable[[_Run, Sequence[Row]], list[dict[str, Any]]]] = {
    "labels": _by_labels,
    "text": _by_generation,
    "likelihood": _by_likelihood,
}
"""What a metric may need, and what computes it."""


def _rows(task: Task, split: str, max_rows: int | None) -> list[Row]:
    rows = getattr(task, split)
    if not len(rows):
        raise DataError(f"task {task.name!r}: the {split} split has no rows", "give it some")
    return [rows[i] for i in range(len(rows) if max_rows is None else min(max_rows, len(rows)))]


def _check_labels(task: Task, rows: Iterable[Row]) -> None:
    if not task.labels:
        raise DataError(
            f"task {task.name!r}: {task.metric} needs the declared labels",
            "give the task labels, or another metric",
        )
    if strange := sorted({row["answer"] for row in rows} - set(task.labels)):
        raise DataError(
            f"task {task.name!r}: answer {strange[0]!r} is none of its labels",
            f"labels: {', '.join(task.labels)}",
        )


def numbered_copies(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items of several calls as of one: the n-th copy of a row ends in "-n" over all of them."""
    seen: dict[str, int] = {}
    found = []
    for item in items:
        key = str(item["id"]).partition("-")[0]
        seen[key] = copy = seen.get(key, 0) + 1
        found.append({**item, "id": key if copy == 1 else f"{key}-{copy}"})
    return found


def _items(
    task: Task, rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    seen: dict[str, int] = {}
    items, own = [], kind(task.kind)
    for row, prediction, score in zip(rows, predictions, scores, strict=True):
        key = row_key(own.item(row))
        seen[key] = copy = seen.get(key, 0) + 1
        items.append(
            {
                "id": key if copy == 1 else f"{key}-{copy}",
                "score": score,
                "prediction": prediction,
                "answer": row["answer"],
                "prompt": _text(row["prompt"]),
            }
            | ({"group": row["group"]} if row.get("group") else {})
        )
    return items


def _text(turns: Sequence[dict[str, str]]) -> str:
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
