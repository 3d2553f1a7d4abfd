"""One labelled table cut into tasks by its classes, and each way in which that can go wrong."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import RecipeError
from perdure.prepare import load_recipe
from perdure.recipe.data import DataConfig, StreamConfig, TaskConfig
from perdure.streams import TaskStream, build_stream
from perdure.streams.classes import capped_by_class, class_order, dealt
from perdure.streams.rows import Placed
from perdure.streams.task import place_of

pytestmark = pytest.mark.unit

COUNTS = {"pay": 9, "hello": 6, "bye": 4, "card": 12, "loan": 5}
"""Rows of each class; in the file the classes take turns."""
ROWS = [
    {"utterance": f"{name} number {i}", "intent": name}
    for i in range(12)
    for name, count in COUNTS.items()
    if i < count
]
COLUMNS = {"text": "utterance", "label": "intent"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # messages name paths relative to the working folder


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows into the current folder, as the file's ending says."""
    path = Path(name)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            sign = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=sign)
            writer.writeheader()
            writer.writerows(rows)


def build(rows: list[dict[str, Any]] | None = None, seed: int = 0, **data: Any) -> TaskStream:
    """Cut a table, train.csv unless another one is named."""
    data = {"train": "train.csv", "columns": COLUMNS, **data}
    if "dataset" not in data:
        write(data["train"], ROWS if rows is None else rows)
    return build_stream(StreamConfig(data=DataConfig(**data)), None, Path(), seed)


def wrong(rows: list[dict[str, Any]] | None = None, **data: Any) -> list[str]:
    """Each mistake with its remedy."""
    with pytest.raises(RecipeError) as caught:
        build(rows, **data)
    return [str(mistake) for mistake in caught.value.mistakes]


def classes(stream: TaskStream) -> list[tuple[str, ...]]:
    return [task.labels for task in stream]


def labels(rows: Any) -> Counter[str]:
    return Counter(row["label"] for row in rows)


# ---- what is cut, and how


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_of_each_format(ending: str) -> None:
    stream = build(train=f"train{ending}", tasks=2)
    assert stream.scenario == "class-incremental"
    assert classes(stream) == [("pay", "hello", "bye"), ("card", "loan")]
    assert {task.kind for task in stream} == {"classification"}
    every = [row for task in stream for rows in (task.train, task.validation, task.test)
             for row in rows]  # fmt: skip
    assert labels(every) == COUNTS
    assert all(place_of(row).startswith(f"train{ending}:") for row in every)


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "intents"
    folder.mkdir(parents=True)
    write(str(folder / "train.jsonl"), ROWS)
    write(str(folder / "test.jsonl"), ROWS[:20])
    stream = build(dataset="owner/intents", train="train", test="test", tasks=5, max_train_rows=3)
    assert [len(task.labels) for task in stream] == [1] * 5
    # Caps go by class, so that the whole set is read, however few rows are kept.
    assert [len(task.train) for task in stream] == [3] * 5
    assert sum(len(task.test) for task in stream) == 20


def test_uneven_and_single_classes() -> None:
    assert dealt("abcdefg", 3) == [("a", "b", "c"), ("d", "e"), ("f", "g")]
    assert [len(names) for names in classes(build(tasks=3))] == [2, 2, 1]
    assert classes(build(tasks=5)) == [(name,) for name in COUNTS]
    assert classes(build(tasks=1)) == [tuple(COUNTS)]


def test_orders_of_the_classes() -> None:
    """By name is by casefolded code points, whatever the locale; equal ones by their own."""
    flat = [name for task in classes(build(tasks=5, order="alphabetical")) for name in task]
    assert flat == sorted(COUNTS)
    mixed = ["beta", "Alpha", "Zeta", "alpha", "\u00e9t\u00e9", "STRASSE b", "stra\u00dfe a"]
    table = DataConfig(train="train.csv", tasks=1, order="alphabetical")
    assert class_order(mixed, table) == [
        "Alpha", "alpha", "beta", "stra\u00dfe a", "STRASSE b", "Zeta", "\u00e9t\u00e9",
    ]  # fmt: skip
    flat = [name for task in classes(build(tasks=5, order="frequency")) for name in task]
    assert flat == ["card", "pay", "hello", "loan", "bye"]
    one, again = (classes(build(tasks=5, order_seed=1)) for _ in range(2))
    assert one == again != classes(build(tasks=5, order_seed=2))
    # The order of the file has no say, nor has the seed of the run.
    assert classes(build(ROWS[::-1], seed=7, tasks=5, order_seed=1)) == one


