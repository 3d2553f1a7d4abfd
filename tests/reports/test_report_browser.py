"""The report in a real browser: phone, desktop, dark mode, print, and a page that calls nobody."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pdf_text import largest_gap, text_places
from synthetic_runs import (
    FORGETS,
    KEEPS,
    NAN,
    POOL_MATRIX,
    POOL_TASKS,
    make_class_run,
    make_pool_run,
    make_run,
    three_methods,
    twelve_runs,
)

from perdure.reports import colours, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.process,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on PATH (Debian: apt install chromium)"
    ),
]
WIDTHS = (360, 390, 768, 1200, 1280)
PAGES = ("compare", "single", "hostile", "twelve", "classes", "intents", "routed", "long")
"""`classes` compares two runs of 15 tasks and 150 classes, and `intents` is one of them."""
MOST = {"single": 6, "twelve": 8, "classes": 16, "intents": 12}
"""Sheets of paper; one run in 7 and twelve in 14 were mostly white."""
MARGIN = 13 / 297
"""Of a printed sheet at top and bottom, as a share of its height."""
WHITE = 0.4
"""Of a sheet, in one piece; before, up to 0.44 were: all that a heading and a chart would not fit
into."""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

SETTINGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
)

# Runs inside the page; says what a reader would see.
PROBE = """<script>
const at = (s) => document.querySelector(s);
const style = (s) => getComputedStyle(at(s));
const wide = document.documentElement.clientWidth;
const inside = (e) => e.closest('.scroll, pre, nav ul, .sr, .skip, .stack thead');
const beyond = [...document.querySelectorAll('body *')].filter(
  (e) => !inside(e) && e.getBoundingClientRect().right > wide + 0.5);
const texts = [...document.querySelectorAll('.chart svg text')];
const seen = {
  name: location.search, width: wide, scroll: document.documentElement.scrollWidth,
  beyond: beyond.slice(0, 5).map((e) => e.tagName + '.' + e.getAttribute('class')),
  smallest: Math.min(...texts.map((t) => t.getBoundingClientRect().height)),
  outside: texts.filter((t) => { const b = t.getBoundingClientRect(),
    c = t.closest('.card').getBoundingClientRect(); return b.left < c.left || b.right > c.right;
    }).map((t) => t.textContent),
  lines: [...document.querySelectorAll('#classes .plain tbody th, .cost td > span')].map(
    (e) => { const r = document.createRange(); r.selectNodeContents(e.firstChild);
      return [r.getClientRects().length, e.firstChild.textContent.trim()]; }),
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  ground: style('body').backgroundColor, ink: style('body').color,
  line: style('.line').stroke,
  cells: [...document.querySelectorAll('.heat tbody td')].map(
    (c) => [getComputedStyle(c).backgroundColor, getComputedStyle(c).color]),
  loaded: performance.getEntriesByType('resource').map((r) => r.name),
};
parent.postMessage(JSON.stringify(seen), '*');
</script>"""
LISTEN = """<!doctype html><pre id="out"></pre><script>
addEventListener('message', (m) => { document.getElementById('out').append(m.data + '\\n'); });
</script>"""


def chromium(folder: Path, page: Path, *options: str) -> str:
    """Open `page` in a new headless browser; return what it prints."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *SETTINGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    shutil.rmtree(folder / "profile", ignore_errors=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports over three runs, over one, and over runs with names that no layout likes."""
    folder = tmp_path_factory.mktemp("pages")
    runs = three_methods(folder)
    long = "incontrovertible" * 6
    hostile = [
        make_run(
            folder / f"{long}{i}", "gere+ewc+replay", [[*row, NAN, 0.5, 0.5] for row in rows],
            tasks=("<script>alert(1)</script>", long, "a name of many words " * 4, "d", "e", "f"),
            own_losses={f"method/{long}": 1.0}, general=(23.0, 240.0, 9000.0, 1e9),
        )
        for i, rows in enumerate((FORGETS, KEEPS))
    ]  # fmt: skip
    found = {
        "compare": runs,
        "single": runs[2:],
        "hostile": hostile,
        "twelve": twelve_runs(folder / "twelve"),
        "classes": [
            make_class_run(folder / "seq_star"),
            make_class_run(folder / "plain", "sequential", kept=0.6),
        ],
        "routed": [
            make_pool_run(folder / "lcia"),
            make_run(folder / "unrouted", matrix=POOL_MATRIX, tasks=POOL_TASKS),
        ],
    }
    # 60 tasks, whose matrices are drawn in groups of three; each is learned to 0.9, then forgotten.
    found["long"] = [
        make_run(
            folder / f"long {fall}", tasks=[f"{'a long name of ' * (j % 4)}{j}" for j in range(60)],
            matrix=[[max(0.1, 0.9 - fall * (after - 1 - j)) if j < after else 0.1
                     for j in range(60)] for after in range(61)], steps=2,
        )
        for fall in (0.01, 0.1)
    ]  # fmt: skip
    found["intents"] = found["classes"][:1]
    return {name: write_report(rows, folder / f"{name}.html") for name, rows in found.items()}


def probe(pages: dict[str, Path], folder: Path, *options: str) -> dict[tuple[str, int], Any]:
    """What the probe says of each page at each width, as in a phone's or a desktop's window.

    A headless window is 500 pixels wide at least; a frame can be as narrow as a phone.
    """
    frames = []
    for name, page in pages.items():
        text, replaced = POLICY.subn("", page.read_text(encoding="utf-8"))
        assert replaced == 1
        copy = folder / f"{name}.html"
        copy.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
        frames += [
            f'<iframe src="{copy.as_uri()}?{name}" style="width:{w}px;height:900px;border:0">'
            "</iframe>"
            for w in WIDTHS
        ]
    wrapper = folder / "wrapper.html"
    wrapper.write_text(LISTEN + "".join(frames), encoding="utf-8")
    dom = chromium(folder, wrapper, "--dump-dom", "--virtual-time-budget=5000", *options)
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert out is not None
    told = [json.loads(line.replace("&amp;", "&")) for line in out.group(1).splitlines()]
    return {(seen["name"].lstrip("?"), seen["width"]): seen for seen in told}


