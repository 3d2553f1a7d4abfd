"""Codes of languages: each way to write one means the same, and the table agrees with CLDR."""

from __future__ import annotations

import pytest

from perdure.errors import UsageError
from perdure.streams.language_table import LANGUAGES, REGIONS, SCRIPTS
from perdure.streams.languages import Language, parse_direction, parse_language

pytestmark = pytest.mark.unit

FRENCH = Language("fr", "French", "Latn")
CHINESE = Language("zh", "Chinese", "Hans")
TRADITIONAL = Language("zh", "Traditional Chinese", "Hant")

# The files of NTREX-128, as its repository names them.
NTREX = """
afr amh arb aze-Latn bak bel bem ben bod bos bul cat ces ckb-Arab cym dan deu div dzo ell
eng-GB eng-IN eng-US eng est eus ewe fao fas fij fil fin fra fra-CA fuc gle glg guj hau heb
hin hmn hrv hun hye ibo ind isl ita jpn kan kat kaz khm kin kir kmr kor lao lav lit ltz mal
mar mey mkd mlg mlt mon mri msa mya nde nep nld nno nob nso nya orm pan pol por por-BR prs
pus ron rus shi sin slk slv smo sna-Latn snd-Arab som spa spa-MX sqi srp-Cyrl srp-Latn ssw
swa swe tah tam tat tel tgk-Cyrl tha tir ton tsn tuk tur uig ukr urd uzb ven vie wol xho yor
yue zho-CN zho-TW zul
"""


@pytest.mark.parametrize("code", ["fr", "fra", "fre", "fra_Latn", "fra-Latn", "FR", "fr-Latn"])
def test_one_language_however_it_is_written(code: str) -> None:
    assert parse_language(code) == FRENCH


@pytest.mark.parametrize(
    ("code", "language"),
    [
        *((code, CHINESE) for code in ["zh", "zho", "chi", "cmn", "zho-CN", "zho_Hans", "zh-Hans"]),
        *((code, TRADITIONAL) for code in ["zho-TW", "zho_Hant", "zh-Hant-TW", "zho_trad"]),
        ("zho_simpl", CHINESE),
        ("zh-HK", Language("zh", "Traditional Chinese (Hong Kong)", "Hant", "HK")),
        ("jpn_Jpan", Language("ja", "Japanese", "Jpan")),
        ("kor_Hang", Language("ko", "Korean", "Hang")),
        ("ko-Kore", Language("ko", "Korean", "Hang")),
        ("fra-CA", Language("fr", "French (Canada)", "Latn", "CA")),
        ("srp-Latn", Language("sr", "Serbian in Latin script", "Latn")),
        ("ary_Arab", Language("ary", "Moroccan Arabic", "Arab")),
        ("zsm_Latn", Language("ms", "Malay", "Latn")),
        ("msa", Language("ms", "Malay", "Latn")),
        ("es-419", Language("es", "Spanish (419)", "Latn", "419")),
        ("x-velan", Language("x-velan", "Velan", "")),
    ],
)
def test_scripts_regions_and_languages_of_ones_own(code: str, language: Language) -> None:
    assert parse_language(code) == language


def test_a_recipe_names_its_own_languages() -> None:
    own = parse_language("velan", {"velan": "Velan of the hills"})
    assert own == Language("velan", "Velan of the hills", "")
    assert (own.tag, own.flores) == ("velan", "velan")


def test_what_a_language_is_called_elsewhere() -> None:
    assert [parse_language(c).flores for c in ["fr", "zh", "zho-TW", "ary", "ms"]] == [
        "fra_Latn", "zho_Hans", "zho_Hant", "ary_Arab", "zsm_Latn",
    ]  # fmt: skip
    assert [parse_language(c).tag for c in ["fra", "zho-CN", "zho-TW", "fra-CA", "srp_Latn"]] == [
        "fr", "zh", "zh-Hant", "fr-CA", "sr-Latn",
    ]  # fmt: skip


@pytest.mark.parametrize("code", [*NTREX.split(), "zh-HK", "es-419", "x-velan", "min_Arab"])
def test_a_tag_means_the_language_that_it_is_of(code: str) -> None:
    found = parse_language(code)
    region = f"-{found.region}" if found.region else ""
    assert parse_language(found.tag) == parse_language(found.flores + region) == found


