"""The kind "classification": a text belongs to one class, and the classes grow with the tasks.

    format      columns                     row
    classes     text, label                 the text and its class's name
    relations   tokens, label (head, tail)  the text with markers around two entities, both names
                                            and the relation between them

All classes of a task are what its rows bear; the learner gives each a column of the heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perdure.recipe.data import TaskConfig
from perdure.recipe.mistakes import Mistake
from perdure.streams.cells import EmptyCell, cell_text, folded, one_spaced
from perdure.streams.kinds.base import Format, Kind, Metric, Row
from perdure.streams.kinds.relations import marked, relation

CLASSIFICATION = "classification"
ACCURACY = Metric("accuracy", "accuracy", needs="classes")
WITHIN_TASK = "accuracy_within_task"
"""The measure beside it: a row's classes compete within its own task alone."""
AMONG_ALL = "accuracy_among_all"
"""And where the task's own classes are what decides: all learned classes compete."""


def question(row: Row) -> str:
    """Return what makes two rows the same question: the text, whitespace and case aside."""
    return one_spaced(row["text"]).casefold()


def _label(values: Mapping[str, Any], task: TaskConfig) -> str:
    label = cell_text(values, task.column("label")).strip()
    if not folded(label):
        raise EmptyCell(f'"{task.column("label")}" is empty but for signs that are not seen')
    return label


def _of_classes(values: Mapping[str, Any], task: TaskConfig) -> Row:
    label = _label(values, task)
    return {"text": cell_text(values, task.column("text")), "label": label}


def _of_relations(values: Mapping[str, Any], task: TaskConfig) -> Row:
    columns = [task.column(ours) for ours in ("tokens", "head", "tail")]
    label = _label(values, task)
    text = marked(values, *columns)
    found = relation(text)
    return {"text": text, "label": label, "head": found.head, "tail": found.tail}


def _mistakes(task: TaskConfig) -> Iterator[Mistake]:
    for key, default in (
        ("label_names", None), ("instruction", None), ("max_new_tokens", 32), ("train_on", "last"),
    ):  # fmt: skip
        if getattr(task, key) != default:
            yield Mistake((key,), f"has no effect with format: {task.format}", "leave it out")


KIND = Kind(
    CLASSIFICATION,
    schema={
        "text": "what is classified",
        "label": "the name of its class",
        "head": "of relations: the first entity's name, between [E11] and [E12] in the text",
        "tail": "the second one's, between [E21] and [E22]",
    },
    formats=(
        Format(
            "classes", ("text", "label"), ACCURACY.name, _of_classes,
            label="label", renames=False, mistakes=_mistakes,
        ),
        Format(
            "relations", ("tokens", "label"), ACCURACY.name, _of_relations,
            label="label", optional=("head", "tail"), whole=("tokens", "head", "tail"),
            renames=False, mistakes=_mistakes,
        ),
    ),
    metrics=(ACCURACY,),
    learner="perdure.learners.classification:ClassificationLearner",
    encoder="perdure.models.prepared_classes:class_encoder",
    writes=False,
    question=question,
    # SEQ*'s settings; the heads' own are in model.head.
    defaults={"train": {"learning_rate": 1e-5, "weight_decay": 5e-4, "epochs": 5}},
    scenarios=("class-incremental", "task-incremental"),
    classes=True,
)  # fmt: skip
