"""Only this file sees a number written in a figure that is not the one of its data."""

import numpy as np
import pandas as pd
import pytest

from companion import figures


@pytest.mark.parametrize("own", [0.0, 9.0])  # of a block from itself: it does not count
def test_the_title_of_a_heat_map_is_the_mean_over_pairs_of_different_blocks(own):
    matrix = np.array([[own, 0.1, 0.3], [0.1, own, 0.5], [0.3, 0.5, own]])
    names = ["h.0.a", "h.0.b", "h.1.a"]
    frame = pd.DataFrame(matrix, index=names, columns=names)
    figure = figures.distance_maps({"one": frame, "another": frame / 10})
    titles = [ax.get_title() for ax in figure.axes[:2]]
    assert titles == ["one\nJS⁰ = 0.3", "another\nJS⁰ = 0.03"]
