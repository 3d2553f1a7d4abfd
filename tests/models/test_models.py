"""Loading base and saved models, adapters, and what is said when that cannot be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, family
from safetensors import SafetensorError
from tiny_runs import finish, start_call

from perdure.consent import ConsentError
from perdure.errors import ModelError
from perdure.models import (
    attach_lora,
    choose_precision,
    inspect_base,
    load_base,
    load_saved,
    load_tokenizer,
    measure_speed,
    save_model,
)
from perdure.models.adapters import BASE_FILE
from perdure.models.inspect import counted
from perdure.models.served import base_of
from perdure.models.weights import fingerprint
from perdure.recipe.schema import LoraConfig, ModelConfig

pytestmark = pytest.mark.unit


def logits(model: Any, tokenizer: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(**tokenizer("def learn(task):", return_tensors="pt")).logits


def message(model: ModelConfig | Path | str, call: Any = load_base) -> str:
    """What the user reads; also checks that it is said as wrong usage."""
    if call is not load_saved and not isinstance(model, ModelConfig):
        model = ModelConfig(path=str(model))
    with pytest.raises(ModelError) as caught:
        call(model)
    assert caught.value.exit_code == 2
    assert caught.value.remedy, "an error must say what to do"
    return str(caught.value)


@pytest.mark.process
def test_importing_models_loads_no_torch() -> None:
    code = "import perdure.models, sys; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# --- loading -------------------------------------------------------------------------------


def test_load_base_from_a_folder(tiny_model_dir: Path, tiny: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = load_base(ModelConfig(path=str(tiny_model_dir)), precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # bf16 is for computing only
    assert torch.equal(logits(model, tokenizer), logits(*tiny))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_inspect_tells_the_loaded_models_sizes(tiny_model_dir: Path) -> None:
    model, _ = load_base(ModelConfig(path=str(tiny_model_dir)))
    facts = inspect_base(ModelConfig(path=str(tiny_model_dir)))
    assert facts.parameters == facts.trainable == sum(p.numel() for p in model.parameters())
    assert (facts.hidden, facts.layers, facts.vocab, facts.context_length) == (64, 3, 512, 512)
    assert facts.architecture == "LlamaForCausalLM"


def test_chat_template_from_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir), chat_template=str(file)))
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "hi"


@pytest.mark.real
def test_gguf_is_an_ordinary_model_after_loading(smollm2_dir: Path, tmp_path: Path) -> None:
    """Round trip of the chat template, a sane answer, and saving as a plain folder."""
    import torch

    base = ModelConfig(path=str(smollm2_dir))
    model, tokenizer = load_base(base)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not getattr(model, "is_quantized", False)
    assert getattr(model, "hf_quantizer", None) is None
    assert "quantization_config" not in model.config.to_dict()
    assert model.config._name_or_path == str(smollm2_dir)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    made = model.generate(torch.tensor([ids]), max_new_tokens=16)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(made)

    save_model(model, tokenizer, tmp_path / "saved", base)
    again, saved_tokenizer = load_saved(tmp_path / "saved")
    assert torch.equal(logits(again, saved_tokenizer), logits(model, tokenizer))
    assert saved_tokenizer.chat_template == tokenizer.chat_template


def write_gguf(file: Path, model: Any, tokenizer: Any) -> None:
    """Write a Llama as llama.cpp does: rows of q and k reordered for its rotary embedding."""
    import gguf

    config, vocab = model.config, tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = set(tokenizer.all_special_tokens)
    kind = gguf.TokenType
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([kind.CONTROL if t in special else kind.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(vocab["<|im_start|>"])
    writer.add_eos_token_id(vocab["<|im_end|>"])
    writer.add_unk_token_id(vocab["<|endoftext|>"])
    writer.add_pad_token_id(vocab["<|im_end|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        value = weight.numpy()
        for part, count in heads.items():
            if part in name:
                halves = value.reshape(count, 2, -1, value.shape[1])
                value = halves.swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_gguf(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as a GGUF file, and a cache of the test's own."""
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", *tiny)
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("way", ["converted", "read directly", "cache is no folder"])
def test_gguf_gives_the_weights_it_was_made_of(
    tiny_gguf: Path, tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    import torch

    cache = tiny_gguf.parent / "cache"
    if way == "read directly":
        monkeypatch.setattr("perdure.models.gguf.LARGEST", 0)
    elif way == "cache is no folder":
        cache.touch()
    base = ModelConfig(path=str(tiny_gguf))
    model, tokenizer = load_base(base)
    assert torch.equal(logits(model, tokenizer), logits(*tiny))
    assert not getattr(model, "is_quantized", False)
    assert "quantization_config" not in model.config.to_dict()
    assert model.config._name_or_path == str(tiny_gguf)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    chat = [{"role": "user", "content": "Grüezi"}]
    assert tokenizer.apply_chat_template(chat) == tiny[1].apply_chat_template(chat)
    assert cache.is_dir() == (way == "converted")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "manifest.json"])
