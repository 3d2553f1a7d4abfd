"""Of mutated recipes and data files none ends in a traceback, and what is accepted can be learned.

PERDURE_MUTATIONS=all tries 700 recipes and 200 data files and learns a step of each that is
accepted; else a sample is checked, and the first `FEW` that are accepted are learned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mutated_data
import mutations
import pytest
import whole_recipes
from mutations import Case, Outcome, attempt, check, one_step, text_of
from whole_recipes import Recipe

pytestmark = pytest.mark.train

ALL = os.environ.get("PERDURE_MUTATIONS") == "all"
FEW = 4
NOT_OF_TABLES = {f"stream.data.until.{key}" for key in ("reach", "every", "rows")}
"""Keys of a task's `until`, which no recipe with `stream.data` may have."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Recipe]]:
    with mutations.folder_of(tmp_path_factory.mktemp("mutations")) as found:
        yield found


def written(recipe: Recipe) -> Path:
    file = Path("whole.yaml")
    file.write_text(text_of(recipe), "utf-8")
    return file


def wrong(found: dict[str, Outcome]) -> str:
    return "\n".join(f"--- {case}: {of.how}\n{of.told}" for case, of in found.items() if of.wrong)


def test_the_recipes_use_every_key_and_are_right(recipes: dict[str, Recipe]) -> None:
    used = {
        whole_recipes.key_of(recipe, place)
        for recipe in recipes.values()
        for place in whole_recipes.places(recipe)
    }
    assert whole_recipes.schema_keys() - used <= NOT_OF_TABLES
    found = {name: check(written(recipe)) for name, recipe in recipes.items()}
    assert {name: of.told for name, of in found.items() if of.how != "accepted"} == {}


def test_a_sample_has_every_kind_at_every_key(recipes: dict[str, Recipe]) -> None:
    every = mutations.cases(recipes)
    assert len({case.kind for case in every}) == len(mutations.KINDS) >= 20
    keys = {whole_recipes.key_of(recipes[case.base], case.place) for case in every}
    assert whole_recipes.schema_keys() - keys <= NOT_OF_TABLES
    assert len(every) == len(keys) * len(mutations.KINDS)
    some = mutations.sample(every, 700, 0)
    assert some == mutations.sample(every, 700, 0)
    assert {case.kind for case in some} == {*mutations.KINDS}
    places = {case[::2] for case in some}
    assert len(places) > 0.9 * len(keys)  # no key is drawn thrice before the others twice


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("data", [False, True], ids=["recipes", "data"])
def test_none_ends_in_a_traceback(recipes: dict[str, Recipe], data: bool) -> None:
    every = len(mutated_data.all_cases()) if data else len(mutations.cases(recipes))
    count = (200 if data else 700) if ALL else (12 if data else 60)
    found: dict[str, Outcome] = {}
    for told, file, more in mutations.tries(recipes, count / every, seed=4, data=data):
        learned = sum(of.how != "refused" for of in found.values())
        found[told] = attempt(file, ALL or learned < FEW, more)
    assert wrong(found) == ""
    assert {of.how for of in found.values()} >= {"refused", "learned"}


