"""Numbers survive kills and broken trackers; an offline W&B run holds what was logged, read back from its file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import COUNTING, environment, started
from PIL import Image

from pds.errors import PDSError
from pds.lab.trackers import wandb_service
from pds.lab.trackers.wandb import WandbTracker, has_api_key
from pds.lab.tracking import MetricsFile, NoTracker

OFFLINE = WandbTracker(project="pds-test", mode="offline")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of the one W&B run below a run directory, by type."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", run]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, output.splitlines()):
        found.setdefault(line["type"], []).append(line[line["type"]])
    return found


def records_of(path: Path) -> list[dict]:
    """The whole lines of a file of metrics."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_metrics_file_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.append({"images_done": 64, "seconds": np.float32(1.5)})
    first = file.path.read_bytes()
    file.append({"images_done": 128, "seconds": 3.0})
    whole = file.path.read_bytes()
    for size in range(len(first), len(whole)):
        file.path.write_bytes(whole[:size])
        assert records_of(file.path) == [{"images_done": 64, "seconds": 1.5}]
        file.append({"images_done": 192})
        assert [r["images_done"] for r in records_of(file.path)] == [64, 192]
    file.path.write_bytes(b"x" * 10_000)
    file.append({"images_done": 1})
    assert records_of(file.path) == [{"images_done": 1}]


def logged(found: dict[str, list[dict[str, Any]]]) -> set[str]:
    """The keys a user can draw: those of history and summary, without what W&B adds."""
    keys = {key for h in found["history"] for key in h["item"]} | {key for s in found["summary"] for key in s["update"]}
    return {key.removesuffix("._type") for key in keys if "._type" in key or not ("." in key or key.startswith("_"))}