def test_a_damaged_conversion_is_made_again(
    tiny_gguf: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from perdure.models import gguf

    model = load_base(ModelConfig(path=str(tiny_gguf)))[0]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}  # the file is mapped
    (folder,) = (tiny_gguf.parent / "cache" / "gguf").iterdir()
    whole = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    gguf._known.clear()
    again = load_base(ModelConfig(path=str(tiny_gguf)))[0]
    assert f"{folder}: " in caplog.text
    assert "so it is made again" in caplog.text
    assert all(torch.equal(before[n], p) for n, p in again.named_parameters())
    caplog.clear()
    gguf._known.clear()
    load_base(ModelConfig(path=str(tiny_gguf)))
    assert not caplog.text


def test_gguf_is_converted_once_and_found_by_content(tiny_gguf: Path) -> None:
    load_base(ModelConfig(path=str(tiny_gguf)))
    (folder,) = (tiny_gguf.parent / "cache" / "gguf").iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load_base(ModelConfig(path=str(tiny_gguf)))
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    content = bytearray(tiny_gguf.read_bytes())
    content[-1] ^= 1
    tiny_gguf.write_bytes(content)  # another model under the same name
    load_base(ModelConfig(path=str(tiny_gguf)))
    assert len(list(folder.parent.iterdir())) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
)
def test_gguf_is_read_as_it_is_where_the_disk_is_full(
    error: Exception, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("perdure.models.gguf._convert", full)
    load_base(ModelConfig(path=str(tiny_gguf)))
    assert not list((tiny_gguf.parent / "cache" / "gguf").iterdir())


def _print_size(path: str) -> None:
    print(sum(p.numel() for p in load_base(ModelConfig(path=path))[0].parameters()))


@pytest.mark.process
def test_two_processes_convert_at_once(tiny_gguf: Path) -> None:
    both = [start_call(_print_size, str(tiny_gguf)) for _ in range(2)]
    said = [finish(started).splitlines()[-1] for started in both]
    assert said[0] == said[1]
    assert int(said[0]) > 0
    assert len(list((tiny_gguf.parent / "cache" / "gguf").iterdir())) == 1


@pytest.mark.real
def test_adapter_on_a_gguf_finds_its_base(smollm2_dir: Path, tmp_path: Path) -> None:
    import torch

    base = ModelConfig(path=str(smollm2_dir), tuning="lora")
    facts = inspect_base(base)
    model, tokenizer = load_base(base)
    assert facts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < facts.trainable < facts.parameters / 20
    disturb(model)
    save_model(model, tokenizer, tmp_path / "adapter", base)
    again, _ = load_saved(tmp_path / "adapter")
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))


# --- adapters and saved models ---------------------------------------------------------------


def disturb(model: Any) -> None:
    """Move the trainable parameters, so that an adapter does something."""
    import torch

    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)


def test_lora_trains_only_the_adapter_and_starts_as_the_base(
    tiny_model_dir: Path, tiny: tuple[Any, Any]
) -> None:
    import torch

    base = ModelConfig(path=str(tiny_model_dir), tuning="lora", lora=LoraConfig(r=4))
    model, tokenizer = load_base(base)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert torch.equal(logits(model, tokenizer), logits(*tiny))  # B starts at zero
    # 4 * (in + out) per linear layer: q, o 64x64; k, v 64x32; gate, up, down 64x128; 3 layers
    assert inspect_base(base).trainable == 3 * 4 * (2 * 128 + 2 * 96 + 3 * 192)


