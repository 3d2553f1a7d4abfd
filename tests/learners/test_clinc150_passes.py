"""All of CLINC150 through a small random body, with the four probes: each text passes once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import save_encoder

import perdure
from perdure.learners import probing
from perdure.models.classifier import Classifier
from perdure.run import Run
from perdure.scoring.probes import PROBES

pytestmark = pytest.mark.real
CLINC150 = Path(__file__).parents[3] / "shared/data/clinc150"


@pytest.mark.skipif(not CLINC150.is_dir(), reason="../shared/data/clinc150 is not there")
def test_a_whole_run_reads_as_many_texts_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {True: 0, False: 0}
    made = Classifier.__init__

    def count(body: Any, args: Any, given: Any, out: Any) -> None:
        read[torch.is_grad_enabled()] += len(given["input_ids"])

    def init(model: Any, *args: Any, **options: Any) -> None:
        made(model, *args, **options)
        model.body.register_forward_hook(count, with_kwargs=True)

    monkeypatch.setattr(Classifier, "__init__", init)
    # A fit reads features alone; those by gradient take a minute more and no pass.
    fit = probing.fit
    monkeypatch.setattr(probing, "fit", lambda name, *given: fit("prototype", *given))
    recipe = {
        "model": {"path": str(save_encoder(tmp_path / "model"))},
        "stream": {"name": "clinc150", "folder": str(CLINC150)},
        "method": {"name": "seq_star", "warmup_epochs": 1},
        "train": {"epochs": 1, "batch_size": 50, "precision": "fp32"},
        "scoring": {"probes": list(PROBES)},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    loaded = perdure.load_recipe(path)
    run = Run.create(tmp_path / "run", loaded)
    perdure.learn(loaded, run)
    assert read[True] == 1_000  # one epoch of the first task warms up
    # 15,000 training and 4,500 test rows under the untouched and under the warmed-up body, two of
    # whose texts are there twice; for the threshold 3,000 validation rows, three of whose texts
    # had been read by then, and 1,100 of no class.
    assert read[False] == 2 * (19_500 - 2) + (3_000 - 3) + 1_100
    log = (run.path / "perdure.log").read_text("utf-8")
    assert f"the body read {sum(read.values())} texts, {sum(read.values())} needed" in log
