"""General ability by tasks of lm-eval: scores against an own loop, and what a run makes of them.

All tasks are files over a few rows of JSON; the hub is not asked. lm-eval is a development
dependency, so nothing is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from synthetic_runs import make_run, write_lines
from tiny_runs import run as run_command
from tiny_runs import scores, write_recipe
from typer.testing import CliRunner

from perdure.audit.scores import audit_scores
from perdure.cli import app
from perdure.consent import trusting
from perdure.errors import DataError, RecipeError, UsageError
from perdure.loop import learn
from perdure.prepare import load_recipe, prepare
from perdure.recipe.load import dump_recipe
from perdure.recipe.schema import Recipe
from perdure.reports.data import views
from perdure.reports.general import changes, f1_average, f1_before_after
from perdure.reports.html import render
from perdure.reports.terminal import score_table
from perdure.run import Run
from perdure.run.damage import verify_scores
from perdure.scoring import lm_eval
from perdure.streams import build_stream, lm_eval_tasks

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def the_users_word() -> Iterator[None]:
    """These tests run code of their own; `tests/test_consent.py` asks what happens without."""
    with trusting(True):
        yield


ROWS = [
    {"question": "What is red?", "choices": ["blood", "the deep blue sea", "snow"], "gold": 0},
    {"question": "Who barks?", "choices": ["a cat that sleeps", "a dog"], "gold": 1},
    {"question": "What is wet?", "choices": ["sand", "stone", "rain in November"], "gold": 2},
    {"question": "Name a month.", "choices": ["May", "Monday", "mathematics"], "gold": 0},
    {"question": "Two and two?", "choices": ["four", "five hundred and one"], "gold": 0},
    {"question": "What flies?", "choices": ["an old table", "a swift", "a brick"], "gold": 1},
    {"question": "What burns?", "choices": ["ice", "dry wood"], "gold": 1},
]
CHOICE = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "rows.jsonl"},
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the rows and one task file, quiz.yaml."""
    made = tmp_path / "shop"
    made.mkdir()
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task(made, "quiz")
    return made


def task(folder: Path, name: str, **changes: Any) -> Path:
    """Write NAME.yaml: `CHOICE` with changes; None takes a key out."""
    config = {"task": name, **CHOICE, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return path


def load(*files: Path, **settings: Any) -> dict[str, Any]:
    return lm_eval_tasks.load(general(*files, **settings))


def general(*files: Path, **settings: Any) -> Any:
    from perdure.recipe.general import GeneralConfig

    return GeneralConfig(source="none", tasks=[str(f) for f in files], **settings)


def score(tiny: tuple[Any, Any], file: Path, **settings: Any) -> lm_eval.HarnessScore:
    [(name, loaded)] = load(file).items()
    return lm_eval.score(*tiny, name, loaded, **settings)


def log_likelihood(tiny: tuple[Any, Any], context: str, answer: str) -> float:
    """Sum of the log-probabilities of the answer's tokens, one at a time."""
    model, tokenizer = tiny
    ids = tokenizer(context + answer)["input_ids"]
    total = 0.0
    for at in range(len(tokenizer(context)["input_ids"]), len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:at]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[ids[at]])
    return total


def by_hand(tiny: tuple[Any, Any], rows: list[dict[str, Any]], normalized: bool) -> float:
    right = 0
    for row in rows:
        context = f"Question: {row['question']}\nAnswer:"
        found = [
            log_likelihood(tiny, context, f" {choice}") / (len(choice) if normalized else 1)
            for choice in row["choices"]
        ]
        right += found.index(max(found)) == row["gold"]
    return right / len(rows)


# --- scores


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_score_is_that_of_a_plain_loop(
    tiny: tuple[Any, Any], folder: Path, batch_size: int
) -> None:
    found = score(tiny, folder / "quiz.yaml", batch_size=batch_size)
    assert (found.metric, found.filter, found.higher_is_better) == ("acc_norm", "none", True)
    assert found.rows == len(ROWS)
    assert found.score == pytest.approx(by_hand(tiny, ROWS, normalized=True))
    plain = score(tiny, task(folder, "plain", metric_list=[{"metric": "acc"}]))
    assert plain.metric == "acc"
    assert plain.score == pytest.approx(by_hand(tiny, ROWS, normalized=False))
    # The test would not notice a metric taken for the other if both were equal.
    assert plain.score != found.score


