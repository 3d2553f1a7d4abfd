"""`perdure audit --scores`: each format as its harness documents it, matching, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import make_run
from typer.testing import CliRunner

from perdure.audit.score_files import Wanted, read_scores
from perdure.audit.scores import audit_scores
from perdure.commands.audit import both
from perdure.errors import DataError, UsageError

pytestmark = pytest.mark.unit


def lines(path: Path, items: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def plain(path: Path, scores: list[float], **more: Any) -> Path:
    return lines(path, [{"id": i, "score": s, **more} for i, s in enumerate(scores)])


def logged(doc_id: int, right: float, **more: Any) -> dict[str, Any]:
    """A line of lm-eval's samples_*.jsonl, as version 0.4.9 writes it."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"question {doc_id}", "passage": f"passage {doc_id // 5}"},
        "target": "0",
        "arguments": {
            "gen_args_0": {"arg_0": f"Question: {doc_id}\nAnswer:", "arg_1": " yes"},
            "gen_args_1": {"arg_0": f"Question: {doc_id}\nAnswer:", "arg_1": " no"},
        },
        "resps": [[["-1.5", "True"]], [["-3.5", "False"]]],
        "filtered_resps": [["-1.5", "True"], ["-3.5", "False"]],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": f"hash of {doc_id}",
        "prompt_hash": f"prompt of {doc_id}",
        "target_hash": "hash of 0",
        "acc": 1.0,
        "acc_norm": right,
        **more,
    }


def sample(key: Any, value: Any, **more: Any) -> dict[str, Any]:
    """A sample of Inspect's log."""
    return {
        "id": key,
        "epoch": 1,
        "input": f"question {key}",
        "target": "yes",
        "messages": [],
        "output": {"model": "m", "choices": []},
        "scores": {"match": {"value": value, "answer": "no", "explanation": "no"}},
        "metadata": {"passage": str(key)[:1]},
        **more,
    }


def log(samples: list[Any]) -> dict[str, Any]:
    about = {"task": "boolq", "model": "m", "dataset": {"samples": len(samples)}}
    return {"version": 2, "status": "success", "eval": about, "samples": samples}


def zipped(path: Path, samples: list[dict[str, Any]], head: str = "header.json") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/summaries/1.json", "[]")
        archive.writestr(head, json.dumps({k: v for k, v in log([]).items() if k != "samples"}))
        for one in samples:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
    return path


# --- formats


def test_plain_lines(tmp_path):
    base = plain(tmp_path / "base.jsonl", [1.0] * 300)
    tuned = plain(tmp_path / "tuned.jsonl", [0.0] * 60 + [1.0] * 240)
    found = audit_scores(base, tuned)
    (task,) = found.measures
    assert (task.name, task.metric, task.items, task.verdict) == ("scores", "score", 300, "lost")
    assert task.change == pytest.approx(-0.2)
    assert found.exit_code() == 1
    assert len(found.flips) == 60
    assert audit_scores(base, base).measures[0].verdict == "kept"


