"""Only this file sees a number that is taken from the wrong run: an old key, a damaged file.

Everything a notebook shows comes out of the store, so that a stale or half-written result is shown
as if it had been computed. Each test has a store of its own in a temporary folder.
"""

import hashlib
import json
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from blockspectra import Spectra
from companion import store as results
from companion.store import Store, code_version, digest, environment, write_text


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path / "store"))


def spectra(value=1.0):
    alpha, beta = np.full((2, 1, 3), value), np.zeros((2, 1, 3))
    return Spectra(["a", "b"], [4, 5], alpha, beta, np.full((2, 1), 3), np.zeros((2, 1)))


def table(value=1.0):
    return pd.DataFrame({"name": ["a", "b"], "value": [value, 0.1 + 0.2]})


class Counted:
    """A computation that counts its calls."""

    def __init__(self, result):
        self.result, self.calls = result, 0

    def __call__(self):
        self.calls += 1
        return self.result


def same(left, right):
    if isinstance(left, Spectra):
        return left.names == right.names and np.array_equal(left.alpha, right.alpha)
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    return True


@pytest.mark.parametrize("result", [spectra(), table()], ids=["spectra", "table"])
def test_a_result_is_computed_once_and_then_found(result):
    compute, store = Counted(result), Store("smoke")
    first = store.get("thing", {"steps": 3}, compute)
    again = Store("smoke").get("thing", {"steps": 3}, compute)
    assert compute.calls == 1
    assert same(first, result)
    assert same(again, result)


@pytest.mark.parametrize(
    ("preset", "name", "depends_on"),
    [
        ("smoke", "thing", {"steps": 4}),
        ("smoke", "thing", {"steps": 3, "seed": 1}),
        ("smoke", "thing", {"steps": 3.0}),
        ("smoke", "other", {"steps": 3}),
        ("laptop", "thing", {"steps": 3}),
    ],
)
def test_whatever_a_result_depends_on_makes_another_result(preset, name, depends_on):
    compute = Counted(table())
    Store("smoke").get("thing", {"steps": 3}, compute)
    Store(preset).get(name, depends_on, compute)
    assert compute.calls == 2


def test_the_order_of_the_parameters_does_not_matter():
    compute = Counted(table())
    Store("smoke").get("thing", {"a": 1, "b": [2]}, compute)
    Store("smoke").get("thing", {"b": [2], "a": 1}, compute)
    assert compute.calls == 1


def test_other_code_computes_again(monkeypatch):
    compute = Counted(table())
    Store("smoke").get("thing", {}, compute)
    monkeypatch.setattr(results, "code_version", lambda module: "other")
    Store("smoke").get("thing", {}, compute)
    assert compute.calls == 2


def test_the_code_version_follows_what_computes_and_not_what_draws(monkeypatch, tmp_path):
    for name in ("lanczos.py", "figures/style.py", "models/gpt.py", "models/__init__.py"):
        write_text(tmp_path / name, "x = 1")
    monkeypatch.setattr(results, "PACKAGE", tmp_path)
    versions = {}
    for name in (None, "figures/style.py", "lanczos.py", "models/gpt.py", "models/__init__.py"):
        if name:
            write_text(tmp_path / name, "x = 2")
        versions[name] = code_version.__wrapped__()
    assert versions["figures/style.py"] == versions[None]
    assert len(set(versions.values())) == 4
    assert len(versions[None]) == 12


def test_the_code_version_of_a_module_follows_what_it_imports_and_nothing_else(
    monkeypatch, tmp_path
):
    package = tmp_path / "package"
    sources = {
        "a.py": "from package.b import thing",
        "b.py": "def later():\n    from package import models",
        "models/__init__.py": "from .gpt import GPT",
        "models/gpt.py": "from ..c import x",
        "c.py": "import package.d",
        "d.py": "import package.distance",  # only reads
        "distance.py": "import package.alone",
        "alone.py": "",
    }
    for name, source in sources.items():
        write_text(package / name, source)
    monkeypatch.setattr(results, "PACKAGE", package)
    before = code_version.__wrapped__("package.a")
    for name, source in sources.items():
        write_text(package / name, source + "\nx = 2")
        changed = code_version.__wrapped__("package.a") != before
        assert changed == (name not in ("distance.py", "alone.py")), name
        write_text(package / name, source)
    assert code_version.__wrapped__("package.d") != before
    whole = code_version.__wrapped__()
    assert whole == code_version.__wrapped__("someone.elses")
    write_text(package / "alone.py", "x = 2")
    assert code_version.__wrapped__() != whole


def test_a_result_is_keyed_by_the_code_of_the_module_that_computes_it(monkeypatch):
    seen = []
    monkeypatch.setattr(results, "code_version", lambda module: seen.append(module) or "v")
    Store("smoke").get("thing", {}, Counted(table()))
    Store("smoke").get("other", {}, table)
    assert seen == [__name__, __name__]


def test_steps_on_the_way_are_kept_apart_and_not_named_as_results():
    store = Store("smoke")
    steps = store.part("runs")
    steps.get("step", {}, lambda: table())
    assert [path.parent.name for path in store.path.rglob("step-*")] == ["runs"]
    assert store.used == {}
    again = Counted(table())
    Store("smoke").part("runs").get("step", {}, again)
    assert again.calls == 0


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x80
    path.write_bytes(bytes(content))


