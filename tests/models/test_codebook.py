"""The codebook: read and written as it is, edited by hand into nonsense, adapters by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.errors import RecipeError, UsageError
from perdure.models.codebook import Calibrated, Codebook, Group, SimilarityConfig, next_version

pytestmark = pytest.mark.unit

TOPIC = Group(name="topic", adapter="topic@1", instructions=("What is the topic?",), tasks=("ag",))
MOOD = Group(
    name="sentiment",
    adapter="sentiment@3",
    instructions=("Is it positive?", "Gefällt es? 感情"),
    tasks=("amazon", "sst2"),
)
BOOK = Codebook(base="3f2a", groups=(TOPIC, MOOD))


def test_it_is_readable_json_that_reads_back_as_it_was(tmp_path: Path) -> None:
    file = BOOK.save(tmp_path)
    text = file.read_text("utf-8")
    assert file.name == "codebook.json"
    assert "Gefällt es? 感情" in text
    assert len(text.splitlines()) > 20
    assert Codebook.load(tmp_path) == Codebook.load(file) == BOOK
    encoder = SimilarityConfig(name="embedding", encoder="package:e", fingerprint="ab")
    said = Calibrated(between=0.73, rewordings=[0.4, 0.5], why=["a", "b"])
    held = TOPIC.model_copy(update={"rewordings": ("Which theme?",)})
    other = Codebook(
        similarity=encoder, fallback="last", calibration=said, strangers=("Hi.",), groups=(held,)
    )
    other.save(tmp_path)
    assert Codebook.load(tmp_path) == other
    assert other.continued("topic", ["New."], "t").groups[0].rewordings == held.rewordings


def test_thresholds_that_are_not_given_are_the_measure_s() -> None:
    def of(**given: Any) -> tuple[float, float]:
        book = Codebook(**given)
        return book.threshold, book.accept

    vectors: Any = {"name": "embedding", "encoder": "e"}
    assert of() == of(similarity=SimilarityConfig()) == (0.9, 0.9)
    assert of(threshold=0.3) == (0.3, 0.3)  # the specification has one for both
    assert of(threshold=0.3, accept=0.2) == (0.3, 0.2)
    assert of(similarity=vectors) == of(similarity=SimilarityConfig(**vectors)) == (0.9, 0.3)
    assert of(similarity=vectors, accept=0.4) == (0.9, 0.4)
    assert of(similarity=vectors, threshold=0.8) == (0.8, 0.3)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edited


def put(*key: Any, value: Any) -> Callable[[str], str]:
    def change(data: Any) -> None:
        for part in key[:-1]:
            data = data[part]
        data[key[-1]] = value

    return edit(change)


@pytest.mark.parametrize(
    ("nonsense", "says"),
    [
        (put("threshold", value=1.5), ["threshold: must be less than or equal to 1", "0 to 1"]),
        (put("accept", value=-0.1), ["accept: must be greater than or equal to 0", "0 to 1"]),
        (put("accept", value="often"), ["accept: must be a number"]),
        (put("threshold", value=True), ["threshold: must be a number, not true"]),
        (put("threshold", value=float("nan")), ["threshold: must be a finite number"]),
        (put("score", value="median"), ["score: ", "none of mean, max"]),
        (put("fallback", value="lasst"), ["fallback: ", 'did you mean "last"']),
        (put("acept", value=0.3), ["acept: unknown key", 'did you mean "accept"']),
        (put("fallback", value="nobody"), ["fallback: ", "of base, nearest, last", "one of them"]),
        (put("treshold", value=0.3), ["treshold: unknown key", 'did you mean "threshold"']),
        (edit(lambda d: d.pop("threshold")), ["threshold: is required and missing", "0.9"]),
        (edit(lambda d: d.pop("accept")), ["accept: is required and missing", "threshold"]),
        (put("threshold", value=None), ["threshold: must be a number, not nothing"]),
        (put("base", value=5), ["base: must be a string, not 5", "in quotes"]),
        (put("format", value=2), ["format: 2 is none of 1", "the Perdure that wrote it"]),
        (put("similarity", "name", value="tf-idf"), ["similarity.name: ", "tfidf"]),
        (put("similarity", "name", value="foo"), ["similarity.name: ", "write one of them"]),
        (put("similarity", "encoder", value="e"), ["similarity.encoder: has no effect with tfidf"]),
        (put("similarity", value={"name": "embedding"}), ["similarity.encoder: is missing"]),
        (
            put("groups", 1, "name", value="Topic"),
            ["groups.1.name (group Topic): two groups are called", "groups.0", "rename one"],
        ),
        (
            put("groups", 1, "adapter", value="topic@1"),
            ["groups.1.adapter (group sentiment): ", "the adapter of topic as well"],
        ),
        (
            put("groups", 1, "adapter", value="sentiment.v3"),
            ["groups.1.adapter (group sentiment): ", "sentiment@1"],
        ),
        (put("groups", 1, "adapter", value="sentiment@0"), ["groups.1.adapter", "a version"]),
        (put("groups", 1, "adapter", value="../secret"), ["groups.1.adapter", "no name of"]),
        (put("groups", 0, "name", value="base"), ["groups.0.name", "without an adapter"]),
        (put("groups", 0, "name", value="a/b"), ["groups.0.name", "must be letters", '"a_b"']),
        (put("groups", 0, "name", value=""), ["groups.0.name: ", "must be letters", 'write "gr']),
        (put("groups", 0, "name", value=" a"), ["groups.0.name", "spaces around", 'write "a"']),
        (put("groups", 0, "name", value="a "), ["groups.0.name", "spaces around", 'write "a"']),
        (put("groups", 0, "name", value="a\n"), ["groups.0.name", "spaces around", 'write "a_"']),
        (put("groups", 0, "name", value="-"), ["groups.0.name", 'write "g-"']),
        (put("groups", 0, "name", value="x" * 81), ["groups.0.name", "more than 80 characters"]),
        (put("groups", 0, "name", value=5), ["groups.0.name: must be a string, not 5", "quotes"]),
        (
            put("groups", 0, "adapter", value=5),
            ["groups.0.adapter (group topic): must be a string"],
        ),
        (
            put("groups", 0, "instructions", value=[5]),
            ["groups.0.instructions.0 (group topic): must be a string, not 5", "quotes"],
        ),
        (put("groups", 0, "tasks", value=[True]), ["groups.0.tasks.0", "must be a string"]),
        (
            put("groups", 1, "instructions", value=["What is the topic?"]),
            ["groups.1.instructions.0 (group sentiment): ", "groups.0, topic, ", "one group"],
        ),
        (put("groups", 0, "instructions", value=[]), ["groups.0.instructions", "at least 1"]),
        (put("groups", 0, "instructions", value=[" "]), ["groups.0.instructions.0", "blank"]),
        (put("groups", 0, "instructions", value=["a", "a"]), ["groups.0.instructions.1", "twice"]),
        (
            put("groups", 0, "instructions", value=["a", "b c", "b  c", "b c"]),
            ["groups.0.instructions.2", "twice"],
        ),
        (put("groups", 0, "instructions", value="a"), ["groups.0.instructions", "a list"]),
        (edit(lambda d: d["groups"][0].pop("adapter")), ["groups.0.adapter", "missing"]),
        (put("groups", value={"topic": []}), ["groups: must be a list"]),
        (lambda text: text.replace('"accept"', '"threshold"'), ["threshold: stands there twice"]),
        (lambda text: text.replace('"base"', "base"), ["codebook.json:3: is not valid JSON"]),
        (lambda text: "[]", ["is no codebook"]),
        (lambda text: "", ["is not valid JSON"]),
        (lambda text: "[" * 100_000, ["nested too deep"]),
    ],
)
def test_nonsense_is_refused_with_file_key_and_remedy(
    tmp_path: Path, nonsense: Callable[[str], str], says: list[str]
) -> None:
    file = BOOK.save(tmp_path)
    file.write_text(nonsense(file.read_text("utf-8")), "utf-8")
    with pytest.raises(UsageError) as caught:
        Codebook.load(tmp_path)
    told = str(caught.value)
    assert all(part in told for part in [str(file), *says]), told
    assert len(told.splitlines()) > 1
    assert all(map(str.strip, told.splitlines())), told  # each mistake has a remedy
    assert "has 0 entries, and at least 1" not in told or says[-1] == "at least 1"


def test_what_perdure_writes_is_read_whatever_its_tasks_are(tmp_path: Path) -> None:
    """Two groups with the same texts, as by the mean a task of many may be unlike itself; names
    from tasks' names; and what an earlier Perdure wrote, which knew nothing held out."""
    book = BOOK
    for task in ("a" * 69 + " b", " x ", "week 2.5+de", "5", "-", "base", "日本語"):
        book = book.opened(book.new_name(task), ["one", "two"], task)
    assert len({group.instructions for group in book.groups[2:]}) == 1
    assert Codebook.model_validate(book.model_dump(mode="json")) == book
    early = {**book.model_dump(mode="json"), "base": ""}
    for part in (early, *early["groups"], early["similarity"]):
        for key in ("rewordings", "strangers", "calibration", "fingerprint"):
            part.pop(key, None)
    for said, wanted in ((early, ""), (json.loads(book.text()), "3f2a")):
        (tmp_path / "codebook.json").write_text(json.dumps(said), "utf-8")
        assert Codebook.load(tmp_path) == book.model_copy(update={"base": wanted})


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    file = BOOK.save(tmp_path)
    text = put("accept", value=7)(put("groups", 0, "name", value="")(file.read_text("utf-8")))
    file.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        Codebook.load(file)
    assert len(caught.value.mistakes) == 2


