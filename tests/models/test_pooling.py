"""Which states are a text's feature where the recipe leaves it open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BertConfig, GPT2Config

from perdure.models.configuration import pooling_of

pytestmark = pytest.mark.unit

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}


def encoder(folder: Path, pooling: Any, modules: Any = (TRANSFORMER, POOLING)) -> BertConfig:
    """A BERT whose folder holds the files of sentence-transformers."""
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(
        pooling if isinstance(pooling, str) else json.dumps(pooling)
    )
    BertConfig().save_pretrained(folder)
    found: BertConfig = AutoConfig.from_pretrained(folder)
    return found


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        # Not one of ours alone, or not to be read: the first token, as of any encoder.
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "cls"),
        ("{", "cls"),
    ],
)
def test_auto_follows_a_sentence_encoders_files(tmp_path: Path, said: Any, pooling: str) -> None:
    config = encoder(tmp_path, said)
    assert pooling_of(config, "auto") == pooling
    assert pooling_of(config, "entity_starts") == "entity_starts"


def test_auto_without_such_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    BertConfig().save_pretrained(tmp_path)
    assert pooling_of(AutoConfig.from_pretrained(tmp_path), "auto") == "cls"
    assert pooling_of(BertConfig(), "auto") == "cls"  # made in memory
    assert pooling_of(encoder_without_pooling(tmp_path), "auto") == "cls"
    assert pooling_of(BertConfig(name_or_path="nobody/has-this"), "auto") == "cls"  # no hub
    assert pooling_of(GPT2Config(), "auto") == "last"


def encoder_without_pooling(folder: Path) -> BertConfig:
    return encoder(folder, {"pooling_mode_mean_tokens": True}, [TRANSFORMER])