def edit(path):
    path.write_bytes(path.read_bytes().replace(b"0.3", b"0.4").replace(b"PK", b"QK"))


@pytest.mark.parametrize("damage", [halve, flip, edit, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("result", [spectra(), table()], ids=["spectra", "table"])
def test_a_damaged_file_is_named_and_computed_again(capsys, result, damage):
    compute, store = Counted(result), Store("smoke")
    store.get("thing", {}, compute)
    (path,) = store.path.iterdir()
    damage(path)
    found = store.get("thing", {}, compute)
    message = capsys.readouterr().err
    assert compute.calls == 2
    assert str(path) in message
    assert "Computing it again." in message
    assert message.count("\n") == 1
    assert same(found, result)
    assert same(Store("smoke").get("thing", {}, compute), result)
    assert compute.calls == 2


def test_a_store_of_ones_own_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path / "mine"))
    store = Store("laptop")
    assert store.path == tmp_path / "mine" / "laptop"
    assert store.committed is None
    store.get("thing", {}, table)
    assert [p.parent for p in (tmp_path / "mine").rglob("*.csv")] == [store.path]


def test_by_default_the_store_is_in_the_build_folder_and_reads_what_is_committed(monkeypatch):
    monkeypatch.delenv("BLOCKSPECTRA_RESULTS")
    store = Store("smoke")  # nothing is written here
    assert store.path.parts[-3:] == ("build", "results", "smoke")
    assert store.committed is None or store.committed.parts[-3:] == ("data", "results", "smoke")


def test_committed_results_are_read_and_never_written(tmp_path):
    compute, store = Counted(table()), Store("smoke")
    store.committed = tmp_path / "committed"
    store.get("thing", {}, compute)
    (path,) = store.path.iterdir()
    store.committed.mkdir()
    path.rename(store.committed / path.name)
    store.get("thing", {}, compute)
    assert compute.calls == 1
    store.get("another", {}, compute)
    assert [p.name for p in store.committed.iterdir()] == [path.name]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="Unknown preset 'huge': choose one of smoke, laptop"):
        Store("huge")


def test_what_was_read_or_written_is_listed_with_its_digest():
    store, later = Store("smoke"), Store("smoke")
    store.get("thing", {}, table)
    (path,) = store.path.iterdir()
    assert store.used == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    later.get("thing", {}, table)
    assert later.used == store.used


def test_how_products_were_taken_is_listed_for_spectra_computed_or_found():
    made = replace(spectra(), meta={"products": "one at a time (as asked)"})
    for store in (Store("smoke"), Store("smoke")):
        store.get("thing", {}, lambda: made)
        store.get("other", {}, table)
        (path,) = store.path.glob("*.npz")
        assert store.products == {path.name: "one at a time (as asked)"}


def test_writing_is_atomic_and_leaves_no_temporary(tmp_path, monkeypatch):
    path = write_text(tmp_path / "deep" / "a.txt", "één\n")
    assert path.read_text(encoding="utf-8") == "één\n"
    assert list(path.parent.iterdir()) == [path]

    def fails(*arguments):
        raise OSError("interrupted")

    monkeypatch.setattr("pathlib.Path.replace", fails)
    with pytest.raises(OSError, match="interrupted"):
        write_text(path, "other")
    assert path.read_text(encoding="utf-8") == "één\n"


def test_a_computation_that_fails_leaves_nothing_behind():
    store = Store("smoke")
    with pytest.raises(ZeroDivisionError):
        store.get("thing", {}, lambda: 1 / 0)
    assert not store.path.exists()
    assert store.used == {}


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(
    numbers=st.lists(st.floats(), min_size=2, max_size=5),
    whole=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    names=st.lists(words.filter(lambda w: not is_number(w)), min_size=2, max_size=2),
)
@examples(max_examples=100, deadline=None)
def test_a_table_comes_back_exactly(tmp_path_factory, numbers, whole, names):
    frame = pd.DataFrame(
        {"x": numbers[:2], "n": whole, "name": names, "flag": [True, False], "y, z": numbers[-2:]}
    )
    store = Store("smoke")
    store.path = tmp_path_factory.mktemp("store")
    found = store.get("table", {}, lambda: frame)
    pd.testing.assert_frame_equal(found, frame, check_exact=True)
    again = store.get("table", {}, lambda: 1 / 0)
    pd.testing.assert_frame_equal(again, frame, check_exact=True)


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
    pd.testing.assert_frame_equal(Store("smoke").get("names", {}, lambda: frame), frame)


def test_the_environment_names_commit_packages_device_and_precision():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"commit", "dirty", "code", "python", "device", "peak_memory_MiB"} <= set(found)
    assert found["packages"]["torch"].startswith("2.")
    assert found["code"] == code_version()
    assert found["float32_matmul_precision"] == "highest"
    assert 10 < found["peak_memory_MiB"] < 1e5


def test_without_git_the_commit_is_none(monkeypatch):
    def fails(*arguments, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fails)
    assert (environment()["commit"], environment()["dirty"]) == (None, None)


def test_the_key_is_the_same_on_every_machine():
    assert results._key({"b": 1, "a": ["x", 2.5]}) == "2f488adf4c"


def test_a_digest_is_the_files_sha256(tmp_path):
    path = write_text(tmp_path / "a", "abc")
    assert digest(path).startswith("ba7816bf")
