import io
import sys

import pytest

from pds import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("every", "lines"), [(0.0, 5), (60.0, 0)])
def test_a_file_gets_a_line_now_and_then(monkeypatch, every, lines):
    monkeypatch.setattr(progress, "EVERY", every)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in progress.progress_bar(range(4), desc="outer"):
        list(progress.progress_bar(range(3), desc="inner", leave=False))  # of which tqdm moves the cursor
    told = sys.stderr.getvalue()
    assert not {"\r", "\x1b"} & set(told)
    assert sum(line.startswith("outer") for line in told.splitlines()) >= lines
    assert ("inner" in told) is bool(lines)


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(progress.progress_bar(range(4), desc="outer"))
    assert sys.stderr.getvalue().count("\router") > 1


def test_a_state_is_told_once(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_bar(total=2, bar_format="{n} of {total}") as bar:
        for _ in range(2):
            bar.refresh()
            bar.update()
            bar.refresh()
    assert sys.stderr.getvalue() == "0 of 2\n1 of 2\n2 of 2\n"
