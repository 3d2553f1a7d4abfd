"""Recipes: what they accept, and that every mistake is told at once, at its line, with a remedy."""

from __future__ import annotations

import ast
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import perdure
from perdure import recipes
from perdure.errors import RecipeError
from perdure.methods import registry
from perdure.models import codebook
from perdure.prepare import load_recipe
from perdure.recipe import schema
from perdure.recipe.data import DataConfig, TaskConfig
from perdure.recipe.load import dump_recipe
from perdure.recipe.rl import RLConfig
from perdure.recipe.schema import HeadConfig, Recipe
from perdure.recipe.section import Section
from perdure.recipe.until import UntilConfig
from perdure.recipe.yaml import parse_value, read, write
from perdure.streams.kinds import metric_of

pytestmark = pytest.mark.unit

GOOD = """\
model: {path: org/some-model}
stream:
  tasks:
    - name: colours
      train: colours.csv
    - name: counts
      format: labels
      train: counts.jsonl
      columns: {text: said}
method: {name: replay, buffer_size: 32}
train:
  learning_rate: 5e-5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with the two files that `GOOD` names; also the current one."""
    (tmp_path / "colours.csv").write_text("prompt,answer\nsky,blue\n")
    (tmp_path / "counts.jsonl").write_text('{"said": "x", "label": "one"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str, **options: bool) -> Recipe:
    """Load `text` as recipe.yaml of the current folder."""
    Path("recipe.yaml").write_text(text)
    return load_recipe("recipe.yaml", overrides, **options)


def mistakes(text: str, *overrides: str) -> list[str]:
    """What is told of a recipe, line by line, without the last line ("nothing was loaded...")."""
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    *told, last = str(caught.value).split("\n")
    assert last == "  nothing was loaded or written"
    return told


def test_values_and_defaults(folder: Path) -> None:
    recipe = load(GOOD)
    assert recipe.name == "recipe"
    assert recipe.train.learning_rate == 5e-5
    assert recipe.train.batch_size == 8
    assert [task.name for task in recipe.stream.tasks] == ["colours", "counts"]
    assert [spec.name for spec in recipe.methods] == ["replay"]
    assert recipe.methods[0].options["buffer_size"] == 32
    assert recipe.methods[0].options["policy"] == "balanced"  # the method's own default
    assert (recipe.model.head.learning_rate, recipe.model.head.weight_decay) == (1e-3, 1e-2)
    assert recipe.folder == folder
    assert recipe.stream.tasks[1].column("text") == "said"
    assert recipe.stream.tasks[1].column("label") == "label"
    assert [metric_of(t) for t in recipe.stream.tasks] == ["exact_match", "label_likelihood"]


@pytest.mark.parametrize("text", ["5e-5", "5E-5", "0.00005", "5.0e-05"])
def test_numbers_in_any_notation(folder: Path, text: str) -> None:
    assert load(GOOD.replace("5e-5", text)).train.learning_rate == 5e-5
    assert load(GOOD, f"train.learning_rate={text}").train.learning_rate == 5e-5


def test_words_that_yaml_1_1_would_read_as_booleans_stay_words(folder: Path) -> None:
    text = GOOD.replace(
        "columns: {text: said}", "columns: {text: said}\n      labels: [yes, no, on]"
    )
    assert load(text).stream.tasks[1].labels == ["yes", "no", "on"]


def test_paths_become_absolute_those_of_the_command_line_from_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.csv").write_text("prompt,answer\nsky,blue\n")
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe("../recipe.yaml", ["stream.tasks.counts.train=other.csv"])
    assert recipe.stream.tasks[0].train == str(folder / "colours.csv")
    assert recipe.stream.tasks[1].train == str(elsewhere / "other.csv")


def test_the_model_may_be_a_folder_a_file_or_a_hub_id(folder: Path) -> None:
    (folder / "my-model").mkdir()
    (folder / "my.gguf").write_text("")
    for path, expected in {
        "my-model": str(folder / "my-model"),
        "./my.gguf": str(folder / "my.gguf"),
        "org/name-1.5B": "org/name-1.5B",
        "gpt2": "gpt2",
    }.items():
        assert load(GOOD, f"model.path={path}").model.path == expected
    assert mistakes(GOOD, "model.path=./nothing") == [
        "command line: model.path: no such file: ./nothing",
        f"  relative paths start from {folder}",
    ]
    assert mistakes(GOOD, "model.path=my.ggu f") == [
        'command line: model.path: "my.ggu f" is no file, folder or hub id',
        '  did you mean "my.gguf"?',
    ]
    assert mistakes(GOOD, "model.path=package:no_such_package")[0] == (
        "command line: model.path: no package no_such_package"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method.name=gere", "method.k=2", "general.source=pydoc", "seed=7"],
        ["method=[ewc, replay]", "model.tuning=lora", "model.lora.target_modules=[q_proj]"],
        ["stream.order=[counts, colours]", "train.max_steps=3", "name=other: name"],
        ["stream.tasks.counts.instruction=no: \"quoted\" #1 'text' ä", "train.warmup=1e-1"],
        ['stream.tasks.counts.labels=["1", "null", "no", "5e-5"]', "order_matters=true"],
    ],
)
def test_dump_and_reload_is_equal(folder: Path, overrides: list[str]) -> None:
    overrides = [o for o in overrides if "name=other" not in o]
    recipe = load(GOOD, *overrides)
    text = dump_recipe(recipe)
    again = folder / "sub" / "again.yaml"
    again.parent.mkdir()
    again.write_text(text)
    assert load_recipe(again) == recipe
    assert dump_recipe(load_recipe(again)) == text
    assert load_recipe(again, ["seed=9"]) != recipe


