"""Has a tuned model lost something? A regression test for weights, on any two local models.

    result = audit("base-folder", "tuned-folder", stream, max_drop=0.02)
    sys.exit(result.exit_code())

Cheapest and least noisy measures first: loss on general text, KL from base to tuned on texts that
the base samples (no data at all), then the tasks' scores. All are paired by item. What a verdict
means, and why all of them together are wrong with probability at most `alpha`:
`perdure.scoring.intervals`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perdure.audit.measure import Measure
from perdure.audit.plan import MEASURES, Margins, Part, Plan, general_texts, plan_measures
from perdure.audit.result import AuditResult, flips, judge
from perdure.consent import by_argument
from perdure.errors import ModelError, UsageError
from perdure.models.chat import Encoder
from perdure.models.generate import sample_texts
from perdure.models.told import other_template, template_told
from perdure.recipe.schema import MAX_DROP, MAX_LOSS_RISE
from perdure.scoring.intervals import Array, shared_alpha
from perdure.scoring.kl import sampled_kl
from perdure.scoring.perplexity import general_loss
from perdure.scoring.score import TaskScore, score_task
from perdure.streams.kinds import metric
from perdure.streams.rows import each_once
from perdure.streams.task import GeneralText, Task, TaskStream

Model = str | Path | tuple[Any, Any]
"""A path (`perdure.models.load_saved`) or a loaded (model, tokenizer)."""
Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total): "general loss: base", 3, 32."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured; more items decide more and take longer."""

    kl_texts: int = 32
    kl_tokens: int = 64
    """The most tokens of a sampled text."""
    general_tokens: int = 128
    """The most tokens of a general text."""
    rows: int | None = None
    """The most test rows of a task; None is all."""
    batch: int = 16


@by_argument
def audit(
    base: Model,
    tuned: Model,
    stream: TaskStream | Sequence[Task] | None = None,
    general: GeneralText | Sequence[str] | None = None,
    *,
    max_drop: float = MAX_DROP,
    max_loss_rise: float = MAX_LOSS_RISE,
    max_kl: float | None = None,
    alpha: float = 0.05,
    measures: Sequence[str] = MEASURES,
    sizes: Sizes | None = None,
    precision: str = "fp32",
    chat_template: str | None = None,
    device: torch.device | str | None = None,
    fail_fast: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> AuditResult:
    """Test whether `tuned` kept what `base` could do. Both models are in memory at once.

    Args:
        base, tuned: a model folder, an adapter folder, a run directory or a task checkpoint in it,
            a GGUF file; or a loaded (model, tokenizer).
        stream: tasks; their test rows are scored, a repeated row counts once.
        general: texts for the loss; None takes `stream.general.held_out`.
        max_drop: allowed drop of a task's mean score, which is 0 to 1 (0.02: two points of a
            hundred).
        max_loss_rise: allowed rise of the loss on general text, and of the log-perplexity of a
            task with that metric, in nats a token (0.05: five percent more perplexity).
        max_kl: allowed mean KL from base to tuned, in nats a token; None only reports it.
        alpha: bound on the probability that any verdict is wrong.
        measures: which of "loss", "kl", "tasks"; those without data are left out by themselves.
        chat_template: as in `Encoder`; None is the one that `tuned` was trained with.
        device: where both models go; None: a GPU if there is one, for models given by path.
        fail_fast: stop at the first measure that is lost.
        seed: of the sampled texts and of the bootstrap.
        trust_remote_code: code that the models, or a metric of your own, bring may run.
    Raises:
        UsageError: a margin or option out of range, or nothing to measure.
        ModelError: a model cannot be loaded, or the two cannot be compared token by token.
        ConsentError: a model brings code, and nobody said that it may run.
    """
    started = time.perf_counter()
    tasks, texts = tuple(stream or ()), general_texts(stream, general)
    margins = Margins(max_drop, max_loss_rise, max_kl)
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"audit: --precision {precision}: unknown", "one of: fp32, bf16")
    if not 0 < alpha < 0.5:
        raise UsageError(f"audit: --alpha {alpha:g}: must be between 0 and 0.5", "0.05 is usual")
    plan = plan_measures(measures, tasks, texts, max_kl)
    names = (name_of(base), name_of(tuned))
    ours, theirs = (load_model(model, precision, device) for model in (base, tuned))
    reading = reading_of(tuned, theirs[1], chat_template)
    pair = _Pair(*ours, *theirs, reading, sizes or Sizes())
    share = shared_alpha(alpha, plan.judged)
    identical = same_weights(pair.base, pair.tuned)
    found: list[Measure] = []
    flipped: list[dict[str, Any]] = []
    for part, items in _measured(pair, plan, texts, seed, on_progress or _silent):
        measure = judge(
            part.name,
            part.kind,
            part.metric,
            items.base,
            items.tuned,
            margin=margins.of(part),
            alpha=share if margins.of(part) is not None else alpha,
            higher_is_better=part.higher_is_better,
            identical=identical,
            note=items.note,
            seed=seed,
        )
        found.append(measure)
        flipped += items.flips
        if fail_fast and measure.verdict == "lost":
            break
    return AuditResult(
        *names,
        alpha=alpha,
        judged=plan.judged,
        seed=seed,
        identical_weights=identical,
        measures=tuple(found),
        flips=tuple(flipped),
        skipped=tuple(part.name for part in plan.parts[len(found) :]),
        seconds=time.perf_counter() - started,
        template=reading_told(pair.tuned_encoder, ours[1], theirs[1]),
    )


