"""Only this file sees advice given where the evidence is weak, or a hit rate that flatters.

The oracle is made up: reference models of which the right answer is known.
"""

import numpy as np
import pandas as pd
import pytest

from blockspectra.diagnosis.advice import BEHIND, advise, hit_rate, hits_needed, threshold
from blockspectra.diagnosis.references import GAP, JS0, references
from blockspectra.statistics import ValueWithError


def table(js0, gaps, *, js0_error=1e-4, gap_error=0.005):
    """Reference models with these numbers."""
    rows = []
    for i, (x, y) in enumerate(zip(js0, gaps, strict=True)):
        about = {"model": f"m{i}", "family": "CNN"}
        rows.append(about | {"measure": JS0, "value": x, "standard_error": js0_error})
        rows.append(about | {"measure": GAP, "value": y, "standard_error": gap_error})
    return pd.DataFrame(rows)


JS = [0.001, 0.002, 0.003, 0.03, 0.04, 0.05]
CLEAR = table(JS, [0.0, 0.01, 0.0, 0.3, 0.2, 0.4])
REVERSED = table(JS, [0.3, 0.2, 0.4, 0.0, 0.01, 0.0])


class TestAdvice:
    @pytest.mark.parametrize(
        ("js0", "word"),
        [
            (ValueWithError(0.001, 0.0001), "SGD will do"),
            (ValueWithError(0.2, 0.01), "use Adam"),
            (ValueWithError(0.01, 0.005), "cannot tell"),
        ],
    )
    def test_speaks_where_the_references_are_clear_and_js0_is_too(self, js0, word):
        advice = advise(js0, CLEAR)
        assert advice.word == word
        assert (advice.hits, advice.models, advice.needed) == (6, 6, 6)
        assert 0.003 < advice.threshold < 0.03
        assert advice.reasons

    @pytest.mark.parametrize("js0", [0.0001, 0.01, 0.2])
    def test_is_silent_where_the_order_is_the_reverse_of_the_papers(self, js0):
        advice = advise(ValueWithError(js0, 0.0), REVERSED)
        assert advice.word == "cannot tell"
        assert advice.hits < advice.needed
        assert "The evidence is weak" in advice.reasons[0]

    def test_is_silent_where_one_of_six_does_not_fit(self):
        odd = table(JS, [0.0, 0.01, 0.3, 0.3, 0.0, 0.4])
        assert advise(ValueWithError(0.2, 0.0), odd).word == "cannot tell"

    def test_is_silent_where_the_gaps_are_within_their_errors(self):
        noisy = table(JS, [0.0, 0.01, 0.0, 0.3, 0.2, 0.4], gap_error=0.2)
        advice = advise(ValueWithError(0.2, 0.0), noisy)
        assert advice.hits == 6
        assert advice.word == "cannot tell"

    def test_is_silent_with_three_models_even_if_all_fit(self):
        few = table([0.001, 0.002, 0.1], [0.0, 0.0, 0.3])
        advice = advise(ValueWithError(0.2, 0.0), few)
        assert advice.word == "cannot tell"
        assert advice.needed == 4
        assert "so few models cannot beat guessing" in advice.evidence[-1]

    def test_an_obstacle_makes_it_silent_and_is_told(self):
        advice = advise(ValueWithError(0.2, 0.0), CLEAR, ["Measured otherwise."])
        assert advice.word == "cannot tell"
        assert advice.reasons == ("Measured otherwise.",)

    def test_on_the_projects_own_models_the_numbers_it_tells_are_theirs(self):
        advice = advise(ValueWithError(0.01, 0.001), references())
        rows = references().pivot_table(index="model", columns="measure", values="value")
        assert advice.models == len(rows)
        behind = rows[GAP] > BEHIND
        right = 0
        for model in rows.index:  # leave it out, by trying every threshold
            rest, hits = rows.drop(model), []
            for cut in sorted([0.0, *rest[JS0], np.inf]):
                hits.append((((rest[JS0] > cut) == behind.drop(model)).sum(), cut))
            best = max(hits)[0]
            cuts = [cut for n, cut in hits if n == best]
            right += all((rows.loc[model, JS0] > cut) == behind[model] for cut in cuts)
        assert advice.hits >= right
        assert (advice.word == "cannot tell") or advice.hits >= advice.needed


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
    def exact(self, values):
        return [ValueWithError(v, 0.0) for v in values]

    def test_a_model_left_out_has_no_say_in_its_own_answer(self):
        # two models that contradict each other: each is judged by the other alone, and wrongly
        hits, noise = hit_rate(self.exact([0.01, 0.02]), self.exact([0.0, 0.3]))
        assert (hits, noise) == (0, 0.0)

    def test_noise_is_the_spread_of_the_rate_when_numbers_are_drawn_again(self):
        gaps = [ValueWithError(v, 0.1) for v in (0.0, 0.01, 0.0, 0.3, 0.2, 0.4)]
        hits, noise = hit_rate(self.exact(JS), gaps)
        assert hits == 6
        assert 0.02 < noise < 0.5

    def test_errors_that_are_not_known_count_as_none(self):
        gaps = [ValueWithError(v, float("nan")) for v in (0.0, 0.01, 0.0, 0.3, 0.2, 0.4)]
        assert hit_rate(self.exact(JS), gaps) == (6, 0.0)


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
