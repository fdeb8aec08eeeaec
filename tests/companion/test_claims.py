"""Only this file sees a verdict that does not follow from its numbers.

Everything below may be right and the one word that readers take home still be wrong.
"""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockspectra.files import digest, write_text
from companion import report
from companion.claims import CLAIMS, Criterion, Finding, claims_table

YES, NO = Criterion("yes", 3, 0.1, 1), Criterion("no", 3, 0.1, 1, above=False)
OPEN = Criterion("open", 1.1, 0.1, 1)


@pytest.mark.parametrize(
    ("value", "error", "threshold", "above", "holds"),
    [
        (1.3, 0.1, 1, True, True),
        (0.7, 0.1, 1, True, False),
        (1.1, 0.1, 1, True, None),
        (0.9, 0.1, 1, True, None),
        (0.7, 0.1, 1, False, True),
        (1.3, 0.1, 1, False, False),
        (1.1, 0.1, 1, False, None),
        (1.25, 0.125, 1, True, True),  # two standard errors beyond, exactly
        (0.75, 0.125, 1, True, False),
        (1, 0, 1, True, True),  # an exact count at its threshold
        (1, 0, 1, False, True),
        (0, 0, 1, True, False),
        (math.nan, 0.1, 1, True, None),
        (2, math.nan, 1, True, None),
        (math.inf, 0.1, 1, True, None),
        (2, math.inf, 1, True, None),
    ],
)
def test_a_criterion_holds_or_fails_by_two_standard_errors(value, error, threshold, above, holds):
    assert Criterion("it", value, error, threshold, above).holds is holds


@given(value=st.floats(-10, 10), error=st.floats(0, 5), threshold=st.floats(-10, 10))
def test_above_and_below_never_hold_together_but_at_the_threshold(value, error, threshold):
    above, below = (Criterion("it", value, error, threshold, side).holds for side in (True, False))
    assert (above is None) == (below is None)
    if value != threshold and above is not None:
        assert above is not below


@pytest.mark.parametrize(
    ("criteria", "verdict"),
    [
        ([YES], "supported"),
        ([YES, YES], "supported"),
        ([YES, NO], "partly"),
        ([YES, OPEN], "partly"),
        ([NO], "not supported"),
        ([OPEN], "undecided"),
        ([NO, OPEN], "not supported"),
        ([Criterion("it", math.nan, 0, 1)], "undecided"),
    ],
)
def test_the_verdicts_are_counted_from_the_criteria(criteria, verdict):
    assert Finding("C1", [YES], "", full=criteria).reproduced == verdict
    assert Finding("C1", criteria, "").reproduced == "not run"


def test_the_rerun_counts_criteria_that_agree_that_contradict_and_that_are_open():
    near, short = replace(YES, value=1.01, error=5), replace(YES, value=0.5)
    assert Finding("C1", [YES, NO], "", full=[YES, NO, OPEN]).rerun == "2 / 0 / 0"
    assert Finding("C1", [near, NO, OPEN], "", full=[YES, NO, OPEN]).rerun == "1 / 0 / 2"
    assert Finding("C1", [short, NO], "", full=[YES, NO]).rerun == "1 / 1 / 0"
    assert Finding("C1", [short, NO], "", full=[YES, NO]).held == "1 of 2"


def test_a_rerun_of_something_else_or_of_nothing_is_not_compared():
    assert Finding("C1", [YES], "", full=[NO]).rerun == "–"
    assert Finding("C1", [], "", full=[NO]).rerun == "–"
    assert Finding("C1", [YES], "").rerun == "–"


def test_robust_counts_the_variations_under_which_the_claim_holds():
    assert Finding("C1", [YES], "", variations={"a": True, "b": False}).robust == "1 of 2"
    assert Finding("C1", [YES], "").robust == "–"


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        (YES, "yes: 3.00 ± 0.10 (≥ 1: holds)"),
        (NO, "no: 3.00 ± 0.10 (≤ 1: fails)"),
        (OPEN, "open: 1.10 ± 0.10 (≥ 1: undecided)"),
        (Criterion("count", 4, 0, 3), "count: 4 (≥ 3: holds)"),
        (Criterion("none", math.nan, 0, 1), "none: nan (≥ 1: undecided)"),
    ],
)
def test_a_criterion_says_number_error_threshold_and_result(criterion, text):
    assert str(criterion) == text


def test_the_table_of_a_finding_has_a_row_for_each_criterion():
    table = Finding("C1", [YES, NO, OPEN], "", full=[NO]).table
    assert table["preset"].tolist() == ["full", *["this run"] * 3]
    assert table["criterion"].tolist() == ["no", "yes", "no", "open"]
    assert table["result"].tolist() == ["fails", "holds", "fails", "undecided"]