def same_weights(base: torch.nn.Module, tuned: torch.nn.Module) -> bool:
    """Whether all parameters and buffers have the same names and values, bit for bit."""
    ours, theirs = base.state_dict(), tuned.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k].to(ours[k].device))
        for k in ours
    )


@dataclass(frozen=True)
class _Items:
    base: Array
    tuned: Array
    flips: tuple[dict[str, Any], ...] = ()
    note: str = ""


class _Pair:
    """Two loaded models with an encoder each, and how much to measure."""

    def __init__(
        self,
        base: Any,
        base_tokenizer: Any,
        tuned: Any,
        tuned_tokenizer: Any,
        reading: Mapping[str, Any],
        sizes: Sizes,
    ) -> None:
        self.base, self.tuned, self.sizes = base, tuned, sizes
        self.base_tokenizer = base_tokenizer
        self.base_encoder = Encoder(one_of(base_tokenizer, tuned_tokenizer), **reading)
        self.tuned_encoder = Encoder(tuned_tokenizer, **reading)

    def check_vocabularies(self) -> None:
        ours = self.base_tokenizer.get_vocab()
        theirs = self.tuned_encoder.tokenizer.get_vocab()
        strange = sorted(token for token, at in ours.items() if theirs.get(token) != at)
        if strange:
            raise ModelError(
                f"the tokenizers differ: {len(strange)} tokens of the base, for example "
                f"{strange[0]!r}, have another id or none in the tuned model",
                "loss and KL a token do not compare then; measure the tasks only",
            )


def _measured(
    pair: _Pair, plan: Plan, texts: Sequence[str], seed: int, progress: Progress
) -> Iterator[tuple[Part, _Items]]:
    """Make the measures of `plan` one by one, so that the caller may stop in between."""
    if any(part.kind != "task" for part in plan.parts):
        pair.check_vocabularies()
    for part in plan.parts:
        if part.kind == "loss" and part.task is None:
            yield part, _loss(pair, texts, progress)
        elif part.kind == "kl":
            yield part, _kl(pair, seed, progress)
        elif part.task is not None:
            yield part, _task(pair, part.task, progress)


def _loss(pair: _Pair, texts: Sequence[str], progress: Progress) -> _Items:
    sides = []
    for side, model, encoder in (
        ("base", pair.base, pair.base_encoder),
        ("tuned", pair.tuned, pair.tuned_encoder),
    ):
        score = general_loss(
            model,
            encoder.tokenizer,
            texts,
            max_tokens=pair.sizes.general_tokens,
            batch_size=pair.sizes.batch,
            on_progress=_told(progress, f"general loss: {side}"),
        )
        sides.append({item["id"]: item for item in score.items})
    ours, theirs = sides
    if {k: v["tokens"] for k, v in ours.items()} != {k: v["tokens"] for k, v in theirs.items()}:
        raise ModelError(
            "the tokenizers cut the general texts differently, so losses a token do not compare",
            "measure the tasks only",
        )
    return _Items(
        np.array([item["loss"] for item in ours.values()]),
        np.array([theirs[key]["loss"] for key in ours]),
    )


