"""The kind "generation": a conversation is continued by an answer, which is text.

    format   columns               row
    prompt   prompt, answer        the prompt as user message
    chat     messages              the last assistant message is the answer, what is before it
                                   the prompt; what follows it is left out
    labels   text, label           the text as user message, the label as answer

An instruction goes in front as a system message, before one that the data brings along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perdure.errors import brief
from perdure.recipe.data import TaskConfig
from perdure.recipe.mistakes import Key, Mistake, near
from perdure.streams.cells import (
    CellError,
    EmptyCell,
    answer_of,
    as_text,
    cell_text,
    folded,
    is_empty,
    one_spaced,
)
from perdure.streams.kinds.base import Format, Kind, Metric, Row
from perdure.streams.tables import choices

_NOT_READ = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Parts of a message beside its content; a conversation that has them is refused."""
ROLES = ("system", "user", "assistant", "tool")

LABEL_LIKELIHOOD = Metric("label_likelihood", "label accuracy", needs="labels")
EXACT_MATCH = Metric(
    "exact_match", "exact match", needs="text", function="perdure.scoring.metrics:exact_match"
)
ROUGE_L = Metric("rouge_l", "ROUGE-L", needs="text", function="perdure.scoring.metrics:rouge_l")
CHRF = Metric("chrf", "chrF", needs="text", function="perdure.scoring.metrics:chrf")
PERPLEXITY = Metric(
    "perplexity",
    "perplexity",
    needs="likelihood",
    higher_is_better=False,
    low=1.0,
    high=math.inf,
    pooling="tokens",
)
"""Also the measure of general text, which no task is about."""


def question(row: Row) -> str:
    """Return what makes two rows the same question: the prompt, whitespace and case aside."""
    said = [[m["role"], one_spaced(m["content"]).casefold()] for m in row["prompt"]]
    return json.dumps(said, ensure_ascii=False)


def _of_prompt(values: Mapping[str, Any], task: TaskConfig) -> Row:
    prompt = _asked(values, task.column("prompt"))
    return _row(prompt, cell_text(values, task.column("answer")), task)


def _of_messages(values: Mapping[str, Any], task: TaskConfig) -> Row:
    column = task.column("messages")
    if values.get("tools"):
        raise CellError(
            'has "tools", which are not shown to the model',
            "leave such rows out, or write the tools into a system message",
        )
    return _row(*_conversation(values[column], column), task)


def _of_labelled(values: Mapping[str, Any], task: TaskConfig) -> Row:
    prompt = _asked(values, task.column("text"))
    column = task.column("label")
    answer = cell_text(values, column).strip()
    if not folded(answer):
        raise EmptyCell(f'"{brief(column)}" is empty but for signs that are not seen')
    if task.label_names is not None:
        names = task.label_names
        named = answer_of(values.get(column), answer, names, task.labels or ())
        if named is None:
            what = f'label "{brief(answer)}" is not in label_names'
            lower = {folded(one).casefold(): one for one in (*(task.labels or ()), *names)}
            if (other := lower.get(folded(answer).casefold())) is not None:
                raise CellError(
                    f'{what}: it differs only in case from "{brief(other)}"',
                    "write both alike, or list it in label_names too",
                )
            raise CellError(what, *choices(answer, names, "those there are"))
        answer = named
    return _row(prompt, answer, task)


