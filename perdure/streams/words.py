"""Words of a text in any script, for measures that count them."""

from __future__ import annotations

import unicodedata


def words(text: str) -> list[str]:
    """Split into lower-case words: runs of letters, marks and digits of any script.

    Scripts written without blanks between words (Chinese, Japanese, Thai...) give one word a
    character, as is usual for ROUGE there.
    """
    return "".join(map(_spaced, unicodedata.normalize("NFC", text.lower()))).split()


def _spaced(char: str) -> str:
    """The character as a part of a word, a word of its own, or a gap between words."""
    if unicodedata.category(char)[0] not in "LMN":
        return " "
    code = ord(char)
    alone = (
        0x0E00 <= code <= 0x0EFF  # Thai, Lao
        or 0x3040 <= code <= 0x30FF  # kana
        or 0x3400 <= code <= 0x9FFF  # Han
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
    )
    return f" {char} " if alone else char
