"""Routed scores: one place for a run, `eval` and `audit`, which a router sees prompts alone in."""

from __future__ import annotations

import json
import math
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import scores
from word_router import AdapterPerTask, Words, known

from perdure.errors import ModelError, UsageError
from perdure.models import adapter_lists, load_saved
from perdure.models.adapters import attach_lora
from perdure.models.chat import Encoder
from perdure.models.served import router_of, serve_only
from perdure.recipe.schema import LoraConfig
from perdure.run import Run
from perdure.scoring.routed import Routed, as_prompt, prompts_of, served_score
from perdure.scoring.score import score_task
from perdure.streams.task import Task

pytestmark = pytest.mark.train


def evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    from perdure.commands.evaluate import evaluate

    evaluate(run, None, None, as_json=True)
    return {row["task"]: row["score"] for row in json.loads(capsys.readouterr().out)["scores"]}


def test_eval_scores_by_the_router_in_the_checkpoint(
    pool: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores(pool.path)
    with known() as shown:
        again = evaluated(pool.path, capsys)
    assert again == {name: found[2, name] for name in ("colour", "count")}
    # One list, in which the tasks are mixed; prompts of two keys a turn, and nothing else.
    (prompts,) = shown
    texts = [prompt[-1]["content"] for prompt in prompts]
    words = [word for text in texts for word in ("colour", "count") if word in text.split()]
    assert words.count("colour") == words.count("count") == 12
    assert words != sorted(words)
    assert words != sorted(words, reverse=True)
    assert {tuple(turn) for prompt in prompts for turn in prompt} == {("role", "content")}
    assert len(texts) == len(set(texts)) == 28  # with four general texts


def test_a_task_that_only_the_second_adapter_can_do(
    pool: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = scores(pool.path)
    assert (found[0, "count"], found[1, "count"], found[2, "count"]) == (0, 0, 1)
    copy = tmp_path / "run"
    shutil.copytree(pool.path, copy)
    model = copy / "checkpoints/task-2/model"
    with known():
        (model / "words.json").write_text(json.dumps({"count": "default", "colour": "task1"}))
        _reseal(model.parent)
        swapped = evaluated(copy, capsys)
        (model / "words.json").write_text("{}")
        _reseal(model.parent)
        base = evaluated(copy, capsys)
    assert swapped["count"] <= 0.7
    assert base == {name: scores(pool.path)[0, name] for name in base}


def _reseal(folder: Path) -> None:
    from perdure.seals import facts_of, seal

    facts = {k: v for k, v in facts_of(folder).items() if k != "files"}
    seal(folder, facts)


def test_general_texts_are_routed_like_any_request(pool: Run) -> None:
    for after in (1, 2):
        items = pool.general_items(after)
        assert {item["adapter"] for item in items} == {"base"}
        assert {item["why"] for item in items} == {"no word is known"}
    rows = {(s["after"], s.get("task")): s for s in pool.scores() if s["kind"] == "general"}
    assert rows[0, None]["score"] == rows[2, None]["score"]  # no word: the base answered


def test_what_a_method_asks_for_inside_a_task_is_not_routed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """`rewind` scores what it interpolates, whatever the router knows."""
    from word_router import learn_pool

    asked: list[float] = []

    class Asks(AdapterPerTask):
        def end_task(self, ctx: Any) -> None:
            self.words = dict.fromkeys(self.words, "default")
            with torch.no_grad():
                asked.append(ctx.score(ctx.task, "test"))
            assert ctx.adapters.active == (("default",), ("task1",))[ctx.task_index]
            self.words = {**self.words, ctx.task.name: ctx.adapters.active[0]}

    run = learn_pool(tmp_path, tiny_model_dir, method=Asks)
    assert asked == [scores(run.path)[1, "colour"], scores(run.path)[2, "count"]]


def test_an_audit_measures_what_is_served(pool: Run, tiny_model_dir: Path) -> None:
    from perdure.audit.audit import audit
    from perdure.prepare import run_stream

    stream = run_stream(pool)
    with known() as shown:
        found = audit(str(tiny_model_dir), pool.path, stream, measures=["loss", "tasks"])
    loss, *tasks = found.measures
    assert loss.change == 0  # no general text has a word: the base itself answers
    assert loss.note == f"{loss.items} of {loss.items} texts routed to the base model"
    served = [scores(pool.path)[2, name] for name in ("colour", "count")]
    assert [m.tuned for m in tasks] == pytest.approx(served)
    assert len(shown[0]) == 28
    with known():
        (kl,) = audit(str(tiny_model_dir), pool.path, measures=["kl"], max_kl=0.1).measures
        same = audit(pool.path, pool.path, stream, measures=["tasks"])
    assert kl.tuned == 0
    assert kl.note.endswith(
        f" sampled tokens; {kl.items} of {kl.items} texts routed to the base model"
    )
    assert not same.identical_weights
    assert {m.change for m in same.measures} == {0}


def test_an_audit_of_one_adapter(pool: Run, tiny_model_dir: Path) -> None:
    from perdure.audit.audit import audit
    from perdure.prepare import run_stream

    stream = run_stream(pool)
    counted = []
    with known() as shown:
        for name in ("default", "task1"):
            found = audit(str(tiny_model_dir), pool.path, stream, measures=["tasks"], adapter=name)
            assert found.tuned.endswith(f"({name})")
            counted.append(found.measures[1].tuned)
        assert counted[0] < 0.7 < counted[1] == 1  # only the second one has learned to
        assert shown == []  # nothing is routed
        with pytest.raises(UsageError, match=r"did you mean .task1"):
            audit(str(tiny_model_dir), pool.path, stream, adapter="tusk1")
        with pytest.raises(UsageError, match="holds no adapters"):
            audit(str(tiny_model_dir), tiny_model_dir, stream, adapter="task1")


def test_rows_are_answered_by_the_adapters_that_score_them(pool: Run) -> None:
    import perdure
    from perdure.prepare import run_stream

    with known():
        predict = perdure.load_predictor(pool.path, task="count")
        rows = run_stream(pool).tasks[1].test
        found = predict([row["prompt"][-1]["content"] for row in rows])
    items = pool.items(2, "count")
    assert [one["answer"] for one in found] == [item["prediction"] for item in items]
    for name in ("adapter", "similarity", "why"):  # as the run's items say
        assert [one[name] for one in found] == [item[name] for item in items]
    assert {one["fits"] for one in found} == {None}  # this router does not say


def test_a_batch_of_several_adapters_writes_what_each_writes_alone(tiny: Any) -> None:
    model = two_adapters(tiny[0])
    asked = ["red one", "two of a kind", "a red house", "nothing at all", "two", "the red sea"]
    rows = [{"prompt": as_prompt(text), "answer": "x"} for text in asked]
    task = Task("t", (), (), rows, "exact_match", max_new_tokens=5)
    encoder = Encoder(tiny[1])
    routed = Routed(Words({"red": "default", "two": "second"}), prompts_of([task]))
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = served_score(model, encoder, task, routed)
    hook.remove()
    names = ["default", "second", "default", "__base__", "second", "default"]
    alone: dict[str, list[str]] = {}
    for name in set(names):
        with adapter_lists.showing(model, [name]):
            items = score_task(model, encoder, task).items
            alone[name] = [item["prediction"] for item in items]
    assert [i["prediction"] for i in found.items] == [alone[n][i] for i, n in enumerate(names)]
    assert len({tuple(texts) for texts in alone.values()}) == 3
    assert [i["adapter"] for i in found.items] == [n.replace("__", "") for n in names]
    # One batch of five tokens, beside the trial of whether this model can write batches.
    assert len(calls) <= 5 + 3 * 4


def two_adapters(model: Any) -> Any:
    """A model with two random ones, `default` and `second`."""
    model = attach_lora(model, LoraConfig(r=2)).eval()
    adapter_lists.add(model, "second")
    maker = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=maker))
    return model


