"""Printed, measured, difference: only between numbers of one kind; a table that prints nothing is a grid, each fact once."""

import csv
import dataclasses
import html
import json
import re

import pytest
import yaml
from made_runs import edit

from pds.lab.charts import QUIET, RAMP
from pds.lab.paper_table import Cell, Table
from pds.lab.points import Point, Points
from pds.lab.report import overview, write_report
from pds.lab.report.runs import Run, read_runs
from pds.lab.report.table import Grid, fill, long_form, markdown, table_lines, write_table

METRIC = "fid_made_up_256"
COLUMNS = ("NFE 10", "NFE 20", "NFE 200")
DISTANCES = {
    "DDIM": (900.0, 400.0, 350.5),
    "Heun": (200.0, 90.0, 40.0),
    "PDS": (95.25, 31.5, None),
    "broken": (None, None, None),
}


def table(*cells, **values):
    about = {"title": "t", "source": "[X]", "quantity": "distance", "metric": "clean_fid_inception", "images": 50_000}
    return Table(**(about | {"note": "", "another_model": False, "command": "python r.py", "cells": cells} | values))


def summary(tmp_path, name, **result):
    base = {"images": 50_000, "iterations": 100, "nfe": 200, "seconds": 10.0, "metrics": {}, "device": "GPU"}
    return Run(tmp_path / name, "done", "", base | result)


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
    assert line.record == {
        **{"row": "PDS", "column": "T = 100", "printed": 3.26, "measured": 4.0, "deviation": 1.0, "seeds": 3},
        **{"difference": pytest.approx(0.74), "images": 50_000, "T": 100, "NFE": 200, "seconds": 20.0},
        **{"metric": "clean_fid_inception_50k", "note": ""},
    }
    assert long_form([line])[1][3:5] == ["4.0 ± 1.0 (3 seeds)", "+0.7"]


def test_what_is_not_alike_is_marked_and_what_cannot_be_compared_has_no_difference(tmp_path):
    cell = Cell("PDS", "T = 100", 3.26, (point("a").digest,))
    fewer = summary(tmp_path, "a", images=512, metrics={"clean_fid_inception_512": 30.0})
    other = summary(tmp_path, "a", metrics={"fid_mnist_classifier_50k": 30.0})
    (line,) = fill(table(cell), [point("a")], [fewer])
    assert line.notes == ["512 images instead of 50,000"]
    assert line.record["difference"] == pytest.approx(26.74)
    (line,) = fill(table(cell), [point("a")], [other])
    assert line.notes == ["other features than clean_fid_inception's"]
    assert line.record["difference"] is None
    (line,) = fill(table(cell, another_model=True), [point("a")], [fewer])
    assert line.notes == ["512 images instead of 50,000", "another model"]
    assert line.record["difference"] is None
    (line,) = fill(table(cell), [point("a")], [summary(tmp_path, "a")])
    assert (line.setting, line.notes) == (None, ["no distance: the runs have metric=none"])
    seconds = table(dataclasses.replace(cell, printed=90), quantity="seconds", images=50_000)
    (line,) = fill(seconds, [point("a")], [other])
    assert (line.setting.number, line.record["difference"], line.notes) == (10.0, -80.0, ["measured on GPU"])
    (line,) = fill(dataclasses.replace(seconds, images=8), [point("a")], [other])
    assert (line.record["difference"], line.notes) == (None, ["measured on GPU", "50,000 images instead of 8"])
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
    assert (line.setting.number, line.notes) == (3.5, ["2 of 3 seeds"])
    assert long_form([line])[1][3] == "3.5 ± 0.7 (2 seeds)"
    (line,) = fill(table(cell), points, runs[:1])
    assert "a run is gone: run the command again" in line.notes


