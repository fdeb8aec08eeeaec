"""Real data, out of files that Python packages or this repository ship: no download, ever.

Train and test parts are fixed and disjoint whatever the seed; the seed draws the order, the crops,
the windows and the masks. See ``data/README.md`` for what each data set is and is not.
"""
# ruff: noqa: F401

from companion.datasets.images import digits, fashion, mnist, photographs
from companion.datasets.samples import Data, batches, stream
from companion.datasets.sequences import dialogue, encyclopedia, shakespeare
from companion.datasets.sources import DataError
