"""The folder in which the snippets of README and docs are run.

Snippets are run as they are printed. What they need beside themselves is made here: the model
that they name is a tiny random one in a folder of the same name, and the user's data are these.

    HuggingFaceTB/SmolLM2-135M-Instruct/   stands for the hub's model (also in shop/)
    shop/reviews.csv, shop/faq.csv         "your own two CSV files"
    support.jsonl, general.txt             data and text of somebody's own training script
"""

from __future__ import annotations

import json
import random
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def prepare(folder: Path, model: Path) -> None:
    """Fill `folder`; `model` is the tiny model's folder."""
    for place in (folder, folder / "shop"):
        (place / MODEL).parent.mkdir(parents=True)
        (place / MODEL).symlink_to(model)
    (folder / "shop" / "reviews.csv").write_text(_reviews(), encoding="utf-8")
    (folder / "shop" / "faq.csv").write_text(_questions(), encoding="utf-8")
    rows = [{"prompt": f"How much is {i} and 1?", "completion": f" {i + 1}"} for i in range(16)]
    (folder / "support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [
        f"Text {i} is plain prose, of the kind that a model has read before." for i in range(8)
    ]
    (folder / "general.txt").write_text("\n\n".join(texts))


def _reviews() -> str:
    rng = random.Random(0)
    lines = [
        "review,stars",
        '"Arrived in a day, and it works.",good',
        "Broke in the first week.,bad",
    ]
    words = {"good": ("Works", "Fits", "Lasts"), "bad": ("Breaks", "Leaks", "Squeaks")}
    for i in range(38):
        stars = ("good", "bad")[i % 2]
        lines.append(f"{rng.choice(words[stars])} since day {i}.,{stars}")
    return "\n".join(lines) + "\n"


def _questions() -> str:
    lines = ["question,reply", "When do you open on Monday?,At 9"]
    lines += [f"When do you open on day {i}?,At {8 + i % 3}" for i in range(30)]
    return "\n".join(lines) + "\n"