def test_listed_classes_and_those_that_come_again() -> None:
    tasks = [["loan", "bye"], ["card"], ["pay", "hello"]]
    assert classes(build(tasks=tasks)) == [tuple(task) for task in tasks]
    stream = build(tasks=[*tasks, ["card"]], repeat=True)
    assert stream.classes == {"loan": 0, "bye": 0, "card": 1, "pay": 2, "hello": 2}
    first, second = stream.tasks[1], stream.tasks[3]
    texts = [{row["text"] for row in [*t.train, *t.validation, *t.test]} for t in (first, second)]
    assert [len(some) for some in texts] == [6, 6]
    assert not texts[0] & texts[1]  # a row is learned once


def test_a_column_that_names_the_task() -> None:
    months = {"pay": "2024-01", "hello": "2024-02", "bye": "2024-01", "card": "2024-03",
              "loan": "2024-03"}  # fmt: skip
    rows = [{**row, "month": months[row["intent"]]} for row in ROWS]
    stream = build(rows, by="month")
    assert [task.name for task in stream] == ["2024-01", "2024-02", "2024-03"]
    assert classes(stream) == [("pay", "bye"), ("hello",), ("card", "loan")]
    anew = [{"utterance": f"anew {i}", "intent": "pay", "month": "2024-03"} for i in range(3)]
    again = [*rows, *anew]
    stream = build(again, by="month", repeat=True)
    assert classes(stream)[2] == ("card", "loan", "pay")
    assert stream.classes["pay"] == 0


def test_splits_that_are_taken_from_the_training_rows_have_each_class() -> None:
    for seed in range(5):
        stream = build(seed=seed, tasks=2, test_share=0.01)
        for task in stream:
            assert set(labels(task.test)) == set(task.labels)
            assert set(labels(task.validation)) == set(task.labels)
            parts = [{row["text"] for row in rows}
                     for rows in (task.train, task.validation, task.test)]  # fmt: skip
            assert len(set().union(*parts)) == sum(map(len, parts))


def test_a_test_file_is_cut_along(caplog: pytest.LogCaptureFixture) -> None:
    write("test.csv", ROWS[:5])
    write("valid.csv", ROWS[5:9])
    stream = build(tasks=2, test="test.csv", validation="valid.csv")
    assert [dict(labels(task.test)) for task in stream] == [
        {"pay": 1, "hello": 1, "bye": 1}, {"card": 1, "loan": 1}
    ]  # fmt: skip
    assert sum(len(task.validation) for task in stream) == 4
    assert sum(len(task.train) for task in stream) == len(ROWS)
    assert "no test row" not in caplog.text
    write("test.csv", ROWS[:4])
    build(tasks=2, test="test.csv")
    assert "data: 1 class has no test row and will have no score: loan" in caplog.text


def test_caps_go_by_class() -> None:
    stream = build(tasks=2, rows_per_class=2, max_test_rows=2)
    assert [dict(labels(task.train)) for task in stream] == [
        {"pay": 2, "hello": 2, "bye": 2}, {"card": 2, "loan": 2}
    ]  # fmt: skip
    assert [len(task.test) for task in stream] == [2, 2]
    few = build(tasks=2, max_train_rows=4)
    assert [sorted(labels(task.train).values()) for task in few] == [[1, 1, 2], [2, 2]]
    # Fewer rows are among more, and in the order of the file.
    more = build(tasks=2, rows_per_class=3)
    for one, other in zip(stream, more, strict=True):
        texts = [row["text"] for row in other.train]
        assert {row["text"] for row in one.train} <= set(texts)
        assert texts == [row["utterance"] for row in ROWS if row["utterance"] in texts]


def test_capped_by_class_takes_turns() -> None:
    rows = [
        Placed({"label": name, "text": str(i)}, "", "", str(i)) for i, name in enumerate("aaaaabbc")
    ]
    kept = capped_by_class(rows, "label", 5, 0)
    assert Counter(placed.row["label"] for placed in kept) == {"a": 2, "b": 2, "c": 1}
    assert kept == [placed for placed in rows if placed in kept]
    assert capped_by_class(rows, "label", None, 0) is rows