def test_a_table_that_is_started_again_and_killed_keeps_its_numbers(tmp_path):
    whole = make(tmp_path, seeds=(0, 1))
    before = grids(overview(tmp_path))
    points = Points(tmp_path)
    points.plan([dataclasses.replace(p, state="waiting") for p in points.read() if p.state == "done"])
    assert {p.state for p in points.read()} == {"waiting", "failed"}
    assert grids(overview(tmp_path)) == before
    lines = table_lines(tmp_path)[1]
    assert lines[0].notes[0] == "from an earlier start"
    lost = next(p for p in points.read() if p.run == "DDIM-10-0")
    (tmp_path / lost.run / "result.json").unlink()
    (tmp_path / lost.run / "status.json").write_text('{"state": "running", "message": ""}')
    (line, *_) = fill(whole, points.read(), read_runs(tmp_path))
    assert (line.setting.number, line.notes[:2]) == (901.0, ["waiting", "from an earlier start"])
    # A run that was repeated alone is done, for any earlier state of its point.
    points.write(dataclasses.replace(lost, run="DDIM-10-1", state="failed", message="stopped by hand"))
    (line, *_) = fill(whole, points.read(), read_runs(tmp_path))
    assert line.setting is not None and "failed" not in str(line.notes)


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
    assert [line.record["measured"] for line in lines] == [None, None, None, None, 3.0]


def test_the_files_of_a_table(tmp_path):
    assert write_table(tmp_path) is None
    asked = table(Cell("DDIM | x", "T = 100", 6.08), note="other code", missing=["x.pth: somewhere"])
    asked.write(tmp_path)
    assert write_table(tmp_path)[0] == asked
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


def make(folder, seeds=(0,), quantity="distance", images=256):
    """The folder of a table of four rows; Heun takes one evaluation less, the last cell of PDS and all of broken failed."""
    points, cells = Points(folder), []
    for row, distances in DISTANCES.items():
        for column, distance in zip(COLUMNS, distances, strict=True):
            nfe = int(column.split()[1])
            overrides = [[f"row={row}", f"nfe={nfe}", f"seed={seed}"] for seed in seeds]
            cells.append(Cell(row, column, None, tuple(Point.of(o).digest for o in overrides)))
            for seed, given in zip(seeds, overrides, strict=True):
                name = f"{row}-{nfe}-{seed}"
                if distance is None:
                    points.write(Point.of(given, state="failed", message="too | large" if row == "PDS" else "no such net."))
                    continue
                points.write(Point.of(given, state="done", run=name))
                result = {
                    "name": name,
                    "label": row,
                    "model": "net",
                    "vanilla": row != "PDS",
                    "sampler": row,
                    "iterations": (nfe + 1) // 2 if row == "Heun" else nfe,
                    "nfe": nfe - (row == "Heun"),
                    "images": 256,
                    "seconds": nfe / 8,
                    "seed": seed,
                    "metrics": {METRIC: distance + seed},
                    "floor": {METRIC: 12.25},
                    "device": "made-up GPU",
                }
                (folder / name).mkdir(parents=True)
                (folder / name / "result.json").write_text(json.dumps(result))
                (folder / name / "status.json").write_text('{"state": "done", "message": ""}')
                sampler = {"_target_": row, "iterations": result["iterations"]}
                (folder / name / "config.yaml").write_text(yaml.safe_dump({"sampler": sampler, "seed": seed}))
    about = {"title": "All <of> them", "source": "here", "metric": "fid_made_up", "note": "", "another_model": False}
    table = Table(**about, quantity=quantity, images=images, command="python r.py", cells=tuple(cells))
    table.write(folder)
    return table


def grids(text):
    """The grids of a text as {row: cells}."""
    bodies = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    split = [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in body] for body in bodies]
    return [{row[0]: row[1:] for row in body} for body in split]


