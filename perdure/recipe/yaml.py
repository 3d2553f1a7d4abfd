"""A YAML file that remembers the line of every key, and KEY=VALUE overrides on top of it.

`ruamel.yaml` reads YAML 1.2: `no` and `on` are text, `5e-5` is a number. What comes out is plain
dicts and lists beside a map from each key's path to where it was written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from perdure.errors import PerdureError, RecipeError, brief, resume_command, typed
from perdure.paths import no_file
from perdure.recipe.mistakes import Key, Mistake, near
from perdure.recipe.yaml_limits import BYTES, load_yaml

_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""Where YAML begins a new line."""
_SCALAR = re.compile(r"[^\s,\[\]{}#&*!|>'\"%@`][^\s,\[\]{}#]*?(?=:?(?:[\s,\[\]{}#]|$))")
"""A plain value without blanks, as numbers, dates and words like true are."""
_QUOTED = re.compile(r'".*"|\d+')
"""What differs between mistakes of one kind."""
COMMAND_LINE = 0
"""Stands for a line number where a value was given as KEY=VALUE."""
ON_COMMAND_LINE = "command line"
"""What stands before such a key in place of a file and a line."""


@dataclass
class Document:
    """Plain data and the line (from 1) on which each key was written.

    `written` has the text of each value that YAML reads as something else than text and that does
    not come out as it was written (007, 1_000, true, a date); `written_keys` of each
    such name of a key.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    written: dict[Key, str] = field(default_factory=dict)
    written_keys: dict[Key, str] = field(default_factory=dict)

    def line(self, key: Key) -> int:
        """Line of `key`, or of the nearest section around it."""
        for size in range(len(key), -1, -1):
            if (line := self.lines.get(key[:size])) is not None:
                return line
        return 1

    def place(self, key: Key) -> str:
        """`file:line: key`, or `command line: key` for an override."""
        line, name = self.line(key), ".".join(brief(part) for part in key)
        where = ON_COMMAND_LINE if line == COMMAND_LINE else f"{self.path}:{line}"
        return f"{where}: {name}" if name else where

    def errors(self, mistakes: Iterable[Mistake]) -> list[PerdureError]:
        """The mistakes in the order of their lines, those of the command line last."""
        last = max(self.lines.values(), default=0) + 1
        inside = sorted(mistakes, key=lambda m: self.line(m.key) or last)
        return [
            PerdureError(
                f"{self.place(m.key)}: {m.what}",
                m.remedy or (),
                str(self.path),
                _QUOTED.sub("", m.what).partition(":")[0],
            )
            for m in inside
        ]

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
        whole = tuple(key)
        self._from_the_command_line(whole)
        try:
            node[key[-1]] = _read_value(value, whole, self.written, self.written_keys)
        except _HalfCharacterError as error:
            node[key[-1]] = ""
            return Mistake(error.key, error.what)
        return None

    def put(self, key: str, value: Any) -> None:
        """Write a section anew, as the command line gave it: what stood there has no line more."""
        self.data[key] = value
        self._from_the_command_line((key,))

    def _from_the_command_line(self, whole: Key) -> None:
        for known in (self.lines, self.written, self.written_keys):
            for old in [k for k in known if k[: len(whole)] == whole]:
                del known[old]
        self.lines[whole] = COMMAND_LINE

    def _refuse(self, key: Sequence[str | int], what: str) -> Mistake:
        self.lines[tuple(key)] = COMMAND_LINE
        return Mistake(tuple(key), what)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is `key: value`.

    Raises:
        RecipeError: no such file, not text, broken YAML, a key given twice, or not a mapping;
            names the line.
    """
    if why := no_file(path):
        parent = no_file(path.parent) == "is a folder, not a file"
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if parent else []
        hint: str | list[str] = near(path.name, siblings)
        hint = hint or "to start from one that ships: perdure recipes"
        if (path / "recipe.yaml").is_file():
            again = typed("run", path / "recipe.yaml")
            hint = [f"go on with that run: {resume_command(path)}", f"or begin it anew: {again}"]
        raise RecipeError([PerdureError(f"{brief(path, 300)}: {why}", hint)])
    try:
        if path.stat().st_size > BYTES:
            what = f"{path}: has {path.stat().st_size:,} bytes, and a recipe at most {BYTES:,}"
            raise RecipeError([PerdureError(what, "data belong into files that it names")])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([_unreadable(path, error)]) from None
    try:
        tree = load_yaml(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = brief((error.problem or "broken YAML").partition(" with value")[0], 200)
        hint = _syntax_hint(what, _LINE_END.split(text)[max(0, line - 2) : line])
        raise RecipeError([PerdureError(f"{path}:{line}: {what}", hint)]) from None
    except ReaderError as error:
        sign = text[error.position]
        line = len(_LINE_END.split(text[: error.position]))
        what = f"{path}:{line}: has the character U+{ord(sign):04X}, which no YAML may hold"
        raise RecipeError([PerdureError(what, "delete it, or save the file as UTF-8")]) from None
    except YAMLError as error:
        raise RecipeError([PerdureError(f"{path}: broken YAML: {error}")]) from None
    if not isinstance(tree, CommentedMap):
        what = "is empty" if tree is None else "must be lines of `key: value`"
        raise RecipeError([PerdureError(f"{path}:1: {what}", "see perdure recipes")])
    document = Document(path, {})
    try:
        document.data = _Plain(text, document.written, document.written_keys, document.lines).of(
            tree, ()
        )
    except _HalfCharacterError as error:
        raise RecipeError([PerdureError(f"{document.place(error.key)}: {error.what}")]) from None
    return document


def write(data: Any) -> str:
    """YAML text that `read` gives back equal."""
    yaml = YAML(typ="rt")
    yaml.width, yaml.allow_unicode = 10_000, True
    stream = StringIO()
    yaml.dump(_quoted(data), stream)
    return stream.getvalue()


def inline(value: Any) -> str:
    """A value as YAML on one line; `read` gives it back equal."""
    if isinstance(value, Mapping):
        parts = [f"{inline(key)}: {inline(item)}" for key, item in value.items()]
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


_BARE = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_NO_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
"""Words that some reader of YAML takes for something else than text."""


def _quoted(data: Any) -> Any:
    """Texts with other line ends than "\\n" and signs of control in quotes, which keep them."""
    if isinstance(data, dict):
        return {_quoted(key): _quoted(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_quoted(value) for value in data]
    odd = isinstance(data, str) and not data.replace("\n", "").isprintable()
    return DoubleQuotedScalarString(data) if odd else data


def parse_value(text: str) -> Any:
    """A value of the command line: a number, true, null, [list], {mapping}, or else text."""
    return _read_value(text, (), {}, {})


def _read_value(text: str, key: Key, written: dict[Key, str], written_keys: dict[Key, str]) -> Any:
    try:
        value = _Plain(text, written, written_keys).of(load_yaml(text), key)
    except YAMLError:
        return text
    loose = isinstance(value, dict | list) and not text.lstrip().startswith(("{", "["))
    if not isinstance(value, dict | list | str) and _is_changed(value, text.strip()):
        written[key] = text.strip()
    return text if loose else value


def _is_changed(value: Any, text: str) -> bool:
    """Whether a value would come out as another text; true, nothing and dates are none at all."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number or text != str(value)


class _HalfCharacterError(Exception):
    what = "has half a character (a lone surrogate): write the character itself"

    def __init__(self, key: Key) -> None:
        self.key = key


class _Plain:
    """Plain dicts, lists, numbers and text; fills what `Document` knows of each key.

    Args: source: what the tree was read from.
    """

    def __init__(
        self,
        source: str,
        written: dict[Key, str],
        written_keys: dict[Key, str],
        lines: dict[Key, int] | None = None,
    ) -> None:
        self.lines = {} if lines is None else lines
        self.written, self.written_keys = written, written_keys
        self._source = _LINE_END.split(source)

    def of(self, node: Any, key: Key) -> Any:
        if isinstance(node, CommentedMap):
            found = {}
            for name, value in node.items():
                inner = (*key, self._scalar(name, key))
                if name in (node.lc.data or {}):  # one merged from an anchor has no line of its own
                    at, value_at = node.lc.key(name), node.lc.value(name)
                    self.lines[inner] = at[0] + 1
                    if not isinstance(inner[-1], str | int):  # as pydantic calls such a key
                        self.lines[(*key, str(inner[-1]))] = at[0] + 1
                    self._note(name, at, inner, self.written_keys)
                    self._note(value, value_at, inner, self.written)
                found[inner[-1]] = self.of(value, inner)
            return found
        if isinstance(node, CommentedSeq):
            for i, value in enumerate(node):
                self.lines[(*key, i)] = node.lc.item(i)[0] + 1
                self._note(value, node.lc.item(i), (*key, i), self.written)
            return [self.of(value, (*key, i)) for i, value in enumerate(node)]
        return self._scalar(node, key)

    def _note(self, value: Any, at: tuple[int, int], key: Key, written: dict[Key, str]) -> None:
        """Keep the text of a value that was not meant as text, where it would come out otherwise.

        An alias, and a value behind an anchor or a tag, are left out.
        """
        if isinstance(value, str | CommentedMap | CommentedSeq) or at[0] >= len(self._source):
            return
        text = _SCALAR.match(self._source[at[0]], at[1])
        if text is not None and _is_changed(value, text[0]):
            written[key] = text[0]

    def _scalar(self, node: Any, key: Key) -> Any:
        if isinstance(node, str):
            text = str(node)
            if text.isascii():
                return text
            try:  # JSON writes an emoji as two halves
                return text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise _HalfCharacterError(key) from None
        for kind in (bool, int, float):
            if isinstance(node, kind):
                return kind(node)
        if isinstance(node, TaggedScalar):  # of !!str, for example
            return self._scalar(node.value, key)
        return node


def _item(items: list[Any], part: str) -> int | str:
    """Index of a list's item, given its number or its `name`; or what is wrong with that."""
    names = [brief(item.get("name") if isinstance(item, dict) else item) for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    return f"no item {part}; there are {', '.join(f'{i}: {n}' for i, n in enumerate(names))}"


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> PerdureError:
    """That a recipe is no text, with the line, or that the system does not give it."""
    if isinstance(error, OSError):
        return PerdureError(f"{path}: cannot be read: {error.strerror or error}")
    line = error.object.count(b"\n", 0, error.start) + 1
    what = f"{path}:{line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}"
    return PerdureError(what, "a recipe is a plain text: save it as UTF-8")


def _syntax_hint(what: str, near_it: Sequence[str]) -> str:
    """What to do about broken YAML, of which the line where it was noticed and the one above."""
    if "\u00a0" in "".join(near_it):
        return "a no-break space (U+00A0) stands here or in the line above: write plain spaces"
    if "'\\t'" in what:
        return "indent with spaces, not with tabs"
    if "duplicate key" in what:
        return "each key may be written once"
    if "escape character" in what:
        return "a \\ in double quotes changes the sign behind it: write / or take single quotes"
    if "mapping values are not allowed" in what:
        return 'put a text that contains ": " in quotes, and indent keys of one section alike'
    return "a bracket, a quote or the indentation above may be wrong"
