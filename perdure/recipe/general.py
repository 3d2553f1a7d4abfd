"""The recipe's section about general text, and what sections about files have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from perdure.errors import brief
from perdure.recipe.mistakes import Mistake, near
from perdure.recipe.section import Section

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
TEXT_FILES = (".txt", ".jsonl")
SOURCES = ("pydoc", "none")
"""Words for a source that is no path, whatever lies beside the recipe."""
FILE_ENDINGS = (*TEXT_FILES, ".csv", ".tsv", ".parquet", ".json", ".gz", ".zip", ".zst")
UNPACK = "unpack it first, and name the file that is in it"
OTHER_ENDINGS = {
    ".json": "write one JSON object a line, and call it .jsonl",
    ".ndjson": "call it .jsonl",
    ".xlsx": "export the sheet as CSV",
    ".xls": "export the sheet as CSV",
    ".ods": "export the sheet as CSV",
    ".gz": UNPACK,
    ".zst": UNPACK,
    ".xz": UNPACK,
    ".bz2": UNPACK,
    ".zip": UNPACK,
}
"""What to do about files that people have, by their endings."""


class GeneralConfig(Section):
    source: str = Field(
        "pydoc",
        description="pydoc (Python's reference), none, a .txt/.jsonl file, or a hub data set",
    )
    subset: str | None = Field(None, description="configuration of the hub data set")
    split: str = Field("train", description="split of the hub data set")
    column: str = Field("text", description="column of a .jsonl file or hub data set")
    encoding: str | None = Field(
        None, description="of the files, such as cp1252; else UTF-8, or recognised"
    )
    held_out_source: str | None = Field(
        None, description="pydoc or a file: measure on it, not on other texts of source"
    )
    replay_rows: int = Field(64, ge=0, description="texts that methods may train on")
    held_out_rows: int = Field(32, ge=0, description="other texts, to measure perplexity on")
    max_tokens: int = Field(128, gt=1, description="held-out texts are cut to this many tokens")
    tasks: list[str] = Field(
        default_factory=list, description="lm-eval's tasks: names, or task files (.yaml)"
    )
    limit: int | None = Field(None, gt=0, description="score this many rows an lm-eval task")
    num_fewshot: int | None = Field(
        None, ge=0, description="examples before a question of lm-eval's; else as the task says"
    )
    group: str | None = Field(
        None, description="field of lm-eval's `doc` whose value items share that belong together"
    )

    @model_validator(mode="before")
    @classmethod
    def _only_tasks(cls, data: Any) -> Any:
        """`general: [mmlu]` stands for lm-eval's tasks and no text."""
        return {"source": "none", "tasks": data} if isinstance(data, list) and data else data

    def mistakes(self) -> Iterator[Mistake]:
        ending = Path(self.source).suffix.lower()
        on_hub = ending not in FILE_ENDINGS and (
            _HUB.fullmatch(self.source) or Path(self.source).is_absolute()  # or a folder like one
        )
        for key, known in (("source", SOURCES), ("held_out_source", ("pydoc",))):
            value = getattr(self, key)
            if value is None or value in known or Path(value).suffix.lower() in TEXT_FILES:
                continue
            if key == "source" and on_hub:
                continue
            hub = ", or a hub data set (OWNER/NAME)" if key == "source" else ""
            hint = near(value, known) or f"name a .txt or .jsonl file, or pydoc{hub}"
            yield Mistake((key,), f'"{value}" is no source of text', hint)
        if self.held_out_source is not None and not self.held_out_rows:
            yield Mistake(
                ("held_out_source",), "has no effect with held_out_rows: 0", "ask for some rows"
            )
        for key, default in (("subset", None), ("split", "train")):  # a run writes out defaults
            if getattr(self, key) != default and not on_hub:
                yield Mistake((key,), "has no effect without a hub data set", "remove it")
        yield from encoding_mistakes(self.encoding)
        sources = (self.source, self.held_out_source or "")
        files = [s for s in sources if Path(s).suffix.lower() in TEXT_FILES]
        if self.encoding is not None and not files:
            yield Mistake(("encoding",), "has no effect: no source is a file", "leave it out")
        if not self.tasks:
            for key in ("limit", "num_fewshot", "group"):
                if getattr(self, key) is not None:
                    yield Mistake((key,), "has no effect without tasks", "list lm-eval tasks")


def encoding_mistakes(name: str | None) -> Iterator[Mistake]:
    """What is wrong with an `encoding`."""
    try:
        "".encode(name or "utf-8")
    except (LookupError, ValueError):  # no codec, or one that is not of text
        what = f'"{brief(name)}" is no encoding of text that Python knows'
        hint = near(str(name), ("utf-8", "utf-16", "latin-1", "cp1252", "shift_jis"))
        yield Mistake(("encoding",), what, hint or "for example utf-8, utf-16 or cp1252")


def is_task_file(task: str) -> bool:
    """Whether an entry of `general.tasks` is a task file of lm-eval's, not the name of a task."""
    return Path(task).suffix.lower() in (".yaml", ".yml")
