"""Heads that grow, pooling on either side's padding, and the loss over classes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from perdure.methods.seq_star import frozen
from perdure.models.classifier import Classifier, class_loss, pooled, positions, views
from perdure.models.heads import Heads
from perdure.models.rivals import rivals_of

pytestmark = pytest.mark.unit


def head_of(*rows: tuple[float, ...], form: str = "cosine", **options: Any) -> Heads:
    heads = Heads(len(rows[0]), form, **options)
    heads.grow(len(rows))
    with torch.no_grad():
        heads.parts[0].weight.copy_(torch.tensor(rows))
    return heads


def test_a_cosine_head_by_hand() -> None:
    """Specification, example 9."""
    features = torch.tensor([[3.0, 4.0]])
    heads = head_of((1, 0), (1, 1), (0, -2))
    logits = heads(features)
    torch.testing.assert_close(logits, torch.tensor([[0.6, 0.989949, -0.8]]))
    found = class_loss(logits, torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor(0.611969))
    scaled = head_of((1, 0), (1, 1), (0, -2), scale=16.0)
    torch.testing.assert_close(scaled(features), 16 * logits)
    learned = head_of((1, 0), (1, 1), (0, -2), scale=16.0, learn_scale=True)
    assert "parts.0.scale" in dict(learned.named_parameters())
    torch.testing.assert_close(learned(features), 16 * logits)


def test_a_learned_scale_is_each_heads_own() -> None:
    """One step of a new head's loss moves its scale and leaves the old head's logits to the bit;
    a head from the reserve goes on with the reserve's scale."""
    heads = Heads(2, "cosine", scale=2.0, learn_scale=True, preallocate=3)
    reserve: Any = heads.reserve
    with torch.no_grad():
        reserve.scale.fill_(3.0)
    heads.grow(1)
    heads.grow(1)
    assert heads.reserved == 1
    scales = {name: p.item() for name, p in heads.named_parameters() if name.endswith("scale")}
    assert scales == {"parts.0.scale": 3.0, "parts.1.scale": 3.0, "reserve.scale": 3.0}
    features = torch.tensor([[3.0, 4.0], [1.0, -1.0]])
    before = heads(features)[:, 0].detach()
    for name, p in heads.named_parameters():
        p.requires_grad_(not re.search(frozen(1, False, True), f"heads.{name}"))
    step = torch.optim.SGD([p for p in heads.parameters() if p.requires_grad], lr=1.0)
    class_loss(heads(features), torch.tensor([1, 1])).backward()
    step.step()
    assert torch.equal(heads(features)[:, 0], before)
    assert float(heads.parts[1].scale) != 3.0


