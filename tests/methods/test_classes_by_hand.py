"""Methods on classes by hand: the specification's examples, and plain loops beside them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from class_context import classifier, context, rows_of, write
from torch import tensor
from torch.nn import functional as F

from perdure.errors import UsageError
from perdure.mechanisms.buffer import by_class, class_quota, herded
from perdure.methods import registry
from perdure.methods.derpp import LOGITS, DERpp, DERppConfig, known, logit_distance
from perdure.methods.eaft import entropy_weight
from perdure.methods.ewc import EWC, EWCConfig, ewc_gradient, mean_of_fishers, share_of_fisher
from perdure.methods.lwf import LwF, LwFConfig, lwf_loss, old_classes_loss
from perdure.methods.replay import Replay, ReplayConfig
from perdure.protocol.labels import Classes, class_of, classes_of

pytestmark = pytest.mark.unit

INPUTS, RIGHT = [(1.0, 2.0), (3.0, -1.0), (0.5, 0.5)], [0, 1, 1]
TABLE = [[0.2, -0.1], [0.0, 0.3]]


# --- what competes


def test_classes_that_compete() -> None:
    owners = [0, 0, 1, 1, 1]
    assert classes_of(owners, 1, False) == Classes(((0, 1),), ((0, 1, 2, 3, 4),))
    assert classes_of(owners, 1, True) == Classes(((0, 1),), ((0, 1), (2, 3, 4)))
    assert classes_of(owners[:2], 0, False) == Classes((), ((0, 1),))
    assert classes_of(owners, 1, False).count == 5
    # Class 1 comes again in task 1: it competes there too, and is one class all the same.
    again = classes_of(owners, 1, True, {1: (1,)})
    assert again == Classes(((0, 1),), ((0, 1), (1, 2, 3, 4)))
    assert again.count == 5
    assert classes_of(owners, 1, False, {1: (1,)}) == classes_of(owners, 1, False)


def test_a_rows_class() -> None:
    assert class_of({"input_ids": [1], "labels": 3}) == 3
    assert class_of({"input_ids": [1], "labels": -100}) is None
    assert class_of({"input_ids": [1, 2], "labels": [1, 2]}) is None


def test_the_likelihood_is_within_the_task_where_it_is_known() -> None:
    """Specification, example 13, as a method sees it."""
    table = [[0.2], [1.1], [2.0], [0.4]]
    rows = rows_of([(1.0,)], [1])
    for within, loss in ((False, 1.473104), (True, 0.341154)):
        model = classifier(table, [2, 2], within)
        seen = context(model, rows).forward(rows)
        torch.testing.assert_close(seen.nll, tensor([loss]))
        torch.testing.assert_close(seen.logits, tensor([[0.2, 1.1, 2.0, 0.4]]))


# --- ewc


def test_the_fisher_of_single_rows_and_of_batches_by_hand() -> None:
    """Specification, example 10.1: losses, and both Fishers."""
    model = classifier(TABLE, [2])
    rows = rows_of(INPUTS, RIGHT)
    ctx = context(model, rows, index=0, batch_size=2)
    losses = ctx.forward(rows).nll
    torch.testing.assert_close(losses, tensor([1.037488, 1.313262, 0.644397]))
    name, single = "heads.parts.0.weight", tensor([[1.761101, 0.752782]] * 2)
    method = EWC(EWCConfig(rows=3))
    method.end_task(ctx)
    torch.testing.assert_close(method.fisher[name], single)
    batches = [[rows[0], rows[1]], [rows[2]]]
    found = [share_of_fisher(ctx.gradients_of(part)[name], 1, len(part), 3) for part in batches]
    torch.testing.assert_close(found[0] + found[1], tensor([[0.417940, 0.700468]] * 2))


def test_the_batch_fisher_is_that_of_some_batches() -> None:
    model = classifier(TABLE, [2])
    rows = rows_of(INPUTS, RIGHT)
    ctx = context(model, rows, index=0, batch_size=2)
    method = EWC(EWCConfig(rows=3, fisher_mode="batch"))
    method.end_task(ctx)
    found = []
    for a, b, c in itertools.permutations(range(3)):
        weight = tensor(TABLE, requires_grad=True)
        total = torch.zeros(2, 2)
        for part in ([a, b], [c]):
            x, y = tensor(INPUTS)[part], tensor(RIGHT)[part]
            (gradient,) = torch.autograd.grad(F.cross_entropy(x @ weight.T, y), weight)
            total += gradient.square() * len(part) / 3
        found.append(torch.allclose(method.fisher["heads.parts.0.weight"], total, atol=1e-6))
    assert sum(found) == 2  # a pair in either order


def test_the_penalty_by_hand() -> None:
    """Specification, example 10.2: the half sum, times lambda; and its gradient."""
    fisher, moved = tensor([0.5, 0.02, 0.0]), tensor([0.01, -0.1, 3.0])
    assert (fisher * moved.square()).sum().item() / 2 * 5000 == pytest.approx(0.625)
    pull = ewc_gradient(moved, fisher, torch.zeros(3), 5000.0)
    torch.testing.assert_close(pull, tensor([25.0, -10.0, 0.0]))


def test_the_mean_of_fishers_by_hand() -> None:
    """Specification, example 10.2: merged F of tasks with 0.4, 0.1 and 0.7."""
    first = mean_of_fishers(tensor(0.4), None, 0)
    second = mean_of_fishers(tensor(0.1), first, 1)
    assert second.item() == pytest.approx(0.25)
    assert mean_of_fishers(tensor(0.7), second, 2).item() == pytest.approx(0.4)
    # Of a head that came with the third task the earlier ones knew nothing.
    assert mean_of_fishers(tensor(0.6), None, 2).item() == pytest.approx(0.2)


def test_the_released_ewc_is_of_batches_of_all_rows_and_a_mean() -> None:
    model = classifier(TABLE, [2])
    rows = rows_of(INPUTS * 30, RIGHT * 30)  # more than `rows` takes otherwise
    method, plain = EWC(EWCConfig(official=True)), EWC(EWCConfig(fisher_mode="batch", rows=90))
    name = "heads.parts.0.weight"
    for one in (method, plain):
        one.end_task(context(model, rows, one, index=0, batch_size=2))
    first = method.fisher[name]
    torch.testing.assert_close(first, plain.fisher[name])
    write(model, tensor(TABLE) + 0.5)
    method.end_task(context(model, rows, method, index=1, batch_size=2))
    fresh = EWC(EWCConfig(fisher_mode="batch", rows=90))
    fresh.end_task(context(model, rows, fresh, index=1, batch_size=2))
    torch.testing.assert_close(method.fisher[name], (fresh.fisher[name] + first) / 2)
    torch.testing.assert_close(method.center[name], tensor(TABLE) + 0.5)
    assert method.says.startswith("ewc: official:")
    assert plain.says == ""


def test_of_a_head_that_grew_the_old_rows_are_held_alone() -> None:
    model = classifier(TABLE, [2])
    method = EWC(EWCConfig())
    name = "heads.parts.0.weight"
    method.fisher, method.center = {name: torch.ones(1, 2)}, {name: torch.zeros(1, 2)}
    method.begin_task(context(model, rows_of(INPUTS, RIGHT)))
    assert method.fisher[name].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(method.center[name], tensor([[0.0, 0.0], TABLE[1]]))
    method.fisher[name], method.center[name] = torch.ones(3, 2), torch.zeros(3, 2)
    method.begin_task(context(model, rows_of(INPUTS, RIGHT)))
    assert method.fisher == {}  # columns that were only kept for classes to come
    assert method.center == {}


# --- lwf


def test_the_distance_to_a_teacher_by_hand() -> None:
    """Specification, example 10.3."""
    teacher, student = tensor([[2.0, 1, 0], [0, 3, 1]]), tensor([[1.0, 1, 0], [1, 2, 1]])
    assert lwf_loss(student, teacher, 2.0).mean().item() == pytest.approx(0.210285, abs=1e-6)
    assert lwf_loss(student, teacher, 1.0).mean().item() == pytest.approx(0.151507, abs=1e-6)
    # A new class changes nothing, whatever it says.
    wide = [torch.cat([z, tensor([[9.0], [-3.0]])], 1) for z in (student, teacher)]
    found = old_classes_loss(wide[0], -wide[1].neg(), 2.0, [(0, 1, 2)])
    assert found.mean().item() == pytest.approx(0.210285, abs=1e-6)


def test_where_tasks_are_known_each_old_task_has_a_softmax() -> None:
    student, teacher = torch.randn(3, 6), torch.randn(3, 6)
    found = old_classes_loss(student, teacher, 2.0, [(0, 1), (2, 3, 4)])
    for row in range(3):
        total = 0.0
        for group in ([0, 1], [2, 3, 4]):
            p, q = ((z[row, group] / 2).softmax(0) for z in (teacher, student))
            total += 4 * float((p * (p / q).log()).sum())
        assert found[row].item() == pytest.approx(total, rel=1e-4)


def test_new_classes_are_not_held_to_the_head_that_was_just_drawn() -> None:
    old, drawn = [[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]], [[5.0, -5.0], [1.0, 1.0]]
    model = classifier(old + drawn, [3, 2])
    rows = rows_of(torch.eye(2), [3, 4])
    method = LwF(LwFConfig(weight=1.0, temperature=2.0))
    ctx = context(model, rows, method)
    write(model, [[1.0, 1.0], [1.0, 2.0], [0.0, 1.0], [-4.0, 8.0], [0.0, 0.5]])  # it learns
    teacher = ctx.frozen("previous")(ctx.forward(rows).batch)
    torch.testing.assert_close(teacher.logits.T, tensor(old + drawn))  # none of it live
    main = ctx.forward(rows)
    found = method.loss(ctx, main, None)["lwf"]
    assert found.item() == pytest.approx(0.210285, abs=1e-6)
    found.backward()
    assert not model.heads.parts[1].weight.grad.any()
    assert model.heads.parts[0].weight.grad.any()


def test_there_is_nothing_old_in_the_first_task() -> None:
    model, method = classifier(TABLE, [2]), LwF(LwFConfig())
    ctx = context(model, rows_of(INPUTS, RIGHT), method, index=0)
    assert method.loss(ctx, ctx.forward(rows_of(INPUTS, RIGHT)), None) == {}


# --- eaft


def test_entropy_among_the_classes_that_compete() -> None:
    some = tensor([[1.0, 1.0, -torch.inf, -torch.inf], [3.0, -torch.inf, -torch.inf, -torch.inf]])
    assert entropy_weight(some).tolist() == [pytest.approx(1.0), 0.0]
    skewed = tensor([[2.0, 0.0, -torch.inf]])
    p = tensor([2.0, 0.0]).softmax(0)
    expected = float(-(p * p.log()).sum() / tensor(2.0).log())
    assert entropy_weight(skewed).item() == pytest.approx(expected)


# --- the buffer


@pytest.mark.parametrize(
    ("size", "steps", "quotas"),
    [
        (150, [10] * 15, [15, 7, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]),
        (77, [11] * 7, [7, 3, 2, 1, 1, 1, 1]),
    ],
)
def test_the_budget_of_a_class_by_hand(size: int, steps: list[int], quotas: list[int]) -> None:
    """Specification, example 10.19."""
    seen = list(itertools.accumulate(steps))
    assert [class_quota(size, count) for count in seen] == quotas
    assert size != 150 or (seen[7], seen[7] * quotas[7]) == (80, 80)


def test_a_class_without_a_row_is_an_error() -> None:
    """Specification, example 10.19, M = 100: the released code keeps none from the 11th task on."""
    assert class_quota(100, 100) == 1
    with pytest.raises(UsageError, match="buffer_size: 100: fewer rows than the 110 classes"):
        class_quota(100, 110)


def test_shrinking_takes_from_the_end_of_each_class() -> None:
    kept = [{"class": c, "row": i} for c in (0, 1) for i in range(4)]
    found = by_class(kept, 6, 3)
    assert [(e["class"], e["row"]) for e in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_herding_by_hand() -> None:
    """Specification, example 10.20."""
    features = tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    # Rows 2 and 3 are equally near; the specification's rounding takes 3, here it is the first.
    found = herded(features, 3)
    assert found == [2, 3, 0]
    mean = tensor([0.6, 0.6])
    apart = [(mean - features[found[:k]].mean(0)).norm().item() for k in (1, 2, 3)]
    assert apart == [pytest.approx(x, abs=1e-6) for x in (0.2, 0.141421, 0.240370)]
    assert herded(7 * features, 9) == [2, 3, 0, 1]
    nearer = tensor([[1.0, 0.0], [0.0, 1.0], [0.599, 0.8007], [0.8, 0.6]])
    assert herded(nearer, 3) == [3, 2, 0]
    features, left, total = F.normalize(torch.randn(12, 5), dim=-1).double(), list(range(12)), 0
    chosen: list[int] = []
    for k in range(1, 6):  # slow and plain
        apart = [float((features.mean(0) - (total + features[i]) / k).norm()) for i in left]
        chosen.append(left.pop(apart.index(min(apart))))
        total = total + features[chosen[-1]]
    assert herded(features, 5) == chosen


@pytest.mark.parametrize("choose", ["random", "herding"])
def test_a_buffer_by_class_over_two_tasks(choose: str) -> None:
    model = classifier([[0.1, 0.2]] * 4, [2, 2])
    features = F.normalize(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), dim=-1)
    rows = rows_of(features, [0, 1] * 8)
    method = Replay(ReplayConfig(buffer_size=9, balance="class", choose=choose))
    method.end_task(context(model, rows, index=0))
    first = [(e["class"], e["row"]["_feature"]) for e in method.kept]
    assert [c for c, _ in first] == [0] * 4 + [1] * 4
    if choose == "herding":
        for name in (0, 1):
            order = herded(features[name::2], 4)
            assert [f for c, f in first if c == name] == features[name::2][order].tolist()
    later = rows_of(features[:8], [2, 2, 2, 2, 2, 2, 2, 3])
    method.end_task(context(model, later))
    assert [e["class"] for e in method.kept] == [0, 0, 1, 1, 2, 2, 3]
    now = [(e["class"], e["row"]["_feature"]) for e in method.kept]
    assert now[:4] == [*first[:2], *first[4:6]]


def test_half_of_a_batch_is_kept_rows_drawn_with_replacement() -> None:
    model = classifier([[0.5, -0.5], [0.1, 0.9], [1.0, 0.0], [0.3, 0.2]], [2, 2])
    method = Replay(ReplayConfig(buffer_size=4, mix="half", balance="class"))
    assert method.halves
    method.end_task(context(model, rows_of(torch.randn(8, 2), [0, 1] * 4), index=0))
    rows = rows_of(torch.randn(3, 2), [2, 3, 2])
    ctx = context(model, rows, method, batch_size=3)
    method.begin_task(ctx)
    drawn = []
    for step in range(30):
        ctx._session.begin_micro_batch(step, 1)
        some = method.replay(ctx)
        assert len(some) == 3
        drawn.append([tuple(row["_feature"]) for row in some])
    assert any(len(set(step)) < 3 for step in drawn)  # a row may come twice in a step
    assert len({row for step in drawn for row in step}) == 4
    ctx._session.begin_micro_batch(0, 1)
    extra = ctx.forward(method.replay(ctx))
    main = ctx.forward(rows)
    terms = method.loss(ctx, main, extra)
    loss = main.nll.mean() + sum(terms.values())  # the trainer's own loss, and the terms
    torch.testing.assert_close(loss, torch.cat([main.nll, extra.nll]).mean())


# --- DER++


NEW = [[0.5, 0.2, 1.0, -0.5], [0.0, 0.1, 0.3, 0.9]]
OLD = [[1.2, -0.3, 0.4, 0.0], [0.1, 0.8, -0.2, 0.5]]
TEACHER = [[1.0, 0.0], [0.0, 1.5]]


def dark(table: Any, sizes: Any, within: bool, **options: Any) -> tuple[DERpp, Any, Any]:
    """A method with something kept, a model whose logits of row i are table[i], and its rows."""
    method = DERpp(DERppConfig(**options))
    method.kept = [{"task": "old", "row": {}}]
    model = classifier(tensor(table).T.tolist(), sizes, within)
    return method, model, torch.eye(len(table))


@pytest.mark.parametrize("target", ["stored", "snapshot"])
def test_derpp_by_hand(target: str) -> None:
    """Specification, example 10.5; the teacher says the same from the buffer and from a copy."""
    before = torch.zeros(4, 4)
    before[2:, :2] = tensor(TEACHER)
    method, model, eye = dark(before.tolist(), [2, 2], False, target=target)
    new, old = rows_of(eye[:2], [2, 3]), rows_of(eye[2:], [0, 1])
    ctx = context(model, new, method)
    write(model, tensor([*NEW, *OLD]).T)
    for row, said in zip(old, TEACHER, strict=True):
        row[LOGITS] = tensor([said])
    main, extra = ctx.forward(new), ctx.forward(old)
    terms = method.loss(ctx, main, extra)
    assert main.nll.mean().item() == pytest.approx(0.850581, abs=1e-6)
    assert terms["derpp_ce"].item() == pytest.approx(0.5 * 0.818714, abs=1e-6)
    assert terms["derpp_logits"].item() == pytest.approx(0.5 * 0.1575, abs=1e-6)
    total = main.nll.mean() + sum(terms.values())
    assert total.item() == pytest.approx(1.338688, abs=1e-6)


@pytest.mark.parametrize(("new_too", "total"), [(False, 0.489893), (True, 0.555762)])
def test_derpp_within_tasks_by_hand(new_too: bool, total: float) -> None:
    """Specification, example 10.6, and the released code's treatment of new rows."""
    # rows: new, old; columns: the old task's two, the new task's two
    before = [[7.0, 7.0, 0.0, 0.3], [0.8, -0.2, 7.0, 7.0]]
    method, model, eye = dark(before, [2, 2], True, target="snapshot", distill_new_rows=new_too)
    new, old = rows_of(eye[:1], [2]), rows_of(eye[1:], [0])
    ctx = context(model, new, method)
    write(model, tensor([[-3.0, 4.0, 0.5, -0.5], [1.0, 0.0, 9.0, -9.0]]).T)
    main, extra = ctx.forward(new), ctx.forward(old)
    terms = method.loss(ctx, main, extra)
    found = main.nll.mean() + sum(terms.values())
    assert found.item() == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("quiet", [True, False])