def test_sections_with_all_keys_commented_out_mean_defaults(folder: Path) -> None:
    recipe = load(GOOD + "save:\n  # steps: 5\ngeneral:\n")
    assert recipe.save == schema.SaveConfig()
    assert recipe.general is None


# --- overrides


def test_options_of_a_method_in_its_short_form(folder: Path) -> None:
    """`method: gere` in the recipe or `method=gere` before them."""
    (spec,) = load(GOOD, "method=gere", "method.insert=2").methods
    assert (spec.name, spec.options["insert"]) == ("gere", 2)


def test_overrides_replace_values(folder: Path) -> None:
    recipe = load(
        GOOD,
        "train.learning_rate=1e-6",
        "general.replay_rows=3",
        "stream.tasks.0.max_train_rows=5",
        "stream.tasks.counts.labels=[one, two]",
        "stream.tasks.counts.instruction=Say: one or two",
        "model.revision=",
    )
    assert recipe.train.learning_rate == 1e-6
    assert recipe.general is not None
    assert recipe.general.replay_rows == 3
    assert recipe.stream.tasks[0].max_train_rows == 5
    assert recipe.stream.tasks[1].labels == ["one", "two"]
    assert recipe.stream.tasks[1].instruction == "Say: one or two"
    assert recipe.model.revision is None


def test_another_method_takes_none_of_the_first_ones_options(folder: Path) -> None:
    for overrides in (["method.name=gere", "method.k=2"], ["method.k=2", "method.name=gere"]):
        (spec,) = load(GOOD, *overrides).methods
        assert (spec.name, spec.options["k"]) == ("gere", 2)
    (spec,) = load(GOOD, "method.name=replay").methods
    assert spec.options["buffer_size"] == 32  # the same method keeps them
    assert [m.name for m in load(GOOD, "method=[ewc, replay]").methods] == ["ewc", "replay"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learning_rate", ["learning_rate: expected KEY=VALUE",
                           "  for example train.learning_rate=5e-5"]),
        ("train.learning_rat=1", ["train.learning_rat: unknown key",
                                  '  did you mean "learning_rate"?']),
        ("trian.epochs=1", ["trian: unknown key", '  did you mean "train"?']),
        ("train.epochs=many", ['train.epochs: must be a number, not "many"',
                               "  passes over each task's training rows"]),
        ("train.epochs.x=1", ["train.epochs: must be a number, not {'x': 1}",
                              "  passes over each task's training rows"]),
        ("train.learning_rate.x=1", ["train.learning_rate.x: train.learning_rate has no keys "
                                     "below it"]),
        ("stream.tasks.7.name=x", ["stream.tasks.7.name: no item 7; there are 0: colours, "
                                   "1: counts"]),
        ("method.buffersize=3", ["method.buffersize: unknown key",
                                 '  did you mean "buffer_size"?']),
        ("method.name=gree", ['method.name: no method is called "gree"',
                              '  did you mean "gere"? all of them: perdure methods']),
    ],
)  # fmt: skip
def test_mistakes_in_overrides_say_command_line(
    folder: Path, override: str, told: list[str]
) -> None:
    found = mistakes(GOOD, override)
    assert found == [f"command line: {told[0]}", *told[1:]]


