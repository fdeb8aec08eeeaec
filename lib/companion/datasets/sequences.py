"""Data sets of text: windows of characters or tokens, to continue or to fill in."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from companion.datasets import bpe, text
from companion.datasets.samples import Data, build, generator

IGNORED = -100  # the target where there is nothing to predict (cross-entropy's default)


def _choose(starts: np.ndarray, windows: int, context: int, rng) -> np.ndarray:
    """Positions (windows, context + 1) of randomly chosen windows, out of the possible starts."""
    if windows > len(starts):
        raise ValueError(
            f"{windows} windows of context {context} are too many: this text has {len(starts)} "
            "that do not overlap, so use fewer windows or a shorter context."
        )
    return rng.permutation(starts)[:windows, None] + np.arange(context + 1)


def _next(stream: np.ndarray, context: int, windows: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw windows (windows, context) that do not overlap; each id's target is the next one."""
    starts = np.arange(0, max(len(stream) - context, 0), context)
    window = stream[_choose(starts, windows, context, rng)]
    return window[:, :-1].copy(), window[:, 1:].copy()


@lru_cache(maxsize=1)
def characters() -> tuple[str, dict[str, np.ndarray]]:
    """Return the alphabet, and each part's text as places in it."""
    plays = {split: text.plays(split) for split in ("train", "test")}
    alphabet = "".join(sorted(set("".join(plays.values()))))
    codes = np.array([ord(c) for c in alphabet])
    ids = {
        split: np.searchsorted(codes, np.frombuffer(play.encode("utf-32-le"), dtype="<u4"))
        for split, play in plays.items()
    }
    return alphabet, {split: array.astype(np.int64) for split, array in ids.items()}


def shakespeare(split: str = "train", context: int = 64, windows: int = 500, seed: int = 0) -> Data:
    """Predict the next character, of 76, of Shakespeare's plays; windows do not overlap.

    The text is ``SPEAKER:``, the speech, an empty line, without stage directions and headings. Four
    plays (`companion.datasets.text.TEST_PLAYS`) are the test part, the other 34 the train part.
    """
    alphabet, ids = characters()
    inputs, targets = _next(ids[split], context, windows, generator(seed, int(split == "test")))
    name = f"Shakespeare, {context} characters, {split}"
    english = "the character-level English corpus of GPT2-nano"
    return build(name, text.PLAYS, inputs, targets, english, len(alphabet))


@lru_cache(maxsize=2)
def _dialogue_tokens(split: str) -> tuple[np.ndarray, list[int]]:
    """All pairs of utterances in a row, and where each pair starts."""
    stream, starts = [], []
    for said, reply in text.utterance_pairs(split):
        starts.append(len(stream))
        stream += [*bpe.encode(f"{said}\n{reply}"), bpe.END_OF_TEXT]
    return np.array(stream), starts


def dialogue(
    split: str = "train",
    context: int = 64,
    windows: int = 500,
    vocabulary: int = 1000,
    seed: int = 0,
) -> Data:
    r"""Fill in masked tokens of dialogue: something said in a play, and the reply.

    A window starts with a pair ``said \n reply <|endoftext|>`` and goes on with the pairs that
    follow until it is full, so there is no padding. In *every* window exactly
    ``k = max(1, round(0.15 * context))`` positions, drawn without replacement, are replaced by the
    mask id and have a target: all windows have the same k, so that the mean over the masked tokens
    of a batch equals the mean over its windows of each window's mean. (BERT keeps or exchanges a
    fifth of its chosen tokens; here all are masked.)

    Ids are the ``vocabulary - 2`` most frequent tokens of GPT-2's encoding in the train part, then
    one for all other tokens, then the mask's. Plays are split as in `shakespeare`.
    """
    _, table = bpe.frequent(_dialogue_tokens("train")[0], vocabulary - 1)
    stream, pairs = _dialogue_tokens(split)
    starts: list[int] = []
    for start in pairs:
        if (not starts or start >= starts[-1] + context) and start + context <= len(stream):
            starts.append(start)
    rng = generator(seed, int(split == "test"))
    where = _choose(np.array(starts), windows, context, rng)[:, :-1]
    whole = bpe.renumber(stream[where], table)
    count = max(1, round(0.15 * context))
    masked = np.argsort(rng.random(whole.shape), axis=1, kind="stable")[:, :count]
    inputs, targets = whole.copy(), np.full_like(whole, IGNORED)
    np.put_along_axis(inputs, masked, vocabulary - 1, axis=1)
    np.put_along_axis(targets, masked, np.take_along_axis(whole, masked, axis=1), axis=1)
    name = f"dialogue, {context} tokens, {split}"
    files = text.PLAYS + bpe.PATHS
    return build(name, files, inputs, targets, "Cornell Movie-Dialogs", vocabulary)


@lru_cache(maxsize=2)
def _article_tokens(split: str) -> np.ndarray:
    articles = text.articles(split)
    return np.array([i for a in articles for i in (*bpe.encode(a), bpe.END_OF_TEXT)])


def encyclopedia(
    split: str = "train",
    context: int = 64,
    windows: int = 500,
    vocabulary: int = bpe.SIZE,
    seed: int = 0,
) -> Data:
    """Predict the next token of encyclopedia articles, in GPT-2's encoding of 50,257 tokens.

    ``<|endoftext|>`` follows each article. Every tenth article is in the test part. A smaller
    ``vocabulary`` has the most frequent tokens of the train part and, last, one id for all others.
    """
    stream = _article_tokens(split)
    if vocabulary != bpe.SIZE:
        _, table = bpe.frequent(_article_tokens("train"), vocabulary)
        stream = bpe.renumber(stream, table)
    inputs, targets = _next(stream, context, windows, generator(seed, int(split == "test")))
    name = f"encyclopedia, {context} tokens, {split}"
    return build(name, text.ARTICLES + bpe.PATHS, inputs, targets, "OpenWebText", vocabulary)