def test_rows_of_no_class_stand_apart() -> None:
    none = [{"utterance": f"what is {i}", "intent": "None "} for i in range(4)]
    stream = build([*ROWS, *none], tasks=2, no_class="None")
    assert "None" not in stream.classes
    assert sorted([*stream.no_class.validation, *stream.no_class.test]) == [
        row["utterance"] for row in none
    ]
    assert len(stream.no_class.test) == 2
    write("test.csv", [*ROWS[:5], *none[:1]])
    stream = build([*ROWS, *none], tasks=2, no_class="None", test="test.csv")
    assert (stream.no_class.validation, stream.no_class.test) == ((), ("what is 0",))
    found = wrong(tasks=2, no_class="nothing")
    assert found[0].startswith('task data: no_class: no row has the label "nothing"')
    nulls = [{"utterance": f"what is {i}", "intent": "null"} for i in range(4)]
    assert wrong([*ROWS, *nulls], tasks=2, no_class=None)[0] == (
        'task data: no_class: null means no label, and rows have the label "null"\n'
        '  write it in quotes, "null", or leave no_class out'
    )
    assert len(build([*ROWS, *nulls], tasks=2, no_class="null").no_class.test) == 2


# ---- bad input


def test_a_class_in_two_tasks_of_a_column_names_a_row_of_each() -> None:
    rows = [{**row, "month": "may" if i < 30 else "june"} for i, row in enumerate(ROWS)]
    found = wrong(rows, by="month")
    assert [text.partition("\n")[0] for text in found] == [  # each class once
        'train.csv:32: the class "card" is in the task "june", and at train.csv:5 in "may"',
        'train.csv:33: the class "pay" is in the task "june", and at train.csv:2 in "may"',
    ]
    assert "if it does come again, write repeat: true (task data: by)" in found[0]


def test_a_class_in_two_listed_tasks_names_both_lines(tmp_path: Path) -> None:
    write("train.csv", ROWS)
    Path("recipe.yaml").write_text(
        "model: {path: ada/none}\n"
        "method: sequential\n"
        "stream:\n"
        "  data:\n"
        "    train: train.csv\n"
        "    columns: {text: utterance, label: intent}\n"
        "    tasks:\n"
        "      - [pay, hello]\n"
        "      - [bye, card, loan,\n"
        "         pay]\n"
    )
    recipe = load_recipe("recipe.yaml")
    with pytest.raises(RecipeError) as caught:
        build_stream(recipe.stream, None, tmp_path, 0)
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        'recipe.yaml:10: stream.data.tasks.1.3: the class "pay" is in a task already: '
        "recipe.yaml:8: stream.data.tasks.0.0\n"
        "  if it does come again, write repeat: true"
    ]


def test_a_class_with_one_row_names_it() -> None:
    rows = [*ROWS, {"utterance": "alone", "intent": "rare"}]
    assert wrong(rows, tasks=2) == [
        'train.csv:38: the class "rare" has 1 row, too few to learn and to test\n'
        "  give it more, or a test file of its own"
    ]
    write("test.csv", rows)  # with a test file it is learned, and not looked at beforehand
    last = build(rows, tasks=6, test="test.csv").tasks[-1]
    assert (len(last.train), len(last.validation), len(last.test)) == (1, 0, 1)
    same = [*ROWS, *[{"utterance": "Alone ", "intent": "rare"}] * 3]
    assert "has 3 rows that ask the same, too few" in wrong(same, tasks=2)[0]


def test_a_task_without_test_rows() -> None:
    write("test.csv", [row for row in ROWS if row["intent"] in ("pay", "card")])
    assert wrong(tasks=[["pay"], ["hello", "bye"], ["card", "loan"]], test="test.csv") == [
        'task data: test: no test row has one of the classes of the task "task 2": hello, bye\n'
        "  give it test rows, or leave test out: some are set aside"
    ]


def test_a_test_row_of_a_class_or_a_task_that_is_not_learned() -> None:
    write("test.csv", [*ROWS[:6], {"utterance": "x", "intent": "lone"}])
    found = wrong(tasks=2, test="test.csv")
    assert found[0].startswith('test.csv:8: label "lone" is not one of the labels')
    assert 'did you mean "loan"?' in found[0]
    rows = [{**row, "month": row["intent"][0]} for row in ROWS]
    tested = [{**rows[0], "month": "q"}, {**rows[0], "month": "h"}, *rows]
    write("test.csv", tested)
    found = wrong(rows, by="month", test="test.csv")
    assert found[0].startswith('test.csv:2: the task "q" has no training row')
    assert found[1].startswith('test.csv:3: the class "pay" is not learned in the task "h"')


