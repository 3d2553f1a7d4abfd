"""The token tree gives what full rows give: by hand, on every decoder family, and with LoRA."""

import random

import pytest
import torch
import transformers as hf
from torch import nn

from perdure.errors import TrainingError
from perdure.models.anatomy import unwrapped
from perdure.scoring.likelihood import TokenTree, log_likelihoods, plan, score_pairs, tree_limit

pytestmark = pytest.mark.train

SIZES = {"vocab_size": 97, "hidden_size": 32, "initializer_range": 0.3}
LLAMA = dict(
    **SIZES,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
MPT = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4}
GPT_NEO = dict(**SIZES, num_layers=2, num_heads=4, max_position_embeddings=256)
LOCAL = [[["global", "local"], 1]]
FOLLOW = {  # families that take a tree
    "llama": hf.LlamaConfig(**LLAMA),
    "qwen2": hf.Qwen2Config(**LLAMA),
    "qwen3": hf.Qwen3Config(**LLAMA, head_dim=8),
    "gemma": hf.GemmaConfig(**LLAMA, head_dim=8),
    "gemma2": hf.Gemma2Config(**LLAMA, head_dim=8, sliding_window=128),
    "gemma3": hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=128),
    "gpt2": hf.GPT2Config(**GPT2, initializer_range=0.3),
    "gpt_neox": hf.GPTNeoXConfig(**NEOX),
    "mistral, a window that some sequences exceed": hf.MistralConfig(**LLAMA, sliding_window=24),
    "gpt_neo, a window over places": hf.GPTNeoConfig(
        **GPT_NEO, attention_types=LOCAL, window_size=24
    ),
}
REFUSE = {  # positions or states that only a row of its own has
    "bloom": hf.BloomConfig(**SIZES, n_layer=2, n_head=4),
    "falcon alibi": hf.FalconConfig(
        **SIZES, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "mpt": hf.MptConfig(**MPT, initializer_range=0.3),
    "lfm2": hf.Lfm2Config(**LLAMA, full_attn_idxs=[1]),
}


def build(config, attention=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"attn_implementation": attention} if attention else {}
        return hf.AutoModelForCausalLM.from_config(config, **options).float().eval()


def some_pairs(prompts=6, seed=0):
    """Prompts of different length with a common start; labels of different length that share."""
    rng = random.Random(seed)

    def tokens(n):
        return [rng.randrange(3, 97) for _ in range(n)]

    labels = [[*tokens(rng.randint(1, 5)), 2] for _ in range(4)] + [[5, 2], [5, 6, 2]]
    common = tokens(5)
    return [
        (prompt, label)
        for prompt in ([*common, *tokens(rng.randint(1, 30))] for _ in range(prompts))
        for label in labels
    ]


@torch.no_grad()
def plain(model, pairs):
    """A full row for each pair, alone, without any mask: the slow reference."""
    found = []
    for given, scored in pairs:
        ids = torch.tensor([[*given, *scored]])
        table = model(input_ids=ids).logits[0].float().log_softmax(-1)
        found.append(torch.stack([table[len(given) - 1 + k, t] for k, t in enumerate(scored)]))
    return found


def assert_equal(found, expected, tolerance=1e-4):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_a_tree_by_hand():
    tree = TokenTree()
    assert tree.add(([7, 8], [3, 9])) == [1, 2]  # 8 predicts 3, 3 predicts 9; 9 is no node
    assert tree.missing(([7, 8], [4, 9])) == 1
    assert tree.add(([7, 8], [4, 9])) == [1, 3]
    assert tree.add(([7, 5], [3])) == [4]
    assert tree.missing(([7, 5], [3])) == 0
    ids, positions, sees = tree.tensors(torch.device("cpu"))
    assert ids.tolist() == [[7, 8, 3, 4, 5]]
    assert positions.tolist() == [[0, 1, 2, 2, 1]]
    assert sees.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", [None, "eager"])  # None: the family's own, mostly sdpa
@pytest.mark.parametrize("family", FOLLOW)
def test_a_tree_equals_full_rows(family, attention):
    model, pairs = build(FOLLOW[family], attention), some_pairs()
    batches = plan(pairs, limit=tree_limit(model), batch_size=4, tokens=128)
    assert {b.as_tree for b in batches} == ({True, False} if "window" in family else {True})
    assert_equal(score_pairs(model, pairs, batch_size=4), plain(model, pairs))


@pytest.mark.parametrize("family", REFUSE)
def test_a_model_that_takes_no_tree_gets_rows(family):
    model, pairs = build(REFUSE[family]), some_pairs()
    assert tree_limit(model) == 0
    assert_equal(score_pairs(model, pairs, batch_size=4), plain(model, pairs))


def test_a_model_of_small_weights_is_judged_alike():
    assert tree_limit(build(hf.LlamaConfig(**{**LLAMA, "initializer_range": 0.02}))) > 1000
    small = {
        "vocab_size": 97,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "initializer_range": 0.02,
    }
    assert tree_limit(build(hf.MptConfig(**small))) == 0


def test_rows_padded_to_one_width_equal_rows_alone():
    model, pairs = build(FOLLOW["llama"]), some_pairs()
    assert_equal(log_likelihoods(model, pairs, as_tree=False), plain(model, pairs))


def test_a_model_wrapped_for_lora():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(build(FOLLOW["llama"]), lora).eval()
    pairs = some_pairs()
    adapted = plain(model, pairs)
    assert tree_limit(model) > 1000
    assert_equal(score_pairs(model, pairs, batch_size=4), adapted)
    with model.disable_adapter():
        assert (plain(model, pairs[:1])[0] - adapted[0]).abs().max() > 0.01
        assert_equal(score_pairs(model, pairs, batch_size=4), plain(model, pairs))
    assert unwrapped(model).__class__.__name__ == "LlamaForCausalLM"


def test_bfloat16_stays_near_to_float32():
    model, pairs = build(hf.LlamaConfig(**{**LLAMA, "initializer_range": 0.1})), some_pairs()
    exact = score_pairs(model, pairs, batch_size=4)
    found = score_pairs(model.bfloat16(), pairs, batch_size=4)
    assert all(one.dtype == torch.float32 for one in found)
    assert_equal(found, exact, tolerance=0.1)


def test_autocast_still_takes_a_tree():
    model, pairs = build(hf.LlamaConfig(**{**LLAMA, "initializer_range": 0.1})), some_pairs()
    exact = plain(model, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        assert tree_limit(model) > 1000
        assert_equal(score_pairs(model, pairs, batch_size=4), exact, tolerance=0.1)


def test_nothing_is_computed_twice_and_the_head_only_where_it_predicts():
    model, pairs = build(FOLLOW["llama"]), some_pairs()
    tree_limit(model)
    body, head = [], []
    model.model.register_forward_hook(lambda m, a, out: body.append(out[0].shape[1]))
    model.lm_head.register_forward_hook(lambda m, a, out: head.append(out.shape[1]))
    score_pairs(model, pairs, batch_size=6)
    starts = {(tuple(p), tuple(a[:k])) for p, a in pairs for k in range(len(a))}
    nodes = {(*p, *a)[: k + 1] for p, a in pairs for k in range(len(p) + len(a) - 1)}
    assert sum(body) == len(nodes)
    assert sum(head) == len(starts)
    in_rows = sum(len(p) + len(a) - 1 for p, a in pairs)
    assert in_rows > 4 * sum(body)


def test_a_plan_keeps_to_its_limits():
    pairs = some_pairs(prompts=20)
    for limit, batch_size, tokens in [(1000, 4, 64), (30, 3, 1000), (0, 5, 10), (1000, 99, 10**6)]:
        batches = plan(pairs, limit=limit, batch_size=batch_size, tokens=tokens)
        assert sorted(i for b in batches for i in b.indices) == list(range(len(pairs)))
        for batch in batches:
            lengths = [sum(map(len, pairs[i])) - 1 for i in batch.indices]
            if not batch.as_tree:
                assert len(batch.indices) <= batch_size
                assert min(lengths) > limit
                continue
            tree = TokenTree()
            for i in batch.indices:
                tree.add(pairs[i])
            assert len({tuple(pairs[i][0]) for i in batch.indices}) <= batch_size
            assert len(tree) <= limit
            assert len(tree) <= max(tokens, *lengths)


def test_a_broken_model_is_told():
    model = build(FOLLOW["llama"])
    nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(TrainingError, match="NaN as log-probability"):
        score_pairs(model, some_pairs(), batch_size=4)
