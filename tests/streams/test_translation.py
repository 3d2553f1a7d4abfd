"""The format translation: its rows and prompts, files aligned by lines, and shared test rows."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perdure import load_recipe
from perdure.audit.plan import plan_measures
from perdure.errors import RecipeError, UsageError
from perdure.recipe.data import StreamConfig, TaskConfig
from perdure.streams import TaskStream, build_stream
from perdure.streams.kinds import format_of, metric
from perdure.streams.kinds.translation import TAG_RULE
from perdure.streams.tagged import parse_tagged
from perdure.streams.unlabelled import Unlabelled

pytestmark = pytest.mark.unit

DOG = {"source": "the dog", "target": "der Hund"}
NTREX = Path(__file__).parents[2] / "../shared/data/ntrex128"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # messages name paths relative to the working folder


def section(**keys: Any) -> TaskConfig:
    return TaskConfig(
        **{"name": "mt", "format": "translation", "train": "t.jsonl", "direction": "en-de", **keys}
    )


def row(values: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return format_of("translation")[1].row(values, section(**keys))


def said(found: dict[str, Any]) -> str:
    (turn,) = found["prompt"]
    assert turn["role"] == "user"
    return str(turn["content"])


def build(folder: Path, *tasks: dict[str, Any]) -> TaskStream:
    stream = StreamConfig(tasks=[section(**task) for task in tasks])
    return build_stream(stream, None, folder, 0)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")


def refused(folder: Path, *tasks: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        build(folder, *tasks)
    return str(error.value)


# --- rows


def test_a_row_by_hand() -> None:
    assert row(DOG) == {
        "prompt": [
            {
                "role": "user",
                "content": "Translate the following text from English into German.\n"
                "English: the dog",
            }
        ],
        "answer": "der Hund",
        "source": "the dog",
        "target": "der Hund",
        "source_lang": "en",
        "target_lang": "de",
    }


def test_what_is_given_beside_is_in_prompt_and_row() -> None:
    found = row(
        {**DOG, "glossary": {"dog": "Hund"}, "context": "A cat ran.", "domain": "animals"},
        answer="tagged",
    )
    assert said(found).split("\n") == [
        "Translate the following text from English into German.",
        TAG_RULE,
        "Domain: animals",
        "Glossary: dog = Hund",
        "Context: A cat ran.",
        "English: the dog",
    ]
    assert (found["glossary"], found["context"]) == ("dog = Hund", "A cat ran.")
    assert found["domain"] == "animals"


def test_an_instruction_is_the_first_line_or_the_whole_prompt() -> None:
    first = said(row({**DOG, "context": "A cat."}, instruction="Into plain {target_lang}!"))
    assert first == "Into plain German!\nContext: A cat.\nEnglish: the dog"
    whole = "Words: {glossary}\n{source_lang}: {{{source}}} {target_lang}:\n\nGo."
    assert said(row({**DOG, "glossary": "a b"}, instruction=whole)) == (
        "Words: a b\nEnglish: {the dog} German:\n\nGo."
    )
    # A line that names something empty is left out, never that of the source.
    assert said(row(DOG, instruction=whole)) == "English: {the dog} German:\n\nGo."
    assert said(row(DOG, instruction="{glossary} {source} =")) == " the dog ="
    braces = {**DOG, "source": "a {target} of {}"}
    assert said(row(braces)).endswith("English: a {target} of {}")


def test_a_tagged_answer_is_read_back_and_opened_by_the_prefill() -> None:
    found = row({**DOG, "reasoning": " dog is Hund "}, answer="tagged", prefill="<think>")
    assert found["answer"] == "<think>dog is Hund</think>\n<answer>der Hund</answer>"
    read = parse_tagged(found["answer"])
    assert (read.thinking, read.answer, read.problem) == ("dog is Hund", "der Hund", "")
    assert found["prefill"] == "<think>"
    # The same file without reasoning: nothing of it is learned or asked for.
    plain = row({**DOG, "reasoning": "dog is Hund"})
    assert (plain["answer"], "prefill" in plain) == ("der Hund", False)


@pytest.mark.parametrize(
    ("columns", "codes"),
    [
        ({"direction": "eng_Latn-deu_Latn"}, ("en", "de")),
        ({"direction": "eng-zho-CN"}, ("en", "zh")),
        ({"direction": "en -> x-velan"}, ("en", "x-velan")),
    ],
)
def test_codes_as_flores_ntrex_and_iso_write_them(
    columns: dict[str, str], codes: tuple[str, str]
) -> None:
    found = row(DOG, **columns)
    assert (found["source_lang"], found["target_lang"]) == codes


def test_each_row_may_have_languages_of_its_own() -> None:
    columns = {"source_lang": "from", "target_lang": "to"}
    found = row({**DOG, "from": "fra_Latn", "to": "zho-TW"}, direction=None, columns=columns)
    assert (found["source_lang"], found["target_lang"]) == ("fr", "zh-Hant")
    assert said(found).startswith("Translate the following text from French into Traditional Chi")


def test_the_metrics_are_called_what_they_are() -> None:
    assert format_of("translation")[1].metric == "chrf"
    assert (metric("chrf").label, metric("bleu").label) == (
        "mean sentence chrF", "mean sentence BLEU",
    )  # fmt: skip


# --- what is refused


@pytest.mark.parametrize(
    ("values", "keys", "told"),
    [
        ({"source": "a <THINK > b"}, {"answer": "tagged"}, '"source" holds the tag <THINK >'),
        ({"target": "</answer>"}, {"answer": "tagged"}, '"target" holds the tag </answer>'),
        ({"context": "<answer>"}, {"answer": "tagged"}, '"context" holds the tag <answer>'),
        ({"domain": "la</answer >w"}, {"answer": "tagged"}, '"domain" holds the tag </answer >'),
        ({"glossary": "a = <think>"}, {"answer": "tagged"}, '"glossary" holds the tag <think>'),
        (
            {"glossary": {"dog": "</think>"}},
            {"answer": "tagged"},
            '"glossary" holds the tag </think>',
        ),
        ({"reasoning": "a</think>b"}, {"answer": "tagged"}, '"reasoning" gives no answer'),
        ({"from": "en"}, {"direction": None}, '"source_lang" is empty or not there'),
        (
            {"source_lang": "en", "target_lang": "xxq"},
            {"direction": None},
            '"target_lang": no language has the code "xxq"',
        ),
        (
            {"source_lang": "en", "target_lang": "eng"},
            {"direction": None},
            "source and target are both Eng",
        ),
    ],
)
def test_what_is_refused_is_named_with_file_and_line(
    tmp_path: Path, values: dict[str, str], keys: dict[str, Any], told: str
) -> None:
    write(tmp_path / "t.jsonl", [DOG, {**DOG, "source": "the cat", **values}])
    text = refused(tmp_path, {"learn": "none", "test": "t.jsonl", "train": None, **keys})
    if "from" in values:  # then the first line lacks it as well
        assert f"t.jsonl:1: {told}" in text
    elif "source_lang" in values:
        assert f"t.jsonl:2: {told}" in text
    else:
        assert f"t.jsonl:2: {told}" in text
        assert "t.jsonl:1" not in text


def test_tags_in_the_data_are_text_without_reasoning(tmp_path: Path) -> None:
    rows = [{"source": f"<think> {i}", "target": f"</answer> {i}"} for i in range(8)]
    write(tmp_path / "t.jsonl", rows)
    (task,) = build(tmp_path, {})
    assert len(task.train) + len(task.test) + len(task.validation) == 8


def recipe(folder: Path, *tasks: dict[str, Any]) -> Path:
    mt = {"name": "mt", "format": "translation", "train": "t.jsonl", "direction": "en-de"}
    said = {"model": {"path": "none"}, "method": "sequential",
            "stream": {"tasks": [{**mt, **task} for task in tasks]}}  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(said, indent=1))
    return path


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"direction": "en-xxq"}, 'direction: direction "en-xxq": no language has the code "xxq"'),
        ({"direction": "en-eng"}, "leads from English into itself"),
        ({"columns": {"source_lang": "a"}}, "columns.source_lang: has no effect with direction"),
        ({"instruction": "In {sorce}"}, "instruction: names {sorce}"),
        ({"instruction": "By {glossary}"}, "without {source} it is one line"),
        ({"instruction": "a } b"}, "instruction: braces do not pair"),
        ({"answer": "tagged", "prefill": "<tink>"}, "is not how a tagged answer begins"),
        ({"prefill": "<think>"}, "prefill: opens <think>, and a plain answer is scored"),
        ({"answer": "tagged", "metric": "perplexity"}, "metric: perplexity reads nothing"),
        ({"answer": "tags"}, "answer"),
        ({"format": "prompt"}, "direction: has no effect with format: prompt"),
        ({"format": "classes", "direction": None, "prefill": "x"}, "prefill: has no effect with"),
        ({"labels": ["a", "b"]}, "labels: has no effect with format: translation"),
        ({"direction": "en-qq"}, "near are qu (Quechua), sq (Albanian); write it as ISO 639"),
        ({"direction": "en-germn"}, 'did you mean "de", German? write it as'),
        ({"columns": {"sauce": "a"}}, "format translation has the columns source, target, source_"),
        (
            {"learn": "none", "until": {"reach": {"chrf": 0.5}}},
            "until: has no effect with",
        ),
        ({"train": {"source": "a.txt"}}, "train: files that are aligned"),
        ({"train": "a.txt"}, "files aligned line by line: train: {source: FILE, target: FILE}"),
        ({"train": {"source": "a.txt", "taget": "b.txt"}}, 'did you mean "target"'),
    ],
)
def test_a_section_that_is_wrong_is_told_at_its_key(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(tmp_path, keys), check_files=False)
    assert told in str(error.value)
    assert "recipe.yaml:" in str(error.value)


def test_rows_without_reasoning_are_not_learned_and_are_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rows = [{"source": f"s {i}", "target": f"t {i}", "trace": f"s is {i}"} for i in range(6)]
    write(tmp_path / "t.jsonl", [*rows, {"source": "s 7", "target": "t 7", "trace": ""}])
    write(tmp_path / "test.jsonl", [DOG])
    keys = {"answer": "tagged", "columns": {"reasoning": "trace"}, "test": "test.jsonl"}
    (task,) = build(tmp_path, keys)
    assert len(task.train) + len(task.validation) == 6
    assert task.test[0]["answer"] == "der Hund"
    assert "1 of 7 rows are left out, as there is nothing in them (the first: t.jsonl:7" in (
        caplog.text
    )
    text = refused(tmp_path, {**keys, "columns": {}})
    assert "columns: {reasoning: YOURS} names another column" in text
    assert 't.jsonl:1: "reasoning" is empty or not there, and with answer: tagged' in text
    # Only scored, the same rows need none.
    (task,) = build(tmp_path, {**keys, "columns": {}, "learn": "none"})
    assert task.train[0]["answer"] == "t 0"


# --- files aligned by lines


def lines(folder: Path, **files: str) -> dict[str, str]:
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return {"source": "eng.txt", "target": "deu.txt"}


def test_lines_of_two_files_are_rows(tmp_path: Path) -> None:
    """Only a line feed ends a line: other signs of `splitlines` stand inside sentences."""
    odd = "b\u2028c\x0bd\x85e"
    train = lines(tmp_path, eng=f"a\r\n{odd}\nc\nd\n\nf\n", deu="A\nB\nC\nD\nE\nF")
    (task,) = build(tmp_path, {"train": train})
    found = [*task.train, *task.validation, *task.test]
    pairs = {(one["source"], one["target"]) for one in found}
    assert pairs == {("a", "A"), (odd, "B"), ("c", "C"), ("d", "D"), ("f", "F")}  # 5 is empty
    assert {one.place for one in found} == {f"eng.txt:{n}" for n in (1, 2, 3, 4, 6)}
    assert task.source == "eng.txt, deu.txt"


def test_unequal_line_counts_are_told_with_both(tmp_path: Path) -> None:
    train = lines(tmp_path, eng="a\nb\nc\n", deu="A\nB\n")
    text = refused(tmp_path, {"train": train})
    assert "eng.txt: 3 lines, and deu.txt has 2" in text
    three = lines(tmp_path, eng="a\nb\n", deu="A\nB\n", ctx="1") | {"context": "ctx.txt"}
    assert "eng.txt: 2 lines, and deu.txt has 2 and ctx.txt has 1" in refused(
        tmp_path, {"train": three}
    )
    assert "empty: no lines" in refused(tmp_path, {"train": lines(tmp_path, eng="", deu="")})


def test_files_by_lines_beside_a_table_and_other_columns(tmp_path: Path) -> None:
    train = lines(tmp_path, eng="a\nb\nc\n", deu="A\nB\nC\n", why="x\ny\nz\n")
    write(tmp_path / "test.jsonl", [{"english": "the dog", "german": "der Hund"}])
    columns = {"source": "english", "target": "german"}
    keys = {"columns": columns, "test": "test.jsonl", "answer": "tagged"}
    (task,) = build(tmp_path, {**keys, "train": train | {"reasoning": "why.txt"}})
    assert task.test[0]["target"] == "der Hund"
    assert "<think>x</think>\n<answer>A</answer>" in {one["answer"] for one in task.train} | {
        one["answer"] for one in task.validation
    }


def test_a_recipes_line_files_are_found_beside_it(tmp_path: Path) -> None:
    train = lines(tmp_path, eng="a\nb\n", deu="A\nB\n")
    found = load_recipe(recipe(tmp_path, {"train": train, "encoding": "utf-8"}))
    assert found.stream.tasks[0].train == {
        "source": str(tmp_path / "eng.txt"), "target": str(tmp_path / "deu.txt"),
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"train\.target: no such file: due\.txt"):
        load_recipe(recipe(tmp_path, {"train": {"source": "eng.txt", "target": "due.txt"}}))


@pytest.mark.skipif(not NTREX.is_dir(), reason="needs ../shared/data/ntrex128")
def test_ntrex_is_read_as_it_is() -> None:
    files = {"source": str(NTREX / "eng.txt"), "target": str(NTREX / "zho-CN.txt")}
    (task,) = build(NTREX, {"train": files, "direction": "eng-zho-CN"})
    assert len(task.train) + len(task.validation) + len(task.test) == 1997
    assert task.train[0]["target_lang"] == "zh"


# --- test rows of another task


@pytest.mark.parametrize("given", [False, True])
def test_a_task_shares_another_ones_test_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    """Rows that the other task set aside are set aside here too; of a file of its own it is told
    how many are trained on, as everywhere."""
    caplog.set_level(logging.WARNING)
    rows = [{"source": f"s {i}", "target": f"t {i}", "reasoning": f"s is {i}"} for i in range(20)]
    write(tmp_path / "t.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:4])
    first = {"name": "warm", "answer": "tagged", "test_of": "mt"}
    warm, mt = build(
        tmp_path, first, {"answer": "tagged", **({"test": "test.jsonl"} if given else {})}
    )
    assert warm.test == mt.test
    assert len(mt.test) == 4
    assert (warm.test_of, mt.test_of) == ("mt", "")
    learned = {one["source"] for one in (*warm.train, *warm.validation)}
    assert len(learned) == (20 if given else 16)
    assert len(learned & {one["source"] for one in mt.test}) == (4 if given else 0)
    # Both learn from the same rows, as they are meant to; a test row that is trained on is told.
    shared = [text for text in caplog.messages if "of an earlier task" in text]
    assert [text.split(" the prompt")[0] for text in shared] == (
        ["tasks: 4 rows have"] if given else []
    )
    aside = "task warm: 4 of 20 train rows are set aside as test rows of mt" in caplog.text
    assert aside is not given
    # One measure of an audit, as one answer to each row is all there is.
    assert [part.name for part in plan_measures(("tasks",), [warm, mt], (), None).parts] == ["mt"]
    assert len(plan_measures(("tasks",), [warm], (), None).parts) == 1


def test_rows_that_another_file_has_too_are_set_aside_by_their_prompt(tmp_path: Path) -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}", "reasoning": f"s is {i}"} for i in range(20)]
    write(tmp_path / "t.jsonl", rows)
    write(tmp_path / "warm.jsonl", [{**row, "target": "other"} for row in rows])
    first = {"name": "warm", "train": "warm.jsonl", "answer": "tagged", "test_of": "mt"}
    warm, mt = build(tmp_path, first, {"answer": "tagged"})
    learned = {one["source"] for one in (*warm.train, *warm.validation)}
    assert learned == {row["source"] for row in rows} - {one["source"] for one in mt.test}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"prefill": "<think>"}, "prefill: none, and this task with prefill: <think>"),
        ({"answer": "plain"}, "answer: tagged, and this task with answer: plain"),
        ({"metric": "bleu"}, "metric: chrf, and this task with metric: bleu"),
        ({"max_new_tokens": 9}, "max_new_tokens: 32, and this task with max_new_tokens: 9"),
    ],
)
def test_tasks_that_read_otherwise_share_no_test_rows(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}", "reasoning": "r"} for i in range(9)]
    write(tmp_path / "t.jsonl", rows)
    first = {"name": "warm", "answer": "tagged", "test_of": "mt", **keys}
    text = refused(tmp_path, first, {"answer": "tagged"})
    assert f'test_of: "mt" is scored with {told}' in text


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("Say it in {target_lang}: {source}", True),
        ("{tag_rule} Say it in {target_lang}: {source}", False),
        ("Answer in <answer> tags: {source}", False),
        ("Say it in {target_lang}.", False),  # the tags' rule is put behind it
        ("", False),
    ],
)
def test_an_instruction_that_does_not_say_the_tags_is_told(
    tmp_path: Path, instruction: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write(tmp_path / "t.jsonl", [{**DOG, "source": f"dog {i}", "reasoning": "r"} for i in range(9)])
    keys = {"answer": "tagged", "instruction": instruction or None}
    (task,) = build(tmp_path, keys)
    assert ("does not say {tag_rule}" in caplog.text) is told
    assert ("<answer>" in said(task.test[0])) is not told


@pytest.mark.parametrize("name", ["mt2", "warm", "third"])
def test_only_another_task_s_own_test_rows_can_be_shared(tmp_path: Path, name: str) -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}"} for i in range(9)]
    write(tmp_path / "t.jsonl", rows)
    first, third = {"name": "warm", "test_of": name}, {"name": "third", "test_of": "mt"}
    text = refused(tmp_path, first, {}, third)
    assert f'test_of: no other task with test rows of its own is called "{name}"' in text
    assert "there are: mt" in text


def test_rows_of_a_task_of_the_extended_run_can_be_shared(tmp_path: Path) -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}"} for i in range(20)]
    write(tmp_path / "t.jsonl", rows)
    (old,) = build(tmp_path, {})
    # As a run keeps them: rows without a place.
    kept = replace(old, test=[dict(row) for row in old.test], train=(), train_kept=False)
    stream = StreamConfig(tasks=[section(name="again", test_of="mt")])
    (new,) = build_stream(stream, None, tmp_path, 0, [kept])
    assert (new.test_of, list(new.test)) == ("mt", list(old.test))
    learned = {one["source"] for one in (*new.train, *new.validation)}
    assert len(learned) == 16
    assert not learned & {one["source"] for one in old.test}
    other = StreamConfig(tasks=[section(name="again", test_of="mt", metric="bleu")])
    with pytest.raises(RecipeError, match="is scored with metric: chrf"):
        build_stream(other, None, tmp_path, 0, [kept])


# --- rows without a target


def test_rows_to_translate_are_read_like_the_tasks_own(tmp_path: Path) -> None:
    task = section(answer="tagged", prefill="<think>", columns={"source": "english"})
    (tmp_path / "new.txt").write_text("the dog\n\nthe cat\n")
    one, none, _ = Unlabelled(task).of_file(tmp_path / "new.txt")
    assert none is None
    assert one is not None
    assert one["prompt"] == row(DOG, answer="tagged")["prompt"]
    assert one["prefill"] == "<think>"
    write(tmp_path / "new.jsonl", [{"english": "the dog", "reasoning": "</think>"}])
    (two,) = Unlabelled(task, direction="en-fr").of_file(tmp_path / "new.jsonl")
    assert two is not None
    assert two["target_lang"] == "fr"
    assert two["answer"] == "?"  # what is only learned is not looked at
    with pytest.raises(UsageError, match="task mt is no translation: its format is prompt"):
        Unlabelled(TaskConfig(name="mt", train="a.csv"), direction="en-fr")
    with pytest.raises(UsageError, match='direction "en" is no pair'):
        Unlabelled(task, direction="en")
    by_rows = Unlabelled(section(direction=None))
    with pytest.raises(
        RecipeError, match="say it for all rows: --direction en-de, or fill"
    ) as told:
        by_rows.of_file(tmp_path / "new.txt")  # the task's own direction cannot be written any more
    assert "write the task's direction" not in str(told.value)