def test_derpps_snapshot_has_no_dropout_unless_it_is_asked_for(quiet: bool) -> None:
    """Released code leaves its teachers in train mode: `teacher_eval: false`."""
    method, model, eye = dark(
        torch.zeros(2, 4).tolist(), [2, 2], False, target="snapshot", teacher_eval=quiet
    )
    new, old = rows_of(eye[:1], [2]), rows_of(eye[1:], [0])
    ctx = context(model, new, method)
    main, extra = ctx.forward(new), ctx.forward(old)
    modes: list[bool] = []
    hook = ctx.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = ctx.model.training
    method.loss(ctx, main, extra)
    hook.remove()
    assert set(modes) == {not quiet}
    assert ctx.model.training is before


def test_the_released_derpp() -> None:
    method = DERpp(DERppConfig(official=True))
    found = method.config
    assert (found.mix, found.target, found.distill_new_rows) == ("half", "snapshot", True)
    assert not found.teacher_eval  # its teachers stay in train mode
    assert method.halves
    assert method.requires.teacher == "previous"
    assert method.says.startswith("derpp: official:")
    assert DERpp(DERppConfig()).says == ""


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("derpp", {"ratio": 0.5}, "ratio"),
        ("ewc", {"rows": 8}, "rows"),
        ("ewc", {"tasks": "online", "decay": 0.5}, "decay"),
    ],
)
def test_what_the_released_code_leaves_no_choice_of(
    name: str, options: dict[str, Any], key: str
) -> None:
    with pytest.raises(UsageError, match=f"{key}.*has no effect"):
        registry.load_config(name, {**options, "official": True})


