"""The W&B report of a group, made without network: it asks for keys that runs really log, and never hangs or loses a run."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import pds.lab.trackers.wandb
import pds.lab.tracking
from pds.errors import PDSError
from pds.files import write_json
from pds.lab.report import read_runs

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of W&B's own code
    wr = pytest.importorskip("wandb_workspaces.reports.v2")

from dashboard import main

from pds.lab import dashboard, experiment

METRIC = "fid_test_4"
GROUP = "α=2 <sweep>"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def finished_run(folder, vanilla, iterations, metrics, tracker=None):
    """The files of a finished run, as experiments/run.py leaves them."""
    parts = {"_target_": "pds.NoFilter"} if vanilla else {"_target_": "pds.StatisticsFilter", "alpha": 2.5}
    config = {
        "group": GROUP,
        "seed": 3,
        "tracker": {"_target_": "pds.lab.trackers.wandb.WandbTracker", "project": "lab", "entity": None},
        "filter": parts,
        "sampler": {"_target_": "pds.AnnealedLangevin", "iterations": iterations},
    }
    result = {
        "name": folder.name,
        "experiment": GROUP,
        "label": f"{'vanilla' if vanilla else 'PDS'}, T = {iterations}",
        "vanilla": vanilla,
        "sampler": "annealed Langevin",
        "iterations": iterations,
        "nfe": 2 * iterations,
        "images": 4,
        "seconds": 1.5,
        "images_per_second": 2.0,
        "seed": 3,
        "model": "NCSN",
        "metrics": metrics,
        "floor": {METRIC: 0.5},
        "command": f"python experiments/run.py sampler.iterations={iterations}",
        "versions": {"pds": "0.1"},
        "commit": "abc",
        "device": "CPU",
        "doubts": ["random weights"],
    }
    (folder / "samples").mkdir(parents=True)
    images = [np.full((1, 4, 4), 100 * (index // 10) + iterations, np.uint8) for index in range(20)]
    for number in range(2):
        np.savez(folder / "samples" / f"shard-{number:05d}.npz", images=np.stack(images[10 * number :][:10]))
    Image.new("L", (8, 8)).save(folder / "grid.png")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "result.json", result)
    write_json(folder / "status.json", {"state": "done"})
    tracker = tracker or pds.lab.tracking.NoTracker()
    with tracker.run(folder, folder.name, GROUP, "vanilla" if vanilla else "pds", config) as tracked:
        experiment.mirror(tracked, folder, result, images)


def sweep(folder, tracker=None):
    for vanilla in (True, False):
        for iterations in (10, 20):
            name = f"{'vanilla' if vanilla else 'pds'}-{iterations}"
            finished_run(folder / name, vanilla, iterations, {METRIC: 9.0 - iterations / 10}, tracker)
    return folder


def spec(folder):
    runs = read_runs(folder)
    report = dashboard.comparison(runs, "lab", "me")._to_model()
    assert (report.project.name, report.project.entity_name) == ("lab", "me")
    return json.loads(report.spec.model_dump_json(by_alias=True, exclude_none=True))


def grids(document):
    return [block["metadata"] for block in document["blocks"] if block["type"] == "panel-grid"]


def panels(document):
    return [panel for grid in grids(document) for panel in grid["panelBankSectionConfig"]["panels"]]


def logged(folder):
    """The keys of the one W&B run below a run directory, read back from its file: "summary:…", "config:…", "run:…"."""
    (tracked,) = (folder / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", tracked]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    keys, header = set(), {}
    for record in map(json.loads, output.splitlines()):
        if record["type"] == "summary":
            keys |= {f"summary:{key.removesuffix('._type')}" for key in record["summary"]["update"]}
        elif record["type"] == "run":
            header = record["run"]
    for first, value in header["config"]["update"].items():
        keys |= {f"config:{first}.value.{key}" for key in value} if isinstance(value, dict) else {f"config:{first}.value"}
    return keys, header


def test_the_report_asks_for_what_the_runs_logged(tmp_path):
    folder = sweep(tmp_path / "sweep", pds.lab.trackers.wandb.WandbTracker("lab", mode="offline"))
    keys, header = logged(folder / "pds-20")
    document = spec(folder)

    found = panels(document)
    kinds = [panel["viewType"] for panel in found]
    assert kinds == [
        "Bar Chart",
        *["Scatter Plot"] * 3,
        "Media Browser",
        "Weave",
        "Parallel Coordinates Plot",
        "Run Comparer",
    ]
    bars, *scatters = (panel["config"] for panel in found[:4])
    assert bars["metrics"] == [METRIC] and bars["limit"] == bars["barLimit"] == 4
    assert [(s["xAxis"], s["yAxis"]) for s in scatters] == [
        (f"summary:{x}", f"summary:{METRIC}") for x in ("NFE", "T", "seconds")
    ]
    media, table, parallel = (panel["config"] for panel in found[4:7])
    accessors = [column["accessor"] for column in parallel["columns"]]
    assert accessors == ["run:jobType", "config:sampler.value.iterations", "summary:NFE", f"summary:{METRIC}"]
    assert '"sample_table"' in json.dumps(table)
    columns = {column for grid in grids(document) for runset in grid["runSets"] for column in runset["runFeed"]["columnOrder"]}
    asked = {f"summary:{METRIC}", "summary:sample_table", *(f"summary:{key}" for key in media["mediaKeys"])}
    asked |= {key for s in scatters for key in (s["xAxis"], s["yAxis"])} | columns | set(accessors)
    assert {key for key in asked if not key.startswith("run:")} <= keys

    for grid in grids(document):
        assert [runset["name"] for runset in grid["runSets"]] == ["vanilla", "pds"]
        for runset in grid["runSets"]:
            wanted = {(f["key"]["section"], f["key"]["name"]): (f["op"], f["value"]) for f in runset["filters"]["filters"]}
            assert wanted == {
                ("run", "group"): ("=", GROUP),
                ("run", "jobType"): ("=", runset["name"]),
                ("run", "state"): ("=", "finished"),
            }
            assert runset["grouping"] == []
    assert (header["run_group"], header["job_type"]) == (GROUP, "pds")

    texts = json.dumps(document["blocks"], ensure_ascii=False)
    assert all(f"| {label} " in texts for label in ("PDS, T = 10", "vanilla, T = 20"))
    assert all(text in texts for text in ("sampler.iterations=20", "T = 10: random weights", "Commit abc on CPU (pds 0.1)"))


def test_the_first_images_are_a_table_with_their_seed(tmp_path):
    tables = {}

    class Recorder:
        @contextlib.contextmanager
        def run(self, *arguments):
            with pds.lab.tracking.NoTracker().run(*arguments) as handle:
                handle.table = lambda name, columns, rows: tables.update({name: (columns, rows)})
                yield handle

    finished_run(tmp_path / "a", True, 10, {METRIC: 1.0}, Recorder())
    columns, rows = tables["sample_table"]
    assert columns == ["index", "seed", "image"]
    assert [row[:2] for row in rows] == [[i, 3] for i in range(16)]
    assert [row[2][0, 0, 0] for row in rows] == [10] * 10 + [110] * 6


def test_distances_of_other_names_are_never_in_one_panel(tmp_path):
    folder = sweep(tmp_path / "sweep")
    finished_run(folder / "pds-50k", False, 20, {"fid_test_50k": 1.0})
    found = panels(spec(folder))
    bars = [panel["config"]["metrics"] for panel in found if panel["viewType"] == "Bar Chart"]
    assert bars == [[METRIC], ["fid_test_50k"]]
    places = [tuple(panel["layout"][key] for key in "xywh") for panel in found[:8]]
    assert places == [(x, y, 6, 8) for y in (0, 8) for x in (0, 6, 12, 18)]


def test_runs_that_differ_in_their_parts_are_no_sweep(tmp_path):
    for vanilla in (True, False):
        finished_run(tmp_path / f"{vanilla}", vanilla, 10, {})
    document = spec(tmp_path)
    assert [panel["viewType"] for panel in panels(document)] == ["Media Browser", "Weave", "Run Comparer"]
    shutil.rmtree(tmp_path / "True")
    assert {runset["name"] for grid in grids(spec(tmp_path)) for runset in grid["runSets"]} == {"pds"}


def test_a_result_of_an_older_version_without_its_configuration_is_in_the_report(tmp_path):
    folder = sweep(tmp_path / "sweep")
    for name in ("vanilla-10", "pds-10"):
        result = json.loads((folder / name / "result.json").read_text())
        for key in ("command", "versions", "commit", "device", "experiment"):
            del result[key]
        write_json(folder / name / "result.json", result)
        (folder / name / "config.yaml").unlink()
    text = json.dumps(spec(folder), ensure_ascii=False)
    assert "Commit – on – (–)" in text and "Commit abc on CPU (pds 0.1)" in text


def test_what_is_not_uploaded(tmp_path):
    folder = sweep(tmp_path / "sweep")
    wandb_folders = {path.name: path / "wandb" for path in folder.iterdir()}
    (wandb_folders["pds-10"] / "run-20260102_000000-a").mkdir(parents=True)
    for name, attempt in (("pds-10", "20260101"), ("pds-20", "20260101"), ("pds-20", "20260102"), ("vanilla-10", "20260101")):
        (wandb_folders[name] / f"offline-run-{attempt}_000000-a").mkdir(parents=True)
    (wandb_folders["pds-20"] / "run-20251231_000000-a").mkdir()
    (wandb_folders["vanilla-10"] / "offline-run-20260101_000000-a" / "run-a.wandb.synced").touch()
    offline, untracked = dashboard.not_uploaded(read_runs(folder))
    assert offline == [wandb_folders["pds-20"] / "offline-run-20260102_000000-a"]
    assert [run.folder.name for run in untracked] == ["vanilla-20"]


def test_without_an_account_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    with pytest.raises(PDSError, match="no runs in"):
        main([str(tmp_path)])
    folder = sweep(tmp_path / "sweep")
    for name in ("pds-10", "pds-20"):
        (folder / name / "wandb" / "offline-run-20260101_000000-a").mkdir(parents=True)
    with pytest.raises(PDSError, match=r"wandb login.*sweep/report.html"):
        main([str(folder), "--entity", "me"])
    out = capsys.readouterr().out
    paths = [f"{folder}/{name}/wandb/offline-run-20260101_000000-a" for name in ("pds-20", "pds-10")]
    assert f"wandb sync --entity me --project lab {' '.join(paths)}\n" in out and "2 of 4 runs had no tracker" in out
    monkeypatch.setattr(dashboard, "wr", None)
    with pytest.raises(PDSError, match=r"pip install wandb-workspaces.*sweep/report.html"):
        main([str(folder)])
    for status in folder.glob("*/status.json"):
        write_json(status, {"state": "running"})
    with pytest.raises(PDSError, match="is finished"):
        main([str(folder)])


def upload_of(folder, capsys):
    """What the command for uploading says of project and entity."""
    (folder / "pds-20" / "wandb" / "offline-run-20260101_000000-a").mkdir(parents=True, exist_ok=True)
    with pytest.raises(PDSError, match="wandb login"):
        main([str(folder)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb sync"))
    return line.split()[2:-1]


def retrack(run, **tracker):
    """Change the tracker of a finished run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["tracker"] |= tracker
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_project_is_that_of_the_runs(tmp_path, monkeypatch, capsys):
    folder = sweep(tmp_path / "sweep")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert upload_of(folder, capsys) == ["--entity", "team", "--project", "lab"]
    retrack(folder / "pds-10", project="attic")
    with pytest.raises(PDSError, match=r"tracker.project \(attic, lab\): give --project"):
        main([str(folder)])
    for run in folder.iterdir():
        retrack(run, project=None)
    assert upload_of(folder, capsys) == ["--entity", "team", "--project", "elsewhere"]


