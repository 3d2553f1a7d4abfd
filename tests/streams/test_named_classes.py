"""Named streams of classes: their orders, their files, and what a recipe may change of them."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import RecipeError
from perdure.prepare import load_recipe
from perdure.recipe.data import DataConfig, StreamConfig
from perdure.recipe.load import dump_recipe
from perdure.streams import CLASS_STREAMS, TaskStream, abouts, build_stream, named_mistakes
from perdure.streams.named import topic3
from perdure.streams.task import place_of

pytestmark = pytest.mark.unit

SHARED = Path(__file__).parents[3] / "shared" / "data"
RANKS = {
    "clinc150": "102 53 130 22 129 56 55 122 34 76 | 35 43 5 9 103 96 137 99 77 92 | "
    "106 133 119 7 114 118 36 38 85 90 | 42 24 29 15 88 131 39 105 21 116 | "
    "58 13 40 136 83 95 132 16 44 50 | 12 48 30 71 74 14 27 144 60 59 | "
    "45 66 64 68 115 23 93 94 126 79 | 28 0 112 70 31 110 142 54 57 11 | "
    "84 123 47 51 89 8 148 73 17 134 | 87 61 86 139 26 109 143 121 140 19 | "
    "145 113 80 63 82 81 52 32 108 2 | 149 25 141 138 127 107 111 117 75 10 | "
    "98 97 20 62 18 46 125 49 135 124 | 78 67 33 65 6 4 146 128 69 3 | "
    "91 1 41 72 120 101 37 104 147 100",
    "banking77": "12 14 33 18 35 47 37 13 5 15 34 | 42 2 50 24 56 48 9 60 75 16 66 | "
    "54 41 11 61 7 17 31 74 68 39 73 | 62 30 23 4 29 45 27 46 43 52 28 | "
    "0 26 49 55 19 63 70 67 53 22 8 | 64 51 36 65 71 40 58 44 72 76 38 | "
    "59 6 21 32 57 1 20 10 3 69 25",
    "tacred": "5 28 0 21 20 | 39 34 32 16 15 | 38 6 14 24 1 | 7 2 35 12 8 | 9 13 29 10 30 | "
    "36 3 27 11 17 | 31 33 18 23 37 | 4 25 26 22 19",
}
"""The specification's orders: ranks in the ASCII sort of the labels, tasks between bars."""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(name: str, folder: str | Path | None, data: dict[str, Any] | None = None) -> TaskStream:
    changes = None if data is None else DataConfig(**data)
    where = None if folder is None else str(folder)
    return build_stream(StreamConfig(name=name, folder=where, data=changes), None, Path(), 0)