def _asked(values: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": cell_text(values, column)}]


def _row(prompt: list[dict[str, str]], answer: str, task: TaskConfig) -> Row:
    """The row, with the task's instruction in front."""
    if task.instruction:
        if prompt[0]["role"] == "system":
            own = prompt.pop(0)["content"]
            prompt.insert(0, {"role": "system", "content": f"{task.instruction}\n\n{own}"})
        else:
            prompt.insert(0, {"role": "system", "content": task.instruction})
    return {"prompt": prompt, "answer": answer}


def _conversation(value: Any, column: str) -> tuple[list[dict[str, str]], str]:
    """Split a list of messages into prompt and answer; in a CSV cell it is JSON."""
    shape = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise CellError(f'"{column}" is no JSON: {error}', f"write {shape}") from None
    elif is_empty(value):
        raise EmptyCell(f'"{column}" is empty', "fill it in, or take the row out")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise CellError(f'"{column}" is no list of messages', f"write {shape}")
    messages: list[dict[str, str]] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise CellError(
                f'"{column}": message {number} has no role and content', f"write {shape}"
            )
        if dropped := [key for key in _NOT_READ if message.get(key)]:
            raise CellError(
                f'"{column}": message {number} has {dropped[0]}, which is not trained on',
                "leave such conversations out, or write it into the message's content",
            )
        if message["role"] not in ROLES:
            raise CellError(
                f'"{column}": message {number}: role "{brief(message["role"])}" is unknown',
                *choices(str(message["role"]), ROLES, "roles there are"),
            )
        content = as_text(message["content"], f"{column}, message {number}")
        messages.append({"role": str(message["role"]), "content": content})
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise CellError(f'"{column}" has no message of the assistant', "its last one is the answer")
    if not any(m["role"] == "user" for m in messages[:last]):
        raise CellError(f'"{column}" has no message of the user before the answer')
    return messages[:last], messages[last]["content"]


def _free(task: TaskConfig) -> Iterator[Mistake]:
    """What a task says about labels although its answers are free."""
    for key in ("labels", "label_names"):
        if getattr(task, key) is not None:
            what = f"has no effect with format: {task.format}"
            yield Mistake((key,), what, "write format: labels")
    if task.metric == LABEL_LIKELIHOOD.name:
        yield Mistake(("metric",), f"{task.metric} needs format: labels")
    yield from _one_turn(task)


def _one_turn(task: TaskConfig) -> Iterator[Mistake]:
    """What a task says about turns although its rows have one."""
    if task.train_on == "all" and task.format != "chat":
        yield Mistake(("train_on",), f"has no effect with format: {task.format}", "leave it out")


def _labelled(task: TaskConfig) -> Iterator[Mistake]:
    yield from _one_turn(task)
    labels, names = task.labels, task.label_names or {}
    written: list[tuple[Key, str]] = [
        (("labels", i), label) for i, label in enumerate(labels or ())
    ]
    written += [(("label_names", value), label) for value, label in names.items()]
    forms: dict[str, str] = {}
    for key, label in written:
        other = forms.setdefault(folded(label), label)
        if other != label:
            what = f'"{brief(label)}" looks the same as another label: {brief(ascii(other))}'
            yield Mistake(key, what, "write one label in one way: its forms are read as one")
    if labels is None:
        return
    if len(set(labels)) < max(2, len(labels)) or not all(map(folded, labels)):
        what = "must be at least two different texts, none of them empty"
        yield Mistake(("labels",), what)
    for value, name in names.items():
        if folded(name) not in set(map(folded, labels)):
            what = f'"{brief(name)}" is none of the task\'s labels'
            yield Mistake(("label_names", value), what, near(name, labels))


KIND = Kind(
    "generation",
    schema={
        "prompt": "the conversation before the answer, a list of {role, content}",
        "answer": "text, all that is trained on",
    },
    formats=(
        Format("prompt", ("prompt", "answer"), EXACT_MATCH.name, _of_prompt, mistakes=_free),
        Format(
            "chat", ("messages",), EXACT_MATCH.name, _of_messages,
            whole=("messages",), mistakes=_free,
        ),
        Format(
            "labels", ("text", "label"), LABEL_LIKELIHOOD.name, _of_labelled,
            label="answer", mistakes=_labelled,
        ),
    ),
    metrics=(LABEL_LIKELIHOOD, EXACT_MATCH, ROUGE_L, CHRF, PERPLEXITY),
    learner="perdure.learners.generation:GenerationLearner",
    encoder="perdure.models.chat:base_encoder",
    question=question,
)  # fmt: skip
