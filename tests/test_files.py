"""Files that several processes want."""

import threading
import time

import pytest

from pds.files import make_once


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
