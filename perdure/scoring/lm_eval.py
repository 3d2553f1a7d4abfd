"""General ability by tasks of lm-eval: prompts and metrics are lm-eval's, the model is ours.

The model that answers is the one in memory: it is not loaded again, and is left as it was found.
Under several processes each answers its share of the requests, and all get the same score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.errors import UsageError
from perdure.streams.lm_eval_tasks import SEED, quiet, seeded

if TYPE_CHECKING:
    from torch import nn

    from perdure.scoring.routed import Routed

METRICS = ("acc_norm", "acc", "exact_match")
"""lm-eval's own names, not those of `perdure.streams.kinds`."""
"""The metric that is recorded is the first of these that a task has; see `pick`."""
BLOCK = 8
"""Batches that a process answers at once: lm-eval computes a context that requests share once."""


@dataclass(frozen=True)
class HarnessScore:
    """One task's or group's score. `filter` is lm-eval's name for how an answer was extracted."""

    metric: str
    filter: str
    higher_is_better: bool
    score: float
    rows: int
    items: tuple[dict[str, Any], ...] = ()
    """`{"id", "score", "prompt", "answer", "prediction", "doc_hash", "group"?}` of each document,
    where the score is the mean of theirs: of others no interval is known."""


def score(
    model: nn.Module,
    tokenizer: Any,
    name: str,
    loaded: Any,
    *,
    limit: int | None = None,
    group: str | None = None,
    batch_size: int = 16,
    precision: str = "fp32",
    accelerator: Any = None,
    on_progress: Callable[[int, int], None] | None = None,
    routed: Routed | None = None,
) -> HarnessScore:
    """Score one task of `lm_eval_tasks.load`; prompts get no chat template, lm-eval's default.

    Args:
        limit: the first so many rows of the task, or of each task in a group.
        group: a field of lm-eval's `doc`, whose value items share that belong together.
        precision: "bf16" computes under autocast.
        accelerator: under several processes each answers its share, and all return the same.
        on_progress: called as on_progress(done, total), in requests (a choice each).
        routed: chooses the adapter for each request by its context, as a user would write it.
    """
    from lm_eval.evaluator import evaluate

    from perdure.models.weights import evaluating

    with evaluating(model), seeded(), quiet():
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEED)
        answering = _answering(
            model, tokenizer, batch_size, precision, accelerator, on_progress, routed
        )
        found = evaluate(
            lm=answering, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True
        )
    results = found["results"][name]
    better = found["higher_is_better"].get(name, {})
    metric, how = pick(results, better)
    value = float(results[f"{metric},{how}"])
    return HarnessScore(
        metric=metric,
        filter=how,
        higher_is_better=metric in METRICS or bool(better.get(metric)),
        score=value,
        rows=int(results.get("sample_len", 0)),
        items=tuple(_items(found["samples"], metric, how, group, value)),
    )


def _items(
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    metric: str,
    how: str,
    group: str | None,
    score: float,
) -> list[dict[str, Any]]:
    """Items of a task, or of all tasks in a group; none where the score is not their mean."""
    found: list[dict[str, Any]] = []
    for task, lines in samples.items():
        for line in lines:
            if line.get("filter", how) != how:
                continue
            value, doc = line.get(metric), line.get("doc")
            if not isinstance(value, int | float | np.number):
                return []
            said = line["filtered_resps"]
            said = said[0] if isinstance(said, list) and said else said
            item: dict[str, Any] = {
                "id": f"{task}:{line['doc_id']}" if len(samples) > 1 else str(line["doc_id"]),
                "score": float(value),
                "prompt": str(line["arguments"][0][0]),
                "answer": str(line["target"]),
                "prediction": said if isinstance(said, str) else "",
                "doc_hash": line["doc_hash"],
            }
            if group is not None and isinstance(doc, Mapping) and doc.get(group) not in (None, ""):
                item["group"] = f"{task}:{doc[group]}" if len(samples) > 1 else str(doc[group])
            found.append(item)
    mean = math.fsum(item["score"] for item in found) / max(1, len(found))
    return found if math.isclose(mean, score, rel_tol=1e-9, abs_tol=1e-9) else []


