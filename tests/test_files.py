"""Files that several processes want, and files known by what they hold."""

import hashlib
import os
import threading
import time

import pytest

from pds.files import make_once, sha256


def test_a_file_is_made_once_however_many_want_it(tmp_path):
    path, made = tmp_path / "folder" / "file", []

    def make():
        made.append(threading.get_ident())
        time.sleep(0.1)
        path.parent.mkdir()
        path.write_text("whole")

    wanting = [threading.Thread(target=make_once, args=(path, make)) for _ in range(5)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(made) == 1
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_what_could_not_be_made_is_tried_again(tmp_path):
    def fail():
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        make_once(tmp_path / "file", fail)
    make_once(tmp_path / "file", lambda: (tmp_path / "file").write_text("whole"))
    assert (tmp_path / "file").read_text() == "whole"


def test_a_file_that_rests_is_read_once_and_one_that_changed_again(tmp_path, monkeypatch):
    path, read = tmp_path / "weights", []
    monkeypatch.setattr("pds.files.open", lambda *args: read.append(1) or open(*args), raising=False)  # noqa: SIM115
    digest = lambda: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    path.write_bytes(b"old")
    assert sha256(path) == sha256(path) == digest()
    assert len(read) == 2, "it may be written again within a tick of the clock"
    now = time.time_ns()
    monkeypatch.setattr("pds.files.time.time_ns", lambda: now + 10_000_000_000)
    assert sha256(path) == sha256(path) == digest()
    assert len(read) == 3
    stat = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"new")  # as long, and as old by its own word
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256(path) == digest()
    (tmp_path / "other").write_bytes(b"one")
    os.replace(tmp_path / "other", path)
    assert sha256(path) == digest()
