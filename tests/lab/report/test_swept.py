"""Sweeps: what was swept is found, what may not be compared stays apart, and every number and failure is on the page."""

from __future__ import annotations

import csv
import html
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pds.lab.points import Point, Points
from pds.lab.report import format_table, read_runs, write_report
from pds.lab.report.swept import ALPHA, Best, T, panels
from pds.pictures import image_grid

METRIC = "fid_made_up_256"
NOTHING = {"_target_": "NoFilter"}


def statistics(alpha, t):
    reference = {"alpha": 5.0, "iterations": 100}
    return {"_target_": "statistics_filter", "alpha": alpha, "pixels": "none", "iterations": t, "reference": reference}


def parametric(r, lam):
    return {"_target_": "ParametricFilter", "r": r, "lam": lam, "region": "outside_low"}


def write_run(root, distance, filter=NOTHING, t=50, seed=0, state="done", message="", images=256, metric=METRIC, **more):
    """One run folder, as experiments/run.py leaves it; `distance` None is none."""
    number = len(list(root.glob("*/config.yaml")))
    folder = root / f"run-{number}"
    folder.mkdir(parents=True)
    config = {
        "model": {"_target_": "net", "width": 16},
        "filter": filter,
        "sampler": {"_target_": "PC", "iterations": t, "end": 0.01 / t},
        "seed": seed,
        "images": images,
        "shard_size": 4 + number,
        "outputs": f"out{number}",
        "tracker": {"run": number},
        "sweep": {"number": number},
        "published": {"iterations": 1000 + number},
        "fingerprint": {"weights": more.get("weights", "w"), "filters": str(filter), "reference": "r"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status.json").write_text(json.dumps({"state": state, "message": message}))
    if state == "done":
        vanilla = filter is NOTHING
        result = {
            "name": folder.name,
            "label": "vanilla" if vanilla else "PDS",
            "vanilla": vanilla,
            "sampler": more.get("sampler", "ancestral"),
            "iterations": t,
            "nfe": 2 * t,
            "images": images,
            "seconds": t / 10,
            "seed": seed,
            "model": more.get("model", "net"),
            "metrics": {} if distance is None else {metric: distance},
            "floor": {METRIC: 1.5},
            "command": f"python run.py {number}",
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def only_panel(root):
    (panel,) = panels(read_runs(root))
    return panel


@pytest.fixture
def over_alpha_and_t(tmp_path):
    """vanilla, and α x T with its best at α = T / 20: inside the grid at T = 50 and 100, at its edge at T = 25."""
    for t in (25, 50, 100):
        write_run(tmp_path, 30.0, t=t)
        for alpha in (1.25, 2.5, 5.0, 10.0):
            write_run(tmp_path, 4 + abs(np.log(alpha * 20 / t)), statistics(alpha, t), t)
    return tmp_path


@pytest.fixture
def over_r_and_lam(tmp_path):
    """r x λ with a cell that failed in its folder, one that failed and one that was skipped without a folder."""
    for r, lam, distance in [(0.1, 0.9, 812.3), (0.1, 1.6, 9.5), (0.2, 0.9, 7.25), (0.2, 1.6, 6.5)]:
        write_run(tmp_path, distance, parametric(r, lam))
    ran = write_run(tmp_path, None, parametric(0.3, 0.9), state="failed", message="no <space> left")
    points = Points(tmp_path)
    points.write(Point(("filter.r=0.3", "filter.lam=0.9"), 1, state="failed", message="no <space> left", run=ran.name))
    points.write(Point(("filter.r=0.1", "filter.lam=2.0"), 2, state="failed", message="lam is too large"))
    points.write(Point(("filter.r=0.2", "filter.lam=2.0"), 3, state="skipped", message="weights are missing"))
    points.write(Point(("filter.r=0.4",), 4, state="waiting"))
    points.write(Point(("filter.r=0.5",), 5, state="running"))
    return tmp_path


def test_axes_are_what_was_chosen_not_what_follows_or_keeps_books(over_alpha_and_t):
    panel = only_panel(over_alpha_and_t)
    assert panel.axes == (T, ALPHA)
    assert set(panel.keys) == {T, ALPHA, "filter._target_", "filter.pixels"}


def test_seeds_are_one_setting(tmp_path):
    for seed, distance in enumerate((4.0, 5.0, 9.0)):
        write_run(tmp_path, distance, statistics(5.0, 50), seed=seed)
    write_run(tmp_path, 7.0)
    vanilla, pds = only_panel(tmp_path).settings
    assert (pds.distance, pds.spread, len(pds.runs)) == (6.0, pytest.approx(7**0.5), 3)
    assert (vanilla.distance, vanilla.spread, len(vanilla.runs)) == (7.0, 0.0, 1)
    page = write_report(tmp_path).read_text()
    assert "6.00 ± 2.65</td><td class=number>3</td>" in page and "7.00</td><td class=number>1</td>" in page


@pytest.mark.parametrize(
    "other",
    [
        {"metric": "fid_made_up_512", "images": 512},
        {"model": "other net"},
        {"weights": "other weights"},
    ],
)
def test_what_may_not_be_compared_is_in_another_panel(tmp_path, other):
    for t in (25, 50):
        write_run(tmp_path, 100.0 / t, t=t)
        write_run(tmp_path, 900.0 / t, t=t, **other)
    found = panels(read_runs(tmp_path))
    values = [[s.distance for line in panel.curves(T).lines for s in line.settings] for panel in found]
    assert sorted(values) == [[4.0, 2.0], [36.0, 18.0]]
    write_report(tmp_path)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 2


def test_a_line_is_all_that_differs_but_x(over_alpha_and_t):
    panel = only_panel(over_alpha_and_t)
    curves = panel.curves(T)
    assert [line.label for line in curves.lines] == ["vanilla", "PDS α=1.25", "PDS α=2.5", "PDS α=5", "PDS α=10"]
    assert panel.curves(T, most=2).lines[0].vanilla, "vanilla is never left out"
    assert [line.vanilla for line in curves.lines] == [True, False, False, False, False]
    assert [[s.values[T] for s in line.settings] for line in curves.lines] == [[25, 50, 100]] * 5
    by_alpha = panel.curves(ALPHA)
    assert [line.label for line in by_alpha.lines] == ["PDS T=25", "PDS T=50", "PDS T=100"]
    assert [line.label for line in by_alpha.levels] == ["vanilla T=25", "vanilla T=50", "vanilla T=100"]
    assert len(panel.curves(T, most=3).lines) == 3 and panel.curves(T, most=3).left_out == 2


def test_a_vanilla_level_has_the_same_rest(tmp_path):
    for alpha in (2.5, 5.0):
        write_run(tmp_path, alpha, statistics(alpha, 50), 50)
    write_run(tmp_path, 30.0, t=50)
    write_run(tmp_path, 20.0, t=100)
    curves = only_panel(tmp_path).curves(ALPHA)
    assert [level.label for level in curves.levels] == ["vanilla T=50"]


def test_samplers_are_lines_of_their_own(tmp_path):
    for t in (25, 50):
        for sampler, scale in (("ancestral", 1), ("reverse diffusion", 2)):
            folder = write_run(tmp_path, 5.0, statistics(scale * t / 10, t), t, sampler=sampler)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["sampler"]["_target_"] = sampler
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = only_panel(tmp_path).curves(T).lines
    assert sorted(line.label for line in lines) == ["PDS α by T, ancestral", "PDS α by T, reverse diffusion"]
    assert [len(line.settings) for line in lines] == [2, 2]


def test_an_alpha_given_with_t_is_one_line(tmp_path):
    for t, alpha in ((80, 2.2), (166, 5.0)):
        write_run(tmp_path, 500 / t, statistics(alpha, t), t)
        write_run(tmp_path, 900 / t, t=t)
    panel = only_panel(tmp_path)
    assert panel.axes == (T,)
    assert [(line.label, len(line.settings)) for line in panel.curves(T).lines] == [("vanilla", 2), ("PDS α by T", 2)]


def test_heat_map_has_every_cell(over_r_and_lam):
    (found,), left_out = only_panel(over_r_and_lam).heat_maps("filter.r", "filter.lam")
    assert (found.x, found.y) == ("filter.r", "filter.lam")
    assert {place: setting.distance for place, setting in found.cells.items()} == {
        (0.1, 0.9): 812.3,
        (0.1, 1.6): 9.5,
        (0.2, 0.9): 7.25,
        (0.2, 1.6): 6.5,
    }
    assert found.lost == {(0.3, 0.9): "failed", (0.1, 2.0): "failed", (0.2, 2.0): "skipped"}
    assert (found.columns, found.rows, found.lowest, left_out) == ((0.1, 0.2, 0.3), (0.9, 1.6, 2.0), 6.5, 0)
    assert found.held == "T=50, ancestral"


def test_heat_maps_hold_a_third_key(tmp_path):
    for t in (25, 50, 100):
        for r in (0.1, 0.2):
            for lam in (0.9, 1.6):
                write_run(tmp_path, 100 / t + r * lam, parametric(r, lam), t)
    write_run(tmp_path, None, parametric(0.3, 0.9), 50, state="failed")
    write_run(tmp_path, None, parametric(0.3, 0.9), 100, state="failed", images=512)
    panel = only_panel(tmp_path)
    maps, _ = panel.heat_maps("filter.r", "filter.lam")
    assert [(m.held, len(m.cells), len(m.lost)) for m in maps] == [
        ("T=25, ancestral", 4, 0),
        ("T=50, ancestral", 4, 1),
        ("T=100, ancestral", 4, 0),
    ]
    kept, left_out = panel.heat_maps("filter.r", "filter.lam", most=2)
    assert [m.held for m in kept] == ["T=50, ancestral", "T=100, ancestral"] and left_out == 1


def test_curves_keep_both_kinds_and_lines_before_points(tmp_path):
    for number in range(7):
        for vanilla in (True, False):
            for t in (25, 50) if number else (25,):
                chosen = {"_target_": "other" if vanilla else "filter", "r": 0.1 * (number + 1)}
                folder = write_run(tmp_path, (1.0 if vanilla else 100.0) + number, chosen, t)
                result = json.loads((folder / "result.json").read_text())
                (folder / "result.json").write_text(json.dumps(result | {"vanilla": vanilla}))
    curves = only_panel(tmp_path).curves(T)
    assert [(line.vanilla, len(line.settings)) for line in curves.lines] == [(True, 2)] * 5 + [(False, 2)] * 5
    assert curves.left_out == 4
    kept = [round(line.settings[0].values["filter.r"], 1) for line in curves.lines]
    assert kept == [0.2, 0.3, 0.4, 0.5, 0.6] * 2, "the lowest"


def test_no_heat_map_without_two_by_two_cells(tmp_path):
    for r, lam in ((0.1, 0.9), (0.1, 1.6), (0.2, 2.0)):
        write_run(tmp_path, 5.0, parametric(r, lam))
    assert only_panel(tmp_path).heat_maps("filter.r", "filter.lam") == ([], 0)
    write_run(tmp_path, 5.0, parametric(0.2, 0.9))
    assert only_panel(tmp_path).heat_maps("filter.r", "filter.lam") == ([], 0)
    write_run(tmp_path, 5.0, parametric(0.2, 1.6))
    assert len(only_panel(tmp_path).heat_maps("filter.r", "filter.lam")[0]) == 1


def test_best_alpha_has_its_neighbours_or_is_a_bound(over_alpha_and_t):
    for alpha, t in ((5.0, 200), (10.0, 200), (20.0, 400)):
        write_run(over_alpha_and_t, 50 / alpha, statistics(alpha, t), t)
    panel = only_panel(over_alpha_and_t)
    ((_label, bests),) = panel.best_alphas()
    assert bests == [Best(25, 1.25, None, 2.5), Best(50, 2.5, 1.25, 5.0), Best(100, 5.0, 2.5, 10.0), Best(200, 10.0, 5.0, None)]
    assert panel.references() == [(5.0, 100.0)]
    page = write_report(over_alpha_and_t).read_text()
    assert "α = 5·T/100" in page and "edge of its grid: a bound" in page


def texts(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_numbers_and_states_stand_in_the_cells(over_r_and_lam):
    write_report(over_r_and_lam)
    (file,) = (over_r_and_lam / "figures").glob("*-over-*")
    words = texts(file.read_text())
    assert Counter(words) & Counter(["812", "9.50", "7.25", "6.50", "failed", "failed", "skipped"]) == Counter(
        ["812", "9.50", "7.25", "6.50", "failed", "failed", "skipped"]
    )
    assert re.search(r"font: bold[^>]*>6.50<|font-weight: ?(bold|700)[^>]*>6.50<", file.read_text()), "the lowest stands out"


def test_charts_name_their_lines_and_axes(over_alpha_and_t):
    write_report(over_alpha_and_t)
    figures = over_alpha_and_t / "figures"
    by_t = texts((figures / f"{METRIC}-against-T.svg").read_text())
    for word in ("vanilla", "PDS α=2.5", "T (iterations)", "NFE (score evaluations)", "seconds for 256 images", METRIC):
        assert word in by_t
    assert "real data (floor)" in by_t and {"25", "50", "100", "200"} <= set(by_t), "NFE is twice T"
    by_alpha = texts((figures / f"{METRIC}-against-filter.alpha.svg").read_text())
    assert {"PDS T=25", "vanilla T=100"} <= set(by_alpha)


def test_charts_follow_the_page_and_files_are_for_paper(over_alpha_and_t):
    page = write_report(over_alpha_and_t).read_text()
    files = {path: path.read_text() for path in (over_alpha_and_t / "figures").iterdir()}
    ids = re.findall(r'\bid="([^"]+)"', page)
    used = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert len(ids) == len(set(ids)) > 50 and used and set(used) <= set(ids)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == len(files) == 4
    for svg in charts:
        assert "currentColor" in svg and "var(--soft)" in svg and "<style" not in svg and "#01020" not in svg
        assert "DejaVu" not in svg and "<image" not in svg and "<metadata" not in svg
    for svg in files.values():
        assert 'fill="#fff"' in svg and "currentColor" not in svg and "var(" not in svg and "#01020" not in svg
    write_report(over_alpha_and_t)
    assert files == {path: path.read_text() for path in files}, "reproducible"


def test_every_failure_is_told_once(over_r_and_lam):
    page = write_report(over_r_and_lam).read_text()
    body = page[: page.index("<h2>Distance")]
    for message in ("no &lt;space&gt; left", "lam is too large", "weights are missing"):
        assert body.count(message) == 1
    assert body.count("<strong>failed</strong>") == 2 and body.count("<strong>skipped</strong>") == 1
    assert "filter.r=0.1 filter.lam=2.0" in body and "5 points of the sweep 1 wait and 1 run" in body
    table = format_table(read_runs(over_r_and_lam))
    assert "lam is too large" not in table.split("\n\n")[0]
    assert table.split("\n\n")[-1].splitlines() == [
        "failed: filter.r=0.1 filter.lam=2.0: lam is too large",
        "failed: filter.r=0.3 filter.lam=0.9: no <space> left",
        "skipped: filter.r=0.2 filter.lam=2.0: weights are missing",
    ]


def test_a_point_that_was_repeated_alone_is_done(tmp_path):
    folder = write_run(tmp_path, 5.0)
    Points(tmp_path).write(Point(("seed=0",), 1, state="failed", message="old", run=folder.name))
    assert [run.state for run in read_runs(tmp_path)] == ["done"]


def test_a_point_tells_why_its_run_did_not_end(tmp_path):
    folder = write_run(tmp_path, None, state="running")
    Points(tmp_path).write(Point(("seed=0",), 1, state="skipped", message="weights are missing", run=folder.name))
    assert [(run.state, run.message) for run in read_runs(tmp_path)] == [("skipped", "weights are missing")]


def test_a_group_of_failures_only_has_a_report(tmp_path):
    for alpha in (0, -1):
        Points(tmp_path).write(Point((f"filter.alpha={alpha}",), 1, state="failed", message=f"alpha {alpha} is too small"))
    assert "No run has finished" in (page := write_report(tmp_path).read_text())
    assert page.count("is too small") == 2
    assert "failed: filter.alpha=-1: alpha -1 is too small" in format_table(read_runs(tmp_path))
    with open(tmp_path / "summary.csv", newline="") as file:
        assert sorted(row["filter.alpha"] for row in csv.DictReader(file)) == ["-1", "0"]


def test_summary_has_a_row_a_run_and_a_column_a_key(over_r_and_lam):
    write_run(over_r_and_lam, 55.5, seed=3)
    write_report(over_r_and_lam)
    with open(over_r_and_lam / "summary.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = read_runs(over_r_and_lam)
    assert [(row["label"], row["state"]) for row in rows] == [(run.label, run.state) for run in runs]
    first, second = rows[0], rows[1]
    assert (first["name"], first["seed"], first["T"], first["NFE"], first[METRIC]) == ("run-5", "3", "50", "100", "55.5")
    assert (second["filter.r"], second["filter.lam"], second[METRIC], second["message"]) == ("0.2", "1.6", "6.5", "")
    (skipped,) = (row for row in rows if row["state"] == "skipped")
    assert (skipped["filter.lam"], skipped[METRIC], skipped["message"]) == ("2.0", "", "weights are missing")


def add_images(folder, images):
    (folder / "samples").mkdir()
    np.savez(folder / "samples" / "shard-00000.npz", images=images, features=np.zeros(3))
    image_grid(torch.from_numpy(images), 4).save(folder / "grid.png")


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), "png"), ((3, 96, 80), "jpeg")])
def test_many_runs_show_strips_of_a_seed(tmp_path, shape, kind):
    images = np.random.default_rng(0).integers(0, 256, (16, *shape), dtype=np.uint8)
    for alpha in range(2, 14):
        add_images(write_run(tmp_path, float(alpha), statistics(alpha, 50), seed=alpha % 2), images)
    page = write_report(tmp_path).read_text()
    assert page.count("data:image/png") == 12 and "class=strips" not in page, "grids"
    add_images(write_run(tmp_path, 30.0), images)
    page = write_report(tmp_path).read_text()
    strips = re.findall(rf"<img class=\w+ [^>]*alt=\"First 10 images: [^>]*data:image/{kind}", page)
    assert len(strips) == 13 == page.count("data:image/")
    assert re.findall(r"<h3>Seed (\d)", page) == ["0", "1"]
    height = 8 if kind == "png" else 64
    assert all(f" height={height + 4} " in strip for strip in strips)
    (tmp_path / "run-3" / "samples" / "shard-00000.npz").write_bytes(b"PK")
    assert write_report(tmp_path).read_text().count("data:image/") == 12, "a damaged shard costs its strip only"


def test_strips_are_the_first_images(tmp_path):
    from pds.lab.report.images import _first_images

    images = np.random.default_rng(0).integers(0, 256, (16, 3, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "raw.npz", features=np.zeros(3), images=images)
    np.savez_compressed(tmp_path / "packed.npz", images=images[:4])
    assert (_first_images(tmp_path / "raw.npz", 10) == images[:10]).all()
    assert (_first_images(tmp_path / "packed.npz", 10) == images[:4]).all()


def test_the_sweep_is_run_again_by_one_command(tmp_path):
    for alpha in range(2, 16):
        write_run(tmp_path, float(alpha), statistics(alpha, 50))
        point = Point(
            (f"filter.alpha={alpha}",), alpha, command="python run.py -m all of <it>", state="done", run=f"run-{alpha - 2}"
        )
        Points(tmp_path).write(point)
    page = write_report(tmp_path).read_text()
    again = page[page.index("<h2>Run it again") :]
    assert "The sweep has 14 points." in again and again.count("python run.py -m all of &lt;it&gt;") == 1
    assert again.index("<details>") < again.index("python run.py 0")
    rows = page[page.index("<h2>What differs") : page.index("<h2>Where the numbers")]
    assert rows.count("<tr>") == 15 and "sweep.number" not in rows, "one row a run"
    assert "all 14 runs" in page


def test_runs_that_diverged_do_not_cost_the_charts(tmp_path):
    for r in (0.1, 0.2):
        for lam in (0.9, 1.6):
            write_run(tmp_path, float("nan") if (r, lam) == (0.1, 0.9) else 5.0, parametric(r, lam))
    write_report(tmp_path)
    (file,) = (tmp_path / "figures").glob("*-over-*")
    assert "not finite" in texts(file.read_text())


def test_a_group_without_a_sweep_has_no_charts(tmp_path: Path):
    write_run(tmp_path, 30.0)
    write_run(tmp_path, 10.0, statistics(5.0, 50))
    page = write_report(tmp_path).read_text()
    assert "<svg" not in page and not (tmp_path / "figures").exists()
