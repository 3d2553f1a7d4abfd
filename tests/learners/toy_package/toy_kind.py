"""A kind of task from another package: texts sorted into classes, with a head that grows.

A row is `{"text": "...", "class": 3}`, two classes a task. The model needs a text's size too.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from perdure.learners.base import Learner
from perdure.models.load import load_tokenizer
from perdure.scoring import TaskScore
from perdure.streams.kinds import Format, Kind, Metric

PER_TASK, WIDTH = 2, 16


class Heads(nn.Module):
    """One linear head a task, their logits side by side."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList()

    def forward(self, states):
        return torch.cat([head(states) for head in self.parts], -1)


class ToyModel(PreTrainedModel):
    """The mean of a text's token states, and the heads on it."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Sequential(
            nn.Embedding(config.vocab_size, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()
        )
        self.heads = Heads()

    get_decoder, get_output_embeddings = lambda self: self.body, lambda self: self.heads

    def forward(self, input_ids, attention_mask, size, labels=None):
        real = attention_mask.unsqueeze(-1) * size[:, None, None]
        logits = self.heads((self.body(input_ids) * real).sum(1) / real.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class ToyLearner(Learner):
    kind = "toy"

    @classmethod
    def load(cls, recipe, precision):
        tokenizer = load_tokenizer(recipe.model)
        return ToyModel(PretrainedConfig(vocab_size=len(tokenizer))), tokenizer

    def begin_task(self, index):
        self.model.heads.parts.append(nn.Linear(WIDTH, PER_TASK))

    def rates(self, model):
        return {r"^heads\.": 10 * self.recipe.train.learning_rate}

    def encode(self, row):
        if "input_ids" in row:
            return row
        ids = self.tokenizer(row["text"])["input_ids"]
        return {"input_ids": ids, "labels": row["class"], "size": len(ids) / 10}

    def collate(self, rows):
        return {**super().collate(rows), "size": torch.tensor([row["size"] for row in rows])}

    @torch.no_grad()
    def score_task(self, task, progress):
        batch = self.collate([self.encode(row) for row in task.test])
        first = PER_TASK * int(batch["labels"].min() // PER_TASK)
        if first >= PER_TASK * len(self.model.heads.parts):
            return None
        logits = self.model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits
        own = first + logits[:, first : first + PER_TASK].argmax(-1)
        items = [
            {"id": row["text"], "score": float(guess == row["class"]), "prediction": str(guess),
             "answer": str(row["class"]), "prompt": row["text"]}
            for row, guess in zip(task.test, logits.argmax(-1).tolist(), strict=True)
        ]  # fmt: skip
        score = sum(item["score"] for item in items) / len(items)
        within = float((own == batch["labels"]).float().mean())
        return TaskScore(score, task.metric, True, items, {"accuracy_within_task": within})


SCHEMA = {"text": "the text", "class": "its class's number"}
RIGHT = Metric("right_class", "right class", needs="classes")
FORMAT = Format("toy", tuple(SCHEMA), RIGHT.name, lambda values, task: dict(values))
KIND = Kind("toy", SCHEMA, (FORMAT,), (RIGHT,), learner="toy_kind:ToyLearner")