def test_plain_lines_with_tasks_and_groups(tmp_path):
    def items(wrong: int) -> list[Any]:
        return [
            {"id": f"{task}-{i}", "task": task, "group": i // 5, "score": float(i >= wrong)}
            for task in ("a", "b")
            for i in range(300)
        ]

    base, tuned = lines(tmp_path / "b.jsonl", items(0)), lines(tmp_path / "t.jsonl", items(5))
    first, second = audit_scores(base, tuned, max_drop=0.05).measures
    assert (first.name, second.name) == ("a", "b")
    assert (first.items, first.groups, first.alpha) == (300, 60, 0.025)
    # 300 items alone show that one in 60 lost is below 1 in 20; 60 groups do not.
    assert first.verdict == "undecided"


def test_lm_evals_logged_samples(tmp_path):
    name = "samples_boolq_2025-02-03T10-11-12.123456.jsonl"
    base = lines(tmp_path / "base" / name, [logged(i, 1.0) for i in range(100)])
    late = name.replace("10-11", "12-13")
    tuned = lines(tmp_path / "tuned" / late, [logged(i, float(i >= 20)) for i in range(100)])
    # What lies beside them in lm-eval's folder is no list of items.
    (tmp_path / "base" / "results_2025-02-03T10-11-12.123456.json").write_text("{}")
    for ours, theirs in ((base, tuned), (base.parent, tuned.parent)):
        (task,) = audit_scores(ours, theirs).measures
        assert (task.name, task.metric) == ("boolq", "acc_norm")
        assert (task.change, task.items, task.groups) == (pytest.approx(-0.2), 100, None)
    (task,) = audit_scores(base, tuned, metric="acc").measures
    assert task.change == 0
    (task,) = audit_scores(base, tuned, group="passage").measures
    assert task.groups == 20
    flip = audit_scores(base, tuned).flips[0]
    assert (flip["change"], flip["prompt"]) == ("right -> wrong", "Question: 0\nAnswer:")


def test_lm_evals_filters_are_read_one_at_a_time(tmp_path):
    def both(folder: str, strict: float) -> Path:
        common = {"metrics": ["exact_match"], "filtered_resps": ["42"]}
        return lines(
            tmp_path / folder / "samples_gsm8k.jsonl",
            [
                logged(i, 1.0, filter=how, exact_match=score, **common)
                for how, score in (("strict-match", strict), ("flexible-extract", 1.0))
                for i in range(60)
            ],
        )

    base, tuned = both("base", 1.0), both("tuned", 0.0)
    assert audit_scores(base, tuned).measures[0].verdict == "lost"
    flexible = audit_scores(base, tuned, metric="exact_match,flexible-extract", max_drop=0.1)
    assert flexible.measures[0].verdict == "kept"
    with pytest.raises(DataError, match="no filter 'flexibel'"):
        audit_scores(base, tuned, metric="exact_match,flexibel")


def test_lm_evals_older_lines_have_no_list_of_metrics_and_lists_of_arguments(tmp_path):
    old = [
        {"doc_id": i, "doc": {}, "target": "x", "arguments": [["Same context", " x"]],
         "resps": [], "filtered_resps": [["-1", False]], "acc": 1.0, "acc_norm": 1}
        for i in range(4)
    ]  # fmt: skip
    (task,) = read_scores(lines(tmp_path / "samples_old.jsonl", old), Wanted()).values()
    assert task.metric == "acc_norm"
    assert {item.prompt for item in task.items.values()} == {"Same context"}
    path = lines(tmp_path / "samples_old.jsonl", old)
    assert audit_scores(path, path).measures[0].groups == 1  # equal prompts are one draw


def test_inspects_json_log(tmp_path):
    values = ["C", "I", "P", "N", True, 0.25, "1.0"]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log([sample(i, v) for i, v in enumerate(values)])))
    found = read_scores(path, Wanted())
    assert list(found) == ["boolq"]
    assert found["boolq"].metric == "match"
    scores = [item.score for item in found["boolq"].items.values()]
    assert scores == [1, 0, 0.5, 0, 1, 0.25, 1]


@pytest.mark.parametrize("head", ["header.json", "_journal/start.json"])
def test_inspects_eval_log_with_epochs(tmp_path, head):
    def both(name: str, wrong: int) -> Path:
        return zipped(
            tmp_path / name,
            [
                sample(i, "C" if i >= wrong else "I", epoch=epoch)
                for i in range(40)
                for epoch in (1, 2, 3)
            ],
            head,
        )

    base, tuned = both("base.eval", 0), both("tuned.eval", 20)
    (task,) = audit_scores(base, tuned).measures
    assert (task.name, task.items, task.groups, task.verdict) == ("boolq", 120, 40, "lost")
    assert audit_scores(base, tuned, group="passage").measures[0].groups == 10


def test_inspects_scorers_of_several_values_are_named(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log([sample(1, {"fluent": 1, "true": 0})])))
    with pytest.raises(DataError, match="match has several values") as caught:
        read_scores(path, Wanted())
    assert "match,fluent" in str(caught.value)
    assert read_scores(path, Wanted("match,true"))["boolq"].items["1"].score == 0


