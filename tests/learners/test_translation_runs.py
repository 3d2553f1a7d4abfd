"""A tagged translation from its file to report and predictions: warm-up, rewards, shared test rows,
prefill.

The model is tiny and learns its rows by heart, so that it writes answers that can be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.errors import UsageError
from perdure.extension import extension_recipe
from perdure.learners.generation import GenerationLearner
from perdure.learners.rollouts import Judge
from perdure.methods.kl import kl_of_tokens
from perdure.models.chat import Encoder
from perdure.plan import plan
from perdure.prepare import prepare
from perdure.rewards import Sample
from perdure.run import Run
from perdure.run.kept import kept_tasks
from perdure.scoring.metrics import chrf

pytestmark = pytest.mark.train

PAIRS = {"red": "keru", "dog": "bani"}
TAGGED: dict[str, Any] = {
    "format": "translation",
    "direction": "en-x-velan",
    "answer": "tagged",
    "prefill": "<think>",
    "instruction": "{target_lang}: {source}",
    "max_new_tokens": 40,
}


def write_recipe(folder: Path, model: Path) -> Path:
    folder.mkdir()
    rows = [{"source": s, "target": t, "why": f"{s} {t}"} for s, t in PAIRS.items()]
    (folder / "warm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    (folder / "eng.txt").write_text("red\ndog\n")
    (folder / "vel.txt").write_text("keru\nbani\n")
    said = {
        "model": {"path": str(model)},
        "stream": {
            "tasks": [
                {**TAGGED, "name": "warm-up", "train": "warm.jsonl", "test_of": "mt",
                 "columns": {"reasoning": "why"}, "validation_share": 0.0,
                 "until": {"reach": {"format": 0.5}, "every": 80, "rows": 4}},
                {**TAGGED, "name": "rewarded", "train": "warm.jsonl", "test_of": "mt",
                 "learn": "rl", "validation_share": 0.0},
                {**TAGGED, "name": "mt", "learn": "none",
                 "test": {"source": "eng.txt", "target": "vel.txt"}},
            ]
        },
        "method": {"name": "kl", "reference": "previous"},
        "train": {"learning_rate": 5e-3, "epochs": 20, "batch_size": 4, "precision": "fp32"},
        "rl": {"rewards": ["format", "chrf"], "group": 4, "batch_size": 8, "max_steps": 2,
               "learning_rate": 1e-4},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(said))
    return path


@pytest.fixture(scope="module")
def scorings() -> list[str]:
    """Names of tasks in the order in which they were scored."""
    return []


@pytest.fixture(scope="module")
def judged() -> list[tuple[str, Encoder, list[Sample], list[list[int]]]]:
    """Each batch of samples of which a reward was asked: its task, and completions as tokens."""
    return []


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, scorings: list[str], judged: Any
) -> Run:
    folder = tmp_path_factory.mktemp("translation")
    recipe = perdure.load_recipe(write_recipe(folder / "data", tiny_model_dir))
    score, samples = GenerationLearner.score_task, Judge.samples

    def counted(learner: Any, task: Any, progress: Any) -> Any:
        scorings.append(task.name)
        return score(learner, task, progress)

    def noted(judge: Any, rows: Any, completions: Any) -> Any:
        found = samples(judge, rows, completions)
        judged.append((judge.task.name, judge.encoder, found, [list(ids) for ids in completions]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationLearner, "score_task", counted)
        patch.setattr(Judge, "samples", noted)
        run = Run.create(folder / "run", recipe)
        perdure.learn(recipe, run)
    for file in (folder / "data").iterdir():
        file.unlink()  # the run directory is enough
    return run


def test_shared_rows_are_generated_once_and_fill_both_cells(run: Run, scorings: list[str]) -> None:
    assert scorings == ["warm-up"] * 4  # after 0, 1, 2 and 3 tasks
    for after in range(4):
        lines = {s["task"]: s for s in run.scores() if s["after"] == after}
        assert lines["warm-up"]["score"] == lines["rewarded"]["score"] == lines["mt"]["score"]
        assert run.items(after, "warm-up") == run.items(after, "mt")
    assert run.matrix().tasks == ("warm-up", "rewarded", "mt")
    assert run.matrix().array().shape == (4, 3)  # sft, rl and none in one


def test_items_keep_what_was_written_and_what_was_read_of_it(run: Run) -> None:
    base, learned = run.items(0, "mt"), run.items(1, "mt")
    assert [item["answer"] for item in base] == ["keru", "bani"]
    for item in base:  # random weights end nothing, or close no tag
        assert (item["prediction"], item["reasoning"], item["score"]) == ("", "", 0.0)
        assert item["problem"] in ("truncated", "tag_sequence")
    for item, (source, target) in zip(learned, PAIRS.items(), strict=True):
        assert item["raw"] == f"{source} {target}</think>\n<answer>{target}</answer>"
        assert (item["prediction"], item["reasoning"]) == (target, f"{source} {target}")
        assert item["problem"] == ""
        assert item["score"] == chrf(target, target) == 1.0


def test_the_share_that_could_not_be_read_is_in_line_and_report(run: Run) -> None:
    shares = {(s["after"], s["task"]): s["unread"] for s in run.scores()}
    assert shares == {
        (after, task): 1.0 if after == 0 else 0.0
        for after in range(4)
        for task in ("warm-up", "rewarded", "mt")
    }
    page = (run.path / "report.html").read_text()
    row = page.partition('<table class="stack changes">')[2].partition("</table>")[0]
    assert row.count("100% not read") == 3
    assert "0% not read" in row.replace("100% not read", "")
    assert "Not read: the share of texts" in page


def test_a_run_keeps_how_its_tasks_are_read(run: Run) -> None:
    warm, rewarded, mt = kept_tasks(run, 3)
    assert (warm.answer, warm.prefill, warm.test_of) == ("tagged", "<think>", "mt")
    assert (rewarded.answer, rewarded.test_of, rewarded.learn) == ("tagged", "mt", "rl")
    assert (mt.answer, mt.test_of, mt.learn) == ("tagged", "", "none")
    assert mt.test[0]["prefill"] == "<think>"


def test_rewards_and_a_warm_up_read_what_the_prompt_opened(run: Run, judged: Any) -> None:
    """Behind `prefill` a completion has no `<think>` of its own; the log has what was earned."""
    logged = [line for line in run.log_rows() if "until/format" in line or "rl/reward" in line]
    assert [task for task, *_ in judged] == ["warm-up", "rewarded", "rewarded"]
    for (task, _, samples, written), line in zip(judged, logged, strict=True):
        forms, qualities = [], []
        for one in samples:
            assert one.prompt.endswith("<think>")
            thought, found, behind = one.completion.partition("</think>\n<answer>")
            read = bool(thought and found and behind.endswith("</answer>")) and not one.truncated
            forms.append(float(read))
            qualities.append(chrf(behind.removesuffix("</answer>"), one.target) if read else 0.0)
        count = len(samples)
        assert sum(forms) >= count / 2
        if task == "warm-up":
            assert line["until/format"] == pytest.approx(sum(forms) / count)
            continue
        assert line["rl/reward/format"] == pytest.approx(sum(forms) / count)
        assert line["rl/reward/chrf"] == pytest.approx(sum(qualities) / count)
        assert line["rl/reward"] == pytest.approx((0.2 * sum(forms) + sum(qualities)) / count)
        assert line["rl/length"] == pytest.approx(sum(map(len, written)) / count)


def test_the_reference_of_rewards_is_the_model_after_the_warm_up(
    run: Run, judged: Any, tiny_model_dir: Path
) -> None:
    """To it the KL is 0 until the policy moves; to the base model it is large at once."""
    first, second = (line["method/kl"] for line in run.log_rows() if "rl/reward" in line)
    assert first == pytest.approx(0, abs=1e-7)
    assert second > 1e-6
    _, encoder, samples, written = judged[1]
    folders = (run.path / "checkpoints" / "task-1" / "model", tiny_model_dir)
    policy, base = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    prompt, ids = encoder.prompt_ids(samples[0].row), torch.tensor(written[0])
    whole = torch.tensor([[*prompt, *written[0]]])
    with torch.no_grad():
        logits = [model(whole).logits[0, len(prompt) - 1 : -1] for model in (policy, base)]
    ours, theirs = (x.log_softmax(-1).gather(1, ids[:, None])[:, 0] for x in logits)
    assert float(kl_of_tokens(ours, theirs, ours).mean()) > 1


def lines(*words: Any) -> list[dict[str, Any]]:
    found = CliRunner().invoke(app, ["predict", *map(str, words)])
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_predict_translates_lines_and_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.txt").write_text("dog\n\nred\nlong words that nobody taught it\n")
    dog, none, red, other = lines(run.path, tmp_path / "new.txt")
    assert dog == {"text": "dog", "answer": "bani", "reasoning": "dog bani", "problem": ""}
    assert none == {"text": "", "answer": None}
    assert red["answer"] == "keru"
    assert bool(other["problem"]) == (other["answer"] == "")
    (tmp_path / "new.jsonl").write_text(json.dumps({"source": "dog", "why": "</think>"}) + "\n")
    assert lines(run.path, tmp_path / "new.jsonl") == [dog]
    asked: list[str] = []
    ids = Encoder.prompt_ids

    def noted(self: Encoder, row: Any) -> list[int]:
        asked.append(row["prompt"][0]["content"])
        return ids(self, row)

    monkeypatch.setattr(Encoder, "prompt_ids", noted)
    for direction, prompt in (("en-x-velan", "Velan: dog"), ("en-fr", "French: dog")):
        (found,) = lines(run.path, tmp_path / "new.jsonl", "--direction", direction)
        assert set(asked) == {prompt}
        assert direction == "en-fr" or found == dog
        asked.clear()
    with pytest.raises(UsageError, match="no language has the code"):
        perdure.load_predictor(run.path, direction="en-xxq")


def test_a_further_file_is_read_like_the_last_task_with_test_rows_of_its_own(
    run: Run, tmp_path: Path
) -> None:
    rows = [{"source": f"s {i}", "target": f"t {i}", "why": "so"} for i in range(10)]
    file = tmp_path / "may.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = extension_recipe(run, data=file).stream.tasks
    assert (task.answer, task.prefill, task.test_of) == ("tagged", "<think>", None)
    assert (task.name, task.train, task.test) == ("may", str(file), None)


def test_the_plan_counts_shared_rows_once(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = perdure.load_recipe(write_recipe(tmp_path / "data", tiny_model_dir))
    ready = prepare(recipe)
    found = plan(recipe, ready.stream, ready.encoder, ready.model, micro_batch=4, precision="fp32")
    warm, rewarded, mt = found.tasks
    assert (warm.scorings, warm.test_rows, mt.test_rows, mt.steps) == (0, 2, 2, 0)
    assert rewarded.scorings == 0
    trained = warm.train_seconds + rewarded.train_seconds + mt.train_seconds
    assert found.seconds == trained + 4 * mt.score_seconds


def test_without_reasoning_a_translation_is_learned_in_the_same_way(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`answer: plain`: all of a completion is the translation, in warm-up, rewards and scores."""
    path = write_recipe(tmp_path / "data", tiny_model_dir)
    said = json.loads(path.read_text())
    for task in said["stream"]["tasks"]:
        task["answer"] = "plain"
        del task["prefill"]
        task.pop("columns", None)
    path.write_text(json.dumps(said))
    judged: list[tuple[str, list[Sample]]] = []
    samples = Judge.samples

    def noted(judge: Any, rows: Any, completions: Any) -> Any:
        judged.append((judge.task.name, samples(judge, rows, completions)))
        return judged[-1][1]

    monkeypatch.setattr(Judge, "samples", noted)
    recipe = perdure.load_recipe(path)
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    assert run.matrix().array().shape == (4, 3)
    assert [task for task, _ in judged] == ["warm-up", "rewarded", "rewarded"]
    logged = [line for line in run.log_rows() if "rl/reward" in line]
    for (_, found), line in zip(judged[1:], logged, strict=True):
        whole = [not one.truncated and bool(one.completion.strip()) for one in found]
        quality = [
            chrf(one.completion, one.target) if w else 0.0
            for one, w in zip(found, whole, strict=True)
        ]
        assert not any("think" in one.prompt for one in found)
        assert sum(whole) >= len(found) / 2
        assert max(quality) == 1
        assert line["rl/reward/format"] == pytest.approx(sum(whole) / len(found))
        assert line["rl/reward/chrf"] == pytest.approx(sum(quality) / len(found))
        assert line["rl/reward"] == pytest.approx((0.2 * sum(whole) + sum(quality)) / len(found))
    for item in run.items(3, "mt"):
        assert not item.get("reasoning")
        assert item["prediction"] in PAIRS.values()