def test_a_grid_has_a_line_a_row_and_says_the_rest_once(tmp_path):
    make(tmp_path)
    text = overview(tmp_path)
    measured, seconds = grids(text)
    assert measured[METRIC] == seconds["seconds"] == list(COLUMNS)
    assert measured["DDIM"] == ["900", "400", "350"] and measured["Heun"] == ["200", "90.0", "**40.0**"]
    assert measured["PDS"] == ["**95.2**", "**31.5**", "failed"] and measured["broken"] == ["failed"] * 3
    assert seconds["Heun"] == ["1.25", "2.50", "25.0"] and seconds["PDS"] == ["1.25", "2.50", "–"]
    assert len({len(line) for line in text.split("\n\n")[1].splitlines()}) == 1, "columns line up in a terminal"
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        f"- Measured: {METRIC}; 256 images.",
        "- Seconds for 256 images, on made-up GPU.",
        "- Real data (floor): 12.2.",
        "- T: 10, 20, 200; Heun: 5, 10, 100.",
        "- NFE: 10, 20, 200; Heun: 9, 19, 199.",
        "- PDS (NFE 200): failed: too | large.",
        "- broken: failed: no such net.",
        "- Source: here.",
    ]


def test_seeds_give_deviations_and_what_all_cells_share_is_said_once(tmp_path):
    make(tmp_path, seeds=(0, 1, 2), images=2048)
    points = Points(tmp_path)
    lost = Point.of(["row=DDIM", "nfe=20", "seed=2"])
    points.write(dataclasses.replace(lost, state="failed", message="too | large"))
    text = overview(tmp_path)
    measured, _ = grids(text)
    assert measured["PDS"] == ["**96.2±1.0**", "**32.5±1.0**", "failed"] and measured["DDIM"] == ["901±1", "400±1", "352±1"]
    assert f"- Measured: {METRIC}; 256 images instead of 2,048; mean ± standard deviation over 3 seeds." in text
    assert text.count("256 images instead") == 1
    assert "- DDIM (NFE 20): 2 of 3 seeds." in text
    assert "- DDIM (NFE 20); PDS (NFE 200): failed: too | large." in text


def test_the_form_follows_the_table(tmp_path):
    table = make(tmp_path)
    _, lines = table_lines(tmp_path)
    assert Grid.of(table, lines) is not None
    printed = [dataclasses.replace(lines[0], cell=dataclasses.replace(lines[0].cell, printed=3.0)), *lines[1:]]
    assert Grid.of(table, printed) is None and "| row " in markdown(table, printed)
    assert Grid.of(table, lines[:3]) is None, "one row"
    assert Grid.of(table, lines[::3]) is None, "one column"
    assert Grid.of(table, [lines[0], lines[1], lines[3], lines[5], lines[6], lines[8]]) is not None
    apart = [Cell(row, f"{row} {i}") for row in "ab" for i in range(2)]
    assert Grid.of(table, fill(dataclasses.replace(table, cells=tuple(apart)), [], [])) is None, "rows that share no column"
    sparse = [Cell(row, column) for row in "ab" for column in "12"] + [Cell(name, name) for name in "cde"]
    assert Grid.of(table, fill(dataclasses.replace(table, cells=tuple(sparse)), [], [])) is None, "mostly empty"
    assert Grid.of(table, [*lines, lines[0]]) is None, "two cells at one place"


def test_a_grid_that_waits_or_measures_seconds_has_no_second_one_and_no_chart(tmp_path):
    table = make(tmp_path)
    waiting = fill(table, [], [])
    (only,) = grids(markdown(table, waiting))
    assert only["distance"] == list(COLUMNS) and only["DDIM"] == ["not started"] * 3
    assert "Measured" not in markdown(table, waiting) and Grid.of(table, waiting).curves() == []
    timed = dataclasses.replace(table, quantity="seconds")
    timed.write(tmp_path)
    _, lines = table_lines(tmp_path)
    (only,) = grids(markdown(timed, lines))
    assert only["seconds"] == list(COLUMNS) and only["DDIM"][:2] == ["**1.25**", "**2.50**"]
    assert Grid.of(timed, lines).curves() == []


