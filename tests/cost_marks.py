"""Every test bears one mark for what it costs: `unit`, `train`, `process` or `real`.

    unit       fast, and neither of the next three
    train      trains or loads a small random model
    process    starts processes, or a browser
    real       needs the weights of SmolLM2-135M, or of the packaged sentence encoder

A mark on a test or its class counts before all else. Without one, the dearest counts of its
module's mark (`pytestmark = pytest.mark.unit`) and what its fixtures load. Collection fails if a
test bears no mark, or two on one level.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

COSTS = ("unit", "train", "process", "real")
"""From cheap to dear."""
OF_FIXTURES = {"tiny_model_dir": "train", "smollm2_dir": "real"}


def _own(node: pytest.Item | pytest.Collector) -> list[str]:
    """Costs that are written at this test, class or module itself."""
    return sorted({mark.name for mark in node.own_markers} & set(COSTS), key=COSTS.index)


def cost(item: pytest.Item) -> str:
    """The cost of a test.

    Raises:
        ValueError: it bears no mark, or two on one level.
    """
    marked = [(node, own) for node in reversed(item.listchain()) if (own := _own(node))]
    for node, own in marked:
        if len(own) > 1:
            raise ValueError(f"{node.nodeid}: two cost marks: {', '.join(own)}")
    fixtures = getattr(item, "fixturenames", ())
    found = [OF_FIXTURES[name] for name in OF_FIXTURES if name in fixtures]
    if marked:
        nearest, (own, *_) = marked[0]
        if not isinstance(nearest, pytest.Module):
            return own
        found.append(own)
    if not found:
        test = item.nodeid.partition("[")[0]  # one line for all its parameters
        raise ValueError(f"{test}: no cost mark; give it one of {', '.join(COSTS)}")
    return max(found, key=COSTS.index)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Report tests whose cost is not told as an error of their module, also from a worker."""
    report = yield
    wrong: dict[str, None] = {}  # in order, each once
    for item in report.result or ():
        if isinstance(item, pytest.Item):
            try:
                cost(item)
            except ValueError as error:
                wrong[str(error)] = None
    if wrong:
        report.outcome, report.result, report.longrepr = "failed", [], "\n".join(wrong)
    return report


@pytest.hookimpl(tryfirst=True)  # before pytest's own `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave one cost mark on each test, so that `-m unit` finds what costs no more than that."""
    costs = [cost(item) for item in items]
    for item, found in zip(items, costs, strict=True):
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name not in COSTS]
        item.add_marker(found)
