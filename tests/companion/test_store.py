"""Only this file sees a number that is taken from the wrong run: an old key, a damaged file.

Everything a notebook shows comes out of the store, so that a stale or half-written result is shown
as if it had been computed. Each test has a store of its own in a temporary folder.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from blockspectra import Spectra
from companion.store import Job, NotStoredError, Store


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path / "store"))
    MADE.clear()
    RESULTS.clear()


def spectra(value=1.0):
    alpha, beta = np.full((2, 1, 3), value), np.zeros((2, 1, 3))
    return Spectra(["a", "b"], [4, 5], alpha, beta, np.full((2, 1), 3), np.zeros((2, 1)))


def table(value=1.0):
    return pd.DataFrame({"name": ["a", "b"], "value": [value, 0.1 + 0.2]})


MADE = []  # jobs that were computed, in their order
RESULTS = {}  # name of a job → what it returns; a table if nothing is said


@dataclass(frozen=True)
class Thing(Job):
    """A job that notes when it is computed."""

    NAME = "{word}"

    steps: float = 3
    rates: tuple[float, ...] = (0.1, 1.0)
    word: str = "thing"
    data: str = "digest"
    device: str = "cpu"

    def data_key(self):
        return self.data

    def compute(self, store):
        MADE.append(self)
        result = RESULTS.get(self.word, table())
        return result() if callable(result) else result


class Later(Thing):
    """The same class after its numbers have changed."""

    VERSION = 2


Later.__name__ = "Thing"


def same(left, right):
    if isinstance(left, Spectra):
        return left.names == right.names and np.array_equal(left.alpha, right.alpha)
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    return True


@pytest.mark.parametrize("result", [spectra(), table()], ids=["spectra", "table"])
def test_a_result_is_computed_once_and_then_found(result):
    RESULTS["thing"] = result
    first, again = Store("smoke").get(Thing()), Store("smoke").get(Thing())
    assert len(MADE) == 1
    assert same(first, result)
    assert same(again, result)


@pytest.mark.parametrize(
    ("preset", "job"),
    [
        ("smoke", Thing(steps=4)),
        ("smoke", Thing(rates=(0.1,))),
        ("smoke", Thing(word="other")),
        ("smoke", Thing(data="other data")),
        ("smoke", Later()),
        ("laptop", Thing()),
    ],
)
def test_whatever_a_job_declares_makes_another_result(preset, job):
    Store("smoke").get(Thing())
    Store(preset).get(job)
    assert len(MADE) == 2


def test_where_a_job_is_computed_makes_no_other_result():
    Store("smoke").get(Thing())
    Store("smoke").get(Thing(device="cuda"))
    assert len(MADE) == 1


@dataclass(frozen=True)
class WithField(Job):
    """A class to which the field ``matrix`` was added after results had been stored."""

    ADDED = {"matrix": "hessian"}  # noqa: RUF012
    steps: int = 3
    matrix: str = "hessian"
    NAME = "field"


@dataclass(frozen=True)
class WithoutField(Job):
    steps: int = 3
    NAME = "field"


WithField.__name__ = WithoutField.__name__ = "Measured"


def test_a_field_that_came_later_renames_no_older_result():
    assert WithField().stem == WithoutField().stem
    assert WithField(matrix="ggn").stem != WithoutField().stem


@dataclass(frozen=True)
class Whole(Job):
    """A job that is made of another one's results."""

    MADE_OF = (Thing,)
    part: Thing = Thing()
    NAME = "whole"


def test_the_version_of_a_part_counts_for_the_whole(monkeypatch):
    before = Whole().stem
    assert Whole(Thing(data="other data")).stem != before
    monkeypatch.setattr(Thing, "VERSION", 2)
    assert Whole().stem != before
    assert Whole().declared()["version"] == "1.2"


def test_a_key_is_the_same_on_every_machine():
    assert Thing().stem == "thing-6faf071905"