def test_items_are_those_of_a_plain_loop(tiny: tuple[Any, Any], folder: Path) -> None:
    told = [{**row, "passage": f"p{i // 3}"} for i, row in enumerate(ROWS)]
    told[6]["passage"] = ""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    [(name, loaded)] = load(folder / "quiz.yaml", group="passage").items()
    found = lm_eval.score(*tiny, name, loaded, group="passage")
    assert [item["score"] for item in found.items] == [
        by_hand(tiny, [row], normalized=True) for row in ROWS
    ]
    assert [item["id"] for item in found.items] == [str(i) for i in range(len(ROWS))]
    assert [item.get("group") for item in found.items] == [*["p0"] * 3, *["p1"] * 3, None]
    assert found.items[1]["prompt"] == "Question: Who barks?\nAnswer:"
    with pytest.raises(UsageError, match='no task\'s documents have a field "pasage"') as error:
        load(folder / "quiz.yaml", group="pasage")
    assert 'did you mean "passage"?' in str(error.value)


def test_an_audit_reads_the_items(tiny: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    told = [{**row, "passage": f"p{i // 3}"} for i, row in enumerate(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    [(name, loaded)] = load(folder / "quiz.yaml", group="passage").items()
    items = lm_eval.score(*tiny, name, loaded, group="passage").items
    run = make_run(tmp_path / "run")
    for after, kept in ((0, items), (1, [{**item, "score": 0.0} for item in items])):
        run.record({"kind": "general", "after": after, "task": name, "score": 0.0}, kept)
    files = [run.path / "items" / f"general-{after}-quiz.jsonl" for after in (0, 1)]
    (measure,) = audit_scores(*files, max_drop=0.5).measures
    assert (measure.items, measure.groups) == (len(ROWS), 3)
    assert measure.change == pytest.approx(-by_hand(tiny, ROWS, normalized=True))
    changed = [{**item, "doc_hash": "other"} for item in items]
    run.record({"kind": "general", "after": 1, "task": name, "score": 0.0}, changed)
    with pytest.raises(DataError, match="item 0 has another doc_hash"):
        audit_scores(*files)


def test_limit_takes_the_first_rows(tiny: tuple[Any, Any], folder: Path) -> None:
    found = score(tiny, folder / "quiz.yaml", limit=3)
    assert found.rows == 3
    assert found.score == pytest.approx(by_hand(tiny, ROWS[:3], normalized=True))


def test_generated_text_is_what_greedy_decoding_writes(tiny: tuple[Any, Any], folder: Path) -> None:
    model, tokenizer = tiny
    written = []
    for row in ROWS:
        ids = tokenizer(row["question"], return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=4, do_sample=False)
        written.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :]))
    told = [dict(row, said=text if i < 3 else "?") for i, (row, text) in
            enumerate(zip(ROWS, written, strict=True))]  # fmt: skip
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    file = task(
        folder, "write", dataset_kwargs={"data_files": {"train": ["said.jsonl"]}},
        output_type="generate_until", doc_to_text="{{question}}", doc_to_target="{{said}}",
        doc_to_choice=None, metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\x00"], "max_gen_toks": 4, "do_sample": False},
    )  # fmt: skip
    found = score(tiny, file)
    assert found.metric == "exact_match"
    assert found.score == pytest.approx(3 / len(ROWS))


def test_a_score_of_which_less_is_better_is_recorded_as_such(
    tiny: tuple[Any, Any], folder: Path
) -> None:
    file = task(
        folder, "prose", output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{question}}", doc_to_choice=None,
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    found = score(tiny, file)
    prefix = tiny[1].decode([tiny[1].eos_token_id])
    total = sum(log_likelihood(tiny, prefix, row["question"]) for row in ROWS)
    words = sum(len(row["question"].split()) for row in ROWS)
    assert (found.metric, found.higher_is_better) == ("word_perplexity", False)
    assert found.score == pytest.approx(float(np.exp(-total / words)), rel=1e-4)
    assert found.items == ()  # it is not the mean of what the items have


def test_the_metric_that_is_recorded() -> None:
    stderr = {"acc_stderr,none": 0.1}
    assert lm_eval.pick({"acc,none": 1.0, "acc_norm,none": 0.5, **stderr}, {}) == (
        "acc_norm",
        "none",
    )
    assert lm_eval.pick({"f1,none": 0.1, "acc,none": 1, **stderr}, {"f1": True})[0] == "acc"
    ways = {"exact_match,strict-match": 0.2, "exact_match,flexible-extract": 0.3}
    assert lm_eval.pick({"name": "x", **ways}, {}) == ("exact_match", "strict-match")
    assert lm_eval.pick({"ppl,none": 9.0, "f1,none": 0.1}, {"ppl": False, "f1": True})[0] == "f1"
    assert lm_eval.pick({"ppl,none": 9.0, "bits,none": 1.0}, {"ppl": False})[0] == "ppl"
    with pytest.raises(UsageError, match="no number as a score"):
        lm_eval.pick({"alias": "x", "sample_len": 3, "acc,none": "N/A"}, {})