@pytest.mark.parametrize("preallocate", [0, 5])
@pytest.mark.parametrize(
    ("form", "options"),
    [("linear", {}), ("cosine", {"scale": 16.0}), ("cosine", {"scale": 2.0, "learn_scale": True})],
)
def test_all_heads_at_once_give_what_each_gives(
    form: str, options: dict[str, Any], preallocate: int
) -> None:
    heads = Heads(6, form, preallocate=preallocate, **options)
    features = torch.randn(4, 6)
    if not preallocate:
        assert heads(features).shape == (4, 0)
    heads.grow(2, 0)
    heads.grow(1, 2)  # task 1 has no class of its own
    heads.grow(1, 3)
    if options.get("learn_scale"):
        with torch.no_grad():
            for k, part in enumerate(heads.parts):
                if len(part.weight):  # type: ignore[arg-type]
                    part.scale.fill_(k + 0.5)  # type: ignore[operator,union-attr]
    every = [*heads.parts[:1], *heads.parts[2:], *([heads.reserve] if preallocate else [])]
    wanted = torch.cat([cast(Any, part)(features) for part in every], -1)
    assert wanted.shape == (4, 4 + max(0, preallocate - 4))
    found = heads(features)
    torch.testing.assert_close(found, wanted)
    draw = torch.randn_like(wanted)
    for given in zip(*(
        torch.autograd.grad((logits * draw).sum(), [*heads.parameters()], retain_graph=True)
        for logits in (found, wanted)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(*given)


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_heads_compute_in_fp32_under_autocast(form: str) -> None:
    """In bf16 so many classes tie exactly that the oldest of them wins."""
    heads = Heads(16, form)
    heads.grow(150)
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    wanted = heads(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = heads(features)
        half = heads(features.bfloat16())
    assert found.dtype == half.dtype == torch.float32
    assert torch.equal(found, wanted)
    torch.testing.assert_close(half, heads(features.bfloat16().float()))


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_means_are_placed_past_a_task_without_a_class_of_its_own(form: str) -> None:
    heads = Heads(2, form)
    for classes, task in ((2, 0), (1, 2)):  # task 1's classes are all old
        heads.grow(classes, task)
    before = cast(Any, heads.parts[0]).weight[1].detach().clone()
    means = torch.tensor([[1.0, 2.0], [9.0, 9.0], [5.0, 6.0]])
    heads.place(means, torch.tensor([True, False, True]))
    first, last = cast(Any, heads.parts[0]), cast(Any, heads.parts[2])
    assert first.weight[0].tolist() == [1.0, 2.0]
    assert torch.equal(first.weight[1], before)
    assert last.weight.tolist() == [[5.0, 6.0]]
    if form == "linear":
        assert first.bias[0] == last.bias[0] == 0


def test_classes_within_a_task_by_hand() -> None:
    """Specification, example 13: a slice of the logits, not all of them."""
    logits, right = torch.tensor([[0.2, 1.1, 2.0, 0.4]]), torch.tensor([1])
    owners = [0, 0, 1, 1]
    torch.testing.assert_close(class_loss(logits, right), torch.tensor(1.473104))
    found = class_loss(logits, right, rivals_of(owners, {}))
    torch.testing.assert_close(found, torch.tensor(0.341154))
    every, own = views(logits, owners, [0, 1])
    assert (every.item(), own.item()) == (2, 1)


def test_rows_of_two_tasks_each_count_once() -> None:
    """Specification, example 10.14: the released code adds the two tasks' means, 0.723299."""
    apart = float("-inf")  # whatever stands in the other task's columns
    logits = torch.tensor([[1.0, 0.0, 5.0, 5.0], [7.0, 7.0, 0.0, 2.0], [apart, 7.0, 1.0, 1.0]])
    found = class_loss(logits, torch.tensor([0, 3, 2]), rivals_of([0, 0, 1, 1], {}))
    torch.testing.assert_close(found, torch.tensor((0.313262 + 2 * 0.410038) / 3))
    torch.testing.assert_close(found, torch.tensor(0.377779))


def test_a_class_that_comes_again_competes_in_its_newest_task() -> None:
    """Task 0 has classes 0 and 1, task 1 class 2 and class 0 again; column 3 is to come."""
    found = rivals_of([0, 0, 1], {1: (0,)}, to_come=1)
    assert found.int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    logits = torch.tensor([[0.2, 1.1, 2.0, 0.4]])
    for label, others in ((0, [0, 2]), (1, [0, 1]), (2, [0, 2])):
        loss = class_loss(logits, torch.tensor([label]), found)
        chosen = torch.tensor([others.index(label)])
        torch.testing.assert_close(loss, F.cross_entropy(logits[:, others], chosen))


def test_the_loss_counts_the_whole_steps_labels() -> None:
    logits, right = torch.randn(4, 3), torch.tensor([0, 2, -100, 1])
    whole = F.cross_entropy(logits[[0, 1, 3]], right[[0, 1, 3]])
    torch.testing.assert_close(class_loss(logits, right), whole)
    parts = [class_loss(logits[k : k + 2], right[k : k + 2], items=3) for k in (0, 2)]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_preallocated_classes_are_negatives_by_hand() -> None:
    """Specification, example 15: the gradient of a head whose task is still to come."""
    heads = Heads(2, "linear", preallocate=4)
    heads.grow(2)
    assert (heads.sizes, heads.reserved) == ([2], 2)
    reserve: Any = heads.reserve
    with torch.no_grad():
        heads.parts[0].weight.copy_(torch.tensor([[0.1, 0.2], [0.3, -0.1]]))
        reserve.weight.copy_(torch.tensor([[0.2, 0.1], [-0.2, 0.4]]))
        heads.parts[0].bias.zero_()
        reserve.bias.zero_()
    x = torch.tensor([[1.0, 2.0]])
    logits = heads(x)
    torch.testing.assert_close(logits, torch.tensor([[0.5, 0.1, 0.4, 0.6]]))
    torch.testing.assert_close(class_loss(logits[:, :2], torch.tensor([0])), torch.tensor(0.513015))
    loss = class_loss(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(1.303002), atol=1e-6, rtol=0)
    loss.backward()
    torch.testing.assert_close(
        reserve.weight.grad, torch.tensor([[0.245858, 0.491716], [0.300291, 0.600583]])
    )
    # Among the learned classes the answer is 0, among all columns it would be 3.
    assert views(logits, [0, 0], [0, 1])[0].item() == 0
    assert logits.argmax().item() == 3
    before = reserve.weight.detach().clone()
    heads.grow(1)  # the next task takes the reserve's first row as it is
    assert heads.sizes == [2, 1]
    assert torch.equal(heads.parts[1].weight, before[:1])
    assert torch.equal(heads.reserve.weight, before[1:])  # type: ignore[union-attr,arg-type]
    heads.grow(3)
    assert (heads.sizes, heads.reserved) == ([2, 1, 3], 0)


def test_pooling_by_hand_on_both_sides() -> None:
    states = torch.arange(12.0).reshape(1, 4, 3)
    right, left = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])
    for mask, first, last in ((right, 0, 2), (left, 1, 3)):
        assert torch.equal(pooled(states, mask, "cls")[0], states[0, first])
        assert torch.equal(pooled(states, mask, "last")[0], states[0, last])
        assert torch.equal(pooled(states, mask, "mean")[0], states[0, first : last + 1].mean(0))
    starts = torch.tensor([[1, 3]])
    both = pooled(states, torch.tensor([[1, 1, 1, 1]]), "entity_starts", starts)
    assert torch.equal(both[0], torch.cat([states[0, 1], states[0, 3]]))
    moved = pooled(states, left, "entity_starts", starts - 1)
    assert torch.equal(moved, both)
    assert positions(left).tolist() == [[0, 0, 1, 2]]
    assert positions(right).tolist() == [[0, 1, 2, 2]]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "entity_starts"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "gpt_neox", "llama"])
