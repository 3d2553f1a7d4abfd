"""Texts in their template: what is read, what is cut, and where the entities' markers stand."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import save_decoder, save_encoder, write_class_recipe
from transformers import BertConfig, GPT2Config, RobertaConfig

import perdure
from perdure.engine.rows import encode_stream
from perdure.errors import DataError, RecipeError, UsageError
from perdure.models.class_rows import ClassEncoder, context_of
from perdure.models.prepared_classes import PreparedClasses, class_encoder
from perdure.streams.task import PlacedRow, Task, TaskStream
from perdure.testing import make_tokenizer

pytestmark = pytest.mark.unit

LEFT, RIGHT = "Long ago and far away ", " , said someone who was there at that time ."
MIDDLE = "[E11] Ann Lee [E12] worked for [E21] Acme [E22]"
MARKED = LEFT + MIDDLE + RIGHT
PLAIN = MARKED.replace("[E11] ", "").replace(" [E12]", "").replace("[E21] ", "").replace(
    " [E22]", "")  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte pairs, nothing added: what is written is what is read back."""
    return make_tokenizer()


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    """BERT's form: lower case, [CLS] before and [SEP] behind."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        [MARKED, "abcdefghijklmnopqrstuvwxyz"],
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=512,
    )  # fmt: skip


def row_of(text: str = MARKED) -> PlacedRow:
    return PlacedRow({"text": text, "label": "r", "head": "Ann Lee", "tail": "Acme"}, "t.jsonl:7")


def read(encoder: ClassEncoder, row: Any) -> str:
    return str(encoder.tokenizer.decode(encoder.encode(row)["input_ids"]))


# ---- templates


def test_texts_in_the_specifications_templates(tokenizer: Any) -> None:
    decoder = ClassEncoder(tokenizer, None, 400, "last")
    assert read(decoder, {"text": "pay my bill"}) == "Input sentence: pay my bill\n The label:"
    told = f"Input sentence: {PLAIN}\n The relationship between Ann Lee and Acme is"
    assert read(decoder, row_of()) == told
    assert read(decoder, {"text": MARKED}) == told  # the text alone says all of it
    for pooling in ("cls", "mean"):
        encoder = ClassEncoder(tokenizer, None, 400, pooling)
        assert read(encoder, {"text": "pay my bill"}) == "pay my bill"
        assert read(encoder, row_of()) == MARKED


def test_the_template_is_the_bodys_whatever_is_pooled(tokenizer: Any) -> None:
    row = {"text": "pay my bill"}
    decoder = ClassEncoder(tokenizer, None, 400, "mean", decoder=True)
    assert read(decoder, row) == "Input sentence: pay my bill\n The label:"
    assert read(ClassEncoder(tokenizer, None, 400, "last", decoder=False), row) == "pay my bill"


@pytest.mark.train
@pytest.mark.parametrize(("save", "framed"), [(save_decoder, True), (save_encoder, False)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_recipes_body_decides_it(save: Any, framed: bool, pooling: str, tmp_path: Path) -> None:
    recipe = write_class_recipe(tmp_path, save(tmp_path / "m"), model__pooling=pooling)
    made = class_encoder(perdure.load_recipe(recipe))
    assert ("Input sentence" in read(made, {"text": "pay my bill"})) is framed


def test_a_template_of_ones_own(tokenizer: Any) -> None:
    own = ClassEncoder(tokenizer, "{head}, {tail}? {text} {head}:", 400, "last")
    assert read(own, row_of()) == f"Ann Lee, Acme? {PLAIN} Ann Lee:"
    kept = ClassEncoder(tokenizer, "Read: {text}", 400, "mean")  # it names no entity
    assert read(kept, row_of()) == f"Read: {MARKED}"
    # What stands in a text is no place to fill.
    sly = "{tail} of [E11] {text} [E12] and [E21] {head} [E22]"
    assert read(own, row_of(sly)) == "{text}, {head}? {tail} of {text} and {head} {text}:"


# ---- where the markers stand


def test_entity_starts_on_word_pieces(wordpiece: Any) -> None:
    encoder = ClassEncoder(wordpiece, None, 400, "entity_starts")
    for text in (MARKED, "[E21] Acme [E22] of [E11] Ann [E12]"):
        found = encoder.encode(row_of(text))
        tokens = wordpiece.convert_ids_to_tokens(found["input_ids"])
        # By hand: a marker is taken apart, its first piece is the bracket.
        lower = text.lower()
        for place, marker in zip(found["entity_starts"], ("[e11]", "[e21]"), strict=True):
            before = [t for t in tokens[:place] if t == "["]
            assert tokens[place] == "["
            assert len(before) == lower[: lower.index(marker)].count("[")
    assert found["entity_starts"][0] > found["entity_starts"][1]  # head and tail, in this order


def test_entity_starts_on_byte_pairs_and_in_a_template(tokenizer: Any) -> None:
    encoder = ClassEncoder(tokenizer, "{head} or {tail}: {text}!", 400, "entity_starts")
    found = encoder.encode(row_of())
    for place, marker in zip(found["entity_starts"], ("[E11]", "[E21]"), strict=True):
        rest = tokenizer.decode(found["input_ids"][place:])
        assert rest.lstrip().startswith(marker)
        assert not tokenizer.decode(found["input_ids"][place + 1 :]).lstrip().startswith(marker)
    assert tokenizer.decode(found["input_ids"]) == f"Ann Lee or Acme: {MARKED}!"


def test_entity_starts_need_markers_and_a_tokenizer_that_knows_places(tokenizer: Any) -> None:
    encoder = ClassEncoder(tokenizer, None, 400, "entity_starts")
    with pytest.raises(DataError, match=r"t.jsonl:7: the entity marker \[E22\] is missing"):
        encoder.encode(row_of(MARKED.replace(" [E22]", "")))
    with pytest.raises(DataError, match=r"t.jsonl:7: the entity marker \[E11\] is there 2 times"):
        ClassEncoder(tokenizer, None, 400, "mean").encode(row_of(MARKED + " [E11]"))
    # A text of a class may speak of a marker.
    said = {"text": "what is [E11]", "label": "a"}
    assert read(ClassEncoder(tokenizer, None, 400, "mean"), said) == "what is [E11]"

    class Slow:
        is_fast, model_max_length = False, 512

    with pytest.raises(UsageError, match="entity_starts needs a tokenizer that knows where"):
        ClassEncoder(Slow(), None, 400, "entity_starts")


# ---- texts that are too long


def test_a_long_text_loses_its_end_and_the_template_nothing(tokenizer: Any) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    encoder = ClassEncoder(tokenizer, None, 50, "last")
    found = encoder.encode({"text": text})
    assert len(found["input_ids"]) <= 50
    said = tokenizer.decode(found["input_ids"])
    assert said.startswith("Input sentence: word0 word1")
    assert said.endswith("\n The label:")
    kept = said.removeprefix("Input sentence: ").removesuffix("\n The label:")
    assert text.startswith(kept)
    # One character more does not fit, nor do two: the slow search finds none that is longer.
    longer = [text[: len(kept) + n] for n in (1, 2, 3)]
    assert all(len(tokenizer(f"Input sentence: {t}\n The label:")["input_ids"]) >= 50
               for t in longer if not t.endswith(" "))  # fmt: skip
    assert encoder.cut == {text}


@pytest.mark.parametrize("pooling", ["mean", "entity_starts"])
def test_a_long_relation_is_cut_right_of_its_markers_first(tokenizer: Any, pooling: str) -> None:
    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    def said(limit: int) -> str:
        return read(ClassEncoder(tokenizer, None, limit, pooling), row_of())

    assert said(tokens(MARKED)) == MARKED
    for limit in range(tokens(MIDDLE) + 1, tokens(MARKED)):
        text = said(limit)
        assert tokens(text) <= limit
        before, inside, after = text.partition(MIDDLE)
        assert inside
        assert RIGHT.startswith(after)
        assert LEFT.endswith(before)
        assert before == LEFT or not after  # the left side only when the right one is gone
    assert said(tokens(LEFT + MIDDLE)) == LEFT + MIDDLE
    assert said(tokens(MIDDLE)) == MIDDLE


def test_a_long_relation_in_its_template(tokenizer: Any) -> None:
    frame = "Input sentence: {}\n The relationship between Ann Lee and Acme is"
    least = frame.format("Ann Lee worked for Acme")
    limit = len(tokenizer(least)["input_ids"])
    encoder = ClassEncoder(tokenizer, None, limit, "last")
    assert read(encoder, row_of()) == least
    longer = read(ClassEncoder(tokenizer, None, limit + 4, "last"), row_of())
    assert longer.endswith("Ann Lee worked for Acme\n The relationship between Ann Lee and Acme is")
    with pytest.raises(DataError) as caught:
        ClassEncoder(tokenizer, None, limit - 1, "last").encode(row_of())
    assert str(caught.value).startswith(
        f"t.jsonl:7: the entities and what is between them do not fit into {limit - 1} tokens "
        "beside the template\n  raise train.max_length"
    )
    with pytest.raises(DataError, match="no word fits into 6 tokens beside the template"):
        ClassEncoder(tokenizer, None, 6, "last").encode({"text": "pay my bill", "label": "pay"})


def test_the_released_way_cuts_the_end_of_all_that_is_read(tokenizer: Any) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    whole = tokenizer(f"Input sentence: {text}\n The label:")["input_ids"]
    encoder = ClassEncoder(tokenizer, None, 50, "last", truncate="right")
    assert encoder.encode({"text": text}) == {"input_ids": whole[:50]}
    assert encoder.cut == {text}
    assert tokenizer.truncation_side == "right"
    short = {"text": "pay my bill"}
    assert encoder.encode(short) == ClassEncoder(tokenizer, None, 50, "last").encode(short)
    assert encoder.cut == {text}


def test_the_released_way_may_lose_a_marker(tokenizer: Any) -> None:
    count = len(tokenizer(MARKED)["input_ids"])
    kept = ClassEncoder(tokenizer, None, count - 2, "entity_starts", truncate="right")
    whole = ClassEncoder(tokenizer, None, count, "entity_starts").encode(row_of())
    found = kept.encode(row_of())
    assert found["input_ids"] == whole["input_ids"][: count - 2]
    assert found["entity_starts"] == whole["entity_starts"]
    lost = ClassEncoder(
        tokenizer, None, found["entity_starts"][1], "entity_starts", truncate="right"
    )
    with pytest.raises(DataError, match=r"t\.jsonl:7: an entity's marker is cut off at \d+ tokens"):
        lost.encode(row_of())


@pytest.mark.train
def test_a_recipe_cuts_as_it_says(tmp_path: Path) -> None:
    where = save_decoder(tmp_path / "m")
    long = {"text": " ".join(["balance"] * 80)}
    found = {}
    for way in ("text_only", "right"):
        recipe = write_class_recipe(tmp_path, where, model__truncate=way, train__max_length=40)
        made = class_encoder(perdure.load_recipe(recipe))
        found[way] = read(made, long)
        assert ("template and markers too" in made.cut_told) is (way == "right")
    assert found["text_only"].endswith("The label:")
    assert not found["right"].endswith("The label:")


def test_a_text_that_is_cut_is_not_called_an_error(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer's own warning, of "indexing errors" to come, would be false."""
    from transformers.utils import logging as their_logging

    monkeypatch.setattr(tokenizer, "model_max_length", 12)
    monkeypatch.setattr(tokenizer, "deprecation_warnings", {}, raising=False)
    their_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            encoder = ClassEncoder(tokenizer, None, 20, "mean")
            encoder.encode({"text": "many words " * 30, "label": "a"})
    finally:
        their_logging.disable_propagation()
    assert len(encoder.cut) == 1
    assert not [r for r in caplog.records if "indexing errors" in r.getMessage()]