def test_lora_keeps_frozen_weights_in_bf16_and_trained_ones_in_fp32(tiny_model_dir: Path) -> None:
    import torch

    model, _ = load_base(ModelConfig(path=str(tiny_model_dir), tuning="lora"), precision="bf16")
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_bases_fingerprint_is_that_of_its_weights_in_fp32_whatever_they_are_kept_in(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    import torch

    tuned = ModelConfig(path=str(tiny_model_dir), tuning="lora")
    plain, tokenizer = load_base(ModelConfig(path=str(tiny_model_dir)))
    assert base_of(plain) == ""  # nobody asked
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        bare, _ = load_base(tuned, precision=precision)
        torch.manual_seed(0)
        noted, _ = load_base(tuned, precision=precision, noted=True)
        assert base_of(noted) == fingerprint(plain)
        pairs = zip(bare.named_parameters(), noted.named_parameters(), strict=True)
        assert all(n == m and p.dtype == q.dtype and torch.equal(p, q) for (n, p), (m, q) in pairs)
    disturb(plain)
    save_model(plain, tokenizer, tmp_path / "other", ModelConfig(path=str(tiny_model_dir)))
    other, _ = load_base(tuned.model_copy(update={"path": str(tmp_path / "other")}), noted=True)
    assert base_of(other) != base_of(noted)


@pytest.mark.parametrize("where", ["folder", "task", "run"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_load_saved_from_folder_task_and_run(
    tiny_model_dir: Path, tmp_path: Path, tuning: Any, where: str
) -> None:
    import torch

    base = ModelConfig(path=str(tiny_model_dir), tuning=tuning)
    model, tokenizer = load_base(base)
    disturb(model)
    expected = logits(model, tokenizer)
    (tmp_path / "recipe.yaml").write_text("")
    task = tmp_path / "checkpoints" / "task-10"
    save_model(model, tokenizer, task / "model", base)
    (tmp_path / "checkpoints" / "task-9" / "model").mkdir(parents=True)
    path = {"folder": task / "model", "task": task, "run": tmp_path}[where]
    loaded, saved_tokenizer = load_saved(path)
    assert torch.equal(logits(loaded, saved_tokenizer), expected)
    assert saved_tokenizer.chat_template == tokenizer.chat_template


def test_load_saved_reads_a_foreign_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    """One that peft saved by itself, so without our note of the base."""
    import torch

    model, tokenizer = load_base(ModelConfig(path=str(tiny_model_dir), tuning="lora"))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_saved(tmp_path / "adapter", trainable=True)
    assert torch.equal(logits(loaded, tokenizer), logits(model, tokenizer))
    trained = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}


def test_load_saved_reads_a_base_model(tiny_model_dir: Path, tiny: tuple[Any, Any]) -> None:
    import torch

    assert torch.equal(logits(*load_saved(tiny_model_dir)), logits(*tiny))


def test_each_wrong_lora_target_is_named(tiny: tuple[Any, Any]) -> None:
    """peft passes over a wrong name as long as another one fits."""
    with pytest.raises(ModelError) as caught:
        attach_lora(tiny[0], LoraConfig(target_modules=["q_proj", "v_porj", "c_attn"]))
    text = str(caught.value)
    assert "no module of LlamaForCausalLM is called 'v_porj' (did you mean v_proj" in text
    assert "'c_attn'" in text
    assert "q_proj'" not in text
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in text


def test_wrong_lora_target_is_found_without_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    model = ModelConfig(path=str(folder), tuning="lora", lora=LoraConfig(target_modules=["q_porj"]))
    assert "'q_porj' (did you mean q_proj" in message(model, inspect_base)


def test_lora_on_a_module_that_takes_none(tiny: tuple[Any, Any]) -> None:
    with pytest.raises(ModelError, match=r"^model\.lora\.target_modules: "):
        attach_lora(tiny[0], LoraConfig(target_modules=["input_layernorm"]))


# --- what can be wrong -------------------------------------------------------------------------


def test_missing_folder_names_a_near_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "tiny-llama")
    wrong = tmp_path / "tiny-lama"
    assert message(wrong) == f"model.path: {wrong}: no such folder\n  did you mean {folder}?"


def test_missing_gguf_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "SmolLM2-Q4_1.gguf").touch()
    text = message(tmp_path / "SmolLM2-Q4_0.gguf")
    assert "no such GGUF file" in text
    assert f"did you mean {tmp_path / 'SmolLM2-Q4_1.gguf'}?" in text
    assert "does not exist either" in message(tmp_path / "nowhere" / "x.gguf")


