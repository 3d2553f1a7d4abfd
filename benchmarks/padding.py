"""Share of padding in the learner's batches on the demo's tasks, at every size of the demo.

    python benchmarks/padding.py

Counts the batches of one epoch as the learner makes them (rows grouped by length) and as a plain
shuffle would.
"""

from __future__ import annotations

import torch

from perdure.config import ModelConfig
from perdure.demo import SIZES, base_model
from perdure.learners.encoding import Encoder
from perdure.learners.trainer import EpochSampler
from perdure.models import load_tokenizer
from perdure.streams.builtin import STREAMS


def padding(lengths: list[int], order: list[int], batch: int) -> float:
    real = padded = 0
    for start in range(0, len(order), batch):
        widths = [lengths[i] for i in order[start : start + batch]]
        real, padded = real + sum(widths), padded + max(widths) * len(widths)
    return 1 - real / padded


def main() -> None:
    encoder = Encoder(load_tokenizer(ModelConfig(path=str(base_model()))))
    print("size      task       tokens  grouped  shuffled")
    for name, size in SIZES.items():
        stream = STREAMS["demo"][1](0, size.rows)
        for task in stream:
            lengths = [len(encoder.encode(row)["input_ids"]) for row in task.train]
            grouped = list(EpochSampler(lengths, size.batch_size, 0))
            generator = torch.Generator().manual_seed(0)
            shuffled = torch.randperm(len(lengths), generator=generator).tolist()
            print(
                f"{name:9} {task.name:9} {sum(lengths):7} "
                f"{padding(lengths, grouped, size.batch_size):8.1%} "
                f"{padding(lengths, shuffled, size.batch_size):9.1%}"
            )


if __name__ == "__main__":
    main()
