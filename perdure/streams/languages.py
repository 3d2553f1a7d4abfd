"""Languages by their codes, however FLORES, NTREX and ISO 639 write them.

parse_language("fra_Latn")      Language("fr", "French", "Latn")
parse_language("zho-CN")        Language("zh", "Chinese", "Hans"), as "zh", "cmn", "zho_Hans"
parse_language("zho-TW").name   Traditional Chinese
parse_language("x-velan")       Language("x-velan", "Velan", ""): a language of one's own
parse_direction("en-de")        English, German
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from perdure.errors import UsageError, brief
from perdure.recipe.mistakes import near
from perdure.streams.language_table import LANGUAGES, REGIONS, SCRIPTS

__all__ = ["Language", "parse_direction", "parse_language"]

_PRIVATE = re.compile(r"x-[a-z0-9_]+")
_ARROW = re.compile(r"\s*(?:->|→|>)\s*")
_HANT = ("TW", "HK", "MO")
"""Regions where Chinese is written in traditional signs."""
_OTHER_SCRIPTS = {"Kore": "Hang", "Simpl": "Hans", "Trad": "Hant"}
"""ISO 15924 has two codes for Korean; FLORES-101 writes zho_simpl and zho_trad."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Language:
    """A language as one code, whichever it was written with.

    Attributes:
        code: that of ISO 639-1 where there is one, else of 639-3; `x-...` for a language of
            one's own.
        name: in English, with script or region where they are not the usual ones.
        script: ISO 15924, as FLORES writes it ("Latn", "Hans", "Jpan"); "" where it is not known.
        region: ISO 3166, where the code gave one that does not only stand for a script.
    """

    code: str
    name: str
    script: str
    region: str = ""

    @property
    def tag(self) -> str:
        """The code with its script and region where they are not the usual ones: zh-Hant, fr-CA."""
        usual = _table().get(self.code)
        script = self.script if usual is not None and self.script != usual.script else ""
        return "-".join(filter(None, [self.code, script, self.region]))

    @property
    def flores(self) -> str:
        """The code as FLORES-200 writes it: fra_Latn; a language of one's own as it is."""
        usual = _table().get(self.code)
        return self.code if usual is None else f"{usual.three}_{self.script}"


class _Usual(NamedTuple):
    code: str
    three: str
    others: tuple[str, ...]
    script: str
    name: str


@cache
def _table() -> dict[str, _Usual]:
    """Every code that is known, and the languages they mean."""
    table: dict[str, _Usual] = {}
    for line in LANGUAGES.splitlines():
        code, aliases, script, name = line.split(" ", 3)
        others = tuple(aliases.split(",")) if aliases != "-" else ()
        # Languages without two letters have their own code in FLORES.
        three = others[0] if len(code) == 2 else code
        for each in (code, *others):
            table[each] = _Usual(code, three, others, script, name)
    return table


def parse_language(text: str, names: Mapping[str, str] = _NONE) -> Language:
    """The language that a code means.

    Args:
        text: as FLORES (`fra_Latn`), NTREX (`fra`, `zho-CN`, `fra-CA`) or ISO 639-1, -2 and -3
            (`fr`, `fre`, `fra`) write it, with an optional script and region; or `x-...`.
        names: languages of one's own, name by code; they come first.

    Raises:
        UsageError: no language has this code; the nearest ones are named.
    """
    if text in names:
        return Language(text, names[text], "")
    if _PRIVATE.fullmatch(text):
        return Language(text, text[2:].replace("_", " ").capitalize(), "")
    found = _known(text)
    if found is None:
        raise UsageError(f'no language has the code "{brief(text)}"', _remedy(text, names))
    return found


def _known(text: str) -> Language | None:
    """The language of a code of the table; None where a part of it is not known."""
    code, *parts = re.split(r"[-_]", text)
    usual = _table().get(code.lower())
    if usual is None:
        return None
    script = region = ""
    for part in parts:
        named = _OTHER_SCRIPTS.get(part.title(), part.title())
        if named in SCRIPTS and not script and not region:
            script = named
        elif re.fullmatch("[A-Z]{2}|[0-9]{3}", part) and not region:
            # In capitals, as NTREX and BCP 47 write regions: "en-fr" is a direction.
            region = part
        else:
            return None
    if usual.code == "zh" and region in REGIONS:
        script = script or ("Hant" if region in _HANT else "Hans")
        region = "" if region in ("CN", "TW") else region
    script = script or usual.script
    return Language(usual.code, _name(usual, script, region), script, region)


def _name(usual: _Usual, script: str, region: str) -> str:
    name = usual.name
    if script != usual.script:
        if usual.code == "zh":
            name = f"Traditional {name}" if script == "Hant" else name
        else:
            name = f"{name} in {SCRIPTS[script]} script"
    return f"{name} ({REGIONS.get(region, region)})" if region else name


def _remedy(text: str, names: Mapping[str, str]) -> tuple[str, ...]:
    forms = "write it as ISO 639, FLORES or NTREX do: fr, fra, fra_Latn; of your own: x-..."
    by_name = {usual.name: usual.code for usual in _table().values()}
    start = re.split(r"[-_]", text)[0]
    if start.lower() in _table():
        usual = _table()[start.lower()]
        return (f"{usual.code} is {usual.name}; after it may stand a script or a region", forms)
    if hint := near(text, [*by_name, *names]) if len(text) > 3 else "":
        name = hint.split('"')[1]
        return (f'did you mean "{by_name.get(name, name)}", {name}?', forms)
    close = [code for code in _table() if len(code) == len(start) and _apart(start, code) == 1]
    shown = ", ".join(f"{code} ({_table()[code].name})" for code in sorted(close)[:5])
    return (f"near are {shown}", forms) if shown else (forms,)


def _apart(a: str, b: str) -> int:
    """At how many places two codes of one length differ, two exchanged letters counting once."""
    apart = sum(x != y for x, y in zip(a, b, strict=True))
    return 1 if apart == 2 and sorted(a) == sorted(b) else apart


def parse_direction(text: str, names: Mapping[str, str] = _NONE) -> tuple[Language, Language]:
    """The languages from and into which is translated: "en-de", "eng_Latn-deu_Latn", "en->de".

    Raises:
        UsageError: it is no such pair, one of them is unknown, both are the same, or it can be
            read in two ways.
    """
    if _ARROW.search(text):
        sides = _ARROW.split(text.strip())
        pairs = [(sides[0], sides[1])] if len(sides) == 2 else []
    else:
        parts = text.split("-")
        pairs = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if all(_is_code(side, names) for side in pair)]
    if len(pairs) != 1:
        several = " can be read in more than one way" if pairs else " is no pair of languages"
        raise UsageError(f'direction "{brief(text)}"{several}', "write it like en-de, or en -> de")
    try:
        source, target = (parse_language(side, names) for side in pairs[0])
    except UsageError as error:
        raise UsageError(f'direction "{brief(text)}": {error.what}', error.remedy) from error
    if source == target:
        what = f'direction "{brief(text)}" leads from {source.name} into itself'
        raise UsageError(what, "give two languages, like en-de")
    return source, target


def _is_code(text: str, names: Mapping[str, str]) -> bool:
    return text in names or bool(_PRIVATE.fullmatch(text)) or _known(text) is not None