def test_a_name_needs_no_model_and_no_data():
    """Importing what declares every chapter's jobs and naming all of them opens no data file."""
    code = (
        "import builtins, pathlib\n"
        "from companion.jobs import CHAPTERS, declared\n"
        "opened, read = [], pathlib.Path.read_bytes\n"
        "pathlib.Path.read_bytes = lambda path: opened.append(path) or read(path)\n"
        "names = {job.stem for chapter in CHAPTERS for job in declared(chapter, 'laptop')}\n"
        "print(len(names) > 100, opened)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "True []\n"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(bytes(content))


def edit(path):
    path.write_bytes(path.read_bytes().replace(b"0.3", b"0.4").replace(b"PK", b"QK") + b" ")


@pytest.mark.parametrize(
    "damage", [halve, flip, edit, lambda path: path.write_bytes(b""), lambda path: path.unlink()]
)
@pytest.mark.parametrize("result", [spectra(), table()], ids=["spectra", "table"])
def test_damaged_numbers_are_named_and_computed_again(capsys, result, damage):
    RESULTS["thing"], store = result, Store("smoke")
    store.get(Thing())
    (path,) = (p for p in store.path.iterdir() if p.suffix != ".json")
    damage(path)
    found = store.get(Thing())
    message = capsys.readouterr().err
    assert len(MADE) == 2
    assert str(path.with_suffix(".json")) in message
    assert "It is computed again." in message
    assert message.count("\n") == 1
    assert same(found, result)
    assert same(Store("smoke").get(Thing()), result)
    assert len(MADE) == 2


@pytest.mark.parametrize("damage", [halve, flip, lambda path: path.write_text("[1]")])
def test_a_damaged_header_is_named_and_computed_again(capsys, damage):
    store = Store("smoke")
    store.get(Thing())
    (header,) = store.path.glob("*.json")
    damage(header)
    store.get(Thing())
    assert str(header) in capsys.readouterr().err
    assert len(MADE) == 2


def two_results():
    """Return a store that holds 1 and 2, and the headers of both."""
    store = Store("smoke")
    RESULTS["one"], RESULTS["two"] = table(1.0), table(2.0)
    for word in ("one", "two"):
        store.get(Thing(word=word))
    return store, *(store.path / f"{Thing(word=word).stem}.json" for word in ("one", "two"))


def test_two_intact_results_that_changed_places_are_not_served(capsys):
    store, one, two = two_results()
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert same(store.get(Thing(word="one")), table(1.0))
    assert same(store.get(Thing(word="two")), table(2.0))
    assert len(MADE) == 4
    assert capsys.readouterr().err.count("the result of another job") == 2


def test_a_header_that_names_the_numbers_of_another_job_is_not_served(capsys):
    store, one, two = two_results()
    content, other = (json.loads(path.read_text(encoding="utf-8")) for path in (one, two))
    one.write_text(json.dumps(content | {key: other[key] for key in ("file", "sha256")}))
    assert same(store.get(Thing(word="one")), table(1.0))
    assert "it names the numbers of another job" in capsys.readouterr().err


def test_a_store_that_only_reads_computes_nothing(monkeypatch):
    Store("smoke").get(Thing())
    monkeypatch.setenv("BLOCKSPECTRA_READ_ONLY", "1")
    assert same(Store("smoke").get(Thing()), table())
    with pytest.raises(NotStoredError, match=r"has no result thing-\w+: run make reproduce"):
        Store("smoke").get(Thing(steps=4))
    assert len(MADE) == 1


def test_a_store_of_ones_own_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path / "mine"))
    store = Store("laptop")
    assert store.path == tmp_path / "mine" / "laptop"
    assert store.committed is None
    store.get(Thing())
    assert [p.parent for p in (tmp_path / "mine").rglob("*.csv")] == [store.path]


def test_by_default_the_store_is_in_the_build_folder_and_reads_what_is_committed(monkeypatch):
    monkeypatch.delenv("BLOCKSPECTRA_RESULTS")
    store = Store("smoke")  # nothing is written here
    assert store.path.parts[-3:] == ("build", "results", "smoke")
    assert store.committed is None or store.committed.parts[-3:] == ("data", "results", "smoke")


def test_committed_results_are_read_and_never_written(tmp_path):
    store = Store("smoke")
    store.committed = tmp_path / "committed"
    store.get(Thing())
    store.path.rename(store.committed)
    store.get(Thing())
    assert len(MADE) == 1
    before = sorted(store.committed.iterdir())
    store.get(Thing(word="another"))
    assert sorted(store.committed.iterdir()) == before


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="Unknown preset 'huge': choose one of smoke, laptop"):
        Store("huge")


def test_what_was_read_or_written_is_listed_with_its_digest():
    store, later = Store("smoke"), Store("smoke")
    store.get(Thing())
    (path,) = store.path.glob("*.csv")
    assert store.used == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    later.get(Thing())
    assert later.used == store.used


