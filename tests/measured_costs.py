"""What each test costs in CPU seconds, also those of the processes that it starts.

    PERDURE_TEST_COSTS=costs.jsonl make test
    python tests/measured_costs.py costs.jsonl

Wall time says little on a machine that does other things too. Each line of the file is one test,
or the collection (the imports) of one file. The server that forks processes counts with the test
during which it works.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cost_marks import cost

FILE = os.environ.get("PERDURE_TEST_COSTS")
PHASES = ("collect", "setup", "call", "teardown")


def cpu_seconds() -> float:
    """CPU seconds of this process and all its descendants, those that have ended included."""
    import psutil

    process = psutil.Process()
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])  # user, system, and both of its ended children
        except psutil.Error:  # it ended meanwhile, and now counts with its parent
            continue
    return total


def write(line: Mapping[str, Any]) -> None:
    if FILE:
        with Path(FILE).open("a", encoding="utf-8") as file:  # shared by the workers
            file.write(json.dumps(line) + "\n")


@contextmanager
def measured(spent: dict[str, float], phase: str) -> Iterator[None]:
    before = cpu_seconds()
    try:
        yield
    finally:
        spent[phase] = round(max(0.0, cpu_seconds() - before), 3)


class Costs:
    """The plugin of pytest that `tests/conftest.py` registers where a file is asked for."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        spent: dict[str, float] = {}
        with measured(spent, "collect"):
            report = yield
        if isinstance(collector, pytest.Module):
            write({"file": collector.nodeid, **spent})
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        self.spent = {}
        with measured(self.spent, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None]:
        with measured(self.spent, "call"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        try:
            with measured(self.spent, "teardown"):
                return (yield)
        finally:
            file = item.nodeid.partition("::")[0]
            write({"file": file, "test": item.nodeid, "mark": cost(item), **self.spent})


def table(lines: Iterable[str], dearest: int = 40) -> str:
    """CPU seconds by mark, by file and of the dearest tests, from the lines of a file of costs."""
    marks: dict[str, float] = defaultdict(float)
    files: dict[str, float] = defaultdict(float)
    tests: dict[str, float] = {}
    for line in map(json.loads, lines):
        spent = sum(line.get(phase, 0.0) for phase in PHASES)
        marks[line.get("mark", "imports")] += spent
        files[line["file"]] += spent
        if "test" in line:
            tests[line["test"]] = spent
    parts = []
    for counted in (marks, files, tests):
        ordered = sorted(counted.items(), key=lambda pair: -pair[1])
        parts.append("\n".join(f"{spent:8.1f}  {name}" for name, spent in ordered[:dearest]))
    return f"{sum(files.values()):8.1f}  CPU seconds in all\n\n" + "\n\n".join(parts)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text("utf-8").splitlines()))