@pytest.fixture(scope="module")
def light(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return probe(pages, tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def dark(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dark")
    return probe(pages, folder, "--blink-settings=preferredColorScheme=0")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_nothing_scrolls_sideways(light: Any, page: str, width: int) -> None:
    seen = light[page, width]
    assert (seen["scroll"], seen["beyond"]) == (width, [])
    assert seen["outside"] == []  # a chart's text stays on its card


@pytest.mark.parametrize("page", ["classes", "intents"])
def test_names_of_classes_and_costs_are_whole(light: Any, page: str) -> None:
    """A step or a figure stands on one line; a class's name may break after an underscore."""
    for width in (390, 1280):
        broken = [
            text for count, text in light[page, width]["lines"]
            if count > 1 and "_" not in text and (width == 1280 or text.startswith("task"))
        ]  # fmt: skip
        assert broken == []
        assert any(text == "task 15" for _, text in light[page, width]["lines"])


@pytest.mark.parametrize("page", PAGES)
def test_chart_text_is_readable_on_a_phone(light: Any, page: str) -> None:
    assert light[page, 360]["smallest"] >= 10  # pixels, line height of the smallest text


def test_the_page_loads_nothing(light: Any) -> None:
    assert {tuple(seen["loaded"]) for seen in light.values()} == {()}


def hex_of(colour: str) -> str:
    """`rgb(1, 2, 3)` as #010203."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_dark_mode_follows_the_reader(light: Any, dark: Any) -> None:
    day, night = light["compare", 1280], dark["compare", 1280]
    assert (day["dark"], night["dark"]) == (False, True)
    assert colours.contrast(hex_of(night["ground"]), "#000000") < 1.3
    assert colours.contrast(hex_of(day["ground"]), "#ffffff") < 1.3
    assert day["line"] != night["line"]  # the charts' colours, too


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_stands_out(light: Any, dark: Any, mode: str) -> None:
    for seen in (light if mode == "light" else dark).values():
        assert colours.contrast(hex_of(seen["ground"]), hex_of(seen["ink"])) >= 12
        assert len(seen["cells"]) >= 12
        for back, ink in seen["cells"]:
            assert colours.contrast(hex_of(back), hex_of(ink)) >= 4.5, (back, ink)


def test_a_script_in_the_page_does_not_run(pages: dict[str, Path], tmp_path: Path) -> None:
    """Were the escaping to fail, the page's own policy still stops a script."""
    text = pages["hostile"].read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    script = "<script>document.body.id = 'ran'</script>"
    copy.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    assert 'id="ran"' not in chromium(tmp_path, copy, "--dump-dom")
    copy.write_text(POLICY.sub("", text).replace("</body>", f"{script}</body>"), encoding="utf-8")
    assert 'id="ran"' in chromium(tmp_path, copy, "--dump-dom")


@pytest.mark.parametrize("page", PAGES)
def test_prints(pages: dict[str, Path], tmp_path: Path, page: str) -> None:
    out = tmp_path / "page.pdf"
    chromium(tmp_path, pages[page], f"--print-to-pdf={out}", "--no-pdf-header-footer",
             "--blink-settings=preferredColorScheme=0")  # fmt: skip
    pdf = out.read_bytes()
    assert pdf.startswith(b"%PDF")
    sheets = text_places(pdf)
    assert len(sheets) == len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
    assert 3 <= len(sheets) <= MOST.get(page, 14)
    assert sum(map(len, sheets)) > 1000  # its text was found
    # The last sheet may end anywhere; no other is half empty, or has a hole of that size.
    white = [round(largest_gap(sheet, MARGIN), 2) for sheet in sheets[:-1]]
    assert max(white) < WHITE, white


def test_a_half_empty_sheet_would_be_seen(tmp_path: Path) -> None:
    """By hand: a line at the top, then one that begins the next sheet."""
    page, out = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(
        "<style>@page { size: A4; margin: 13mm } p { margin: 0; line-height: 10mm }</style>"
        "<p>one<p>two<p style='margin-top: 120mm'>three<p style='break-before: page'>four"
    )
    chromium(tmp_path, page, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    # A word may be shown in pieces, each at the same height.
    first, second = (
        sorted({round(y, 4) for y in sheet}) for sheet in text_places(out.read_bytes())
    )
    # Baselines of the lines: 10 mm, then 130 mm apart, on a sheet of 297 mm.
    steps = [b - a for a, b in itertools.pairwise(first)]
    assert steps == pytest.approx([10 / 297, 130 / 297], abs=0.005)
    assert len(second) == 1
    assert largest_gap(first, MARGIN) == pytest.approx(130 / 297, abs=0.005)
    assert largest_gap(first, MARGIN) > WHITE
    assert largest_gap(second, MARGIN) > 0.8


def test_a_screenshot_shows_the_page(pages: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "shot.png"
    chromium(tmp_path, pages["compare"], f"--screenshot={out}", "--window-size=1200,1600")
    with Image.open(out) as picture:
        assert picture.size == (1200, 1600)
        colours_seen = picture.convert("RGB").getcolors(1 << 24)
    assert colours_seen is not None
    shades = {colour for _, colour in colours_seen}
    # The page's ground, the bar of what was kept, and the top of the heat map's ramp.
    for wanted in ((246, 247, 248), (18, 129, 143)):
        assert wanted in shades
