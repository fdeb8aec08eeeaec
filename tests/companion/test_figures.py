"""Only this file sees a number written in a figure that is not the one of its data."""

import numpy as np
import pandas as pd
import pytest

from companion import figures


def test_the_title_of_a_heat_map_is_the_mean_over_pairs_of_different_blocks():
    matrix = np.array([[0.0, 0.1, 0.3], [0.1, 0.0, 0.5], [0.3, 0.5, 0.0]])
    names = ["h.0.a", "h.0.b", "h.1.a"]
    frame = pd.DataFrame(matrix, index=names, columns=names)
    figure = figures.distance_maps({"one": frame, "another": frame / 10})
    titles = [ax.get_title() for ax in figure.axes[:2]]
    assert titles == ["one\nJS⁰ = 0.3", "another\nJS⁰ = 0.03"]


@pytest.mark.parametrize("diagonal", [0.0, 9.0])
def test_the_distance_of_a_block_from_itself_does_not_count(diagonal):
    matrix = np.array([[diagonal, 0.2], [0.2, diagonal]])
    (ax, *_) = figures.distance_maps({"it": pd.DataFrame(matrix, ["a", "b"], ["a", "b"])}).axes
    assert ax.get_title() == "it\nJS⁰ = 0.2"
