"""`perdure predict` and `perdure.load_predictor`: rows without labels, answered as they are scored.

What is compared with is what the run recorded of its own test rows.
"""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import CLASSES, save_encoder, write_class_recipe
from tiny_runs import write_recipe
from typer.testing import CliRunner, Result

import perdure
from perdure.cli import app
from perdure.errors import PerdureError, RecipeError, UsageError
from perdure.run import Run, item_files
from perdure.scoring.answers import ranked

pytestmark = pytest.mark.train


def learned(recipe: Path, out: Path) -> Path:
    loaded = perdure.load_recipe(recipe)
    perdure.learn(loaded, Run.create(out, loaded))
    return out


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks of two classes, whose files call the text "utterance"."""
    folder = tmp_path_factory.mktemp("intents")
    recipe = write_class_recipe(folder / "data", save_encoder(folder / "model"))
    said = json.loads(recipe.read_text())
    said["stream"]["data"]["columns"] = {"text": "utterance"}
    recipe.write_text(json.dumps(said))
    for file in (folder / "data").glob("*.jsonl"):
        file.write_text(file.read_text().replace('"text"', '"utterance"'))
    out = learned(recipe, folder / "run")
    for file in (folder / "data").glob("*.jsonl"):
        file.unlink()  # the run directory is enough
    return out


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run of a labelled task, one of conversations and one of free answers, which is the last;
    each has an instruction."""
    folder = tmp_path_factory.mktemp("texts")
    recipe = write_recipe(folder / "data", tiny_model_dir, train__max_steps=3)
    said = json.loads(recipe.read_text())
    tasks = said["stream"]["tasks"]
    tasks[0]["instruction"] = "Say the colour."
    tasks[1] |= {"instruction": "Count.", "format": "prompt", "metric": "exact_match",
                 "columns": {"prompt": "text", "answer": "label"}, "max_new_tokens": 6}  # fmt: skip
    rows = [
        {
            "messages": [
                {"role": role, "content": f"talk {i} {role}"} for role in ("user", "assistant")
            ]
        }
        for i in range(8)
    ]
    (folder / "data" / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.insert(1, {"name": "talk", "format": "chat", "train": "talk.jsonl", "max_new_tokens": 4,
                     "instruction": "Talk."})  # fmt: skip
    recipe.write_text(json.dumps(said))
    return learned(recipe, folder / "run")


def typed(*words: Any) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def lines(*words: Any) -> list[dict[str, Any]]:
    found = typed(*words)
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


def bare(run: Path, after: int, task: str, file: Path, column: str = "utterance") -> Path:
    """The test rows of a task without their labels."""
    rows = [
        {column: item["prompt"], "id": i} for i, item in enumerate(Run.open(run).items(after, task))
    ]
    if file.suffix == ".txt":
        file.write_text("".join(row[column] + "\n" for row in rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        with open(file, "w", newline="") as handle:
            sign = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(handle, [column, "id"], delimiter=sign)
            writer.writeheader()
            writer.writerows(rows)
    return file


# --- classes


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_answers_are_what_the_run_recorded(intents: Path, tmp_path: Path, ending: str) -> None:
    run = Run.open(intents)
    for after, task in ((3, "task 1"), (2, "task 2")) if ending == ".csv" else ((3, "task 3"),):
        found = lines(
            intents, bare(intents, after, task, tmp_path / f"rows{ending}"), "--after", after
        )
        items = run.items(after, task)
        assert [line["class"] for line in found] == [item["prediction"] for item in items]
        assert [line["text"] for line in found] == [item["prompt"] for item in items]
        for line in found:
            assert list(line) == ["text", "class", "score", "best"]
            assert line["best"][0]["class"] == line["class"]
            assert len(line["best"]) == 3
            shares = [b["score"] for b in line["best"]]
            assert shares == sorted(shares, reverse=True)
            assert 1 / (2 * after) <= line["score"] == shares[0] < 1


def test_the_share_is_that_of_the_softmax_by_hand(intents: Path) -> None:
    """Logits of all six classes by the saved tensors, and of one task's two."""
    predict = perdure.load_predictor(intents)
    within = perdure.load_predictor(intents, task="task 1")
    model: Any = predict.learner.model.eval()
    ids = torch.tensor([predict.learner.tokenizer("xq hello")["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    wanted = logits.softmax(-1)
    (found,) = predict(["xq hello"])
    assert found["class"] == CLASSES[int(wanted.argmax())]
    assert found["score"] == pytest.approx(float(wanted.max()), abs=1e-6)
    (one,) = within(["xq hello"])
    assert one["score"] == pytest.approx(float(logits[:2].softmax(-1).max()), abs=1e-6)
    assert {b["class"] for b in one["best"]} == set(CLASSES[:2])


@pytest.mark.unit
def test_ranked_by_hand() -> None:
    """exp 2 : exp 1 : exp 0 : exp 1 = .5344 : .1966 : .0723 : .1966; the first of equals counts."""
    found = ranked("class", ["a", "b", "c", "d"], torch.tensor([2.0, 1.0, 0.0, 1.0]))
    assert [b["class"] for b in found["best"]] == ["a", "b", "d"]
    assert found["class"] == "a"
    assert [b["score"] for b in found["best"]] == pytest.approx(
        [0.53444, 0.19661, 0.19661], abs=1e-5
    )


def test_records_texts_and_rows_without_text(intents: Path, tmp_path: Path) -> None:
    predict = perdure.load_predictor(intents, after=1)
    one, two, three = predict(["zk a", {"utterance": "zk a"}, {"utterance": " "}])
    # Two rows of one batch may be rounded otherwise.
    assert (one["text"], one["class"]) == (two["text"], two["class"])
    assert one["score"] == pytest.approx(two["score"], abs=1e-6)
    assert {b["class"] for b in one["best"]} == set(CLASSES[:2])
    assert three == {"text": "", "class": None}
    with pytest.raises(RecipeError, match='text 1: no column "utterance"'):
        predict([{"words": "zk a"}])
    (tmp_path / "rows.txt").write_text("zk a\n\nxq b\n")
    assert [line["class"] is None for line in lines(intents, tmp_path / "rows.txt")] == [
        False, True, False,
    ]  # fmt: skip


def test_python_hears_nothing(intents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bar and no warning of a library while weights are loaded and nobody listens."""
    from transformers.utils import logging as transformers

    from perdure import predictor

    load, seen = predictor._learner, []

    def spy(*given: Any) -> Any:
        seen.append((transformers.is_progress_bar_enabled(), transformers.get_verbosity()))
        return load(*given)

    monkeypatch.setattr(predictor, "_learner", spy)
    transformers.enable_progress_bar()
    assert len(perdure.load_predictor(intents)(["alpha"])) == 1
    assert seen == [(False, transformers.ERROR)]
    assert transformers.is_progress_bar_enabled()


def test_a_task_incremental_run_asks_the_last_task(tmp_path: Path) -> None:
    recipe = write_class_recipe(
        tmp_path / "data", save_encoder(tmp_path / "model"), stream__scenario="task-incremental",
        method={"name": "seq_star", "warmup_epochs": 0},
    )  # fmt: skip
    run = learned(recipe, tmp_path / "run")
    rows = bare(run, 3, "task 1", tmp_path / "rows.csv", "text")
    recorded = [item["prediction"] for item in Run.open(run).items(3, "task 1")]
    assert [line["class"] for line in lines(run, rows, "--task", "task 1")] == recorded
    assert {line["class"] for line in lines(run, rows)} <= set(CLASSES[4:])


def test_a_file_of_answers(intents: Path, tmp_path: Path) -> None:
    rows, out = bare(intents, 3, "task 1", tmp_path / "rows.csv"), tmp_path / "answers.jsonl"
    told = typed(intents, rows, "--out", out)
    assert told.exit_code == 0
    assert told.stdout == f"answers: {out}\n"
    assert [json.loads(x) for x in out.read_text().splitlines()] == lines(intents, rows)
    again = typed(intents, rows, "--out", out)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_a_full_disk_does_not_take_the_answers_along(
    intents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new.txt"
    file.write_text("one a\ntwo b\n")

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("perdure.files.write_atomic", full)
        told = typed(intents, file, "--out", tmp_path / "answers.jsonl")
    assert told.exit_code == 5
    assert f"error: {tmp_path}/answers.jsonl: no space left on the disk" in told.stderr
    assert [json.loads(line) for line in told.stdout.splitlines()] == lines(intents, file)


def test_mistakes_are_told_before_weights(
    intents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.learners.build_saved", None)
    (tmp_path / "rows.csv").write_text("words,id\nzk a,1\n")
    (tmp_path / "rows.xls").write_text("")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "many.jsonl").write_text("".join(f"{' ' * n}x\n" for n in range(1, 20)))
    (tmp_path / "broken.jsonl").write_text('{"utterance": \n')
    (tmp_path / "list.jsonl").write_text('{"utterance": ["a"]}\n')
    rows = tmp_path / "rows.csv"
    for words, code, said in (
        ((intents, rows), 2, 'no column "utterance"'),
        ((intents, rows), 2, "--column NAME"),
        ((intents, tmp_path / "gone.csv"), 2, "no such file"),
        ((intents, tmp_path / "pipe.csv"), 2, "pipe.csv: is a pipe, not a file"),
        ((intents, rows, "--out", rows / "a.jsonl"), 2, f"{rows} is a file, not a folder"),
        ((intents, tmp_path / "many.jsonl"), 2, "they are listed once these are mended"),
        ((intents, tmp_path / "rows.xls"), 2, 'ending in ".xls" are not read'),
        ((intents, tmp_path / "broken.jsonl"), 2, "broken.jsonl:1: broken JSON"),
        ((intents, tmp_path / "list.jsonl"), 2, "list.jsonl:1"),
        ((intents, tmp_path / "list.jsonl"), 2, "no task of this run reads lists of messages"),
        ((intents, rows, "--task", "task 9"), 2, 'the run has no task "task 9"'),
        ((intents, rows, "--task", "task 2", "--after", 1), 2, "has not learned it"),
        ((intents, rows, "--after", 0), 2, "no class was learned after 0 tasks"),
        ((intents, rows, "--after", 7), 4, "has no model after 7 tasks"),
        ((tmp_path / "none", rows), 4, "not found"),
    ):
        told = typed(*words)
        assert (told.exit_code, told.stdout) == (code, ""), told.output
        assert said in told.stderr


def test_another_column(intents: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("words,id\nzk a,1\n")
    found = lines(intents, tmp_path / "rows.csv", "--column", "words")
    assert found == perdure.load_predictor(intents)(["zk a"])


def test_a_classifier_is_audited_by_the_rows_that_its_run_keeps(intents: Path) -> None:
    """Audit of two models refuses tasks of classes, and says what to give instead: that works."""
    from perdure.audit.plan import plan_measures
    from perdure.run.kept import kept_tasks

    run = Run.open(intents)
    with pytest.raises(UsageError, match=r"task 1 is of classes.*\n.*--scores RUN/items/after-1-"):
        plan_measures(("tasks",), kept_tasks(run, 3), (), None)
    files = [item_files.path(intents, "task", after, "task 1") for after in (1, 3)]
    words = ["audit", "--scores", *map(str, files), "--max-drop", "0.9", "--json"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code in (0, 1, 3), told.output
    (measure,) = json.loads(told.stdout)["measures"]
    scores = [[item["score"] for item in run.items(after, "task 1")] for after in (1, 3)]
    assert [measure["base"], measure["tuned"]] == [sum(s) / len(s) for s in scores]


# --- text


def test_a_labelled_task_by_likelihood(texts: Path, tmp_path: Path) -> None:
    items = Run.open(texts).items(3, "colour")
    rows = bare(texts, 3, "colour", tmp_path / "rows.jsonl", "text")
    with_system = {item["prompt"] for item in items}
    assert all(prompt.startswith("system: Say the colour.") for prompt in with_system)
    plain = [json.loads(line) for line in rows.read_text().splitlines()]
    only = [{"text": row["text"].partition("user: ")[2]} for row in plain]
    rows.write_text("".join(json.dumps(row) + "\n" for row in only))
    found = lines(texts, rows, "--task", "colour")
    assert [line["answer"] for line in found] == [item["prediction"] for item in items]
    assert [line["text"] for line in found] == [row["text"] for row in only]
    for line in found:
        assert {b["answer"] for b in line["best"]} == {"red", "blue"}
        assert sum(b["score"] for b in line["best"]) == pytest.approx(1)
        assert line["score"] >= 0.5


def test_free_answers_are_written(texts: Path, tmp_path: Path) -> None:
    """The last task is asked, with its own instruction."""
    items = Run.open(texts).items(3, "count")
    asked = [item["prompt"].partition("user: ")[2] for item in items]
    (tmp_path / "rows.txt").write_text("".join(text + "\n" for text in asked))
    found = lines(texts, tmp_path / "rows.txt")
    assert found == [
        {"text": text, "answer": item["prediction"]}
        for text, item in zip(asked, items, strict=True)
    ]


def test_a_conversation_ends_in_what_is_asked(texts: Path) -> None:
    from perdure.recipe.data import TaskConfig
    from perdure.streams.unlabelled import Unlabelled

    form = Unlabelled(TaskConfig(name="t", format="chat", train="a.jsonl", instruction="Be short."))
    ask = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
           {"role": "user", "content": "c"}]  # fmt: skip
    asked = [{"role": "system", "content": "Be short."}, *ask]
    told = [*ask, {"role": "assistant", "content": "the label"}]
    for messages in (ask, told, json.dumps(ask)):
        (row,) = form.of_texts([{"messages": messages}])
        assert row is not None
        assert row["prompt"] == asked
    (row,) = form.of_texts(["c"])
    assert row is not None
    assert row["prompt"] == [asked[0], ask[2]]


def test_a_file_of_conversations_is_asked_as_a_task_that_reads_them(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last task reads texts; who names it, or a column of texts, is told which one does not."""
    file, turns = tmp_path / "talk.jsonl", [{"role": "user", "content": "talk"}]
    file.write_text("\n" + json.dumps({"messages": turns}) + "\n")
    (line,) = found = lines(texts, file)
    assert (list(line), line["text"]) == (["text", "answer"], "talk")
    assert f'{file}: "messages" holds lists of messages: answered as task talk' in caplog.text
    assert (
        found == lines(texts, file, "--task", "talk") == lines(texts, file, "--column", "messages")
    )
    # Of a row that also has the text, the text is asked.
    file.write_text(json.dumps({"messages": turns, "text": "zk"}) + "\n")
    assert lines(texts, file) == perdure.load_predictor(texts)(["zk"])
    remedy = 'lists of messages are read as another task: --task "talk"'
    file.write_text(json.dumps({"messages": turns}) + "\n")
    for words in (("--task", "count"), ("--task", "count", "--column", "messages")):
        told = typed(texts, file, *words)
        assert (told.exit_code, remedy in told.stderr) == (2, True), told.output
    with pytest.raises(RecipeError, match=remedy):
        perdure.load_predictor(texts)([{"text": turns}])


def test_relations_are_answered_as_they_were_learned(tmp_path: Path) -> None:
    """By markers in the text, or by both entities; a row without them is told."""
    rows = [
        {"tokens": f"so {i} Ann {name} Acme", "head": "Ann", "tail": "Acme", "label": name}
        for name in ("joined", "left", "founded", "sold") for i in range(6)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(save_encoder(tmp_path / "model")), "pooling": "entity_starts"},
        "stream": {"data": {"train": "rows.jsonl", "format": "relations", "tasks": 2}},
        "method": {"name": "seq_star", "warmup_epochs": 1},
        "train": {"epochs": 1, "precision": "fp32"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = learned(tmp_path / "recipe.yaml", tmp_path / "run")
    items = [
        json.loads(line)
        for file in sorted((run / "items").glob("after-2-*"))
        for line in file.read_text().splitlines()
    ]
    assert len(items) == 4
    predict = perdure.load_predictor(run)
    said = [item["prediction"] for item in items]
    assert [a["class"] for a in predict([item["prompt"] for item in items])] == said
    bare = tmp_path / "bare.jsonl"
    bare.write_text((tmp_path / "rows.jsonl").read_text())
    found = {a["text"]: a["class"] for a in predict.each(predict.file(bare))}
    assert [found[item["prompt"]] for item in items] == said
    for text, why in (("Ann left", "no markers"), ("[E11] Ann [E12] left", r"\[E21\] is missing")):
        with pytest.raises(RecipeError, match=why):
            predict([text])


def test_a_named_stream_of_relations_keeps_its_form(tmp_path: Path) -> None:
    """FewRel's rows are tokens and two entities: files to answer and to extend with are too."""

    def rows(pid: str, count: int = 10) -> list[dict[str, Any]]:
        return [
            {"tokens": ["In", f"{pid}-{i}", "Ann", pid, "Bob", "."],
             "h": ["ann", "Q1", [[2]]], "t": ["bob", "Q2", [[4]]]}
            for i in range(count)
        ]  # fmt: skip

    relations = [f"P{n}" for n in range(8)]
    folder = tmp_path / "fewrel"
    folder.mkdir()
    (folder / "val_wiki.json").write_text(json.dumps({pid: rows(pid) for pid in relations}))
    (folder / "pid2name.json").write_text(json.dumps({pid: [f"is {pid}"] for pid in relations}))
    recipe = {
        "model": {"path": str(save_encoder(tmp_path / "model")), "pooling": "entity_starts"},
        "stream": {"name": "fewrel", "folder": str(folder), "data": {"tasks": 2}},
        "method": {"name": "seq_star", "warmup_epochs": 0},
        "train": {"epochs": 1, "precision": "fp32"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = learned(tmp_path / "recipe.yaml", tmp_path / "run")
    items = [item for task in ("task 1", "task 2") for item in Run.open(run).items(2, task)]
    said = [item["prompt"] for item in items]
    data = tmp_path / "rows.jsonl"
    cells = [
        {"tokens": row["tokens"], "head": row["h"], "tail": row["t"], "label": "is new"}
        for pid in (*relations, "P8") for row in rows(pid)
    ]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in cells))
    found = {line["text"]: line["class"] for line in lines(run, data)}
    assert [found[text] for text in said] == [item["prediction"] for item in items]
    (tmp_path / "marked.txt").write_text("".join(text + "\n" for text in said))
    assert [line["text"] for line in lines(run, tmp_path / "marked.txt")] == said
    (tmp_path / "bare.txt").write_text("Ann met Bob\n")
    told = typed(run, tmp_path / "bare.txt")
    assert (told.exit_code, "the text has no markers" in told.stderr) == (2, True)
    data.write_text("".join(json.dumps(row) + "\n" for row in cells[-10:]))
    longer = CliRunner().invoke(
        app, ["extend", str(run), "--data", str(data), "--out", str(tmp_path / "longer")]
    )
    assert longer.exit_code == 0, longer.output
    for item in Run.open(tmp_path / "longer").items(3, "rows"):
        assert "[E11] Ann [E12] P8 [E21] Bob [E22]" in item["prompt"]
    bare = [{"tokens": row["tokens"], "head": "Ann", "tail": "Bob"} for row in rows("P8", 3)]
    for task in ("rows", "task 1"):
        ask = perdure.load_predictor(tmp_path / "longer", task=task)
        assert all("[E11] Ann" in answer["text"] for answer in ask(bare))


def test_a_text_too_long_for_the_model(texts: Path, tmp_path: Path) -> None:
    predict = perdure.load_predictor(texts)
    with pytest.raises(PerdureError, match=r"text 2: the text .* tokens, and the model reads"):
        predict(["word", "word " * 5000])
    for name in ("long.txt", "long.jsonl"):
        rows = ["word", "word " * 5000]
        said = rows if name.endswith("txt") else [json.dumps({"text": row}) for row in rows]
        (tmp_path / name).write_text("\n".join(said) + "\n")
        told = typed(texts, tmp_path / name)
        assert told.exit_code == 2, told.output
        assert f'error: {tmp_path / name}:2: the text "word word' in told.stderr


def test_an_unknown_task_in_python(texts: Path) -> None:
    with pytest.raises(UsageError, match='did you mean "count"'):
        perdure.load_predictor(texts, task="coumt")


def test_texts_that_are_cut_are_counted(
    intents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "long.csv"
    file.write_text("utterance\nxq now\n" + "xq " * 400 + "\nzk\n")
    found = typed(intents, file)
    assert found.exit_code == 0, found.output
    assert len(found.stdout.splitlines()) == 3
    assert "1 of 3 texts have more than 128 tokens: the end of the text is left out" in caplog.text
    caplog.clear()
    file.write_text("utterance\nxq now\n")
    typed(intents, file)
    assert "left out" not in caplog.text
