"""One place decides what a change means, and all who say "kept" or "lost" ask it."""

from __future__ import annotations

import ast
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import FORGETS, KEEPS, make_run

import perdure
from perdure.audit.result import AuditResult, judge
from perdure.commands import show
from perdure.diagnose.rule import Decision, Figures, decide, drop_figure
from perdure.reports.contrast import lines
from perdure.reports.data import views
from perdure.reports.html import render
from perdure.reports.numbers import of_run
from perdure.reports.terminal import score_table
from perdure.run import Run
from perdure.scoring import change
from perdure.scoring.change import OPEN

pytestmark = pytest.mark.unit
HOME = Path(perdure.__file__).parent
DECIDERS = {HOME / "scoring" / "change.py", HOME / "scoring" / "intervals.py"}


def page(runs: list[Run]) -> str:
    text = html.unescape(re.sub(r"<style>.*?</style>", "", render(runs), flags=re.S))
    return " ".join(re.sub(r"<[^>]*>", " ", text.split("What was learned", 1)[1]).split())


def terminal(runs: list[Run]) -> str:
    file = io.StringIO()
    score_table(runs, Console(file=file, width=400))
    return file.getvalue()


def compared(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> str:
    out = runs[0].path.parent / "compare.html"
    out.unlink(missing_ok=True)
    show.compare([run.path for run in runs], out, None, False)
    return capsys.readouterr().out


def outcomes(runs: list[Run]) -> list[str]:
    """Those of `report --json`."""
    found = of_run(views(runs[:1])[0])["intervals"]["changes"]
    return re.findall(r"'outcome': '(\w+)'", str(found))


def audited() -> AuditResult:
    before, after = np.ones(200), np.concatenate([np.zeros(60), np.ones(140)])
    found = judge("t", "task", "accuracy", before, after, margin=0.02, alpha=0.05)
    return AuditResult("a", "b", 0.05, 1, 0, False, (found,))


def diagnosed() -> Decision:
    figure = drop_figure(np.ones(200), np.concatenate([np.zeros(60), np.ones(140)]), 0.05, 0.05)
    return decide(Figures({"score": figure, "written": figure}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("decision")
    return [
        make_run(folder / "sequential", "sequential", FORGETS, items=True, steps=2),
        make_run(folder / "replay", "replay", KEEPS, items=True, steps=2),
    ]


@pytest.mark.parametrize("said", ["kept", "lost", "undecided"])
def test_all_say_what_the_one_place_says(
    runs: list[Run],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the numbers are: were one to decide by itself, it would say something else."""
    assert set(outcomes(runs)) >= {"kept", "lost"}  # as it is
    monkeypatch.setattr(change, "verdict_of", lambda low, high, margin: said)
    # A gain is the same question of the mirrored interval, which would be lost as well.
    monkeypatch.setattr(change.Change, "gain", property(lambda found: "open"))
    spoken: list[Callable[[], str]] = [
        lambda: page(runs), lambda: terminal(runs), lambda: compared(runs, capsys)
    ]  # fmt: skip
    for speak in spoken:
        text = speak()
        lost = bool(re.search(r"forgot (topic|language)|lost \(more", text))
        kept = bool(re.search(r"(?<!whether it )kept (topic|language)|kept \(within", text))
        told = f"{OPEN} whether it kept" in text
        assert (lost, kept, told) == (said == "lost", said == "kept", said == "undecided"), text
    assert set(outcomes(runs)) == {"open" if said == "undecided" else said}
    assert lines(views(runs))[0].startswith("shown: sequential forgot") == (said == "lost")
    assert audited().verdict == said
    found = diagnosed()
    assert (found.loss == "nothing") == (said == "kept")
    assert bool(found.needs) == (said == "lost")  # what kind of loss it is, is asked next
    assert found.reason.startswith(OPEN) == (said == "undecided")


@pytest.mark.parametrize("said", ["learned", "not learned", "open"])
def test_gains_are_said_as_they_were_decided(
    runs: list[Run], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change.Change, "outcome", property(lambda found: "open"))
    monkeypatch.setattr(change.Change, "gain", property(lambda found: said))
    for text in (page(runs), terminal(runs)):
        learned = bool(re.search(r"(?<!whether it )[Ll]earned topic", text))
        not_learned = bool(re.search(r"id not learn topic", text))
        told = f"{OPEN} whether it learned topic" in text.replace("Too", "too")
        found = (learned, not_learned, told)
        assert found == (said == "learned", said == "not learned", said == "open"), text


def test_nobody_else_decides() -> None:
    """No other module compares an interval's end with a margin, or words the third outcome."""
    seen = 0
    for file in sorted(HOME.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Compare):
                names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                decides = names & {"low", "high"} and names & {"margin", "max_drop", "max_loss"}
                assert not decides or file in DECIDERS, where
                seen += bool(decides)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert OPEN not in node.value or file in DECIDERS or _doc(tree, node), where
    assert seen >= 2  # the check finds those of the one place
    asks = {file for file in HOME.rglob("*.py") if "verdict_of(" in file.read_text("utf-8")}
    assert asks == DECIDERS


def _doc(tree: ast.AST, node: ast.Constant) -> bool:
    """Whether a text is a docstring, or one beneath an attribute."""
    return any(isinstance(one, ast.Expr) and one.value is node for one in ast.walk(tree))
