"""Runs are read in any state: ordered and told apart, and a damaged one hides no other."""

import json
import shutil

import pytest
import yaml
from made_runs import METRIC, NOTHING, edit, statistics, write_run

from pds.errors import PDSError
from pds.lab.points import Point, Points
from pds.lab.report import format_table, overview, read_runs, write_report
from pds.lab.report.runs import Runs, differing


def test_models_stay_together_and_failures_come_last(tmp_path):
    for model, label, distance in [("B", "vanilla", 3.0), ("B", "PDS", 2.0), ("A", "vanilla", 20.0), ("A", "PDS", 9.0)]:
        write_run(tmp_path, distance, NOTHING if label == "vanilla" else statistics(5.0, 50), model=model)
    write_run(tmp_path, 4.0, model="A", label="other", sampler="EDM")
    write_run(tmp_path, None, state="failed", message="step is too large")
    write_run(tmp_path, None, label="without a metric")
    runs = read_runs(tmp_path)
    assert [(run.model, run.label, run.state) for run in runs] == [
        ("B", "vanilla", "done"),
        ("B", "PDS", "done"),
        ("A", "other", "done"),
        ("A", "vanilla", "done"),
        ("A", "PDS", "done"),
        ("net", "without a metric", "done"),
        ("–", "run-5", "failed"),
    ]
    assert "| A " in format_table(runs) and "| A " not in format_table(runs.where(lambda run: run.model == "B"))
    with pytest.raises(PDSError, match="no runs in"):
        read_runs(tmp_path / "run-0")


def test_a_baseline_is_of_the_same_kind_sampler_length_and_seed(tmp_path):
    for number, other in enumerate(({}, {"nfe": 80}, {"sampler": "EDM"}, {"seed": 9}, {"model": "B"}, {"weights": "v"})):
        write_run(tmp_path, 10.0 - number, **other)
    write_run(tmp_path, 8.0, statistics(5.0, 50), label="PDS")
    runs = read_runs(tmp_path)
    (pds,) = (run for run in runs if not run.vanilla)
    assert runs.baseline(pds, METRIC).metrics[METRIC] == 10.0
    assert all(runs.baseline(run, METRIC) is None for run in runs if run.vanilla)


def test_weights_of_one_model_are_told_apart_in_the_table_and_in_the_summary(tmp_path):
    for file in ("first.pt", "second.pt"):
        edit(write_run(tmp_path, 10.0), checkpoint={"file": file, "sha256": file})
    assert "| first.pt " in format_table(read_runs(tmp_path))
    write_report(tmp_path)
    head, *rows = (line.split(",") for line in (tmp_path / "summary.csv").read_text().splitlines())
    assert {row[head.index("weights")] for row in rows} == {"first.pt w", "second.pt w"}
    other = tmp_path / "other"
    for model in ("A", "B"):
        edit(write_run(other, 10.0, model=model), checkpoint={"file": model, "sha256": model})
    assert "weights" not in format_table(read_runs(other))


def test_runs_of_one_network_before_and_after_a_change_of_its_code_or_its_options_never_mix(tmp_path):
    config = yaml.safe_load((write_run(tmp_path, 2.0) / "config.yaml").read_text())

    def changed(distance, seed, width, **facts):
        node = config | {
            "model": config["model"] | {"width": width},
            "seed": seed,
            "fingerprint": config["fingerprint"] | facts,
        }
        write_run(tmp_path, distance, seed=seed, config=node)

    changed(6.0, 1, 16, beside_weights="11112222")
    changed(6.2, 2, 16, beside_weights="11112222")
    changed(9.0, 1, 8)
    runs = read_runs(tmp_path)
    assert [len(runs.repeats(run)) for run in runs] == [1, 2, 2, 1]
    for facts in ({"labels": "0" * 16}, {"labels": "1" * 16}, {"batch": "2"}, {"batch": "8"}):
        other = tmp_path / "other" / str(facts)
        write_run(other, 1.0, config=config | {"fingerprint": config["fingerprint"] | facts})
    alike = Runs(tuple(run for folder in (tmp_path / "other").iterdir() for run in read_runs(folder)))
    assert [len(alike.repeats(run)) for run in alike] == [1, 1, 1, 1]
    # A guess for T is no setting beside T.
    for guess in ("2.1", "1.9"):
        write_run(tmp_path / "auto", 1.0, config=config | {"fingerprint": config["fingerprint"] | {"sampler.eta": guess}})
    assert not differing([run.values for run in read_runs(tmp_path / "auto")])
    head, _, *rows = (line.split() for line in format_table(runs).splitlines())
    assert head[1:6] == ["run", "|", "width", "|", "weights"]
    assert [row[3] for row in rows[:4]] == ["16", "16", "16", "8"]
    assert sum("11112222" in row for row in rows) == 2


def test_a_table_has_a_column_a_metric_and_the_floor_last(tmp_path):
    write_run(tmp_path, 10.0, seed=1)
    write_run(tmp_path, 3.25, label="other", metric="fid_made_up_2k", floor={"fid_made_up_99": 2.5})
    write_run(tmp_path, None, state="failed", message="too large")
    table, floor, unfinished = format_table(read_runs(tmp_path)).split("\n\n")
    header, _rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert header == ["run", "sampler", "T", "NFE", "seed", "images", "seconds", METRIC, "fid_made_up_2k"]
    assert len({len(line) for line in table.splitlines()}) == 1, "columns line up in a terminal"
    assert {row[0]: row[-2:] for row in rows} == {
        "vanilla": ["10.00", "–"],
        "other": ["–", "3.25"],
        "real data (floor)": ["1.50", "–"],
    }
    assert (floor, unfinished) == ("real data (floor): fid_made_up_99 = 2.50", "failed: run-2: too large")