def test_numbers_of_several_metrics_have_no_lowest(tmp_path):
    table = make(tmp_path)
    assert ("PDS", "NFE 10") in Grid.of(table, table_lines(tmp_path)[1]).lowest
    edit(tmp_path / "PDS-10-0", metrics={"fid_other_256": 1.0})
    mixed = Grid.of(table, table_lines(tmp_path)[1])
    assert mixed.lowest == set() and mixed.curves() == []
    assert "PDS (NFE 10): fid_other_256." in mixed.sentences()


def test_the_lowest_is_among_numbers_of_one_network(tmp_path):
    table = make(tmp_path)
    assert Grid.of(table, table_lines(tmp_path)[1]).lowest == {("PDS", "NFE 10"), ("PDS", "NFE 20"), ("Heun", "NFE 200")}
    edit(tmp_path / "PDS-10-0", model="other")
    (tmp_path / "Heun-200-0" / "config.yaml").write_text("fingerprint: {weights: other}")
    # PDS is alone with its network at 10 evaluations, and so is each of Heun and DDIM at 200.
    assert Grid.of(table, table_lines(tmp_path)[1]).lowest == {("Heun", "NFE 10"), ("PDS", "NFE 20")}


def test_the_csv_still_has_every_cell(tmp_path):
    make(tmp_path, seeds=(0, 1))
    write_report(tmp_path)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 12 and " ".join(rows[0]) == (
        "row column printed measured deviation seeds difference images T NFE seconds metric note"
    )
    assert (rows[3]["row"], rows[3]["measured"], rows[3]["seeds"], rows[3]["NFE"]) == ("Heun", "200.5", "2", "9")
    assert rows[8]["note"] == "failed: too | large"
    assert (tmp_path / "table.md").read_text().startswith(overview(tmp_path))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_page_has_the_grid_and_its_chart(tmp_path, seeds):
    make(tmp_path, seeds)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = re.search(r"<h2>All &lt;of&gt; them.*?</section>", page, re.DOTALL)[0]
    best = re.findall(r'<td class="number best">([\d.]+)', section)
    assert best == (["40.0", "95.2", "31.5"] if len(seeds) == 1 else ["40.5", "95.8", "32.0"])
    assert ("<small>± 0.7</small>" in section) == (len(seeds) > 1)
    assert section.count('class="number failing">failed<') == 4 and section.count("no such net") == 1 + 3, "once, and in full"
    assert "<summary>Every cell in full</summary>" in section
    assert "Against T" not in page, "the chart of the rows shows it"
    assert ("<summary>Seeds, curves and heat maps of single options</summary>" in page) == (len(seeds) > 1)
    before = page[: page.index("<h2>All")]
    assert before.count("row=broken") == 3 and before.count("no such net") == 1 and ("and 3 more" in before) == (len(seeds) > 1)


def test_the_chart_has_a_line_a_row_in_both_columns(tmp_path):
    make(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    svg = (tmp_path / "figures" / f"{METRIC}-against-NFE.svg").read_text()
    assert svg in page
    words = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert [word for word in words if word in DISTANCES] == ["DDIM", "Heun", "PDS"], "as their ends stand, none without one"
    assert {"NFE (score evaluations)", "seconds for 256 images", "real data (floor)", METRIC, "10", "20", "200"} <= set(words)
    for count, colour in ((3, QUIET[0]), (3, QUIET[1]), (2, RAMP[5])):
        assert len(re.findall(f"<use [^>]*{colour}", svg)) == 2 * count + 1, "its points twice, and one in the legend"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"cells": 3}', b'{"cells": [{}]}', b"[" * 100_000])
def test_a_damaged_table_costs_no_report(tmp_path, content):
    make(tmp_path)
    (tmp_path / "table.json").write_bytes(content)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The table cannot be shown" in page and "table.json is not a table" in page and "40.0" in page
