"""The format "translation" of the kind "generation": a source sentence is answered by its target.

    columns    source, target; glossary, context, domain where there are any; reasoning, which
               comes before a tagged answer; source_lang and target_lang without a `direction`
    row        {"prompt": [one turn of the user], "answer": what is learned, "source", "target",
               "source_lang", "target_lang", and "glossary", "context", "domain" where given}

With `answer: tagged` the answer is `<think>reasoning</think>` and `<answer>target</answer>`, and a
row without reasoning has its target alone: it can be scored and rewarded, and not learned. The
row's `prefill` is what its prompt ends in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from perdure.errors import PerdureError, brief, one_line
from perdure.recipe.columns import parse_template
from perdure.recipe.data import TaskConfig
from perdure.recipe.mistakes import Mistake, near
from perdure.streams.cells import CellError, NoLanguage, as_text, cell_text, is_empty
from perdure.streams.kinds.base import Row
from perdure.streams.languages import Language, parse_direction, parse_language
from perdure.streams.tagged import OPENING, PROBLEMS, parse_tagged, tag_in

COLUMNS = ("source", "target")
BESIDE = ("glossary", "context", "domain")
REASONING = "reasoning"
LANGUAGES = ("source_lang", "target_lang")
OPTIONAL = (*LANGUAGES, *BESIDE, REASONING)
KEYS = ("direction", "answer", "prefill")
TASK = "Translate the following text from {source_lang} into {target_lang}."
MATERIAL = """\
{tag_rule}
Domain: {domain}
Glossary: {glossary}
Context: {context}
{source_lang}: {source}"""
"""What stands behind the task's first line; a line that names something empty is left out."""
TAG_RULE = (
    "First write your reasoning between <think> and </think>, then the translation alone between "
    "<answer> and </answer>."
)
NAMES = ("source", *LANGUAGES, *BESIDE, "tag_rule")
"""What a task's `instruction` may name in braces."""


def translation_row(values: Mapping[str, Any], task: TaskConfig) -> Row:
    """The row of a record; raises `CellError` where it is none."""
    source_lang, target_lang = _languages(values, task)
    cells = {ours: cell_text(values, task.column(ours)).strip() for ours in COLUMNS}
    for ours in BESIDE:
        if text := _optional(values, task.column(ours)):
            cells[ours] = text
    tagged = task.answer == "tagged"
    for ours, text in cells.items():
        if tagged and (tag := tag_in(text)):
            what = f'"{brief(task.column(ours))}" holds the tag {tag}'
            remedy = "what is between the model's own tags could not be told: take the row out"
            raise CellError(what, remedy, "or learn without reasoning: answer: plain")
    row: Row = {
        "prompt": [],
        "answer": cells["target"],
        **cells,
        "source_lang": source_lang.tag,
        "target_lang": target_lang.tag,
    }
    named = {**cells, "source_lang": source_lang.name, "target_lang": target_lang.name}
    row["prompt"] = _prompt({**named, "tag_rule": TAG_RULE if tagged else ""}, task.instruction)
    if tagged and (reasoning := _optional(values, task.column(REASONING))):
        row["answer"] = f"<think>{reasoning}</think>\n<answer>{cells['target']}</answer>"
        if problem := parse_tagged(row["answer"]).problem:
            what = f'"{brief(task.column(REASONING))}" gives no answer that can be read: '
            raise CellError(what + PROBLEMS[problem], "mend it, or take the row out")
    if tagged or task.prefill:
        row["prefill"] = task.prefill
    return row


def lacks(row: Row, task: TaskConfig) -> str:
    """What a row that is learned by its answer has not: the reasoning before it."""
    if task.answer == "plain" or task.learn != "sft" or row["answer"] != row["target"]:
        return ""
    column = brief(task.column(REASONING))
    return (
        f'"{column}" is empty or not there, and with answer: tagged it is learned (columns: '
        f"{{{REASONING}: YOURS}} names another column)"
    )