# --- mistakes in the file


def test_all_mistakes_at_once_each_with_its_line(folder: Path) -> None:
    """Sections are looked at on their own: what is wrong in one hides nothing in another."""
    text = """\
name: shop
modle:
  path: org/base
stream:
  order: [colours, colurs]
  tasks:
    - name: colours
      train: colors.csv
      metrc: chrf
    - name: colours
      format: label
      train: counts.txt
method:
  name: repaly
  bufer_size: 3
train:
  learning_rate: fast
  micro_batch_size: 3
  scheduel: linear
  schedule: liner
general:
  source: pydocs
model:
  path: org/base
  tunning: lora
  lora: {r: -1, target_modules: 5}
"""
    assert mistakes(text, "train.epochs=0") == [
        "recipe.yaml:2: modle: unknown key",
        '  did you mean "model"?',
        "recipe.yaml:8: stream.tasks.0.train: no such file: colors.csv",
        '  did you mean "colours.csv"?',
        "recipe.yaml:9: stream.tasks.0.metrc: unknown key",
        '  did you mean "metric"?',
        'recipe.yaml:11: stream.tasks.1.format: "label" is none of prompt, chat, labels, '
        "translation, classes, relations",
        '  did you mean "labels"?',
        "recipe.yaml:12: stream.tasks.1.train: no such file: counts.txt",
        '  did you mean "counts.jsonl"?',
        'recipe.yaml:14: method.name: no method is called "repaly"',
        '  did you mean "replay"? all of them: perdure methods',
        'recipe.yaml:17: train.learning_rate: must be a number, not "fast"',
        "  highest learning rate",
        "recipe.yaml:19: train.scheduel: unknown key",
        '  did you mean "schedule"?',
        'recipe.yaml:20: train.schedule: "liner" is none of constant, linear, cosine, '
        "cosine_with_restarts, polynomial, constant_with_warmup, inverse_sqrt",
        '  did you mean "linear"?',
        'recipe.yaml:22: general.source: "pydocs" is no source of text',
        '  did you mean "pydoc"?',
        "recipe.yaml:25: model.tunning: unknown key",
        '  did you mean "tuning"?',
        "recipe.yaml:26: model.lora.r: must be greater than 0, not -1",
        "  rank of the adapters",
        "recipe.yaml:26: model.lora.target_modules: must be a list, not 5",
        "  names of the modules that get an adapter",
        "command line: train.epochs: must be greater than 0, not 0",
        "  passes over each task's training rows",
    ]


def test_mistakes_between_keys_at_once_where_each_sections_keys_are_right(folder: Path) -> None:
    text = """\
name: shop
stream:
  order: [colours, colurs]
  tasks:
    - name: colours
      train: colours.csv
    - name: colours
      train: counts.jsonl
method:
  name: replay
  bufer_size: 3
train:
  micro_batch_size: 3
general:
  source: pydoc
  limit: 3
model:
  path: org/base
  lora: {r: 4}
"""
    assert mistakes(text) == [
        'recipe.yaml:3: stream.order.1: no task is called "colurs"',
        '  did you mean "colours"?',
        'recipe.yaml:7: stream.tasks.1.name: "colours" is the name of stream.tasks.0 already',
        "  give each task its own name",
        "recipe.yaml:11: method.bufer_size: unknown key",
        '  did you mean "buffer_size"?',
        "recipe.yaml:13: train.micro_batch_size: batch_size 8 is no multiple of 3",
        "  2 would do",
        "recipe.yaml:16: general.limit: has no effect without tasks",
        "  list lm-eval tasks",
        "recipe.yaml:19: model.lora: has no effect with tuning: full",
        "  write tuning: lora",
    ]


TASK = "stream: {tasks: [{name: colours, train: colours.csv}]}\n"
REST = "model: {path: org/x}\nmethod: sequential\n"