def table(found: dict[str, list[dict[str, Any]]], name: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """A logged table, and where the files of its artifact are kept."""
    (artifact,) = (a for a in found["artifact"] if a["name"].endswith(f"-{name}"))
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    return json.loads(files[f"{name}.table.json"].read_text()), files


def test_two_points_of_a_sweep_read_back_as_two_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vanilla and PDS, both open at once in one process, and the second fails: each has its own records alone."""
    caplog.set_level(logging.INFO, logger="pds")
    Image.new("L", (8, 8)).save(tmp_path / "grid.png")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    images[0] //= 4  # an image is kept as it is, however dark
    tracker = WandbTracker(project="pds-test")  # auto, and there is no key
    with tracker.run(tmp_path / "a", "T=20", "sweep", "vanilla", {"filter": {"r": 0.2}, "images": 64}) as run:
        run.log({"images_done": 64, "images_per_second": 7.5}, step_name="images_done")
        run.image("samples", tmp_path / "grid.png")
        run.table("result", ["run", "distance"], [["vanilla", 2.5], ["failed", None]])
        run.table("sample_table", ["index", "image"], [[i, image] for i, image in enumerate(images)])
        run.summary({"fid_test_64": 12.25})
        with (
            pytest.raises(RuntimeError, match="the sampler"),
            tracker.run(tmp_path / "b", "T=20", "sweep", "pds", {"filter": {"r": 0.3}}) as other,
        ):
            other.table("sample_table", ["index", "image"], [[7, images[1, :1]]])
            other.log({"fid_test_2048": 8.5})
            raise RuntimeError("the sampler")

    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    headers = [found["run"][0] for found in (first, second)]
    assert [(h["run_group"], h["job_type"], h["display_name"]) for h in headers] == [
        ("sweep", "vanilla", "T=20"),
        ("sweep", "pds", "T=20"),
    ]
    assert headers[0]["run_id"] != headers[1]["run_id"]
    configs = [{k: v for k, v in h["config"]["update"].items() if k != "_wandb"} for h in headers]
    assert configs == [{"filter": {"r": 0.2}, "images": 64}, {"filter": {"r": 0.3}}]
    assert logged(first) == {"images_done", "images_per_second", "samples", "result", "sample_table", "fid_test_64"}
    assert logged(second) == {"sample_table", "fid_test_2048"}
    assert (first["history"][0]["item"]["images_done"], first["history"][0]["item"]["images_per_second"]) == (64, 7.5)
    assert {"name": "images_per_second", "step_metric": "images_done"}.items() <= first["metric"][-1].items()
    assert any(s["update"].get("fid_test_64") == 12.25 for s in first["summary"])
    assert [found["exit"][0].get("exit_code", 0) for found in (first, second)] == [0, 1]

    samples, files = table(first, "sample_table")
    assert all(path.is_relative_to(tmp_path / "a") for path in files.values())
    assert samples["column_types"]["params"]["type_map"]["image"]["params"]["allowed_types"][0]["wb_type"] == "image-file"
    assert [row[0] for row in samples["data"]] == [0, 1]
    for image, (_, cell) in zip(images, samples["data"], strict=True):
        assert np.array_equal(np.asarray(Image.open(files[cell["path"]])), image.transpose(1, 2, 0))
    samples, files = table(second, "sample_table")
    ((index, cell),) = samples["data"]
    assert index == 7 and np.array_equal(np.asarray(Image.open(files[cell["path"]])), images[1, 0])
    assert table(first, "result")[0]["data"] == [["vanilla", 2.5], ["failed", None]]
    for folder in ("a", "b"):
        hints = [m for m in caplog.messages if f"wandb sync {tmp_path / folder / 'wandb'}/offline-run-" in m]
        assert len(hints) == 1


def test_an_online_run_that_cannot_be_opened_becomes_an_offline_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pds.lab.trackers.wandb.GRACE", 60.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with WandbTracker("pds-test", timeout=2).run(tmp_path, "a", "g", "sample", {}) as run:
        run.log({"loss": 1.0})
    assert [h["item"]["loss"] for h in records(tmp_path)["history"]] == [1.0]
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    assert kept.name.endswith(json.loads((tmp_path / "wandb.json").read_text())["run"])
    assert "opening the run online, the run goes on: CommError" in caplog.text and "offline, the run" not in caplog.text


def test_a_broken_tracker_never_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def broken(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    with OFFLINE.run(tmp_path, "a", "g", "sample", {}) as run:
        for method in ("log", "finish", "define_metric"):
            monkeypatch.setattr(wandb.Run, method, broken)
        for _ in range(3):
            run.log({"loss": 1.0}, step_name="iteration")
        run.image("grid", tmp_path / "absent.png")
        run.table("t", ["a"], [[1], [1, 2]])
        run.summary({"fid": object()})
    assert caplog.text.count("logging metrics") == 1 and "finishing the run" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(wandb, "init", broken)
    with OFFLINE.run(tmp_path, "a", "g", "sample", {}) as run:
        run.log({"loss": 1.0})
    assert "opening the run offline" in caplog.text


def test_a_run_of_the_same_folder_goes_on(tmp_path: Path) -> None:
    for loss in (2.0, 1.0):
        with OFFLINE.run(tmp_path, "a", "g", "sample", {}) as run:
            run.log({"loss": loss})
    kept = json.loads((tmp_path / "wandb.json").read_text())["run"]
    assert {path.name.split("-")[3] for path in tmp_path.glob("wandb/offline-run-*")} == {kept}


def test_modes(tmp_path: Path) -> None:
    with pytest.raises(PDSError, match="auto, online, offline, disabled"):
        WandbTracker("p", mode="on")
    for tracker in (NoTracker(), WandbTracker("p", mode="disabled")):
        with tracker.run(tmp_path / "none", "a", "g", "sample", {}) as run:
            run.log({"loss": 1.0})
            run.image("grid", tmp_path / "absent.png")
            run.table("t", ["a"], [[1]])
            run.summary({"a": 1})
        assert not (tmp_path / "none").exists()


# Each way to be offline in turn, in a fresh W&B, and the online one at the end, with the server's requests for each.
COUNTED = (
    COUNTING
    + """
import json, sys
from pathlib import Path
import numpy as np, wandb
from pds.lab.trackers.wandb import WandbTracker

here = Path(sys.argv[1])
os.environ.update(WANDB_BASE_URL=url, WANDB_API_KEY="k" * 40)
cases = {
    "tracker": ("offline", {}, ""), "dryrun": ("auto", dict(WANDB_MODE="dryrun"), ""), "folder": ("auto", {}, "wandb"),
    "settings": ("auto", dict(WANDB_CONFIG_DIR=str(here / "settings" / "config")), "config"),
    "misspelt": ("auto", dict(WANDB_MODE="OFFLINE"), ""), "online": ("online", {}, ""),
}
contacts = {}
for name, (mode, variables, settings) in cases.items():
    folder = here / name
    (folder / settings).mkdir(parents=True)
    if settings:
        (folder / settings / "settings").write_text("[default]\\nmode = offline\\n")
    os.chdir(folder)
    os.environ.update(variables)
    heard.clear()
    with WandbTracker("p", mode=mode, timeout=20).run(folder / "run", "n", "g", "pds", {}) as run:
        run.log({"images_done": 1, "loss": 2.0}, step_name="images_done")
        run.table("t", ["i", "image"], [[0, np.zeros((3, 4, 4), np.uint8)]])
        run.summary({"fid": 1.0})
    wandb.teardown()
    contacts[name] = len(heard), len(list(folder.glob("run/wandb/offline-run-*")))
    for variable in variables:
        del os.environ[variable]
(here / "contacts.json").write_text(json.dumps(contacts))
"""
)


def test_offline_is_without_any_contact(tmp_path: Path) -> None:
    done = started("-c", COUNTED, str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    contacts = json.loads((tmp_path / "contacts.json").read_text())
    online, _ = contacts.pop("online")
    assert online > 0, "the server would see a contact"
    assert contacts == {key: [0, 1] for key in ("tracker", "dryrun", "folder", "settings")} | {"misspelt": [0, 0]}


@pytest.mark.parametrize("variable", ["NETRC", "WANDB_CONFIG_DIR", "WANDB_DIR"])
def test_no_file_of_settings_or_keys_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    folder = tmp_path / "wandb" if variable == "WANDB_DIR" else tmp_path
    file = folder / ("netrc" if variable == "NETRC" else "settings")
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv(variable, str(file if variable == "NETRC" else tmp_path))
    for make in (
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to("/dev/urandom"),
        file.mkdir,
        lambda: os.truncate(os.open(file, os.O_CREAT | os.O_WRONLY), 100 << 30),
    ):
        make()
        if variable == "NETRC":
            assert not has_api_key()
        else:
            with pytest.raises(PDSError, match=f"{file} is not a file that can be read here"):
                wandb_service.settings()
            assert OFFLINE._modes() == []
        file.rmdir() if file.is_dir() else file.unlink()
    file.write_text("machine api.wandb.ai login user password key\n" if variable == "NETRC" else "[default]\n")
    assert has_api_key() == (variable == "NETRC") and OFFLINE._modes() == ["offline"]


# The service is killed in the first run, frozen at the end of the second, and frozen when all is done.
BROKEN_SERVICE = """
import os, signal, sys
from pathlib import Path
from pds.lab.trackers import wandb, wandb_service
wandb.GRACE, wandb_service.LAST_CALL = 0.5, 1.0
here = Path(sys.argv[1])
def strike(number, run=None):
    if run is not None:
        run._seconds = 1.5  # to open a run there is any time, however slow the machine is
    (here / "service").write_text(str(wandb_service._process().pid))
    os.kill(wandb_service._process().pid, number)
def run(name, number=None):
    with wandb.WandbTracker("p", mode="offline", timeout=60).run(here / name, name, "g", "pds", {}) as run:
        run.log({"loss": 1.0})
        if number:
            strike(number, run)
        run.log({"loss": 2.0})
        run.summary({"fid": 1.0})
run("killed", signal.SIGKILL)
run("frozen", signal.SIGSTOP)
run("whole")
strike(signal.SIGSTOP)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_service_that_is_killed_or_frozen_keeps_no_run_from_ending(tmp_path: Path) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # which a frozen service would keep open
    command = [sys.executable, "-c", BROKEN_SERVICE, tmp_path]
    done = subprocess.run(command, env=environment(), timeout=600, check=False, **quiet)
    assert done.returncode == 0
    assert len(list(tmp_path.glob("*/wandb/offline-run-*"))) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "service").read_text()), 0)
