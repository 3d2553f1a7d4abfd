"""The two thresholds of a codebook: which value each rule chooses, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from perdure.errors import UsageError
from perdure.models.calibration import astray, calibrate, told
from perdure.models.codebook import Codebook, Group, SimilarityConfig
from perdure.models.router import Router
from perdure.models.similarity import Embedding

pytestmark = pytest.mark.unit


class Angles:
    """An encoder by hand: two texts that are degrees have the cosine of the angle between them."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


MEASURE = Embedding(Angles())
CONFIG = SimilarityConfig(name="embedding", encoder="by hand")


def book(**groups: Sequence[str]) -> Codebook:
    made = [Group(name=n, adapter=f"{n}@1", instructions=tuple(t)) for n, t in groups.items()]
    return Codebook(similarity=CONFIG, groups=tuple(made))


def degrees(cosine: float) -> str:
    return repr(float(np.degrees(np.arccos(cosine))))


def at(*cosines: float) -> list[str]:
    """Texts that are so similar to "0"."""
    return [degrees(cosine) for cosine in cosines]


def test_known_groups_are_kept_apart_and_rewordings_continue_where_both_can_be() -> None:
    found = calibrate(
        book(a=["0"], b=at(0.4)), {"a": at(0.9, 0.8)}, similarity=MEASURE
    )  # two groups at 0.4, the farthest rewording at 0.8
    assert found.threshold == pytest.approx(0.6, abs=1e-5)
    said = found.calibration
    assert said is not None
    assert said.between == pytest.approx(0.4, abs=1e-5)
    assert said.rewordings == pytest.approx([0.8, 0.9], abs=1e-5)
    assert "between the two nearest groups are at 0.400" in said.why[0]


def test_where_both_cannot_be_known_groups_stay_apart() -> None:
    """As with MiniLM: topic and sentiment at .73, a rewording at .34."""
    found = calibrate(book(a=["0"], b=at(0.73)), {"a": at(0.34, 0.67)}, similarity=MEASURE)
    assert found.threshold == pytest.approx((0.73 + 1) / 2, abs=1e-5)
    assert found.accept == pytest.approx(0.34, abs=1e-5)
    assert found.accept <= 0.34 + 1e-6


def test_the_two_nearest_groups_count() -> None:
    three = book(a=["0"], b=["90"], c=["150"])  # cosines 0, 0.5 (b and c), -0.87
    assert calibrate(three, similarity=MEASURE).threshold == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize(
    ("rewordings", "strangers", "accept"),
    [
        ([0.5, 0.6, 0.7], [0.1, 0.3], 0.4),  # half way between 0.3 and 0.5
        ([0.34, 0.5, 0.6, 0.67], [0.14, 0.29, 0.38], 0.44),  # 3/4 - 0; at .315 it is 1 - 1/3
        ([0.2, 0.6, 0.7, 0.8], [0.3, 0.4, 0.5], 0.55),  # 3/4 - 0, where 0.2 would be 1 - 1
        ([0.5], [0.6], 0.5),  # nothing tells them apart: nobody is turned away
    ],
)
def test_accept_tells_rewordings_from_strangers(
    rewordings: list[float], strangers: list[float], accept: float
) -> None:
    found = calibrate(book(a=["0"]), {"a": at(*rewordings)}, at(*strangers), similarity=MEASURE)
    assert found.accept == pytest.approx(accept, abs=1e-5)


def test_among_equally_good_values_the_one_that_turns_the_fewest_away() -> None:
    # At 0.25: 4/4 - 1/2 = 1/2; at 0.5: 2/4 - 0 = 1/2.
    found = calibrate(
        book(a=["0"]), {"a": at(0.3, 0.35, 0.6, 0.7)}, at(0.2, 0.4), similarity=MEASURE
    )
    assert found.accept == pytest.approx(0.25, abs=1e-5)
    assert found.calibration is not None
    assert found.calibration.why[1] == ("4 of 4 held-out rewordings pass, and 1 of 2 strangers")


def test_without_strangers_accept_lets_most_rewordings_pass() -> None:
    twenty = [0.3 + 0.02 * i for i in range(20)]
    for keep, accept in [(0.95, 0.32), (1.0, 0.3), (0.5, 0.5)]:  # 1, 0 and 10 are turned away
        found = calibrate(book(a=["0"]), {"a": at(*twenty)}, keep=keep, similarity=MEASURE)
        assert found.accept == pytest.approx(accept, abs=1e-5)
        why = found.calibration.why[1] if found.calibration else ""
        assert why.startswith(f"{round(keep * 20)} of 20 held-out rewordings pass")
    few = calibrate(book(a=["0"]), {"a": at(0.4, 0.5)}, similarity=MEASURE)
    assert few.accept == pytest.approx(0.4, abs=1e-5)  # 0.95 of two is both


def test_each_text_of_a_group_is_a_rewording_of_the_others() -> None:
    """Of three at 0, 60 and 90 degrees: means of (.5, 0), (.5, .866) and (0, .866)."""
    found = calibrate(book(a=["0", "60", "90"]), similarity=MEASURE)
    said = found.calibration
    assert said is not None
    assert said.rewordings == pytest.approx([0.25, 0.433013, 0.683013], abs=1e-5)
    nearest = calibrate(
        book(a=["0", "60", "90"]).model_copy(update={"score": "max"}), similarity=MEASURE
    )
    assert nearest.calibration is not None
    assert nearest.calibration.rewordings == pytest.approx([0.5, 0.866025, 0.866025], abs=1e-5)