def column(entry: str, task: str = "") -> str:
    return (
        f"stream: {{tasks: [{{name: a, train: colours.csv, columns: {{{entry}}}{task}}}]}}\n{REST}"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stream: {name: dmeo}\n" + REST,
         ['1: stream.name: no stream is called "dmeo"',
          '  did you mean "demo"? all of them: perdure streams']),
        ("stream: {}\n" + REST,
         ["1: stream: has neither name nor tasks",
          "  name a built-in stream, list your own tasks, or give one table as data"]),
        ("stream: {tasks: [colours.csv]}\n" + REST,
         ["1: stream.tasks.0: must be a section of `key: value` lines"]),
        ("stream: {tasks: [{name: a/b, train: colours.csv}]}\n" + REST,
         ['1: stream.tasks.0.name: "a/b" must be letters, digits, spaces and . + - _ only, '
          "and begin with a letter or digit"]),
        ("stream: {tasks: [{train: colours.csv}]}\n" + REST,
         ["1: stream.tasks.0.name: is required and missing", "  unique; names files"]),
        ("stream: {tasks: [{name: a, train: colours.csv, format: labels, labels: [1, true]}]}\n"
         + REST,
         ["1: stream.tasks.0.labels.1: must be a string, not true",
          '  write it in quotes: "true"']),
        ("stream: {tasks: [{name: a, train: colours.csv, labels: [x, y]}]}\n" + REST,
         ["1: stream.tasks.0.labels: has no effect with format: prompt", "  write format: labels"]),
        ("stream: {tasks: [{name: a, train: colours.csv, metric: label_likelihood}]}\n" + REST,
         ["1: stream.tasks.0.metric: label_likelihood needs format: labels"]),
        ("stream: {tasks: [{name: a, train: colours.csv, metric: rougeL}]}\n" + REST,
         ['1: stream.tasks.0.metric: "rougeL" is none of label_likelihood, exact_match, rouge_l, '
          "chrf, bleu, perplexity, accuracy", '  did you mean "rouge_l"?']),
        ("stream: {tasks: [{name: a, train: train}]}\n" + REST,
         ['1: stream.tasks.0.train: no such file: train', "  relative paths start from HERE"]),
        ("stream: {tasks: [{name: a, train: colours.csv, subset: x}]}\n" + REST,
         ["1: stream.tasks.0.subset: has no effect without dataset", "  leave it out"]),
        (column('prompt: "{a} {b"'),
         ["1: stream.tasks.0.columns.prompt: braces do not pair: expected '}' before end of string",
          "  a brace of the text itself is written twice: {{ }}"]),
        (column('prompt: "{{a}}"'), ["1: stream.tasks.0.columns.prompt: names no column",
         "  write the names of columns in braces: {premise} {hypothesis}"]),
        (column('prompt: "{a!r}"'),
         ["1: stream.tasks.0.columns.prompt: braces hold more or less than a column's name",
          "  write the names of columns in braces: {premise} {hypothesis}"]),
        (column('prompt: "{}"'), ["1: stream.tasks.0.columns.prompt: names no column",
         "  write the names of columns in braces: {premise} {hypothesis}"]),
        (column('messages: "{a} {b}"', ", format: chat"),
         ["1: stream.tasks.0.columns.messages: is one column: only texts are made of several",
          "  write messages: your-column"]),
        (TASK + "model: {path: org/x, max_prompt_length: 64}\nmethod: sequential\n"
         "train: {max_length: 64}\n",
         ["2: model.max_prompt_length: 64 leaves no room for an answer in train.max_length, 64",
          "  lower it, or raise the other"]),
        ("stream:\n  tasks:\n    - {name: a, train: colours.csv}\n  order: [a, a]\n" + REST,
         ['4: stream.order.1: "a" comes twice']),
        (TASK + "model: {path: org/x, lora: {r: 4}}\nmethod: sequential\n",
         ["2: model.lora: has no effect with tuning: full", "  write tuning: lora"]),
        (TASK + "model: {path: org/x}\nmethod: {buffer_size: 3}\n",
         ["3: method: has no name", "  write method: {name: sequential}"]),
        (TASK + "model: {path: org/x}\nmethod: [replay, {name: replay}]\n",
         ["3: method: replay is listed twice"]),
        (TASK + "model: {path: org/x}\nmethod: {name: replay, policy: reservior}\n",
         ['3: method.policy: "reservior" is none of reservoir, balanced',
          '  did you mean "reservoir"?']),
        (TASK + "method: sequential\n",
         ["1: model: is required and missing", "  the base model and how it is trained"]),
        (TASK + REST + "train: {report_to: [wandbb]}\n",
         ['4: train.report_to.0: "wandbb" is none of tensorboard, wandb, mlflow, trackio, '
          "comet_ml, clearml, swanlab", '  did you mean "wandb"?']),
        (TASK + REST + "train: {max_length: .inf}\n", ["4: train.max_length: must be a finite "
         "number, not inf", "  tokens a row at most, prompt and answer"]),
        (TASK + REST + "train: {\u0435pochs: 1}\n", ["4: train.\u0435pochs: unknown key",
         '  did you mean "epochs"? one sign is U+0435, CYRILLIC SMALL LETTER IE: type it anew']),
        (TASK + REST + "train: {epochs: !!str x}\n",
         ['4: train.epochs: must be a number, not "x"',
          "  passes over each task's training rows"]),
        (TASK + REST + "? [a]\n: 2\n", ["4: ('a',): a list is no name of a key: names are text",
         "  put it in quotes; in a number write a point, 0.5"]),
        (TASK + REST + "train: 3\n", ["4: train: must be a section of `key: value` lines",
         "  the optimizer's settings"]),
        # A word whose meaning nobody can guess is told, and nothing that rests on it.
        ("stream:\n  tasks:\n    - {name: a, train: colours.csv, format: zzz, columns: {text: t}}\n"
         + REST, ['3: stream.tasks.0.format: "zzz" is none of prompt, chat, labels, '
                  "translation, classes, relations"]),
    ],
)  # fmt: skip
def test_each_mistake_by_its_text(folder: Path, text: str, told: list[str]) -> None:
    expected = [line.replace("HERE", str(folder)) for line in told]
    assert mistakes(text) == [f"recipe.yaml:{expected[0]}", *expected[1:]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["recipe.yaml:1: is empty", "  see perdure recipes"]),
        ("- a\n- b\n", ["recipe.yaml:1: must be lines of `key: value`", "  see perdure recipes"]),
        ("a: 1\nb: [1\nc: 2\n", ["recipe.yaml:3: expected ',' or ']', but got ':'",
                                 "  a bracket, a quote or the indentation above may be wrong"]),
        ("a: 1\n\tb: 2\n", ["recipe.yaml:2: found character '\\t' that cannot start any token",
                            "  indent with spaces, not with tabs"]),
        ("a: 1\n b: 2\n", ["recipe.yaml:2: mapping values are not allowed here",
                           '  put a text that contains ": " in quotes, and indent keys of one '
                           "section alike"]),
        ("a: 1\nb: \0\n", ["recipe.yaml:2: has the character U+0000, which no YAML may hold",
                           "  delete it, or save the file as UTF-8"]),
        ("a: \x1b[2J\n", ["recipe.yaml:1: has the character U+001B, which no YAML may hold",
                          "  delete it, or save the file as UTF-8"]),
        ("seed: 1\nname: a\nseed: 2\n", ['recipe.yaml:3: found duplicate key "seed"',
                                         "  each key may be written once"]),
    ],
)  # fmt: skip
def test_broken_yaml_names_the_line(folder: Path, text: str, told: list[str]) -> None:
    assert mistakes(text) == told


