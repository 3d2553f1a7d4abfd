"""docs/every-week.md from end to end: its commands as they are printed, on the tiny model.

All rows are the sample data, as `perdure recipes copy` writes them: the page says that its commands
need nothing else, so no file is made here.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from docs_prelude import MODEL
from test_docs import blocks, commands, run
from typer.testing import CliRunner, Result

from perdure.cli import app
from perdure.models.codebook import Codebook
from perdure.recipes import FOLDER
from perdure.run import Run
from perdure.seals import sha256

pytestmark = pytest.mark.train
PAGE = Path(__file__).parents[1] / "docs" / "every-week.md"


@pytest.fixture(scope="module")
def weeks(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder in which the page was followed, and the names that its Python left."""
    folder = tmp_path_factory.mktemp("weeks")
    names: dict[str, Any] = {"folder": folder}
    for place in (folder, folder / "shop"):
        (place / MODEL).parent.mkdir(parents=True)
        (place / MODEL).symlink_to(tiny_model_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks(PAGE):
            if block.language == "yaml":
                first = re.match(r"# (shop/\S+\.yaml)\n", block.text)
                assert first is not None, block.text
                Path(first[1]).write_text(block.text, encoding="utf-8")
            elif block.language == "bash":
                for command in commands(block):
                    program, _, file = command.partition(" ")
                    if program == "rm":
                        Path(file).unlink()
                    else:
                        run(command)
            else:
                assert block.language == "python"
                exec(compile(block.text, str(PAGE), "exec"), names)
    return names


def test_a_new_instruction_opens_a_group_and_a_known_one_goes_on(weeks: dict[str, Any]) -> None:
    runs = {n: Run.open(weeks["folder"] / "runs" / f"week{n}") for n in (1, 2, 3)}
    assert all(one.state == "finished" for one in runs.values())
    books = {
        n: Codebook.load(one.path / "checkpoints" / f"task-{n}" / "model")
        for n, one in runs.items()
    }
    assert [group.adapter for group in books[1].groups] == ["department@1"]
    assert [group.adapter for group in books[2].groups] == ["department@1", "shelf@1"]
    assert [group.adapter for group in books[3].groups] == ["department@2", "shelf@1"]
    assert books[3].groups[0].tasks == ("department", "department week 3")
    # A week that is not of its group leaves an adapter as it is.
    for old, new, adapter in ((1, 2, "department@1"), (2, 3, "shelf@1")):
        files = [
            runs[n].path / "checkpoints" / f"task-{n}" / "model" / adapter
            / "adapter_model.safetensors" for n in (old, new)
        ]  # fmt: skip
        assert sha256(files[0]) == sha256(files[1])
    # The old task is scored again without its rows.
    assert runs[3].matrix().array().shape == (4, 3)
    averaged = {fact["after"] for fact in runs[3].facts() if "averaging_moved" in fact["name"]}
    assert averaged == {3}


def test_rows_that_were_trained_on_are_gone(weeks: dict[str, Any]) -> None:
    folder = weeks["folder"]
    assert {file.name for file in (folder / "shop").glob("*.csv")} == {"more-tickets.csv"}
    written = "\n".join(
        file.read_text(encoding="utf-8", errors="ignore")
        for file in (folder / "runs" / "week3").rglob("*")
        if file.is_file()
    )
    written = json.dumps(written, ensure_ascii=False)
    sample = (FOLDER / "two-csv-files" / "tickets.csv").read_text(encoding="utf-8")
    texts = [row["message"] for row in csv.DictReader(io.StringIO(sample))]
    kept = [text for text in texts if text in written]
    # A fifth to score, a tenth to validate.
    assert 0 < len(kept) < len(texts) / 2


def test_a_run_whose_rows_were_deleted_still_answers(weeks: dict[str, Any], tmp_path: Path) -> None:
    """As the page says; of an older task's form nothing is left, which is told."""
    old = tmp_path / "week3"
    shutil.copytree(weeks["folder"] / "runs" / "week3", old)
    for name in ("data", "items"):
        shutil.rmtree(old / name)

    def typed(*words: Any) -> Result:
        return CliRunner().invoke(app, [*map(str, words)])

    rows = FOLDER / "two-csv-files" / "more-tickets.csv"
    told = typed("predict", old, rows)
    assert told.exit_code == 0, told.output
    answers = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(answers) == 24
    for line in answers:
        assert list(line) == [
            "text", "answer", "score", "best", "adapter", "similarity", "fits", "why"
        ]  # fmt: skip
        assert (line["adapter"], line["fits"]) == ("department@2", True)
    whole = typed("predict", weeks["folder"] / "runs" / "week3", rows)
    assert whole.stdout == told.stdout
    for words, said in (
        (("predict", old, rows, "--task", "department"), "ask as department week 3: --task NAME"),
        (("report", old), f"{old}/items: was deleted"),
        (("extend", old, "--data", rows, "--out", tmp_path / "more"), f"{old}/data: was deleted"),
    ):
        found = typed(*words)
        assert (found.exit_code, said in found.stderr) == (4, True), found.output
    shutil.copytree(weeks["folder"] / "runs" / "week3" / "data", old / "data")
    longer = typed("extend", old, "--data", rows, "--out", tmp_path / "more")
    assert f"{old}/items: was deleted" in longer.stderr, longer.output
    assert f"perdure predict {old} FILE" in longer.stderr


def test_requests_without_a_task_name_find_their_adapter(weeks: dict[str, Any]) -> None:
    found = [answer.choice.adapter for answer in weeks["answers"]]
    assert found == ["department@2", "shelf@1", None]
