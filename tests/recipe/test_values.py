"""Values of a recipe mean what was written: text that YAML changes, booleans, emoji in halves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from perdure.errors import RecipeError
from perdure.methods import registry
from perdure.prepare import load_recipe
from perdure.protocol.method import MethodConfig
from perdure.recipe import data, schema
from perdure.recipe.load import dump_recipe
from perdure.recipe.mistakes import leaves_of
from perdure.recipe.schema import Recipe
from perdure.recipe.yaml import write
from perdure.rewards import registry as rewards
from perdure.rewards.base import RewardConfig

pytestmark = pytest.mark.unit

TASK = "      train: colours.csv\n"
HEAD = "model: {path: org/x}\nmethod: sequential\nstream:\n  tasks:\n    - name: a\n" + TASK


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colours.csv").write_text("text,label\nsky,blue\n")
    monkeypatch.chdir(tmp_path)


def load(task: str = "", rest: str = "", *overrides: str) -> Recipe:
    """A recipe of one labelled task with more keys (on line 8) and sections."""
    Path("r.yaml").write_text(f"{HEAD}      format: labels\n      {task}\n{rest}", "utf-8")
    return load_recipe("r.yaml", overrides)


def mistakes(task: str = "", rest: str = "", *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(task, rest, *overrides)
    return str(caught.value).split("\n")[:-1]


# ---- text that YAML reads as something else


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("007", "7"), ("010", "10"), ("1_000", "1000"), ("1.50", "1.5"), ("1e3", "1000.0"),
        ("0x1F", "31"), ("+5", "5"),
    ],
)  # fmt: skip
def test_a_number_that_yaml_has_changed_is_told(written: str, read: str) -> None:
    what = f"YAML reads {written} as the number {read}"
    remedy = f'  write it in quotes: "{written}"'
    place = "r.yaml:8: stream.tasks.0.labels.1"
    assert mistakes(f"labels: [x, {written}]") == [f"{place}: {what}", remedy]
    block = f"labels:\n        - x\n        - {written}  # so"
    assert mistakes(block) == [f"{place.replace(':8', ':10')}: {what}", remedy]
    place = "r.yaml:8: stream.tasks.0.label_names.z"
    assert mistakes(f"label_names: {{y: x, z: {written}}}") == [f"{place}: {what}", remedy]
    assert mistakes(f"instruction: {written}") == [
        f"r.yaml:8: stream.tasks.0.instruction: {what}", remedy
    ]  # fmt: skip
    place = "command line: stream.tasks.0.labels.0"
    assert mistakes("", "", f"stream.tasks.a.labels=[{written}, x]") == [f"{place}: {what}", remedy]
    place = "command line: stream.tasks.0.instruction"
    assert mistakes("", "", f"stream.tasks.a.instruction={written}") == [f"{place}: {what}", remedy]
    quoted = load(f"labels: ['{written}', x]").stream.tasks[0]
    assert quoted.labels == [written, "x"]


@pytest.mark.parametrize(
    ("written", "read"),
    [("true", "true"), ("False", "false"), ("2024-01-01", "the date 2024-01-01"),
     ("null", "nothing"), ("~", "nothing")],
)  # fmt: skip
def test_a_word_that_is_none_to_yaml_is_told(written: str, read: str) -> None:
    assert mistakes(f"labels: [{written}, x]") == [
        f"r.yaml:8: stream.tasks.0.labels.0: must be a string, not {read}",
        f'  write it in quotes: "{written}"',
    ]
    if written not in ("null", "~"):
        assert mistakes(f"label_names: {{{written}: x, b: y}}") == [
            f"r.yaml:8: stream.tasks.0.label_names.{_key(written)}: YAML reads {written} as {read}",
            f'  write it in quotes: "{written}"',
        ]


@pytest.mark.parametrize("written", ["null", "true", "2024-01-01"])
def test_a_class_in_a_list_of_tasks_is_text(written: str, tmp_path: Path) -> None:
    """It is told of that class, though the key may hold a number as well."""
    (tmp_path / "r.yaml").write_text(
        "model: {path: a/b}\nmethod: sequential\nstream:\n  data:\n    train: t.csv\n"
        f"    tasks: [[a, 1], [b, {written}]]\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", check_files=False)
    (said,) = caught.value.mistakes
    assert re.search(
        r"r\.yaml:6: stream\.data\.tasks.*: at 1\.1: .* is no text: write it in quotes",
        str(said),
    )


def _key(written: str) -> str:
    return written.capitalize() if written in ("true", "False") else written


def test_a_key_that_yaml_has_changed_is_told() -> None:
    assert mistakes("label_names: {007: x, 8: y}") == [
        "r.yaml:8: stream.tasks.0.label_names.7: YAML reads 007 as 7",
        '  write it in quotes: "007"',
    ]


def test_what_yaml_leaves_as_it_was_is_taken() -> None:
    recipe = load("labels: [7, -1, 3.5, 1.0, yes, No, on, 12:30, 1-2, \"007\", '1_0']")
    assert recipe.stream.tasks[0].labels == [
        "7", "-1", "3.5", "1.0", "yes", "No", "on", "12:30", "1-2", "007", "1_0"
    ]  # fmt: skip
    assert load("label_names: {0: a, 1: b}").stream.tasks[0].label_names == {"0": "a", "1": "b"}
    # A number may be written as one likes where a number belongs.
    train = load("", "train: {learning_rate: 5e-5, batch_size: 1_6, max_length: 0512}").train
    assert (train.learning_rate, train.batch_size, train.max_length) == (5e-5, 16, 512)


def test_a_value_that_is_replaced_is_not_told() -> None:
    recipe = load("labels: [007, 010]", "", "stream.tasks.a.labels=[x, y]")
    assert recipe.stream.tasks[0].labels == ["x", "y"]


# ---- booleans are no numbers


def configs(kind: type[BaseModel]) -> list[type[BaseModel]]:
    return [each for one in kind.__subclasses__() for each in (one, *configs(one))]


def numeric_fields() -> list[tuple[type[BaseModel], str, bool]]:
    """Every key that holds a number and no boolean, and whether it is a list."""
    for name in registry.names():
        registry.load(name)
    for name in rewards.built_in():
        rewards.load(name)
    ours = [*configs(data.Section), *configs(MethodConfig), *configs(RewardConfig)]
    return [
        (section, name, "list" in str(field.annotation))
        for section in ours
        if section.__module__.startswith("perdure.")
        for name, field in section.model_fields.items()
        if leaves_of(field.annotation) & {int, float} and bool not in leaves_of(field.annotation)
    ]


def test_true_is_no_number_anywhere() -> None:
    fields = numeric_fields()
    names = {f"{section.__name__}.{name}" for section, name, _ in fields}
    assert {
        "Recipe.seed",
        "LoraConfig.r",
        "TrainConfig.learning_rate",
        "GeReConfig.layers",
        "LengthConfig.most",
        "RLConfig.temperature",
        "UntilConfig.reach",
    } <= names
    assert len(fields) > 60
    for section, name, many in fields:
        for value in (True, False):
            with pytest.raises(ValidationError) as caught:
                section.model_validate({name: [value] if many else value})
            told = [e["msg"] for e in caught.value.errors() if e["loc"] == (name,)]
            word = str(value).lower()
            assert any(f"must be a number, not {word}" in line for line in told), (section, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite_everywhere(value: float) -> None:
    for section, name, many in numeric_fields():
        given = [value] if many else value
        with pytest.raises(ValidationError) as caught:
            section.model_validate({name: {"a": value} if name == "reach" else given})
        told = [e for e in caught.value.errors() if e["loc"][0] == name]
        assert told, (section, name)


def test_true_for_a_number_is_told_at_its_key() -> None:
    method = {"name": "gere", "weight": True, "layers": [-1, True]}
    text = HEAD.replace("method: sequential", f"method: {json.dumps(method)}")
    Path("r.yaml").write_text(text + "train: {learning_rate: true, batch_size: 4}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", ["seed=true", "train.epochs=false"])
    assert [str(mistake).split("\n")[0] for mistake in caught.value.mistakes] == [
        "r.yaml:2: method.weight: must be a number, not true",
        "r.yaml:2: method.layers.1: must be a number, not true",
        "r.yaml:7: train.learning_rate: must be a number, not true",
        "command line: seed: must be a number, not true",
        "command line: train.epochs: must be a number, not false",
    ]
    assert load("", "train: {gradient_checkpointing: true}").train.gradient_checkpointing is True


# ---- emoji as JSON writes them


def test_an_emoji_in_a_recipe_that_a_program_wrote() -> None:
    task: dict[str, Any] = {
        "name": "a", "format": "labels", "train": "colours.csv", "instruction": "smile 😀!",
        "label_names": {"😀": "good 👍", "b": "bad"},
    }  # fmt: skip
    recipe = {"model": {"path": "org/x"}, "method": "sequential", "stream": {"tasks": [task]}}
    text = json.dumps(recipe, indent=1)
    assert "\\ud83d\\ude00" in text
    Path("r.yaml").write_text(text)
    found = load_recipe("r.yaml", [f"train.epochs={1}"]).stream.tasks[0]
    assert (found.instruction, found.label_names) == ("smile 😀!", {"😀": "good 👍", "b": "bad"})
    over = f"stream.tasks.a.instruction={json.dumps('so 😀')}"
    assert load_recipe("r.yaml", [over]).stream.tasks[0].instruction == "so 😀"


def test_half_an_emoji_is_told_with_its_line() -> None:
    what = "has half a character (a lone surrogate): write the character itself"
    assert mistakes('instruction: "\\ud83d"') == [f"r.yaml:8: stream.tasks.0.instruction: {what}"]
    over = 'stream.tasks.a.instruction="\\ud83d"'
    assert mistakes("", "", over) == [f"command line: stream.tasks.0.instruction: {what}"]


# ---- long lists and long values


def test_an_unknown_key_many_times_is_counted() -> None:
    rest = "".join(f"{name}{i}: 1\n" for i in range(500) for name in ("kk",))
    told = mistakes("", rest + "seed: -1\ntrain: {epochs: -1}\n")
    assert sum("unknown key" in line for line in told) == 10
    assert "r.yaml: and 490 more mistakes like these" in told
    assert "  to list them all: perdure run RECIPE --all-mistakes" in told
    # What is wrong besides is not hidden by it.
    assert any("seed: must be greater" in line for line in told)
    assert any("train.epochs: must be greater" in line for line in told)


def test_long_values_and_keys_are_cut() -> None:
    long = "x" * 50_000
    for task, rest in (
        (f"metric: {long}", ""), (f"format: {long}", ""), ("", f"train: {{schedule: {long}}}\n"),
        ("", f"train: {{learning_rate: {long}}}\n"), (f"columns: {{{long}: a}}", ""),
        (f"label_names: {{a: {long}}}\n      labels: [b, c]", ""),
        ("", f"'{long[:900]}': 1\n"), ("", f"train: {{report_to: [{long}]}}\n"),
    ):  # fmt: skip
        assert max(map(len, mistakes(task, rest))) <= 2000, (task[:20], rest[:20])


def test_sections_know_what_is_text() -> None:
    from perdure.recipe.mistakes import is_text

    for key in (("name",), ("stream", "tasks", 0, "labels", 3), ("stream", "order", 0),
                ("stream", "tasks", 1, "label_names", "x"), ("model", "path")):  # fmt: skip
        assert is_text(schema.Recipe, key), key
    for key in (("seed",), ("train", "epochs"), ("train",), ("nothing",), ("method", "weight")):
        assert not is_text(schema.Recipe, key), key


def test_a_run_reads_every_label_back_as_it_was() -> None:
    """What a run writes of its recipe: words that YAML reads as something else, odd line ends."""
    labels = [
        "007", "1_000", "1.50", "true", "yes", "2024-01-01", "~", "null", "1e3", "0x1F", "+5",
        "12:30", "😀", "a\u2028b", "c\u2029", "\x85x", "d\x0bv", "\x1c1", "e\rf", "g\x07",
        "\u200bz", "\ufeffq", " h", "#x", "- y", "&a", "*b", "!c", "%d", "@e", "'q'", "a: b", "{x}",
        "i\nj", ".inf", "1.", "-",
    ]  # fmt: skip
    task: dict[str, Any] = {
        "name": "007",
        "format": "labels",
        "train": "colours.csv",
        "labels": labels,
    }
    task["label_names"] = {label: label for label in labels}
    recipe = {"model": {"path": "org/x"}, "method": "sequential", "stream": {"tasks": [task]}}
    Path("r.yaml").write_text(write(recipe), "utf-8")
    first = load_recipe("r.yaml")
    found = first.stream.tasks[0]
    assert (found.name, found.labels, found.label_names) == ("007", labels, task["label_names"])
    Path("again.yaml").write_text(dump_recipe(first), "utf-8")
    assert load_recipe("again.yaml") == first
