"""How BLEU cuts a text into words: by its language, as sacrebleu names the ways to do it."""

from __future__ import annotations

from importlib.util import find_spec

from perdure.errors import UsageError
from perdure.streams.languages import parse_language

_WAYS = {
    "zh": ("zh", "", ""),
    "ja": ("ja-mecab", "MeCab", '"sacrebleu[ja]"'),
    "ko": ("ko-mecab", "mecab_ko", '"sacrebleu[ko]"'),
    # Without blanks between words; the pieces are those of a model that sacrebleu downloads.
    **dict.fromkeys(
        ("th", "lo", "km", "my", "bo", "dz"), ("flores200", "sentencepiece", "sentencepiece")
    ),
}
"""The way, the module that it needs and what to install for it; all others are "13a"."""


def bleu_tokenizer(language: str) -> str:
    """The tokenizer of sacrebleu's BLEU for texts of a language; "13a" where "" is given.

    With 13a a Chinese or Japanese sentence is one word, so that nearly every score is 0.

    Raises:
        UsageError: the language is not known, or what its tokenizer needs is not installed.
    """
    if not language:
        return "13a"
    found = parse_language(language)
    name, module, package = _WAYS.get(found.code, ("13a", "", ""))
    if module and find_spec(module) is None:
        raise UsageError(
            f"BLEU of {found.name} needs the words of sacrebleu's tokenizer {name}, and {module} "
            "is not installed",
            f"pip install {package}, or score with chrF, which needs no words",
        )
    return name
