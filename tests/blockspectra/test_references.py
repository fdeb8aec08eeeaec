"""Only this file sees a scale that is not what was measured: the package's table and the results.

A table from other results than those committed would place every model wrongly.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blockspectra.diagnosis.references import JS0, TABLE, placed, references, settings
from companion import setups
from companion.experiments import initial_spectra
from companion.experiments.initial_spectra import over_seeds
from companion.experiments.predictors import SPECTRAL, comparisons
from companion.parameters import at_preset
from companion.rate_search import gap
from companion.reference_numbers import MEASURES, collect
from companion.store import declare, stored

RESULTS = Path(__file__).parents[2] / "data" / "results" / "laptop"


def test_the_table_is_what_the_committed_numbers_of_the_chapter_give():
    pd.testing.assert_frame_equal(references(), collect(RESULTS), rtol=1e-8)


@pytest.mark.parametrize("name", ["vgg", "resnet-short"])
def test_and_these_are_what_the_spectra_and_runs_give(name):
    parameters, title = at_preset("22_predictors", "full"), setups.ARCHITECTURES[name].title
    rows = references().query("model == @title").set_index("measure")
    spectra = stored(
        [j for j in declare(initial_spectra.jobs, parameters) if j.model == name], "full"
    )
    (run,) = stored([j for j in declare(comparisons, parameters) if j.model == name], "full")
    assert tuple(rows[["gap", "gap_error"]].iloc[0]) == pytest.approx(gap(run), rel=1e-5)
    for measure, theirs in MEASURES.items():
        wanted = over_seeds(spectra, SPECTRAL[theirs])[title]
        assert tuple(rows.loc[measure, ["value", "value_error"]]) == pytest.approx(wanted, rel=1e-4)


def test_it_lies_beside_the_code_so_that_a_wheel_has_it():
    assert TABLE.parent == Path(__file__).parents[2] / "lib" / "blockspectra" / "diagnosis"


def row(model, value, error=0.1, **others):
    about = {"model": model, "measure": JS0, "value": value, "value_error": error}
    return about | {"steps": 30, "probes": 4, "samples": 32, "seeds": 2} | others


def test_settings_that_differ_between_models_are_refused():
    table = pd.DataFrame([row("a", 0.5), row("b", 0.5, probes=3)])
    with pytest.raises(ValueError, match="differ in probes"):
        settings(table)
    assert settings(table[:1])["probes"] == 4


@pytest.mark.parametrize(
    ("value", "error", "below", "above"),
    [
        (2.3, 0.1, 2, 2),  # 2.0 and 2.7 are 0.3 > 2 √0.02 = 0.28 apart
        (2.3, 0.2, 1, 1),  # and less than 2 √0.05
        (1.1, np.nan, 0, 3),
    ],
)
def test_a_model_is_placed_by_two_standard_errors_of_both(value, error, below, above):
    table = pd.DataFrame([row(f"m{x}", x) for x in (1.0, 2.0, 2.7, 9.0)])
    own = {"value": [value, 1.0], "standard_error": [error, np.nan]}
    (line,) = placed(table, pd.DataFrame(own, index=[JS0, "another"])).to_dict("records")
    assert (line["this model"], line["least"], line["largest"]) == (value, 1.0, 9.0)
    assert (line["below"], line["above"]) == (below, above)