def test_a_header_says_what_was_declared_and_with_what_it_was_computed():
    store = Store("smoke")
    store.get(Thing())
    (header,) = store.path.glob("*.json")
    content = json.loads(header.read_text())
    assert content["parameters"] == {
        "steps": 3,
        "rates": [0.1, 1.0],
        "word": "thing",
        "data": "digest",
    }
    assert (content["job"], content["version"], content["data"]) == ("Thing", "1", "digest")
    assert {"commit", "torch", "device", "seconds", "peak_memory_MiB"} <= set(content["made"])


def test_numbers_come_out_the_same_to_the_byte(tmp_path, monkeypatch):
    texts = []
    for name in ("a", "b"):
        monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path / name))
        for word, result in (("thing", table()), ("other", spectra())):
            RESULTS[word] = result
            Store("smoke").get(Thing(word=word))
        paths = sorted(p for p in Store("smoke").path.iterdir() if p.suffix != ".json")
        texts.append([(p.name, p.read_bytes()) for p in paths])
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]


@dataclass(frozen=True)
class Step(Thing):
    """A step on the way to a result."""

    FOLDER = "runs"


def test_steps_on_the_way_are_kept_apart_and_not_named_as_results():
    store = Store("smoke")
    store.get(Step())
    assert {path.parent.name for path in store.path.rglob("thing-*")} == {"runs"}
    assert store.used == {}
    Store("smoke").get(Step())
    assert len(MADE) == 1


def test_what_a_killed_computation_kept_is_deleted_once_the_result_is_there():
    def keeps():
        folder = Store("smoke").unfinished(Thing())
        folder.mkdir(parents=True)
        (folder / "probe.npz").write_bytes(b"half")
        return table()

    RESULTS["thing"], store = keeps, Store("smoke")
    store.get(Thing())
    assert not store.unfinished(Thing()).exists()


def test_a_computation_that_fails_leaves_nothing_behind():
    RESULTS["thing"], store = (lambda: 1 / 0), Store("smoke")
    with pytest.raises(ZeroDivisionError):
        store.get(Thing())
    assert not store.path.exists()
    assert store.used == {}


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(
    numbers=st.lists(st.floats(), min_size=2, max_size=5),
    whole=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    names=st.lists(words.filter(lambda w: not is_number(w)), min_size=2, max_size=2),
)
@examples(max_examples=50, deadline=None)
def test_a_table_comes_back_exactly(tmp_path_factory, numbers, whole, names):
    frame = pd.DataFrame(
        {"x": numbers[:2], "n": whole, "name": names, "flag": [True, False], "y, z": numbers[-2:]}
    )
    store = Store("smoke")
    store.path = tmp_path_factory.mktemp("store")
    RESULTS["thing"] = frame
    pd.testing.assert_frame_equal(store.get(Thing()), frame, check_exact=True)
    RESULTS["thing"] = lambda: 1 / 0
    pd.testing.assert_frame_equal(store.get(Thing()), frame, check_exact=True)


def is_number(word):
    try:
        float(word)
    except ValueError:
        return word.strip().lower() in ("true", "false")
    return True


@pytest.mark.parametrize(
    "name", ["NA", "None", "nan", "null", "a#b", "# a", "h.0,q", 'a "b"', " a"]
)
def test_a_name_that_looks_like_something_else_stays_a_name(name):
    frame = pd.DataFrame({"block": [name, "wte=lm_head"], "value": [1.5, float("nan")]})
    RESULTS["thing"] = frame
    pd.testing.assert_frame_equal(Store("smoke").get(Thing()), frame)


@dataclass(frozen=True)
class Slow(Job):
    """Says which process has begun, and then takes longer than anybody waits."""

    NAME = "slow"
    folder: str = ""

    def compute(self, store):
        Path(self.folder, "worker").write_text(str(os.getpid()))
        time.sleep(600)


def test_workers_end_with_a_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))
    code = (
        "from companion import jobs, store; from test_store import Slow\n"
        f"if __name__ == '__main__': jobs.measure(store.Store('smoke'), [Slow({str(tmp_path)!r})])"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    try:
        wait_for(lambda: (tmp_path / "worker").exists())
        wait_for(lambda: (tmp_path / "worker").read_text().isdigit())
    finally:
        parent.kill()
        parent.wait()
    worker = int((tmp_path / "worker").read_text())
    try:
        wait_for(lambda: not psutil.pid_exists(worker))
    finally:
        if psutil.pid_exists(worker):
            os.kill(worker, signal.SIGKILL)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
