"""A pool of adapters: chosen, mixed in a batch, and checked when they come from elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from word_router import known

from perdure.errors import ModelError, UsageError
from perdure.models import pool as module
from perdure.models.codebook import Codebook, Group
from perdure.models.pool import AdapterPool
from perdure.models.router import Router
from perdure.models.weights import fingerprint
from perdure.run import Run

pytestmark = pytest.mark.train
BOOK = Codebook(
    groups=(
        Group(name="colour", adapter="red", instructions=("Name the colour of the house.",)),
        Group(name="sum", adapter="blue@2", instructions=("Add both numbers up.",)),
    ),
    accept=0.3,
)
ASKED = [
    "Add both numbers up, please: 1 and 2.",
    "Name the colour of the car.",
    "Translate this.",
    "Add these numbers up: 30 and 4.",
    "Name the colour of the house and of all that stands beside it.",
]
ADAPTERS = ["blue@2", "red", None, "blue@2", "red"]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def save_adapter(model: Path, folder: Path, seed: int, size: float, **config: Any) -> Path:
    """A plain `peft` folder with random matrices; B has values of this size."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(seed)  # of A too, which `peft` draws
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=size)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of other ranks and other layers."""
    home = tmp_path_factory.mktemp("elsewhere")
    some = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    every = {"r": 4, "target_modules": "all-linear"}
    return {
        "red": save_adapter(tiny_model_dir, home / "red", 1, 1.0, **some),
        "blue@2": save_adapter(tiny_model_dir, home / "blue", 2, 1.0, **every),
    }


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path, folders: dict[str, Path]) -> AdapterPool:
    return AdapterPool(tiny_model_dir, folders, Router(BOOK))


def test_each_request_is_answered_by_its_adapter_in_one_batch(
    plain: AdapterPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    def noted(*args: Any, adapters: Any, **options: Any) -> list[str]:
        batches.append(adapters)
        return write(*args, adapters=adapters, **options)

    write = module.generate
    alone = [plain.generate([said(text)], 12)[0] for text in ASKED]
    monkeypatch.setattr(module, "generate", noted)
    found = plain.generate([said(text) for text in ASKED], 12)
    assert [answer.choice.adapter for answer in found] == ADAPTERS
    assert batches == [[name or "__base__" for name in ADAPTERS]]
    assert [answer.text for answer in found] == [answer.text for answer in alone]
    batches.clear()
    grouped = plain.generate([said(text) for text in ASKED], 12, grouped=True)
    assert batches == [None] * 3
    assert grouped == found
    # Full batches are of one adapter; of the rest no batch has more adapters than it needs.
    passes: dict[int, list[list[str] | None]] = {
        1: [None] * 5,
        2: [None] * 3,
        3: [["blue@2", "red", "blue@2"], ["__base__", "red"]],
    }
    for size, wanted in passes.items():
        batches.clear()
        assert plain.generate([said(text) for text in ASKED], 12, batch_size=size) == found
        assert batches == wanted
    # The adapters matter: the same request has an answer of each.
    texts = {plain.generate([said(ASKED[0])], 12, name)[0].text for name in ("red", "sum", "base")}
    assert len(texts) == 3


def test_the_base_alone_answers_as_the_base_model_does(
    plain: AdapterPool, tiny: tuple[Any, Any]
) -> None:
    prompt = plain.encoder.prompt_ids({"prompt": said("Translate this."), "answer": ""})
    wanted = module.generate(tiny[0].eval(), plain.encoder, [prompt], max_new_tokens=12)
    assert [one.text for one in plain.generate([said("Translate this.")], 12)] == wanted


def test_a_choice_says_why_and_nothing_is_written(plain: AdapterPool) -> None:
    found = plain.choose([said(text) for text in ASKED])
    assert [choice.adapter for choice in found] == ADAPTERS
    assert all(choice.why for choice in found)
    assert plain.choose([]) == []
    assert plain.generate([]) == []
    assert plain.adapters == ("red", "blue@2")


def test_another_rank_and_a_change_near_zero_are_said(
    tiny_model_dir: Path, folders: dict[str, Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    small = save_adapter(tiny_model_dir, tmp_path / "small", 1, 1e-8, r=2)
    with caplog.at_level(logging.WARNING, "perdure"):
        pool = AdapterPool(tiny_model_dir, {**folders, "small": small})
    rank, nearly = [finding.what for finding in pool.findings]
    assert "is of rank 4, and the pool's first adapter of 2" in rank
    assert "adapter small: adds nearly nothing" in nearly
    assert all(finding.what in caplog.text for finding in pool.findings)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_no_batch_mixes_answer_one_by_one(
    tiny_model_dir: Path, folders: dict[str, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    """peft fails on a batch in which an adapter lacks a whole module that another has."""
    other = save_adapter(tiny_model_dir, tmp_path / "other", 3, 1.0, r=2, **config)
    pool = AdapterPool(tiny_model_dir, {"red": folders["red"], "blue@2": other}, Router(BOOK))
    told = "".join(finding.what for finding in pool.findings)
    assert ("(modules_to_save: lm_head), 32,768 numbers" in told) == ("modules_to_save" in config)
    found = pool.generate([said(text) for text in ASKED], 12)
    assert [answer.choice.adapter for answer in found] == ADAPTERS
    assert found == [pool.generate([said(text)], 12)[0] for text in ASKED]


def test_adapters_that_cannot_join(
    tiny_model_dir: Path, folders: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    zero = save_adapter(tiny_model_dir, tmp_path / "zero", 1, 0.0, r=2)
    with pytest.raises(ModelError, match="adapter zero: adds nothing: B A is zero"):
        AdapterPool(tiny_model_dir, {"zero": zero})
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    loaded: list[Any] = []
    monkeypatch.setattr(module, "load_base", loaded.append)
    with pytest.raises(ModelError, match=r"of its matrices do not fit the base: .* 64 x 64"):
        AdapterPool(other, {"red": folders["red"]})
    with pytest.raises(UsageError, match="no such folder"):
        AdapterPool(tiny_model_dir, {"red": tmp_path / "nowhere"})
    with pytest.raises(UsageError, match="needs an adapter"):
        AdapterPool(tiny_model_dir, {})
    with pytest.raises(UsageError, match=r"groups\.1\.adapter: no adapter is called 'blue@2'"):
        AdapterPool(tiny_model_dir, {"red": folders["red"]}, Router(BOOK))
    red: Any = folders["red"]
    name_some = 'name some: {"sql": "path/to/adapter"}'
    for given, what, remedy in (
        ({5: red}, "adapter 5: its name is no text", 'write it in quotes: {"5": ...}'),
        ({"red": None}, "adapter red: None: is no path", name_some),
        ([red], "adapters: .*: is no mapping of names to folders", name_some),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            AdapterPool(tiny_model_dir, given)
        assert caught.value.remedy == (remedy,)
    with pytest.raises(UsageError, match="router: 'x': is no router") as caught:
        AdapterPool(tiny_model_dir, {"red": red}, router="x")  # type: ignore[arg-type]
    assert "Router.load(FOLDER)" in caught.value.remedy[0]
    assert loaded == []


def test_a_codebook_of_another_base_is_refused(
    tiny_model_dir: Path, tiny: tuple[Any, Any], folders: dict[str, Path]
) -> None:
    def on(base: str) -> AdapterPool:
        return AdapterPool(tiny_model_dir, folders, Router(BOOK.model_copy(update={"base": base})))

    with pytest.raises(UsageError, match="fingerprint 0123, and the one at hand has"):
        on("0123")
    assert on(fingerprint(tiny[0])).adapters == ("red", "blue@2")


def test_an_adapter_is_named_by_name_by_group_or_as_the_base(plain: AdapterPool) -> None:
    names = ["red", "colour", "blue@2", "sum", "base"]
    assert [plain.named(name).adapter for name in names] == ["red", "red", "blue@2", "blue@2", None]
    with pytest.raises(UsageError, match="did you mean red"):
        plain.generate([said("x")], adapter="rad")
    with pytest.raises(UsageError, match="sum is at blue@2"):
        plain.named("blue@1")


def test_requests_that_are_none(plain: AdapterPool) -> None:
    ok = said("Add both numbers up.")
    write = 'write [{"role": "user", "content": "..."}]'
    shorter = "shorten the request, or lower max_new_tokens"
    for call, what, remedy in (
        (lambda: plain.generate([ok, "Add."]), "2: a prompt is a list of messages, not str", write),
        (lambda: plain.generate([[]]), "1: has no message", write),
        (
            lambda: plain.choose([[{"role": "user", "content": None}]]),
            "1: a message's content is no text",
            write,
        ),
        (
            lambda: plain.generate([ok, said("word " * 5000)]),
            "2: .* more than the model's context of",
            shorter,
        ),
    ):
        with pytest.raises(UsageError, match=f"request {what}") as caught:
            call()
        assert caught.value.remedy == (remedy,)
    number = "give a whole number above 0"
    several = "give one name, such as 'red', and call once for each adapter; "
    several += "or leave it out where the pool has a router"
    wrong: Any
    for wrong, what, remedy in (
        ({"max_new_tokens": 0}, "max_new_tokens: 0: is less than 1", number),
        ({"max_new_tokens": "x"}, "max_new_tokens: 'x': is no whole number", number),
        ({"batch_size": 1.5}, r"batch_size: 1\.5: is no whole number", number),
        ({"adapter": ["red"]}, r"adapter: \['red'\]: is no text", several),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            plain.generate([ok], **wrong)
        assert caught.value.remedy == (remedy,)


def test_a_content_may_be_a_list_of_text_parts(plain: AdapterPool) -> None:
    first, second = "Add both numbers up,", "please: 1 and 2."
    kinds = ("text", "input_text")
    parts = [{"type": k, "text": t} for k, t in zip(kinds, (first, second), strict=True)]
    asked: Any = [[{"role": "user", "content": parts}], said(f"{first} {second}")]
    chosen = plain.choose(asked)
    assert chosen[0] == chosen[1]
    assert chosen[0].adapter == "blue@2"
    one, other = plain.generate(asked, 12)
    assert one == other
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    for call in (plain.choose, plain.generate):
        with pytest.raises(UsageError, match=r'request 2: message 1: .* of the type "image_url"'):
            call([said("x"), [{"role": "user", "content": [*parts, picture]}]])
        with pytest.raises(UsageError, match="request 1: message 1: its content is an empty list"):
            call([[{"role": "user", "content": []}]])
        with pytest.raises(UsageError, match="a part of the type text has no text"):
            call([[{"role": "user", "content": [{"type": "text"}]}]])
        with pytest.raises(UsageError, match="a part of its content has no type"):
            call([[{"role": "user", "content": ["text"]}]])


def test_without_a_router_an_adapter_is_named(
    tiny_model_dir: Path, folders: dict[str, Path], plain: AdapterPool
) -> None:
    pool = AdapterPool(tiny_model_dir, folders)
    with pytest.raises(UsageError, match="has no router"):
        pool.choose([said("x")])
    with pytest.raises(UsageError, match="did you mean red"):
        pool.named("rad")
    named = pool.generate([said(ASKED[1])], 12, "red")
    assert [one.text for one in named] == [one.text for one in plain.generate([said(ASKED[1])], 12)]


def test_the_pool_of_a_run(pool: Run, tiny_model_dir: Path) -> None:
    with known():
        found = AdapterPool.load(pool.path)
    assert found.adapters == ("default", "task1")
    asked = [said("which count is it"), said("which colour is it"), said("which is it")]
    answers = found.generate(asked, 4)
    assert [one.choice.adapter for one in answers] == ["task1", "default", None]
    assert answers == [found.generate([one], 4)[0] for one in asked]
    with pytest.raises(UsageError, match="holds a whole model and no adapters"):
        AdapterPool.load(tiny_model_dir)
    with pytest.raises(UsageError, match="no such folder"):
        AdapterPool.load("nowhere/at/all")
