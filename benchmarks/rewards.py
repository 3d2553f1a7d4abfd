"""How often the reward `language` errs, on the lines of NTREX-128.

    python benchmarks/rewards.py [FOLDER]

FOLDER has line-aligned files such as eng.txt and fra.txt (default: ../shared/data/ntrex128). For
each language, in per cent: right translations that are refused, each judged as if its own right
answer were not known; English copies that pass, that is, the source as it is; and texts that pass
whose second half is English. "3 words": the same of each line's first three words (six characters
of Chinese and Japanese).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from perdure.rewards import Sample
from perdure.rewards.language import LanguageConfig, LanguageGuard, in_script, label_of, worst_odds
from perdure.streams.languages import parse_language

FILES = {
    "fr": "fra",
    "de": "deu",
    "es": "spa",
    "id": "ind",
    "hr": "hrv",
    "zh": "zho-CN",
    "ja": "jpn",
    "ru": "rus",
}
GUARD = LanguageGuard(LanguageConfig())


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def refused_alone(text: str, source: str, code: str) -> bool:
    """Whether a text is refused where nothing is known of the right answer."""
    language = parse_language(code)
    if not in_script(text, "", source, language.script):
        return True
    return worst_odds(text, label_of(language)) > GUARD.config.odds


def passes(text: str, right: str, source: str, code: str) -> bool:
    row = {"source": source, "target": right, "source_lang": "en", "target_lang": code}
    return GUARD([Sample(source, text, row=row)]) == [1.0]


def blanks(code: str) -> bool:
    return code not in ("zh", "ja")


def start(text: str, code: str) -> str:
    return " ".join(text.split()[:3]) if blanks(code) else text[:6]


def mixed(right: str, source: str, code: str) -> str:
    """The first half of the right answer, then the second half of its source."""
    words, there = source.split(), right.split() if blanks(code) else list(right)
    first = (" " if blanks(code) else "").join(there[: len(there) // 2])
    return f"{first} {' '.join(words[len(words) // 2 :])}"


def share(pairs: list[tuple[str, str]], of: Callable[[str, str], bool]) -> str:
    return f"{100 * sum(of(right, source) for right, source in pairs) / len(pairs):7.1f}"


def main(folder: Path) -> None:
    source = lines(folder, "eng")
    head = ("refused", "3 words", "English", "3 words", "half English")
    print("language  " + "  ".join(head))
    for code, name in FILES.items():
        pairs = list(zip(lines(folder, name), source, strict=True))
        short = [(start(right, code), start(text, "en")) for right, text in pairs]
        figures = [
            share(pairs, lambda r, s, c=code: refused_alone(r, s, c)),
            share(short, lambda r, s, c=code: refused_alone(r, s, c)),
            share(pairs, lambda r, s, c=code: passes(s, r, s, c)),
            share(short, lambda r, s, c=code: passes(s, r, s, c)),
            share(pairs, lambda r, s, c=code: passes(mixed(r, s, c), r, s, c)),
        ]
        wrong = sum(not passes(right, right, text, code) for right, text in pairs)
        assert not wrong, "the right answer itself is never refused"
        print(f"{code:8}  " + "  ".join(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/ntrex128"))
