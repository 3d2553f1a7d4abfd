"""Tasks that were learned from rewards in reports: what they earned, their time, and warm-ups."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_runs import make_run, write_lines

from perdure.reports import (
    findings,
    glossary,
    html,
    numbers,
    reinforced,
    reinforced_views,
    sections,
    training,
    words,
)
from perdure.reports.data import RunView, views
from perdure.reports.left_out import left_out_of_means
from perdure.reports.seeds import grouped
from perdure.reports.tables import table
from perdure.reports.terminal import Display, score_table
from perdure.run import Run

pytestmark = pytest.mark.unit
TASKS = ("warm", "velan", "other")
SHARED = [[0.0, 0.0, 0.2], [0.5, 0.5, 0.2], [0.7, 0.7, 0.2], [0.4, 0.4, 0.9]]
ROWS = 400


def rl_line(step: int, reward: float, length: float, generation: float) -> dict[str, Any]:
    return {
        "task": "velan", "after": 2, "phase": "main", "step": step, "steps": 22, "loss": 0.001,
        "rl/reward": reward, "rl/reward/chrf": reward / 2, "rl/reward_std": 0.25,
        "rl/dead_groups": 0.125, "rl/truncated": 0.5, "rl/length": length, "rl/clipped": 0.0,
        "method/kl": 0.02, "rl/seconds_generation": generation, "rl/seconds_rewards": 0.5,
        "rl/seconds_reference": 1.0, "rl/seconds_update": 2.5,
    }  # fmt: skip


def run_of(
    folder: Path, matrix: list[list[float]] = SHARED, until: float = 0.5, **options: Any
) -> Run:
    """A warm-up whose test rows are those of the next task, which is learned from rewards."""
    options = {"general": (), "rows": ROWS, "items": True, **options}
    run = make_run(folder, matrix=matrix, tasks=TASKS[: len(matrix) - 1], **options)
    marks = [
        {"name": "warm", "test_of": "velan"},
        {"name": "velan", "learn": "rl"},
        {"name": "other"},
    ]
    (folder / "stream.json").write_text(json.dumps(marks[: len(matrix) - 1]))
    recipe = (folder / "recipe.yaml").read_text()
    reach = json.dumps({"format": 0.8, "chrf": [0.4, 0.6]})
    tasks = f"  tasks: [{{name: warm, until: {{reach: {reach}}}}}]\n"
    (folder / "recipe.yaml").write_text(recipe.replace("  name: demo\n", tasks))
    log = [line for line in run.log_rows() if line["task"] == "other"]
    warm = [
        {"task": "warm", "after": 1, "phase": "main", "step": step, "steps": 40, "loss": 2.0}
        | ({} if looks is None else {"until/format": looks[0], "until/chrf": looks[1]})
        for step, looks in [(5, None), (10, (0.5, 0.1)), (15, None), (20, (0.9, until))]
    ]
    # Ten lines of two steps, whose tenths are the first and the last, and one of a single step.
    own = [rl_line(2 * i, 0.1 * i, 20.0, 4.0) for i in range(1, 11)] + [rl_line(21, 3.2, 41, 25.0)]
    write_lines(folder / "log.jsonl", [*warm, *own, *log])
    return run


def view(folder: Path, **options: Any) -> RunView:
    (found,) = views([run_of(folder, **options)])
    return found


def printed(runs: list[Run], width: int = 100) -> str:
    out = Console(file=io.StringIO(), width=width)
    score_table(runs, out)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_figures_are_means_over_steps(tmp_path: Path) -> None:
    """A line counts for its steps: seconds of generation are (20 * 4 + 1 * 25) / 21 = 5."""
    (found,) = reinforced.tasks(view(tmp_path / "run"))
    assert (found.task, found.steps) == ("velan", 21)
    assert found.begin["rl/reward"] == pytest.approx(0.1)
    assert found.end["rl/reward"] == pytest.approx(3.2)
    assert found.seconds == pytest.approx(
        {"generation": 5.0, "rewards": 0.5, "reference": 1.0, "update": 2.5}
    )
    assert found.whole == pytest.approx(9.0)
    told = numbers.of_run(view(tmp_path / "again"))["reinforced"][0]
    assert told["end"] == pytest.approx(
        {"reward": 3.2, "reward/chrf": 1.6, "reward_std": 0.25, "dead_groups": 0.125,
         "truncated": 0.5, "length": 41, "clipped": 0.0, "kl": 0.02}
    )  # fmt: skip
    assert told["seconds"]["step"] == pytest.approx(9.0)


def test_of_two_passes_over_completions_one_earns_and_takes_time(tmp_path: Path) -> None:
    """With `rl.iterations: 2` each second step writes nothing: 4 seconds in every second step are
    2 a step, and the last step has no reward of its own."""
    run, made = run_of(tmp_path / "run"), ("rl/seconds_generation", "rl/seconds_rewards")
    alone = ("rl/clipped", "rl/seconds_reference", "rl/seconds_update", "method/kl")
    own = [rl_line(step, 0.1 * step, 20.0, 4.0) for step in range(1, 13)]
    own[1::2] = [
        {k: v for k, v in line.items() if not k.startswith("rl/") or k in alone}
        for line in own[1::2]
    ]
    write_lines(run.path / "log.jsonl", own)
    (viewed,) = views([run])
    (found,) = reinforced.tasks(viewed)
    assert found.seconds == pytest.approx(
        {"generation": 2.0, "rewards": 0.25, "reference": 1.0, "update": 2.5}
    )
    assert found.whole == pytest.approx(5.75)
    assert (found.begin["rl/reward"], found.end["rl/reward"]) == pytest.approx((0.1, 1.1))
    assert not any(name in own[-1] for name in made)
    titles = [chart.title for chart in reinforced_views.section([viewed])["charts"]]
    assert "reward" in titles


def test_seeds_are_one_mean(tmp_path: Path) -> None:
    (both,) = grouped(views([run_of(tmp_path / str(s), seed=s) for s in (0, 1)]))
    (one,) = reinforced.tasks(both)
    assert one.end["rl/reward"] == pytest.approx(3.2)
    assert len(reinforced.warm_ups(both.members[1])) == 1


def test_over_seeds_shared_test_rows_count_once_too(tmp_path: Path) -> None:
    """The base's mean over velan, 0.0, and other, 0.2: 0.1. With warm, whose rows are velan's, it
    would be 0.067."""
    (both,) = grouped(views([run_of(tmp_path / str(s), seed=s) for s in (0, 1)]))
    assert both.matrix.left_out == ("warm",)
    shown = sections.retention([both])
    assert shown is not None
    assert shown["rows"][0]["base"] == pytest.approx(0.1)
    by_task = {found.task.name: found for found in findings.findings(both)}
    assert (by_task["warm"].goes_on, by_task["velan"].after) == ("velan", "warm")


def test_the_page_shows_curves_shares_and_where_a_warm_up_ended(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    page = html.page(views([run]))["reinforced"]
    titles = [chart.title for chart in page["charts"]]
    assert titles == [
        "reward", "reward: chrf", "spread in a group", "dead groups", "truncated", "length",
        "KL from the reference",
    ]  # fmt: skip
    assert all(chart.y_title for chart in (*page["charts"], *page["seconds"]))
    assert page["charts"][0].x_ticks[-1].label == "20"  # of this task's steps alone
    assert [part["width"] for part in page["rows"][0]["bar"]] == [55.56, 5.56, 11.11, 27.78]
    assert [part["left"] for part in page["rows"][0]["bar"]] == [0, 55.56, 61.11, 72.22]
    assert page["warm"][0]["said"] == (
        "warm ended at step 20 of at most 40: format 0.900 (asked for: 0.8 or more), "
        "chrf 0.500 (asked for: 0.4 to 0.6)"
    )
    names = [name for name, _ in page["words"]]
    assert {"reward", "reward/NAME", "until/NAME", "kl", "dead_groups"} <= set(names)
    assert "Learned from rewards" in html.render([run])
    # What is over is drawn as long as it was.
    assert html.page(views([run]))["losses"][0].marks[1].at < 150


def test_a_run_without_rewards_has_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert 'id="reinforced"' not in html.render([run])
    assert not list(reinforced_views.tables(views([run])))


@pytest.mark.parametrize(
    ("until", "said"),
    [
        (0.3, "warm did not reach its until in 20 steps; at the last look format 0.900"),
        (0.7, "chrf was above its limit by then, so that less is left to learn"),
    ],
)
def test_a_warm_up_that_missed(until: float, said: str, tmp_path: Path) -> None:
    (one,) = reinforced.warm_ups(view(tmp_path / "run", until=until))
    assert said in reinforced.ended(one)
    assert one.reached == (until > 0.5)


def test_a_reward_of_ones_own_is_asked_for_by_its_file_and_shown_by_its_name(
    tmp_path: Path,
) -> None:
    """The recipe of a run has the whole path, the log the name that the user wrote."""
    run = run_of(tmp_path / "run", until=0.5)
    for name, old in {"recipe.yaml": '"chrf":', "log.jsonl": "until/chrf"}.items():
        new = {'"chrf":': '"/a/b/own.py:half":', "until/chrf": "until/own:half"}[old]
        text = (run.path / name).read_text()
        assert old in text
        (run.path / name).write_text(text.replace(old, new))
    (one,) = reinforced.warm_ups(views([run])[0])
    assert "own:half 0.500 (asked for: " in reinforced.ended(one)
    assert one.reached


def test_a_comparison_has_reward_and_seconds_by_phase(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, method=name) for name in ("sequential", "kl")]
    told = " ".join(printed(runs).split())
    assert "reward 0.100 → 3.20 0.100 → 3.20" in told
    assert "seconds a step: generation 5.0 (56 %) 5.0 (56 %)" in told
    assert "truncated 50 % → 50 % 50 % → 50 %" in told


def test_a_table_of_runs_has_what_was_earned(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, method=name) for name in ("sequential", "kl")]
    plain = make_run(tmp_path / "plain", matrix=SHARED, tasks=TASKS)
    lines = list(csv.DictReader(io.StringIO(table([*runs, plain], "csv"))))
    for line in lines[:2]:
        found = {k.rpartition(":")[2]: v for k, v in line.items() if k.startswith("rl:velan:")}
        assert found == {
            "reward_begin": "0.1", "reward_end": "3.2", "reward_std_begin": "0.25",
            "reward_std_end": "0.25", "dead_groups_begin": "0.125", "dead_groups_end": "0.125",
            "truncated_begin": "0.5", "truncated_end": "0.5", "length_begin": "20.0",
            "length_end": "41.0", "kl_begin": "0.02", "kl_end": "0.02", "step_seconds": "9.0",
        }  # fmt: skip
    assert {v for k, v in lines[2].items() if k.startswith("rl:")} == {""}
    drawn = table([*runs, plain], "markdown").splitlines()
    assert drawn[0].endswith("| Reward: velan ↑ |")
    assert [line.split(" | ")[-1] for line in drawn[2:5]] == ["0.100 → 3.20 |"] * 2 + ["– |"]
    assert "Reward" not in table([plain], "markdown")
    assert "rl:" not in table([plain], "csv")


def test_a_loss_of_rewards_is_in_no_unit(tmp_path: Path) -> None:
    (charted,) = training.losses(views([run_of(tmp_path / "run")]))
    assert charted.y_title == "loss"
    plain = make_run(tmp_path / "plain", matrix=SHARED, tasks=TASKS)
    assert training.losses(views([plain]))[0].y_title == "nats a token"


def test_while_it_trains_the_terminal_shows_what_is_earned() -> None:
    out = Console(file=io.StringIO(), width=100)
    sampled = {"reward": 0.6875, "length": 25.4, "truncated": 0.125}
    Display(out).training("kl", "velan", 1, 20, -0.0351, 6946.0, 5.2, sampled=sampled)
    assert out.file.getvalue() == (  # type: ignore[attr-defined]
        "kl: training velan, step 1/20, reward 0.688, length 25 tokens, truncated 12 %, "
        "loss −0.0351, 6,946 tokens/s, 5.2 s left\n"
    )


# --- a score that two tasks share


def test_a_score_that_two_tasks_share_is_forgotten_once(tmp_path: Path) -> None:
    """velan fell from .7 to .4 by the last task: warm-up and velan have the same rows."""
    found = view(tmp_path / "run")
    assert found.matrix.left_out == ("warm",)
    assert left_out_of_means([found]) == ["warm"]
    assert found.summary("forgetting") == pytest.approx(0.3)
    assert found.matrix.parts("backward_transfer") == pytest.approx({"velan": -0.3})
    assert found.summary("average_accuracy") == pytest.approx((0.4 + 0.9) / 2)
    assert words.story(found) == (
        "learned warm and other; improved velan over warm (0.50 → 0.70); forgot velan (0.70 → 0.40)"
    )
    assert words.headline(found) == (
        "sequential learned warm and other; improved velan over warm (0.50 → 0.70); forgot velan"
    )
    warm, velan, _ = findings.findings(found)
    assert (warm.goes_on, warm.since, velan.after) == ("velan", None, "warm")
    assert velan.gain is not None
    assert velan.gain.mean == pytest.approx(0.2)  # paired, from where warm left it
    assert numbers.of_run(found)["intervals"]["changes"]["tasks"]["velan"]["begun_after"] == "warm"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (0.9, "improved velan over warm (0.50 → 0.90)"),
        (0.5, "did not improve velan over warm (0.50 → 0.50)"),
        (0.2, "left velan worse than warm did (0.50 → 0.20)"),
    ],
)
def test_what_rewards_changed_is_told_from_where_the_warm_up_left_it(
    after: float, said: str, tmp_path: Path
) -> None:
    matrix = [[0.0, 0.0], [0.5, 0.5], [after, after]]
    run = run_of(tmp_path / "run", matrix=matrix)
    (found,) = views([run])
    assert words.story(found) == f"learned warm; {said}"
    assert words.headline(found) == f"sequential learned warm; {said}"
    assert found.summary("forgetting") is None  # no earlier task but the warm-up
    assert "velan goes on from it" in html.render([run])


def test_few_rows_do_not_tell(tmp_path: Path) -> None:
    found = view(tmp_path / "run", matrix=[[0.0, 0.0], [0.5, 0.5], [0.55, 0.55]], rows=20)
    assert "too few rows to tell whether it improved velan over warm (0.50 → 0.55)" in (
        words.story(found)
    )
    assert words.told(found).startswith("sequential learned warm; too few rows")
    none = view(tmp_path / "none", matrix=[[0.0, 0.0], [0.05, 0.05], [0.05, 0.05]], rows=4)
    assert words.told(none).startswith("sequential: too few rows to tell whether it learned warm")


def test_each_name_of_the_log_has_its_sentence() -> None:
    from perdure.run.recorder import SAMPLED

    for phase in reinforced.PHASES:
        assert glossary.said_of(reinforced.SECONDS + phase)
    for name in (*reinforced.FIGURES, *(f"rl/{one}" for one in SAMPLED), "rl/reward/bleu"):
        assert glossary.said_of(name)
        assert glossary.unit_of(name)
