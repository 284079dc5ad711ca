"""The page and its files: nothing hidden, everything escaped, charts in the reader's colours, pictures where they belong."""

import base64
import csv
import html
import io
import os
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from made_runs import METRIC, NOTHING, edit, parametric, statistics, write_run
from PIL import Image

from pds.errors import PDSError
from pds.lab.points import Point, Points
from pds.lab.report import page, read_runs, write_report
from pds.lab.report.charts import filter_plane
from pds.lab.report.pictures import grid_of, strip_of
from pds.lab.report.runs import Run
from pds.pictures import image_grid


def report(folder):
    return write_report(folder).read_text(encoding="utf-8")


def section(text, title):
    return re.search(rf"<h2>{title}.*?</section>", text, re.DOTALL)[0]


def texts(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def add_pictures(folder, images, **filters):
    (folder / "samples").mkdir(exist_ok=True)
    np.savez(folder / "samples" / "shard-00000.npz", images=images, nfe=np.float64(9), seconds=np.float64(1))
    image_grid(torch.from_numpy(images), 4).save(folder / "grid.png")
    np.savez(folder / "filter.npz", **filters)


@pytest.fixture
def pair(tmp_path):
    """vanilla and a better run with a filter, beside one that failed."""
    images, plane = np.full((4, 1, 8, 8), 200, np.uint8), np.ones((1, 8, 8), np.float32)
    plane[0, 0, 0] = 2
    facts = {"experiment": "made <up>", "commit": "abc1234", "device": "a device", "versions": {"torch": "9.9.9"}}
    facts |= {"checkpoint": {"file": "made_up.safetensors", "sha256": "c0ffee"}, "source": "Ho & others"}
    add_pictures(write_run(tmp_path, 10.0, **facts, nfe=100), images)
    add_pictures(
        write_run(tmp_path, 8.0, statistics(5.0, 50), label="PDS <b>&λ", **facts), images, frequency=plane, space=plane
    )
    write_run(tmp_path, None, parametric(0.2, 1.6), state="failed", message="step <script> beyond the bound")
    return tmp_path


def test_the_page_is_self_contained_and_escaped(pair):
    text = report(pair)
    assert not list(pair.glob(".*")), "no temporary file is left"
    resources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]{0,16})""", text)
    outside = [address for address in resources if not address.startswith(("data:image/png;", "#"))]
    assert not outside and "<script" not in text and "<b>&" not in text and "made <up>" not in text
    for words in ("made &lt;up&gt;", "PDS &lt;b&gt;&amp;λ", "step &lt;script&gt; beyond the bound", "Ho &amp; others"):
        assert words in text
    for fact in (
        "real data (floor)",
        METRIC,
        "abc1234",
        "c0ffee",
        "torch 9.9.9",
        "a device",
        "(seed 0)",
        "0.80×",
        "python run.py 1",
    ):
        assert fact in text


def test_the_lowest_is_marked_whoever_it_is(pair):
    def marked():
        return re.findall(r'<tr class="best"><th[^>]*>([^<]*)', report(pair))

    assert marked() == ["PDS &lt;b&gt;&amp;λ"] and "is closest to the data: fid_made_up_256 8.00" in report(pair)
    for run, value, sign in (("run-0", 10.0, 1), ("run-1", 9.9, -1)):
        left_out = {METRIC: [value + sign * 0.01 * i for i in range(20)]}
        edit(pair / run, metrics={METRIC: value}, errors={METRIC: 0.5}, left_out=left_out)
    text = report(pair)
    assert "Level: fid_made_up_256 9.9 ± 0.5 at best" in text and "interval of the difference, -1.15 to 0.952, holds 0" in text
    edit(pair / "run-0", left_out={METRIC: [10.0 - 0.01 * i for i in range(20)]})
    assert "Level:" not in report(pair), "however small the difference, where the noise is the same"
    edit(pair / "run-1", metrics={METRIC: 11.0})
    assert marked() == ["vanilla"] and "No preconditioned run is closer" in report(pair) and "1.10×" in report(pair)
    write_run(pair, 4.0, label="other", sampler="EDM")
    edit(pair / "run-1", metrics={METRIC: 5.0})
    assert "but other (EDM) is closest: 4.00" in report(pair)
    edit(pair / "run-1", nfe=80)
    assert "×<" not in report(pair), "a ratio is to the same length"


def test_the_luckiest_seed_is_not_the_best_setting(tmp_path):
    for seed, vanilla, strong, weak in ((0, 6.0, 1.0, 4.2), (1, 6.2, 9.0, 4.0), (2, 6.4, 9.2, 3.8)):
        write_run(tmp_path, vanilla, seed=seed)
        write_run(tmp_path, strong, statistics(2.0, 50), label="strong", seed=seed)
        write_run(tmp_path, weak, statistics(5.0, 50), label="weak", seed=seed)
    means = "4.0 ± 0.2 (mean of 3 seeds), against 6.2 ± 0.2 (mean of 3 seeds)"
    assert f"weak is closest to the data: fid_made_up_256 {means} of the same sampler" in report(tmp_path)


def test_verdicts_name_the_model_where_there_are_several(tmp_path):
    for model in ("net A", "net B"):
        write_run(tmp_path, 3.0, model=model)
        write_run(tmp_path, 2.0, statistics(5.0, 50), model=model)
    text = report(tmp_path)
    assert "net A: PDS is closest to the data" in text and "net B: PDS is closest to the data" in text


def test_distances_to_another_reference_are_not_beside_these(tmp_path):
    for reference, factor in (("r", 1), ("another", 10)):
        for number, filter in enumerate((NOTHING, statistics(5.0, 50))):
            folder = write_run(tmp_path, (3.0 - number) * factor, filter, floor={METRIC: 1.0 * factor})
            config = (folder / "config.yaml").read_text().replace("reference: r\n", f"reference: {reference}\n")
            (folder / "config.yaml").write_text(config)
    text = report(tmp_path)
    assert "closest to the data: fid_made_up_256 2.00, against 3.00" in text
    assert "closest to the data: fid_made_up_256 20.0, against 30.0 " in text
    assert text.count('<span class="tag top">lowest</span>') == 2 and "real data (floor)" not in text


def test_a_run_of_another_measure_costs_no_verdict(tmp_path):
    write_run(tmp_path, 3.0)
    write_run(tmp_path, 2.0, statistics(5.0, 50))
    write_run(tmp_path, 0.5, statistics(5.0, 50), metric="kid_made_up_n256")
    text = report(tmp_path)
    assert "closest to the data: fid_made_up_256 2.00, against 3.00" in text and "cannot be shown" not in text
    assert "Each distance is the Fréchet distance" not in text, "kid is none"


def test_only_keys_that_differ_are_listed(pair):
    filters = {"run-0": "null", "run-1": "{r: 0.2, levels: [1, 2]}", "run-2": "{r: 0.3, levels: [1, 2]}"}
    for run, filter in filters.items():
        config = f"seed: 7\nsampler: {{step: 1.5}}\nsweep: {{number: {run[-1]}}}\nfilter: {filter}"
        (pair / run / "config.yaml").write_text(config)
    rows = re.findall(r'<tr><th scope="row">(filter.*?|s.*?)</th>(.*?)</tr>', section(report(pair), "What differs"), re.DOTALL)
    assert {key: re.findall(r"<code>(.*?)</code>", row) for key, row in rows} == {
        "filter": ["null", "–", "–"],
        "filter.levels": ["–", "[1, 2]", "[1, 2]"],
        "filter.r": ["–", "0.2", "0.3"],
    }


def test_every_failure_is_told_once(over_r_and_lam):
    text = report(over_r_and_lam)
    body = text[: text.index("<h2>Distance")]
    for message in ("no &lt;space&gt; left", "lam is too large", "weights are missing"):
        assert body.count(message) == 1
    assert body.count("<strong>failed</strong>") == 2 and body.count("<strong>skipped</strong>") == 1
    assert "filter.r=0.1 filter.lam=2.0" in body and "5 points of the sweep 1 wait and 1 run" in body


def test_a_group_of_failures_only_has_a_report(tmp_path):
    for alpha in range(5):
        Points(tmp_path).write(Point((f"filter.alpha={-alpha}",), 1, state="failed", message="alpha is too small"))
    text = report(tmp_path)
    assert "No run has finished" in text and text.count("alpha is too small") == 1 and "and 2 more" in text
    with open(tmp_path / "summary.csv", newline="") as file:
        assert sorted(row["filter.alpha"] for row in csv.DictReader(file)) == ["-1", "-2", "-3", "-4", "0"]


def test_summary_has_a_row_a_run_and_a_column_a_key(over_r_and_lam):
    write_run(over_r_and_lam, 55.5, seed=3)
    write_report(over_r_and_lam)
    with open(over_r_and_lam / "summary.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["state"]) for row in rows] == [(run.label, run.state) for run in read_runs(over_r_and_lam)]
    first, second = rows[0], rows[1]
    assert (first["name"], first["seed"], first["T"], first["NFE"], first[METRIC]) == ("run-5", "3", "50", "100", "55.5")
    assert (second["filter.r"], second["filter.lam"], second[METRIC], second["message"]) == ("0.2", "1.6", "6.5", "")
    (skipped,) = (row for row in rows if row["state"] == "skipped")
    assert (skipped["filter.lam"], skipped[METRIC], skipped["message"]) == ("2.0", "", "weights are missing")


def test_the_sweep_is_run_again_by_one_command(tmp_path):
    for alpha in range(2, 16):
        run = write_run(tmp_path, float(alpha), statistics(alpha, 50))
        Points(tmp_path).write(
            Point((f"filter.alpha={alpha}",), alpha, command="run.py -m all of <it>", state="done", run=run.name)
        )
    text = report(tmp_path)
    again = section(text, "Run it again")
    assert "The sweep has 14 points." in again and again.count("run.py -m all of &lt;it&gt;") == 1
    assert again.index("<details>") < again.index("python run.py 0")
    rows = section(text, "What differs")
    assert rows.count('<th scope="row">') == 14 and "sweep.number" not in rows, "one row a run"
    assert "The lowest are shown; all 14 runs" in text


def test_a_long_table_shows_the_lowest_of_vanilla_and_of_others_first(tmp_path):
    for number in range(8):
        write_run(tmp_path, 50.0 + number, t=10 + number)
        write_run(tmp_path, 5.0 + number, statistics(2.0 + number, 50))
    shown = report(tmp_path).split("<details>")[0]
    assert re.findall(r'data-name="fid_made_up_256">([\d.]+)', shown) == [
        *("50.00", "51.00", "52.00", "53.00"),
        *("5.00", "6.00", "7.00", "8.00"),
        "1.50",
    ]


def test_numbers_and_states_stand_in_the_cells(over_r_and_lam):
    write_report(over_r_and_lam)
    (file,) = (over_r_and_lam / "figures").glob("*-over-*")
    due = Counter(["812", "9.50", "7.25", "6.50", "failed", "failed", "skipped"])
    assert Counter(texts(file.read_text())) & due == due
    assert re.search(r"font: bold[^>]*>6.50<|font-weight: ?(bold|700)[^>]*>6.50<", file.read_text()), "the lowest stands out"


def test_charts_name_their_lines_and_axes(over_alpha_and_t):
    write_run(over_alpha_and_t, 3.0, statistics(5.0, 100), 100, seed=1)
    text = report(over_alpha_and_t)
    by_t, by_alpha, best = (
        texts((over_alpha_and_t / "figures" / f"{METRIC}-{name}.svg").read_text())
        for name in ("against-T", "against-filter.alpha", "best-alpha-against-T")
    )
    lines = {"vanilla", "PDS α=2.5", "T (iterations)", "NFE (score evaluations)", "seconds for 256 images", METRIC}
    assert lines | {"real data (floor)", "25", "50", "100", "200"} <= set(by_t), "NFE is twice T"
    assert {"PDS T=25", "vanilla T=100", "α"} <= set(by_alpha)
    assert {"α = 5·T/100", "PDS, best α", "PDS, best α (edge of its grid: a bound)"} <= set(best)
    assert re.search(r'3.5 <small>± 0.7</small></td>\s*<td class="number">2</td>', section(text, "Over the seeds"))


def test_charts_are_for_paper_and_follow_the_page(over_alpha_and_t):
    text = report(over_alpha_and_t)
    files = {path: path.read_text() for path in (over_alpha_and_t / "figures").iterdir()}
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert sorted(drawn) == sorted(files.values()) and len(drawn) == 4, "a chart is its file"
    ids, used = re.findall(r'\bid="([^"]+)"', text), re.findall(r'(?:url\(|href=")#([^")]+)', text)
    assert len(ids) == len(set(ids)) > 20 and used and set(used) <= set(ids), "each its own among those of other charts"
    styles = text[text.index("<style>") : text.index("</style>")]
    inks = set(re.findall(r"(?:fill|stroke): #(?:000000|555555|dddddd|a3260f)\b", "".join(drawn)))
    assert len(inks) >= 3 and {ink for ink in inks if f'[style*="{ink}"]' not in styles} <= {"fill: #000000"}
    for svg in drawn:
        assert 'role="img"' in svg and "aria-label=" in svg and "background: #fff" in svg and "DejaVu Sans', sans-serif" in svg
    write_report(over_alpha_and_t)
    assert files == {path: path.read_text() for path in files}, "reproducible"


def test_panels_that_may_not_be_compared_have_files_of_their_own(tmp_path):
    for t in (25, 50):
        write_run(tmp_path, 100.0 / t, t=t)
        write_run(tmp_path, 900.0 / t, t=t, model="other net")
    write_report(tmp_path)
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == [f"{METRIC}-against-T", f"{METRIC}-against-T-2"]


def test_the_page_of_a_search_is_linked_where_there_is_one(tmp_path):
    write_run(tmp_path, 30.0)
    assert "tuning.html" not in report(tmp_path)
    (tmp_path / "tuning.html").touch()
    assert '<a href="tuning.html">' in report(tmp_path)


def test_a_page_without_charts_does_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pds.lab.report.charts", None)
    write_run(tmp_path, 30.0)
    write_run(tmp_path, 10.0, statistics(5.0, 50))
    text = report(tmp_path)
    assert "cannot be shown" not in text and "<svg" not in text and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("name", ["_swept", "_verdicts", "_images", "_filters", "_table"])
def test_a_part_that_cannot_be_made_is_a_sentence(pair, monkeypatch, name):
    def broken(*arguments):
        raise RuntimeError("a <defect>")

    monkeypatch.setattr(page, name, broken)
    text = report(pair)
    assert text.count("cannot be shown: a &lt;defect&gt;") == 1 and "0.80×" in text


@pytest.mark.parametrize("name", ["summary.csv", "report.html", "figures"])
def test_a_file_that_cannot_be_written_is_one_sentence(over_alpha_and_t, name):
    file = over_alpha_and_t / name
    if name == "figures":
        file.write_bytes(b"")
    else:
        (file / "in the way").mkdir(parents=True)
    with pytest.raises(PDSError, match=rf"cannot write .*{name}.*: make room"):
        write_report(over_alpha_and_t)


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), "png"), ((3, 96, 80), "jpeg")])
def test_many_runs_show_strips_of_a_seed(tmp_path, shape, kind):
    images = np.random.default_rng(0).integers(0, 256, (16, *shape), dtype=np.uint8)
    for alpha in range(2, 14):
        add_pictures(write_run(tmp_path, float(alpha), statistics(alpha, 50), seed=alpha % 2), images)
    text = section(report(tmp_path), "Images")
    assert text.count("data:image/png") == 12 and 'class="strips"' not in text, "grids"
    add_pictures(write_run(tmp_path, 30.0), images)
    text = section(report(tmp_path), "Images")
    assert text.count(f"data:image/{kind}") == text.count("<img ") == 13
    assert re.findall(r"<h3>Seed (\d)", text) == ["0", "1"] and text.count(f'height="{12 if kind == "png" else 68}"') == 13
    (tmp_path / "run-3" / "samples" / "shard-00000.npz").write_bytes(b"PK")
    text = section(report(tmp_path), "Images")
    assert text.count("data:image/") == 12 and "run-3/samples/shard-00000.npz is not" in text


def test_strips_are_the_first_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 5, 6), dtype=np.uint8)
    add_pictures(write_run(tmp_path, 1.0), images)
    picture = strip_of(read_runs(tmp_path).runs[0])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data.partition(",")[2]))))
    assert (pixels == np.asarray(image_grid(torch.from_numpy(images[:10]), 10))).all()


def test_a_large_grid_is_inlined_scaled(pair):
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pair / "run-0" / "grid.png")
    text = report(pair)
    assert "data:image/jpeg;" in text and len(text) < 6e6 < (pair / "run-0" / "grid.png").stat().st_size


def test_filters_say_what_they_are_and_equal_ones_are_shown_once(pair):
    told = [words for words in texts(section(report(pair), "Filters")) if words in ("R", "A", "pixel", "cycles/pixel")]
    notes = re.findall(r'class="note">(.), (\w+) plane<', section(report(pair), "Filters"))
    assert (notes, told) == ([("R", "frequency"), ("A", "pixel")], ["cycles/pixel", "R", "pixel", "A"])
    add_pictures(write_run(pair, 9.0), np.zeros((4, 1, 8, 8), np.uint8), **np.load(pair / "run-1" / "filter.npz"))
    assert section(report(pair), "Filters").count("<svg") == 2


def test_damaged_pictures_cost_themselves_alone(pair):
    (pair / "run-1" / "filter.npz").write_bytes(b"PK")
    grid = pair / "run-0" / "grid.png"
    grid.write_bytes(grid.read_bytes()[:60])
    text = report(pair)
    assert section(text, "Images").count("This cannot be shown") == 1 and text.count("data:image") == 1
    assert "run-1/filter.npz is not" in section(text, "Filters")


def test_a_grid_that_is_no_picture_never_holds_a_report_up(tmp_path):
    draw, refused = random.Random(0), 0
    add_pictures(tmp_path, np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8))
    grid, found = tmp_path / "grid.png", Run(tmp_path, "done")
    content, shown = grid.read_bytes(), grid_of(found)
    for case in range(60):
        grid.unlink()
        if case % 3 == 0:
            os.mkfifo(grid)
        elif case % 3 == 1:
            grid.symlink_to(draw.choice(["/dev/zero", "/dev/urandom", "/dev/full", grid, tmp_path, "/proc/self/mem"]))
        else:
            at = draw.randrange(len(content))
            grid.write_bytes(content[:at] + draw.choice([b"", draw.randbytes(30) + content[at + 30 :]]))
        try:
            assert grid_of(found) in (None, shown) or case % 3 == 2
        except Exception:  # the page shows its reason instead
            refused += 1
    assert refused > 40


def plane(chart, kind="image/png"):
    """The pixels of the first picture in a chart."""
    data = re.search(rf"data:{kind};base64,([^\"]+)", chart.svg)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


@pytest.mark.parametrize("shape", [(28, 28), (9, 12)])
def test_a_frequency_filter_has_dc_in_the_centre(shape):
    frequency = np.ones((3, *shape), np.float32)
    frequency[:, 0, 0] = 2
    frequency[:, 0, 1] = 1.5  # one cycle a width to the right of DC
    chart = filter_plane("f", "frequency", frequency)
    pixels = plane(chart)
    assert pixels.shape[:2] == shape, "its own pixels"
    bright = pixels.sum(axis=2)
    row, column = shape[0] // 2, shape[1] // 2
    assert np.unravel_index(bright.argmax(), shape) == (row, column)
    bright[row, column] = 0
    assert np.unravel_index(bright.argmax(), shape) == (row, column + 1)
    assert {"cycles/pixel", "−0.5", "0.25", "R", "1", "2"} <= {text.replace("-", "−") for text in texts(chart.svg)}


def test_channels_that_differ_have_panels_on_one_scale():
    equal, different = np.ones((3, 8, 8)), np.ones((3, 8, 8))
    different[1] = 2
    assert filter_plane("f", "space", equal).svg.count("<image") == 2, "the plane and its bar"
    chart = filter_plane("f", "space", different)
    assert chart.svg.count("<image") == 4 and {"channel 0", "channel 1", "channel 2", "A", "pixel"} <= set(texts(chart.svg))
