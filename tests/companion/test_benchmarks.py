"""Verdicts on goals, counted from files that are made up here.

Only this file sees a number set against another goal's limit, on its wrong side, or counted though
it was bought with a larger error or other results; and a missing file passed over in silence.
"""

import copy
import json

import pytest

from companion.benchmarks import (
    GOALS,
    environments,
    goals_table,
    missing,
    read,
    rows,
    unmeasured,
    verdicts,
)

ONE, GPU = {"device": "cpu", "threads": 1}, {"device": "cuda", "threads": None}
LANCZOS = "product within Lanczos, re-orthogonalised"


def product(place, method, blocks, ratio, note=""):
    return {**place, "method": method, "blocks": blocks, "ratio": ratio, "note": note}


def peer(place, name, blocks, times_ours, note="how"):
    return {**place, "peer": name, "blocks": blocks, "times_ours": times_ours, "note": note}


def growth(place, what, exponent, note=""):
    return {**place, "what": what, "exponent": exponent, "note": note}


def budget(asked, peak, digest="0a"):
    return {"asked_MiB": asked, "peak_MiB": peak, "digest": digest}


ALL_MET = {
    "products": {
        "products": [
            product(ONE, "gradient", "", 1.0),
            product(ONE, "product, shared graph", "full", 2.4),
            product(ONE, "product, shared graph", "all", 0.9),
            product(ONE, LANCZOS, "all", 0.5, "100 steps"),
            product(GPU, "product, shared graph", "all", None, "no GPU here"),
        ],
        "checks": [{**ONE, "ratio": 15.0, "note": "3% of a spectrum"}],
    },
    "peers": {
        "peers": [
            peer(ONE, "blockspectra", "all", 1.0),
            peer(ONE, "released", "all", 2.6),
            peer(ONE, "PyHessian", "full", 0.5),
            peer(GPU, "blockspectra", "all", None, "no GPU here"),
        ]
    },
    "accuracy": {
        "accuracy": [
            {"model": "GPT", "method": "released", "error": 0.05, "times_faster": 1.0},
            {"model": "GPT", "method": "tolerance", "error": 0.04, "times_faster": 8.5},
            {"model": "mixer", "method": "released", "error": 0.02, "times_faster": 1.0},
            {"model": "mixer", "method": "tolerance", "error": 0.02, "times_faster": 9.0},
        ]
    },
    "scaling": {
        "growth": [
            growth(ONE, "blocks", 0.9),
            growth(ONE, "steps", 1.0),
            growth(GPU, "blocks", None, "no GPU here"),
        ],
        "memory": [
            budget(None, 2500),
            budget(2048, 2000),
            budget(512, 600),
            budget(256, 300, None),
        ],
    },
    "ranks": {
        "cores": 2,
        "load_at_the_start": 0.1,
        "rows": [
            {"split": "by blocks", "ratio": 0.6, "same_bits": True},
        ],
    },
    "gpt2": {
        "rows": [
            {"case": "whole", "peak_GiB": 9.0, "steps": 6, "memory": "16GiB"},
            {"case": "25 blocks", "peak_GiB": 5.0, "steps": 3, "memory": "8GiB"},
        ]
    },
    "training": {"sweep": []},
}


@pytest.fixture
def found():
    return copy.deepcopy(ALL_MET)


NAMES = "block, full, checks, peers, accuracy, growth, memory, ranks, whole, 25 blocks".split(", ")
KEYS = {goal.text: key for key, goal in zip(NAMES, GOALS, strict=True)}


def results(found):
    """Result of each goal and case, by a short name of the goal."""
    return {(KEYS[row.goal], row.case): row.result for row in verdicts(found).itertuples()}


EXPECTED = {
    ("block", f"{LANCZOS}, 1 thread"): "met",
    ("full", "1 thread"): "met",
    ("checks", "1 thread"): "met",
    ("peers", "released, 1 thread"): "met",
    ("accuracy", "GPT"): "met",
    ("accuracy", "mixer"): "met",
    ("growth", "blocks, 1 thread"): "met",
    ("growth", "steps, 1 thread"): "met",
    ("growth", "blocks, GPU"): "not measured",
    ("memory", "2048"): "met",
    ("memory", "512"): "met",
    ("ranks", "by blocks"): "met",
    ("whole", "16GiB"): "met",
    ("25 blocks", "8GiB"): "met",
}


