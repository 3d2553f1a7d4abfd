"""`method: {file: my_method.py}`: a method in a file of one's own, without a package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe

import perdure
from perdure import Run, learn, load_recipe
from perdure.consent import trusting
from perdure.errors import RecipeError, UsageError

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def the_users_word() -> Iterator[None]:
    """These tests run code of their own; `tests/test_consent.py` asks what happens without."""
    with trusting(True):
        yield


METHOD = '''"""Pull all weights towards 0."""
from pydantic import Field
from perdure import Method, MethodConfig

class ShrinkConfig(MethodConfig):
    strength: float = Field(0.5, ge=0, description="share of a weight added to its gradient")

class Shrink(Method):
    Config = ShrinkConfig
    saved = ("steps",)

    def __init__(self, config):
        super().__init__(config)
        self.steps = 0

    def gradients(self, ctx, params):
        for name, p in params.items():
            if p.grad is not None:
                yield name, p.grad + self.config.strength * p

    def after_step(self, ctx):
        self.steps += 1
        ctx.log("steps_seen", float(self.steps))
'''


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "shrink.py").write_text(METHOD)
    method = {"file": "own/shrink.py", "strength": 0.1}
    return write_recipe(tmp_path, tiny_model_dir, method=method, train__max_steps=2)


def test_a_run_learns_and_resumes_with_it(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    run = Run.create(tmp_path / "run", loaded)
    learn(loaded, run)
    assert run.methods_name == "shrink"
    assert [row["method/steps_seen"] for row in run.log_rows()] == [1, 2, 3, 4]
    scores = [(s["after"], s.get("task"), s["score"]) for s in run.scores()]
    # The second task is gone: a resume finds the file by its absolute path.
    shutil.rmtree(run.path / "checkpoints" / "task-2")
    (run.path / "finished").unlink()
    lines = (run.path / "scores.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["after"] < 2]
    (run.path / "scores.jsonl").write_text("\n".join(kept) + "\n")
    again = Run.open(run.path)
    assert Path(again.recipe.methods[0].file or "").is_absolute()
    learn(again.recipe, again)
    assert [(s["after"], s.get("task"), s["score"]) for s in again.scores()] == scores


def test_its_options_are_checked_with_file_and_line(
    tmp_path: Path, tiny_model_dir: Path, recipe: Path
) -> None:
    method = {"file": "own/shrink.py", "strenth": 1}
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(tmp_path, tiny_model_dir, method=method))
    told = str(error.value)
    assert f"{tmp_path / 'recipe.yaml'}:1: method.strenth: unknown key" in told
    assert 'did you mean "strength"?' in told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def (", "cannot be imported: SyntaxError"),
        ("import no_such_package", "cannot be imported: ModuleNotFoundError"),
        ("X = 1", "has 0 subclasses of Method"),
    ],
)
def test_a_broken_file_is_a_mistake_of_the_recipe(
    source: str, told: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    (tmp_path / "broken.py").write_text(source)
    path = write_recipe(tmp_path, tiny_model_dir, method={"file": "broken.py"})
    with pytest.raises(RecipeError, match=told):
        load_recipe(path)


def test_a_missing_file_is_told_with_the_near_one(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r'no such file: .*shrnk.py\n  did you mean "shrink.py"'):
        load_recipe(recipe, [f"method.file={recipe.parent}/own/shrnk.py"])


def test_attach_takes_a_file_too(recipe: Path, tiny: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from perdure.models.chat import Encoder
    from perdure.protocol.batch import collate

    model, tokenizer = tiny
    encoder = Encoder(tokenizer)
    rows = [{"prompt": [{"role": "user", "content": "a b"}], "answer": "c"}] * 4
    args = TrainingArguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = Trainer(
        model=model, args=args, processing_class=tokenizer,
        train_dataset=[encoder.encode(row) for row in rows],
        data_collator=lambda some: collate(some, encoder.pad_id),
    )  # fmt: skip
    perdure.attach(trainer, {"file": str(recipe.parent / "own" / "shrink.py")})
    trainer.train()
    assert trainer.methods[0].steps == 1
    with pytest.raises(UsageError, match="no such file"):
        perdure.attach(trainer, {"file": "nowhere.py"})
