"""Files of a run that are read back: results, configurations and points, damaged, foreign or no files at all."""

import copy
import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import command
from test_configurations import composed

from pds.errors import PDSError
from pds.lab import runs
from pds.lab.experiment import run
from pds.lab.logs import log_file
from pds.lab.points import Point, Points
from pds.lab.runs import RunFolder
from pds.lab.tracking import MetricsFile

GOLDEN = Path(__file__).parents[1] / "golden" / "runs" / "debug"
OTHERS = [None, True, 0, -1, 1.5, "x", "", [], [1], ["x"], {}, {"x": "y"}, {"x": None}, {"x": [1]}]


def golden_run(folder):
    """A copy of a finished run."""
    (whole,) = GOLDEN.glob("metric=none*")
    return RunFolder(Path(shutil.copytree(whole, folder / whole.name)))


def damage(path, draw):
    """Damage a file of text in one of the ways of disks and people."""
    whole, kind = path.read_bytes(), draw.randrange(8)
    path.unlink()
    if kind == 0:
        path.write_bytes(whole[: draw.randrange(len(whole) // 2)])
    elif kind == 1:
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + draw.choice([b"\0", b"\xff\xfe"]) + whole[at:])
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/urandom"]))
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        with open(path, "wb") as file:
            file.truncate(100 << 30)
    elif kind == 6:
        path.write_bytes(b"[" * 200_000)
    else:
        path.write_text(draw.choice(["", "[]", "0", "null", '"x"', "- x", "3: 4", "x: &x [*x]", "!!python/name:os.abort x"]))


def restore(path, whole):
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(whole)


def test_a_result_is_done_only_with_all_its_keys_and_types(tmp_path, caplog):
    folder, count = golden_run(tmp_path), 0
    path = folder.path / "result.json"
    whole = json.loads(path.read_text())
    assert folder.result() == whole and not caplog.records
    for key in runs.RESULT:
        fits = [value for value in OTHERS if type(value) is type(whole[key])]
        for value in [..., *(other for other in OTHERS if other not in fits)]:
            content = {**whole, key: value} if value is not ... else {k: v for k, v in whole.items() if k != key}
            if (key, value) in [("nfe", 0), ("nfe", -1), ("nfe", 1.5), ("checkpoint", None)]:
                continue
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and key in ("seconds", "images_per_second", "seed")
            ):
                continue
            path.write_text(json.dumps(content))
            caplog.clear()
            assert folder.result() is None, (key, value)
            assert "result.json is not the result of this run" in caplog.text and len(caplog.records) == 1
            count += 1
    assert count > 200
    for key, value in (
        ("metrics", {"x": "y"}),
        ("metrics", {"x": None}),
        ("doubts", [1]),
        ("images", 0),
        ("seconds", 0),
        ("name", "x"),
    ):
        path.write_text(json.dumps(whole | {key: value}))
        assert folder.result() is None
    path.write_text(json.dumps(whole).replace(": 4,", ": NaN,", 1))
    assert folder.result() is None
    path.unlink()
    caplog.clear()
    assert folder.result() is None and not caplog.records


@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_damage_to_files_of_a_run_is_told_in_one_sentence(tmp_path, name, caplog):
    folder, draw = golden_run(tmp_path), random.Random(0)
    path = folder.path / name
    whole = path.read_bytes()
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    for _ in range(60):
        damage(path, draw)
        caplog.clear()
        if name == "result.json":
            assert folder.result() is None
            (record,) = caplog.records
            message = record.getMessage()
        else:
            with pytest.raises(PDSError) as raised:
                folder.claim(config)
            message = str(raised.value)
        assert str(folder.path) in message and message.isprintable() and len(message) < 600
        restore(path, whole)
    folder.claim(config)


def test_a_damaged_neighbour_neither_stops_nor_enters_a_run(tmp_path):
    neighbour, draw = golden_run(tmp_path), random.Random(0)
    path = neighbour.path / "config.yaml"
    whole = path.read_bytes()
    config = yaml.safe_load(whole)
    mine = RunFolder(tmp_path / "mine")
    more = copy.deepcopy(config) | {"images": 100}
    assert list(mine.alike(more)) == [(neighbour.path, True)]
    assert list(mine.alike(more | {"metric": {"_target_": "other"}})) == [(neighbour.path, False)]
    seen = {"fingerprint": {**more.get("fingerprint", {}), "seen": "of memorisation"}}
    assert list(mine.alike(more | seen)) == [(neighbour.path, True)]
    assert list(mine.alike(more | {"seed": 1})) == []
    overrides = neighbour.path.name[:-9].split(",")
    for _ in range(60):
        damage(path, draw)
        assert list(mine.alike(more)) == []
        assert RunFolder.of(tmp_path, overrides, config).path != neighbour.path
        restore(path, whole)
    assert RunFolder.of(tmp_path, overrides, config).path == neighbour.path
    # The first line has the digest of other images than the configuration's.
    path.write_bytes(f"# samples {runs.samples_digest(more)}\n".encode() + whole.replace(b"seed: 0", b"seed: 1"))
    assert list(mine.alike(more)) == []


def test_a_point_of_a_sweep_is_whole_or_named(tmp_path):
    points, draw = Points(tmp_path), random.Random(0)
    point = Point.of(["a=1", "b=2"], number=1, sweep="s", work=3.0)
    points.write(point)
    assert points.read() == [point]
    (path,) = (tmp_path / "points").iterdir()
    whole = path.read_bytes()
    values = json.loads(whole)
    contents = [
        {key: value for key, value in values.items() if key != "overrides"},
        values | {"more": 1},
        values | {"state": "gone"},
    ]
    contents += [values | {"overrides": ["a=1"]}, values | {"number": -1}, values | {"seconds": -1}, values | {"ended": "x"}]
    numbers = ("work", "seconds", "ended")
    contents += [
        values | {key: value}
        for key in values
        for value in OTHERS
        if type(value) is not type(values[key]) and not (key in numbers and type(value) is int)
    ]
    assert len(contents) > 50
    other = Point.of(["a=2"], number=2)
    points.write(other)

    def refused():
        told = []
        assert points.read(lambda file, error: told.append(str(error))) == [other]
        return "".join(told).startswith(f"{path} is not a point of a sweep") and "delete it and run the sweep again" in told[0]

    for content in contents:
        path.write_text(json.dumps(content))
        assert refused(), content
    for _ in range(60):
        damage(path, draw)
        assert refused()
        restore(path, whole)
    assert points.read() == [point, other]


def test_a_damaged_run_is_completed_again_from_its_shards(tmp_path, caplog, monkeypatch):
    overrides = ["debug=tiny", f"outputs={tmp_path}", "images=6", "shard_size=2", "sampler.iterations=2"]
    run(composed(*overrides), overrides)
    (result,) = tmp_path.glob("debug/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    samples = sorted((result.parent / "samples").iterdir())
    images = [np.load(path)["images"] for path in samples]
    for content, harm in (
        ("{}", lambda: None),
        ("[]", lambda: shutil.copy(samples[1], samples[0])),
        ("", lambda: samples[2].write_bytes(b"no shard")),
    ):
        result.write_text(content)
        harm()
        caplog.clear()
        run(composed(*overrides), overrides)
        assert json.loads(result.read_text())["metrics"] == metrics
        assert "result.json is not the result of this run" in caplog.text
        assert caplog.text.count("is made again now") == (content != "{}")
        assert all(np.array_equal(np.load(path)["images"], whole) for path, whole in zip(samples, images, strict=True))


@pytest.mark.parametrize("opened", [lambda path: MetricsFile(path).append({"a": 1}), lambda path: log_file(path).__enter__()])
def test_a_log_that_is_no_file_is_refused_at_once(tmp_path, opened):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, target in {"null": "/dev/null", "zero": "/dev/zero", "to_fifo": "fifo", "nowhere": "a/b", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file").write_text("kept\n")
    for path in [*tmp_path.iterdir(), tmp_path / "file" / "x", Path("/proc/x/y")]:
        if path.name != "file":
            with pytest.raises(PDSError, match=r"is no regular file: delete it|cannot write"):
                opened(path)
    assert (tmp_path / "file").read_text() == "kept\n"


def test_what_is_finished_is_shown_from_where_nothing_can_be_written(tmp_path, monkeypatch):
    tiny = ["images=2", "sampler.iterations=2", "tracker=none", "metric=none", f"outputs={tmp_path}", "group=g"]
    assert command("run.py", *tiny).returncode == 0

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pds.files.os.replace", read_only)
    monkeypatch.setattr("pds.lab.logs.logging.FileHandler", read_only)
    done = command("run.py", *tiny)
    assert done.returncode == 0 and "is done already" in done.stderr and "NFE" in done.stdout, done.stderr
    told = command("report.py", str(tmp_path / "g"), str(tmp_path / "nothing"), str(tmp_path / "g"))
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert told.stdout.count("NFE") == 2
    assert [f"error: {word}" in told.stderr for word in ("cannot write", "no runs in")] == [True, True]


@pytest.mark.parametrize("sweep", [False, True])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, sweep):
    (tmp_path / "file").write_text("kept")
    tiny = [*(["-m", "seed=0,1"] if sweep else []), "images=2", "sampler.iterations=2", "tracker=none", "metric=none"]

    def refused(outputs):
        ended = command("run.py", *tiny, f"outputs={outputs}", "group=g")
        lines = [line for line in ended.stderr.splitlines() if "error" in line]
        assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
        assert lines and all("error: cannot write" in line and "choose a folder" in line for line in lines), ended.stderr
        return lines[0]

    assert str(tmp_path / "file") in refused(tmp_path / "file")
    assert sweep or "/proc/nothing" in refused("/proc/nothing")
    for number in (errno.EROFS,) if sweep else (errno.ENOSPC, errno.EDQUOT):
        with monkeypatch.context() as patch:

            def full(*paths, number=number):
                raise OSError(number, os.strerror(number))

            patch.setattr("pds.files.os.replace", full)
            assert os.strerror(number) in refused(tmp_path / "outputs")
    ended = command("run.py", *tiny, "outputs='~nobody-of-this-name/x'")
    assert ended.returncode == 1 and "error: '~nobody-of-this-name/x' is no path" in ended.stderr
    assert not Path("~nobody-of-this-name").exists()
    for group in ("../../esc", "/etc/x"):
        ended = command("run.py", *tiny, f"outputs={tmp_path / 'o'}", f"group={group}")
        assert ended.returncode == 1 and "is no name of a folder inside outputs" in ended.stderr
    assert (tmp_path / "file").read_text() == "kept"