def test_the_model_and_random_numbers_are_left_as_they_were(
    tiny: tuple[Any, Any], folder: Path
) -> None:
    model, tokenizer = tiny
    model.train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()], [id(p) for p in model.parameters()]
    side, vocabulary = tokenizer.padding_side, len(tokenizer)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    wanted = [random.random(), np.random.rand(), float(torch.rand(1))]
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    score(tiny, folder / "quiz.yaml")
    assert [random.random(), np.random.rand(), float(torch.rand(1))] == wanted
    assert ([m.training for m in model.modules()], [id(p) for p in model.parameters()]) == before
    assert (tokenizer.padding_side, len(tokenizer)) == (side, vocabulary)


def test_a_model_with_adapters_is_scored(tiny: tuple[Any, Any], folder: Path) -> None:
    from perdure.models.adapters import attach_lora
    from perdure.recipe.schema import LoraConfig

    plain = score(tiny, folder / "quiz.yaml")
    adapted = attach_lora(tiny[0], LoraConfig())  # new adapters change nothing
    assert score((adapted, tiny[1]), folder / "quiz.yaml") == plain


def test_bf16_computes_under_autocast(tiny: tuple[Any, Any], folder: Path) -> None:
    seen = set()
    layer = tiny[0].model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    score(tiny, folder / "quiz.yaml", limit=1)
    score(tiny, folder / "quiz.yaml", limit=1, precision="bf16")
    assert seen == {torch.float32, torch.bfloat16}