def test_every_code_of_flores_and_of_ntrex_is_known() -> None:
    nllb = pytest.importorskip("transformers.models.nllb.tokenization_nllb")
    for code in nllb.FAIRSEQ_LANGUAGE_CODES:
        assert parse_language(code).flores == code
    for code in NTREX.split():
        assert parse_language(code).name


# Where this table says something else than CLDR does, with the reason.
OTHER_NAMES = {
    "bn": "Bengali, as FLORES says, is Bangla there",
}
OTHER_SCRIPTS = {
    "crh": "FLORES writes Crimean Tatar in Latin script",
    "ko": "ISO 15924 has Kore and Hang; FLORES writes Hang",
    "mey": "NTREX has it in Arabic script",
    "tzm": "FLORES writes it in Tifinagh",
}
OTHER_CODES = {
    "no": "FLORES and NTREX have Bokmål for Norwegian",
    "nor": "as no",
    "twi": "FLORES tells Twi from Akan",
    "tgl": "FLORES says Tagalog where CLDR says Filipino",
}


def test_names_scripts_and_aliases_are_those_of_cldr() -> None:
    babel = pytest.importorskip("babel")
    core = pytest.importorskip("babel.core")
    english = babel.Locale("en")
    likely, aliases = core.get_global("likely_subtags"), core.get_global("language_aliases")
    compared = 0
    for line in LANGUAGES.splitlines():
        code, others, script, name = line.split(" ", 3)
        if code not in OTHER_NAMES and code in english.languages:
            assert english.languages[code] == name
            compared += 1
        if code not in OTHER_SCRIPTS and code in likely:
            assert likely[code].split("_")[1] == script, code
        for other in others.split(",") if len(code) == 2 else ():
            assert aliases.get(other, code) == code or other in OTHER_CODES, other
    assert compared > 200
    assert all(english.territories[code].startswith(name) for code, name in REGIONS.items())
    assert all(code in english.scripts for code in SCRIPTS)
    two_letters = {code for code in aliases.values() if len(code) == 2}
    assert {code for code in two_letters if code != "no"} <= set(_codes())


def _codes() -> list[str]:
    lines = [line.split(" ", 3) for line in LANGUAGES.splitlines()]
    return [
        code for first, others, *_ in lines for code in [first, *others.split(",")] if code > "-"
    ]


def test_no_code_means_two_languages() -> None:
    assert len(_codes()) == len(set(_codes())) > 400


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("french", 'did you mean "fr", French?'),
        ("frr", "near are"),
        ("fr-Klingon", "fr is French; after it may stand a script or a region"),
        ("fr-ca", "fr is French; after it may stand a script or a region"),
        ("velan", "x-..."),
        ("", "write it as ISO 639"),
        ("en-de", "en is English"),
        ("x" * 5_000, "write it as ISO 639"),
    ],
)
def test_an_unknown_code_is_told_with_near_ones(code: str, remedy: str) -> None:
    with pytest.raises(UsageError, match="no language has the code") as told:
        parse_language(code)
    assert remedy in str(told.value)
    assert len(told.value.what) < 200


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("en-de", ("en", "de")),
        ("eng_Latn-deu_Latn", ("en", "de")),
        ("en -> de", ("en", "de")),
        ("en→zh-Hant", ("en", "zh-Hant")),
        ("zho-CN-eng", ("zh", "en")),
        ("en-fr-CA", ("en", "fr-CA")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("en-x-velan", ("en", "x-velan")),
        ("x-velan-en", ("x-velan", "en")),
        ("eng-GB-eng-US", ("en-GB", "en-US")),
    ],
)
def test_directions(text: str, codes: tuple[str, str]) -> None:
    source, target = parse_direction(text)
    assert (source.tag, target.tag) == codes


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("en", "is no pair"),
        ("", "is no pair"),
        ("en->de->fr", "is no pair"),
        ("en-de-fr", "is no pair"),
        ("EN-PT-BR", "more than one way"),  # Brazilian Portuguese, or Breton
        ("en-en", "from English into itself"),
        ("eng-en", "from English into itself"),
        ("en-xx", 'no language has the code "xx"'),
    ],
)
def test_what_is_no_direction_is_told(text: str, what: str) -> None:
    with pytest.raises(UsageError, match="direction") as told:
        parse_direction(text)
    assert what in told.value.what