def wrong(name: str, folder: str | Path | None, data: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build(name, folder, data)
    return [str(mistake) for mistake in caught.value.mistakes]


def sizes(stream: TaskStream) -> tuple[int, int, int]:
    return (
        sum(len(task.train) for task in stream),
        sum(len(task.validation) for task in stream),
        sum(len(task.test) for task in stream),
    )


def shared(folder: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"needs the data in {SHARED / folder}, which is not there")
    return SHARED / folder


# ---- what they are


@pytest.mark.parametrize("name", RANKS)
def test_orders_of_the_specification(name: str) -> None:
    tasks = CLASS_STREAMS[name].tasks
    known = sorted(label for task in tasks for label in task)
    wanted = [[int(rank) for rank in task.split()] for task in RANKS[name].split("|")]
    assert [[known.index(label) for label in task] for task in tasks] == wanted


def test_what_is_known_without_the_data() -> None:
    counts = {name: stream.counts for name, stream in CLASS_STREAMS.items()}
    assert counts == {
        "clinc150": (15, 150), "banking77": (7, 77), "topic3": (5, 25), "fewrel": (8, 80),
        "tacred": (8, 40),
    }  # fmt: skip
    for stream in CLASS_STREAMS.values():
        assert all((stream.about, stream.licence, stream.citation, stream.home, stream.order))
        assert stream.files
    assert CLASS_STREAMS["clinc150"].tasks[0][0] == "restaurant_reviews"
    assert CLASS_STREAMS["clinc150"].tasks[-1][-1] == "reset_settings"
    assert "not seen" in CLASS_STREAMS["fewrel"].order
    assert set(abouts()) == {"demo", "intents", *CLASS_STREAMS}


# ---- on the real data, where it is


def test_clinc150_of_its_file() -> None:
    stream = build("clinc150", shared("clinc150"))
    assert (len(stream), sizes(stream)) == (15, (15_000, 3_000, 4_500))
    assert [task.labels for task in stream] == CLASS_STREAMS["clinc150"].tasks
    assert stream.scenario == "class-incremental"
    assert all(set(Counter(r["label"] for r in t.train).values()) == {100} for t in stream)
    assert (len(stream.no_class.validation), len(stream.no_class.test)) == (100, 1_000)
    assert stream.no_class.test[0] == "how much has the dow changed today"
    assert place_of(stream.tasks[0].train[0]).startswith(f"{SHARED}/clinc150/data_full.json: train")


def test_clinc150_with_changes() -> None:
    folder = shared("clinc150")
    stream = build("clinc150", folder, {"tasks": 5, "rows_per_class": 20, "max_test_rows": 60})
    assert sizes(stream) == (3_000, 3_000, 300)
    flat = [name for task in CLASS_STREAMS["clinc150"].tasks for name in task]
    assert [name for task in stream for name in task.labels] == flat
    assert set(Counter(row["label"] for row in stream.tasks[0].test).values()) == {2}
    anew = build("clinc150", folder, {"order_seed": 3, "rows_per_class": 1})
    assert [len(task.labels) for task in anew] == [10] * 15
    assert [name for task in anew for name in task.labels] != flat
    named = build("clinc150", folder, {"order": "alphabetical", "rows_per_class": 1})
    assert [name for task in named for name in task.labels] == sorted(flat)


def test_fewrel_of_the_one_file_that_is_there() -> None:
    stream = build("fewrel", shared("fewrel"))
    assert [len(task.labels) for task in stream] == [2] * 8
    assert sizes(stream) == (6_720, 2_240, 2_240)
    assert stream.tasks[0].labels == ("crosses", "original language of film or TV show")
    for task in stream:
        for row in task.test:
            assert f"[E11] {row['head']} [E12]" in row["text"]
            assert f"[E21] {row['tail']} [E22]" in row["text"]


# ---- on small files of the same form


def clinc(folder: Path, leave_out: str = "") -> Path:
    """data_full.json with few rows of each of the 150 classes."""
    names = [name for task in CLASS_STREAMS["clinc150"].tasks for name in task]
    data = {
        part: [[f"{part} {name} {i}", name] for name in names for i in range(rows)]
        for part, rows in (("train", 3), ("val", 1), ("test", 2))
    }
    data |= {f"oos_{part}": [[f"{part} what is it", "oos"]] for part in ("train", "val", "test")}
    data.pop(leave_out, None)
    (folder / "data_full.json").write_text(json.dumps(data))
    return folder


def test_rows_of_no_class_are_no_ones(tmp_path: Path) -> None:
    stream = build("clinc150", clinc(tmp_path))
    assert sizes(stream) == (450, 150, 300)
    assert stream.no_class.validation == ("val what is it",)
    assert stream.no_class.test == ("test what is it",)
    assert "oos" not in stream.classes
    assert stream.tasks[0].source == "clinc150, github.com/clinc/oos-eval (data/data_full.json)"


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    clinc(tmp_path)
    (tmp_path / "data_full.json").rename(tmp_path / "data_fll.json")
    assert wrong("clinc150", ".") == [
        "stream.folder: . has no file data_full.json\n"
        '  did you mean "data_fll.json"?\n'
        "  clinc150 reads data_full.json of github.com/clinc/oos-eval (data/data_full.json)\n"
        "  or leave folder out: it is read from the hub"
    ]
    assert wrong("clinc150", "there")[0].startswith("stream.folder: no such folder: there")
    found = wrong("topic3", ".")
    assert [text.partition("\n")[0].rpartition(" ")[2] for text in found] == [
        "agnews/train.csv", "agnews/test.csv", "dbpedia/train.csv", "dbpedia/test.csv",
        "yahoo/train.csv", "yahoo/test.csv",
    ]  # fmt: skip
    for name in ("banking77", "fewrel", "tacred"):
        files = CLASS_STREAMS[name].files
        for file, text in zip(files, wrong(name, "."), strict=True):
            assert f"has no file {file}" in text


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a folder of the stream's own files: it takes no other ones."""
    import datasets

    def down(*given: Any, **more: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", down)
    (first, *_) = wrong("clinc150", None)
    assert first.splitlines()[-1] == (
        "  or give local files instead of the hub's: stream.folder: FOLDER with data_full.json"
    )


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    clinc(tmp_path, leave_out="oos_val")
    what = 'data_full.json: has no list "oos_val" of [text, intent]'
    assert wrong("clinc150", ".")[0].startswith(what)
    (tmp_path / "data_full.json").write_text('{"train": ')
    assert wrong("clinc150", ".")[0].startswith("data_full.json: is no readable JSON: ")
    data = {part: [["x", "yes"]] * 4 for part in ("train", "val", "test")}
    data |= {f"oos_{part}": [["y", "oos"]] for part in ("train", "val", "test")}
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    assert '"yes" is the only label' in wrong("clinc150", ".")[0]
    for part in ("train", "val", "test"):
        data[part] = [["x", "yes"], ["z", "no"]] * 3
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    assert wrong("clinc150", ".")[0].startswith(
        'clinc150: tasks.0.0: no class is called "restaurant_reviews"'
    )


def test_banking77_sets_validation_aside(tmp_path: Path) -> None:
    names = [name for task in CLASS_STREAMS["banking77"].tasks for name in task]
    for split, rows in (("train", 10), ("test", 2)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([f"{split}, {name} {i}", name] for name in names for i in range(rows))
    stream = build("banking77", ".")
    assert sizes(stream) == (77 * 9, 77, 77 * 2)
    assert [task.labels for task in stream] == CLASS_STREAMS["banking77"].tasks
    assert place_of(stream.tasks[0].test[0]) == "test.csv:2"
    assert sizes(build("banking77", ".", {"validation_share": 0})) == (770, 0, 154)
    same = build("banking77", ".", {"dev_from": "test"})  # as the released code has it
    assert sizes(same) == (770, 154, 154)
    assert all(list(task.validation) == list(task.test) for task in same)


def test_names_as_released_by_hand() -> None:
    """Specification, trap 4: a text of old class k gets the name of class o[k]; films are called
    "World", as Film (number 16) comes first: o[16] = 0."""
    place = {new: old for old, new in enumerate(topic3.ORDER)}
    order = [topic3.NAMES[place[new]] for new in range(25)]
    found = topic3.as_released(order)
    assert found["Film"] == "World"
    assert all(found[name] == topic3.NAMES[topic3.ORDER[k]]
               for k, name in enumerate(topic3.NAMES))  # fmt: skip
    table = {"train": "a.csv", "tasks": 2}
    for key, value in (("fix_label_names", False), ("dev_from", "test")):
        own = DataConfig(**table, **{key: value})
        assert [m.key for m in own.mistakes_of_a_table()] == [(key,)]
        changed = StreamConfig(
            name="clinc150", folder=".", data=DataConfig.model_construct(**{key: value})
        )
        assert [m.key for m in named_mistakes(changed)] == [("data", key)]


def test_fewrel_of_both_files(tmp_path: Path) -> None:
    def rows(pid: str) -> list[dict[str, Any]]:
        return [
            {"tokens": ["In", f"{pid}-{i}", "Ann", "met", "Bob", "."],
             "h": ["ann", "Q1", [[2]]], "t": ["bob", "Q2", [[4]]]}
            for i in range(10)
        ]  # fmt: skip

    first, second = [f"P{n}" for n in range(64)], [f"P{n}" for n in range(64, 80)]
    (tmp_path / "train_wiki.json").write_text(json.dumps({pid: rows(pid) for pid in first}))
    (tmp_path / "val_wiki.json").write_text(json.dumps({pid: rows(pid) for pid in second}))
    called = {pid: [f"name of {pid}", "what it means"] for pid in (*first, *second)}
    called["P1"] = called["P2"] = ["same", ""]
    (tmp_path / "pid2name.json").write_text(json.dumps(called))
    stream = build("fewrel", ".")
    assert [len(task.labels) for task in stream] == [10] * 8
    assert sizes(stream) == (480, 160, 160)
    assert stream.tasks[0].labels[:3] == ("name of P0", "same (P1)", "same (P2)")
    assert stream.tasks[-1].labels[-1] == "name of P79"
    row = stream.tasks[0].train[0]
    assert row["text"].endswith(" [E11] Ann [E12] met [E21] Bob [E22] .")
    assert (row["head"], row["tail"]) == ("Ann", "Bob")
    assert build("fewrel", ".", {"tasks": 4}).tasks[3].labels[-1] == "name of P79"


def test_tacred_of_the_corpus(tmp_path: Path) -> None:
    names = [name for task in CLASS_STREAMS["tacred"].tasks for name in task]

    def row(relation: str, i: int) -> dict[str, Any]:
        return {"token": [f"On{i}", "Ann", "Lee", "met", "Bob"], "relation": relation,
                "subj_start": 1, "subj_end": 2, "obj_start": 4, "obj_end": 4}  # fmt: skip

    left_out = ["no_relation", "per:country_of_death"]
    for file, count in (("train", 330), ("dev", 2), ("test", 45)):
        data = [row(name, i) for name in (*names, *left_out) for i in range(count)]
        (tmp_path / f"{file}.json").write_text(json.dumps(data))
    stream = build("tacred", ".")
    assert sizes(stream) == (40 * 320, 80, 40 * 40)
    assert [task.labels for task in stream] == CLASS_STREAMS["tacred"].tasks
    assert stream.tasks[0].test[0]["text"].endswith(" [E11] Ann Lee [E12] met [E21] Bob [E22]")
    (tmp_path / "dev.json").write_text('[{"token": []}]')
    assert wrong("tacred", ".")[0].startswith("dev.json: is no list of rows with token, relation")


def topics(folder: Path) -> Path:
    """The three sets with few rows; yahoo's other columns may be empty."""
    for one in topic3.SETS:
        (folder / one.folder).mkdir()
        for split, rows in (("train", 6), ("test", 4)):
            with (folder / one.folder / f"{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL)
                for i in range(rows):
                    for n, name in enumerate(one.names, 1):
                        cells = [f"{name} {split} {i}", "", r"a\nb"][: len(one.columns) - 1]
                        writer.writerow([n, *cells])
    return folder


def test_topic3_is_drawn_from_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic3, "TRAIN", 4)
    topics(tmp_path)
    one = build("topic3", ".")
    assert [task.labels for task in one] == [task.labels for task in build("topic3", ".")]
    assert sorted(name for task in one for name in task.labels) == sorted(topic3.NAMES)
    assert sizes(one) == (100, 50, 100)
    texts = [row["text"] for task in one for row in task.train]
    assert "Health train 0 a b" in [*texts, *(r["text"] for t in one for r in t.validation)]
    for task in one:
        for row in task.train:
            assert row["text"].startswith(row["label"])  # a class has its own name
    released = build("topic3", ".", {"fix_label_names": False})
    assert [name for task in released for name in task.labels] == topic3.NAMES
    for right, wrongly in zip(one, released, strict=True):  # the same rows by other names
        assert [r["text"] for r in right.test] == [r["text"] for r in wrongly.test]
        names = dict(zip(right.labels, wrongly.labels, strict=True))
        assert [names[r["label"]] for r in right.test] == [r["label"] for r in wrongly.test]
    other = build("topic3", ".", {"order_seed": 2})
    assert [task.labels for task in other] != [task.labels for task in one]
    assert {row["text"] for task in other for row in task.train} != set(texts)
    (tmp_path / "agnews/test.csv").write_text('"5","x","y"\n')
    assert wrong("topic3", ".")[0].startswith(
        "agnews/test.csv: row 1: begins with no number of a class, 1 to 4"
    )


def slow_order(sizes: list[tuple[int, int, int]], seed: int) -> list[int]:
    """The specification's description, with lists of numbers alone: where each class comes."""
    generator = random.Random(seed)
    for classes, train, test in sizes:
        for rows in (train, test, test):
            every = list(range(rows * classes))
            generator.shuffle(every)
            for _ in range(classes):
                own = list(range(rows))
                generator.shuffle(own)
    order = list(range(sum(classes for classes, _, _ in sizes)))
    generator.shuffle(order)
    return order


def test_topic3_draws_as_the_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = slow_order([(4, 6, 4), (14, 6, 4), (7, 6, 4)], 1)
    assert [topic3.NAMES[order.index(n)] for n in range(25)] == [
        name for task in build("topic3", topics(tmp_path)) for name in task.labels
    ]
    # What is known beforehand is for the whole files (the same description, run on their sizes).
    assert sorted(topic3.ORDER) == list(range(25))
    assert topic3.NAMES[topic3.ORDER.index(0)] == "Film"
    assert CLASS_STREAMS["topic3"].tasks[0][0] == "Film"


@pytest.mark.train  # some seconds of shuffling, not of training
def test_topic3_order_of_the_whole_files() -> None:
    whole = [(4, 30_000, 1_900), (14, 40_000, 5_000), (7, 140_000, 6_000)]
    assert slow_order(whole, 1) == list(topic3.ORDER)


# ---- the hub


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub, and its columns; the sets stand in for what it answers."""
    import datasets

    asked: list[tuple[Any, ...]] = []
    answers: dict[str, Any] = {}

    def load(name: str, subset: str | None = None, **options: Any) -> Any:
        asked.append((name, subset, *options.values()))
        return datasets.Dataset.from_list(answers[name], features=datasets.Features(features[name]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    text = datasets.Value("string")
    banking = sorted(name for task in CLASS_STREAMS["banking77"].tasks for name in task)
    intents = sorted([*(n for t in CLASS_STREAMS["clinc150"].tasks for n in t), "oos"])
    spans = {"text": text, "type": text, "indices": [[datasets.Value("int64")]]}
    features = {
        "clinc/clinc_oos": {"text": text, "intent": datasets.ClassLabel(names=intents)},
        "legacy-datasets/banking77": {"text": text, "label": datasets.ClassLabel(names=banking)},
        "thunlp/few_rel": {
            "relation": text, "tokens": [text], "head": spans, "tail": spans, "names": [text],
        },
    }  # fmt: skip
    answers["clinc/clinc_oos"] = [
        {"text": f"{name} {i}", "intent": n} for n, name in enumerate(intents) for i in range(3)
    ]
    answers["legacy-datasets/banking77"] = [
        {"text": f"{name} {i}", "label": n} for n, name in enumerate(banking) for i in range(3)
    ]
    entity = {"text": "ann", "type": "Q1", "indices": [[1]]}
    answers["thunlp/few_rel"] = [
        {"relation": f"P{n}", "tokens": [f"{n}.{i}", "Ann", "and", "Bob"], "names": [f"r{n}", "x"],
         "head": entity, "tail": {**entity, "indices": [[3]]}}
        for n in range(16) for i in range(5)
    ]  # fmt: skip
    stream = build("clinc150", None)
    assert (len(stream), sizes(stream)) == (15, (450, 450, 450))
    assert (len(stream.no_class.validation), len(stream.no_class.test)) == (3, 3)
    assert asked == [
        ("clinc/clinc_oos", "plus", split) for split in ("train", "validation", "test")
    ]
    asked.clear()
    assert sizes(build("banking77", None)) == (154, 77, 231)
    assert asked == [("legacy-datasets/banking77", None, split) for split in ("train", "test")]
    asked.clear()
    stream = build("fewrel", None)
    assert sizes(stream) == (16 * 6, 32, 32)
    assert stream.tasks[0].labels == ("r0", "r1")
    assert asked == [
        ("thunlp/few_rel", None, split, "refs/convert/parquet")
        for split in ("train_wiki", "val_wiki")
    ]


def test_topic3_from_the_hub_is_what_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of classes count from 0 there, and columns have names."""
    import datasets

    monkeypatch.setattr(topic3, "TRAIN", 4)
    topics(tmp_path)
    asked: list[tuple[str, str]] = []

    def load(name: str, subset: str | None = None, *, split: str, **options: Any) -> Any:
        asked.append((name, split))
        (one,) = (one for one in topic3.SETS if one.dataset == name)
        rows = []
        with (tmp_path / one.folder / f"{split}.csv").open(newline="") as file:
            for number, *cells in csv.reader(file):
                rows.append(dict(zip(one.columns, [int(number) - 1, *cells], strict=True)))
        names = [name or "left out" + str(n) for n, name in enumerate(one.names)]
        features = {c: datasets.Value("string") for c in one.columns}
        features |= {one.columns[0]: datasets.ClassLabel(names=names)}
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub, files = build("topic3", None), build("topic3", ".")
    assert asked == [(one.dataset, split) for one in topic3.SETS for split in ("train", "test")]
    assert sizes(hub) == sizes(files) == (100, 50, 100)
    for one, other in zip(hub, files, strict=True):
        assert one.labels == other.labels
        for split in ("train", "validation", "test"):
            said = [
                [(r["text"], r["label"]) for r in getattr(task, split)] for task in (one, other)
            ]
            assert said[0] == said[1]


# ---- in a recipe

RECIPE = "model: {path: a/b}\nmethod: sequential\nstream:\n  name: %s\n"


def mistakes(text: str) -> list[str]:
    Path("recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    return [str(mistake) for mistake in caught.value.mistakes]


def test_three_sections_are_a_recipe(tmp_path: Path) -> None:
    clinc(tmp_path)
    Path("recipe.yaml").write_text(RECIPE % "clinc150\n  folder: .")
    recipe = load_recipe("recipe.yaml")
    # The kind's defaults: the body's rate and weight decay, and the heads'.
    assert (recipe.train.learning_rate, recipe.train.weight_decay) == (1e-5, 5e-4)
    assert (recipe.model.head.learning_rate, recipe.model.head.weight_decay) == (1e-3, 1e-2)
    assert len(build_stream(recipe.stream, None, recipe.folder, 0)) == 15
    Path("again.yaml").write_text(dump_recipe(recipe))  # as a run records it
    assert load_recipe("again.yaml") == recipe
    more = load_recipe("recipe.yaml", ["stream.data.tasks=5", "stream.data.rows_per_class=1"])
    assert sizes(build_stream(more.stream, None, more.folder, 0)) == (150, 150, 300)
    Path("again.yaml").write_text(dump_recipe(more))
    assert load_recipe("again.yaml") == more


def test_what_cannot_be_changed_is_told_by_its_key() -> None:
    changes = "\n  folder: .\n  data:\n    tasks: 5\n    %s"
    can = "what can be: tasks, order, order_seed, rows_per_class, max_train_rows"
    for line in ("train: recipe.yaml", "columns: {text: a}", "format: relations", "no_class: yes",
                 "repeat: true", "test_share: 0.5", "dataset: a/b"):  # fmt: skip
        key = line.partition(":")[0]
        found = mistakes(RECIPE % ("clinc150" + changes % line.replace("yes", "'x'")))
        assert found[0].startswith(
            f"recipe.yaml:8: stream.data.{key}: cannot be changed in the stream clinc150\n  {can}"
        )
    found = mistakes(RECIPE % ("clinc150" + changes % "validation_share: 0"))
    assert found[0].startswith(
        "recipe.yaml:8: stream.data.validation_share: has no effect: clinc150 has validation rows"
    )


def test_names_and_folders_that_do_not_go_together() -> None:
    assert mistakes(RECIPE % "clinc")[0].startswith(
        'recipe.yaml:4: stream.name: no stream is called "clinc"\n  did you mean "clinc150"?'
    )
    found = mistakes(RECIPE % "demo\n  folder: .\n  data: {tasks: 2}")
    assert [text.partition("\n")[0] for text in found] == [
        "recipe.yaml:5: stream.folder: has no effect with the stream demo",
        "recipe.yaml:6: stream.data: has no effect with the stream demo",
    ]
    assert mistakes(RECIPE % "tacred")[0].startswith(
        "recipe.yaml:4: stream.name: tacred is on no hub\n  write folder: where train.json"
    )
    assert mistakes(RECIPE % "clinc150\n  folder: nowhere")[0].startswith(
        "recipe.yaml:5: stream.folder: no such file: nowhere"
    )


def test_a_missing_file_is_told_at_the_folders_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Path("recipe.yaml").write_text(RECIPE % "clinc150\n  folder: empty")
    recipe = load_recipe("recipe.yaml")
    with pytest.raises(RecipeError, match=r"recipe.yaml:5: stream.folder: empty has no file"):
        build_stream(recipe.stream, None, recipe.folder, 0)
