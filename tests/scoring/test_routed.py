"""Routing apart from any run: what a router sees, and what comes back in which order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from word_router import Words

from perdure.models import adapter_lists
from perdure.models.adapters import attach_lora
from perdure.models.chat import Encoder
from perdure.recipe.schema import LoraConfig
from perdure.scoring.perplexity import general_loss
from perdure.scoring.routed import Routed, each_by_adapter, prompts_of
from perdure.streams.task import Task


def ask(text: str, **more: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text, **more}]


class Counts(Words):
    """Remembers its own lists."""

    def __init__(self) -> None:
        super().__init__({"a": "one"})
        self.lists: list[Any] = []

    def choose(self, prompts: Any) -> Any:
        self.lists.append(prompts)
        return super().choose(prompts)


@pytest.mark.unit
def test_a_router_sees_each_prompt_once_in_another_order_and_nothing_else() -> None:
    rows = [{"prompt": ask(f"{'a' if i % 2 else 'b'} {i % 6}", secret="s"), "answer": "x"}
            for i in range(9)]  # fmt: skip
    task, router = Task("t", (), (), rows, "exact_match"), Counts()
    routed = Routed(router, prompts_of([task, task], most=8), seed=3)
    (shown,) = router.lists
    texts = [turns[0]["content"] for turns in shown]
    assert sorted(texts) == sorted({r["prompt"][0]["content"] for r in rows[:8]})
    assert texts != [r["prompt"][0]["content"] for r in rows[:6]]
    assert all(set(turn) == {"role", "content"} for turns in shown for turn in turns)
    found = routed.choose([row["prompt"] for row in rows])
    assert [choice.adapter for choice in found] == [None, "one"] * 4 + [None]
    assert len(router.lists) == 1  # looked up
    assert Routed(router, prompts_of([task], most=8), seed=3) is not None
    assert router.lists[1] == shown
    assert routed.of_texts(["a later text"])[0].adapter == "one"
    assert len(router.lists) == 3


@pytest.mark.unit
def test_without_choices_things_are_worked_on_at_once() -> None:
    assert each_by_adapter(None, None, [1, 2], lambda some: [2 * x for x in some]) == [2, 4]


@pytest.mark.train
def test_the_loss_on_general_texts_is_that_of_each_texts_adapter(tiny: Any) -> None:
    model = attach_lora(tiny[0], LoraConfig(r=2)).eval()
    adapter_lists.add(model, "second")
    maker = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=maker) / 5)
    encoder = Encoder(tiny[1])
    texts = ["all the red things", "", "two of them", "so blue a sea", "the red house is old"]
    routed = Routed(Words({"red": "second", "two": "default"}), [])
    found = general_loss(model, encoder, texts, routed=routed)
    names = ["second", "default", "__base__", "second"]
    for item, name, text in zip(found.items, names, [t for t in texts if t], strict=True):
        with adapter_lists.showing(model, [name]):
            alone = general_loss(model, encoder, [text]).items[0]
        assert item["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert item["adapter"] == {"__base__": "base"}.get(name, name)
        assert item["id"] == alone["id"]
    total = sum(item["loss"] * item["tokens"] for item in found.items)
    assert found.loss == pytest.approx(total / found.tokens)
    assert len({round(item["loss"], 3) for item in found.items}) == 4
    assert adapter_lists.active(model) == ("default",)
