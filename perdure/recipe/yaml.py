"""A YAML file that remembers the line of every key, and KEY=VALUE overrides on top of it.

`ruamel.yaml` reads YAML 1.2: `no` and `on` are text, `5e-5` is a number. What comes out is plain
dicts and lists beside a map from each key's path to where it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from perdure.errors import PerdureError, RecipeError
from perdure.recipe.mistakes import Key, Mistake, near

COMMAND_LINE = 0
"""Stands for a line number where a value was given as KEY=VALUE."""


@dataclass
class Document:
    """Plain data and the line (from 1) on which each key was written."""

    path: Path
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def line(self, key: Key) -> int:
        """Line of `key`, or of the nearest section around it."""
        for size in range(len(key), -1, -1):
            if (line := self.lines.get(key[:size])) is not None:
                return line
        return 1

    def place(self, key: Key) -> str:
        """`file:line: key`, or `command line: key` for an override."""
        line, name = self.line(key), ".".join(str(part) for part in key)
        where = "command line" if line == COMMAND_LINE else f"{self.path}:{line}"
        return f"{where}: {name}" if name else where

    def errors(self, mistakes: Iterable[Mistake]) -> list[PerdureError]:
        """The mistakes in the order of their lines, those of the command line last."""
        last = max(self.lines.values(), default=0) + 1
        inside = sorted(mistakes, key=lambda m: self.line(m.key) or last)
        return [PerdureError(f"{self.place(m.key)}: {m.what}", m.remedy or ()) for m in inside]

    def override(self, text: str) -> Mistake | None:
        """Apply `section.key=value`; the value is read as YAML, list items go by number or name."""
        path, equals, value = text.partition("=")
        key: list[str | int] = list(path.strip().split("."))
        if not equals or not all(key):
            self.lines[(text,)] = COMMAND_LINE
            return Mistake((text,), "expected KEY=VALUE", "for example train.learning_rate=5e-5")
        node: Any = self.data
        if key[0] == "method" and len(key) > 1 and isinstance(name := self.data.get("method"), str):
            self.data["method"] = {"name": name}  # its short form
        for depth, part in enumerate(key):
            last = depth == len(key) - 1
            if isinstance(node, list):
                found = _item(node, str(part))
                if not isinstance(found, int):
                    return self._refuse(key, found)
                part = key[depth] = found
            elif not isinstance(node, dict):
                return self._refuse(key, f"{'.'.join(map(str, key[:depth]))} has no keys below it")
            elif not last and node.get(part) is None:
                node[part] = {}
                self.lines[tuple(key[: depth + 1])] = COMMAND_LINE
            if not last:
                node = node[part]
        node[key[-1]] = parse_value(value)
        whole = tuple(key)
        for known in [k for k in self.lines if k[: len(whole)] == whole]:
            del self.lines[known]
        self.lines[whole] = COMMAND_LINE
        return None

    def _refuse(self, key: Sequence[str | int], what: str) -> Mistake:
        self.lines[tuple(key)] = COMMAND_LINE
        return Mistake(tuple(key), what)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is `key: value`.

    Raises:
        RecipeError: no such file, not text, broken YAML, a key given twice, or not a mapping;
            names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = near(path.name, siblings) or "to start from one that ships: perdure recipes"
        raise RecipeError([PerdureError(f"{path}: no such file", hint)]) from None
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8 text" if isinstance(error, UnicodeError) else error.strerror
        raise RecipeError([PerdureError(f"{path}: cannot be read: {why}")]) from None
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = (error.problem or "broken YAML").partition(" with value")[0]
        raise RecipeError([PerdureError(f"{path}:{line}: {what}", _syntax_hint(what))]) from None
    except YAMLError as error:
        raise RecipeError([PerdureError(f"{path}: broken YAML: {error}")]) from None
    if not isinstance(tree, CommentedMap):
        what = "is empty" if tree is None else "must be lines of `key: value`"
        raise RecipeError([PerdureError(f"{path}:1: {what}", "see perdure recipes")])
    lines: dict[Key, int] = {}
    return Document(path, _plain(tree, (), lines), lines)


def write(data: Any) -> str:
    """YAML text that `read` gives back equal."""
    yaml = YAML(typ="rt")
    yaml.width, yaml.allow_unicode = 10_000, True
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def parse_value(text: str) -> Any:
    """A value of the command line: a number, true, null, [list], {mapping}, or else text."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
    loose = isinstance(value, dict | list) and not text.lstrip().startswith(("{", "["))
    return text if loose else value


def _plain(node: Any, key: Key, lines: dict[Key, int]) -> Any:
    """Plain dicts, lists, numbers and text; fills `lines`."""
    if isinstance(node, CommentedMap):
        for name in node:
            if name in (node.lc.data or {}):  # a key merged from an anchor has no line of its own
                lines[(*key, name)] = node.lc.key(name)[0] + 1
        return {name: _plain(value, (*key, name), lines) for name, value in node.items()}
    if isinstance(node, CommentedSeq):
        for i in range(len(node)):
            lines[(*key, i)] = node.lc.item(i)[0] + 1
        return [_plain(value, (*key, i), lines) for i, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _item(items: list[Any], part: str) -> int | str:
    """Index of a list's item, given its number or its `name`; or what is wrong with that."""
    names = [str(item.get("name")) if isinstance(item, dict) else str(item) for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    return f"no item {part}; there are {', '.join(f'{i}: {n}' for i, n in enumerate(names))}"


def _syntax_hint(what: str) -> str:
    if "'\\t'" in what:
        return "indent with spaces, not with tabs"
    if "duplicate key" in what:
        return "each key may be written once"
    if "mapping values are not allowed" in what:
        return 'put a text that contains ": " in quotes, and indent keys of one section alike'
    return "a bracket, a quote or the indentation above may be wrong"
