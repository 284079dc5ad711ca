"""The records of trackers are read back with their own readers. A tracker that hangs, refuses or fills the disk costs a
warning."""

import contextlib
import errno
import inspect
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command_line import COUNTING, environment, started
from hydra import compose, initialize_config_dir
from PIL import Image

from pds.errors import PDSError
from pds.generation import ImageSampler
from pds.lab.cli import with_trackers
from pds.lab.config import CONF, build
from pds.lab.experiment import run
from pds.lab.runs import run_name
from pds.lab.schema import register
from pds.lab.tracking import NoTracker, Several, aside


def composed(*overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", list(overrides))


@pytest.fixture
def _store(tmp_path, monkeypatch):
    """A folder as MLflow's store: its database takes ten seconds to make."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found, events


@pytest.mark.usefixtures("_store")
def test_a_run_that_is_killed_and_resumed_is_one_entry_with_all_its_numbers(tmp_path, monkeypatch):
    given = ["debug=tiny", f"outputs={tmp_path}/out", "images=8", "shard_size=2", "batch_size=2", "sampler.iterations=2"]
    given = with_trackers([*given, "tracker=[tensorboard,mlflow]"])
    sample, calls = ImageSampler.__call__, []

    def killed(self, indices, *more):
        calls.append(indices)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return sample(self, indices, *more)

    monkeypatch.setattr(ImageSampler, "__call__", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(composed(*given), given)
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (experiment,) = (found for found in client.search_experiments() if found.name == "debug")
    (entry,) = client.search_runs([experiment.experiment_id])
    assert entry.info.status == "FAILED"
    run(composed(*given), given)
    seeds = [*given, "seed=1"]
    run(composed(*seeds), seeds)

    entries = {entry.info.run_name: entry for entry in client.search_runs([experiment.experiment_id])}
    files = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("out/debug/*/result.json")}
    assert entries.keys() == files.keys() and len(files) == 2
    for name, result in files.items():
        assert entries[name].info.status == "FINISHED"
        metrics = entries[name].data.metrics
        assert result["metrics"].items() <= metrics.items()
        assert (metrics["NFE"], metrics["floor/fid_mnist_classifier_8"]) == (3, result["floor"]["fid_mnist_classifier_8"])
        assert entries[name].data.params["seed"] == str(result["seed"])
        assert entries[name].data.tags["report"] == (tmp_path / "out" / "debug" / "report.html").as_uri()
        assert [file.path for file in client.list_artifacts(entries[name].info.run_id, "samples")] == ["samples/grid.png"]
        drawn, events = scalars(tmp_path / "out" / "debug" / name / "tensorboard")
        distance = pytest.approx(result["metrics"]["fid_mnist_classifier_8"], rel=1e-6)
        assert drawn["fid_mnist_classifier_8"] == [(8, distance)]
        assert drawn["against_NFE/fid_mnist_classifier_8"] == [(3, distance)]
        steps = [metric.step for metric in client.get_metric_history(entries[name].info.run_id, "images_per_second")]
        # One for each shard, at the number of images present when it is reported: by then the next shard may be written.
        for told in ([step for step, _ in drawn["images_per_second"]], sorted(step for step in steps if step)):
            assert all(step in range(due, 9, 2) for step, due in zip(told, (2, 4, 6, 8), strict=True)), told
        assert events.Tags()["images"] == ["samples"]
        assert b"seed: " + str(result["seed"]).encode() in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


KINDS = ["opening", "log", "image", "table", "summary", "closing", "full", "hanging", "leaving"]


class Broken:
    """A tracker that fails in one way."""

    def __init__(self, kind):
        self.kind, self.told, self.patience = kind, [], 0.2 if kind == "hanging" else 60.0

    def _fail(self, at):
        if self.kind == at:
            raise ConnectionRefusedError("no server there")
        if (self.kind, at) == ("full", "log"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if (self.kind, at) == ("hanging", "table"):
            threading.Event().wait()
        if (self.kind, at) == ("leaving", "image"):
            raise SystemExit(3)
        self.told.append(at)

    @contextmanager
    def run(self, *of_run):
        self._fail("opening")
        yield self
        self._fail("closing")

    def log(self, metrics, step_name=None):
        self._fail("log")

    def image(self, name, path):
        self._fail("image")

    def table(self, name, columns, rows):
        self._fail("table")

    def summary(self, values):
        self._fail("summary")


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_failure_fails_slows_or_changes_what_is_mirrored(kind, tmp_path, caplog):
    broken, whole = Broken(kind), Broken("")
    start = time.perf_counter()
    with aside(Several(mlflow=broken, tensorboard=whole), tmp_path, "a", "g", "pds", {}) as tracked:
        for step in range(3):
            tracked.log({"images_done": step, "loss": 1.0}, step_name="images_done")
        tracked.table("t", ["a"], [[np.zeros((1, 2, 2), np.uint8)]])
        tracked.image("grid", tmp_path / "absent.png")
        tracked.summary({"fid": 1.0})
    assert time.perf_counter() - start < 30
    assert whole.told == ["opening", "log", "log", "log", "table", "image", "summary", "closing"]
    said = [message for message in caplog.messages if message.startswith("Broken")]
    assert len(said) == 1, "once, however often it fails"
    assert ("is given up" if kind == "hanging" else "the run goes on") in said[0]


def test_what_fails_inside_is_told_to_the_tracker_and_raised():
    seen = []

    class Watching(NoTracker):
        @contextmanager
        def run(self, *of_run):
            try:
                yield Broken("")
            except BaseException as error:
                seen.append(error)
                raise

    with pytest.raises(KeyboardInterrupt) as raised, aside(Watching(), 1, 2, 3, 4, 5):
        raise KeyboardInterrupt
    assert seen == [raised.value]


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_real_trackers_that_cannot_write_warn(name, tmp_path, caplog, monkeypatch):
    (tmp_path / "tensorboard").write_text("a file where a folder is due")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with aside(build(composed(f"tracker={name}").tracker), tmp_path, "a", "g", "pds", {"seed": 0}) as tracked:
        tracked.log({"loss": 1.0})
    assert "failed at opening or closing the run, the run goes on" in caplog.text


def tell(tracker, folder, picture):
    """A run that is killed after two images and ends with four."""
    for images in (2, 4):
        with contextlib.suppress(KeyError), tracker.run(folder, "run", "group", "pds", {"seed": 3}) as told:
            told.log({"images_done": images, "images_per_second": images / 4}, step_name="images_done")
            if images == 2:
                raise KeyError("killed")
            told.image("samples", picture)
            told.table("result", ["run", "fid"], [["vanilla", 2.5]])
            told.summary({"fid": 1.5, "report": "file:///report.html"})


# Each tracker with its own store, in a killed and a resumed run. MLflow is silent in a process that it takes for a test,
# so this is a process of its own. At its end MLflow speaks once, so that the server hears it.
HERE = (
    COUNTING
    + inspect.getsource(tell)
    + """
import contextlib, json, sys, time
for name in set(os.environ) - {*proxies, "PATH", "PYTHONPATH", "HOME", "TMPDIR", "TRACKIO_DIR"}:
    del os.environ[name]
from pathlib import Path
from PIL import Image
from pds.lab.trackers.mlflow import MLflowTracker
from pds.lab.trackers.tensorboard import TensorBoardTracker
from pds.lab.trackers.trackio import TrackioTracker

here = Path(sys.argv[1])
Image.new("L", (2, 2)).save(here / "grid.png")
for tracker, outputs in ((MLflowTracker(), "a"), (TensorBoardTracker(), "a"), (TrackioTracker(), "a"), (TrackioTracker(), "b")):
    tell(tracker, here / outputs / "group" / "run", here / "grid.png")

import trackio
from trackio.sqlite_storage import SQLiteStorage
runs = [(run.name, run.config, SQLiteStorage.get_logs("pds", run.name)) for run in trackio.Api().runs("pds")]
silent = list(heard)
from mlflow.telemetry.client import set_telemetry_client
from mlflow.tracking import MlflowClient
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "false"
set_telemetry_client()
MlflowClient(f"sqlite:///{here}/a/mlflow.db").create_experiment("heard")
until = time.time() + 10
while not heard and time.time() < until:
    time.sleep(0.05)
(here / "found.json").write_text(json.dumps({"trackio": runs, "silent": silent, "heard": heard}))
"""
)


def test_trackers_on_this_machine_contact_nobody_and_keep_what_they_are_told(tmp_path):
    done = started("-c", HERE, str(tmp_path), HOME=str(tmp_path), TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["silent"] == [] and any("mlflow" in request for request in found["heard"])

    assert len(found["trackio"]) == 2, "one for each folder, each killed once"
    for name, config, logs in found["trackio"]:
        assert name.startswith("group/run-") and (config["seed"], config["_Group"]) == (3, "group")
        assert [(log["step"], log["images_per_second"]) for log in logs if "images_per_second" in log] == [(2, 0.5), (4, 1.0)]
        last = {key: value for log in logs for key, value in log.items()}
        assert (last["summary/fid"], last["summary/report"]) == (1.5, "file:///report.html")
        assert (tmp_path / "trackio" / "media" / last["samples"]["file_path"]).is_file()
        assert "vanilla" in last["result"]["_value"]
    drawn, _ = scalars(tmp_path / "a" / "group" / "run" / "tensorboard")
    assert drawn["images_per_second"] == [(2, 0.5), (4, 1.0)]
    told_mlflow(f"sqlite:///{tmp_path}/a/mlflow.db", tmp_path)


def told_mlflow(uri, tmp_path):
    """The one run of an MLflow is what HERE tells it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (entry,) = client.search_runs([client.get_experiment_by_name("group").experiment_id])
    assert (entry.info.run_name, entry.info.status, entry.data.params["seed"]) == ("run", "FINISHED", "3")
    assert (entry.data.metrics["fid"], entry.data.tags["report"]) == (1.5, "file:///report.html")
    history = client.get_metric_history(entry.info.run_id, "images_per_second")
    assert [(metric.step, metric.value) for metric in history] == [(2, 0.5), (4, 1.0)]
    picture = client.download_artifacts(entry.info.run_id, "samples/grid.png", str(tmp_path))
    assert Path(picture).read_bytes() == (tmp_path / "grid.png").read_bytes()
    assert "vanilla" in Path(client.download_artifacts(entry.info.run_id, "result.md", str(tmp_path))).read_text()


# What `mlflow server` serves. mlflow-skinny has it, without the pages and without a program that serves it.
SERVER = """
import sys
from werkzeug.serving import make_server
from mlflow.server import app
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def server(tmp_path):
    """The address of an MLflow server, a process of its own; its store is a folder, as a database takes seconds to make."""
    variables = {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "_MLFLOW_SERVER_FILE_STORE": (tmp_path / "server").as_uri(),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (tmp_path / "artifacts").as_uri(),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def test_an_mlflow_server_has_one_run_with_all_that_two_processes_told_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    Image.new("L", (2, 2)).save(tmp_path / "grid.png")
    tell(build(composed("tracker=mlflow").tracker), tmp_path / "run", tmp_path / "grid.png")
    told_mlflow(server, tmp_path)


def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "tensorboard", "mlflow", "trackio"):
        with pytest.raises(PDSError, match=rf"tracker={name} needs the package {name}: pip install 'pds-lab\[{name}\]'"):
            build(composed(f"tracker={name}").tracker)


def test_several_trackers_are_a_node_each_and_name_no_run():
    given = with_trackers(["seed=3", "tracker=[tensorboard, mlflow]", "tracker.mlflow.patience=5"])
    assert given[0] == "seed=3" and len(given) == 5
    cfg = composed(*given)
    assert cfg.tracker.mlflow.patience == 5 and cfg.tracker.trackio is None
    assert run_name(given, {}).startswith("seed=3-")
    assert with_trackers(["tracker=mlflow", "-m", "tracker=wandb,none"]) == ["tracker=mlflow", "-m", "tracker=wandb,none"]
    offline = composed(*with_trackers(["tracker=[wandb_offline,tensorboard]"]))
    assert offline.tracker.wandb_offline.mode == "offline"
