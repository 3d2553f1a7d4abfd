"""The recipe's sections about measuring: general ability, scoring, gauges and their budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from perdure.section import Section
from perdure.yaml_file import Mistake, near

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
TEXT_FILES = (".txt", ".jsonl")
FILE_ENDINGS = (*TEXT_FILES, ".csv", ".tsv", ".parquet", ".json", ".gz", ".zip", ".zst")


class GeneralConfig(Section):
    source: str = Field(
        "pydoc",
        description="pydoc (Python's reference), none, a .txt/.jsonl file, or a hub data set",
    )
    subset: str | None = Field(None, description="configuration of the hub data set")
    split: str = Field("train", description="split of the hub data set")
    column: str = Field("text", description="column of a .jsonl file or hub data set")
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
        for key, known in (("source", ("pydoc", "none")), ("held_out_source", ("pydoc",))):
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
        if not self.tasks:
            for key in ("limit", "num_fewshot"):
                if getattr(self, key) is not None:
                    yield Mistake((key,), "has no effect without tasks", "list lm-eval tasks")


class ScoringConfig(Section):
    batch_size: int = Field(16, gt=0, description="rows scored at once per process")
    max_test_rows: int | None = Field(None, gt=0, description="score this many rows a task at most")


class GaugesConfig(Section):
    every: int = Field(50, ge=0, description="steps between two looks at how far it moved; 0: none")
    texts: int = Field(
        4, ge=0, description="general texts whose states are compared; without any, the base's own"
    )
    rows: int = Field(8, gt=0, description="rows of the task whose predictions are compared")


class StopConfig(Section):
    flip_share: float | None = Field(
        None, gt=0, le=1, description="most states that may leave their interval, as a share"
    )
    kl: float | None = Field(None, gt=0, description="most KL from the base, nats an answer token")
    action: Literal["stop", "rewind"] = Field(
        "stop", description="stop: end the task there; rewind: take its update back till it fits"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.flip_share is None and self.kl is None:
            yield Mistake((), "names no budget", "give kl or flip_share, or leave it out")