def test_a_missing_recipe_suggests_one_nearby(folder: Path) -> None:
    (folder / "shop.yaml").write_text(GOOD)
    with pytest.raises(
        RecipeError, match=r"shp\.yaml: no such file\n  did you mean \"shop\.yaml\""
    ):
        load_recipe("shp.yaml")
    (folder / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml:1: not UTF-8 text: byte 0xe9"):
        load_recipe("latin.yaml")


def test_a_key_below_an_anchor_is_still_placed(folder: Path) -> None:
    text = """\
stream:
  tasks:
    - &first
      name: a
      train: colours.csv
      metrik: chrf
    - <<: *first
      name: b
method: sequential
model: {path: org/x}
"""
    assert mistakes(text) == [
        "recipe.yaml:6: stream.tasks.0.metrik: unknown key",
        '  did you mean "metric"?',
        "recipe.yaml:7: stream.tasks.1.metrik: unknown key",
        '  did you mean "metric"?',
    ]


def test_a_tasks_place_for_messages_about_its_data(folder: Path) -> None:
    task = load(GOOD, "stream.tasks.counts.train=counts.jsonl").stream.tasks[1]
    assert task.place("columns.text") == "recipe.yaml:9: stream.tasks.1.columns.text"
    assert task.place("labels") == "recipe.yaml:6: stream.tasks.1.labels"
    assert task.place("train") == "command line: stream.tasks.1.train"
    assert TaskConfig(name="x", train="a.csv").place("train") == "task x: train"


def test_tasks_only_needs_no_model_and_no_method(folder: Path) -> None:
    recipe = load(TASK, tasks_only=True)
    assert [task.name for task in recipe.stream.tasks] == ["colours"]
    assert mistakes(TASK)[0] == "recipe.yaml:1: model: is required and missing"


def test_files_need_not_exist_where_a_finished_run_is_read(folder: Path) -> None:
    text = dump_recipe(load(GOOD))
    (folder / "colours.csv").unlink()
    assert load(text, check_files=False).stream.tasks[0].train == str(folder / "colours.csv")
    assert mistakes(text)[0].endswith("colours.csv")


def test_a_tracker_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.recipe import load

    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert mistakes(GOOD, "train.report_to=[wandb]") == [
        "command line: train.report_to.0: wandb is not installed",
        "  pip install wandb",
    ]


# --- YAML with lines


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("3", 3), ("true", True), ("no", "no"), ("null", None), ("", None),
     ("[a, 1]", ["a", 1]), ("{a: 1}", {"a": 1}), ("a: b", "a: b"), ("- x", "- x"), ("@x", "@x"),
     ("[a", "[a"), ("'5'", "5")],
)  # fmt: skip
def test_values_of_the_command_line(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_lines_of_keys_and_items(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# comment\na:\n  b: 1\n  c: [1,\n      2]\nd: {e: {f: 1}}\n")
    document = read(path)
    assert document.data == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": {"f": 1}}}
    assert document.line(("a", "b")) == 3
    assert document.line(("a", "c", 1)) == 5
    assert document.line(("d", "e", "f")) == 6
    assert document.line(("a", "missing", "deep")) == 2
    assert document.line(("missing",)) == 1
    path.write_text(write(document.data))
    assert read(path).data == document.data


# --- what ships, and what is read


@pytest.mark.parametrize("name", [n for n in recipes.names() if "/" not in n])
def test_shipped_recipes_are_valid(name: str) -> None:
    own_data = name in ("own-jsonl-chat", "r1t1-qwen2.5-7b")  # the user's files, not shipped
    recipe = load_recipe(recipes.path(name), check_files=not own_data)
    assert recipe.name == name
    assert recipes.describe(name)
    assert "perdure run" in recipes.command(name)
    assert f"{name}.yaml" in recipes.command(name)


def test_the_recipe_of_r1t1_is_as_released() -> None:
    """Of the released script of reinforcement, main_grpo.sh: what decides what is learned."""
    recipe = load_recipe(recipes.path("r1t1-qwen2.5-7b"), check_files=False)
    rl, (kl,) = recipe.rl, recipe.methods
    assert rl is not None
    asked = {"beta": 0.001, "estimator": "k3", "reference": "previous", "term": "loss"}
    assert (kl.name, kl.options) == ("kl", asked)
    assert (rl.algorithm, rl.group, rl.batch_size, rl.iterations) == ("grpo", 8, 64, 1)
    assert (rl.temperature, rl.top_p, rl.top_k) == (0.8, 1.0, 0)
    assert (rl.learning_rate, rl.loss, rl.scale) == (4e-7, "dapo", "group")
    assert rl.rewards == [{"name": "format", "weight": 0.2}, "chrf"]
    warm, translation = recipe.stream.tasks
    assert (warm.learn, translation.learn) == ("sft", "rl")
    for task in (warm, translation):
        assert (task.answer, task.prefill, task.max_new_tokens) == ("tagged", "<think>", 8000)
    train = recipe.of_task("rl").train
    assert (train.learning_rate, train.schedule, train.precision) == (4e-7, "constant", "bf16")
    assert train.gradient_checkpointing


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.startswith("accelerate/")])
def test_accelerate_reads_its_configurations(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(recipes.path(name)))
    assert found.num_processes == (16 if "multi-node" in name else 8)
    assert str(found.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED")
    assert recipes.describe(name).startswith("Accelerate: ")
    assert f"{name.partition('/')[2]}.yaml" in recipes.command(name)


def test_choices_are_ones_that_transformers_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(typing.get_args(schema.Optimizer)) <= {o.value for o in OptimizerNames}
    assert set(typing.get_args(schema.Schedule)) <= {s.value for s in SchedulerType}
    assert set(typing.get_args(schema.Tracker)) <= set(INTEGRATION_TO_CALLBACK)


def sections(kind: type[BaseModel] = Section) -> list[type[BaseModel]]:
    """Of a recipe; a codebook's file is made of sections too."""
    own = [each for each in kind.__subclasses__() if each.__module__ != codebook.__name__]
    return [s for each in own for s in (each, *sections(each))]


def attributes_read(folder: Path, skip: set[str]) -> set[str]:
    """Names read as attributes (`x.name`) or by getattr with a literal, in all files but some."""
    found = set()
    for path in folder.rglob("*.py"):
        if path.name in skip:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


def test_every_accepted_key_is_read_in_the_source() -> None:
    read = attributes_read(Path(perdure.__file__).parent, {"schema.py", "data.py"})
    # Two are read in the recipe's own files, through what the others call.
    read |= {"columns", "method"}
    assert "column" in read
    assert "methods" in read
    unread = {
        f"{section.__name__}.{name}"
        for section in sections()
        for name in section.model_fields
        if name not in read
    }
    assert unread == set()


def test_every_accepted_key_is_read_by_a_run(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharper than the test before: `name` is read of a task, not of anything else."""
    from tiny_runs import write_recipe

    from perdure.loop import learn
    from perdure.run import Run

    path = write_recipe(tmp_path, tiny_model_dir, model__tuning="lora")
    general = tmp_path / "general.jsonl"
    general.write_text("".join(f'{{"text": "a text, number {i}"}}\n' for i in range(12)))
    budget = "stop_when={kl: 1e9, flip_share: 1}"
    small = [budget, "train.max_steps=2", f"general.source={general}", "scoring.max_test_rows=2"]
    recipe = load_recipe(path, [*small, "stream.tasks.0.label_names={red: red, blue: blue}"])
    package, read = str(Path(perdure.__file__).parent), set()

    def noting(self: Section, name: str) -> Any:
        if name in type(self).model_fields:
            caller = sys._getframe(1).f_code
            ours = caller.co_filename.startswith(package)
            asked = not caller.co_filename.endswith("config.py")
            if ours and (asked or caller.co_name in ("column", "methods")):
                read.add(f"{type(self).__name__}.{name}")
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Section, "__getattribute__", noting)
    learn(recipe, Run.create(tmp_path / "run", recipe))
    known = {f"{s.__name__}.{name}" for s in sections() for name in s.model_fields}
    # Read only where they matter: a hub data set; a split that is not given; tasks of lm-eval
    # (test_lm_eval.py).
    elsewhere = {"TaskConfig.subset", "TaskConfig.test_share"}
    elsewhere |= {
        f"GeneralConfig.{k}" for k in ("subset", "split", "limit", "num_fewshot", "group")
    }
    elsewhere |= {"TaskConfig.validation_share"}
    # Of translations (tests/streams/test_translation.py).
    elsewhere |= {"TaskConfig.direction"}
    # Of learning from rewards (tests/learners/test_rl.py, test_until.py).
    elsewhere |= {f"{s.__name__}.{k}" for s in (RLConfig, UntilConfig) for k in s.model_fields}
    # A report reads them in the run's own recipe.yaml (tests/reports).
    elsewhere |= {"ScoringConfig.max_drop", "ScoringConfig.max_loss_rise"}
    # Of streams of classes and their heads (tests/streams/test_classes.py, tests/models).
    of_classes = {f"{s.__name__}.{k}" for s in (DataConfig, HeadConfig) for k in s.model_fields}
    of_classes |= {f"ModelConfig.{k}" for k in ("head", "pooling", "template", "truncate")}
    of_classes |= {"StreamConfig.folder"}
    assert known - read == elsewhere | of_classes


@pytest.mark.parametrize("name", registry.names())
def test_every_option_of_a_method_is_read_in_its_file(name: str) -> None:
    """In its file, in that of a base class of the family, or by a mechanism that gets it."""
    kind = registry.load(name)
    homes = [sys.modules[base.__module__] for base in kind.__mro__ if base is not object]
    files = [Path(str(home.__file__)) for home in homes]
    folder = Path(registry.__file__).parent
    own = {path.name for path in files if path.parent == folder}
    read = attributes_read(folder, {p.name for p in folder.glob("*.py")} - own)
    shared = attributes_read(folder.parent / "mechanisms", set())
    assert own
    assert set(kind.Config.model_fields) - read - shared == set()


def test_every_key_says_what_it_does() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not field.description and section is not schema.MethodSpec
    ]
    assert silent == []
