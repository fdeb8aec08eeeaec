"""Only this file sees advice given where the evidence is weak, or a hit rate that flatters.

The oracle is made up: reference models of which the right answer is known.
"""

import numpy as np
import pandas as pd
import pytest

from blockspectra.diagnosis.advice import BEHIND, advise, hit_rate, hits_needed, rule, threshold
from blockspectra.diagnosis.references import JS0, MEASURES, references


def table(values, gaps, *, error=1e-4, gap_error=0.005, measure=JS0, bases=None):
    """Reference models with these numbers, each an architecture of its own."""
    rows = [
        {"model": f"m{i}", "base": base, "gap": y, "gap_error": gap_error}
        | {"measure": measure, "value": x, "value_error": error}
        for i, (x, y, base) in enumerate(zip(values, gaps, bases or range(len(gaps)), strict=True))
    ]
    return pd.DataFrame(rows)


def measured(value, error=0.0):
    """Heterogeneity of a model of which every measure is the same."""
    return pd.DataFrame({"value": value, "standard_error": error}, index=list(MEASURES))


JS = [0.001, 0.002, 0.003, 0.03, 0.04, 0.05]
GAPS = [0.0, 0.01, 0.0, 0.3, 0.2, 0.4]
CLEAR = table(JS, GAPS)
REVERSED = table(JS, [0.3, 0.2, 0.4, 0.0, 0.01, 0.0])


class TestAdvice:
    @pytest.mark.parametrize(
        ("value", "error", "word"),
        [
            (0.001, 0.0001, "SGD will do"),
            (0.2, 0.01, "use Adam"),
            (0.01, 0.005, "cannot tell"),
        ],
    )
    def test_speaks_where_the_references_are_clear_and_the_model_is_too(self, value, error, word):
        advice = advise(measured(value, error), CLEAR)
        assert advice.word == word
        assert (advice.hits, advice.models, advice.needed) == (6, 6, 6)
        assert 0.003 < advice.threshold < 0.03
        assert advice.reasons

    @pytest.mark.parametrize("value", [0.0001, 0.01, 0.2])
    def test_is_silent_where_the_order_is_the_reverse_of_the_papers(self, value):
        advice = advise(measured(value), REVERSED)
        assert advice.word == "cannot tell"
        assert advice.hits < advice.needed
        assert "The evidence is weak" in advice.reasons[0]

    def test_is_silent_where_one_of_six_does_not_fit(self):
        odd = table(JS, [0.0, 0.01, 0.3, 0.3, 0.0, 0.4])
        assert advise(measured(0.2), odd).word == "cannot tell"

    def test_is_silent_where_the_gaps_are_within_their_errors(self):
        advice = advise(measured(0.2), table(JS, GAPS, gap_error=0.2))
        assert advice.hits == 6
        assert advice.word == "cannot tell"

    def test_is_silent_with_three_models_even_if_all_fit(self):
        advice = advise(measured(0.2), table([0.001, 0.002, 0.1], [0.0, 0.0, 0.3]))
        assert advice.word == "cannot tell"
        assert advice.needed == 4
        assert "no number of so few models would beat" in advice.evidence[-1]

    def test_an_obstacle_makes_it_silent_and_is_told_first(self):
        advice = advise(measured(0.2), CLEAR, ["Measured otherwise."])
        assert advice.word == "cannot tell"
        assert advice.reasons[0] == "Measured otherwise."

    @pytest.mark.parametrize(
        ("value", "counts"),
        [(0.2, ("above", "3 of 3", "0 of 3")), (1e-4, ("below", "0 of 3", "3"))],
    )
    def test_says_what_sgd_did_on_this_side_of_the_threshold(self, value, counts):
        sentence = advise(measured(value), CLEAR).reasons[-1]
        assert all(text in sentence for text in counts)

    def test_goes_by_the_measure_that_divides_the_models(self):
        noise = table([0.03, 0.001, 0.05, 0.002, 0.04, 0.003], GAPS, measure="sum, raw")
        advice = advise(measured(0.2), pd.concat([noise, CLEAR]))
        assert (advice.measure, advice.word) == (JS0, "use Adam")

    def test_on_the_projects_own_models_the_numbers_it_tells_are_theirs(self):
        known = references()
        advice = advise(measured(0.01, 0.001), known)
        gaps = known.drop_duplicates("model").set_index("model")["gap"]
        assert advice.models == len(gaps)
        behind = gaps > BEHIND
        best = {}
        for measure, part in known.groupby("measure"):  # by trying every value as the threshold
            value = part.set_index("model")["value"]
            cuts = [-1.0, *value]
            best[measure] = max(((value > cut) == behind).sum() for cut in cuts)
        assert best[advice.measure] == max(best.values())
        assert f"{max(best.values())} of {len(gaps)}" in advice.evidence[2]
        assert (advice.word == "cannot tell") or advice.hits >= advice.needed


