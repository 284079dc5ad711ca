"""The report on a machine: end to end at tiny sizes without the lab, what fails in it, and where it goes on."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pds.errors import PDSError
from pds.files import write_json
from pds.speed import report
from pds.speed.options import OPTIONS, GraphedScore
from pds.speed.parts import PARTS, SMALL, Part, Plan
from pds.speed.text import written

ROOT = Path(__file__).parents[2]
ABSENT = ("hydra", "omegaconf", "wandb", "yaml", "matplotlib", "jinja2", "optuna", "scipy", "torchvision", "cleanfid")
CPU = torch.device("cpu")
OTHER_SIZES = ("size256", "size1024", "deep")  # of the same function
ONCE = [name for name in PARTS if name not in OTHER_SIZES]


def test_it_runs_without_the_lab(tmp_path):
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text("raise ImportError('the report needs no such package')")
    script, given = ROOT / "experiments" / "gpu_report.py", ["--small", "--device", "cpu", "--folder", str(tmp_path / "gpu")]
    program = f"""
import runpy, sys
sys.argv = [{str(script)!r}, *{given!r}, "--parts", *{ONCE!r}]
runpy.run_path({str(script)!r}, run_name="__main__")
assert "pds.lab" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": f"{absent}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(ONCE, "done")
    failures = {key for part in found["parts"].values() for key, row in part["rows"].items() if "failed" in row}
    assert failures and all("graph" in key for key in failures)  # which need a GPU
    assert found["parts"]["runner"]["rows"]["two processes"]["equal"]
    text = (tmp_path / "gpu" / "gpu.md").read_text()
    assert all(f"## {part.title}\n\ndone" in text for part in (PARTS[name] for name in ONCE))
    assert "float32, batch 2: 0 host waits a step" in text and "| float32 |     2 |" in text
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == ["gpu.json", "gpu.md"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A report of one part, whose second row fails."""

    def rows(plan, device, place):
        yield "first", lambda: {"value": len(taken.append("first") or taken)}
        yield "second", lambda: torch.zeros(2) @ torch.zeros(3)
        yield "third", lambda: {"value": len(taken.append("third") or taken)}

    taken = []
    monkeypatch.setitem(PARTS, "training", Part(1, "A part", rows))
    write_json(
        tmp_path / report.FILE,
        {"machine": {}, "parts": {"training": {"state": "done", "seconds": 1.0, "rows": {}, "cut": []}}},
    )
    return tmp_path


def test_a_failure_is_a_row_with_its_reason_and_a_row_is_taken_once(folder):
    for _ in range(2):
        report.measure("training", SMALL, CPU, folder)
    rows = report.read(folder)["parts"]["training"]["rows"]
    assert list(rows) == ["first", "second", "third"]
    assert (rows["first"]["value"], rows["third"]["value"]) == (1, 2)
    assert rows["second"]["failed"].startswith("RuntimeError: ") and "\n" not in rows["second"]["failed"]
    assert "- failed: second: RuntimeError: " in written(report.read(folder))


class Watched(multiprocessing.get_context("fork").Process):  # a fork server would not know the part of a test
    """A process whose time is over as soon as it is stuck, whatever the clock says."""

    def start(self):
        self.reads, Watched.writes = os.pipe()
        super().start()
        os.close(Watched.writes)

    def join(self, timeout=None):
        told = os.read(self.reads, 1)  # nothing: this process and all that it started have ended
        assert timeout is not None or not told, "what it started lives on"
        if not told:
            super().join()

    @staticmethod
    def stuck():
        if os.fork():  # like a compiler, or the processes of a run
            os.write(Watched.writes, b".")
        time.sleep(60)
        os.write(Watched.writes, b".")


def test_a_part_goes_on_where_it_was_cut_and_a_row_is_cut_twice_at_most(folder, monkeypatch):
    def rows(plan, device, place):
        cut = report.read(place)["parts"]["runner"]["cut"]
        if not cut:
            Watched.stuck()
        yield "first", lambda: {"value": len(cut)}
        yield "long", Watched.stuck
        yield "deadly", lambda: os._exit(3)
        yield "last", lambda: {"value": len(cut)}

    monkeypatch.setitem(PARTS, "runner", Part(1, "A part with a long row", rows))
    monkeypatch.setattr(report, "processes", lambda: SimpleNamespace(Process=Watched))
    assert report.run(folder, SMALL, CPU, ["runner"], minutes=0) == folder / "gpu.md"
    assert "runner" not in report.read(folder)["parts"]  # no time was left
    for cut in ([None], [None, "long"], [None, "long", "long"]):
        report.run(folder, SMALL, CPU, ["runner"])
        part = report.read(folder)["parts"]["runner"]
        assert (part["state"], part["cut"]) == ("its time was over", cut)
        assert "## A part with a long row\n\nits time was over" in (folder / "gpu.md").read_text()
    report.run(folder, SMALL, CPU, ["runner", "training"])
    assert not report.read(folder)["parts"]["training"]["rows"]  # it is done
    part = report.read(folder)["parts"]["runner"]
    assert (part["state"], part["cut"]) == ("done", cut)
    assert (part["rows"]["first"]["value"], part["rows"]["last"]["value"]) == (1, 3)
    assert part["rows"]["long"]["failed"].startswith("cut twice, after ")
    assert part["rows"]["deadly"]["failed"] == "its process ended with code 3"


def test_a_report_is_of_one_machine(folder):
    report.measure("training", SMALL, CPU, folder)
    content = report.read(folder)
    write_json(folder / report.FILE, content | {"machine": {"device": "another card"}})
    with pytest.raises(PDSError, match="is of another card, and this is CPU: give another"):
        report.measure("training", SMALL, CPU, folder)


def test_a_report_of_other_parts_is_one_sentence(tmp_path):
    part = {"state": "done", "seconds": 1.0, "rows": {"a": {"failed": "x"}}, "cut": [None, "a"]}
    odd, file, tried = [None, True, -1, "x", [], [1], {}, {"a": 1}, 10**30], tmp_path / report.FILE, 0
    for whole in ({"machine": {}, "parts": {"peaks": part}}, {"machine": {"device": "CPU"}, "parts": {}}):
        file.write_text(json.dumps(whole))
        assert report.read(tmp_path) == whole
    wrong = [{"machine": value, "parts": {}} for value in odd if not isinstance(value, dict)]
    wrong += [{"machine": {}, "parts": value} for value in odd if value != {}]
    wrong += [{"machine": {}, "parts": {"peaks": {k: v for k, v in part.items() if k != key}}} for key in part]
    for key, value in itertools.product(part, odd):
        fits = type(value) is type(part[key]) and value != [1] and value != {"a": 1}
        if not fits and not (key == "seconds" and value == 10**30):
            wrong.append({"machine": {}, "parts": {"peaks": part | {key: value}}})
    for content in wrong:
        file.write_text(json.dumps(content))
        with pytest.raises(
            PDSError, match=r"gpu\.json is not a report of this version \(.*\): delete it, or give another"
        ) as told:
            report.read(tmp_path)
        assert str(told.value).isprintable()
        tried += 1
    assert tried >= 40


def test_a_part_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PDSError, match="there is no part speed: choose from peaks, cifar10"):
        report.run(tmp_path, SMALL, CPU, ["speed"])


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_every_size_is_timed_in_every_way(name):
    keys = {key for key, _ in PARTS[name].rows(Plan(small=True), CPU, Path())}
    assert keys >= {f"{option}, batch 1" for option in OPTIONS}


def test_a_captured_score_takes_no_labels():
    with pytest.raises(PDSError, match="takes no labels"):
        GraphedScore(lambda x, sigma: x)(torch.zeros(1, 1, 2, 2), torch.ones(1), torch.zeros(1))
