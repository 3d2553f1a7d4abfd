"""A pool of adapters for tests: one a task, and a router that goes by a word of the prompt."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from perdure.protocol.method import Method, MethodConfig

FILE = "words.json"
ANSWERS = {"colour": ("x", "y"), "count": ("p", "q")}
"""Labels of one token each; the tiny model finds the last of each task less likely."""


@dataclass(frozen=True)
class Chosen:
    adapter: str | None
    similarity: float
    why: str


class Words:
    """Args: words: a word -> the adapter that answers prompts with it."""

    shown: ClassVar[list[list[Any]]] = []
    """All lists that any of them was shown, of this process."""

    def __init__(self, words: dict[str, str]) -> None:
        self.words = dict(words)

    @classmethod
    def load(cls, folder: Path) -> Words:
        return cls(json.loads((folder / FILE).read_text("utf-8")))

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.words), "utf-8")

    def check(self, adapters: Collection[str]) -> None:
        """Of adapters that are not there scoring tells."""

    def choose(self, prompts: Sequence[Any]) -> list[Chosen]:
        self.shown.append(list(prompts))
        return [self._one(" ".join(turn["content"] for turn in prompt)) for prompt in prompts]

    def _one(self, text: str) -> Chosen:
        for word, adapter in self.words.items():
            if word in text.split():
                return Chosen(adapter, 1.0, f"it says {word}")
        return Chosen(None, 0.0, "no word is known")


class AdapterPerTask(Method):
    """Trains a LoRA adapter of its own for each task; its name is the word that tells it apart."""

    adapters = True
    saved = ("words",)

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.words: dict[str, str] = {}

    def begin_task(self, ctx: Any) -> None:
        name = "default" if ctx.task_index == 0 else f"task{ctx.task_index}"
        if name not in ctx.adapters.names:
            ctx.adapters.add(name)
        ctx.adapters.use(active=[name], trained=[name])
        self.words[ctx.task.name] = name

    def router(self, ctx: Any) -> Any:
        return Words(self.words)


@contextmanager
def known() -> Iterator[list[list[Any]]]:
    """Have its file be read as a router's inside; gives what routers are shown meanwhile."""
    from perdure.models import served

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(served.ROUTERS, FILE, "word_router:Words")
        patch.setattr(Words, "shown", [])
        yield Words.shown


def learn_pool(
    folder: Path, model: Path, method: type[Method] = AdapterPerTask, **changes: Any
) -> Any:
    """A run on two tasks with an adapter and a word for each; its general texts are asked too.

    Each task has one answer, which the base model finds less likely than the other label: it
    has all rows wrong, and what was trained on the task has them right.
    """
    from tiny_runs import write_recipe

    import perdure
    from perdure.run import Run

    few = {"model__tuning": "lora", "train__learning_rate": 1e-2, "train__epochs": 2}
    path = write_recipe(folder, model, **few | changes)
    for task, (_, label) in ANSWERS.items():
        for file in folder.glob(f"{task}-*.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            file.write_text("".join(json.dumps(row | {"label": label}) + "\n" for row in rows))
    said = json.loads(path.read_text())
    for task in said["stream"]["tasks"]:
        task["labels"] = list(ANSWERS[task["name"]])
    path.write_text(json.dumps(said))
    recipe = perdure.load_recipe(path)
    run = Run.create(folder / "run", recipe)
    with pytest.MonkeyPatch.context() as patch, known():
        patch.setattr("perdure.methods.registry.build", lambda specs: [method()])
        perdure.learn(recipe, run)
    return run
