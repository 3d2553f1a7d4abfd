"""JUnit XML of an audit: what CI servers show as a list of tests that passed or failed.

kept        passes
lost        fails
undecided   fails, as type "undecided"; counts as skipped if undecided is to exit with 0
reported    passes (a measure without a margin)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from xml.etree import ElementTree

from perdure.audit.measure import Measure, explain


class Audited(Protocol):
    """What is written of an audit; see `perdure.audit.result.AuditResult`."""

    @property
    def measures(self) -> Sequence[Measure]: ...
    @property
    def skipped(self) -> Sequence[str]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def flips(self) -> Sequence[Mapping[str, Any]]: ...


# Characters that XML 1.0 has no way to write; prompts and predictions may hold them.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: Audited, *, undecided: int = 3) -> str:
    """Return one `testsuite` with a test case a measure; flipped items are its output.

    Args:
        undecided: the exit code of undecided; with 0 such a case is skipped, not failed.
    """
    verdicts = [m.verdict for m in result.measures]
    open_cases = verdicts.count("undecided")
    failed = verdicts.count("lost") + (open_cases if undecided else 0)
    skipped = len(result.skipped) + (0 if undecided else open_cases)
    suite = ElementTree.Element(
        "testsuite",
        name="perdure audit",
        tests=str(len(verdicts) + len(result.skipped)),
        failures=str(failed),
        errors="0",
        skipped=str(skipped),
        time=f"{result.seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("base", "tuned", "alpha", "judged", "seed", "identical_weights"):
        value = _clean(str(getattr(result, name)))
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for measure in result.measures:
        case = _case(suite, measure.name, f"perdure.audit.{measure.kind}")
        text = summary(measure)
        if measure.verdict == "lost" or (measure.verdict == "undecided" and undecided):
            failure = ElementTree.SubElement(
                case, "failure", type=str(measure.verdict), message=_clean(text)
            )
            failure.text = _clean(text)
        elif measure.verdict == "undecided":
            ElementTree.SubElement(case, "skipped", message=_clean(text))
        lines = [text] + [
            f"{flip['change']}: {flip['prompt']!r}: answer {flip['answer']!r}, "
            f"base {flip['base_prediction']!r}, tuned {flip['tuned_prediction']!r}"
            for flip in result.flips
            if measure.kind == "task" and flip["task"] == measure.name
        ]
        ElementTree.SubElement(case, "system-out").text = _clean("\n".join(lines))
    for name in result.skipped:
        case = _case(suite, name, "perdure.audit.skipped")
        ElementTree.SubElement(case, "skipped", message="not measured: an earlier one is lost")
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def summary(measure: Measure) -> str:
    """One line: verdict, change with its interval, what is allowed."""
    allowed = ""
    if measure.margin is not None:
        sign = "-" if measure.higher_is_better else "+"
        allowed = f", allowed {sign}{measure.margin:g}"
    because = f" ({why})" if (why := explain(measure)) else ""
    return (
        f"{measure.verdict or 'reported'}: {measure.metric} {measure.base:.4f} -> "
        f"{measure.tuned:.4f} on {measure.items} items, change {measure.change:+.4f} "
        f"[{measure.low:+.4f}, {measure.high:+.4f}] {measure.unit}{allowed}{because}"
    )


def _case(suite: ElementTree.Element, name: str, group: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=_clean(name), classname=group)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
