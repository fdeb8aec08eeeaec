"""Only this file sees a damaged file being taken for a whole one, or a broken-off write leaving
one behind."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspectra.files import load_arrays, save_arrays, whole

HEADER = {"name": "β", "steps": [1, 2.5, None]}
ARRAYS = {
    "matrix": np.arange(12.0).reshape(3, 4).T,
    "part": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, 1:3],  # not contiguous
    "flags": np.array([True, False]),
    "number": np.array(7),
    "nothing": np.zeros((0, 3)),
    "special": np.array([np.nan, -0.0, np.inf, 5e-324]),
}


def same(found):
    header, arrays = found
    return header == HEADER and all(
        arrays[k].dtype == v.dtype
        and arrays[k].shape == v.shape
        and arrays[k].tobytes() == v.tobytes()
        for k, v in ARRAYS.items()
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return save_arrays(tmp_path_factory.mktemp("arrays") / "deep" / "file.npz", HEADER, ARRAYS)


def test_what_was_written_is_read_to_the_bit(written):
    assert same(load_arrays(written))
    assert [path.name for path in written.parent.iterdir()] == [written.name]


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30)
def test_a_truncated_file_is_refused(written, share):
    damaged = written.with_name("truncated")
    content = written.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated is damaged"):
        load_arrays(damaged)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_a_flipped_bit_is_refused_or_changes_nothing(written, where, bit):
    content = bytearray(written.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    damaged = written.with_name("flipped")
    damaged.write_bytes(bytes(content))
    try:
        found = load_arrays(damaged)
    except ValueError:
        return
    assert same(found)  # a date in the archive, say


@pytest.mark.parametrize("change", [{"part": ARRAYS["flags"]}, {"matrix": ARRAYS["matrix"].T}])
def test_other_arrays_under_the_same_checksum_are_refused(written, tmp_path, change):
    with np.load(written) as file:
        np.savez(tmp_path / "altered.npz", **{**file, **change})
    with pytest.raises(ValueError, match="checksum differs"):
        load_arrays(tmp_path / "altered.npz")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_arrays(tmp_path / "file.npz", HEADER, ARRAYS)

    def broken(file, **arrays):
        file.write(b"PK half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("blockspectra.files.np.savez", broken)
    with pytest.raises(OSError, match="No space left"):
        save_arrays(path, HEADER | {"steps": []}, {})
    assert same(load_arrays(path))


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "none.npz")


def test_pickled_objects_are_not_run(tmp_path):
    np.savez(tmp_path / "objects.npz", header=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="damaged or no file of this kind"):
        load_arrays(tmp_path / "objects.npz")


def test_a_folder_in_the_place_is_named_and_a_link_to_nothing_replaced(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r", in writing: '.*folder'$"):
        save_arrays(tmp_path / "folder", HEADER, ARRAYS)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert same(load_arrays(save_arrays(tmp_path / "link", HEADER, ARRAYS)))
    temporary = []
    for host in ("one", "two"):  # with processes of the same number
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with whole(tmp_path / "file") as path:
            temporary.append(path)
            path.touch()
    assert temporary[0] != temporary[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "link"]


FULL = """
import resource, numpy, pathlib
from blockspectra.files import save_arrays, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
{}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize(
    "write",
    [
        "write_text(pathlib.Path('full.txt'), 'x' * 2**17)",
        "save_arrays(pathlib.Path('full.txt'), dict(), dict(x=numpy.zeros(2**17)))",
    ],
)
def test_a_disk_that_is_full_names_the_file_and_leaves_none(write, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL.format(write)], cwd=tmp_path, capture_output=True, text=True
    )
    assert re.search(r"OSError: .*, in writing: 'full.txt'$", run.stderr.strip())
    assert not list(tmp_path.iterdir())