class TestVerdicts:
    def test_numbers_within_their_goals_meet_them_and_empty_rows_are_not_measured(self, found):
        assert results(found) == EXPECTED

    @pytest.mark.parametrize(
        ("file", "table", "row", "changed", "missed"),
        [
            ("products", "products", 3, {"ratio": 0.56}, ("block", f"{LANCZOS}, 1 thread")),
            ("products", "products", 1, {"ratio": 2.51}, ("full", "1 thread")),
            ("peers", "peers", 1, {"times_ours": 2.49}, ("peers", "released, 1 thread")),
            ("accuracy", "accuracy", 1, {"times_faster": 7.9}, ("accuracy", "GPT")),
            ("accuracy", "accuracy", 3, {"error": 0.021}, ("accuracy", "mixer")),
            ("scaling", "growth", 0, {"exponent": 1.06}, ("growth", "blocks, 1 thread")),
            ("scaling", "memory", 2, {"peak_MiB": 615}, ("memory", "512")),
            ("scaling", "memory", 1, {"digest": "0b"}, ("memory", "2048")),
            ("ranks", "rows", 0, {"ratio": 0.66}, ("ranks", "by blocks")),
            ("ranks", "rows", 0, {"same_bits": False}, ("ranks", "by blocks")),
            ("gpt2", "rows", 0, {"peak_GiB": 16.1}, ("whole", "16GiB")),
            ("gpt2", "rows", 1, {"peak_GiB": 8.1}, ("25 blocks", "8GiB")),
        ],
    )
    def test_a_number_beyond_its_goal_misses_this_goal_alone(
        self, found, file, table, row, changed, missed
    ):
        found[file][table][row] |= changed
        assert results(found) == EXPECTED | {missed: "not met"}

    def test_a_number_at_the_limit_meets_it(self, found):
        found["products"]["products"][3]["ratio"] = 0.55
        found["peers"]["peers"][1]["times_ours"] = 2.5
        assert results(found) == EXPECTED

    def test_what_did_not_run_says_why(self, found):
        found["peers"]["peers"][1] |= {"times_ours": None, "note": "not run: ImportError"}
        row = verdicts(found).set_index("case").loc["released, 1 thread"]
        assert (row["measured"], row["result"]) == ("", "not measured")
        assert row["note"] == "not run: ImportError"

    @pytest.mark.parametrize("file", list(ALL_MET))
    @pytest.mark.parametrize("empty", [False, True])
    def test_missing_rows_leave_their_goals_unmeasured_and_the_others_alone(
        self, found, file, empty
    ):
        content = found.pop(file)
        if empty:
            found[file] = {table: [] for table in content}
        own = {KEYS[goal.text] for goal in GOALS if goal.source[0] == file}
        kept = {which: result for which, result in EXPECTED.items() if which[0] not in own}
        assert results(found) == kept | {(key, ""): "not measured" for key in own}
        notes = verdicts(found).query("case == ''")["note"]
        assert set(notes) == ({missing(file)} if own else set())

    def test_numbers_are_written_with_three_digits_and_their_limits(self, found):
        found["peers"]["peers"][1]["times_ours"] = 2500.4
        row = verdicts(found).set_index("case").loc["released, 1 thread"]
        assert (row["measured"], row["needed"]) == ("2,500", "≥ 2.5")

    def test_every_goal_is_listed_before(self):
        assert len(goals_table()) == len(GOALS) == len({goal.text for goal in GOALS})


class TestFiles:
    def test_those_that_are_there_are_read(self, tmp_path, found):
        for name in ("ranks", "gpt2"):
            (tmp_path / f"{name}.json").write_text(json.dumps(found[name]))
        assert read(tmp_path) == {"ranks": found["ranks"], "gpt2": found["gpt2"]}

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="none with results: run `make"):
            read(tmp_path / "none")

    def test_those_of_the_repository_are_found_from_any_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "density" in read()

    def test_places_are_named(self):
        two = {"device": "cpu", "threads": 2}
        table = rows({"growth": [ONE, two, GPU]}, "growth")
        assert list(table["place"]) == ["1 thread", "2 threads", "GPU"]

    def test_empty_rows_are_listed_with_their_reason(self, found):
        table = unmeasured(found)
        assert list(table["file"]) == ["products", "peers", "scaling"]
        assert set(table["place"]) == {"GPU"}
        assert set(table["reason"]) == {"no GPU here"}
        assert unmeasured({}).empty

    def test_environments_say_commit_and_changes(self):
        env = {"commit": "0123456789abcdef", "dirty": True, "packages": {"torch": "2.13.0"}}
        content = {"environment": env | {"python": "3.11.7", "system": "Linux x86_64"}}
        row = environments({"ranks": content}).loc["ranks"]
        assert row["commit"] == "0123456789 and changes"
        assert row["processor"] == "not recorded"
