"""Pictures place pixels and frequencies where they say; tables and the page tell the runs apart and hide nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pds.errors import PDSError
from pds.lab.report import filter_picture, format_table, read_runs, space_picture, write_report
from pds.pictures import image_grid

METRIC = "fid_made_up_256"


def write_run(root: Path, slug: str, result: dict[str, Any] | None, config: dict[str, Any], message: str = "") -> Path:
    folder = root / slug
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status.json").write_text(json.dumps({"state": "done" if result else "failed", "message": message}))
    if result:
        shared = {
            "experiment": "made <up>",
            "sampler": "annealed Langevin",
            "iterations": 20,
            "nfe": 40,
            "images": 256,
            "seconds": 12.5,
            "floor": {METRIC: 1.5},
            "seed": 7,
            "model": "made-up net",
            "checkpoint": {"file": "made_up.safetensors", "sha256": "c0ffee"},
            "device": "made-up device",
            "versions": {"torch": "9.9.9"},
            "commit": "abc1234",
            "command": f"python experiments/run.py {slug} && true",
        }
        (folder / "result.json").write_text(json.dumps(shared | result))
        image_grid(torch.full((4, 1, 8, 8), 200, dtype=torch.uint8), 2).save(folder / "grid.png")
    return folder


def test_models_are_told_apart_and_stay_together(tmp_path):
    root = tmp_path / "two"
    for i, (net, label, distance) in enumerate(
        [("net B", "vanilla", 3.0), ("net B", "PDS", 2.0), ("net A", "vanilla", 20.0), ("net A", "PDS", 9.0)]
    ):
        result = {"model": net, "label": label, "vanilla": label == "vanilla", "metrics": {METRIC: distance}}
        write_run(root, f"r-{i}", result, {})
    ancestral = {"model": "net A", "label": "other", "sampler": "ancestral", "vanilla": True, "metrics": {METRIC: 4.0}}
    write_run(root, "r-9", ancestral | {"source": "Ho & others"}, {})
    runs = read_runs(root)
    assert [(run.result["model"], run.label) for run in runs] == [
        ("net B", "vanilla"),
        ("net B", "PDS"),
        ("net A", "other"),
        ("net A", "vanilla"),
        ("net A", "PDS"),
    ]
    assert "| net A |" in format_table(runs) and format_table(runs[:2]).count("net A") == 0
    page = write_report(root).read_text()
    assert "net B: PDS is closest to the data" in page
    assert "net A: PDS is closer to the data than the same sampler without preconditioning" in page
    assert "other (ancestral) is closest: 4.0" in page
    # Runs made before results had a source have none.
    assert re.findall(r"<h3>Methods</h3><dl>(.*?)</dl>", page) == ["<dt>ancestral</dt><dd>Ho &amp; others</dd>"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A better and a failed run beside vanilla; the names sort in another order than the report does."""
    root = tmp_path / "outputs" / "made_up"
    base = {"seed": 7, "sampler": {"iterations": 20, "step": 1.5}}
    pds = {"name": "filter=parametric", "label": "PDS <b>&λ", "vanilla": False, "metrics": {METRIC: 8.0}}
    folder = write_run(root, "a-1", pds, base | {"filter": {"r": 0.2, "levels": [1, 2]}})
    np.savez(folder / "filter.npz", frequency=np.ones((1, 8, 8), np.float32), space=np.ones((1, 8, 8), np.float32))
    write_run(root, "b-2", None, base | {"filter": {"r": 0.3, "levels": [1, 2]}}, "step <script> beyond the bound")
    write_run(root, "c-3", {"label": "vanilla", "vanilla": True, "metrics": {METRIC: 10.0}}, base | {"filter": None})
    return root