def test_rows_kept_at_unlike_times_count_what_was_known_then() -> None:
    student = tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    target = tensor([[0.0, 0.0, torch.nan], [1.0, 2.0, 5.0]])
    torch.testing.assert_close(logit_distance(student, target), tensor([2.5, 4 / 3]))


def test_what_is_known_of_a_classifier_of_a_given_size() -> None:
    """Classes 3 and 1 were learned of five: which numbers they have decides nothing."""
    found = known(tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), ((3,), (1,)))
    expected = tensor([[torch.nan, 1.0, torch.nan, 3.0, torch.nan]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_stored_logits_are_of_learned_classes_alone() -> None:
    """Four columns, of which the rows' two classes are learned."""
    method = DERpp(DERppConfig(buffer_size=4))
    model = classifier([[0.1, 0.4], [0.7, -0.2], [0.3, 0.3], [-0.5, 0.1]], [4])
    rows = rows_of(torch.randn(2, 2), [1, 3])
    ctx = context(model, rows, method, index=0)
    ctx._session.classes = Classes((), ((1, 3),))
    method.end_task(ctx)
    for entry in method.kept:
        assert entry["logits"].isfinite().tolist() == [[False, True, False, True]]


def test_stored_logits_are_those_of_the_end_of_a_rows_task() -> None:
    method = DERpp(DERppConfig(buffer_size=4))
    model = classifier([[0.1, 0.4], [0.7, -0.2]], [2])
    rows = rows_of(torch.randn(4, 2), [0, 1, 1, 0])
    method.end_task(context(model, rows, method, index=0))
    said = {tuple(e["row"]["_feature"]): e["logits"].clone() for e in method.kept}
    for feature, logits in said.items():
        torch.testing.assert_close(logits, tensor([feature]) @ tensor([[0.1, 0.7], [0.4, -0.2]]))
    model.grow(2, 1)
    write(model, torch.randn(4, 2))
    ctx = context(model, rows_of(torch.randn(4, 2), [2, 3, 3, 2]), method)
    method.begin_task(ctx)
    extra = ctx.forward(method.replay(ctx))
    assert extra.logits.shape == (8, 4)
    expected = torch.stack([
        (z[:2] - said[tuple(row["_feature"])][0]).square().mean()
        for z, row in zip(extra.logits, extra.rows, strict=True)
    ]).mean()  # fmt: skip
    found = method.loss(ctx, ctx.forward(ctx.task.train), extra)["derpp_logits"]
    assert found.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    method.end_task(ctx)
    assert sorted(e["logits"].shape[1] for e in method.kept) == [2, 2, 4, 4]
    for entry in method.kept:
        if entry["task"] == "task 0":
            assert torch.equal(entry["logits"], said[tuple(entry["row"]["_feature"])])