def notes(task: TaskConfig) -> Iterator[str]:
    """What a task's section says that is valid, and perhaps not meant."""
    own = task.instruction or ""
    untold = not any(name in own for name in ("{tag_rule}", "<answer>", "<think>"))
    if task.answer == "tagged" and own and "source" in _names(own) and untold:
        yield (
            "its instruction does not say {tag_rule}, so that nothing tells the model to write "
            "the tags of answer: tagged"
        )


def mistakes(task: TaskConfig) -> Iterator[Mistake]:
    """What is wrong in a task's section."""
    if task.direction is not None:
        try:
            parse_direction(task.direction)
        except PerdureError as error:
            yield Mistake(("direction",), error.what, one_line(error.remedy))
        for ours in LANGUAGES:
            if ours in task.columns:
                what = f"has no effect with direction: {task.direction}"
                yield Mistake(("columns", ours), what, "leave one out")
    yield from _instruction(task)
    if task.answer == "plain" and tag_in(task.prefill):
        what = f"opens {brief(task.prefill)}, and a plain answer is scored with all that is written"
        yield Mistake(("prefill",), what, "write answer: tagged, or leave prefill out")
    if task.answer == "tagged" and task.prefill not in ("", OPENING):
        what = f'"{brief(task.prefill)}" is not how a tagged answer begins'
        yield Mistake(("prefill",), what, f"write prefill: {OPENING}, or leave it out")


def _instruction(task: TaskConfig) -> Iterator[Mistake]:
    if not task.instruction:
        return
    try:
        names = _names(task.instruction)
    except ValueError as error:
        remedy = "a brace of the text itself is written twice: {{ }}"
        yield Mistake(("instruction",), f"braces do not pair: {error}", remedy)
        return
    known = NAMES if "source" in names else LANGUAGES
    for name in names:
        if name not in known:
            what = f"names {{{name}}}, and " + (
                "there is no such thing" if name not in NAMES else "without {source} it is one line"
            )
            hint = near(name, known) or f"there are {', '.join(f'{{{one}}}' for one in known)}"
            yield Mistake(("instruction",), what, hint)


@lru_cache
def _names(template: str) -> tuple[str, ...]:
    found = dict.fromkeys(name for _, name, _, _ in parse_template(template) if name is not None)
    return tuple(found)


def _prompt(values: Mapping[str, str], instruction: str | None) -> list[dict[str, str]]:
    """The user's turn; a line of the template in which a name has nothing behind it is left out."""
    first = instruction or TASK
    template = first if "source" in _names(first) else f"{first}\n{MATERIAL}"
    lines = [
        _filled(line, values)
        for line in template.split("\n")
        if "source" in _names(line) or all(values.get(name) for name in _names(line))
    ]
    return [{"role": "user", "content": "\n".join(lines)}]


def _filled(line: str, values: Mapping[str, str]) -> str:
    parts = parse_template(line)
    return "".join(before + values.get(name or "", "") for before, name, _, _ in parts)


def _languages(values: Mapping[str, Any], task: TaskConfig) -> tuple[Language, Language]:
    if task.direction is not None:
        return _direction(task.direction)
    found = []
    for ours in LANGUAGES:
        column = task.column(ours)
        if is_empty(values.get(column)):
            what = f'"{brief(column)}" is empty or not there'
            raise NoLanguage(what, "write the task's direction: en-de, or fill the column in")
        try:
            found.append(_language(as_text(values[column], column).strip()))
        except PerdureError as error:
            raise CellError(f'"{brief(column)}": {error.what}', *error.remedy) from None
    source, target = found
    if source == target:
        raise CellError(f"source and target are both {source.name}")
    return source, target


_direction = lru_cache(parse_direction)
_language = lru_cache(parse_language)


def _optional(values: Mapping[str, Any], source: str) -> str:
    """The text of a column that need not be there; a glossary may be pairs of words."""
    if "{" in source:
        cells = {name: values.get(name) for name in _names(source)}
        return "" if all(map(is_empty, cells.values())) else cell_text(cells, source).strip()
    value = values.get(source)
    if isinstance(value, Mapping):
        pairs = [(str(word), str(meant)) for word, meant in value.items()]
        return "; ".join(f"{word} = {meant}" for word, meant in pairs)
    return "" if is_empty(value) else as_text(value, source).strip()
