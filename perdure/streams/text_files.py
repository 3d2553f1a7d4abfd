"""What a text file does not say of itself: its encoding, and what separates its cells.

UTF-8 with or without a byte order mark, and the delimiter of the file's ending, need no guess.
Anything else is recognised, and told, since a guess may be wrong: a recipe's `encoding` and
`delimiter` settle it.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from perdure.recipe.general import UNPACK

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "cp1255", "cp1256", "cp932",
    "gb18030", "big5", "euc_kr", "euc_jp", "mac_roman",
)  # fmt: skip
"""What is looked for besides Unicode, the likelier first: texts of few letters fit several."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXTS = (
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (b"BZh91AY&SY", "a bzip2 archive", UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or export the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet", "export the sheet as CSV"),
    (b"PAR1", "a Parquet file", "give it the ending .parquet"),
)
"""How files of other kinds begin, what they are, and what to do: some encodings take any byte."""
_LOOKED_AT = 100_000
"""Bytes of a file that its encoding is recognised by, of the lines that are not plain ASCII."""
_SNIFFED = 20_000
_LETTERS = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_SEPARATED_BY = re.compile(r'"?sep=(.)"?\r?\n')
"""The first line by which Excel is told the delimiter of a file."""


class DecodingError(Exception):
    """A file's bytes are no text in the encoding named or recognised; `line` counts from 1."""

    def __init__(self, what: str, line: int, remedy: str) -> None:
        super().__init__(what)
        self.line, self.remedy = line, remedy


def decode(raw: bytes, encoding: str | None = None, whose: str = "the task's") -> tuple[str, str]:
    """Return a file's text without a byte order mark, and what to tell of its encoding.

    Nothing is told ("") where the encoding was given, is UTF-8, or stands in a byte order mark.

    Args:
        encoding: as the user names it; None recognises it.
        whose: the section that has the key `encoding`, for a message; "" if there is none.

    Raises:
        DecodingError: a byte that the encoding does not have; UTF-8 in which few bytes are damaged
            is not taken for anything else.
    """
    for begin, kind, remedy in _NO_TEXTS:
        if raw.startswith(begin):
            raise DecodingError(f"no text, but {kind}", 1, remedy)
    if encoding is not None:
        if encoding.replace("_", "-").lower() in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
        try:
            return raw.decode(encoding), ""
        except UnicodeError as error:
            raise _no_text(raw, encoding, error, "name the right `encoding`") from None
    for mark, name in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(name), ""
            except UnicodeError as error:
                raise _no_text(raw, name, error, "save the file as UTF-8") from None
    if not (found := _without_mark(raw)):  # plain letters in UTF-16 would be UTF-8 with NULs
        try:
            return raw.decode("utf-8"), ""
        except UnicodeError as error:
            remedy = "save the file as UTF-8" + f", or name {whose} `encoding`" * bool(whose)
            wrong = _no_text(raw, "UTF-8", error, remedy)
        if not (found := _recognised(raw)):
            raise wrong
    names = [name for name, _ in found]
    sample = _odd_word(*(text for _, text in found[:2]))
    others = f"{' and '.join(names[1:3])} would fit as well" if names[1:] else ""
    seen = "; ".join(filter(None, [f'"{sample[:20]}"' * bool(sample), others]))
    return raw.decode(names[0]), f"read as {names[0]}{f' ({seen})' if seen else ''}"


def _odd_word(text: str, other: str = "") -> str:
    """A word by which people see whether it is the right encoding, and not the `other` text's."""
    split = re.compile(r"[^\s,;|\"]+")
    odd = [word for word in split.findall(text) if not word.isascii()]
    others = set(split.findall(other))
    told_apart = [word for word in odd if word not in others] or odd
    letters = (w for w in told_apart if any(c.isalpha() and not c.isascii() for c in w))
    return next(letters, told_apart[0] if odd else "")


def _without_mark(raw: bytes) -> list[tuple[str, str]]:
    """UTF-16 without a byte order mark, where every second byte of plain letters is zero."""
    for name, zeros in (("utf-16-le", raw[1:2000:2]), ("utf-16-be", raw[0:2000:2])):
        if zeros.count(0) > 0.4 * len(zeros):
            try:
                return [(name, raw.decode(name)[:_LOOKED_AT])]
            except UnicodeError:
                continue
    return []


