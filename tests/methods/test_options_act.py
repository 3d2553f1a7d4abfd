"""Every option of every method acts in a step, in each of the method's forms, or is refused."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_tasks import FIRST, GENERAL, SECOND
from transformers import LlamaConfig, LlamaForCausalLM

from perdure.errors import UsageError
from perdure.methods import registry
from perdure.models.weights import put, trainable
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

METHODS = sorted(path.stem for path in Path(registry.__file__).parent.glob("[a-z]*.py"))
METHODS.remove("registry")
FORMS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gere_official": {
        "loss": ("margin", "label", "kl", "l1", "l2"), "weight": (100.0, "dynamic"),
        "scope": ("row", "micro"), "mix": ("insert", "concat"),
    },
    "gere": {"weight": (100.0, "dynamic")},
    "gere_distance": {"norm": ("l1", "l2")},
    "gere_kl": {"temperature": (2.0, 1.0)},
    "ewc": {"tasks": ("sum", "online")},
    "replay": {"policy": ("balanced", "reservoir")},
}  # fmt: skip
"""Options that decide what others do."""
SMALL: dict[str, dict[str, Any]] = {
    "ewc": {"rows": 3}, "rewind": {"tolerance": 100.0, "grid": [0.5], "rows": 3},
    "replay": {"buffer_size": 6}, "freeze": {"layers": 1},
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
    "start": "current", "alpha": 2.0,
}  # fmt: skip
"""Another value of each option than its default."""


def forms(name: str) -> Iterator[dict[str, Any]]:
    choices = FORMS.get(name, {})
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def refused(name: str, options: dict[str, Any]) -> str:
    """The keys and reasons for which options are refused; "" if they are taken."""
    try:
        registry.load_config(name, options)
    except UsageError as error:
        return error.what
    return ""


def two_tasks_by_hand(context: Any, name: str, options: dict[str, Any], texts: Any) -> str:
    """A hash of all gradients, weights and logged figures of two tasks, a step each."""
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
    noted: list[Any] = []
    for index, task in enumerate((FIRST, SECOND)):
        ctx = context(
            method, model=model, task=task, task_index=index, tasks_seen=(FIRST,)[:index],
            general=texts, batch_size=4, score=lambda *_: 0.5, stream_tokens=lambda: 200,
        )  # fmt: skip
        session = ctx._session
        encoder = session.encoder
        host = SimpleNamespace(wrapped=encoder.tokenizer)
        del host
        method.begin_task(ctx)
        phases = method.phases(ctx)
        noted.append(repr(phases))
        params = trainable(model)
        frozen = [n for n in params if phases[0].freeze and re.search(phases[0].freeze, n)]
        model.zero_grad()
        for micro in range(2):
            session.begin_micro_batch(0, 2)
            main = ctx.forward([ctx.encode(r) for r in task.train[2 * micro : 2 * micro + 2]])
            rows = method.replay(ctx)
            extra = ctx.forward(rows) if rows else None
            if extra is not None:
                extra.counts = rows.counts
            terms = method.loss(ctx, main, extra)
            noted.append(sorted(session.take_watched().items()))
            torch.stack([main.nll.mean(), *terms.values()]).sum().backward()
            session.end_micro_batch(micro == 1)
        with torch.no_grad():
            for key, gradient in method.gradients(ctx, params):
                params[key].grad = gradient
            for key, parameter in params.items():
                if parameter.grad is not None and key not in frozen:
                    parameter -= 0.05 * parameter.grad
            session.end_step(1)
            method.after_step(ctx)
        put(model, method.end_task(ctx) or {})
        noted += [p.detach() for p in params.values()]
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
    name: str, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.models.chat import Encoder

    given = GeneralText(replay=[text[: 20 + 9 * i] for i, text in enumerate(GENERAL)])
    seen: dict[str, str] = {}

    def step(options: dict[str, Any], texts: GeneralText) -> str:
        key = repr((options, bool(texts.replay)))
        if key not in seen:
            seen[key] = two_tasks_by_hand(context, name, options, texts)
        return seen[key]

    fields = registry.load(name).Config.model_fields
    general = {"max_tokens": 12, "samples": 6} if "max_tokens" in fields else {}
    for form in forms(name):
        base = {**SMALL.get(name, {}), **general, **form}
        if refused(name, base):
            continue
        for key in fields:
            changed = {**base, key: OTHER[key]}
            if key == "k" and form.get("loss", "margin") == "margin":
                changed["k"] = 0.5
            if told := refused(name, changed):
                # It is refused by name: by its own, or by what is told to have no effect beside it.
                assert "has no effect with" in told, (form, key)
                assert f"method.{key}: " in told or key in FORMS.get(name, {}), (form, key, told)
                continue
            texts = GeneralText() if key == "own_share" else given
            if key == "add_special_tokens":  # the tiny tokenizer has none of its own
                with monkeypatch.context() as patch:
                    patch.setattr(Encoder, "encode_text", _cut(Encoder.encode_text))
                    assert step(changed, texts) != seen.get(repr((base, True))), (form, key)
                continue
            assert step(changed, texts) != step(base, texts), (form, key)


def _cut(encode: Any) -> Any:
    return encode