def test_examples_before_the_question_are_the_same_each_time(
    tiny: tuple[Any, Any], folder: Path
) -> None:
    file = task(folder, "shots", fewshot_split="train")
    seen: list[torch.Tensor] = []
    tiny[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    [(name, loaded)] = load(file, num_fewshot=2).items()
    for _ in range(2):
        lm_eval.score(*tiny, name, loaded, limit=2)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [a.tolist() for a in first] == [b.tolist() for b in second]
    assert all(tiny[1].decode(a[0]).count("Question:") == 3 for a in first)
    # A task that says 0 keeps to it, as in lm-eval.
    [loaded] = load(task(folder, "bare", num_fewshot=0), num_fewshot=2).values()
    assert loaded["tasks"]["bare"].get_config("num_fewshot") == 0


def test_progress_is_told_in_requests(tiny: tuple[Any, Any], folder: Path) -> None:
    told: list[tuple[int, int]] = []
    score(tiny, folder / "quiz.yaml", batch_size=1, on_progress=lambda *at: told.append(at))
    requests = sum(len(row["choices"]) for row in ROWS)
    assert told == [(8, requests), (16, requests), (requests, requests)]


def test_a_tag_or_group_has_one_score_or_those_of_its_members(
    tiny: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    files = {"data_files": str(folder / "rows.jsonl")}
    for name, text in (("asks", "{{question}}"), ("answers", CHOICE["doc_to_text"])):
        task(folder, name, dataset_kwargs=files, doc_to_text=text, tag="pair",
             metric_list=[{"metric": "acc"}])  # fmt: skip
    both: dict[str, Any] = {"group": "both", "task": ["asks", "answers"]}
    (folder / "both.yaml").write_text(yaml.safe_dump(both))
    both |= {"group": "whole", "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "whole.yaml").write_text(yaml.safe_dump(both))
    outer = {"group": "outer", "task": ["both", "quiz"]}
    (folder / "outer.yaml").write_text(yaml.safe_dump(outer))
    task(folder, "quiz", dataset_kwargs=files)
    # lm-eval's list, of these files in place of its own.
    known = TaskManager(include_defaults=False, include_path=folder)
    monkeypatch.setattr(lm_eval_tasks, "_manager", lambda _: known)
    members = load(Path("both"))
    assert list(members) == ["asks", "answers"]
    assert sorted(load(Path("pair"))) == ["answers", "asks"]
    assert list(load(Path("outer"))) == ["asks", "answers", "quiz"]
    each = [lm_eval.score(*tiny, name, loaded).score for name, loaded in members.items()]
    assert each[1] == pytest.approx(by_hand(tiny, ROWS, normalized=False))
    [(name, loaded)] = load(Path("whole")).items()
    found = lm_eval.score(*tiny, name, loaded)
    assert (found.metric, found.rows) == ("acc", 2 * len(ROWS))
    assert found.score == pytest.approx(sum(each) / 2)
    ids = [item["id"] for item in found.items]
    assert ids[:2] == ["answers:0", "answers:1"] or ids[:2] == ["asks:0", "asks:1"]
    assert len(set(ids)) == 2 * len(ROWS)


def test_requests_are_routed_by_their_context(tiny: tuple[Any, Any], folder: Path) -> None:
    """Each document is answered by the adapter that its question is routed to."""
    from word_router import Words

    from perdure.models import adapter_lists
    from perdure.models.adapters import attach_lora
    from perdure.recipe.schema import LoraConfig
    from perdure.scoring.routed import Routed

    model = attach_lora(tiny[0], LoraConfig(r=2)).eval()
    adapter_lists.add(model, "second")
    words = {"red?": "default", "wet?": "second", "barks?": "second"}
    passes: list[tuple[bool, tuple[str, ...], list[str]]] = []

    def note(_: Any, args: Any, options: Any) -> None:
        ids = options.get("input_ids", args[0] if args else None)
        off = model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters
        passes.append((off, adapter_lists.active(model), tiny[1].batch_decode(ids)))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    [(name, loaded)] = load(folder / "quiz.yaml").items()
    lm_eval.score(model, tiny[1], name, loaded, routed=Routed(Words(words), []))
    hook.remove()
    seen: dict[str, set[Any]] = {}
    for off, active, texts in passes:
        for text in texts:
            if "Question" in text:
                question = text.partition("Question: ")[2].partition("\n")[0]
                seen.setdefault(question, set()).add(None if off else active)
    chosen = [("default",), ("second",), ("second",), None, None, None, None]
    assert seen == {r["question"]: {c} for r, c in zip(ROWS, chosen, strict=True)}
    assert adapter_lists.active(model) == ("default",)


def test_only_the_bars_of_lm_eval_are_hidden(
    tiny: tuple[Any, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets
    from lm_eval.api import task as lm_eval_task
    from tqdm import tqdm

    begin = vars(tqdm)["__init__"]
    rolling = task(
        folder, "prose", output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{question}}", doc_to_choice=None,
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    writing = task(
        folder, "write", output_type="generate_until", doc_to_text="{{question}}",
        doc_to_target="{{gold}}", doc_to_choice=None, metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\x00"], "max_gen_toks": 1, "do_sample": False},
    )  # fmt: skip
    for file in (folder / "quiz.yaml", rolling, writing):
        score(tiny, file)
    assert capsys.readouterr() == ("", "")

    def own(*_: int) -> None:  # as a user's code that is called while we score
        list(tqdm(range(3), desc="mine"))

    score(tiny, folder / "quiz.yaml", on_progress=own)
    shown = capsys.readouterr().err
    assert "mine: 100%" in shown
    assert "Running" not in shown
    own()
    assert "mine: 100%" in capsys.readouterr().err
    assert vars(tqdm)["__init__"] is begin
    # Who uses lm-eval beside us sees its bars as before.
    assert lm_eval_task.tqdm is tqdm
    assert not datasets.are_progress_bars_disabled()


def test_a_file_may_include_another_and_name_functions(tiny: tuple[Any, Any], folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    (below / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    (folder / "asking.py").write_text(
        "def text(doc):\n    return f\"Question: {doc['question']}\\nAnswer:\"\n"
    )
    text = task(folder, "quiz", doc_to_text=None).read_text()
    (folder / "quiz.yaml").write_text(text + "doc_to_text: !function asking.text\n")
    file = below / "short.yaml"
    file.write_text("include: ../quiz.yaml\ntask: short\n")
    found = score(tiny, file)
    assert found.rows == 4  # of the file beside it
    assert found.score == pytest.approx(by_hand(tiny, ROWS[:4], normalized=True))
    (folder / "quiz.yaml").write_text(text + "doc_to_text: !function no_such_module.text\n")
    with pytest.raises(UsageError, match="the task file is broken: Cannot import module 'no_such"):
        load(file)


def test_a_file_may_name_a_class_of_its_own(tiny: tuple[Any, Any], folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from lm_eval.api.task import ConfigurableTask\n"
        f"CONFIG = {dict(CHOICE, dataset_kwargs={'data_files': str(folder / 'rows.jsonl')})!r}\n"
        "class Mine(ConfigurableTask):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config=dict(CONFIG, task=config['task']))\n"
    )
    file = folder / "mine.yaml"
    file.write_text("task: mine\nclass: !function mine.Mine\n")
    [(name, loaded)] = load(file).items()
    assert (name, type(loaded["tasks"]["mine"]).__name__) == ("mine", "Mine")
    assert lm_eval.score(*tiny, name, loaded).score == pytest.approx(
        by_hand(tiny, ROWS, normalized=True)
    )


# --- recipes


def recipe(folder: Path, model: Path, **changes: Any) -> Path:
    changes.setdefault("train__epochs", 1)
    changes.setdefault("general", {"held_out_rows": 4, "replay_rows": 6, "max_tokens": 32,
                                   "tasks": ["./quiz.yaml"], "limit": 4})  # fmt: skip
    return write_recipe(folder, model, **changes)


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [line.replace(f"{path.parent}/", "") for line in str(caught.value).split("\n")[:-1]]


def test_a_second_run_of_one_process_reads_what_a_task_file_says_now(
    folder: Path, tiny_model_dir: Path
) -> None:
    """Nothing keeps the tasks but what a run prepared: a file may change between two runs."""
    read = load_recipe(recipe(folder, tiny_model_dir))
    found = [_first_request(prepare(read).lm_eval_tasks["quiz"])]
    task(folder, "quiz", doc_to_text="Say: {{question}}")
    found.append(_first_request(prepare(read).lm_eval_tasks["quiz"]))
    (folder / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    found.append(_first_request(prepare(read).lm_eval_tasks["quiz"]))
    assert found == [
        "Question: What is red?\nAnswer:", "Say: What is red?", "Say: Who barks?",
    ]  # fmt: skip


def _first_request(loaded: Any) -> str:
    [asks] = loaded["tasks"].values()
    return str(asks.doc_to_text(next(iter(asks.test_docs()))))


def test_a_list_stands_for_tasks_and_no_text(
    folder: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(folder, tiny_model_dir, general=["quiz.yaml"])
    monkeypatch.chdir(folder.parent)
    read = load_recipe(path, ["general.limit=2"])
    assert read.general is not None
    assert (read.general.source, read.general.limit) == ("none", 2)
    assert read.general.tasks == [str(folder / "quiz.yaml")]
    assert build_stream(read.stream, read.general, read.folder, 0).general.held_out == ()
    whole = load_recipe(path, ["general=[shop/quiz.yaml]"])  # from the current folder
    assert whole.general is not None
    assert whole.general.tasks == [str(folder / "quiz.yaml")]
    copy = folder / "copy.yaml"
    copy.write_text(dump_recipe(read))
    assert load_recipe(copy, ["name=recipe"]) == read
    data = {**read.model_dump(), "method": "sequential", "general": ["mmlu"]}
    assert Recipe.model_validate(data).general == general(Path("mmlu"))


def test_text_is_as_before_where_tasks_are_added(folder: Path, tiny_model_dir: Path) -> None:
    read = load_recipe(recipe(folder, tiny_model_dir))
    assert read.general is not None
    assert read.general.source == "pydoc"
    assert len(build_stream(read.stream, read.general, read.folder, 0).general.held_out) == 4


def test_mistakes_are_told_at_their_line(folder: Path, tiny_model_dir: Path) -> None:
    path = recipe(folder, tiny_model_dir)
    text = yaml.safe_dump(json.loads(path.read_text()) | {"general": None}).replace(
        "general: null",
        "general:\n- helaswag\n- ./quiz.yaml\n- gone.yaml\n- broken.yaml\n- nameless.yaml\n"
        "- again.yaml\n- hellaswag",
    )
    path.write_text(text)
    line = text.split("\n").index("- helaswag") + 1
    (folder / "broken.yaml").write_text("a: [1\n")
    (folder / "nameless.yaml").write_text("dataset_path: json\n")
    (folder / "again.yaml").write_text("task: quiz\n")
    told = mistakes(path)
    place = [f"recipe.yaml:{line + i}: general.tasks.{i}: " for i in range(7)]
    assert told[:4] == [
        place[0] + 'no lm-eval task is called "helaswag"',
        '  did you mean "hellaswag"? all of them: lm-eval ls tasks',
        place[2] + "no such file: gone.yaml",
        '  did you mean "again.yaml"?',
    ]
    assert told[4].startswith(place[3] + "the task file is broken: while parsing")
    assert told[5:] == [
        "  see lm-eval's guide",
        place[4] + "the file is not of one task",
        "  begin it with task: NAME",
        place[5] + '"quiz" comes twice',
        "  give the task file's task another name",
    ]


def test_who_scores_no_tasks_of_lm_eval_does_not_ask_for_them(
    folder: Path, tiny_model_dir: Path
) -> None:
    path = recipe(folder, tiny_model_dir, general=["helaswag"])
    read = load_recipe(path, tasks_only=True)  # as an audit does
    with pytest.raises(UsageError) as caught:
        lm_eval_tasks.load(read.general)  # as `perdure eval` does
    assert str(caught.value).split("\n") == [
        'general.tasks.0: no lm-eval task is called "helaswag"',
        '  did you mean "hellaswag"? all of them: lm-eval ls tasks',
    ]


def test_settings_without_tasks_and_entries_that_are_no_text(
    folder: Path, tiny_model_dir: Path
) -> None:
    path = recipe(folder, tiny_model_dir, general={"limit": 3, "num_fewshot": 1})
    told = mistakes(path)
    assert [line.partition(": general.")[2] for line in told[::2]] == [
        "limit: has no effect without tasks",
        "num_fewshot: has no effect without tasks",
    ]
    path = recipe(folder, tiny_model_dir, general=[3])
    assert mistakes(path)[0].endswith(': general.tasks.0: no lm-eval task is called "3"')
    path = recipe(folder, tiny_model_dir, general=[["quiz.yaml"]])
    assert "general.tasks.0: must be a string" in mistakes(path)[0]
    path = recipe(folder, tiny_model_dir, general=[])
    assert mistakes(path)[0].endswith("general: must be a section of `key: value` lines")


def test_a_missing_package_is_told(
    folder: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(folder, tiny_model_dir)
    read = load_recipe(path)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else real(name, *a)
    )
    assert mistakes(path) == [
        "recipe.yaml:1: general.tasks: lm-eval is not installed",
        "  pip install perdure[general]",
    ]
    with pytest.raises(UsageError, match=r"general\.tasks: lm-eval is not installed"):
        lm_eval_tasks.load(read.general)
    assert load_recipe(path, check_files=False).general == read.general  # a report needs no lm-eval


def test_what_cannot_be_read_is_told_before_weights_are_loaded(
    folder: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure import models

    monkeypatch.setattr(models, "load_base", None)  # would be called
    task(folder, "quiz", dataset_kwargs={"data_files": "nowhere.jsonl"})
    path = recipe(folder, tiny_model_dir)
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(folder / "out")])
    assert result.exit_code == 2
    first, *rest = result.output.strip().split("\n")[-3:]
    assert first.startswith(f"error: {path}:1: general.tasks: {folder / 'quiz.yaml'}: ")
    assert "nowhere.jsonl" in first
    assert rest == [
        "  check the task file, and the data that it names", "  nothing was loaded or written",
    ]  # fmt: skip
    assert not (folder / "out").exists()
    with pytest.raises(UsageError, match="runs code that the model writes"):
        load(task(folder, "coder", unsafe_code=True))


def test_data_that_are_broken_are_told_once_with_their_cause(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`datasets` logs the cause, and raises an error that only says that there was one."""
    (folder / "rows.jsonl").write_text("[")
    level = logging.getLogger("datasets").level
    with pytest.raises(UsageError, match=r"generating the dataset: Expected object"):
        load(folder / "quiz.yaml")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("datasets").level == level


# --- runs


@pytest.fixture
def made(folder: Path, tiny_model_dir: Path) -> Run:
    """A finished run of two tasks with perplexity and the quiz."""
    read = load_recipe(recipe(folder, tiny_model_dir))
    run = Run.create(folder / "run", read)
    learn(read, run)
    return run


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]


def test_a_run_records_the_base_model_and_each_task_once(
    made: Run, tiny: tuple[Any, Any], folder: Path
) -> None:
    found = [line for line in lines(made) if line["kind"] == "general"]
    assert [(line["after"], line.get("task"), line["metric"]) for line in found] == [
        (after, *rest)
        for after in range(3)
        for rest in ((None, "perplexity"), ("quiz", "acc_norm"))
    ]
    base = found[1]
    assert base["score"] == pytest.approx(by_hand(tiny, ROWS[:4], normalized=True))
    assert (base["rows"], base["higher_is_better"], base["filter"]) == (4, True, "none")
    # Going on with a finished run scores nothing again.
    before = lines(made)
    (made.path / "finished").unlink()
    learn(made.recipe, Run.open(made.path))
    assert lines(made) == before
    # A run that was killed before the quiz's last score makes up for just that.
    (made.path / "finished").unlink()
    raw = (made.path / "scores.jsonl").read_text().splitlines(keepends=True)
    (made.path / "scores.jsonl").write_text("".join(raw[:-1]))
    learn(made.recipe, Run.open(made.path))
    again = lines(made)
    timeless = {"seconds": 0, "check": ""}
    assert [line | timeless for line in again] == [line | timeless for line in before]
    other = Run.create(folder / "other", made.recipe)
    other.take_over(made)
    taken = [s for s in other.scores() if s["kind"] == "general"]
    assert taken == [
        {k: v for k, v in line.items() if k not in ("check", "items")} for line in found[:2]
    ]
    # The items are those of the score, and are taken over with it.
    items = made.general_items(0, "quiz")
    assert [item["id"] for item in items] == ["0", "1", "2", "3"]
    assert sum(item["score"] for item in items) / 4 == pytest.approx(base["score"])
    assert other.general_items(0, "quiz") == items
    verify_scores(other)


def test_eval_shows_and_joins_scores(made: Run, folder: Path, tiny_model_dir: Path) -> None:
    result = CliRunner().invoke(app, ["eval", str(made.path), "--after", "1", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["task"]: row for row in json.loads(result.stdout)["scores"]}
    assert set(rows) == {"colour", "count", "quiz"}
    assert rows["quiz"]["kind"] == "general"
    assert rows["quiz"]["score"] == rows["quiz"]["recorded"]
    task(folder, "second", metric_list=[{"metric": "acc"}])
    elsewhere = folder / "elsewhere"
    other = recipe(elsewhere, tiny_model_dir, general=["../second.yaml"])
    text = other.read_text().replace('"name": "co', '"name": "new-co')
    other.write_text(text)
    arguments = ["eval", str(made.path), "--tasks", str(other), "--after", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "second" in result.stdout
    joined = [s for s in made.scores() if s.get("task") == "second"]
    assert [(s["kind"], s["after"], s["metric"]) for s in joined] == [("general", 0, "acc")]
    other.write_text(text.replace("../second.yaml", "../quiz.yaml"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "the run scores it with another limit or num_fewshot" in result.output


@pytest.mark.parametrize("method", ["lcia", "sequential"])
def test_a_run_and_eval_ask_by_the_runs_router(
    folder: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked: list[Any] = []
    score_one = lm_eval.score

    def noted(*args: Any, routed: Any, **options: Any) -> lm_eval.HarnessScore:
        asked.append(routed)
        return score_one(*args, routed=routed, **options)

    monkeypatch.setattr(lm_eval, "score", noted)
    path = recipe(folder, tiny_model_dir, method=method, model__tuning="lora",
                  train__max_steps=1, general=["quiz.yaml"], gauges={"every": 0})  # fmt: skip
    read = load_recipe(path)
    run = Run.create(folder / "run", read)
    learn(read, run)
    result = CliRunner().invoke(app, ["eval", str(run.path), "--json"])
    assert result.exit_code == 0, result.output
    assert len(asked) == 4  # before and after each task, and by `eval`
    if method == "sequential":
        assert asked == [None] * 4
        return
    assert asked[0] is None  # there is no group before the first task
    groups = [[g.name for g in one.router.codebook.groups] for one in asked[1:]]
    assert groups == [["colour"], ["colour", "count"], ["colour", "count"]]


def test_check_names_the_tasks(folder: Path, tiny_model_dir: Path) -> None:
    path = recipe(folder, tiny_model_dir)
    result = CliRunner().invoke(app, ["run", str(path), "--check"])
    assert result.exit_code == 0, result.output
    assert "general ability by lm-eval: quiz\n" in result.stdout
    assert "without lm-eval and what methods add" in result.stdout.replace("  ", " ")


@pytest.mark.process
def test_two_processes_get_the_scores_of_one(folder: Path, tiny_model_dir: Path) -> None:
    path = recipe(folder, tiny_model_dir, train__max_steps=1, general=["quiz.yaml"],
                  scoring__batch_size=1)  # fmt: skip
    read = load_recipe(path)
    learn(read, Run.create(folder / "alone", read))
    run_command(
        ["run", str(path), "--out", str(folder / "together"), "--trust-remote-code"], processes=2
    )
    one, two = scores(folder / "alone"), scores(folder / "together")
    assert one[0, "quiz"] == two[0, "quiz"]
    assert set(one) == set(two)
    told = [line.get("task") for line in lines(Run.open(folder / "together"))]
    assert told.count("quiz") == 3


# --- reports


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two runs with invented scores: one loses on the quiz, the other does not."""
    found = []
    for method, ends in (("sequential", (0.8, 0.6, 0.5, 0.2)), ("replay", (0.8, 0.8, 0.78, 0.79))):
        run = make_run(tmp_path / method, method)
        quiz = [
            {"kind": "general", "after": after, "task": name, "metric": metric,
             "higher_is_better": better, "score": scale * score, "rows": 400, "seconds": 1.0}
            for after, score in enumerate(ends)
            for name, metric, better, scale in
            (("quiz", "acc_norm", True, 1), ("wiki", "word_perplexity", False, 100),
             ("translate", "bleu", True, 30))
        ]  # fmt: skip
        write_lines(run.path / "scores.jsonl", [*lines(run), *quiz])
        found.append(run)
    return found


def test_a_change_is_paired_by_item_where_a_run_kept_them(tmp_path: Path) -> None:
    """4 of 200 right answers lost: two samples of 200 show nothing, the same 200 do."""
    found = {}
    for kept in (False, True):
        run = make_run(tmp_path / f"run-{kept}", matrix=[[0.5], [0.5]], tasks=["a"])
        for after, lost in ((0, 0), (1, 4)):
            items = [{"id": str(i), "score": float(lost <= i < 100)} for i in range(200)]
            line = {"kind": "general", "after": after, "task": "quiz", "metric": "acc",
                    "higher_is_better": True, "score": (100 - lost) / 200, "rows": 200}  # fmt: skip
            run.record(line, items if kept else [])
        (view,) = views([run])
        ((task, _),) = view.general_tasks
        found[kept] = view.evidence.harness_change(task, (0, 0.5), (1, 0.48))
        ((row,),) = [group["rows"] for group in changes([view]) if group["task"] == "quiz"]
        assert row["interval"]
    assert not found[False].paired
    assert found[True].paired
    assert found[False].low < -0.09
    # Clopper and Pearson's limit for 4 lost of 200, at 2.5 %: scipy.stats.beta.ppf(.975, 5, 196).
    assert found[True].low == pytest.approx(-0.0504, abs=0.002)
    assert found[True].high < 0.01


def test_perplexity_stays_the_line_without_task(runs: list[Run]) -> None:
    view = views(runs)[0]
    assert view.general == (23.4, 24.0, 24.4, 24.9)
    assert [(task.name, scores) for task, scores in view.general_tasks if task.rows][:1] == [
        ("quiz", (0.8, 0.6, 0.5, 0.2))
    ]
    assert [task.name for task in view.tasks] == ["topic", "language", "german-names"]
    assert view.unseen == ()


def test_terminal_shows_before_and_after(runs: list[Run]) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    score_table(runs, console)
    text = console.export_text()
    assert "General ability: base model → now" in text
    [quiz] = [line.split() for line in text.split("\n") if "quiz" in line]
    assert quiz == ["quiz", "(acc_norm)", "0.80", "→", "0.20", "0.80", "→", "0.79"]
    assert "wiki ↓ (word_perplexity)" in text
    [both] = [line for line in text.split("\n") if "F1 Avg" in line]
    assert both.split()[-6:] == ["0.29", "→", "0.32", "0.29", "→", "0.80"]


def test_f1_average_of_general_and_downstream(runs: list[Run], tmp_path: Path) -> None:
    # M24 of the notes on GeRe: two rows of the paper's table.
    assert f1_average([60.7155], [74.0817]) == pytest.approx(66.735918, abs=1e-6)
    assert f1_average([66.2539], [64.4417]) == pytest.approx(65.335236, abs=1e-6)
    assert f1_average([0.2, 0.4], [0.6]) == pytest.approx(0.4)  # 2 * 0.3 * 0.6 / 0.9
    assert math.isnan(f1_average([0.2, math.nan], [0.6]))
    # Of the quiz alone: 0.8 with a mean of 0.17667, then 0.2 with 0.81667.
    before, after = f1_before_after(views(runs)[0]) or (0.0, 0.0)
    assert (before, after) == pytest.approx((0.28942, 0.32131), abs=1e-5)
    assert f1_before_after(views([make_run(tmp_path / "none")])[0]) is None
    perplexity = make_run(tmp_path / "ppl", metrics={"topic": "perplexity"})
    write_lines(perplexity.path / "scores.jsonl", [*lines(perplexity), *quiz_lines(runs[0])])
    assert f1_before_after(views([perplexity])[0]) is None


def quiz_lines(run: Run) -> list[dict[str, Any]]:
    return [line for line in lines(run) if line.get("task") == "quiz"]


def test_page_shows_the_tasks_over_time_and_a_verdict(runs: list[Run]) -> None:
    text = render(runs)
    assert "lm-eval tasks, before and after" in text
    assert "sequential, after 3 tasks: 0.20" in text
    part = text[text.index("lm-eval tasks, before and after") :]
    quiz, wiki, translate = part.split('scope="rowgroup"')[1:4]
    assert quiz.count("▼ lost") == 1
    assert quiz.count("too few rows to tell") == 1
    assert "−0.60" in quiz
    # 80 to 20, where less is better: without its items nothing bounds such a score.
    assert "the run did not keep what it was made of" in wiki
    assert "▲" not in wiki + translate
    assert "▼" not in translate.partition("</table>")[0]
    both = part.split('scope="rowgroup"')[4]
    assert "F1 Avg" in both
    assert "+0.03" in both


def test_unfinished_and_older_runs_are_shown(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old")
    assert views([old])[0].general_tasks == ()
    assert "lm-eval" not in render([old])
    new = make_run(tmp_path / "new", general=())
    quiz = [{"kind": "general", "after": 0, "task": "quiz", "metric": "acc",
             "higher_is_better": True, "score": 0.5, "rows": 8, "seconds": 1.0}]  # fmt: skip
    write_lines(new.path / "scores.jsonl", [*lines(new), *quiz])
    text = render([old, new])
    assert text.count('id="general"') == 1
    result = CliRunner().invoke(
        app, ["compare", str(new.path), "--json", "--out", str(tmp_path / "c.html")]
    )
    assert json.loads(result.stdout)["runs"][0]["general_tasks"] == {
        "quiz": {"metric": "acc", "scores": [0.5, None, None, None], "change": None}
    }


def test_the_list_is_told_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt name asks for lm-eval's whole list, which takes many seconds."""
    said: list[str] = []
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda include_defaults: said.extend(caplog.messages)
    )
    with caplog.at_level("WARNING", logger="perdure"):
        lm_eval_tasks._manager.__wrapped__(True)
    assert said == ["reading lm-eval's list of tasks, to look names up: it takes some seconds"]


def test_a_row_of_ones_own_that_lm_eval_cannot_ask_is_told_at_load(folder: Path) -> None:
    rows = [*ROWS[:2], {**ROWS[2], "choices": None}, *ROWS[3:]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UsageError, match=r"general\.tasks: quiz: document 3: lm-eval cannot ask it: TypeError: "
    ) as told:
        load(folder / "quiz.yaml")
    assert "row" in str(told.value.remedy)
