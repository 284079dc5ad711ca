"""A table that prints nothing is a grid: each fact once, failures by name, and a chart with one line a row in two panels."""

import csv
import dataclasses
import html
import json
import re

import pytest
import yaml
from pds.lab.report.tables import Cell, Grid, Table, fill, markdown, table_lines

from pds.lab.points import Point, Points
from pds.lab.report import overview, write_report
from pds.lab.report.charts import _QUIET, _RAMP, _apart

METRIC = "fid_made_up_256"
COLUMNS = ("NFE 10", "NFE 20", "NFE 200")
DISTANCES = {
    "DDIM": (900.0, 400.0, 350.5),
    "Heun": (200.0, 90.0, 40.0),
    "PDS": (95.25, 31.5, None),
    "broken": (None, None, None),
}


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
                    "label": row,
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
    lines = table_lines(tmp_path, table)
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
    assert "Measured" not in markdown(table, waiting) and Grid.of(table, waiting).curves() == {}
    timed = dataclasses.replace(table, quantity="seconds")
    (only,) = grids(markdown(timed, table_lines(tmp_path, timed)))
    assert only["seconds"] == list(COLUMNS) and only["DDIM"][:2] == ["**1.25**", "**2.50**"]
    assert Grid.of(timed, table_lines(tmp_path, timed)).curves() == {}


def test_numbers_that_are_not_finite_or_of_other_metrics_are_not_the_lowest(tmp_path):
    table = make(tmp_path)
    lines = table_lines(tmp_path, table)
    grid = Grid.of(table, [dataclasses.replace(lines[0], measured=float("nan")), *lines[1:]])
    assert ("PDS", "NFE 10") in grid.lowest() and [line.nfe for line in grid.curves()["DDIM"]] == [20, 200]
    assert grids(markdown(table, list(grid.lines.values())))[0]["DDIM"][0] == "not finite"
    mixed = Grid.of(table, [*lines[:6], dataclasses.replace(lines[6], metric="fid_other_256"), *lines[7:]])
    assert mixed.lowest() == set() and mixed.curves() == {}
    assert "PDS (NFE 10): fid_other_256." in mixed.sentences()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_page_has_the_grid_and_its_chart(tmp_path, seeds):
    make(tmp_path, seeds)
    page = write_report(tmp_path).read_text()
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


def test_the_chart_has_a_line_a_row_in_both_panels(tmp_path):
    make(tmp_path)
    page = write_report(tmp_path).read_text()
    section = re.search(r"<h2>All &lt;of&gt; them.*?</section>", page, re.DOTALL)[0]
    svg = (tmp_path / "figures" / f"{METRIC}-against-NFE.svg").read_text()
    for picture in (svg, section):
        names = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]
        assert [name for name in names if name in DISTANCES] == ["PDS", "Heun", "DDIM"], "by rising distance, none without one"
        assert {"NFE (score evaluations)", "seconds for 256 images", "real data (floor)", METRIC, "10", "20", "200"} <= set(
            names
        )
        left, right = re.split(r'<g id="[^"]*axes_2">', picture)
        for count, colour in ((3, _QUIET[0]), (3, _QUIET[1]), (2, _RAMP[5])):
            markers = [len(re.findall(f"<use [^>]*{colour}", panel)) for panel in (left, right)]
            assert markers == [count + 1, count], "its points, and left one beside its name"
    assert "currentColor" in section and "currentColor" not in svg and "#01020" not in svg + section


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


def test_names_are_moved_apart_in_their_order_and_stay_inside():
    assert _apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert _apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert _apart([0.0, 0.01, 0.8], 0.1) == pytest.approx([0.0, 0.1, 0.8])
    assert _apart([0.99, 1.0], 0.1) == pytest.approx([0.9, 1.0])
