"""The tables: every cell composes and builds, printed numbers are the papers', small forms run."""

import copy
import csv
import functools
import json
import tempfile
from itertools import product
from pathlib import Path

import pytest
from command_line import command
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_configurations import composed

from pds.errors import PDSError
from pds.lab.cli import status
from pds.lab.config import CONF, build, resolved
from pds.lab.experiment import run
from pds.lab.points import Point, Points
from pds.lab.report import read_runs
from pds.lab.report.table import fill
from pds.lab.schema import register
from pds.lab.tables import TABLES, key, plan, reproduce
from pds.lab.text import significant


@functools.cache
def full(name):
    """The table, and the configuration of each cell in turn, with every checkpoint present."""
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in CHECKPOINTS:
            (Path(folder) / f"{checkpoint}.pth").touch()
        table, points = planned(name, f"checkpoints={folder}")
    of_point = dict(zip((Point.of(point).digest for point in points), configurations(points), strict=True))
    return table, [of_point[digest] for cell in table.cells for digest in cell.points]


@functools.cache
def is_choice(name):
    return GlobalHydra.instance().config_loader().repository.group_exists(name)


@functools.cache
def chosen(*choices):
    return compose("run", [*choices, "tracker=none"])


def configurations(points):
    """The configuration of each point: the choices are composed once, and Hydra puts the values in as usual."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = []
        for point in points:
            choices = [override for override in point if is_choice(key(override))]
            cfg = copy.deepcopy(chosen(*sorted(choices)))
            values = OverridesParser.create().parse_overrides([override for override in point if override not in choices])
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            made.append(cfg)
        return made


def planned(name, *overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plan(resolved(compose("reproduce", [f"table={name}", *overrides])), [], "command")


def test_equal_seeds_are_refused():
    """They are one run, and would stand in a table as two with a deviation of 0."""
    with pytest.raises(PDSError, match="seeds must be different"):
        planned("iterations", "small=true", "seeds=[0,0]")


CHECKPOINTS = [
    "ncsnpp_cifar10",
    "ddpmpp_cifar10",
    "ncsnpp_church",
    "ncsnpp_bedroom",
    "ncsnpp_ffhq1024",
    "ncsnv2_church",
    "ncsnv2_tower",
]

# As the papers print them, by row and column.
PRINTED = {
    "ncsnpp_cifar10": {
        "NCSN++": [29.39, 4.35],
        "NCSN++ with PDS": [3.26, 2.61],
        "DDIM": [6.08, 4.02],
        "Analytic-DDIM": [3.55, 3.39],
    },
    "clean_fid": {
        "NCSNv2 church 96², T = 156": [217.9, 65.7],
        "NCSNv2 tower 128², T = 81": [67.2, 43.8],
        "NCSN++ bedroom 256², T = 166": [393.7, 16.9],
        "NCSN++ church 256², T = 166": [393.3, 15.0],
        "NCSN++ FFHQ 1024², T = 66": [463.2, 61.2],
    },
    "wall_clock": {"NCSN++ LSUN 256²": [1173, 90], "NCSN++ FFHQ 1024²": [2030, 71]},
}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_numbers(name):
    table, _ = planned(name)
    rows = {}
    for cell in table.cells:
        rows.setdefault(cell.row, []).append(cell.printed)
    assert rows == PRINTED[name]


def build_parts(runs):
    """Resolve every run, and build each filter, solenoid and sampler in them once."""
    nodes = {}
    for cfg in runs:
        config = resolved(cfg)
        nodes |= {f"{part} {config[part]}": cfg[part] for part in ("filter", "solenoid", "sampler")}
    for node in nodes.values():
        build(node)


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_every_table_builds(name):
    table, runs = full(name)
    assert len(runs) == sum(len(cell.points) for cell in table.cells)
    assert all(cell.points or cell.printed for cell in table.cells)
    build_parts(runs)
    for cfg in runs:
        assert Path(cfg.model.checkpoint).stem in CHECKPOINTS or cfg.model.checkpoint.startswith("asset:")
        assert cfg.images == table.images


def test_the_figures_cover_the_papers_settings():
    configs = {name: full(name)[1] for name in ("r_lambda", "iterations", "solenoid_omega", "solenoid_operators")}
    r_lambda = [(cfg.filter.r, cfg.filter.lam, cfg.sampler.iterations) for cfg in configs["r_lambda"]]
    assert r_lambda == [(r, lam, 166) for r, lam in product((0.15, 0.2, 0.25), (0.85, 0.9, 0.91, 0.92, 0.95))]
    series = {}
    for cfg in configs["iterations"]:
        pds = " PDS" if {"r", "alpha"} & set(cfg.filter) else ""
        series.setdefault(Path(cfg.model.checkpoint).stem + pds, []).append(cfg.sampler.iterations)
    for pds, (name, T) in product(
        ("", " PDS"),
        {
            "ncsnv2_church": [210, 157, 126],
            "ncsnv2_tower": [108, 81, 65],
            "ncsnpp_church": [200, 166, 142],
            "ncsnpp_bedroom": [200, 166, 142],
            "ncsnpp_ffhq1024": [2000, 200, 133, 100, 66],
        }.items(),
    ):
        assert series.pop(name + pds) == T
    assert not series
    assert [cfg.solenoid.omega for cfg in configs["solenoid_omega"]] == [1, 10, 100, 1000]
    operators = [(cfg.solenoid.operator, cfg.sampler.iterations) for cfg in configs["solenoid_operators"]]
    assert operators == list(product([f"S{i}" for i in range(1, 7)], (66, 57, 50, 44)))


def test_tables_of_samplers_have_equal_evaluations_and_build_on_one_another():
    few = full("samplers")[0].cells
    assert len({cell.row for cell in few}) == 12
    all_of_them = {(cell.row, cell.column) for cell in full("samplers_all")[0].cells}
    assert {(cell.row, cell.column) for cell in few} < all_of_them
    networks = {"samplers_all": "VE", "samplers_vp": "VP", "samplers_cifar10": "VE", "samplers_cifar10_vp": "VP"}
    for name, network in networks.items():
        table, runs = full(name)
        for cell, cfg in zip(table.cells, runs, strict=True):
            sampler, budget = build(cfg.sampler), int(cell.column.removeprefix("NFE "))
            evaluations = sampler.iterations * sampler.nfe_per_iteration
            adaptive = cell.row == "adaptive SDE"
            assert adaptive or evaluations in (budget, budget - 1), f"{name}: {cell.row}, {cell.column}"
            assert cfg.model.process._target_.endswith("Exploding" if network == "VE" else "Preserving")
        # The discrete chain of VP needs more than 20 levels; no cell of the other samplers is lost.
        short = {cell.column for cell in table.cells if cell.row == "reverse diffusion + Langevin with PDS"}
        assert ("NFE 20" in short) == (network == "VE")
        assert sum(cell.row == "DDIM" for cell in table.cells) == 5
    small, points = planned("samplers_vp", "small=true")
    T = [int(o.partition("=")[2]) for point in points for o in point if o.startswith("sampler.iterations=")]
    expensive = [t > 20 for t in T]
    assert expensive == sorted(expensive)  # the cheap column first
    assert {cell.column for cell in small.cells} == {"NFE 20", "NFE 50"}
    assert sum(cell.row == "Euler-Maruyama" for cell in small.cells) == 2


def test_what_is_missing_is_named_and_the_rest_runs(tmp_path):
    # One checkpoint file is no checkpoint: its cell fails and says so. The cells without a checkpoint are skipped.
    (tmp_path / "ncsnv2_tower.pth").write_bytes(b"no weights")
    arguments = ["table=clean_fid", f"outputs={tmp_path}", f"checkpoints={tmp_path}", "images=2", "tracker=none"]
    result = command("reproduce.py", *arguments)
    assert result.returncode == 1
    with (tmp_path / "tables" / "clean_fid" / "table.csv").open() as file:
        notes = {(row["row"].split(",")[0], row["column"]): row["note"] for row in csv.DictReader(file)}
    assert notes["NCSN++ bedroom 256²", "vanilla"] == "missing: checkpoint ncsnpp_bedroom"
    assert notes["NCSNv2 tower 128²", "PDS"].startswith("failed: ")
    assert "Missing: ncsnpp_bedroom.pth: score_sde_pytorch, ve/bedroom_ncsnpp_continuous" in result.stdout
    nothing = command("reproduce.py", "table=r_lambda", f"outputs={tmp_path}", f"checkpoints={tmp_path}")
    assert nothing.returncode == 1
    assert "no cell of this table can run here" in nothing.stderr
    assert (tmp_path / "tables" / "r_lambda" / "table.md").exists()
    assert "one of alpha_iterations, classes, clean_fid" in command("reproduce.py", "table=clean").stderr


def test_a_form_without_cells_is_refused():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("reproduce", ["table=few_steps", "small=true"]))
    config["table"]["small"]["columns"] = []
    with pytest.raises(PDSError, match=r"^the table .* has no cell: list cells, or the columns of its rows, in conf/table$"):
        plan(config, [], "command")


@pytest.mark.parametrize("given", [["--cfg", "job"], ["model.nope=3"], ["batch_size=many"], ["hydra/launcher=nope"]])
def test_a_refused_command_leaves_the_table_of_an_earlier_one_alone(given, tmp_path):
    earlier = tmp_path / "tables/clean_fid_small/table.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    arguments = ["table=clean_fid", "small=true", "tracker=none", f"outputs={tmp_path}", *given]
    assert status(reproduce, arguments) == 1
    assert earlier.read_text() == "earlier"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sampler.iterations=4", "sampler.iterations=4 cannot be given to this table: it says what the cells"),
        *((f"{group}=x", "it says what the cells of this table are") for group in ("remedy", "solenoid", "sampler", "model")),
        ("seed=3", r"seeds=\[...\] gives the seeds"),
        ("group=mine", "group=mine cannot be given"),
    ],
)
def test_what_would_change_the_meaning_of_a_cell_is_refused(given, message):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("reproduce", ["table=ncsnpp_cifar10", "small=true"]))
    with pytest.raises(PDSError, match=message):
        plan(config, [given], "command")
    assert plan(config, ["batch_size=8"], "command")[1][0][-2:] == ["batch_size=8", "seed=0"]


@pytest.mark.parametrize("name", TABLES)
def test_every_small_form_builds(name):
    table, points = planned(name, "small=true")
    assert points
    assert all(cell.points for cell in table.cells)
    runs = configurations(points)
    build_parts(runs)
    for cfg in runs:
        assert cfg.model.checkpoint.startswith("asset:")
        assert cfg.images <= 512


@pytest.mark.parametrize("name", TABLES)
def test_a_cell_of_every_small_form_runs(name, tmp_path, capsys):
    table, points = planned(name, "small=true", "images=2")
    overrides = [*points[-1], "group=cell", f"outputs={tmp_path}"]
    run(composed(*overrides), overrides)
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("cell/*/result.json"))
    (run_folder,) = (path.parent.name for path in tmp_path.glob("cell/*/result.json"))
    done = Point.of(points[-1], state="done", run=run_folder)
    assert done.digest == table.cells[-1].points[-1]
    line = fill(table, [done], read_runs(tmp_path / "cell"))[-1]
    expected = result["seconds"] if name == "wall_clock" else next(iter(result["metrics"].values()))
    assert [line.record[head] for head in ("measured", "images", "NFE")] == [expected, 2, result["nfe"]]


def test_a_small_form_end_to_end_and_again(tmp_path):
    # A grid of two by two that samples in no time.
    rows = {"NCSN++ with PDS": ["filter=statistics", "filter.alpha=2.5"], "ancestral": ["sampler/predictor=ancestral"]}
    column = "column:'T = {sampler.iterations}',vary:{sampler.iterations:[2,5]}"
    cells = ",".join(f"{{row:{row!r},{column},run:{run}}}" for row, run in rows.items())
    arguments = ["table=ncsnpp_cifar10", "small=true", f"outputs={tmp_path}", "seeds=[0,1]", "images=2", "tracker=none"]
    arguments += [f"table.small.cells=[{cells}]"]
    first = command("reproduce.py", *arguments)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "tables" / "ncsnpp_cifar10_small"
    assert [point.state for point in Points(folder).read()] == ["done"] * 8
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["column"], row["T"], row["seeds"]) for row in rows][:2] == [
        ("T = 2", "2", "2"),
        ("T = 5", "5", "2"),
    ]
    runs = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    for row in rows:
        kind = (
            int(row["T"]),
            row["row"] != "NCSN++ with PDS",
            "ancestral" if row["row"] == "ancestral" else "reverse diffusion",
        )
        mine = [run["metrics"] for run in runs if (run["iterations"], run["vanilla"], run["sampler"]) == kind]
        assert len(mine) == 2
        assert float(row["measured"]) == pytest.approx(sum(metrics["fid_mnist_classifier_2"] for metrics in mine) / 2)
        assert row["metric"] == "fid_mnist_classifier_2"
        assert "another model" in row["note"]
    report = (folder / "report.html").read_text()
    for row in rows:
        assert f"{float(row['measured']):.0f} ±" in report, "no digit below the error of two images"
        assert f"{significant(float(row['measured']))}±" in first.stdout
    again = command("reproduce.py", *arguments)
    assert again.stderr.count("is done already") == 8


def test_a_reference_that_stands_for_a_value_of_another_type_is_refused(monkeypatch):
    monkeypatch.setenv("PDS_TEXT", "text")
    for name in ("base", "cells", "rows"):
        refused = command("reproduce.py", "table=few_steps", "small=true", f"table.{name}=${{oc.env:PDS_TEXT}}")
        assert refused.returncode == 1 and refused.stderr.startswith("error: table."), refused.stderr
        assert refused.stderr.count("\n") == 1