@pytest.mark.parametrize("measure", ["label_likelihood", "perplexity"])
def test_labels_and_losses_are_scored_adapter_by_adapter_and_items_keep_the_rows_order(
    tiny: Any, measure: str
) -> None:
    model = two_adapters(tiny[0])
    asked = ["red 1", "two 2", "a red 3", "none 4", "two 5", "red 6", "two 2", "none 8"]
    rows = [{"prompt": as_prompt(text), "answer": "xy"[i % 2]} for i, text in enumerate(asked)]
    task = Task("t", (), (), rows, measure, labels=("x", "y"))
    encoder = Encoder(tiny[1])
    shown: list[tuple[str, ...]] = []

    def note(*_: Any) -> None:
        off = model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters
        shown.append(("__base__",) if off else adapter_lists.active(model))

    hook = model.base_model.model.register_forward_pre_hook(note)
    routed = Routed(Words({"red": "default", "two": "second"}), prompts_of([task]))
    found = served_score(model, encoder, task, routed)
    hook.remove()
    names = ["default", "second", "default", "__base__", "second", "default", "second", "__base__"]
    # One after another, and never mixed.
    assert [name for name, _ in groupby(shown)] == [("__base__",), ("default",), ("second",)]
    alone: dict[str, Any] = {}
    for name in set(names):
        with adapter_lists.showing(model, [name]):
            alone[name] = score_task(model, encoder, task).items
    for i, item in enumerate(found.items):
        wanted = alone[names[i]][i]
        said = {"adapter", "similarity", "why"}
        assert {k: v for k, v in item.items() if k not in said} == pytest.approx(wanted)
        assert item["adapter"] == names[i].replace("__", "")
        assert said <= set(item)
    assert len({item["id"] for item in found.items}) == len(rows)  # also of the row that is twice
    scored = [item["score"] for item in found.items]
    # Answers are of equally many tokens, so that their losses weigh alike.
    of_losses = math.exp(sum(map(math.log, scored)) / len(rows)) if min(scored) > 0 else 0.0
    wanted = of_losses if measure == "perplexity" else sum(scored) / len(rows)
    assert found.score == pytest.approx(wanted)
    assert adapter_lists.active(model) == ("default",)


