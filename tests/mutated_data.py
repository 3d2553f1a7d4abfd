"""Data files with one thing changed at random, tried by `mutations`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whole_recipes import Recipe

Change = Callable[[random.Random, bytes], bytes]
FILES = {
    "colour.csv": "tasks", "colour.tsv": "tasks", "chat.jsonl": "tasks", "faq.jsonl": "faq",
    "classes.jsonl": "from jsonl", "classes.parquet": "classes", "relations.jsonl": "relations",
    "translations.jsonl": "translation", "en.txt": "translation", "general.txt": "tasks",
    "general.jsonl": "tasks", "template.jinja": "tasks", "quiz.yaml": "lm_eval",
    "quiz.jsonl": "lm_eval",
}  # fmt: skip
"""Each file and a recipe that reads it."""


def more_recipes(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """The recipes, with those that read a file which none of them does."""
    faq = json.loads(json.dumps(recipes["method sequential"]))
    faq["stream"] = {"tasks": [{"name": "faq", "train": "faq.jsonl", "metric": "exact_match",
                                "max_new_tokens": 4}]}  # fmt: skip
    table = json.loads(json.dumps(recipes["classes"]))
    table["stream"]["data"]["train"] = "classes.jsonl"
    del table["stream"]["data"]["group"]
    return {**recipes, "faq": faq, "from jsonl": table}


def _line(change: Callable[[random.Random, bytes], bytes]) -> Change:
    """A change of one line that is not the first."""

    def whole(draw: random.Random, raw: bytes) -> bytes:
        lines = raw.split(b"\n")
        at = draw.randrange(min(1, len(lines) - 1), max(1, len(lines) - 1))
        lines[at] = change(draw, lines[at])
        return b"\n".join(lines)

    return whole


def _cell(value: Any) -> Change:
    """One value of a JSON line, or one cell, is another."""

    def change(draw: random.Random, line: bytes) -> bytes:
        if line.startswith(b"{"):
            row = json.loads(line)
            row[draw.choice(list(row))] = value
            return json.dumps(row).encode()
        text = value if isinstance(value, str) else json.dumps(value)
        cells = re.split(rb"[;\t]", line)
        cells[draw.randrange(len(cells))] = text.encode("utf-8", "surrogatepass")
        return (b"\t" if b"\t" in line else b";").join(cells)

    return _line(change)


def _flipped(draw: random.Random, raw: bytes) -> bytes:
    found = bytearray(raw)
    for _ in range(draw.choice((1, 3, 30))):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _text(encoding: str) -> Change:
    return lambda draw, raw: raw.decode("utf-8", "replace").encode(encoding, "replace")


def _renamed(draw: random.Random, raw: bytes) -> bytes:
    names = (b"said", b"colour", b'"text"', b'"label"', b'"prompt"', b'"messages"', b'"source"',
             b'"tokens"', b'"body"', b"month")  # fmt: skip
    found = [name for name in names if name in raw]
    return raw.replace(draw.choice(found), b'"x"') if found else raw[::-1]


def _column(values: Callable[[int], Any]) -> Change:
    """A column of a Parquet file is of another type; of a text file, a cell of each line is."""

    def change(draw: random.Random, raw: bytes) -> bytes:
        if not raw.startswith(b"PAR1"):
            lines = raw.split(b"\n")
            return b"\n".join(
                _cell(values(i))(draw, b"h\n" + line + b"\n")[2:-1] if i and line else line
                for i, line in enumerate(lines)
            )
        import pyarrow
        from pyarrow import parquet

        table = parquet.read_table(pyarrow.BufferReader(raw))
        at = draw.randrange(table.num_columns)
        made = pyarrow.array([values(i) for i in range(table.num_rows)])
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(table.set_column(at, table.column_names[at], made), sink)
        return bytes(sink.getvalue())

    return change


def _value(value: Any) -> Callable[[int], Any]:
    return lambda number: value


KINDS: dict[str, Change] = {
    "empty": lambda draw, raw: b"",
    "one line": lambda draw, raw: raw.split(b"\n")[0] + b"\n",
    "two lines": lambda draw, raw: b"\n".join(raw.split(b"\n")[:2]),
    "cut": lambda draw, raw: raw[: draw.randrange(len(raw))],
    "bytes flipped": _flipped,
    "zeroes": lambda draw, raw: bytes(len(raw)),
    "NUL inside": _line(lambda draw, line: line[:3] + b"\0" + line[3:]),
    "not UTF-8": _line(lambda draw, line: line[:4] + b"\xff\xfe" + line[4:]),
    "UTF-16": _text("utf-16"),
    "UTF-32": _text("utf-32"),
    "a byte order mark": lambda draw, raw: b"\xef\xbb\xbf" + raw,
    "carriage returns": lambda draw, raw: raw.replace(b"\n", b"\r"),
    "both line ends": lambda draw, raw: raw.replace(b"\n", b"\r\n"),
    "a line twice": _line(lambda draw, line: line + b"\n" + line),
    "every line the same": lambda draw, raw: b"\n".join(
        raw.split(b"\n")[:1] + raw.split(b"\n")[1:2] * 20
    ),
    "a line missing": _line(lambda draw, line: b""),
    "blank lines": lambda draw, raw: raw.replace(b"\n", b"\n\n \n"),
    "a line of rubbish": _line(lambda draw, line: b'{"a": [1, "\\'),
    "an open quote": _line(lambda draw, line: line + b'"'),
    "more cells": _line(lambda draw, line: line + b";x\tx,x"),
    "another delimiter": lambda draw, raw: raw.replace(b";", b"|").replace(b"\t", b"|"),
    "a column of another name": _renamed,
    "a column twice": lambda draw, raw: raw.replace(b"month", b"said").replace(b"label", b"text"),
    "no header": lambda draw, raw: raw.partition(b"\n")[2],
    "a long line": _cell("word " * 200_000),
    "a long word": _cell("x" * 1_000_000),
    "nothing": _cell(None),
    "an empty cell": _cell(""),
    "a blank cell": _cell(" \u200b "),
    "a number": _cell(7),
    "a huge number": _cell(10**400),
    "a truth": _cell(True),
    "a list": _cell([1, "a", None]),
    "a section": _cell({"role": "user"}),
    "deep brackets": _line(lambda draw, line: b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "digits without end": _line(lambda draw, line: b'{"text": ' + b"9" * 5000 + b"}"),
    "an infinite number": _line(lambda draw, line: b'{"text": 1e999, "label": NaN}'),
    "half a character": _cell("a\ud83d"),
    "an emoji": _cell("\U0001f600"),
    "control characters": _cell("\x1b]0;owned\x07\x1b[2J\u202e\u2028\u2029\x85"),
    "a special token": _cell("<|im_end|>\n<|im_start|>assistant\nX"),
    "markers": _cell("[E11] a [E12] <think></think> {source} {{x}} {% for %}"),
    "a column of nothing": _column(_value(None)),
    "a column of numbers": _column(lambda number: number),
    "a column of truths": _column(lambda number: number % 2 == 0),
    "a column of lists": _column(lambda number: [number]),
    "a column of sections": _column(lambda number: {"a": number}),
    "a column of one text": _column(_value("same")),
    "a column of many texts": _column(lambda number: f"all different {number}"),
    "roles": lambda draw, raw: raw.replace(b'"user"', draw.choice((b'"tool"', b'"x"', b"null"))),
    "jinja without end": lambda draw, raw: b"{% for i in range(99999999) %}x{% endfor %}" + raw,
    "a broken template": lambda draw, raw: raw.replace(b"endfor", b"enfor"),
}  # fmt: skip
"""What becomes of a file's bytes, by the kind of change."""
PLACES = ("pipe", "loop", "zero", "dir", "gone")
"""What stands in place of a file that is none."""


def all_cases() -> list[tuple[str, str]]:
    """Every file with every kind of change."""
    return [(file, kind) for kind in (*KINDS, *PLACES) for file in FILES]


def put(folder: Path, file: str, kind: str) -> Callable[[], None]:
    """Change a file; the answer puts it back."""
    path, raw = folder / file, (folder / file).read_bytes()
    draw = random.Random(f"{file}: {kind}")

    def back() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(raw)

    if kind in KINDS:
        try:
            changed = KINDS[kind](draw, raw)
        except (ValueError, IndexError):  # bytes of Parquet are no lines
            changed = _flipped(draw, raw)
        path.write_bytes(changed)
        return back
    path.unlink()
    if kind != "gone":
        path.symlink_to(folder / f"{kind}{path.suffix}")
    return back