# --- what is refused, with its place


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 2}', r'base.jsonl:2: no "score"'),
        ('{"score": 1}', r'base.jsonl:2: no "id"'),
        ('{"id": 2, "score": 1.5}', "base.jsonl:2: score is 1.5, not a number from 0 to 1"),
        ('{"id": 2, "score": "yes!"}', 'base.jsonl:2: score is "yes!", not a number'),
        ('{"id": 2, "score": NaN}', "base.jsonl:2: score is NaN, not a number"),
        ('{"id": 2, "score": [1]}', r"base.jsonl:2: score is \[1\], not a number"),
        ('{"id": 0, "score": 1}', "base.jsonl:2: id '0' is there already: .*base.jsonl:1"),
        ('{"id": 2, "score"', "base.jsonl:2: broken JSON"),
        ("[1]", "base.jsonl:2: not a JSON object"),
    ],
)
def test_a_line_that_is_no_score_is_named(tmp_path, line, message):
    path = tmp_path / "base.jsonl"
    path.write_text('{"id": 0, "score": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        audit_scores(path, path)


def test_files_that_hold_no_scores_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        audit_scores(tmp_path / "none.jsonl", tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty: no items"):
        audit_scores(empty, empty)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "results_2025.json").write_text("{}")
    with pytest.raises(DataError, match="--log_samples"):
        read_scores(tmp_path / "folder", Wanted())
    other = tmp_path / "results.json"
    other.write_text('{"results": {}}')
    with pytest.raises(DataError, match="no log of Inspect's"):
        read_scores(other, Wanted())
    broken = tmp_path / "log.eval"
    broken.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="is no zip file"):
        read_scores(broken, Wanted())


def test_a_task_in_two_files_of_a_folder_is_refused(tmp_path):
    for hour in ("10", "12"):
        lines(tmp_path / f"samples_boolq_2025-02-03T{hour}-11-12.1.jsonl", [logged(0, 1.0)])
    with pytest.raises(DataError, match="task boolq is in two files"):
        read_scores(tmp_path, Wanted())


def test_another_version_of_the_data_is_refused(tmp_path):
    base = lines(tmp_path / "b" / "samples_x.jsonl", [logged(0, 1.0), logged(1, 1.0)])
    changed = [logged(0, 1.0), logged(1, 1.0, doc_hash="other")]
    tuned = lines(tmp_path / "t" / "samples_x.jsonl", changed)
    with pytest.raises(DataError, match="item 1 has another doc_hash"):
        audit_scores(base, tuned)


def test_other_prompts_are_told(tmp_path):
    base = lines(tmp_path / "b" / "samples_x.jsonl", [logged(i, 1.0) for i in range(9)])
    theirs = [logged(i, 1.0, arguments=[[f"<user>{i}", " yes"]]) for i in range(9)]
    tuned = lines(tmp_path / "t" / "samples_x.jsonl", theirs)
    (task,) = audit_scores(base, tuned).measures
    assert "the prompts of 9 items differ" in task.note


def test_items_in_one_file_only_are_told_up_to_a_tenth_of_the_margin_and_refused_above(tmp_path):
    base = plain(tmp_path / "b.jsonl", [1.0] * 1000)
    few = plain(tmp_path / "few.jsonl", [1.0] * 998)
    (task,) = audit_scores(base, few, max_drop=0.02).measures
    assert (task.items, task.verdict) == (998, "kept")
    assert "2 of 1000 items only in" in task.note
    more = plain(tmp_path / "more.jsonl", [1.0] * 997)
    with pytest.raises(DataError, match=r"3 of 1000 items only in .*b.jsonl \(the first: 997\)"):
        audit_scores(base, more, max_drop=0.02)
    assert audit_scores(base, more, max_drop=0.03).exit_code() == 0
    with pytest.raises(DataError, match="task scores: 1000 of 1000 items only in"):
        audit_scores(base, lines(tmp_path / "o.jsonl", [{"id": "x", "score": 1}]))


def test_tasks_that_only_one_has_are_refused(tmp_path):
    base = plain(tmp_path / "b.jsonl", [1.0], task="boolq")
    tuned = plain(tmp_path / "t.jsonl", [1.0], task="boolqa")
    with pytest.raises(DataError, match="no task boolq, which") as caught:
        audit_scores(base, tuned)
    assert 'did you mean "boolqa"?' in str(caught.value)


def test_a_group_that_is_not_there_is_told_with_those_that_are(tmp_path):
    base = lines(tmp_path / "samples_x.jsonl", [logged(0, 1.0)])
    with pytest.raises(DataError, match='no "pasage" in doc') as caught:
        audit_scores(base, base, group="pasage")
    assert 'did you mean "passage"?' in str(caught.value)


def test_margins_are_checked_before_files():
    with pytest.raises(UsageError, match="--max-drop 0: must be above 0"):
        audit_scores("none", "none", max_drop=0.0)


# --- the command


