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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perdure.audit.measure import Measure
from perdure.audit.measuring import Pair, Progress, measured
from perdure.audit.measuring import Sizes as Sizes
from perdure.audit.measuring import one_of as one_of
from perdure.audit.plan import MEASURES, Margins, check_alpha, general_texts, plan_measures
from perdure.audit.result import AuditResult, judge
from perdure.audit.runs import changed_bases, today_of
from perdure.consent import by_argument
from perdure.errors import UsageError
from perdure.models.adapter_lists import active
from perdure.models.chat import Encoder
from perdure.models.precision import in_bf16
from perdure.models.served import adapter_named, router_of, serve_only
from perdure.models.told import other_template, template_told
from perdure.recipe.scoring import MAX_DROP, MAX_LOSS_RISE
from perdure.scoring.intervals import shared_alpha
from perdure.scoring.routing_figures import figures
from perdure.streams.task import GeneralText, Task, TaskStream

Model = str | Path | tuple[Any, Any]
"""A path (`perdure.models.load_saved`) or a loaded (model, tokenizer)."""


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
    noise_floor: int = 0,
    accept_changes: bool = False,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> AuditResult:
    """Test whether `tuned` kept what `base` could do. Both models are in memory at once.

    Args:
        base, tuned: a model folder, an adapter folder, a run directory or a task checkpoint in it,
            a GGUF file; or a loaded (model, tokenizer).
        stream: tasks; their test rows are scored. A repeated row counts once; rows of one `group`
            and rows with the same prompt count as one draw (`perdure.scoring.intervals`).
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
        noise_floor: score the base so many times more in other ways (`Ruler`), and refuse a margin
            that is not above what it moves by itself.
        accept_changes: go on although the base of an audited run has changed since it began.
        adapter: of a `tuned` with several, given by path, this one answers all that is asked;
            None: what is served, by its router where it has one.
        trust_remote_code: code that the models, or a metric of your own, bring may run.
    Raises:
        RunError: a run's checkpoint is not as it was written, or its base has changed.
        UsageError: a margin or option out of range, or nothing to measure.
        ModelError: a model cannot be loaded, or the two cannot be compared token by token.
        ConsentError: a model brings code, and nobody said that it may run.
    """
    started = time.perf_counter()
    tasks, texts = tuple(stream or ()), general_texts(stream, general)
    margins = Margins(max_drop, max_loss_rise, max_kl)
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"audit: --precision {precision}: unknown", "one of: fp32, bf16")
    check_alpha(alpha)
    if noise_floor < 0:
        raise UsageError(f"audit: --noise-floor {noise_floor}: must be 0 or more")
    plan = plan_measures(measures, tasks, texts, max_kl)
    names = (name_of(base), name_of(tuned) + (f" ({adapter})" if adapter else ""))
    adapter = adapter_in(tuned, adapter)
    changes = changed_bases((base, tuned), accept_changes)
    ours, theirs = (load_model(model, precision, device) for model in (base, tuned))
    if adapter is not None:
        serve_only(theirs[0], adapter)
    reading = reading_of(tuned, theirs[1], chat_template)
    pair = Pair(*ours, *theirs, reading, sizes or Sizes(), today_of(tuned) or today_of(base))
    share = shared_alpha(alpha, plan.judged)
    identical = same_model(pair.base, pair.tuned)
    found: list[Measure] = []
    flipped: list[dict[str, Any]] = []
    routed: list[Mapping[str, Any]] = []
    progress = on_progress or _silent
    for part, items in measured(pair, plan, texts, seed, progress, margins.of, noise_floor):
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
            groups=items.groups,
            noise_floor=items.noise_floor,
            seed=seed,
        )
        found.append(measure)
        flipped += items.flips
        routed += items.routed
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
        template=reading_told(pair.tuned_encoder, ours[1], theirs[1]) + pair.day_told,
        accepted_changes=changes,
        routing=figures(routed),
    )


def same_weights(base: torch.nn.Module, tuned: torch.nn.Module) -> bool:
    """Whether all parameters and buffers have the same names and values, bit for bit."""
    ours, theirs = base.state_dict(), tuned.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k].to(ours[k].device))
        for k in ours
    )


def same_model(base: torch.nn.Module, tuned: torch.nn.Module) -> bool:
    """Whether both answer alike by their weights: these are equal, the same adapters are active,
    and no router chooses among them."""
    both = (base, tuned)
    as_they_are = all(router_of(m) is None for m in both) and len({active(m) for m in both}) == 1
    return as_they_are and same_weights(base, tuned)


def adapter_in(tuned: Model, name: str | None) -> str | None:
    """The adapter of a model that a name stands for; None: as it is served.

    Raises:
        UsageError: the model has none of this name, or is given loaded.
    """
    if name is None:
        return None
    if isinstance(tuned, tuple):
        raise UsageError("adapter: is of a model given by path", "have it active in yours")
    return adapter_named(tuned, name)


def load_model(model: Model, precision: str, device: torch.device | str | None) -> tuple[Any, Any]:
    if isinstance(model, tuple):
        loaded, tokenizer = model
    else:
        from perdure.models import load_saved

        loaded, tokenizer = load_saved(model)
        if precision == "bf16":
            # All weights alike, an adapter's base too: rounding must not look like a change.
            loaded = in_bf16(loaded)
        if device is None and torch.cuda.is_available():
            device = "cuda"
    return (loaded if device is None else loaded.to(device)), tokenizer


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


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
