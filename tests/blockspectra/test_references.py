"""Only this file sees a scale that is not what was measured: the package's table and the results.

A table from other results than those committed would place every model wrongly.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blockspectra.diagnosis.references import GAP, JS0, TABLE, placed, points, references, settings
from companion.claims import Finding
from companion.reference_numbers import collect

RESULTS = Path(__file__).parents[2] / "data" / "results" / "laptop"


def test_the_table_is_what_the_committed_results_give():
    wanted, found = collect(RESULTS), references()
    words = ["model", "family", "measure", "unit", "steps", "probes", "samples", "seeds"]
    again = "python -m companion.reference_numbers data/results/laptop makes it anew"
    pd.testing.assert_frame_equal(found[words], wanted[words], obj=again)
    for column in ("value", "standard_error"):
        np.testing.assert_allclose(found[column], wanted[column], rtol=1e-5, err_msg=again)


def test_gaps_are_those_that_chapter_06_judges():
    finding = Finding.load(RESULTS / "claims" / "C5.json")
    gaps = {p.model: p.gap for p in points(references())}
    for criterion in finding.criteria:
        model = criterion.text.split()[2]  # "gap of VGG (CNN)"
        assert gaps[model].mean == pytest.approx(criterion.value, rel=1e-6)
        assert gaps[model].standard_error == pytest.approx(criterion.error, rel=1e-6)


def test_it_lies_beside_the_code_so_that_a_wheel_has_it():
    assert TABLE.parent == Path(__file__).parents[2] / "lib" / "blockspectra" / "diagnosis"


def row(model, measure, value, error=0.1, **others):
    about = {"model": model, "family": "CNN", "measure": measure, "unit": "nats"}
    about |= {"steps": 30, "probes": 3, "samples": 8, "seeds": 2}
    return about | {"value": value, "standard_error": error} | others


def test_points_are_models_that_have_both_numbers():
    table = pd.DataFrame([row("a", JS0, 0.5), row("a", GAP, 0.2), row("b", JS0, 0.1)])
    (point,) = points(table)
    assert (point.model, point.js0.mean, point.gap.mean) == ("a", 0.5, 0.2)


def test_settings_that_differ_between_models_are_refused():
    table = pd.DataFrame([row("a", JS0, 0.5), row("b", JS0, 0.5, probes=4)])
    with pytest.raises(ValueError, match="differ in probes"):
        settings(table)
    assert settings(table[:1])["probes"] == 3


def test_a_model_is_placed_by_two_standard_errors_of_both():
    models = {"a": 1.0, "b": 2.0, "c": 2.7, "d": 9.0}
    table = pd.DataFrame([row(name, JS0, value) for name, value in models.items()])
    own = {"value": [2.3, 1.0], "standard_error": [0.1, np.nan]}
    found = placed(table, "mine", pd.DataFrame(own, index=[JS0, "another"]))
    (line,) = found.to_dict("records")
    assert (line["mine"], line["standard_error"]) == (2.3, 0.1)
    assert (line["below"], line["above"]) == (2, 2)  # 2.0 and 2.7 are 0.3 > 2 √0.02 = 0.28 apart
    assert {name: line[name] for name in models} == models


def test_a_difference_within_the_errors_counts_on_neither_side():
    table = pd.DataFrame([row("a", JS0, 2.1), row("b", JS0, 2.5)])
    own = pd.DataFrame({"value": [2.3], "standard_error": [0.1]}, index=[JS0])
    (line,) = placed(table, "mine", own).to_dict("records")
    assert (line["below"], line["above"]) == (0, 0)