def test_image_grid_places_every_pixel() -> None:
    images = torch.arange(3 * 3 * 4 * 5, dtype=torch.uint8).reshape(3, 3, 4, 5)
    grid = np.asarray(image_grid(images, columns=2, scale=2))
    assert grid.shape == (2 * (8 + 2) + 2, 2 * (10 + 2) + 2, 3)
    third = grid[2 + 10 : 2 + 10 + 8, 2 : 2 + 10]
    assert (third[::2, ::2] == images[2].permute(1, 2, 0).numpy()).all() and (third[1::2, 1::2] == third[::2, ::2]).all()
    assert (grid[12:20, 14:24] == grid[0, 0]).all(), "the place without an image"
    assert image_grid(images[:, :1], columns=3).mode == "L"
    with pytest.raises(ValueError, match="uint8"):
        image_grid(images.float(), columns=2)


@pytest.mark.parametrize("shape", [(28, 28), (9, 12)])
def test_filter_picture_shows_dc_in_the_centre(shape: tuple[int, int]) -> None:
    frequency = np.ones((3, *shape), np.float32)
    frequency[:, 0, 0] = 2
    frequency[:, 0, 1] = 1.5  # one cycle a width to the right of DC
    pixels = np.asarray(filter_picture(frequency))[..., :3].astype(int)
    low, high = pixels_of(pixels, (22, 11, 57)), pixels_of(pixels, (252, 255, 164))
    bar = np.diff(np.unique(low[:, 1])).argmax() + 1  # the colour bar stands apart, right of the plane
    plane = low[low[:, 1] < np.unique(low[:, 1])[bar]]
    dc = high[high[:, 1] <= plane[:, 1].max()]
    top, left = plane.min(axis=0)
    bottom, right = plane.max(axis=0) + 1
    cell = ((bottom - top) / shape[0], (right - left) / shape[1])
    expected = [start + (n // 2 + 0.5) * side for start, n, side in zip((top, left), shape, cell, strict=True)]
    assert np.abs(dc.mean(axis=0) + 0.5 - expected).max() < 1
    beside = pixels[round(expected[0]), round(expected[1] + cell[1])]
    assert tuple(beside) not in {(22, 11, 57), (252, 255, 164)}, "frequency 1 is right of DC"


def pixels_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((pixels == colour).all(axis=-1))


def test_filter_picture_shows_channels_that_differ() -> None:
    equal, different = np.ones((3, 8, 8)), np.ones((3, 8, 8))
    different[1] = 2
    assert filter_picture(different).width > 2 * filter_picture(equal).width
    assert space_picture(equal).size == filter_picture(equal).size


def test_read_runs_orders_and_keeps_failures(experiment: Path) -> None:
    write_run(experiment, "d-4", {"label": "without a metric"}, {})
    runs = read_runs(experiment)
    assert [r.label for r in runs] == ["vanilla", "PDS <b>&λ", "without a metric", "b-2"]
    assert [r.state for r in runs] == ["done", "done", "done", "failed"]
    assert runs[-1].message == "step <script> beyond the bound" and runs[-1].config["filter"]["r"] == 0.3
    (experiment / "a-1" / "result.json").write_text('{"label":')
    broken = next(r for r in read_runs(experiment) if r.folder.name == "a-1")
    assert broken.state == "failed" and "unreadable" in broken.message
    with pytest.raises(PDSError, match="no runs"):
        read_runs(experiment / "a-1")


def test_table_has_a_column_a_metric_and_the_floor_last(experiment: Path) -> None:
    write_run(experiment, "d-4", {"label": "other", "metrics": {"fid_made_up_2k": 3.25}, "floor": {}}, {})
    table, unfinished = format_table(read_runs(experiment)).split("\n\n")
    header, _rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert header == ["run", "sampler", "T", "NFE", "images", "seconds", METRIC, "fid_made_up_2k"]
    assert len({len(line) for line in table.splitlines()}) == 1, "columns line up in a terminal"
    cells = {row[0]: row[-2:] for row in rows}
    assert cells["vanilla"] == ["10.00", "–"] and cells["other"] == ["–", "3.25"]
    assert rows[-1] == ["real data (floor)", "", "", "", "", "", "1.50", "–"]
    assert unfinished == "failed: b-2: step <script> beyond the bound"


def test_report_is_self_contained_and_escaped(experiment: Path) -> None:
    path = write_report(experiment)
    page = path.read_text(encoding="utf-8")
    assert path == experiment / "report.html" and not list(experiment.glob(".*"))
    resources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]{0,16})""", page)
    assert len(resources) == 4 and all(r.startswith("data:image/png;") for r in resources), "2 grids, R and A"
    assert "<script" not in page and "<b>&" not in page and "made <up>" not in page
    for text in (
        "made &lt;up&gt;",
        "PDS &lt;b&gt;&amp;λ",
        "step &lt;script&gt; beyond the bound",
        "a-1 &amp;&amp; true",
    ):
        assert text in page
    for fact in ("real data (floor)", METRIC, "abc1234", "c0ffee", "9.9.9", "made-up device", "(seed 7)", "0.80×"):
        assert fact in page


def test_report_marks_the_lowest_and_says_so_when_vanilla_wins(experiment: Path) -> None:
    assert re.findall(r"<tr class=best><th[^>]*>([^<]*)", write_report(experiment).read_text()) == ["PDS &lt;b&gt;&amp;λ"]
    result = json.loads((experiment / "a-1" / "result.json").read_text()) | {"metrics": {METRIC: 11.0}}
    (experiment / "a-1" / "result.json").write_text(json.dumps(result))
    page = write_report(experiment).read_text()
    assert re.findall(r"<tr class=best><th[^>]*>([^<]*)", page) == ["vanilla"]
    assert "No preconditioned run is closer" in page and "1.10×" in page


def test_a_ratio_needs_a_vanilla_run_of_the_same_length(experiment: Path) -> None:
    assert "×<" in write_report(experiment).read_text()
    result = json.loads((experiment / "a-1" / "result.json").read_text()) | {"nfe": 80}
    (experiment / "a-1" / "result.json").write_text(json.dumps(result))
    assert "×<" not in write_report(experiment).read_text()


def test_report_lists_only_the_config_keys_that_differ(experiment: Path) -> None:
    page = write_report(experiment).read_text(encoding="utf-8")
    section = re.search(r"<h2>What differs.*?</section>", page, re.DOTALL)
    assert section is not None
    rows = re.findall(r'<tr><th scope="row"><code>(.*?)</code></th>(.*?)</tr>', section[0])
    cells = {key: re.findall(r"<code>(.*?)</code>", values) for key, values in rows}
    assert cells == {
        "filter": ["null", "–", "–"],
        "filter.levels": ["–", "[1, 2]", "[1, 2]"],
        "filter.r": ["–", "0.2", "0.3"],
    }


def test_a_large_grid_is_inlined_scaled(experiment: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(experiment / "a-1" / "grid.png")
    page = write_report(experiment).read_text()
    assert "data:image/jpeg;" in page and len(page) < 6e6 < (experiment / "a-1" / "grid.png").stat().st_size


def test_damaged_pictures_do_not_cost_the_report(experiment: Path) -> None:
    (experiment / "a-1" / "filter.npz").write_bytes(b"PK")
    grid = experiment / "c-3" / "grid.png"
    grid.write_bytes(grid.read_bytes()[:60])
    page = write_report(experiment).read_text()
    assert "grid.png cannot be read" in page and "filter.npz cannot be read" in page and page.count("data:image") == 1


def test_a_floor_of_fewer_images_is_shown_under_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "made_up"
    few = {"label": "vanilla", "vanilla": True, "metrics": {METRIC: 10.0}, "floor": {"fid_made_up_99": 2.5}}
    write_run(root, "a", few, {})
    expected = "real data (floor): fid_made_up_99 = 2.50"
    assert expected in format_table(read_runs(root))
    assert expected in write_report(root).read_text()
    assert "| real data (floor)" not in format_table(read_runs(root))


def test_distances_that_hardly_differ_are_called_level(tmp_path: Path) -> None:
    for slug, value in (("a", 9.9), ("b", 9.5)):
        root = tmp_path / slug
        write_run(root, "v", {"label": "vanilla", "vanilla": True, "metrics": {METRIC: 10.0}}, {})
        write_run(root, "p", {"label": "PDS", "vanilla": False, "metrics": {METRIC: value}}, {"r": 1})
        page = write_report(root).read_text()
        assert ("Level: " in page) == (slug == "a")
        assert ("is closest to the data" in page) == (slug == "b")
