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
from perdure.scoring.routed import Routed, each_by_adapter, prompts_of, score_routed
from perdure.scoring.score import score_task
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


class Learned(Words):
    """Says too in which adapter a task was learned."""

    def learned_in(self, task: str) -> str | None:
        return {"t": "second"}.get(task)


@pytest.mark.train
@pytest.mark.parametrize("metric", ["chrf", "perplexity", "label_likelihood"])
def test_rows_that_another_adapter_answered_are_scored_by_the_right_one_too(
    tiny: Any, metric: str
) -> None:
    model = attach_lora(tiny[0], LoraConfig(r=2)).eval()
    adapter_lists.add(model, "second")
    maker = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=maker))
    encoder, asked = Encoder(tiny[1]), ["two of it", "a red house", "nothing", "two", "the red sea"]
    rows = [{"prompt": ask(text), "answer": "xy"[i % 2]} for i, text in enumerate(asked)]
    rows[0]["prompt"] = [{"role": "system", "content": "say two"}, *rows[0]["prompt"]]
    task = Task("t", (), (), rows, metric, labels=("x", "y"), max_new_tokens=3)
    routed = Routed(Learned({"red": "default", "two": "second"}), prompts_of([task]))
    assert (routed.right("t"), routed.right("u")) == ("second", None)
    assert Routed(Words({})).right("t") is None
    choices, seen = routed.choose(list(prompts_of([task]))), []

    def alone(part: Task, progress: Any) -> Any:
        return score_task(model, encoder, part, batch_size=2, on_progress=progress)

    def mixed(part: Task, adapters: Any, progress: Any) -> Any:
        if metric != "chrf":
            return None
        return score_task(model, encoder, part, adapters=adapters, on_progress=progress)

    told = lambda done, total: seen.append((done, total))  # noqa: E731
    found = score_routed(model, task, choices, alone, mixed, told, "second", measure_right=True)
    with adapter_lists.showing(model, ["second"]):
        wanted = score_task(model, encoder, task, batch_size=2)
    assert found is not None
    for item, want, choice in zip(found.items, wanted.items, choices, strict=True):
        another = choice.adapter != "second"
        assert ("right_score" in item) is another
        assert item["right"] == "second"
        for key in {"score", "loss"} & set(want):
            assert item.get(f"right_{key}", item[key]) == pytest.approx(want[key], rel=1e-5)
    assert [item.get("instruction") for item in found.items] == ["say two", *[None] * 4]
    assert seen[-1] == (8, 8)  # five rows, and three of them again
    assert {total for _, total in seen} == {8}
    once = score_routed(model, task, choices, alone, mixed, None, "second")
    assert once is not None
    assert not any("right_score" in item for item in once.items)
    assert once.score == pytest.approx(found.score)