def test_how_many_texts_are_cut_is_told_once_a_split(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def rows(*texts: str) -> list[dict[str, Any]]:
        return [{"text": text, "label": "a"} for text in texts]

    long = ["many words " * 9, "other words " * 9]
    one = Task("one", rows("short", *long), [], rows("short too", long[0]), "accuracy")
    two = Task("two", rows("short"), [], rows("ends in blanks   "), "accuracy")
    encoder = PreparedClasses(tokenizer, None, 20, "mean")
    with caplog.at_level(logging.WARNING):
        encode_stream(TaskStream([one, two]), encoder, None)
    rest = (
        "rows have more than 20 tokens: the end of the text is left out, of a relation's what is "
        "outside its entities; template and markers stay; train.max_length may be raised"
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"task one: 2 of 3 train {rest}",
        f"task one: 1 of 2 test {rest}",
    ]
    assert encoder.lengths(("one", "train"))[1:] == [
        len(encoder.encode({"text": text})["input_ids"]) for text in long
    ]
    for max_length in (20, 400):  # what the model has no places for cannot be asked for
        small = PreparedClasses(tokenizer, None, max_length, "mean", context=20)
        caplog.clear()
        encode_stream(TaskStream([one]), small, None)
        assert caplog.records[0].getMessage().endswith("stay; the model reads no more")


def test_a_text_that_is_longer_than_the_model_reads_is_told_by_perdure_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would foretell "indexing errors" of a text that is cut before it is read."""
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    monkeypatch.setattr(tokenizer, "deprecation_warnings", {})
    encoder = ClassEncoder(tokenizer, None, 400, "mean")
    assert len(encoder.encode({"text": "many words " * 9, "label": "a"})["input_ids"]) <= 8
    assert not tokenizer.deprecation_warnings
    with pytest.raises(DataError) as told:
        ClassEncoder(tokenizer, "{text} " + "word " * 9, 400, "mean").encode(
            {"text": "pay", "label": "a"}
        )
    assert told.value.remedy == ("shorten model.template, or take the row out",)


@pytest.mark.parametrize("pooling", ["mean", "last", "entity_starts"])
def test_all_rows_that_do_not_fit_are_named_at_once(tokenizer: Any, pooling: str) -> None:
    texts = [MARKED, "[E11] a [E12] b [E21] c [E22]", MARKED + " And so on."]
    least = ClassEncoder(tokenizer, None, 400, pooling).encode(row_of(texts[1]))["input_ids"]
    encoder = PreparedClasses(tokenizer, None, len(least), pooling)
    placed = [PlacedRow({**row_of(text)}, f"t.jsonl:{n}") for n, text in enumerate(texts, 1)]
    task = Task("one", placed[:2], [], placed[2:], "accuracy")
    with pytest.raises(RecipeError) as told:
        encode_stream(TaskStream([task]), encoder, None)
    found = told.value.mistakes
    assert [error.what.partition(": ")[0] for error in found] == ["t.jsonl:1", "t.jsonl:3"]
    assert not any(error.what.count("t.jsonl") > 1 for error in found)
    assert {error.source for error in found} == {"t.jsonl"}


def test_the_models_own_places_are_a_limit() -> None:
    assert context_of(BertConfig(max_position_embeddings=512)) == 512
    assert context_of(GPT2Config(n_positions=64)) == 64
    # RoBERTa's first position is behind that of padding: 514 rows of its table, 512 tokens.
    assert context_of(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


# ---- a run


@pytest.mark.train
def test_relations_are_learned_by_their_markers(
    wordpiece: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feature is the body's states at both first markers, whatever else is in the batch."""
    from transformers import AutoModel

    from perdure.learners.classification import ClassificationLearner
    from perdure.loop import learn
    from perdure.prepare import load_recipe
    from perdure.run import Run

    monkeypatch.chdir(tmp_path)
    wordpiece.save_pretrained("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(
            BertConfig(
                vocab_size=len(wordpiece), hidden_size=16, intermediate_size=24,
                num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
                pad_token_id=0,
            )
        ).save_pretrained("model")  # fmt: skip
    rows = [
        {"tokens": ["so", *["long"] * (i % 5), "Ann", "worked", "for", "Acme"],
         "label": f"r{i % 4}", "head": "Ann", "tail": "Acme"}
        for i in range(40)
    ]  # fmt: skip
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("recipe.yaml").write_text(
        "model: {path: ./model, pooling: entity_starts}\n"
        "stream: {data: {train: train.jsonl, format: relations, tasks: 2}}\n"
        "method: seq_star\n"
        "train: {epochs: 1, precision: fp32}\n"
    )
    recipe = load_recipe("recipe.yaml")
    learn(recipe, run := Run.create("run", recipe))
    assert run.state == "finished"
    model, tokenizer = ClassificationLearner.load(recipe, "fp32")
    encoder = ClassEncoder(tokenizer, None, 64, "entity_starts")
    text = "so long long [E11] Ann [E12] worked for [E21] Acme [E22]"
    found = encoder.encode(row_of(text))
    ids = torch.tensor([found["input_ids"]])
    tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
    first, _, second, _ = (n for n, token in enumerate(tokens) if token == "[")
    assert found["entity_starts"] == [first, second]
    with torch.no_grad():
        states = model.eval().body(ids, torch.ones_like(ids)).last_hidden_state[0]
        padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
        feature = model.features(padded, (padded != 0).long(), torch.tensor([[first, second]]))
    by_hand = torch.cat([states[first], states[second]])
    torch.testing.assert_close(feature[0], by_hand, atol=1e-5, rtol=0)