def test_damaged_gguf(tiny_gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    for content in (b"GGUFjunk", b"no GGUF at all, but a text", tiny_gguf.read_bytes()[:-5000]):
        file.write_bytes(content)
        assert message(file).startswith(f"model.path: {file}: the model ")
    assert not list((tmp_path / "cache" / "gguf").iterdir())  # nothing half made is kept


def test_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json, so it is no model folder" in message(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert f"name the file: {tmp_path / 'model.gguf'}" in message(tmp_path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    assert "is a file, but no GGUF file" in message(tmp_path / "model.bin")


def test_broken_config_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n "model_type": "llama",\n oops\n}')
    assert message(tmp_path).startswith(f"{tmp_path / 'config.json'}:3: is not valid JSON")


def test_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    text = message(tmp_path)
    assert "configuration cannot be read" in text
    assert "nonesuch" in text


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "bert is an encoder"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "no causal model of type 'vit'"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "saved as LlamaForSequenceClassification, without a language-model head",
        ),
    ],
)
def test_no_causal_model(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = message(tmp_path, inspect_base)
    assert "is not a causal language model: " in text
    assert why in text
    assert text == message(tmp_path)


def test_own_code_is_not_run_unasked(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConsentError) as error:
        message(tmp_path)
    assert "comes with its own Python code, which was not run" in str(error.value)
    assert "trust_remote_code: true at the top of your recipe" in str(error.value)


def test_hub_not_reachable() -> None:
    text = message("perdure-tests/no-such-model")  # HF_HUB_OFFLINE=1 in all tests
    assert text.startswith("model.path: perdure-tests/no-such-model: not a local folder")
    assert "the hub could not be reached" in text


def test_hub_id_that_cannot_be_one() -> None:
    assert "neither a local folder nor a model on the hub" in message("what is this?")


def test_missing_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert message(folder).startswith(f"model.path: {folder}: the model cannot be read")
    (folder / "model.safetensors").write_bytes(b"12345678901234567890")
    assert message(folder).startswith(f"model.path: {folder}: the model is damaged")


def test_missing_tokenizer(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "m")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "the tokenizer cannot be read" in message(folder)


def test_tokenizer_of_another_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "has 512 tokens, but the model only 100" in message(folder)


def test_chat_template_that_is_missing_or_broken(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    model = ModelConfig(path=str(tiny_model_dir), chat_template=str(file))
    assert message(model).startswith(f"model.chat_template: {file}: no such file")
    file.write_text("ok\n{% for m in messages %}")
    assert message(model).startswith(f"model.chat_template: {file}:2: is no Jinja template")


def test_unknown_attention(tiny_model_dir: Path) -> None:
    model = ModelConfig(path=str(tiny_model_dir), attention="flsh")
    assert message(model).startswith("model.attention: ")
    assert message(model, inspect_base).startswith("model.attention: ")


def test_shards_of_a_gguf(smollm2_dir: Path) -> None:
    text = message(ModelConfig(path=str(smollm2_dir), fsdp_size=2))
    assert text.startswith("model.fsdp_size: 2: a GGUF file cannot be loaded in shards")


def test_shards_without_processes(tiny_model_dir: Path) -> None:
    text = message(ModelConfig(path=str(tiny_model_dir), fsdp_size=2))
    assert "but 1 process(es) run" in text
    assert "torchrun --nproc_per_node 2" in text


def test_adapter_given_as_a_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny_model_dir), tuning="lora")
    save_model(*load_base(base), tmp_path / "a", base)
    assert "holds an adapter, not a base model" in message(tmp_path / "a")


