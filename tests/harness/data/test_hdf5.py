"""Whatever is given for an HDF5 file is called what it is, and nothing outside of it is read or waited for."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness import capacity
from harness.data import hdf5
from harness.data.hdf5 import UnusableError, find_array, label, opened, require_room
from harness.data.manifest import read

ROWS = 600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.hdf5"


def problem(path: Path, name: str = "rewards") -> str:
    with pytest.raises(UnusableError) as error, opened(path) as file:
        find_array(file, name)
    return str(error.value)


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, rewards=np.zeros(3))
    assert zipfile.is_zipfile(content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1574\n", "Git LFS pointer; 'git lfs pull'"),
        (b"/annex/objects/SHA256E-s1--00.hdf5\n", "git-annex pointer; 'git annex get'"),
        (b"\n <!DOCTYPE HTML><html>Please log in</html>", "a web page"),
        (b"<HTML>404", "a web page"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (npz(), "a ZIP archive, as .npz files are"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip; unpack it"),
        (pickle.dumps([1.0] * 9, protocol=4), "a Python pickle"),
    ],
)
def test_what_is_no_hdf5_is_called_what_it_is(path: Path, content: bytes, kind: str) -> None:
    path.write_bytes(content)
    assert problem(path).startswith("it is no HDF5 file but ")
    assert kind in problem(path)


def test_what_has_no_name_and_what_is_empty(path: Path) -> None:
    path.write_bytes(b"observations: 7")
    assert problem(path) == "it is no HDF5 file"
    path.write_bytes(b"")
    assert problem(path) == "it is empty"


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert problem(path) == "it is a pipe, socket or device, not a file"
    link = path.with_name("link.hdf5")
    link.symlink_to(path)
    assert problem(link) == problem(path)
    manifest = path.with_name("data.hdf5.json")
    manifest.symlink_to(path)
    assert read(path.with_name("data.hdf5")) is None


def test_a_file_that_somebody_writes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["rewards"] = [1.0]
    with path.open("rb") as held:  # as HDF5 holds what it writes
        fcntl.flock(held, fcntl.LOCK_EX)
        assert problem(path).startswith("it is locked: another program has it open for writing")
    with opened(path) as file:
        assert find_array(file, "rewards") is not None


def outside(path: Path, make: Callable[[h5py.File], object]) -> str:
    with h5py.File(path, "w") as file:
        make(file)
    return problem(path)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((ROWS,), "f4")
    layout[...] = h5py.VirtualSource("gone.hdf5", "rewards", shape=(ROWS,))
    file.create_virtual_dataset("rewards", layout)


def test_content_outside_of_the_file_is_refused_unread(path: Path, tmp_path: Path) -> None:
    pipe, raw = tmp_path / "pipe", tmp_path / "raw"
    os.mkfifo(pipe)
    raw.write_bytes(bytes(4 * ROWS))
    covers = "which this one's SHA-256 does not cover"
    link = h5py.ExternalLink(str(pipe), "/rewards")
    place = f"lies in another file, {str(pipe)!r}, {covers}"
    assert outside(path, lambda file: file.__setitem__("rewards", link)) == place

    def detour(file: h5py.File) -> None:
        file["folder"] = h5py.ExternalLink(str(pipe), "/")
        file["rewards"] = h5py.SoftLink("/folder/rewards")

    assert outside(path, detour) == place
    stored = [(str(raw), 0, 4 * ROWS)]
    found = outside(path, lambda file: file.create_dataset("rewards", shape=(ROWS,), dtype="f4", external=stored))
    assert found == f"lies in another file, {covers}"
    assert "is virtual: its content lies in other files" in outside(path, virtual)


def test_soft_links_within_the_file_are_followed_but_not_for_ever(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/array"] = np.arange(3.0)
        file["group/beside"] = h5py.SoftLink("array")
        file["rewards"] = h5py.SoftLink("/group/./beside")
        file["nowhere"] = h5py.SoftLink("/group/none")
        file["circle"] = h5py.SoftLink("circle")
    with opened(path) as file:
        assert find_array(file, "rewards")[()].tolist() == [0, 1, 2]
        assert find_array(file, "nowhere") is find_array(file, "group") is find_array(file, "rewards/deeper") is None
    assert problem(path, "circle") == "is a link that leads nowhere"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "was never written: the file holds its shape alone"),
        ({"chunks": (100,)}, "was never written in full: 0 of its 6 chunks are in the file"),
        ({"chunks": (100,), "compression": "gzip"}, "was never written in full: 0 of its 6 chunks are in the file"),
    ],
)
def test_arrays_that_were_never_written(path: Path, options: dict[str, object], told: str) -> None:
    def make(file: h5py.File) -> None:
        file.create_dataset("rewards", shape=(ROWS,), dtype="f4", **options)

    assert outside(path, make) == told


def test_a_chunk_that_was_never_written(path: Path) -> None:
    def make(file: h5py.File) -> None:
        file.create_dataset("rewards", shape=(ROWS,), dtype="f4", chunks=(250,))[:500] = 1

    assert outside(path, make) == "was never written in full: 2 of its 3 chunks are in the file"


def test_a_filter_that_nobody_has(path: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((ROWS,))
    with h5py.File(path, "w") as file:
        file.create_dataset("rewards", data=np.zeros(ROWS, "f4"), chunks=(ROWS,), compression="gzip")
    # What HDF5 would not write: deflate's number, 1, becomes one that no filter has.
    content, message = path.read_bytes(), b"\x01\x00\x08\x00\x01\x00\x01\x00deflate\x00"
    assert content.count(message) == 1
    path.write_bytes(content.replace(message, b"\x0f\x7f\x08\x00\x01\x00\x01\x00strange\x00"))
    assert problem(path).startswith("is compressed by HDF5's filter 'strange' (32527), which is not installed here")


def test_claims_beyond_what_a_file_can_hold_or_memory_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("small", data=np.arange(3.0))
        # One chunk of 400 MB for three numbers: what is read is the chunk.
        file.create_dataset("wide", data=np.zeros(3, "f4"), chunks=(10**8,), maxshape=(None,), compression="gzip")
    with opened(path) as file:
        arrays = [find_array(file, "small"), find_array(file, "wide")]
        require_room(path, arrays)
        monkeypatch.setattr(capacity, "host_memory", lambda: (8 * 10**8, 7 * 10**8))
        with pytest.raises(UnusableError, match=r"takes 800 MB of memory, and 700 MB are free"):
            require_room(path, arrays)
        require_room(path, arrays[:1])
        monkeypatch.setattr(hdf5, "DENSEST", 100)
        with pytest.raises(UnusableError, match=r"it claims to hold 400 MB, and a file of 39\d kB cannot"):
            require_room(path, arrays)


@pytest.mark.parametrize(("said", "read_as"), [("demo", "demo"), ("a\x1b[31m", None), (np.arange(3), None), (5, None)])
def test_labels_are_text_or_none(path: Path, said: object, read_as: str | None) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["label"] = said
    assert label(path) == read_as