def _kl(pair: _Pair, seed: int, progress: Progress) -> _Items:
    samples = sample_texts(
        pair.base,
        pair.base_encoder,
        texts=pair.sizes.kl_texts,
        tokens=pair.sizes.kl_tokens,
        seed=seed,
        batch_size=pair.sizes.batch,
        on_progress=_told(progress, "KL: sampling"),
    )
    values = sampled_kl(
        pair.base,
        pair.tuned,
        samples,
        pad_id=pair.base_encoder.pad_id,
        vocabulary=len(pair.base_encoder.tokenizer),
        batch_size=max(1, pair.sizes.batch // 2),  # two models' logits are kept
        on_progress=_told(progress, "KL: comparing"),
    )
    tokens = sum(len(sample.ids) - sample.given for sample in samples)
    return _Items(np.zeros(len(values)), np.array(values), note=f"{tokens} sampled tokens")


def _task(pair: _Pair, task: Task, progress: Progress) -> _Items:
    task, repeats = _unique(task)

    def score(side: str, model: Any, encoder: Encoder) -> TaskScore:
        return score_task(
            model,
            encoder,
            task,
            batch_size=pair.sizes.batch,
            max_rows=pair.sizes.rows,
            on_progress=_told(progress, f"{task.name}: {side}"),
        )

    ours = score("base", pair.base, pair.base_encoder)
    theirs = score("tuned", pair.tuned, pair.tuned_encoder)
    note = f"{repeats} repeated rows left out" if repeats else ""
    of = metric(task.metric)
    key = "score" if of.scores_items else "loss"
    right = key == "score" and of.higher_is_better
    found = flips(task.name, ours.items, theirs.items) if right else []
    return _Items(
        np.array([item[key] for item in ours.items], dtype=np.float64),
        np.array([item[key] for item in theirs.items], dtype=np.float64),
        tuple(found),
        note,
    )


def _unique(task: Task) -> tuple[Task, int]:
    """The task with each test row once: a row counted twice would look like twice the evidence."""
    rows = each_once(task.test)
    return replace(task, test=rows), len(task.test) - len(rows)


def load_model(model: Model, precision: str, device: torch.device | str | None) -> tuple[Any, Any]:
    if isinstance(model, tuple):
        loaded, tokenizer = model
    else:
        from perdure.models import load_saved

        loaded, tokenizer = load_saved(model)
        if precision == "bf16":
            # All weights alike, an adapter's base too: rounding must not look like a change.
            loaded = loaded.to(torch.bfloat16)
        if device is None and torch.cuda.is_available():
            device = "cuda"
    return (loaded if device is None else loaded.to(device)), tokenizer


def one_of(base_tokenizer: Any, tuned_tokenizer: Any) -> Any:
    """The tokenizer that reads rows for the base: the tuned model's, where they agree on tokens."""
    same = base_tokenizer.get_vocab() == tuned_tokenizer.get_vocab()
    return tuned_tokenizer if same else base_tokenizer


def reading_of(tuned: Model, tokenizer: Any, chat_template: str | None) -> dict[str, Any]:
    """Options of `Encoder` for both models: how the tuned one's rows were read in training.

    Both get one template, whatever each brings along; otherwise a change of the prompt would look
    like one of the model.

    Args:
        tokenizer: of the tuned model.
        chat_template: None and "auto" are that model's own, "none" is plain text, else a path.
    """
    found: dict[str, Any] = {"chat_template": "auto"}
    if not isinstance(tuned, tuple):
        from perdure.models.adapters import reading, saved_base
        from perdure.models.load import resolve_saved

        folder = resolve_saved(Path(tuned).expanduser())
        config = saved_base(folder) if folder is not None else None
        found = reading(config) if config is not None else found
    found |= {"chat_template": chat_template} if chat_template else {}
    if found["chat_template"] == "auto":
        found["chat_template"] = tokenizer.chat_template or "none"
    return found


def reading_told(encoder: Encoder, base_tokenizer: Any, tuned_tokenizer: Any) -> str:
    """With which template both models are read, in words."""
    told = template_told(encoder, tuned_tokenizer.chat_template)
    return told + other_template(encoder, base_tokenizer.chat_template)


def name_of(model: Model) -> str:
    if isinstance(model, tuple):
        return str(getattr(model[0].config, "name_or_path", "") or type(model[0]).__name__)
    return str(model)


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