def test_a_codebook_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Codebook.load(tmp_path / "codebook.json")
    (tmp_path / "codebook.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UsageError, match="is not UTF-8"):
        Codebook.load(tmp_path)


def test_nothing_changes_a_codebook() -> None:
    before = BOOK.text()
    with pytest.raises(ValidationError):
        BOOK.accept = 0.1  # type: ignore[misc]
    BOOK.continued("topic", ["Another."], "db")
    BOOK.opened("new", ["Third."], "copa")
    assert BOOK.text() == before
    assert isinstance(BOOK.groups, tuple)
    assert isinstance(TOPIC.instructions, tuple)


def test_a_group_that_is_continued_keeps_its_texts_and_gets_a_new_version() -> None:
    book = BOOK.continued("sentiment", ["Is it positive?", " Good or bad? ", ""], "yelp")
    assert book.groups[0] == TOPIC
    new = book.groups[1]
    assert new.adapter == "sentiment@4"
    assert new.instructions == (*MOOD.instructions, "Good or bad?")
    assert new.tasks == ("amazon", "sst2", "yelp")
    again = book.continued("sentiment@4", ["Good or bad?"], "yelp").groups[1]
    assert (again.instructions, again.tasks) == (new.instructions, new.tasks)


def test_a_new_group_stands_behind_the_others_with_a_first_version() -> None:
    book = BOOK.opened("copa", ["Pick.", "Pick.", "Choose."], "copa")
    assert [group.name for group in book.groups] == ["topic", "sentiment", "copa"]
    assert (book.groups[2].adapter, book.groups[2].instructions) == ("copa@1", ("Pick.", "Choose."))
    with pytest.raises(UsageError, match=r"task copa: none of its rows has an instruction"):
        BOOK.opened("copa", ["", " "], "copa")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("copa", "copa"),
        ("topic", "topic-2"),
        ("Topic", "Topic-2"),
        ("base", "base-2"),
        ("week 2.5+de", "week 2_5_de"),  # peft's modules have no point in their name
        ("-x", "g-x"),
        ("日本語", "日本語"),
        ("a" * 80, "a" * 70),
    ],
)
def test_a_group_s_name_is_its_first_task_s(task: str, name: str) -> None:
    assert BOOK.new_name(task) == name
    assert BOOK.opened(name, ["text"], task).groups[-1].adapter == f"{name}@1"


