"""Files shared by several processes, and files known by their content."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pds.cache import cache_folder, make_once
from pds.errors import PDSError, escaped
from pds.files import open_lock, open_regular, read_bytes, remove_leftovers, sha256, user_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))


def irregular(folder):
    """Paths of every kind of irregular file, and of files that are too large."""
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    for name, target in {"zero": "/dev/zero", "random": "/dev/urandom", "null": "/dev/null", "tty": "/dev/tty"}.items():
        (folder / name).symlink_to(target)
    (folder / "linked_fifo").symlink_to("fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("absent")
    (folder / "inner").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    os.chdir(folder)  # names of sockets are short
    listening.bind("socket")
    with open(folder / "sparse", "wb") as file:
        file.truncate(100 << 30)
    return [*sorted(folder.iterdir()), folder / "absent", folder / "sparse" / "under_a_file", folder / ("long" * 100)]


def test_nothing_but_a_regular_file_of_limited_size_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = irregular(tmp_path / "paths")
    assert len(paths) == 14
    for path in paths:
        with pytest.raises(PDSError, match=path.name[:50]):
            open_regular(path)
    (tmp_path / "paths" / "file").write_bytes(b"x" * 10)
    (tmp_path / "paths" / "link").symlink_to("file")
    assert read_bytes(tmp_path / "paths" / "link", most=10) == b"x" * 10
    with pytest.raises(PDSError, match="has 10 bytes, and may have 9"):
        read_bytes(tmp_path / "paths" / "file", most=9)


def test_a_lock_follows_no_link_and_empties_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("kept")
    os.close(open_lock(precious))
    assert precious.read_text() == "kept"
    for path in irregular(tmp_path / "paths"):
        if path.name not in ("absent", "sparse", "under_a_file"):
            with pytest.raises(OSError, match=path.name):
                open_lock(path)
    make_once(tmp_path / "made", lambda: (tmp_path / "made").write_text("whole"))
    (lock,) = (tmp_path / "cache" / "locks").iterdir()
    lock.unlink()
    lock.symlink_to(precious)
    (tmp_path / "made").unlink()
    with pytest.raises(PDSError, match="PDS_CACHE"):
        make_once(tmp_path / "made", lambda: None)
    assert precious.read_text() == "kept"


def test_one_that_waits_for_a_lock_and_one_that_comes_later_hold_the_same(tmp_path):
    """The first fails; while the second makes the file, a third must wait for it."""
    path, inside, most = tmp_path / "file", [], []
    first_in, second_waits = threading.Event(), threading.Event()

    def fail():
        first_in.set()
        second_waits.wait()
        raise OSError("no network")

    def make():
        inside.append(1)
        time.sleep(0.1)
        most.append(len(inside))
        inside.pop()
        raise OSError("again")  # so that each of them makes

    def want(how):
        with contextlib.suppress(OSError):
            make_once(path, how)

    threads = [threading.Thread(target=want, args=(fail,)), *(threading.Thread(target=want, args=(make,)) for _ in range(4))]
    threads[0].start()
    first_in.wait()
    threads[1].start()
    time.sleep(0.05)
    second_waits.set()
    time.sleep(0.05)
    for thread in threads[2:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_path_of_the_user_that_means_nothing_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path("a/~x") == Path("a/~x")
    for path in ("~nobody-of-this-name/x", "~\0", "a\0b", "\ud800", "~no\nbody/\x1b[2Jx"):
        with pytest.raises(PDSError, match=r"is no path .*: write the whole path") as raised:
            user_path(path)
        assert str(raised.value).isprintable()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(PDSError, match="is no path"):
        user_path("~/x")
    monkeypatch.delenv("PDS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(PDSError, match="set PDS_CACHE"):
        cache_folder()


def test_messages_are_printable_and_of_a_limited_length():
    random = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(map(chr, random.integers(0, 0xE000, random.integers(1, 5000))))
        message = str(PDSError(f"begin {text} end"))
        assert message.isprintable() and message.startswith("begin") and message.endswith("end")
        assert len(message) < 2000 * 6 + 10  # as each character may be escaped by six
    assert escaped("α, Δ – 像", 80) == "α, Δ – 像"
    assert escaped("x" * 30 + "y" * 30, 35) == "x" * 20 + " ... " + "y" * 10


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
    monkeypatch.setattr("pds.files.open_regular", lambda *args, **most: read.append(1) or open_regular(*args, **most))
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
    path.write_bytes(b"new")  # of the same length and time stamp
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256(path) == digest()
    (tmp_path / "other").write_bytes(b"one")
    os.replace(tmp_path / "other", path)
    assert sha256(path) == digest()


def test_only_old_leftovers_of_killed_processes_are_removed(tmp_path):
    old, fresh, other = tmp_path / f".{'a' * 32}.tmp", tmp_path / f".{'b' * 32}.tmp", tmp_path / ".mine.tmp"
    for path in (old, fresh, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert not old.exists() and fresh.exists() and other.exists()
    remove_leftovers(tmp_path / "nowhere")
