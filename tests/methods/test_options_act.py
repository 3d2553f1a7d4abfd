"""Every option of every method acts in a step, in each of the method's forms, or is refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import FIRST, GENERAL, SECOND
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from perdure.errors import UsageError
from perdure.methods import registry
from perdure.models.adapters import attach_lora
from perdure.models.weights import put, trainable
from perdure.recipe.schema import LoraConfig
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

METHODS = sorted(path.stem for path in Path(registry.__file__).parent.glob("[a-z]*.py"))
METHODS.remove("registry")
METHODS.remove("seq_star")  # its switches act on heads: test_seq_star.py
METHODS.remove("lora_sequence")  # as are its adapters' heads: test_lora_sequence.py
STRANGE = {"prompt": [{"role": "user", "content": "Is this like nothing that is learned?"}]}
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "gere_official": tuple(
        {"loss": loss, "scope": scope, "weight": weight, "mix": mix}
        for loss in ("margin", "label", "kl", "l1", "l2")
        for scope in ("row", "micro")
        for weight, mix in ((100.0, "insert"), ("dynamic", "concat"))
        if (loss, weight) != ("label", "dynamic")
    ),
    "gere": ({}, {"weight": "dynamic"}),
    "gere_distance": ({"norm": "l1"}, {"norm": "l2"}),
    "gere_kl": ({}, {"temperature": 1.0}),
    "ewc": ({"tasks": "sum"}, {"tasks": "online"}, {"tasks": "mean"}),
    "replay": ({"policy": "balanced"}, {"policy": "reservoir"}, {"mix": "half"}),
    "ema": (
        {},
        {"decay": 0.9},
        {"beta": "paper"},
        {"beta": "paper", "outside": "clamp"},
        {"beta": "official"},
        {"beta": "official", "outside": "clamp"},
        {"beta": "line", "every": 2},
    ),
    "lcia": ({}, {"average": "never"}, {"beta": "line", "every": 2, "average": "always"}),
    "derpp": ({"target": "stored"}, {"target": "snapshot"}, {"mix": "half"}),
}
"""Options that decide what others do."""
SMALL: dict[str, dict[str, Any]] = {
    "ewc": {"rows": 3, "lam": 1.0}, "rewind": {"tolerance": 100.0, "grid": [0.5], "rows": 3},
    "replay": {"buffer_size": 6}, "derpp": {"buffer_size": 6}, "freeze": {"layers": 1},
    "lcia": {"score": "max", "threshold": 0.8},
}  # fmt: skip
"""What makes an option act on tasks as small as these."""
OTHER: dict[str, Any] = {
    "label_weight": 0.5, "insert": 3, "samples": 4, "own_share": 0.5, "max_tokens": 7,
    "weight": 3.0, "weight_max": 0.25, "k": 0.5, "layers": [0], "teacher": "previous",
    "noise_floor": 0.05, "temperature": 1.5, "t2": True, "top": 3, "norm": "l2",
    "loss": "kl", "reduction": "tokens", "scope": "row", "stats": "two_pass", "mix": "insert",
    "add_special_tokens": True, "kl_temperature": 1.5, "kl_mask": True, "kl_t2": True, "kl_top": 3,
    "lam": 3.0, "rows": 2, "tasks": "online", "decay": 0.5, "buffer_size": 3,
    "policy": "reservoir", "ratio": 0.5, "tolerance": 0.0, "grid": [0.25], "embeddings": False,
    "start": "current", "alpha": 2.0, "beta": 2.0, "target": "snapshot", "distill_new_rows": True,
    "outside": "clamp", "rho": 9.0, "every": 3, "window": 0.5,
    "balance": "class", "choose": "herding", "fisher_mode": "batch", "official": True,
    "square": True, "l2": 0.1, "experts": 2,
    "estimator": "k2", "reference": "previous", "term": "reward",
    "average": "always", "grouping": "embedding", "encoder": "x", "score": "max", "most": 2,
    "threshold": 0.0, "accept": 0.0, "fallback": "last", "teacher_eval": False,
}  # fmt: skip
"""Another value of each option than its default."""


OTHERS: dict[str, dict[str, Any]] = {
    "ema": {"beta": "official"}, "freeze": {"layers": 0}, "replay": {"mix": "half"},
    "derpp": {"mix": "half"}, "lcia": {"beta": "official", "start": "fresh", "score": "mean"},
}  # fmt: skip
"""Where two methods have an option of one name and different values."""
ELSEWHERE = {
    "own_share", "balance", "choose", "distill_new_rows", "official", "grouping", "encoder",
    "teacher_eval", "term",
}  # fmt: skip
"""The first acts where the model samples its own texts: see
test_own_share_decides_how_many_are_sampled; the others on classes, or they set several of these:
see test_classes_by_hand.py. What compares instructions: see test_lcia.py. An earlier model has
dropout only where its family has some: see test_lwf.py. A KL in the reward: see test_rl.py."""


def refused(name: str, options: dict[str, Any]) -> str:
    """The keys and reasons for which options are refused; "" if they are taken."""
    try:
        registry.load_config(name, options)
    except UsageError as error:
        return error.what
    return ""


def by_hand(context: Any, name: str, options: dict[str, Any], texts: Any) -> str:
    """A hash of all weights, losses and logged figures of two short tasks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4  # so that nothing is nearly uniform
    method = registry.load(name)(registry.load_config(name, options))
    if method.adapters:
        model = attach_lora(model, LoraConfig(r=4))
    noted: list[Any] = []
    first = [p.detach().clone() for p in model.parameters()]
    # What compares with the base model or another one is told the base.
    names = [n for n, _ in model.named_parameters()]
    known = {"base": lambda: dict(zip(names, first, strict=True))}
    known = known if "reference" in method.config.model_dump() else {}

    def score(_: Any, rows: Any) -> float:
        """The higher, the further the weights have moved; looked at with so many rows."""
        noted.append(len(rows))
        pairs = zip(model.parameters(), first, strict=True)
        return sum(float((p.detach() - w).abs().sum()) for p, w in pairs)

    # Of a general text a step is enough; what was learned before counts from the second one on.
    steps, tasks = (1, 2) if "max_tokens" in options else (2, 3)
    steps = 6 if name in ("ema", "lcia") else steps  # the average begins with the first one
    for index, task in enumerate((FIRST, SECOND, FIRST)[:tasks]):
        ctx = context(
            method, model=model, task=task, task_index=index, tasks_seen=(FIRST,)[:index],
            general=texts, batch_size=8, score=score, **known,
        )  # fmt: skip
        session = ctx._session
        method.begin_task(ctx)
        (phase,) = method.phases(ctx)
        noted.append(repr(phase))
        if "stats" in method.config.model_dump() and method.config.loss == "margin":
            # Equal or nearly so on states as small as these, and all that they decide.
            noted.append(method.states.limits(method.config.layers[0], torch.device("cpu")))
        params = trainable(model)
        for step in range(steps):
            model.zero_grad()
            for micro in range(2):
                session.begin_micro_batch(step, 2, total=steps)
                main = ctx.forward([ctx.encode(r) for r in task.train[2 * micro : 2 * micro + 2]])
                rows = method.replay(ctx)
                extra = ctx.forward(rows) if rows else None
                if extra is not None:
                    extra.counts = rows.counts
                terms = method.loss(ctx, main, extra)
                noted.append(sorted({**session.take_watched(), **terms}.items()))
                torch.stack([main.nll.mean(), *terms.values()]).sum().backward()
                session.end_micro_batch(micro == 1)
            with torch.no_grad():
                for key, gradient in method.gradients(ctx, params):
                    params[key].grad = gradient
                for key, parameter in params.items():
                    if parameter.grad is not None and not (
                        phase.freeze and re.search(phase.freeze, key)
                    ):
                        parameter -= 0.05 * parameter.grad
                session.end_step(step + 1)
                method.after_step(ctx)
        put(model, method.end_task(ctx) or {})
        noted += [p.detach() for p in params.values()]
        if (router := method.router(ctx)) is not None:
            asked = [row["prompt"] for row in (*task.test, STRANGE)]
            noted += map(repr, router.choose(asked))
    return hashlib.sha256(repr([_plain(n) for n in noted]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        return hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def test_each_option_has_another_value_here() -> None:
    """So that a new option is looked at too."""
    for name in METHODS:
        for key, field in registry.load(name).Config.model_fields.items():
            assert OTHER[key] != field.default, (name, key)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_changes_a_step_or_is_refused_by_its_key(
    name: str, context: Any, tiny: Any
) -> None:
    (bos,) = tiny[1].convert_tokens_to_ids(["<|endoftext|>"])
    tiny[1]._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    given = GeneralText(replay=[text[: 20 + 9 * i] for i, text in enumerate(GENERAL)])
    seen: dict[str, str] = {}

    def step(options: dict[str, Any]) -> str:
        key = repr(options)
        if key not in seen:
            seen[key] = by_hand(context, name, options, given)
        return seen[key]

    fields = registry.load(name).Config.model_fields
    general = {"max_tokens": 12, "samples": 6} if "max_tokens" in fields else {}
    idle = []
    for form in FORMS.get(name, ({},)):
        base = {**SMALL.get(name, {}), **general, **form}
        assert not refused(name, base)
        for key in fields.keys() - ELSEWHERE:
            other = OTHERS.get(name, OTHER).get(key, OTHER[key])
            changed = {**base, key: other}
            if changed == base:
                continue
            if told := refused(name, changed):
                # By its own key, or by those that its form makes idle.
                assert told.startswith("method."), told
                assert "has no effect with" in told, (form, key, told)
                assert f"method.{key}: " in told or key in form, (form, key, told)
                continue
            if step(changed) == step(base):
                idle.append((form, key))
    assert not idle, "\n".join(map(repr, idle))