def test_of_measures_that_are_equally_right_the_first_is_taken():
    behind = np.array([False, False, True])
    values = {"a": np.array([3.0, 1, 2]), "b": np.array([1.0, 2, 3]), "c": np.array([1.0, 1, 9])}
    assert rule(values, behind)[0] == "b"


class TestThreshold:
    def test_is_the_geometric_middle_of_the_two_values_it_separates(self):
        assert threshold([0.04, 0.01, 0.001], [True, False, False]) == pytest.approx(0.02)

    def test_of_equally_good_ones_takes_the_widest_gap(self):
        values, behind = [1, 2, 4, 100, 200], [False, True, False, True, True]
        assert threshold(values, behind) == pytest.approx(20)

    @pytest.mark.parametrize(("behind", "wanted"), [(True, 0.0), (False, np.inf)])
    def test_lies_beyond_all_where_all_are_alike(self, behind, wanted):
        assert threshold([0.1, 0.2, 0.3], [behind] * 3) == wanted

    def test_does_not_depend_on_the_order_of_the_models(self):
        values, behind = np.array(JS), np.array([0, 0, 1, 0, 1, 1], dtype=bool)
        shuffled = [3, 0, 5, 1, 4, 2]
        assert threshold(values, behind) == threshold(values[shuffled], behind[shuffled])


class TestHitRate:
    def test_a_model_left_out_has_no_say_in_its_own_answer(self):
        # two models that contradict each other: each is judged by the other alone, and wrongly
        assert hit_rate(table([0.01, 0.02], [0.0, 0.3], error=0, gap_error=0)) == (0, 0.0)

    def test_nor_has_a_variant_of_its_architecture(self):
        # a says that 0.03 and more fall behind, b that nothing does: both of b and one of a wrong
        values, gaps = [0.01, 0.02, 0.03, 0.04], [0.0, 0.3, 0.0, 0.0]
        exact = {"error": 0, "gap_error": 0}
        assert hit_rate(table(values, gaps, bases="aabb", **exact))[0] == 1

    def test_noise_is_the_spread_of_the_rate_when_numbers_are_drawn_again(self):
        hits, noise = hit_rate(table(JS, GAPS, error=0, gap_error=0.1))
        assert hits == 6
        assert 0.02 < noise < 0.5

    def test_errors_that_are_not_known_count_as_none(self):
        assert hit_rate(table(JS, GAPS, error=0, gap_error=float("nan"))) == (6, 0.0)


@pytest.mark.parametrize(
    ("behind", "needed"),
    [
        ([True] * 3 + [False] * 3, 6),  # 1/64; five would be 7/64
        ([True] * 2 + [False] * 4, 7),  # (2/3)^6 = 0.088: not even all
        ([True] * 10 + [False] * 10, 15),  # P(15 or more of 20) = 0.0207, of 14 0.058
        ([True] * 4, 5),
    ],
)
def test_hits_needed_are_those_that_guessing_reaches_in_one_case_of_twenty(behind, needed):
    assert hits_needed(behind) == needed