def test_a_padded_row_has_the_feature_that_it_has_alone(name: str, pooling: str) -> None:
    """GPT-2 numbers positions; left padding would shift them (specification, section 1)."""
    marked = pooling == "entity_starts"
    model = Classifier(body_of(name), pooling, Heads(64 if marked else 32)).eval()
    alone = torch.tensor([[5, 6, 7, 8]])
    starts = [torch.tensor(s) if marked else None for s in ([[1, 3]], [[1, 3], [0, 5]])]
    feature = model.features(alone, torch.ones_like(alone), starts[0])
    pad, mask = [1 if name == "roberta" else 0] * 3, [0] * 3
    for ids, real in (
        ([*pad, 5, 6, 7, 8], [*mask, 1, 1, 1, 1]),
        ([5, 6, 7, 8, *pad], [1, 1, 1, 1, *mask]),
    ):
        beside = torch.tensor([ids, [9, 10, 11, 12, 13, 14, 15]])
        found = model.features(beside, torch.tensor([real, [1] * 7]), starts[1])[:1]
        torch.testing.assert_close(found, feature, atol=1e-5, rtol=0)


def body_of(name: str) -> Any:
    from transformers import AutoConfig, AutoModel

    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    if name == "gpt2":
        sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    if name == "roberta":
        sizes["pad_token_id"] = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model(name, **sizes)).eval()


def test_a_frozen_body_has_no_dropout() -> None:
    model = Classifier(body_of("bert"), "cls", Heads(32))
    assert model.train().body.training
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    assert not model.train().body.training
    assert model.heads.training
    next(model.body.parameters()).requires_grad_(True)
    assert model.train().body.training


def test_linear_heads_stand_side_by_side() -> None:
    heads = Heads(2, "linear")
    heads.grow(2)
    heads.grow(1)
    x = torch.randn(3, 2)
    first, second = heads.parts
    assert isinstance(first, nn.Linear)
    torch.testing.assert_close(heads(x), torch.cat([first(x), second(x)], 1))


@pytest.mark.train
def test_a_body_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from class_runs import save_encoder
    from safetensors.torch import load_file, save_file

    from perdure.errors import ModelError
    from perdure.models.load import load_body
    from perdure.recipe.schema import ModelConfig

    folder = save_encoder(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 of the model's weights, such as {name}"):
        load_body(ModelConfig(path=str(folder)))


@pytest.mark.train
def test_a_body_is_loaded_without_a_word(tmp_path: Path) -> None:
    """transformers lists weights of other heads, or all layers as "not sharded": nobody asked."""
    from class_runs import save_encoder

    from perdure.models.load import load_body
    from perdure.recipe.schema import ModelConfig

    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        load_body(ModelConfig(path=str(save_encoder(tmp_path / "bert"))))
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in said if record.levelno >= logging.WARNING] == []
