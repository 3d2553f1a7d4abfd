"""A learner's scores: rows routed to several adapters, and rows that a method looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import write_recipe
from word_router import Chosen

from perdure.learners.scores import score_routed
from perdure.scoring import TaskScore
from perdure.streams.task import Task

pytestmark = pytest.mark.train
ROWS = [{"prompt": [{"role": "user", "content": c}], "answer": "x"} for c in "abab"]


class Stub:
    """Adapter "a" answers right, "b" wrong; a second measure says the same."""

    def __init__(self) -> None:
        self.model = self
        self.listener = SimpleNamespace(progress=lambda *_: None)
        self.active = "b"

    @contextmanager
    def showing(self, names: list[str]) -> Iterator[None]:
        before, (self.active,) = self.active, names
        yield
        self.active = before

    def autocast(self) -> Any:
        return nullcontext()

    def score_mixed(self, task: Task, adapters: Any, progress: Any) -> None:
        """Adapter by adapter."""

    def score_task(self, task: Task, progress: Any) -> TaskScore:
        right = float(self.active == "a")
        keys = [row["prompt"][0]["content"] for row in task.test]
        items = [
            {"id": k if keys[:i].count(k) == 0 else f"{k}-{keys[:i].count(k) + 1}", "score": right}
            for i, k in enumerate(keys)
        ]
        return TaskScore(right, "exact_match", True, items, {"second": right})


def test_measures_and_items_of_routed_rows_are_of_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task("t", (), (), ROWS, "exact_match")
    monkeypatch.setattr("perdure.models.adapter_lists.showing", Stub.showing)
    monkeypatch.setattr("perdure.models.adapter_lists.check_known", lambda model, names: None)
    choices = [Chosen(name, 0.5, "so") for name in ("a", "b", None, "b")]
    found = score_routed(Stub(), task, choices)  # type: ignore[arg-type]
    assert found is not None
    assert found.score == 0.25
    assert found.measures == {"exact_match": 0.25, "second": 0.25}
    assert [item["score"] for item in found.items] == [1.0, 0.0, 0.0, 0.0]
    assert [item["id"] for item in found.items] == ["a", "b", "a-2", "b-2"]
    assert [item["adapter"] for item in found.items] == ["a", "b", "base", "b"]
    assert {(item["similarity"], item["why"]) for item in found.items} == {(0.5, "so")}


def test_a_method_looks_at_as_many_rows_as_it_asks_for(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scoring.max_test_rows` is for scores; `rewind.rows` chooses by 5 validation rows."""
    import perdure
    from perdure.learners.generation import GenerationLearner

    seen: list[int] = []
    real = GenerationLearner.score_task

    def noting(self: Any, task: Task, progress: Any) -> Any:
        seen.append(len(task.test))
        return real(self, task, progress)

    monkeypatch.setattr(GenerationLearner, "score_task", noting)
    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "rewind", "rows": 5},
                        scoring={"max_test_rows": 2}, train__max_steps=1)  # fmt: skip
    recipe = perdure.load_recipe(path)
    perdure.learn(recipe, perdure.Run.create(tmp_path / "run", recipe))
    assert set(seen) == {2, 5}
