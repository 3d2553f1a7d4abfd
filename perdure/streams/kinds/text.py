"""The kind "generation": a conversation is continued by an answer, which is text.

    format   columns               row
    prompt   prompt, answer        the prompt as user message
    chat     messages (tools)      the last assistant message is the answer, what is before it
                                   the prompt; what follows it is left out
    labels   text, label           the text as user message, the label as answer
    translation   source, target (languages, glossary, context, domain, reasoning)
                                   a text that asks for the translation as user message, the
                                   target as answer; see `perdure.streams.kinds.translation`

An instruction goes in front as a system message, before one that the data brings along; that of a
translation is a part of its text, or all of it.
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
    cell_text,
    folded,
    one_spaced,
)
from perdure.streams.kinds import translation
from perdure.streams.kinds.base import Format, Kind, Metric, Row
from perdure.streams.kinds.conversation import conversation, tools_of
from perdure.streams.tables import choices

GENERATION = "generation"
LABEL_LIKELIHOOD = Metric("label_likelihood", "label accuracy", needs="labels")
EXACT_MATCH = Metric(
    "exact_match", "exact match", needs="text", function="perdure.scoring.metrics:exact_match"
)
ROUGE_L = Metric("rouge_l", "ROUGE-L", needs="text", function="perdure.scoring.metrics:rouge_l")
CHRF = Metric("chrf", "mean sentence chrF", needs="text", function="perdure.scoring.metrics:chrf")
BLEU = Metric(
    "bleu",
    "mean sentence BLEU",
    needs="text",
    function="perdure.scoring.metrics:bleu",
    reads=("target_lang",),
)
"""Translations of long texts by n-grams of words; chrF is finer where a few words are compared."""
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


_SAID = json.JSONEncoder(ensure_ascii=False)


def question(row: Row) -> str:
    """Return what makes two rows the same question: the prompt, whitespace and case aside."""
    said = [[m["role"], one_spaced(m["content"]).casefold()] for m in row["prompt"]]
    return _SAID.encode(said)


def each_turn(row: Row) -> list[Row]:
    """A row for each turn of the assistant in a conversation, the prompt being all before it."""
    whole = {key: part for key, part in row.items() if key != "turn"}
    prompt, found = row["prompt"], []
    for i, turn in enumerate(prompt):
        if turn["role"] == "assistant" and any(one["role"] == "user" for one in prompt[:i]):
            one = {**whole, "prompt": prompt[:i], "answer": turn["content"]}
            if beside := {k: part for k, part in turn.items() if k not in ("role", "content")}:
                one["turn"] = beside
            found.append(one)
    return [*found, row]


def with_examples(row: Row, examples: Sequence[Row]) -> Row:
    """The row with others as earlier turns of its prompt, after its system message."""
    turns = [
        turn
        for one in examples
        for turn in (
            *(t for t in one["prompt"] if t["role"] != "system"),
            {"role": "assistant", "content": one["answer"], **one.get("turn", {})},
        )
    ]
    head = [t for t in row["prompt"] if t["role"] == "system"]
    rest = [t for t in row["prompt"] if t["role"] != "system"]
    return {**row, "prompt": [*head, *turns, *rest]}


def _of_prompt(values: Mapping[str, Any], task: TaskConfig) -> Row:
    prompt = _asked(values, task.column("prompt"))
    return _row(prompt, cell_text(values, task.column("answer")), task)


def _of_messages(values: Mapping[str, Any], task: TaskConfig) -> Row:
    column = task.column("messages")
    prompt, answer, turn = conversation(values[column], column)
    row = _row(prompt, answer, task)
    if turn:
        row["turn"] = turn
    if tools := tools_of(values.get(task.column("tools")), task.column("tools")):
        row["tools"] = tools
    return row


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


def _translated(task: TaskConfig) -> Iterator[Mistake]:
    yield from _free(task)
    yield from translation.mistakes(task)
    if task.answer == "tagged" and task.metric == PERPLEXITY.name:
        what = f"{task.metric} reads nothing that the model writes, so no tags"
        yield Mistake(("metric",), what, f"take {CHRF.name}")


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
    GENERATION,
    schema={
        "prompt": "the conversation before the answer, a list of {role, content}",
        "answer": "text, all that is trained on",
        "turn": "what the answer has beside its text (tool_calls, reasoning_content), if anything",
        "tools": "JSON schemas of the tools that the model may call, if any",
        "prefill": "what the prompt ends in, behind the chat template's own text, if anything",
        "source": "of a translation: the text that is translated",
        "target": "its right translation",
        "source_lang": "the source's language, by its code",
        "target_lang": "the target's",
        "glossary": "words and what they mean, if given",
        "context": "what stands around the source, if given",
        "domain": "what it is about, if given",
    },
    formats=(
        Format("prompt", ("prompt", "answer"), EXACT_MATCH.name, _of_prompt, mistakes=_free),
        Format(
            "chat", ("messages",), EXACT_MATCH.name, _of_messages,
            whole=("messages",), optional=("tools",), sparse=("tools",), mistakes=_free,
        ),
        Format(
            "labels", ("text", "label"), LABEL_LIKELIHOOD.name, _of_labelled,
            label="answer", mistakes=_labelled,
        ),
        Format(
            "translation", translation.COLUMNS, CHRF.name, translation.translation_row,
            optional=translation.OPTIONAL, trained=(translation.REASONING,),
            sparse=(*translation.BESIDE, translation.REASONING),
            whole=translation.LANGUAGES, keys=translation.KEYS,
            mistakes=_translated, lacks=translation.lacks, notes=translation.notes,
        ),
    ),
    metrics=(LABEL_LIKELIHOOD, EXACT_MATCH, ROUGE_L, CHRF, BLEU, PERPLEXITY),
    learner="perdure.learners.generation:GenerationLearner",
    encoder="perdure.models.chat:base_encoder",
    question=question,
    parts=("prompt", "answer", "turn", "tools"),
    turns=each_turn,
    ways=("sft", "rl", "none"),
    with_examples=with_examples,
)  # fmt: skip