def test_an_adapter_that_is_not_there_is_told_with_the_nearest(
    pool: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(pool.path, copy)
    model = copy / "checkpoints/task-2/model"
    (model / "words.json").write_text(json.dumps({"count": "tsk1"}))
    _reseal(model.parent)
    with known(), pytest.raises(UsageError, match="adapter tsk1: there is none") as told:
        evaluated(copy, capsys)
    assert 'did you mean "task1"?' in told.value.remedy


def test_what_takes_one_model_refuses_a_routed_one_and_takes_one_of_its_adapters(
    pool: Run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from perdure.models.export import export
    from perdure.repair.path import load_line

    base, run = str(tiny_model_dir), str(pool.path)
    with known():
        with pytest.raises(ModelError, match="is routed to one of its 2 adapters") as told:
            export(run, tmp_path / "merged", "merged", "float32")
        assert "--adapter; there are default, task1" in str(told.value.remedy)
        with pytest.raises(ModelError, match="a router chooses among its adapters") as told:
            load_line(base, run)
        assert "--adapter; there are default, task1" in str(told.value.remedy)
        with pytest.raises(UsageError, match=r"did you mean .task1"):
            export(run, tmp_path / "merged", adapter="tusk1")
        folder = pool.path / "checkpoints/task-2/model"
        for name, home in (("default", folder), ("task1", folder / "task1")):
            saved = load_file(home / "adapter_model.safetensors")
            own = load_line(base, run, adapter=name)
            assert list(own.model.peft_config) == ["default"]
            assert {
                n.replace(".default.", "."): w for n, w in own.end.items()
            }.keys() == saved.keys()
            for key, weight in own.end.items():
                torch.testing.assert_close(weight, saved[key.replace(".default.", ".")])
            # One of them as a plain folder, and added to the weights of the base.
            out = export(run, tmp_path / name, "peft", adapter=name)
            assert not (out / "task1").exists()
            assert (out / "tokenizer_config.json").is_file()
            alone, _ = load_saved(out)
            assert (router_of(alone), list(alone.peft_config)) == (None, ["default"])
            assert load_file(out / "adapter_model.safetensors").keys() == saved.keys()
            whole, _ = load_saved(export(run, tmp_path / f"{name}-whole", adapter=name))
            ids = torch.tensor([[5, 9, 7]])
            with torch.no_grad():
                torch.testing.assert_close(
                    whole(ids).logits, alone(ids).logits, rtol=1e-4, atol=1e-5
                )
        # Each of the folders is a model by itself too.
        assert load_line(base, str(folder / "task1")).adapter
        out = export(pool.path, tmp_path / "peft", "peft")
        again, _ = load_saved(out)
    assert isinstance(router_of(again), Words)
    assert list(again.peft_config) == ["default", "task1"]


def test_the_commands_take_an_adapter_by_name(
    pool: Run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from perdure.cli import app

    base, run, recipe = str(tiny_model_dir), str(pool.path), str(pool.path.parent / "recipe.yaml")
    commands = (
        ("export", run, "--out", str(tmp_path / "out")),
        ("diagnose", base, run, "--tasks", recipe),
        ("repair", base, run, "--general", "pydoc", "--task", recipe, "--out", str(tmp_path / "r")),
    )
    with known():
        for command in commands:
            told = CliRunner().invoke(app, [*command, "--adapter", "tusk1"])
            assert told.exit_code == 2, told.output
            assert 'did you mean "task1"?' in told.stderr
        done = CliRunner().invoke(app, [*commands[0], "--adapter", "task1"])
        assert done.exit_code == 0, done.output
        assert router_of(load_saved(tmp_path / "out")[0]) is None
        # Of all of them each is listed with its folder.
        each = CliRunner().invoke(
            app, ["export", run, "--to", "peft", "--out", str(out := tmp_path / "each")]
        )
        assert each.stdout.splitlines() == [
            f"model: {out}", f"adapter default: {out}", f"adapter task1: {out / 'task1'}"
        ]  # fmt: skip
        found = CliRunner().invoke(app, [*commands[1], "--adapter", "task1", "--json"])
        assert json.loads(found.stdout)["tuned"] == f"{run} (task1)"


def test_a_diagnosis_is_of_what_is_served(pool: Run, tiny_model_dir: Path) -> None:
    from perdure.diagnose.diagnose import diagnose
    from perdure.diagnose.measurements import Measured, Sizes, trained_on
    from perdure.prepare import run_stream

    stream = run_stream(pool)
    colour, count = stream.tasks
    sizes, run = Sizes(shots=2, relearn_rows=4, relearn_steps=2), str(pool.path)
    with known() as shown:
        found = diagnose(str(tiny_model_dir), run, stream, sizes=sizes, max_drop=0.9)
        assert {prompt[-1]["role"] for prompts in shown for prompt in prompts} == {"user"}
        one = diagnose(str(tiny_model_dir), run, stream, sizes=sizes, adapter="default")
        with pytest.raises(UsageError, match=r"did you mean .task1"):
            diagnose(str(tiny_model_dir), run, stream, adapter="tusk1")
        served = {name: scores(pool.path)[2, name] for name in ("colour", "count")}
        assert {t.task: t.means["score"]["tuned"] for t in found.tasks} == pytest.approx(served)
        assert [t.adapters for t in found.tasks] == [
            {"tuned": {"default": 12}}, {"tuned": {"task1": 12}}
        ]  # fmt: skip
        assert found.tasks[1].why().endswith("; tuned: 12 by task1")
        assert one.tuned.endswith("(default)")
        assert one.tasks[1].means["score"]["tuned"] < 1 == served["count"]
        assert [t.adapters for t in one.tasks] == [{}, {}]

        # States of rows of both tasks: each is of the adapter that answers it.
        model, tokenizer = load_saved(pool.path)
        routed = Measured(model, tokenizer)
        rows = [*colour.test[:3], *count.test[:3]]
        mixed = routed.states(colour, [rows[i] for i in (0, 3, 1, 4, 2, 5)], "mixed")
        for name, task, at in (("default", colour, (0, 2, 4)), ("task1", count, (1, 3, 5))):
            alone, _ = load_saved(pool.path)
            serve_only(alone, name)
            wanted = Measured(alone, tokenizer).states(task, task.test[:3], "alone")
            assert mixed[list(at)] == pytest.approx(wanted, abs=1e-5)

        # The short training moves both adapters, and puts all back.
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with trained_on(model, routed.encoder, rows, 2, 1e-2, routed.routed):
            moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            owners = {adapter_lists.adapter_of(model, n) for n in moved}
            assert owners == {None, "default", "task1"}
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        assert adapter_lists.active(model) == ("task1",)


def test_a_trainer_of_ones_own_refuses_methods_that_route_or_add_adapters(tiny: Any) -> None:
    from transformers import Trainer, TrainingArguments

    import perdure
    from perdure.protocol.method import Method, MethodConfig

    class Routes(Method):
        def router(self, ctx: Any) -> Any:
            return Words({})

    ids = tiny[1]("What is learned here is short.")["input_ids"]
    trainer = Trainer(
        model=tiny[0],
        args=TrainingArguments(use_cpu=True, report_to="none"),
        processing_class=tiny[1],
        train_dataset=[{"input_ids": ids, "labels": ids}] * 4,
    )
    with pytest.raises(UsageError, match="attach: olora: it works on adapters"):
        perdure.attach(trainer, "olora")
    with pytest.raises(UsageError, match="attach: test_routing: it routes requests to adapters"):
        perdure.attach(trainer, Routes(MethodConfig()))
