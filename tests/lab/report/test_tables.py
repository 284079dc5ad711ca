"""Printed, measured, difference: a difference only between numbers of one kind, and a note wherever they are not."""

import csv
import dataclasses

import pytest
from pds.lab.report.tables import Cell, Table, fill, markdown, texts, write_table

from pds.lab.points import Point
from pds.lab.report.runs import RunSummary


def table(*cells, **values):
    about = {"title": "t", "source": "[X]", "quantity": "distance", "metric": "clean_fid_inception", "images": 50_000}
    return Table(**(about | {"note": "", "another_model": False, "command": "python r.py", "cells": cells} | values))


def summary(tmp_path, name, **result):
    base = {"images": 50_000, "iterations": 100, "nfe": 200, "seconds": 10.0, "metrics": {}, "device": "GPU"}
    return RunSummary(tmp_path / name, "done", "", base | result)


def point(name, state="done", message="", run=""):
    return Point.of([f"name={name}"], state=state, message=message, run=run or name)


def test_seeds_give_mean_deviation_and_difference(tmp_path):
    points = [point("a"), point("b"), point("c")]
    runs = [
        summary(tmp_path, p.run, metrics={"clean_fid_inception_50k": value}, seconds=s)
        for p, value, s in zip(points, (3.0, 4.0, 5.0), (10.0, 20.0, 30.0), strict=True)
    ]
    asked = table(Cell("PDS", "T = 100", 3.26, tuple(p.digest for p in points)))
    (line,) = fill(asked, points, runs)
    assert (line.measured, line.deviation, line.seconds) == (4.0, 1.0, 20.0)
    assert line.difference == pytest.approx(0.74)
    assert (line.images, line.iterations, line.nfe, line.metric) == (50_000, 100, 200, "clean_fid_inception_50k")
    assert line.notes == []
    assert texts([line])[0][3] == "4.00 ± 1.00 (3 seeds)"


def test_what_is_not_alike_is_marked_and_what_cannot_be_compared_has_no_difference(tmp_path):
    cell = Cell("PDS", "T = 100", 3.26, (point("a").digest,))
    fewer = summary(tmp_path, "a", images=512, metrics={"clean_fid_inception_512": 30.0})
    other = summary(tmp_path, "a", metrics={"fid_mnist_classifier_50k": 30.0})
    (line,) = fill(table(cell), [point("a")], [fewer])
    assert line.notes == ["512 images instead of 50,000"]
    assert line.difference == pytest.approx(26.74)
    (line,) = fill(table(cell), [point("a")], [other])
    assert line.notes == ["other features than clean_fid_inception's"]
    assert line.difference is None
    (line,) = fill(table(cell, another_model=True), [point("a")], [fewer])
    assert line.notes == ["512 images instead of 50,000", "another model"]
    assert line.difference is None
    (line,) = fill(table(cell), [point("a")], [summary(tmp_path, "a")])
    assert (line.measured, line.notes) == (None, ["no distance: the runs have metric=none"])
    seconds = table(dataclasses.replace(cell, printed=90), quantity="seconds", images=50_000)
    (line,) = fill(seconds, [point("a")], [other])
    assert (line.measured, line.difference, line.metric, line.notes) == (10.0, -80.0, "seconds", ["measured on GPU"])
    (line,) = fill(dataclasses.replace(seconds, images=8), [point("a")], [other])
    assert (line.difference, line.notes) == (None, ["measured on GPU", "50,000 images instead of 8"])
    (line,) = fill(table(cell, note="other code"), [point("a")], [fewer])
    assert line.notes == ["512 images instead of 50,000", "other code"]


def test_seeds_of_another_metric_or_without_a_number_do_not_mix(tmp_path):
    points = [point("a"), point("b"), point("c")]
    cell = Cell("PDS", "1", 1.0, tuple(p.digest for p in points))
    runs = [
        summary(tmp_path, "a", metrics={"clean_fid_inception_50k": 3.0}),
        summary(tmp_path, "b", metrics={"fid_mnist_classifier_50k": 9.0}),
        summary(tmp_path, "c", metrics={"clean_fid_inception_50k": 4.0}),
    ]
    (line,) = fill(table(cell), points, runs)
    assert (line.measured, line.seeds, line.notes) == (3.5, 2, ["2 of 3 seeds"])
    assert texts([line])[0][3] == "3.50 ± 0.71 (2 seeds)"
    runs[2].result["metrics"]["clean_fid_inception_50k"] = float("nan")
    (line,) = fill(table(cell), points, runs)
    assert line.measured != line.measured
    (line,) = fill(table(cell), points, runs[:1])
    assert "a run is gone: run the command again" in line.notes


def test_cells_without_a_number_say_why(tmp_path):
    cells = [
        Cell("DDIM", "T = 100", 6.08),
        Cell("a", "1", None, (), "checkpoint x"),
        Cell("b", "1", None, (point("b").digest, point("b2").digest)),
        Cell("c", "1", None, (point("c").digest,)),
        Cell("d", "1", None, (point("d").digest, point("e").digest)),
    ]
    points = [point("b", "failed", "too large"), point("b2", "failed", "too large"), point("d")]
    lines = fill(table(*cells), points, [summary(tmp_path, "d", metrics={"clean_fid_inception_50k": 3.0})])
    assert [line.notes for line in lines] == [
        ["as printed"],
        ["missing: checkpoint x"],
        ["failed: too large"],
        ["not started"],
        ["not started", "1 of 2 seeds"],
    ]
    assert [line.measured for line in lines] == [None, None, None, None, 3.0]


def test_the_files_of_a_table(tmp_path):
    assert write_table(tmp_path) is None
    asked = table(Cell("DDIM | x", "T = 100", 6.08), note="other code", missing=["x.pth: somewhere"])
    asked.write(tmp_path)
    assert write_table(tmp_path) == asked
    text = (tmp_path / "table.md").read_text()
    assert "| DDIM \\| x | T = 100 |    6.08 |" in text
    assert "- Printed: [X].\n- Other code.\n" in text
    assert "Missing: x.pth: somewhere" in text
    assert "python r.py" in text
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    assert (row["row"], row["printed"], row["measured"], row["note"]) == ("DDIM | x", "6.08", "", "as printed")
    waiting = markdown(asked, fill(asked, [], []))
    assert waiting.startswith("**t**")
    # One hyphen and a colon at least, or it is no table.
    assert all(set(cell) <= {"-", ":"} and "-" in cell for cell in waiting.splitlines()[3].strip("| ").split(" | "))