def invoke(*arguments: Any) -> Any:
    from perdure.cli import app

    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_of_one_argument_only_a_run_knows_the_other(tmp_path):
    path = make_run(tmp_path / "run").path
    base = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert both(str(path), None, False) == (base, str(path))
    assert both("base", "tuned", False) == ("base", "tuned")
    for arguments, what, remedy in (
        ((path.parent,), "only a run knows its base model", f"perdure audit BASE {path.parent}"),
        (("--scores", path), "the scores of one model", f"perdure audit --scores {path} TUNED"),
    ):
        told = invoke(*arguments)
        assert told.exit_code == 2, told.output
        assert what in told.stderr
        assert remedy in told.stderr
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  tuning:", "  revision: v1\n  tuning:"))
    with pytest.raises(UsageError, match="at revision v1, and an audit takes no revision"):
        both(str(path), None, False)


@pytest.mark.parametrize("place", ["folder", "pipe", "file/audit.xml"])
def test_a_place_that_no_junit_file_can_have_is_told_before_anything_is_measured(tmp_path, place):
    """A rename would put the file in the place of a pipe, or of /dev/null."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    told = invoke("--scores", "nowhere", "nowhere", "--junit", tmp_path / place)
    assert told.exit_code == 2
    assert f"error: --junit {tmp_path / place}: " in told.stderr
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_does_not_take_the_result_along(tmp_path, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("perdure.commands.audit.write_atomic", full)
    base = plain(tmp_path / "b.jsonl", [1.0] * 200)
    told = invoke("--scores", base, base, "--junit", tmp_path / "audit.xml")
    assert told.exit_code == 5
    assert told.stdout.rstrip().splitlines()[-1] == "verdict: kept (exit code 0)"
    assert f"error: {tmp_path}/audit.xml: no space left on the disk" in told.stderr


def test_the_command_and_its_exit_codes(tmp_path):
    base = plain(tmp_path / "b.jsonl", [1.0] * 200)
    worse = plain(tmp_path / "w.jsonl", [0.0] * 50 + [1.0] * 150)
    junit = tmp_path / "audit.xml"
    kept = invoke("--scores", base, base)
    assert kept.exit_code == 0, kept.output
    assert kept.stdout.rstrip().splitlines()[-1] == "verdict: kept (exit code 0)"
    lost = invoke(base, worse, "--scores", "--junit", junit, "--flips")
    assert lost.exit_code == 1
    assert lost.stdout.rstrip().splitlines()[-1] == "verdict: lost (exit code 1)"
    assert "50 items flipped" in lost.stdout
    assert 'failures="1"' in junit.read_text()
    few = plain(tmp_path / "few.jsonl", [1.0] * 20)
    found = invoke("--scores", few, few, "--json")
    assert found.exit_code == 3
    assert json.loads(found.stdout)["measures"][0]["verdict"] == "undecided"
    assert invoke("--scores", few, few, "--undecided", "0").exit_code == 0
    assert invoke("--scores", few, base).exit_code == 2


def test_options_without_effect_are_refused(tmp_path):
    base = plain(tmp_path / "b.jsonl", [1.0])
    for options in (["--max-kl", "1"], ["--tasks", "x.yaml"], ["--noise-floor", "2"]):
        found = invoke("--scores", base, base, *options)
        assert found.exit_code == 2
        assert f"{options[0]}: has no effect with --scores" in found.output
    found = invoke("base", "tuned", "--group", "passage")
    assert "--group: is of --scores" in found.output


@pytest.mark.process
def test_no_torch_is_imported_for_scores_in_files(tmp_path):
    base = plain(tmp_path / "b.jsonl", [1.0] * 200)
    code = (
        "import sys\n"
        "from perdure.cli import app\n"
        "try:\n"
        f"    app(['audit', '--scores', {str(base)!r}, {str(base)!r}, '--json'])\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "    sys.exit(f'imported: {heavy}' if heavy else end.code)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["verdict"] == "kept"


def test_the_guides_command(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0].strip() for part in text.split("```bash\n")[1:]]
    (command,) = [block for block in blocks if "--scores" in block]
    monkeypatch.chdir(tmp_path)
    for name, right in (("base-scores", 1.0), ("tuned-scores", 0.0)):
        lines(tmp_path / name / "samples_boolq.jsonl", [logged(i, right) for i in range(100)])
    program, audit, *arguments = command.split()
    assert (program, audit) == ("perdure", "audit")
    assert invoke(*arguments).exit_code == 1
    assert "boolq" in (tmp_path / "audit.xml").read_text()