def test_a_class_of_two_tasks_with_files_of_their_own_is_refused() -> None:
    """Both places, as where a column names the task: nobody said that it comes again."""
    write("jan.csv", ROWS)
    write(
        "feb.csv", [{"utterance": f"more {i}", "intent": ("pay", "new")[i % 2]} for i in range(9)]
    )
    tasks = [
        {"name": name, "format": "classes", "train": f"{name}.csv", "columns": COLUMNS}
        for name in ("jan", "feb")
    ]
    with pytest.raises(RecipeError) as told:
        build_stream(StreamConfig.model_validate({"tasks": tasks}), None, Path(), 0)
    (mistake,) = told.value.mistakes
    where, _, rest = str(mistake).partition(": ")
    assert where.startswith("feb.csv:")
    assert rest.startswith('the class "pay" is in the task "feb", and at jan.csv:')
    assert rest.splitlines()[1].startswith(
        "  give each class to one task; one that does come again"
    )


def test_a_text_of_two_classes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the classes are of two tasks, or the other row is a test row."""
    more = [
        {"utterance": "PAY number 0", "intent": "loan"},
        {"utterance": "pay  number 0", "intent": "pay"},
    ]
    write("test.csv", [*ROWS, {"utterance": "bye number 1", "intent": "hello"}])
    with caplog.at_level(logging.WARNING):
        build([*ROWS, *more], tasks=3, test="test.csv")
    (said,) = [text for text in caplog.messages if "more than one class" in text]
    assert said.startswith(
        'data: 2 texts have more than one class (the first: train.csv:38 is "loan", train.csv:2 '
        '"pay"); '
    )
    caplog.clear()
    build(tasks=3)
    assert "more than one class" not in caplog.text


def test_rows_that_stand_in_two_tasks_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """By hand: of feb's rows one is equal to one of jan's, and one has its text and another class;
    jan's test row "a" is what feb trains on."""
    header, jan, feb = "utterance,intent\n", "a,x\nb,x\nc,w\n", "A,y\nd,y\ne,z\n"
    Path("jan.csv").write_text(header + jan)
    Path("jan-test.csv").write_text(header + "a,x\n")
    Path("feb.csv").write_text(header + feb)
    Path("feb-test.csv").write_text(header + "b,y\n")
    tasks = [
        {"name": name, "format": "classes", "train": f"{name}.csv", "test": f"{name}-test.csv",
         "columns": COLUMNS, "validation_share": 0} for name in ("jan", "feb")
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        build_stream(StreamConfig.model_validate({"tasks": tasks}), None, Path(), 0)
    (said,) = [text for text in caplog.messages if text.startswith("tasks: ")]
    assert said == (
        "tasks: 2 rows have the prompt of a row of an earlier task (the first: feb.csv:2 of task "
        "feb, as jan.csv:2 of task jan), 0 of them equal in everything; each is used in both; 2 "
        "test rows are trained on in another task, which shows in the scores"
    )
    caplog.clear()
    rows = [{"utterance": "hello", "intent": "hi", "month": m} for m in ("jan", "feb")]
    rows += [
        {"utterance": f"{m} {c} {i}", "intent": c, "month": m}
        for m in ("jan", "feb") for c in ("hi", "bye") for i in range(4)
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        build(rows, by="month", repeat=True, test_share=0.2)
    (said,) = [text for text in caplog.messages if text.startswith("tasks: ")]
    assert said.startswith("tasks: 1 row has the prompt of a row of an earlier task (the first: ")
    assert "1 of them equal in everything; each is used in both" in said
    caplog.clear()
    build(tasks=3)
    assert not [text for text in caplog.messages if text.startswith("tasks: ")]


def test_two_cases_of_a_class_are_told_with_a_remedy_that_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`label_names`, which other formats have, has no effect on classes."""
    rows = [{"utterance": f"say {i}", "intent": ("Pay", "pay", "bye")[i % 3]} for i in range(12)]
    with caplog.at_level(logging.WARNING):
        build(rows, tasks=2)
    assert caplog.messages == [
        'task data: the labels "Pay" and "pay" differ only in case and count as two; if they are '
        "one, write both alike"
    ]
    write("test.csv", [{"utterance": "no", "intent": "Bye"}])
    assert wrong(rows, tasks=2, test="test.csv")[0].splitlines()[1:] == ["  write both alike"]


def test_lists_that_do_not_fit_the_rows() -> None:
    found = wrong(tasks=[["pay", "helo"], ["bye", "card"]])
    assert found[0].startswith('task data: tasks.0.1: no class is called "helo"')
    assert 'did you mean "hello"?' in found[0]
    assert found[1:] == [
        "task data: tasks: 2 classes are in no task: hello, loan\n"
        "  name every class once, or take its rows out"
    ]
    assert (
        "tasks: 1 class is in no task: hello\n"
        in wrong(tasks=[["pay", "loan"], ["bye", "card"]])[0]
    )
    assert wrong(tasks=6)[0].startswith("task data: tasks: 6 tasks of 5 classes")
    assert "max_train_rows: 2 rows for the 3 classes" in wrong(tasks=2, max_train_rows=2)[0]


@pytest.mark.parametrize(
    ("data", "key", "what"),
    [
        ({}, "", "has neither tasks nor by"),
        ({"tasks": 2, "by": "month"}, "", "has both tasks and by"),
        ({"tasks": 0}, ".tasks", "must be at least 1"),
        ({"tasks": []}, ".tasks", "the list is empty"),
        ({"tasks": [["a"], []]}, ".tasks.1", "is a task without classes"),
        ({"tasks": [["a"]], "order": "frequency"}, ".order", "has no effect with the classes"),
        ({"by": "month", "order_seed": 1}, ".order_seed", "has no effect with by"),
        ({"tasks": 2, "order": "frequency", "order_seed": 1}, ".order", "has no effect with order"),
        ({"tasks": 2, "repeat": "true"}, ".repeat", "has no effect where classes are dealt"),
        ({"tasks": 2, "learn": "none"}, ".learn", "is of single tasks"),
        ({"tasks": 2, "train_on": "all"}, ".train_on", "has no effect with format: classes"),
        ({"tasks": 2, "instruction": "Say."}, ".instruction", "has no effect with format: classes"),
        ({"tasks": 2, "max_new_tokens": 8}, ".max_new_tokens", "has no effect with format"),
        ({"tasks": 2, "rows_per_class": 0}, ".rows_per_class", "must be greater than 0"),
        ({"tasks": 2, "no_such": 0}, ".no_such", "unknown key"),
        ({"tasks": 2, "metric": "acuracy"}, ".metric", '"acuracy" is none of'),
    ],
)
def test_keys_that_do_not_go_together(data: dict[str, Any], key: str, what: str) -> None:
    write("train.csv", ROWS)
    text = json.dumps({"train": "train.csv", "columns": COLUMNS, **data})
    Path("recipe.yaml").write_text(
        f"model: {{path: ada/none}}\nmethod: sequential\nstream:\n  data: {text}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    said = [mistake.what for mistake in caught.value.mistakes]
    assert len(said) == 1
    assert said[0].startswith(f"recipe.yaml:4: stream.data{key}: {what}")


RECIPE = """\
model: {path: ada/none}
method: sequential
stream:
  scenario: class-incremental
  tasks:
    - {name: colours, train: train.csv, format: labels,
       columns: {text: utterance, label: intent}}
"""


def mistakes(text: str) -> list[str]:
    write("train.csv", ROWS)
    Path("recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    return [str(mistake) for mistake in caught.value.mistakes]


def test_a_scenario_that_tasks_of_a_kind_cannot_have() -> None:
    told = "tasks of kind generation have task-incremental or domain-incremental"
    assert mistakes(RECIPE) == [
        f"recipe.yaml:4: stream.scenario: {told}\n  format: classes has class-incremental streams"
    ]
    demo = "model: {path: a/b}\nmethod: sequential\nstream: {name: demo, scenario: %s}\n"
    assert mistakes(demo % "class-incremental")[0].startswith(
        f"recipe.yaml:3: stream.scenario: {told}"
    )
    fewrel = "model: {path: a/b}\nmethod: sequential\nstream: {name: fewrel, scenario: %s}\n"
    assert "tasks of kind classification have class-incremental or task-incremental" in mistakes(
        fewrel % "domain-incremental"
    )[0]  # fmt: skip
    Path("recipe.yaml").write_text(fewrel % "task-incremental")
    assert load_recipe("recipe.yaml").stream.scenario == "task-incremental"


@pytest.mark.parametrize(
    "key", ["head: {scale: 16}", "pooling: mean", 'template: "{text} is"', "head: {type: linear}"]
)
def test_a_classifiers_keys_with_tasks_of_text(key: str) -> None:
    text = RECIPE.replace("{path: ada/none}", f"\n  path: ada/none\n  {key}")
    text = text.replace("  scenario: class-incremental\n", "")
    name = key.partition(":")[0]
    assert mistakes(text) == [
        f"recipe.yaml:3: model.{name}: has no effect on tasks of kind generation\n"
        "  leave it out, or write format: classes"
    ]


def test_a_relations_keys_with_rows_of_classes() -> None:
    data = "{train: train.csv, columns: {text: utterance, label: intent}, tasks: 2}"
    text = "model:\n  path: a/b\n  %s\nmethod: sequential\nstream:\n  data: " + data
    assert mistakes(text % "pooling: entity_starts") == [
        "recipe.yaml:3: model.pooling: has no effect with format: classes\n"
        "  rows of format: relations have two entities"
    ]
    assert mistakes(text % 'template: "{text}: {head}"')[0].startswith(
        "recipe.yaml:3: model.template: has {head} in it, and rows of format: classes have no"
    )
    assert "has no {text} in it" in mistakes(text % 'template: "Say."')[0]


def test_spellings_of_a_class_are_one(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "intent": "café"} for row in ROWS[:3]]
    rows += [{"utterance": "another", "intent": "cafe\u0301 "}, *ROWS]
    with caplog.at_level(logging.WARNING):
        stream = build(rows, tasks=6)
    assert len(stream) == 6
    assert "café" in stream.classes


# ---- tasks that are listed, each with a file of its own


def listed(files: dict[str, list[dict[str, Any]]], **more: dict[str, Any]) -> TaskStream:
    for name, rows in files.items():
        write(f"{name}.csv", rows)
    tasks = [
        TaskConfig(**{"name": name, "format": "classes", "train": f"{name}.csv",
                      "columns": COLUMNS, **more.get(name, {})})
        for name in files
    ]  # fmt: skip
    return build_stream(StreamConfig(tasks=tasks), None, Path(), 0)


def rows_of(**counts: int) -> list[dict[str, Any]]:
    return [{"utterance": f"{name} {i}", "intent": name} for name, n in counts.items()
            for i in range(n)]  # fmt: skip


def test_a_class_in_two_listed_tasks_is_refused_with_both_places() -> None:
    with pytest.raises(RecipeError) as caught:
        listed({"one": rows_of(pay=4, card=4), "two": rows_of(loan=4, card=4)})
    (mistake,) = caught.value.mistakes
    assert re.search(
        r'two\.csv:\d+: the class "card" is in the task "two", and at one\.csv:\d+ in "one"',
        str(mistake),
    )
    assert "repeat: true" in str(mistake)


def test_classes_of_a_listed_task_are_each_learned_and_tested() -> None:
    """Drawn from all rows alike, a class of two rows would be in one split alone, and a cap of
    three rows would leave classes out."""
    stream = listed({"one": rows_of(pay=30, card=2, loan=2)}, one={"max_train_rows": 3})
    (task,) = stream
    assert labels(task.train) == {"pay": 1, "card": 1, "loan": 1}
    assert labels(task.test).keys() == {"pay", "card", "loan"}
    with pytest.raises(RecipeError, match='the class "card" has 1 row, too few'):
        listed({"one": rows_of(pay=30, card=1)})


def test_a_task_that_is_only_scored_brings_no_class() -> None:
    """Numbers of classes are the heads' columns, which learned tasks alone have."""
    only = {"train": None, "test": "again.csv", "learn": "none"}
    files = {"again": rows_of(loan=2, bye=2), "one": rows_of(pay=9, card=9),
             "two": rows_of(loan=9, bye=9)}  # fmt: skip
    stream = listed(files, again=only)
    assert [task.learn for task in stream] == ["none", "sft", "sft"]
    assert stream.classes == {"card": 1, "pay": 1, "bye": 2, "loan": 2}
    with pytest.raises(RecipeError) as caught:
        listed({"again": rows_of(loan=2, nobody=2), "two": rows_of(loan=9, bye=9)}, again=only)
    (mistake,) = caught.value.mistakes
    assert 'the class "nobody" is learned by no task, and the task "again" is only' in str(mistake)


def test_spellings_that_differ_in_case_are_told_with_a_remedy_that_helps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`label_names` has no effect on classes, so it is no remedy."""
    rows = [*ROWS, *({**row, "intent": row["intent"].upper()} for row in ROWS)]
    with caplog.at_level(logging.WARNING):
        build(rows, tasks=2)
    told = [r.getMessage() for r in caplog.records if "only in case" in r.getMessage()]
    assert told
    assert all(line.endswith("if they are one, write both alike") for line in told)
