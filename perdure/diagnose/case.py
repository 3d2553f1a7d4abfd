"""One task on two models, and the measures that the rule of a diagnosis asks for.

Each measure goes into three places: the figure that `perdure.diagnose.rule` decides by,
the means that people read, and the answers row by row, which are the evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perdure.audit.audit import same_model
from perdure.audit.measuring import groups_of
from perdure.diagnose.lenient import lenient_match, named_label
from perdure.diagnose.measurements import Measured, in_front, spread
from perdure.diagnose.rule import (
    LABELLED,
    Figure,
    Figures,
    drop_figure,
    half_way_figure,
    probe_figure,
)
from perdure.scoring.probe import Array, Probed, chance_of, linear_probe
from perdure.scoring.score import TaskScore
from perdure.streams.kinds import EXACT_MATCH, LABEL_LIKELIHOOD, kind, metric
from perdure.streams.task import Row, Task


class Case:
    """Makes the measures one by one; `figures` holds what there is so far.

    Args:
        names: other spelling -> label.
        max_drop, alpha, seed: as of `perdure.diagnose.diagnose.diagnose`.
    """

    def __init__(
        self,
        base: Measured,
        tuned: Measured,
        task: Task,
        names: dict[str, str],
        max_drop: float,
        alpha: float,
        seed: int,
    ) -> None:
        self.base, self.tuned, self.task, self.names = base, tuned, task, names
        self.max_drop, self.alpha, self.seed = max_drop, alpha, seed
        self.sizes = tuned.sizes
        self.groups = groups_of(task)
        self.truth = [str(row["answer"]) for row in task.test]
        self.chance = chance_of(self.truth) if task.labels else 0.0
        self.identical = same_model(base.model, tuned.model)
        self.before: dict[str, Array] = {}
        self.after: dict[str, Array] = {}
        self.means: dict[str, dict[str, float]] = {}
        self.answers: dict[str, list[Any]] = {
            "prompt": [], "answer": list(self.truth), "id": []}  # fmt: skip
        self.adapters: dict[str, dict[str, int]] = {}
        """Of a routed side: which adapter answers how many test rows, the commonest first."""
        self.figures = Figures({}, "score", self._never())

    @property
    def fell(self) -> str:
        return self.figures.fell

    def measure(self, name: str) -> None:
        """Make one measure, or note why it cannot be made."""
        {
            "score": self._score, "written": self._written, "lenient": self._lenient,
            "forced": self._forced, "probe": self._probe, "relearned": self._relearned,
            "shots": self._shots,
        }[name]()  # fmt: skip

    def _never(self) -> dict[str, str]:
        """What this task or these sizes rule out."""
        why: dict[str, str] = {}
        if not self.task.labels:
            why |= dict.fromkeys(LABELLED, "the task has no labels")
        elif metric(self.task.metric).needs == "text":
            why["written"] = "it is the score"
        rows = len(self.task.train)
        if not rows:
            why |= dict.fromkeys(("probe", "relearned", "shots"), "the task has no train rows")
        if not self.sizes.relearn_rows or not self.sizes.relearn_steps:
            why["relearned"] = "left out"
        if kind(self.task.kind).with_examples is None:
            why["shots"] = f"rows of kind {self.task.kind} have no place for examples"
        if not self.sizes.shots:
            why["shots"] = "left out"
        return why

    # --- the score, and what is written

    def _score(self) -> None:
        self._compare("score", self.task.metric)

    def _written(self) -> None:
        self._compare("written", EXACT_MATCH.name)
        drops = {n: float((self.before[n] - self.after[n]).mean()) for n in ("score", "written")}
        sides = {n: self.figures.side(n) for n in drops}
        lost = [n for n in drops if sides[n] == "below"] or ["score"]
        fell = max(lost, key=lambda n: drops[n])
        never = dict(self.figures.unavailable)
        if fell == "score":
            never["forced"] = "it is the score that fell"
        self.figures = replace(self.figures, fell=fell, unavailable=never)

    def _compare(self, name: str, metric: str) -> None:
        ours, theirs = self.base.scored(self.task, metric), self.tuned.scored(self.task, metric)
        self.before[name], self.after[name] = _scores(ours), _scores(theirs)
        self._keep(f"base_{name}", ours)
        self._keep(f"tuned_{name}", theirs)
        self._mean(name, base=self.before[name], tuned=self.after[name])
        if self.identical and not (self.before[name] - self.after[name]).any():
            figure = Figure(self.max_drop, self.max_drop, self.max_drop, len(self.truth))
        else:
            figure = drop_figure(
                self.before[name],
                self.after[name],
                self.max_drop,
                self.alpha,
                self.seed,
                self.groups,
            )
        self._found(name, figure)

    # --- another form

    def _lenient(self) -> None:
        written = "score" if "written" in self.figures.unavailable else "written"
        for side in ("base", "tuned"):
            texts = self.answers[f"{side}_{written}"]
            if self.task.labels:
                said = [named_label(text, self.task.labels, self.names) for text in texts]
                right = [float(s == a) for s, a in zip(said, self.truth, strict=True)]
                self.answers[f"{side}_lenient"] = [s or "" for s in said]
            else:
                right = [lenient_match(t, a) for t, a in zip(texts, self.truth, strict=True)]
                self.answers[f"{side}_lenient"] = list(texts)
            self.answers[f"{side}_lenient_score"] = right
            self._mean("lenient", **{side: np.array(right)})
            if side == "tuned":
                self._brought_back("lenient", np.array(right))

    def _forced(self) -> None:
        for side, measured in (("base", self.base), ("tuned", self.tuned)):
            found = measured.scored(self.task, LABEL_LIKELIHOOD.name)
            self._keep(f"{side}_forced", found)
            self._mean("forced", **{side: _scores(found)})
            if side == "tuned":
                self._brought_back("forced", _scores(found))

    # --- the probe

    def _probe(self) -> None:
        rows = spread(self.task.train, self.sizes.probe_rows, labelled=True)
        labels = [str(row["answer"]) for row in rows]
        if len(set(labels)) < 2:
            self._not("probe", "the train rows have one label only")
            return
        ours, theirs = (self._probed(side, rows, labels) for side in (self.base, self.tuned))
        for side, probed in (("base", ours), ("tuned", theirs)):
            self.answers[f"{side}_probe"] = probed.predictions
        self._mean("probe", base=ours.correct, tuned=theirs.correct)
        lead = drop_figure(np.full(len(self.truth), self.chance), ours.correct, 0.0, self.alpha,
                           self.seed, self.groups)  # fmt: skip
        if lead.side != "above":
            self._not("probe", "in the base it is not surely above chance itself")
            return
        plain = drop_figure(ours.correct, theirs.correct, 0.0, self.alpha, self.seed, self.groups)
        self._found("probe_change", plain)
        probe = probe_figure(
            ours.correct, theirs.correct, self.chance, self.alpha, self.seed, self.groups
        )
        self._found("probe", probe)

    def _probed(self, side: Measured, rows: Sequence[Row], labels: Sequence[str]) -> Probed:
        train = side.states(self.task, rows, "train")
        test = side.states(self.task, self.task.test, "test")
        return linear_probe(train, labels, test, self.truth)

    # --- coming back

    def _relearned(self) -> None:
        rows = spread(self.task.train, self.sizes.relearn_rows, bool(self.task.labels))
        self._came_back("relearned", self.tuned.relearned(self.task, self._metric(), rows))

    def _shots(self) -> None:
        rows = spread(self.task.train, self.sizes.shots, bool(self.task.labels))
        room = self.tuned.encoder.tokenizer.model_max_length
        if self.tuned.longest(in_front(self.task, rows)) > room:
            self._not("shots", f"the prompts would be longer than the model's {room} tokens")
            return
        self._came_back("shots", self.tuned.with_shots(self.task, self._metric(), rows))

    def _came_back(self, name: str, found: TaskScore) -> None:
        self._keep(f"tuned_{name}", found)
        self._mean(name, tuned=_scores(found))
        self._brought_back(name, _scores(found))

    def _metric(self) -> str:
        return self.task.metric if self.fell == "score" else EXACT_MATCH.name

    # --- notes

    def _brought_back(self, name: str, measured: Array) -> None:
        before, after = self.before[self.fell], self.after[self.fell]
        self._found(
            name,
            half_way_figure(
                measured, before, after, self.chance, self.alpha, self.seed, self.groups
            ),
        )

    def _keep(self, name: str, score: TaskScore) -> None:
        self.answers[name] = [item["prediction"] for item in score.items]
        self.answers[f"{name}_score"] = [item["score"] for item in score.items]
        side, _, _ = name.partition("_")
        if score.items and "adapter" in score.items[0] and side not in self.adapters:
            by = [item["adapter"] for item in score.items]
            self.answers[f"{side}_adapter"] = by
            self.adapters[side] = dict(Counter(by).most_common())
        if not self.answers["prompt"]:
            self.answers["prompt"] = [item["prompt"] for item in score.items]
            self.answers["id"] = [item["id"] for item in score.items]

    def _mean(self, name: str, **sides: Array) -> None:
        self.means.setdefault(name, {}).update({k: float(v.mean()) for k, v in sides.items()})

    def _found(self, name: str, figure: Figure) -> None:
        self.figures = replace(self.figures, found={**self.figures.found, name: figure})

    def _not(self, name: str, why: str) -> None:
        never = {**self.figures.unavailable, name: why}
        self.figures = replace(self.figures, unavailable=never)


def _scores(score: TaskScore) -> Array:
    return np.array([item["score"] for item in score.items], dtype=np.float64)
