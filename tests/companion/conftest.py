"""A store of one's own for every test that asks for one."""

import pytest

from companion.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))
    return Store("smoke")