def test_adapter_that_lost_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny_model_dir), tuning="lora")
    folder = tmp_path / "a"
    save_model(*load_base(base), folder, base)
    gone = base.model_dump() | {"path": str(tmp_path / "gone")}
    (folder / BASE_FILE).write_text(json.dumps(gone))
    text = message(folder, load_saved)
    assert text.startswith(f"{folder}: the base of this adapter: model.path: {tmp_path / 'gone'}")
    (folder / BASE_FILE).write_text("{")
    assert message(folder, load_saved).startswith(f"{folder / BASE_FILE}: is damaged")


def test_run_without_a_finished_task(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    assert f"perdure resume {tmp_path}" in message(tmp_path, load_saved)


def test_folder_that_holds_no_model(tmp_path: Path) -> None:
    assert "holds no model" in message(tmp_path, load_saved)


# --- precision ---------------------------------------------------------------------------------


def test_precision_as_asked() -> None:
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("bf16") == "bf16"
    with pytest.raises(ModelError, match="one of: auto, fp32, bf16"):
        choose_precision("fp8")


def test_precision_auto_never_picks_an_emulated_bf16() -> None:
    import torch

    chosen = choose_precision("auto", seconds=0.2)
    supported = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert chosen == "fp32" or supported


def test_a_busy_moment_does_not_choose_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 takes half the time, but for one burst of a neighbour that hits steps of one type: the
    same recipe with the same seed would else give other scores on a busy machine."""
    from perdure.models import precision

    now, steps = 0.0, 0

    def tick() -> float:  # called before and after each step, and between rounds
        nonlocal now
        now += 1e-9
        return now

    class Autocast:
        def __init__(self, device: str, *, dtype: Any, enabled: bool) -> None:
            self.enabled = enabled

        def __enter__(self) -> None:
            nonlocal now, steps
            steps += 1
            now += (0.05 if self.enabled else 0.1) * (10 if 4 <= steps < 20 else 1)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("torch.autocast", Autocast)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision.time, "perf_counter", tick)
    assert measure_speed(1.0).precision == "bf16"


def test_speed_is_measured_and_leaves_the_random_state() -> None:
    import torch

    before = torch.get_rng_state()
    speed = measure_speed(0.2)
    assert torch.equal(before, torch.get_rng_state())
    assert 0.05 < speed.fp32 < 1e6
    assert speed.best >= speed.fp32
    assert speed.precision == ("bf16" if (speed.bf16 or 0) > 1.1 * speed.fp32 else "fp32")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_weight_files_say_what_the_built_model_has(name: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig

    model = family(name, tied=tied)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    config = ModelConfig(path=str(tmp_path))
    found = counted(config, AutoConfig.from_pretrained(tmp_path))
    parameters = sum(p.numel() for p in model.parameters())
    # gpt2's and gpt_neox's old checkpoints hold buffers beside the weights: those are built.
    assert found == (None if name == "gpt2" else (type(model).__name__, parameters, parameters))


def test_weight_files_are_not_asked_where_they_do_not_tell(tiny_model_dir: Path) -> None:
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained(tiny_model_dir)
    plain = ModelConfig(path=str(tiny_model_dir))
    assert counted(plain, read) is not None
    assert counted(plain.model_copy(update={"tuning": "lora"}), read) is None
    assert counted(plain.model_copy(update={"attention": "eager"}), read) is None
    read.num_hidden_layers += 1
    assert counted(plain, read) is None


@pytest.mark.train
def test_a_saved_adapter_in_bf16_is_the_model_that_was_trained(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Rotary frequencies are buffers: rounded to bf16 they would move far tokens."""
    import torch
    from tiny_runs import write_recipe

    from perdure import Run, learn, load_recipe

    path = write_recipe(
        tmp_path, tiny_model_dir, model__tuning="lora", train__precision="bf16", general=None,
        gauges__every=0, train__max_steps=1,
    )  # fmt: skip
    recipe = load_recipe(path)
    run = Run.create(tmp_path / "run", recipe)
    learn(recipe, run)
    folder = run.path / "checkpoints/task-2/model"
    trained, _ = load_base(recipe.model, precision="bf16")
    saved, _ = load_saved(folder, precision="bf16")
    ours, theirs = (dict(model.named_buffers()) for model in (trained, saved))
    assert {n.rpartition(".")[2] for n in ours} >= {"inv_freq"}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(value.dtype == theirs[name].dtype for name, value in ours.items())
