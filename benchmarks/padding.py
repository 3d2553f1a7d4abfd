"""Share of padding in the learner's batches on the demo's tasks; its sizes train the same.

    python benchmarks/padding.py

Counts the micro-batches of one task's training as the learner makes them (rows grouped by length)
and as a plain shuffle would. In micro-batches of 4 rows at most 10% of the tokens may be padding;
the demo's, which are short, have 8.
"""

from __future__ import annotations

import torch

from perdure.demo import MICRO_BATCH, SIZES, base_model
from perdure.engine.sampler import EpochSampler
from perdure.models import load_tokenizer
from perdure.models.chat import Encoder
from perdure.recipe.schema import ModelConfig
from perdure.streams.named.demo import STREAMS


def padding(lengths: list[int], order: list[int], batch: int) -> float:
    real = padded = 0
    for start in range(0, len(order), batch):
        widths = [lengths[i] for i in order[start : start + batch]]
        real, padded = real + sum(widths), padded + max(widths) * len(widths)
    return 1 - real / padded


def main() -> None:
    encoder = Encoder(load_tokenizer(ModelConfig(path=str(base_model()))))
    print("rows  task       tokens  grouped  shuffled")
    size = SIZES[0]
    rows = size.steps * size.batch
    for task in STREAMS["demo"][1](0, None):
        lengths = [len(encoder.encode(row)["input_ids"]) for row in task.train]
        grouped = list(EpochSampler(lengths, size.batch, 0))[:rows]
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()[:rows]
        for batch in (4, MICRO_BATCH):
            print(
                f"{batch:4}  {task.name:9} {sum(lengths[i] for i in grouped):7} "
                f"{padding(lengths, grouped, batch):8.1%} {padding(lengths, shuffled, batch):9.1%}"
            )


if __name__ == "__main__":
    main()