def test_the_project_of_several_trackers_is_that_of_their_wandb(tmp_path, capsys):
    folder = sweep(tmp_path / "sweep")
    wandb = {"_target_": "pds.lab.trackers.wandb.WandbTracker", "project": "mine"}
    for run in folder.iterdir():
        retrack(run, _target_="pds.lab.trackers.trackio.TrackioTracker", project="of Trackio")
    retrack(folder / "pds-20", _target_="pds.lab.tracking.Several", project=None, wandb_offline=wandb)
    assert upload_of(folder, capsys) == ["--project", "mine"]


@contextlib.contextmanager
def stand_in_for_wandb(received):
    """A server on this machine that answers the requests of saving a report to W&B."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = json.loads(body) if self.path == "/graphql" else {}
            query, variables = asked.get("query", ""), asked.get("variables")
            if "upsertView" in query:
                received.append(variables)
                project = {"name": variables["projectName"], "entityName": variables["entityName"]}
                view = {
                    "id": "Vmlldzox",
                    "displayName": variables["displayName"],
                    "spec": variables["spec"],
                    "project": project,
                }
                data = {"upsertView": {"view": {**view, "name": variables["name"], "description": ""}, "inserted": True}}
            elif "upsertModel" in query:
                data = {"result": {"project": None, "model": None, "inserted": True}}
            elif "models(" in query:
                data = {"models": {"pageInfo": {"__typename": "PageInfo", "endCursor": "", "hasNextPage": False}, "edges": []}}
            else:
                data = {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}
            answer = json.dumps({"data": data}).encode()
            self.send_response(200 if query else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_report_is_saved(tmp_path, monkeypatch, capsys):
    folder, received = sweep(tmp_path / "sweep"), []
    with stand_in_for_wandb(received) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        main([str(folder)])
    (saved,) = received
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "lab", f"{GROUP}: vanilla and PDS")
    assert len(grids(json.loads(saved["spec"]))) == 3
    assert f"dashboard  {url}/me/lab/reports/" in capsys.readouterr().out


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    folder = sweep(tmp_path / "sweep")
    monkeypatch.setattr(dashboard.wandb.Api, "_HTTP_TIMEOUT", 1)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(PDSError, match=r"W&B did not take the report.*sweep/report.html"):
            main([str(folder)])
    assert time.monotonic() - start < 60