def pick(results: Mapping[str, Any], better: Mapping[str, bool | None]) -> tuple[str, str]:
    """The (metric, filter) to record.

    The first of `METRICS` that is there, else the first metric of which more is better, else the
    first; where answers were extracted in several ways, the first way.

    Args:
        results: lm-eval's results of one task, `{"acc,none": 0.5, "acc_stderr,none": ...}`.
        better: by metric, whether a higher value is better.

    Raises:
        UsageError: there is no number among them.
    """
    keys = [
        (metric, how)
        for metric, comma, how in (key.partition(",") for key in results)
        if comma
        and not metric.endswith("_stderr")
        and isinstance(results[f"{metric},{how}"], int | float)
    ]
    wanted = [*METRICS, *(metric for metric, _ in keys if better.get(metric))]
    for name in wanted:
        for metric, how in keys:
            if metric == name:
                return metric, how
    if not keys:
        raise UsageError("general.tasks: lm-eval gave no number as a score", "leave the task out")
    return keys[0]


def _answering(
    model: nn.Module,
    tokenizer: Any,
    batch_size: int,
    precision: str,
    accelerator: Any,
    on_progress: Callable[[int, int], None] | None,
    routed: Routed | None,
) -> Any:
    """lm-eval's wrapper around the model, which shares requests over the processes."""
    from lm_eval.models.huggingface import HFLM

    from perdure.models.anatomy import unwrapped
    from perdure.models.chat import Encoder
    from perdure.models.generate import batches_alike, without_router_losses
    from perdure.models.weights import is_sharded
    from perdure.processes import over_ranks, world_size
    from perdure.scoring.routed import each_by_adapter

    sharded = is_sharded(model)
    size = batch_size * (1 if sharded else BLOCK)

    def share(
        answer: Callable[..., list[Any]], requests: list[Any], even: bool, size: int = size
    ) -> list[Any]:
        """Answers in the order of `requests`; `even`: every block takes one forward pass."""
        texts = [str(request.args[0]) for request in requests]
        choices = None if routed is None else routed.of_texts(texts)
        return each_by_adapter(
            model, choices, requests, lambda some: alone(answer, some, even, size)
        )

    def alone(
        answer: Callable[..., list[Any]], requests: Sequence[Any], even: bool, size: int
    ) -> list[Any]:
        def length(i: int) -> tuple[int, str]:
            return -len(requests[i].args[0]), requests[i].args[0]

        def told(done: int) -> None:
            if on_progress is not None:
                on_progress(min(done * size, len(requests)), len(requests))

        order = sorted(range(len(requests)), key=length)  # alike lengths, equal contexts together
        blocks = [order[i : i + size] for i in range(0, len(order), size)]
        parts = over_ranks(
            blocks,
            lambda block: answer([requests[i] for i in block]),
            # Processes that hold one sharded model must make the same passes at the same time.
            accelerator=accelerator if even or not sharded else None,
            on_progress=told,
        )
        pairs = zip(order, (one for part in parts for one in part), strict=True)
        answers = dict(pairs)
        return [answers[i] for i in range(len(requests))]

    class Shared(HFLM):
        """Its own bars would tell of one block at a time."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return share(partial(super().loglikelihood, disable_tqdm=True), requests, even=True)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = True
        ) -> list[Any]:
            answer = partial(super().loglikelihood_rolling, disable_tqdm=True)
            return share(answer, requests, even=False)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            answer = partial(super().generate_until, disable_tqdm=True)
            encoder = Encoder(tokenizer)
            prompts = [encoder.encode_text(str(r.args[0]))["input_ids"] for r in requests[:2]]
            prompts = [ids for ids in prompts if ids]
            synced = sharded and world_size() > 1
            alike = len(prompts) < 2 or batches_alike(model, encoder, prompts, synced=synced)
            with without_router_losses(unwrapped(model)):
                return share(answer, requests, even=False, size=size if alike else 1)

        def _loglikelihood_tokens(self, *args: Any, **options: Any) -> list[Any]:
            # The rolling kind shows bars here whatever it was told.
            found: list[Any] = super()._loglikelihood_tokens(
                *args, **{**options, "disable_tqdm": True}
            )
            return found

    # lm-eval turns an outer autocast off, so it is told to compute in bf16 itself.
    mixed = "bfloat16" if precision == "bf16" else None
    return Shared(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=mixed
    )