def test_with_nothing_to_measure_the_defaults_stand_and_say_so() -> None:
    found = calibrate(book(a=["0"]), similarity=MEASURE)
    assert (found.threshold, found.accept) == (0.9, 0.3)
    assert told(found) == (
        "threshold 0.900 for the next task: one group, nothing to measure: the default\n"
        "accept 0.300: no rewording, nothing to measure: the default"
    )
    assert told(book(a=["0"])).count("the default, not measured") == 2
    given = told(book(a=["0"]), ["threshold"])
    assert given.startswith("threshold 0.900: as given, not measured\naccept 0.300: the default")
    other = book(a=["0"]).model_copy(update={"accept": 0.4})  # by whoever it was
    assert told(other).endswith("accept 0.400: as given, not measured")
    assert calibrate(book(), similarity=MEASURE).threshold == 0.9


def test_what_the_user_gave_stays() -> None:
    mine = book(a=["0"], b=at(0.4)).model_copy(update={"accept": 0.77})
    found = calibrate(mine, {"a": at(0.9)}, similarity=MEASURE, given=["accept"])
    assert found.accept == 0.77
    assert found.threshold == pytest.approx(0.65, abs=1e-5)
    assert "accept 0.770: as given" in told(found)


def test_it_is_kept_in_the_codebook(tmp_path: Path) -> None:
    start = book(a=["0"], b=at(0.4))
    found = calibrate(start, {"a": at(0.9)}, at(0.1), similarity=MEASURE)
    found.save(tmp_path)
    assert Codebook.load(tmp_path) == found
    assert start.calibration is None
    assert told(Codebook.load(tmp_path)) == told(found)


def test_a_later_measurement_has_the_same_rewordings_and_strangers() -> None:
    """Nothing is given again next week; what the group has learned since is held out no more."""
    one, other = (f"-{text}" for text in at(0.1, 0.2))  # on the side where b is not
    first = calibrate(book(a=["0"], b=at(0.4)), {"a": at(0.9, 0.6)}, [one], similarity=MEASURE)
    assert first.groups[0].rewordings == tuple(at(0.9, 0.6))
    assert calibrate(first, similarity=MEASURE) == first
    more = calibrate(first, {"a": at(0.9, 0.55)}, [other], similarity=MEASURE)
    assert more.calibration is not None
    assert more.calibration.rewordings == pytest.approx([0.55, 0.6, 0.9], abs=1e-5)
    assert more.calibration.strangers == pytest.approx([0.1, 0.2], abs=1e-5)
    learned = first.model_copy(update={"score": "max"}).continued("a", at(0.6), "t")
    again = calibrate(learned, similarity=MEASURE).calibration
    assert again is not None
    assert len(again.rewordings) == 3  # both texts of the group against each other, and one more


def test_by_words_the_specification_has_one_threshold_for_both() -> None:
    words = Codebook(groups=(Group(name="a", adapter="a@1", instructions=("red cat",)),))
    found = calibrate(words)
    assert (found.threshold, found.accept) == (0.9, 0.9)
    assert told(words).endswith("accept 0.900: as threshold")


def test_texts_that_do_not_reach_their_own_group_are_told() -> None:
    """Of a the means are 0.75, 0.75 and of b 0.93, 0.93, and of c 1; 60 degrees is nearer to c."""

    def lines(name: str | None = None, **given: object) -> list[str]:
        made = book(a=["0", "60"], b=["180", "210"], c=["60"]).model_copy(update=given)
        return list(astray(Router(made, MEASURE), name))

    (line,) = lines(accept=0.8, threshold=0.8)
    assert line == (
        "group a: 1 of its own 2 texts is below accept 0.80 by score: mean (median 0.75), so such "
        "requests fit no group; 1 of its own 2 texts is answered by another group (c): "
        "take score: max, or give the task an instruction"
    )
    assert [x[:8] for x in lines(accept=0.95, threshold=0.95)] == ["group a:", "group b:"]
    assert [x[:8] for x in lines("b", accept=0.95, threshold=0.95)] == ["group b:"]
    assert lines("b", accept=0.9) == lines("c", accept=0.9) == []
    (line,) = lines("b", accept=0.95)  # above the threshold, so that what goes on is not reached
    assert line.endswith("take score: max, or an accept not above threshold 0.90")
    (line,) = lines(score="max")  # of equally near groups the older one answers
    assert line == (
        "group c: 1 of its own 1 texts is answered by another group (a): "
        "give each task an instruction of its own"
    )
    (line,) = lines(fallback="nearest", accept=0.95, threshold=0.95)
    assert line.startswith("group a: 1 of its own 2 texts is answered by another group (c): take")
    assert list(astray(Router(book(), MEASURE))) == []


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean topic"):
        calibrate(book(topic=["0"]), {"topik": ["3"]}, similarity=MEASURE)
    for keep in (0, 1.2):
        with pytest.raises(UsageError, match="is no share"):
            calibrate(book(a=["0"]), keep=keep, similarity=MEASURE)