def _recognised(raw: bytes) -> list[tuple[str, str]]:
    """Encodings that a file may be in, the likeliest first, each with a part of its text.

    Those behind the first give another text and fit it no worse. None if it is no text, or UTF-8
    in which little is damaged.
    """
    good = len(b"".join(_LETTERS.findall(raw)))
    if b"\0" in raw or good >= len(raw.translate(None, bytes(range(128)))) / 2:
        return []
    from charset_normalizer import from_bytes

    lines = (line for line in raw.split(b"\n") if not line.isascii())
    sample = b"\n".join(_up_to(lines, _LOOKED_AT))
    # Short texts with many names or signs look chaotic in their own encoding too.
    matches = from_bytes(sample, cp_isolation=list(ENCODINGS), threshold=0.4, enable_fallback=False)
    ranked = [
        (round(match.chaos, 2), -round(match.coherence, 2), ENCODINGS.index(name))
        for match in matches
        for name in {match.encoding, *match.could_be_from_charset} & set(ENCODINGS)
    ]
    found: dict[str, tuple[float, float, str]] = {}  # each text once
    for chaos, coherence, rank in sorted(ranked):
        name = ENCODINGS[rank]
        try:
            if not found:
                raw.decode(name)  # the sample alone may be right by chance
            found.setdefault(sample.decode(name), (chaos, coherence, name))
        except UnicodeError:
            continue
    best = next(iter(found.values()), (0.0, 0.0, ""))
    return [(name, text) for text, (*fit, name) in found.items() if fit == list(best[:2])]


def _up_to(lines: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The first lines, of so many bytes together; at least one."""
    for line in lines:
        yield line
        most -= len(line)
        if most <= 0:
            return


def _no_text(raw: bytes, encoding: str, error: UnicodeError, remedy: str) -> DecodingError:
    start = error.start if isinstance(error, UnicodeDecodeError) else 0
    byte = f": byte 0x{raw[start]:02x}" if start < len(raw) else ""
    line = raw.count(b"\n", 0, start) + 1
    return DecodingError(f"not {encoding.removesuffix('-sig')}{byte}", line, remedy)


class Delimited(NamedTuple):
    """What separates a file's cells, and where its header begins in the text."""

    delimiter: str
    begins: int


def find_delimiter(text: str, usual: str, needed: Iterable[str] = ()) -> Delimited:
    """Return what separates cells: the usual sign, if the header shows that it does.

    Of the signs in `DELIMITERS` it is the first under which the header has all needed columns;
    else the first under which it has several cells.

    Args: usual: that of the file's ending, which is tried first; then what `csv.Sniffer` finds.
    """
    # A whole document may stand in a cell; Python has one limit for all readers.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    if (line := _SEPARATED_BY.match(text)) is not None:
        return Delimited(line[1], line.end())
    columns = set(needed)
    header = _header(text, usual)
    if columns and columns <= header:
        return Delimited(usual, 0)
    order = dict.fromkeys(filter(None, [usual, _sniffed(text), *DELIMITERS]))
    headers = {sign: _header(text, sign) for sign in order}
    right = [sign for sign, cells in headers.items() if columns and columns <= cells]
    several = [sign for sign, cells in headers.items() if len(cells) > 1]
    return Delimited([*right, *several, usual][0], 0)


def _header(text: str, delimiter: str) -> set[str]:
    try:
        rows = csv.reader(io.StringIO(text[:_SNIFFED], newline=""), delimiter=delimiter)
        return set(next((row for row in rows if row), []))
    except csv.Error:
        return set()


def _sniffed(text: str) -> str:
    try:
        return csv.Sniffer().sniff(text[:_SNIFFED], "".join(DELIMITERS)).delimiter
    except csv.Error:
        return ""


def text_lines(text: str) -> list[str]:
    """The lines of a text file; a line feed alone ends one, or with a carriage return before it.

    Other signs at which Python's `splitlines` breaks a line, such as U+2028, stand inside sentences
    of translated text: to break there would move all lines behind against those of another file.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def told(name: str, encoding: str = "", delimiter: str = "", *, whose: str = "the task's") -> str:
    """Return the line that tells what was recognised in a file, "" if nothing was."""
    cells = f"cells separated by {DELIMITERS.get(delimiter, delimiter)}" if delimiter else ""
    found = {"encoding": encoding, "delimiter": cells}
    if not any(found.values()):
        return ""
    keys = " and ".join(f"`{key}`" for key, what in found.items() if what)
    what = ", ".join(filter(None, found.values()))
    saved = " with ".join(["as UTF-8"] * bool(encoding) + ["commas between cells"] * bool(cells))
    remedy = (
        f"give {whose} {keys}" if whose else f"save it {saved if encoding else 'with ' + saved}"
    )
    return f"{name}: {what}, as recognised; if that is wrong, {remedy}"
