"""Sentence encoders: which library loads what, and what is said where it cannot be loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure.consent import ConsentError, trusting
from perdure.errors import ModelError, UsageError
from perdure.models.codebook import SimilarityConfig
from perdure.models.encoders import SentenceEncoder, is_plain
from perdure.models.similarity import fingerprinted, similarity_of
from perdure.testing import make_tokenizer

pytestmark = pytest.mark.unit
HERE = importlib.util.find_spec("sentence_transformers") is not None
TEXTS = ["Is it good?", "What is the topic of the text?", "no", ""]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with its tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=48, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def layered(folder: Path, modules: list[str], **pooling: Any) -> Path:
    """Write the files by which sentence-transformers says of what an encoder is made."""
    paths = ["", "1_Pooling", "2_More", "3_More"]
    said = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(said))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("modules", "pooling", "plain"),
    [
        (["Transformer", "Pooling", "Normalize"], MEAN, True),
        (["Transformer", "Pooling"], MEAN, True),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, True),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, False),
        (["Transformer", "Pooling"], {**MEAN, "pooling_mode_max_tokens": True}, False),
        (["Transformer", "Pooling", "Dense", "Normalize"], MEAN, False),
        (["StaticEmbedding"], {}, False),
        ([], {}, True),
    ],
)
def test_a_folder_that_asks_for_more_than_the_mean_is_not_read_as_if_it_did_not(
    tmp_path: Path, modules: list[str], pooling: Any, plain: bool
) -> None:
    assert is_plain(layered(tmp_path, modules, **pooling)) is plain


@pytest.mark.train
def test_vectors_are_the_mean_over_tokens_at_length_1_whatever_stands_beside(
    encoder_dir: Path,
) -> None:
    encoder = SentenceEncoder(str(encoder_dir))
    found = encoder.vectors(TEXTS)
    assert found.shape == (4, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1)[:3], 1, atol=1e-5)
    alone = np.concatenate([encoder.vectors([text]) for text in TEXTS])
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.vectors(TEXTS[::-1])[::-1], found, atol=1e-5)
    # The slow plain way: one text, its states, their mean.
    from transformers import AutoModel, AutoTokenizer

    body, tokenizer = AutoModel.from_pretrained(encoder_dir), AutoTokenizer.from_pretrained(
        encoder_dir
    )  # fmt: skip
    for text, vector in zip(TEXTS[:3], found, strict=False):
        with torch.no_grad():
            mean = body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose((mean / mean.norm()).numpy(), vector, atol=1e-5)
    assert encoder.vectors(["long " * 500]).shape == (1, 16)  # cut to what the encoder reads


@pytest.mark.train
def test_another_encoder_than_the_thresholds_were_measured_with_is_refused(
    encoder_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(encoder_dir, tmp_path / "encoder"))
    config = fingerprinted(SimilarityConfig(name="embedding", encoder=str(folder)))
    assert len(config.fingerprint) == 16
    index = similarity_of(config).index(["Is it good?"])
    assert index(["Is it good?"])[0, 0] == 1.0
    (folder / "README.md").write_text("not read")
    similarity_of(config)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UsageError, match=r"similarity.encoder: .*fingerprint"):
        similarity_of(config)
    words = SimilarityConfig()
    assert fingerprinted(words) is words


@pytest.mark.parametrize("which", ["sentence-transformers/all-mpnet-base-v2", "folder"])
def test_what_needs_the_extra_names_the_line_that_installs_it(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    if which == "folder":
        layered(tmp_path, ["Transformer", "Pooling"], pooling_mode_cls_token=True)
        (tmp_path / "config.json").write_text("{}")
        which = str(tmp_path)
    with pytest.raises(UsageError) as caught:
        SentenceEncoder(which)
    told = str(caught.value)
    assert f"similarity.encoder: {which}: is loaded by sentence-transformers" in told
    assert "pip install perdure[router]" in told


def test_a_folder_that_names_foreign_code_needs_the_user_s_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.ModuleType("there"))
    layered(tmp_path, ["Transformer", "Pooling"], **MEAN)
    (tmp_path / "config.json").write_text("{}")
    text = (tmp_path / "modules.json").read_text()
    changed = text.replace("sentence_transformers.models.Pooling", "my_code.Pooling")
    (tmp_path / "modules.json").write_text(changed)
    assert not is_plain(tmp_path)
    with pytest.raises(ConsentError, match=r"modules.json: names Python code.*my_code.Pooling"):
        SentenceEncoder(str(tmp_path))
    with trusting(True):
        assert not SentenceEncoder(str(tmp_path)).plain


def test_what_is_no_encoder_is_said_at_our_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"similarity.encoder: embedding needs a sentence encoder"):
        SentenceEncoder(" ")
    with pytest.raises(ModelError, match=r"^similarity.encoder: .*no such folder"):
        SentenceEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"^similarity.encoder: package:no_such.*\n.*pip install"):
        SentenceEncoder("package:no_such_encoder")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ModelError, match=r"modules.json: is not valid JSON"):
        SentenceEncoder(str(tmp_path))


@pytest.mark.train
@pytest.mark.skipif(not HERE, reason="not installed: pip install perdure[router]")
def test_sentence_transformers_loads_what_only_it_can(encoder_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_dir, tmp_path / "encoder"))
    # The tiny one pads on the left, where sentence-transformers would move BERT's positions.
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "padding_side": "right"}))
    kind, texts = ["Transformer", "Pooling"], TEXTS[:3]
    mean = SentenceEncoder(str(layered(folder, kind, word_embedding_dimension=16, **MEAN)))
    assert mean.plain
    theirs = mean._by_package()(texts)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(mean.vectors(texts), theirs, atol=1e-5)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    first = SentenceEncoder(str(layered(folder, kind, word_embedding_dimension=16, **pooling)))
    assert not first.plain
    assert np.abs(first.vectors(texts) - mean.vectors(texts)).max() > 0.01