def test_a_finding_is_loaded_as_it_was_saved_and_its_verdict_counted_anew(tmp_path):
    odd = Criterion("zu wenig – β", math.nan, math.nan, 2)
    more = {"full": [YES], "variations": {"σ": True}}
    finding = Finding("C4", [YES, odd], "Ersatzdaten", **more)
    path = finding.save(tmp_path)
    assert path == tmp_path / "claims" / "C4.json"
    found = Finding.load(path)
    assert (found.claim, found.note, found.rerun) == ("C4", "Ersatzdaten", "1 / 0 / 0")
    assert (found.full, found.variations) == ([YES], {"σ": True})
    assert [str(c) for c in found.criteria] == [str(c) for c in finding.criteria]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "verdict" not in content  # it cannot be edited in
    content["criteria"][0]["value"] = content["full"][0]["value"] = 0
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Finding.load(path).reproduced == "not supported"


def test_an_unknown_claim_or_one_without_criteria_is_refused():
    with pytest.raises(ValueError, match="Unknown claim 'C99': choose one of C1, C2"):
        Finding("C99", [YES], "")
    with pytest.raises(ValueError, match="C1 needs at least one criterion"):
        Finding("C1", [], "")


def test_the_table_has_every_claim_and_says_what_was_not_measured(tmp_path):
    Finding("C2", [YES, NO], "small models").save(tmp_path)
    Finding("C3", [YES, NO], "small models", full=[YES]).save(tmp_path)
    table = claims_table(tmp_path, None).set_index("claim")
    assert list(table.index) == list(CLAIMS)
    assert list(CLAIMS)[:11] == [f"C{i}" for i in range(1, 12)]
    verdicts = ["reproduced", "robust", "rerun"]
    assert table.loc["C2", verdicts].tolist() == ["not run", "–", "–"]
    assert table.loc["C3", verdicts].tolist() == ["supported", "–", "1 / 0 / 0"]
    assert table.loc["C2", "measured"] == f"{YES}; {NO}"
    assert table.loc["C3", "measured"] == str(YES)  # of the largest size
    assert table.loc["C2", "note"] == "small models"
    others = table.drop(["C2", "C3"])
    assert (others["reproduced"] == "not measured").all()
    assert (others[["held", "rerun"]] == "–").all(axis=None)
    assert (others["measured"] == "").all()
    assert (table["statement"].str.len() > 20).all()


def test_of_two_stores_the_first_wins(tmp_path):
    Finding("C2", [YES], "mine").save(tmp_path / "own")
    Finding("C2", [NO], "theirs").save(tmp_path / "committed")
    Finding("C3", [NO], "theirs").save(tmp_path / "committed")
    table = claims_table(tmp_path / "own", tmp_path / "committed").set_index("claim")
    assert table.loc[["C2", "C3"], "note"].tolist() == ["mine", "theirs"]


def test_a_numpy_number_is_judged_like_a_python_one():
    from numpy import float64

    criterion = Criterion("a number", float64(27.2), float64(5.0), 10)
    assert criterion.holds is True  # numpy's own True is another object
    assert Finding("C4", [], "", full=[criterion]).reproduced == "supported"


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "another name of a value": lambda text: text.replace('"value"', '"valeu"'),
    "an unknown claim": lambda text: text.replace('"C1"', '"C99"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(damage, tmp_path):
    path = Finding("C1", [Criterion("it", 2, 0, 1)], "").save(tmp_path)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"C1.json is damaged \(.*\): run its chapter again\.$"):
        claims_table(tmp_path)


def test_a_damaged_file_is_named_in_a_terminal_too(tmp_path, monkeypatch, capsys):
    Finding("C1", [Criterion("it", 2, 0, 1)], "").save(tmp_path).write_text("{", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["report", "--print", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        report.main()
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "C1.json is damaged" in sentence


def test_a_value_edited_by_hand_is_no_finding(tmp_path):
    path = Finding("C1", [], "", full=[Criterion("it", 0.5, 0, 1)]).save(tmp_path)
    chapter = CLAIMS["C1"].chapter
    manifest = tmp_path / "manifests" / f"{chapter}.json"
    write_text(manifest, json.dumps({"wrote": {"claims/C1.json": digest(path)}}))
    assert Finding.load(path).reproduced == "not supported"
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "1.5"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"C1.json is damaged .it is not what {chapter} wrote"):
        claims_table(tmp_path)
