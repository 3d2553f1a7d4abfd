"""Several adapters on one base: added, switched, kept apart from what is trained, and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.errors import ModelError, UsageError
from perdure.models import adapter_lists as lists
from perdure.models import load_saved
from perdure.models.adapters import attach_lora, save_model
from perdure.models.restore import load_weights
from perdure.models.weights import put
from perdure.recipe.schema import LoraConfig, ModelConfig

pytestmark = pytest.mark.train
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def two(tiny: Any) -> Any:
    """A model with the adapters `default` and `second`, whose second matrices are not 0."""
    model = attach_lora(tiny[0], LoraConfig(r=2))
    lists.add(model, "second")
    maker = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=maker) / 5)
    return model.eval()


def flags(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_what_is_active_and_what_is_trained_are_two_lists(two: Any) -> None:
    assert lists.names(two) == ("default", "second")
    assert (lists.active(two), lists.trained(two)) == (("default",), ("default",))
    lists.use(two, ["default", "second"], ["second"])
    assert (lists.active(two), lists.trained(two)) == (("default", "second"), ("second",))
    assert {".second." in name for name in flags(two)} == {True}
    with torch.no_grad():
        layer = two.base_model.model.model.layers[0].self_attn.q_proj
        x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1))
        by_hand = layer.base_layer(x)
        for name in ("default", "second"):
            a, b = lists.matrices(two, name)["base_model.model.model.layers.0.self_attn.q_proj"]
            by_hand = by_hand + layer.scaling[name] * (x @ a.T @ b.T)
        torch.testing.assert_close(layer(x), by_hand)


def test_shown_adapters_leave_lists_and_frozen_parameters_as_they_were(two: Any) -> None:
    lists.use(two, ["default", "second"], ["second"])
    for name, parameter in two.named_parameters():
        if ".lora_A." in name:  # as a phase freezes them
            parameter.requires_grad_(False)
    before, both = flags(two), answers(two)
    seen = []
    for shown in (["default"], ["second"], ["__base__"], [], ["second", "default"]):
        with lists.showing(two, shown):
            seen.append(answers(two))
            if shown[:1] not in ([], ["__base__"]):
                assert lists.active(two) == tuple(shown)
        assert flags(two) == before
        assert lists.active(two) == ("default", "second")
    assert torch.equal(answers(two), both)
    with two.disable_adapter():
        base = answers(two)
    assert torch.equal(seen[2], base)
    assert torch.equal(seen[3], base)
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[4], both)


def test_a_copy_is_what_it_was_made_of_and_goes_its_own_way(two: Any) -> None:
    lists.add(two, "third", like="second")
    for name, parameter in lists.parameters_of(two, "third").items():
        assert torch.equal(parameter, two.get_parameter(name.replace("third", "second")))
        parameter.data.add_(1)
    assert (lists.active(two), lists.trained(two)) == (("default",), ("default",))
    a, b = next(iter(lists.matrices(two, "third").values()))
    old, _ = next(iter(lists.matrices(two, "second").values()))
    assert not torch.equal(a, old)
    assert (a.shape[0], b.shape[1]) == (2, 2)


def test_an_adapter_that_goes_on_under_a_new_name(
    two: Any, tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """`second@1` is continued as `second@2`, and the old one is no longer there."""
    lists.add(two, "second@2", like="second")
    lists.use(two, ["second@2"], ["second@2"])
    before, trained = answers(two), flags(two)
    lists.remove(two, "second")
    assert (lists.names(two), lists.active(two)) == (("default", "second@2"), ("second@2",))
    assert flags(two) == trained
    assert not any(".second." in name for name, _ in two.named_parameters())
    assert torch.equal(answers(two), before)
    folder = saved(two, tiny[1], tiny_model_dir, tmp_path / "model")
    assert sorted(lists.folders(folder)) == ["default", "second@2"]
    assert torch.equal(answers(load_saved(folder)[0]), before)
    for name, why in (("default", "in the folder itself"), ("second@2", "it is active")):
        with pytest.raises(UsageError, match=why):
            lists.remove(two, name)


@pytest.mark.parametrize("name", ["default", "q_proj", "a.b", "", "../up", "lora", "base", "0"])
def test_names_that_an_adapter_cannot_have(two: Any, name: str) -> None:
    with pytest.raises(UsageError, match="adapter"):
        lists.add(two, name)
    lists.check_new(two, "sentiment@3")


def test_a_name_that_is_not_there_is_an_error_with_the_nearest(two: Any) -> None:
    for call in (
        lambda: lists.use(two, ["secnd"], ["secnd"]),
        lambda: lists.add(two, "new", like="secnd"),
        lambda: lists.showing(two, ["secnd"]).__enter__(),
    ):
        with pytest.raises(UsageError, match="adapter secnd: there is none") as told:
            call()
        assert 'did you mean "second"?' in told.value.remedy
    with pytest.raises(UsageError, match="without being active"):
        lists.use(two, ["default"], ["second"])
    with pytest.raises(UsageError, match="each once"):
        lists.use(two, [], [])


def saved(model: Any, tokenizer: Any, base: Path, folder: Path) -> Path:
    save_model(model, tokenizer, folder, ModelConfig(path=str(base), tuning="lora"))
    return folder


def test_all_adapters_are_saved_and_loaded_with_their_lists(
    two: Any, tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    lists.use(two, ["second", "default"], ["default"])
    folder = saved(two, tiny[1], tiny_model_dir, tmp_path / "model")
    again, _ = load_saved(folder)
    assert lists.names(again) == ("default", "second")
    assert (lists.active(again), lists.trained(again)) == (("second", "default"), ())
    assert torch.equal(answers(again), answers(two))
    trainable, _ = load_saved(folder, trainable=True)
    assert flags(trainable) == flags(two)

    # Any other program reads each of them with peft alone.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = PeftModel.from_pretrained(plain, str(folder / "second")).eval()
    with lists.showing(two, ["second"]):
        torch.testing.assert_close(answers(plain), answers(two))


def test_adapters_that_a_model_lacks_are_added_before_their_weights(
    two: Any, tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    lists.use(two, ["default", "second"], ["second"])
    folder = saved(two, tiny[1], tiny_model_dir, tmp_path / "model")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    fresh = attach_lora(fresh, LoraConfig(r=2)).eval()
    lists.add_saved(fresh, folder)
    put(fresh, load_weights(fresh, folder))
    lists.use_saved(fresh, folder)
    assert flags(fresh) == flags(two)
    assert torch.equal(answers(fresh), answers(two))
    # In a phase that freezes some, these stay so.
    name = next(iter(flags(fresh)))
    fresh.get_parameter(name).requires_grad_(False)
    lists.use_saved(fresh, folder, kept=True)
    assert flags(fresh) == flags(two) - {name}


def test_damaged_lists_are_told(two: Any, tiny: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = saved(two, tiny[1], tiny_model_dir, tmp_path / "model")
    file = folder / lists.ADAPTERS_FILE
    good = json.loads(file.read_text())
    for text, what in (
        ("{", "is not valid JSON"),
        ("[]", "does not hold the lists"),
        (json.dumps({**good, "active": "second"}), "does not hold the lists"),
        (json.dumps({**good, "names": ["default", "../second"]}), "does not hold the lists"),
        (json.dumps({**good, "names": ["default", "third"]}), "names the adapter third"),
        (json.dumps({**good, "active": ["third"]}), "active: names the adapter third"),
    ):
        file.write_text(text)
        with pytest.raises(ModelError, match=what) as told:
            load_saved(folder)
        assert str(file) in told.value.what


def test_checkpoints_of_a_trainer_below_its_adapter_are_no_adapters(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    import shutil

    model = attach_lora(tiny[0], LoraConfig(r=2))
    folder = saved(model, tiny[1], tiny_model_dir, tmp_path / "model")
    assert not (folder / lists.ADAPTERS_FILE).exists()
    shutil.copytree(folder, tmp_path / "one")
    (tmp_path / "one").rename(folder / "checkpoint-500")
    assert list(lists.folders(folder)) == ["default"]
    assert lists.names(load_saved(folder)[0]) == ("default",)


def test_several_adapters_that_peft_saved_are_loaded_and_the_first_is_active(
    two: Any, tiny_model_dir: Path, tmp_path: Path, tiny: Any
) -> None:
    two.save_pretrained(tmp_path / "pool")
    file = tmp_path / "pool/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(tiny_model_dir)}))
    again, _ = load_saved(tmp_path / "pool")
    assert (lists.names(again), lists.active(again)) == (("default", "second"), ("default",))
    assert torch.equal(answers(again), answers(two))
