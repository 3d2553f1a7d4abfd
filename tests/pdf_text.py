"""Where text stands on the pages of a PDF that a browser has printed (no PDF library is needed).

Reads what Chromium's writer (Skia) writes: one content stream a page, deflated, text placed by
`cm`, `Tm` and `Td`. References: ISO 32000-1, 8.3 (coordinates), 9.4 (text).
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator

Matrix = tuple[float, float, float, float, float, float]
_OBJECT = re.compile(rb"(?:^|[\r\n])(\d+) 0 obj\b(.*?)endobj", re.S)
_TOKEN = re.compile(
    rb"\((?:\\.|[^\\)])*\)|<[0-9A-Fa-f\s]*>|[\[\]]|/[^\s/<>\[\]()]+|[^\s/<>\[\]()]+", re.S
)
_SAME: Matrix = (1, 0, 0, 1, 0, 0)


def text_places(pdf: bytes) -> list[list[float]]:
    """For each page the heights at which text is shown, from 0 (top edge) to 1, in order."""
    objects = {int(m[1]): m[2] for m in _OBJECT.finditer(pdf)}
    found = []
    for one in objects.values():
        if not re.search(rb"/Type\s*/Page\b(?!s)", one):
            continue
        box = re.search(rb"/MediaBox\s*\[\S+ \S+ \S+ (\S+)\]", one)
        content = re.search(rb"/Contents\s+(\d+)", one)
        assert box is not None
        assert content is not None
        height = float(box[1])
        shown = _shown(_inflated(objects[int(content[1])]))
        found.append(sorted(1 - y / height for y in shown))
    return found


def largest_gap(places: list[float], margin: float) -> float:
    """The tallest part of a page without a line of text, between margins of this share."""
    edges = [margin, *places, 1 - margin]
    return max(b - a for a, b in itertools.pairwise(edges))


def _inflated(one: bytes) -> bytes:
    facts, _, rest = one.partition(b"stream")
    body = rest.lstrip(b"\r").removeprefix(b"\n")[: rest.rfind(b"endstream")]
    return zlib.decompressobj().decompress(body) if b"FlateDecode" in facts else body


def _shown(content: bytes) -> Iterator[float]:
    """The baseline of each piece of text, in points from the lower edge."""
    at, kept, text = _SAME, list[Matrix](), _SAME
    numbers: list[float] = []
    for token in _TOKEN.findall(content):
        try:
            numbers.append(float(token))
            continue
        except ValueError:
            pass
        if token == b"q":
            kept.append(at)
        elif token == b"Q":
            at = kept.pop()
        elif token == b"cm":
            at = _times(_matrix(numbers), at)
        elif token == b"BT":
            text = _SAME
        elif token == b"Tm":
            text = _matrix(numbers)
        elif token in (b"Td", b"TD"):
            text = _times((1, 0, 0, 1, numbers[-2], numbers[-1]), text)
        elif token in (b"Tj", b"TJ"):
            yield _times(text, at)[5]
        if token[:1] not in b"([<":
            numbers = []


def _matrix(numbers: list[float]) -> Matrix:
    a, b, c, d, e, f = numbers[-6:]
    return a, b, c, d, e, f


def _times(one: Matrix, other: Matrix) -> Matrix:
    a, b, c, d, e, f = one
    p, q, r, s, t, u = other
    return (
        a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s,
        e * p + f * r + t, e * q + f * s + u,
    )  # fmt: skip
