"""Shipped recipes on stand-ins for their hub data sets: the columns and classes of the hub's cards.

A folder of a data set's name beside the recipe is read in its place, by the same call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from perdure import recipes
from perdure.models.chat import Encoder
from perdure.prepare import load_recipe
from perdure.streams import build_stream

pytestmark = pytest.mark.unit

PAIR = ("premise", "hypothesis")
SUPER = "aps/super_glue"
TOPICS = ["Society & Culture", "Science & Mathematics", "Health", "Education & Reference",
          "Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music",
          "Family & Relationships", "Politics & Government"]  # fmt: skip
KINDS = ["Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder",
         "MeanOfTransportation", "Building", "NaturalPlace", "Village", "Animal", "Plant", "Album",
         "Film", "WrittenWork"]  # fmt: skip
STARS = ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]
# (data set, subset): text columns, label column, its classes (a number: none are declared), splits
SETS: dict[tuple[str, str | None], tuple[tuple[str, ...], str, Any, tuple[str, ...]]] = {
    ("nyu-mll/glue", "mnli"): (PAIR, "label", ["entailment", "neutral", "contradiction"],
                               ("train", "validation_matched")),
    ("nyu-mll/glue", "qqp"): (("question1", "question2"), "label",
                              ["not_duplicate", "duplicate"], ("train", "validation")),
    ("nyu-mll/glue", "sst2"): (("sentence",), "label", ["negative", "positive"],
                               ("train", "validation")),
    (SUPER, "cb"): (PAIR, "label", ["entailment", "contradiction", "neutral"],
                    ("train", "validation")),
    (SUPER, "rte"): (PAIR, "label", ["entailment", "not_entailment"], ("train", "validation")),
    (SUPER, "wic"): (("word", "sentence1", "sentence2"), "label", ["False", "True"],
                     ("train", "validation")),
    (SUPER, "copa"): (("premise", "choice1", "choice2", "question"), "label",
                      ["choice1", "choice2"], ("train", "validation")),
    (SUPER, "boolq"): (("question", "passage"), "label", ["False", "True"],
                       ("train", "validation")),
    (SUPER, "multirc"): (("paragraph", "question", "answer"), "label", ["False", "True"],
                         ("train", "validation")),
    ("stanfordnlp/imdb", None): (("text",), "label", ["neg", "pos"], ("train", "test")),
    ("Yelp/yelp_review_full", None): (("text",), "label", STARS, ("train", "test")),
    ("SetFit/amazon_reviews_multi_en", None): (("text", "label_text"), "label", 5,
                                               ("train", "validation", "test")),
    ("fancyzhx/dbpedia_14", None): (("title", "content"), "label", KINDS, ("train", "test")),
    ("fancyzhx/ag_news", None): (("text",), "label", ["World", "Sports", "Business", "Sci/Tech"],
                                 ("train", "test")),
    ("community-datasets/yahoo_answers_topics", None): (
        ("question_title", "question_content", "best_answer"), "topic", TOPICS, ("train", "test")),
    ("cornell-movie-review-data/rotten_tomatoes", None): (
        ("text",), "label", ["neg", "pos"], ("train", "validation", "test")),
}  # fmt: skip


def stand_ins(folder: Path) -> None:
    """Write each set of `SETS` below `folder`, three rows a class; a row's cells say what it is."""
    subsets: dict[str, list[str]] = {}
    for (name, subset), (texts, label, classes, splits) in SETS.items():
        here = folder / name / (subset or "data")
        here.mkdir(parents=True)
        count = classes if isinstance(classes, int) else len(classes)
        kind = datasets.Value("int64")
        features = {c: datasets.Value("string") for c in texts} | {
            label: kind if isinstance(classes, int) else datasets.ClassLabel(names=classes)
        }
        for split in splits:
            rows = [
                {c: f"{c} {split} {i}" for c in texts} | {label: i % count}
                for i in range(3 * count)
            ]
            data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
            data.to_parquet(here / f"{split}.parquet")
            subsets.setdefault(name, []).append(f"{subset or 'default'}/{split}")
    for name, found in subsets.items():
        configs: dict[str, str] = {}
        for entry in found:
            subset, _, split = entry.partition("/")
            where = "data" if subset == "default" else subset
            line = f"  - {{split: {split}, path: {where}/{split}.parquet}}\n"
            configs[subset] = configs.get(subset, "") + line
        listed = "".join(
            f"- config_name: {s}\n  data_files:\n{lines}" for s, lines in configs.items()
        )
        (folder / name / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    stand_ins(folder)
    return folder


def test_the_fifteen_tasks_of_the_gere_recipe(hub: Path, tiny: tuple[Any, Any]) -> None:
    recipe = load_recipe(recipes.path("gere-8b-15-tasks"))
    stream = build_stream(recipe.stream, None, hub, recipe.seed)
    names = "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo"
    assert [task.name for task in stream] == names.split()
    for task in stream:
        assert {row["answer"] for row in task.train} == set(task.labels), task.name
        assert (task.metric, len(task.validation)) == ("exact_match", 0)
        asked = [row["prompt"][-1]["content"] for row in (*task.train, *task.test)]
        assert all(text.endswith("\nAnswer:") and "{" not in text for text in asked)
        if task.name != "copa":
            first = f"Option: {', '.join(task.labels)}\n"
            assert all(text.startswith(first) for text in asked), (task.name, asked[0])
            assert task.train[0]["prompt"][0]["content"].endswith(" Choose one from the option.")
    by_name = {task.name: task for task in stream}
    prompt = Encoder(tiny[1], "none").prompt_text(by_name["wic"].train[0])
    assert prompt == (
        "Is the word used in the same meaning in both sentences? Choose one from the option.\n"
        "Option: False, True\nword: word train 0\nsentence 1: sentence1 train 0\n"
        "sentence 2: sentence2 train 0\nAnswer:\n"
    )
    assert by_name["copa"].train[1] == {
        "prompt": [{"role": "user", "content": (
            'Which sentence is the question train 1 of "premise train 1"? '
            "Choose one between A and B.\nA: choice1 train 1\nB: choice2 train 1\nAnswer:"
        )}],
        "answer": "B",
    }  # fmt: skip
    assert by_name["rte"].train[1]["answer"] == "contradiction"  # not_entailment on the hub
    assert by_name["amazon"].train[4]["answer"] == "very positive"
    assert by_name["dbpedia"].train[5]["answer"] == "Mean of Transportation"


def test_the_other_orders_that_the_recipe_names() -> None:
    path = recipes.path("gere-8b-15-tasks")
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    orders = [line.removeprefix("# order: ") for line in lines if line.startswith("# order: ")]
    assert len(orders) == 2
    for order in orders:
        stream = load_recipe(path, [f"stream.order={order}"]).stream
        assert sorted(stream.order or ()) == sorted(task.name for task in stream.tasks or ())


def test_the_labelled_tasks_of_the_lora_recipe(hub: Path, tmp_path: Path) -> None:
    """Its `label_names` give the numbers of classes, which `datasets` replaces by names."""
    text = recipes.path("lora-8b").read_text("utf-8")
    start, end = text.index("    - name: summary"), text.index("general:")
    (tmp_path / "recipe.yaml").write_text(text[:start] + "\n" + text[end:])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    stream = build_stream(recipe.stream, None, hub, recipe.seed)
    assert [task.labels[:4] for task in stream] == [
        ("world", "sports", "business", "technology"),
        ("negative", "positive"),
        ("company", "school", "artist", "athlete"),
    ]
    for task in stream:
        assert {row["answer"] for row in task.test} == set(task.labels)
