"""The whole path as a user walks it: a sweep with a failing point, its files, its report, and the same command again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from run import Experiment, run
from test_configurations import composed

from pds.errors import PDSError
from pds.runs import RunFolder, run_name
from pds.tracking import read_metrics

ROOT = Path(__file__).parents[2]


def command(outputs, *overrides):
    arguments = [sys.executable, "experiments/run.py", *overrides, "debug=tiny", f"outputs={outputs}"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )


def test_a_sweep_with_a_failing_point_and_the_same_sweep_again(tmp_path):
    # T = 5 visits half of the ladder, T = 15 does not fit it: two points finish, two fail.
    sweep = ["-m", "filter=none,parametric", "sampler.iterations=5,15", "sampler.step_size=1.0", "images=6"]
    first = command(tmp_path, *sweep)
    assert first.returncode == 1, first.stderr
    assert first.stderr.count("error: sampler.iterations=15 does not fit 10 noise levels") == 2
    assert "Traceback" not in first.stderr
    runs = sorted(path.parent for path in tmp_path.glob("debug/*/result.json"))
    assert [path.name.rsplit("-", 1)[0] for path in runs] == [
        "filter=none,images=6,sampler.iterations=5,sampler.step_size=1.0",
        "filter=parametric,images=6,sampler.iterations=5,sampler.step_size=1.0",
    ]
    results = [json.loads((path / "result.json").read_text()) for path in runs]
    assert [result["vanilla"] for result in results] == [True, False]
    for path, result in zip(runs, results, strict=True):
        assert (result["iterations"], result["nfe"], result["images"]) == (5, 6, 6)
        assert list(result["metrics"]) == ["fid_mnist_classifier_6"] == list(result["floor"])
        assert read_metrics(path / "metrics.jsonl")[-1]["fid_mnist_classifier_6"] == result["metrics"]["fid_mnist_classifier_6"]
        assert json.loads((path / "status.json").read_text())["state"] == "done"
        assert yaml.safe_load((path / "config.yaml").read_text())["sampler"]["iterations"] == 5
        assert (path / "grid.png").stat().st_size > 100
    assert not (runs[0] / "filter.npz").exists()
    assert np.load(runs[1] / "filter.npz")["frequency"].shape == (1, 28, 28)
    report = (tmp_path / "debug" / "report.html").read_text()
    assert all(f"{result['metrics']['fid_mnist_classifier_6']:.1f}" in report for result in results)

    stamps = [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")]
    again = command(tmp_path, *sweep)
    assert again.stderr.count("is done already") == 2
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")] == stamps
    assert "fid_mnist_classifier_6" in again.stdout


def test_runs_are_named_by_what_they_are(tmp_path):
    config = {"filter": {"r": 0.2}, "outputs": "a", "device": "cpu", "seed": 0}
    name = run_name(["filter.r=0.2", "outputs=a", "experiment=x", "hydra.verbose=true"], config)
    assert name == run_name(["outputs=b", "filter.r=0.2"], config | {"outputs": "b", "device": "cuda"})
    assert name.startswith("filter.r=0.2-")
    assert name != run_name(["filter.r=0.2"], config | {"seed": 1})
    assert run_name([], config).startswith("default-")


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({"seed": 0, "device": "cpu"})
    folder.claim({"seed": 0, "device": "cuda"})
    with pytest.raises(PDSError, match="holds a run with seed=0, not 1"):
        folder.claim({"seed": 1, "device": "cpu"})


def test_a_run_that_fails_midway_says_so_in_its_status_and_report(tmp_path, monkeypatch):
    cfg = composed("debug=tiny", f"outputs={tmp_path}", "images=2", "sampler.iterations=2")

    def explode(self, images):
        raise PDSError("the disk caught fire")

    monkeypatch.setattr(Experiment, "annotate", explode)
    with pytest.raises(PDSError):
        run(cfg, [])
    (status,) = tmp_path.glob("debug/*/status.json")
    assert json.loads(status.read_text())["message"] == "the disk caught fire"
    assert "the disk caught fire" in (tmp_path / "debug" / "report.html").read_text()