def test_versions_count_up() -> None:
    assert [next_version(one) for one in ("a@1", "a@9", "sql")] == ["a@2", "a@10", "sql@2"]


@pytest.mark.parametrize("name", ["sentiment", "sentiment@3"])
def test_an_adapter_has_the_name_of_its_group_and_its_own(name: str) -> None:
    assert BOOK.group(name) == MOOD


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sentimant", "did you mean sentiment"),
        ("topc@1", "did you mean topic@1"),
        ("bse", "did you mean base"),
        ("zzz", "those there are: topic, topic@1, sentiment, sentiment@3, base"),
        ("sentiment@2", "sentiment is at sentiment@3"),  # a server's stale name
    ],
)
def test_an_unknown_adapter_is_an_error_with_the_nearest_names(name: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        BOOK.group(name)
    assert f"no adapter is called '{name}'" in str(caught.value)
    assert says in str(caught.value)


def test_adapters_and_base_are_those_that_the_codebook_names() -> None:
    BOOK.check_adapters(["sentiment@3", "topic@1", "another"])
    with pytest.raises(RecipeError) as caught:
        BOOK.check_adapters(["sentiment@2", "topic@1"], "pool/codebook.json")
    told = str(caught.value)
    assert "pool/codebook.json: groups.1.adapter: no adapter is called 'sentiment@3'" in told
    assert "did you mean sentiment@2" in told
    BOOK.check_base("3f2a")
    BOOK.check_base("")
    Codebook().check_base("ffff")
    with pytest.raises(UsageError, match=r"base: .*3f2a.*ffff"):
        BOOK.check_base("ffff")