def test_what_fails_is_found(recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that fails, a message without end and a check that hangs are each told as such."""
    import perdure.prepare

    file = written(recipes["method sequential"])

    def raises(*_: object, **__: object) -> None:
        raise KeyError("not a PerdureError")

    monkeypatch.setattr(perdure.prepare, "stream_of", raises)
    assert check(file).how == "traceback"

    def hangs(*_: object, **__: object) -> None:
        while True:
            pass

    monkeypatch.setattr(perdure.prepare, "stream_of", hangs)
    monkeypatch.setattr(mutations, "SECONDS", 0.2)
    assert check(file).how == "slow"
    monkeypatch.undo()
    assert one_step(Path("gone.yaml")).how == "failed"
    monkeypatch.setattr(mutations, "LONGEST", 5)
    assert check(file).how == "long"


def test_a_wrong_exit_code_and_a_run_that_learned_nothing_are_found(
    recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word that excuses, "not finite", excuses a message of code 5 alone."""
    from perdure.errors import RunError, TrainingError

    file = written(recipes["method sequential"])

    def ends(error: Exception | None) -> str:
        def command(*_: object, **__: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr("perdure.commands.learn.run", command)
        return one_step(file).how

    assert ends(TrainingError("the loss is not finite at step 1")) == "learned"
    assert ends(TrainingError("a full disk")) == "failed"
    assert ends(RunError("a number is not finite")) == "failed"
    assert ends(ValueError("a number is not finite")) == "traceback"
    assert ends(None) == "failed"  # nothing was written
    monkeypatch.setattr(
        "perdure.commands.learn.run", lambda *_, **__: (_ for _ in ()).throw(RunError("x"))
    )
    assert check(file).how == "traceback"  # 4 is no code of a check


def test_what_a_run_did_not_learn_is_told(tmp_path: Path) -> None:
    lines = {
        "stream.json": '[{"name": "a"}, {"name": "b", "learn": "none"}]',
        "perdure.log": "",
        "scores.jsonl": '{"kind": "task", "after": 2, "task": "a", "score": 0.5}\n',
        "log.jsonl": '{"after": 1, "step": 1, "loss": 0.5}\n',
    }

    def told(**changed: str) -> str:
        for name, text in {**lines, **{k.replace("_", "."): v for k, v in changed.items()}}.items():
            (tmp_path / name).write_text(text)
        return mutations.unlearned(tmp_path)

    assert "finished" in told()
    (tmp_path / "finished").write_text("{}")
    assert told() == ""
    assert told(log_jsonl="") == "no step of task 1, a, was logged"
    assert told(log_jsonl='{"after": 1, "step": 1, "loss": NaN}\n') != ""
    assert told(scores_jsonl='{"kind": "task", "after": 1, "task": "a", "score": 0.5}\n') != ""
    placed = "2026-01-01 task a: prototypes of 4 rows"
    assert told(log_jsonl="", perdure_log=placed) == ""


FOUND = [
    ("tasks", "5000 brackets", ("name",), "40 brackets or sections lie inside each other"),
    ("tasks", "an alias bomb", ("name",), "with all that its aliases repeat"),
    ("tasks", "merged with itself", ("train",), "*a contains itself"),
    ("tasks", "more digits than int() takes", ("seed",), "cannot be read"),
    ("tasks", "a Python object", ("seed",), "is not read: write the plain value"),
    ("tasks", "NUL", ("model", "chat_template"), "holds a NUL character"),
    ("tasks", "a long name", ("model", "chat_template"), "too many characters"),
    ("tasks", "a stranger's home", ("model", "path"), "there is no home folder of that name"),
    ("tasks", "a loop of links", ("model", "chat_template"), "a link that leads back to itself"),
    ("tasks", "a pipe", ("model", "chat_template"), "is a pipe, not a file"),
    ("tasks", "a device", ("model", "chat_template"), "is a device, not a file"),
    ("tasks", "a folder", ("model", "chat_template"), "is a folder, not a file"),
    ("tasks", "a pipe", ("stream", "tasks", 0, "train"), "is a pipe, not a file"),
    ("tasks", "a pipe", ("general", "source"), "is a pipe, not a file"),
    ("tasks", "a billion", ("model", "lora", "r"), "is above the model's width, 64"),
    ("tasks", "a billion", ("gauges", "texts"), "less than or equal to 10000"),
    ("method sequential", "a billion", ("train", "batch_size"), "times in a step"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "kind", "place", "told"), FOUND)
def test_what_was_found(
    recipes: dict[str, Recipe], base: str, kind: str, place: whole_recipes.Path_, told: str
) -> None:
    file = Path("found.yaml")
    file.write_text(mutations.mutated(recipes, Case(base, kind, place)), "utf-8", "surrogatepass")
    found = check(file)
    assert found.how == "refused", found.told
    assert told in found.told
    assert found.seconds < 5


def changed(recipes: dict[str, Recipe], file: str, row: str) -> Outcome:
    """A check of the recipe that reads a file, whose third line is another."""
    path, kept = Path(file), Path(file).read_text("utf-8")
    lines = kept.split("\n")
    path.write_text("\n".join([*lines[:2], row, *lines[3:]]), "utf-8")
    try:
        return check(written(recipes[mutated_data.FILES[file]]))
    finally:
        path.write_text(kept, "utf-8")


@pytest.mark.parametrize(
    ("file", "row", "told"),
    [
        ("general.jsonl", r'{"body": "a\ud83d"}', '"body" has half a character'),
        ("general.jsonl", '{"body": ["a"]}', '"body" is a list, not text'),
        ("chat.jsonl", r'{"messages": [{"role": "\uD83D"}]}', "has half a character"),
        ("chat.jsonl", r'{"\ud83d": 1}', "has half a character"),
    ],
)
def test_what_was_found_in_data(recipes: dict[str, Recipe], file: str, row: str, told: str) -> None:
    found = changed(recipes, file, row)
    assert found.how == "refused", found.told
    assert f"{file}:3: {told}" in found.told
