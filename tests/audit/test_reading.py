"""Both models of an audit are read with one template: that of the tuned model's training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.audit.audit import audit
from perdure.diagnose.diagnose import diagnose
from perdure.streams.task import Task

pytestmark = pytest.mark.train
OWN = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
ROWS = [{"prompt": [{"role": "user", "content": f"word {i}"}], "answer": f"good {i}"}
        for i in range(6)]  # fmt: skip
TASK = Task("faq", ROWS, (), ROWS, "perplexity")


def with_template(model: Path, folder: Path, template: str | None) -> Path:
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(model: Path) -> float:
    """Mean loss of the answers' tokens behind the prompts of `OWN`, with transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    total, count = 0.0, 0
    for row in ROWS:
        ids = tokenizer.apply_chat_template(
            row["prompt"], chat_template=OWN, add_generation_prompt=True, tokenize=False
        )
        given = tokenizer(ids, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["answer"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        labels = [-100] * len(given) + answer
        with torch.no_grad():
            loss = network(
                input_ids=torch.tensor([given + answer]), labels=torch.tensor([labels])
            ).loss
        total, count = total + float(loss) * len(answer), count + len(answer)
    return total / count


@pytest.mark.parametrize("base_template", [None, "{{ 'x' }}" + OWN])
def test_equal_weights_differ_by_nothing(
    tiny_model_dir: Path, tmp_path: Path, base_template: str | None
) -> None:
    base = with_template(tiny_model_dir, tmp_path / "base", base_template)
    tuned = with_template(tiny_model_dir, tmp_path / "tuned", OWN)
    result = audit(base, tuned, [TASK], measures=("tasks",))
    (measure,) = result.measures
    assert measure.change == 0.0
    assert (measure.low, measure.high) == (0.0, 0.0) or measure.base == measure.tuned
    wanted = by_hand(tiny_model_dir)

    assert measure.base == pytest.approx(wanted, rel=1e-5)
    brings = "none" if base_template is None else "another one"
    assert re.fullmatch(
        rf"the tuned model's chat template \(sha256 \w{{8}}\); the base brings {brings}",
        result.template,
    )
    plain = audit(base, tuned, [TASK], measures=("tasks",), chat_template="none")
    assert plain.template.startswith("plain text, without a chat template")
    assert plain.measures[0].change == 0.0


def test_an_adapter_is_read_with_the_template_that_lies_beside_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The recipe's template file may be gone or changed since."""
    from perdure.models import load_base, load_saved, save_model
    from perdure.recipe.schema import ModelConfig
    from perdure.repair.path import load_line

    file = tmp_path / "own.jinja"
    file.write_text(OWN)
    config = ModelConfig(path=str(tiny_model_dir), tuning="lora", chat_template=str(file))
    model, tokenizer = load_base(config)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight)
    folder = tmp_path / "adapter"
    save_model(model, tokenizer, folder, config)
    file.unlink()
    assert load_saved(folder)[1].chat_template == OWN
    line = load_line(str(tiny_model_dir), str(folder))
    assert line.encoder().template == OWN


def test_diagnose_reads_both_alike(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model_dir, tmp_path / "base", None)
    tuned = with_template(tiny_model_dir, tmp_path / "tuned", OWN)
    labels = ("good", "bad")
    rows: list[Any] = [
        {"prompt": [{"role": "user", "content": f"word {i}"}], "answer": labels[i % 2]}
        for i in range(12)
    ]
    task = Task("mood", rows, (), rows, "label_likelihood", labels=labels)
    result = diagnose(base, tuned, [task])
    assert result.template.startswith("the tuned model's chat template (sha256 ")
    (found,) = result.tasks
    assert found.loss == "nothing"