def test_differing_tells_values_apart_by_what_they_are():
    values = [{"a": 1, "b": 1, "c": [1], "d": "1"}, {"a": 1.0, "b": True, "c": [2], "d": "1", "e": None}]
    assert differing(values) == {"b": [1, True], "c": [[1], [2]], "e": ["–", None]}


def test_points_tell_what_folders_do_not(tmp_path):
    done, ran = write_run(tmp_path, 5.0), write_run(tmp_path, None, state="running")
    Points(tmp_path).write(Point(("seed=0",), 1, state="failed", message="old", run=done.name))
    Points(tmp_path).write(Point(("seed=1",), 2, state="skipped", message="weights are missing", run=ran.name))
    Points(tmp_path).write(Point(("filter.alpha=-1",), 3, state="failed", message="alpha is too small"))
    assert [(run.state, run.message, run.label) for run in read_runs(tmp_path)] == [
        ("done", "", "vanilla"),  # repeated alone
        ("failed", "alpha is too small", "filter.alpha=-1"),
        ("skipped", "weights are missing", "seed=1"),
    ]
    assert read_runs(tmp_path).runs[1].values == {"filter.alpha": -1}


def with_entry(**values):
    """A damage that replaces entries of a sound result."""
    return lambda folder: edit(folder, **values)


def with_bytes(name, content):
    """A damage that replaces a file."""

    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return damage


DAMAGES = {
    **{
        f"result {content[:12]!r}": with_bytes("result.json", content)
        for content in (b"", b"[]", b"{}", b"0", b"null", b'{"metrics":"x"}', b'{"label":', b"\xff\xfe", b"[" * 100_000)
    },
    **{
        f"result's {key} is {value!r:.20}": with_entry(**{key: value})
        for key, values in {
            "metrics": (None, "x", [1.0], {METRIC: "x"}, {METRIC: None}, {METRIC: [1]}, {METRIC: True}, {METRIC: 10**400}),
            "floor": (None, 3, {METRIC: "x"}),
            "label": (None, 5, [], "half \ud800 a character"),
            "seconds": ("1", None, [], float("nan"), float("inf")),
            "iterations": ("x", [], {}),
            "seed": ("x", {}),
            "vanilla": ("yes", 1),
            "model": (3, None),
            "versions": ([], 1),
            "checkpoint": ("x", [1]),
        }.items()
        for value in values
    },
    **{
        f"config {content[:12]!r}": with_bytes("config.yaml", content)
        for content in (b"[]", b"a: [", b"a: \x00", b"\xff", b"{a: " * 50_000, b"1: 2", b"&a [*a]", b"a: !!python/none x")
    },
    **{
        f"status {content[:12]!r}": with_bytes("status.json", content)
        for content in (b"", b"[]", b'{"state": 3}', b"{}", b'{"state": "done"', b"[" * 100_000)
    },
}


def test_copied_folders_say_what_mends_them_and_a_result_needs_no_status(tmp_path):
    run = write_run(tmp_path, 3.0, label="one")
    shutil.copytree(run, tmp_path / "copy")
    (run / "status.json").unlink()
    whole, copied = read_runs(tmp_path)
    assert (whole.label, whole.state, copied.state) == ("one", "done", "damaged")
    assert "is of the run 'run-0': give its folder this name again, or delete it" in copied.message


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_neighbour_hides_no_healthy_run(tmp_path, kind):
    write_run(tmp_path, 7.25, label="healthy")
    DAMAGES[kind](write_run(tmp_path, 3.0, label="damaged"))
    runs = read_runs(tmp_path)
    assert [(run.label, run.state) for run in runs] == [("healthy", "done"), ("run-1", "damaged")]
    assert str(tmp_path / "run-1") in runs.runs[1].message and "again" in runs.runs[1].message
    told = overview(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "damaged: run-1" in told and "<strong>damaged</strong> <code>run-1</code>" in page
    for text in (told, page):
        assert "healthy" in text and "7.25" in text


@pytest.mark.parametrize("content", [b"", b"[]", b'{"cells": [3]}', b"\xff"])
def test_a_damaged_table_hides_no_run(tmp_path, content):
    write_run(tmp_path, 7.25)
    (tmp_path / "table.json").write_bytes(content)
    for text in (overview(tmp_path), write_report(tmp_path).read_text(encoding="utf-8")):
        assert "table.json is not" in text and "7.25" in text


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"overrides": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_point_hides_no_run(tmp_path, content):
    write_run(tmp_path, 7.25)
    Points(tmp_path).write(Point(("seed=0",), 1, state="done", run="run-0"))
    (tmp_path / "points" / "0.json").write_bytes(content)
    Points(tmp_path).write(Point(("seed=1",), 2, state="failed", message="its own"))
    assert sorted(run.state for run in read_runs(tmp_path)) == ["damaged", "done", "failed"]
    assert (
        "its own" in overview(tmp_path)
        and "points" in overview(tmp_path)
        and "7.25" in write_report(tmp_path).read_text(encoding="utf-8")
    )


def test_results_may_lack_what_older_versions_did_not_write(tmp_path):
    folder = write_run(tmp_path, 7.25)
    result = json.loads((folder / "result.json").read_text())
    assert "source" not in result and "device" not in result and "versions" not in result
    assert "7.25" in write_report(tmp_path).read_text(encoding="utf-8")
