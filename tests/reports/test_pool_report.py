"""Reports of a pool of adapters: groups, who answered, what routing costs, its size; by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import COUNTED as TWO
from synthetic_runs import HUE, MANY, make_pool_run, make_run, write_lines
from synthetic_runs import NAMED as ONE
from synthetic_runs import POOL_MATRIX as MATRIX
from synthetic_runs import POOL_TASKS as NAMES

from perdure.reports import numbers, pool_views, pools
from perdure.reports.data import RunView, views
from perdure.reports.format import DASH
from perdure.reports.html import render
from perdure.reports.seeds import grouped
from perdure.reports.tables import table
from perdure.reports.terminal import score_table
from perdure.run import Run

pytestmark = pytest.mark.unit


def view_of(run: Run) -> RunView:
    return views([run])[0]


def test_where_each_task_was_learned(tmp_path: Path) -> None:
    pool = pools.pool_of(view_of(make_pool_run(tmp_path / "run")))
    assert pool is not None
    assert pool.grouping == (
        pools.Placed("colour", "colour", "colour@1", True, None, None),
        pools.Placed("count", "count", "count@1", True, ("colour", 0.25), None),
        pools.Placed("shade", "colour", "colour@2", False, ("colour", 1.0), ("count", 0.25)),
    )
    assert pool_views.group_cells(pool.grouping[2]) == [
        "colour", "colour@2", "continued", "colour 1.00", "count 0.25",
    ]  # fmt: skip
    # Without the untrained adapter of the recipe, and without colour@1, which is gone.
    assert pool.size == pools.Size(adapters=2, versions=3, parameters=2000, bytes=9000)


@pytest.mark.parametrize(("name", "versions"), [("count@beta", 3), ("count", 3), ("c@d@4", 6)])
def test_an_adapter_s_name_may_be_anything(tmp_path: Path, name: str, versions: int) -> None:
    run = make_pool_run(tmp_path / "run")
    for file in run.path.rglob("*.jsonl"):
        file.write_text(file.read_text().replace('"count@1"', json.dumps(name)))
    pool = pools.pool_of(view_of(Run.open(run.path)))
    assert pool is not None
    assert (pool.size.adapters, pool.size.versions) == (2, versions)


def test_who_answered_and_how_often_that_was_right(tmp_path: Path) -> None:
    pool = pools.pool_of(view_of(make_pool_run(tmp_path / "run")))
    assert pool is not None
    assert pool.confusion.columns == (ONE, TWO, pools.NONE_FITS)
    assert [(row.task, row.counts, row.right) for row in pool.confusion.rows] == [
        ("colour", (3, 0, 1), 0), ("count", (2, 2, 0), 1), ("shade", (4, 0, 0), 0),
    ]  # fmt: skip
    assert [row.share for row in pool.confusion.rows] == [0.75, 0.5, 1.0]
    routing = pool.routing
    assert routing is not None
    assert (routing.known, routing.right, routing.none, routing.instructions) == (12, 9, 1, 4)
    assert routing.interval is not None
    assert routing.interval.value == 0.75
    # Slowly: four instructions, of 7 (right), 1, 2 (right) and 2 requests, and one imagined of 7.
    w = np.random.default_rng(1).dirichlet(np.ones(5), 100_000)
    low = (w[:, :4] @ [7, 0, 2, 0]) / (w @ [7, 1, 2, 2, 7])
    high = (w @ [7, 0, 2, 0, 7]) / (w @ [7, 1, 2, 2, 7])
    assert routing.interval.low == pytest.approx(np.quantile(low, 0.025), abs=0.02)
    assert routing.interval.high == pytest.approx(np.quantile(high, 0.975), abs=0.02)
    assert pool_views.fallback_words(pool) == (
        "none fits: these requests are unlike every group; the base model answered them"
    )


def test_who_answered_what_fits_no_group_is_said(tmp_path: Path) -> None:
    pool = pools.pool_of(view_of(make_pool_run(tmp_path / "run")))
    assert pool is not None
    assert pool.routing is not None
    near = replace(pool, fallback="nearest", routing=replace(pool.routing, none_right=1))
    assert pool_views.fallback_words(near) == (
        "none fits: these requests are unlike every group; the adapter of the nearest group "
        "answered them (the right adapter all the same for 1 of the 1 that are of learned tasks, "
        "which the accuracy does not count)"
    )
    row = replace(pool.confusion.rows[0], counts=(4, 0, 0))
    fits = replace(pool, confusion=replace(pool.confusion, rows=(row,)))
    assert pool_views.fallback_words(fits) == ""


def test_what_routing_costs(tmp_path: Path) -> None:
    pool = pools.pool_of(view_of(make_pool_run(tmp_path / "run")))
    assert pool is not None
    assert [(c.task, c.base, c.routed, c.right, c.cost.value) for c in pool.costs] == [
        ("colour", 0.25, 0.5, 0.75, 0.25), ("count", 0.0, 0.5, 0.75, 0.25),
        ("shade", 0.25, 0.75, 0.75, 0.0),
    ]  # fmt: skip
    for one in pool.costs:
        assert one.cost.low < one.cost.value < one.cost.high
    # Four rows that do not change at all: "rule of three", 1 - .025 ** (1 / 4) at either end.
    reach = 1 - math.pow(0.025, 1 / 4)
    assert pool.costs[2].cost.low == pytest.approx(-reach, abs=0.02)
    assert pool.costs[2].cost.high == pytest.approx(reach, abs=0.02)
    mean = pool.mean
    assert mean is not None
    assert mean.cost.value == pytest.approx(1 / 6)
    assert (mean.base, mean.routed, mean.right) == pytest.approx((1 / 6, 7 / 12, 0.75))
    # Tasks are drawn apart: their mean is known better than each of them.
    assert mean.cost.high - mean.cost.low < min(c.cost.high - c.cost.low for c in pool.costs)


def test_of_perplexities_it_is_in_nats_and_of_losses(tmp_path: Path) -> None:
    run = make_pool_run(tmp_path / "run")
    rows = [
        {"id": f"count-{k}", "score": math.exp(2.0), "loss": 2.0, "tokens": tokens,
         "prompt": str(k), "adapter": ONE, "fits": True, "right": TWO, "right_loss": 1.0,
         "right_score": math.e}
        for k, tokens in enumerate((1, 3))
    ]  # fmt: skip
    rows[1] |= {"right_loss": 2.0, "right_score": math.exp(2.0)}
    write_lines(run.path / "items/after-3-count.jsonl", rows)
    lines = [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("task") == "count":
            line |= {"metric": "perplexity", "higher_is_better": False, "score": math.exp(2.0)}
    write_lines(run.path / "scores.jsonl", lines)
    pool = pools.pool_of(view_of(run))
    assert pool is not None
    found = pool.costs[1]
    assert found.nats
    assert found.cost.value == pytest.approx(0.25)  # a nat of one token in four
    assert (found.routed, found.right) == pytest.approx((math.exp(2), math.exp(1.75)))
    assert pool.mean is not None
    assert pool.mean.cost.value == pytest.approx(0.125)  # of the two others
    assert pool_views.cost_cells(found)[3] == "0.250 nats"


def test_all_views_show_it_where_a_run_has_a_pool(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", "sequential", MATRIX, tasks=NAMES, rows=4, general=())
    runs = [make_pool_run(tmp_path / "run"), plain]
    said = numbers.of_run(view_of(runs[0]))["pool"]
    assert said["routing"]["accuracy"] == 0.75
    assert said["confusion"]["rows"][1] == {"task": "count", "right": TWO, "counts": [2, 2, 0]}
    assert said["mean"]["cost"] == pytest.approx(1 / 6)
    assert said["costs"][0]["unit"] == "score"
    assert said["size"]["bytes"] == 9000
    assert said["grouping"][2]["runner_up"] == {"group": "count", "similarity": 0.25}
    assert numbers.of_run(view_of(plain))["pool"] is None

    page = render(runs)
    assert page.count('id="pool"') == 1
    for text in ("Routing accuracy ↑", "1 of 12", "9.00 kB", "colour 1.00", "4 instructions"):
        assert text in page
    assert 'id="pool"' not in render([plain])

    for width in (80, 200):
        target = Console(file=io.StringIO(), width=width)
        score_table(runs, target)
        shown = target.file.getvalue()  # type: ignore[attr-defined]
        for text in ("Adapters and routing", "routing accuracy", "0.750", "[3]", "3 versions"):
            assert text in shown
        assert "lcia: where each task was learned" in shown
        assert "sequential: where each task" not in shown


def test_many_adapters_are_a_list_in_a_narrow_terminal(tmp_path: Path) -> None:
    run = view_of(make_pool_run(tmp_path / "run"))
    pool = pools.pool_of(run)
    assert pool is not None
    names = [f"sentiment-{k}@{k + 1}" for k in range(10)]
    counts = [tuple(12 if at == k else 3 * (at == 10) for at in range(11)) for k in range(10)]
    rows = [pools.Answered(f"task {k}", counts[k], k) for k in range(9)]
    rows.append(pools.Answered("never learned", counts[9], None))
    many = replace(pool, confusion=pools.Confusion((*names, pools.NONE_FITS), tuple(rows)))

    def lines(width: int) -> list[str]:
        target = Console(file=io.StringIO(), width=width)
        target.print(pool_views._confusion_table(run, many, width))
        return target.file.getvalue().splitlines()  # type: ignore[attr-defined]

    said = lines(80)
    assert max(map(len, said)) <= 80
    assert " ".join(said[2].split()) == "requests of right adapter right share answered by"
    row = next(at for at, line in enumerate(said) if "task 4" in line)
    assert said[row].split() == ["task", "4", "sentiment-4@5", "0.80", "sentiment-4@5:", "12"]
    assert said[row + 1].split() == ["none", "fits:", "3"]
    last = next(line for line in said if "never learned" in line)
    assert last.split() == ["never", "learned", DASH, DASH, "sentiment-9@10:", "12"]
    # From the width on in which no head breaks it is the table.
    heads = lines(400)[2]
    assert heads.split()[2:4] == names[:2]
    assert lines(len(heads))[2] == heads
    assert "answered by" in lines(len(heads) - 1)[2]


def test_tables_of_a_comparison_have_columns_for_it(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", "sequential", MATRIX, tasks=NAMES, rows=4, general=())
    runs = [make_pool_run(tmp_path / "run"), plain]
    first, second = csv.DictReader(io.StringIO(table(runs, "csv")))
    assert float(first["routing_accuracy"]) == 0.75
    assert float(first["routing_cost"]) == pytest.approx(1 / 6)
    assert float(first["right_adapter_accuracy"]) == 0.75
    assert (first["pool_adapters"], first["pool_versions"]) == ("2.0", "3.0")
    assert second["routing_accuracy"] == second["pool_bytes"] == ""
    assert "routing_accuracy" not in table([plain], "csv")
    marked = table(runs, "markdown")
    assert "Routing accuracy ↑ | Routing costs ↓ | Adapters | On disk |" in marked
    assert marked.splitlines()[3].endswith(f"| {DASH} | {DASH} | {DASH} | {DASH} |")
    assert r"Routing accuracy $\uparrow$" in table(runs, "latex")
    assert "Routing accuracy" not in table([plain], "markdown")


def test_of_several_seeds_counts_are_summed_and_figures_are_means(tmp_path: Path) -> None:
    shade = (ONE, [(ONE, True, float(k < 3), None, HUE) for k in range(4)])
    count = (TWO, [(TWO, True, float(k < 2), None, MANY) for k in range(4)])
    runs = [
        make_pool_run(tmp_path / "0"),
        make_pool_run(tmp_path / "1", 1, count=count, shade=shade),
    ]
    (group,) = grouped(views(runs))
    pool = pools.pool_of(group)
    assert pool is not None
    assert pool.confusion.rows[1].counts == (2, 6, 0)
    assert pool.routing is not None
    assert pool.routing.interval is not None
    assert (pool.routing.right, pool.routing.known) == (20, 24)
    assert pool.routing.interval.value == pytest.approx((9 / 12 + 11 / 12) / 2)
    assert pool.mean is not None
    assert pool.mean.cost.value == pytest.approx((1 / 6 + 1 / 12) / 2)
    assert pool.costs[1].cost.value == pytest.approx(0.125)
    assert pool.alike
    assert numbers.of_group(group)["pool"]["routing"]["right"] == 20


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    run = make_pool_run(tmp_path / "run")
    for name in NAMES:
        (run.path / f"items/after-3-{name}.jsonl").unlink()
    pool = pools.pool_of(view_of(run))
    assert pool is not None
    assert (pool.routing, pool.costs, pool.mean, pool.confusion.rows) == (None, (), None, ())
    texts = [figure.text for figure in pool_views.overview(pool)]
    assert texts[:6] == [DASH] * 6
    assert texts[6] == "2"
    assert 'id="pool"' in render([run])


def test_sizes_on_disk() -> None:
    shown = [pool_views.disk(size) for size in (12, 4500, 4.61e6, 1.5e9)]
    assert shown == ["12 bytes", "4.50 kB", "4.61 MB", "1.50 GB"]
