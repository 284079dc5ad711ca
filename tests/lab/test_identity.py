"""The identity of a run: the same in every version. tests/golden/runs holds runs made at 718bc09, without their images."""

import copy
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from command_line import command
from hydra.utils import get_object
from test_configurations import composed

from pds.errors import PDSError
from pds.lab import runs
from pds.lab.config import defaults, resolved
from pds.lab.experiment import Experiment
from pds.lab.runs import RunFolder, essence, group_folder, run_name

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"
RUNS = sorted((GOLDEN / "debug").iterdir())

# Class paths in conf/ at 718bc09 that a run depends on.
OLD_PATHS = {
    "pds.data.celeba": ["CelebA"],
    "pds.data.cifar10": ["cifar10"],
    "pds.data.dataset": ["Dataset", "form_of_dataset"],
    "pds.data.ffhq": ["FFHQ"],
    "pds.data.folder": ["ImageFolder"],
    "pds.data.lsun": ["LSUN"],
    "pds.data.mnist": ["mnist"],
    "pds.evaluation.metric": ["clean_fid_metric", "mnist_classifier_metric", "no_metric"],
    "pds.evaluation.reference": ["MadeReference", "PublishedReference", "published_or_made"],
    "pds.models.ncsn": ["ncsn"],
    "pds.models.ncsnpp": ["ncsnpp"],
    "pds.models.ncsnv2": ["ncsnv2"],
    "pds.models.unet2d": ["unet2d"],
    "pds.preconditioning.filters": ["NoFilter", "ParametricFilter", "statistics_filter"],
    "pds.preconditioning.solenoids": ["FourierSolenoid", "NoSolenoid", "ShiftSolenoid"],
    "pds.processes.forward": ["SubVariancePreserving", "VarianceExploding", "VariancePreserving"],
    "pds.processes.schedules": ["LearningRates", "ProcessTimes"],
    "pds.samplers.accelerated": ["AcceleratedDeterministic", "AcceleratedStochastic", "DDIM"],
    "pds.samplers.adaptive": ["AdaptiveSDE"],
    "pds.samplers.analytic": ["AnalyticDDIM"],
    "pds.samplers.annealed_langevin": ["AnnealedLangevin"],
    "pds.samplers.diffusers_schedulers": ["DiffusersScheduler"],
    "pds.samplers.dpm_solver": ["DPMSolver"],
    "pds.samplers.edm": ["EDM"],
    "pds.samplers.momentum_langevin": ["MomentumLangevin"],
    "pds.samplers.predictor_corrector": [
        "Ancestral",
        "AnnealedLangevinSteps",
        "EulerMaruyama",
        "Langevin",
        "PredictorCorrector",
        "ReverseDiffusion",
        "no_corrector",
        "no_predictor",
    ],
    "pds.training": ["Trainer"],
}


def given(run):
    """The overrides of the command that made a run."""
    overrides = shlex.split(json.loads((run / "result.json").read_text())["command"])[2:]
    return [override for override in overrides if not override.startswith("outputs=")]


def config_of(overrides):
    cfg = composed(*overrides)
    return resolved(cfg) | {"fingerprint": Experiment.build(cfg).fingerprint}


def old_config():
    (run,) = (run for run in RUNS if "dpm_solver" in run.name)
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name.rpartition("-")[0])
def test_a_run_made_by_an_old_version_is_found_done_by_the_same_command(tmp_path, run):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    again = command("run.py", *given(run), f"outputs={tmp_path}")
    assert again.returncode == 0, again.stderr
    assert f"{run.name} is done already" in again.stderr
    assert {path.name for path in (tmp_path / "debug").iterdir() if path.is_dir()} == {path.name for path in RUNS}


@pytest.mark.parametrize(
    "other", ["seed=1", "images=9", "sampler.iterations=6", "dataset.statistics_images=100", "shard_size=3"]
)
def test_another_run_is_not_taken_for_it(tmp_path, other):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    for run in RUNS:
        # Under the same slug, so that the configuration alone tells them apart.
        config = config_of([o for o in given(run) if o.partition("=")[0] != other.partition("=")[0]] + [other])
        assert RunFolder.of(tmp_path / "debug", given(run), config).path.name not in {path.name for path in RUNS}
        with pytest.raises(PDSError, match=f"holds a run with {other.partition('=')[0]}=.*not {other.partition('=')[2]}"):
            RunFolder(tmp_path / "debug" / run.name).claim(config)


def test_an_option_that_is_added_at_its_default_renames_no_run_and_any_other_value_does(monkeypatch):
    old = old_config()
    monkeypatch.setattr(runs, "defaults", lambda target: defaults(target) | {"added": 3, "listed": [1, 2.0], "off": False})
    for node in (("model",), ("model", "process"), ("dataset",), ("filter",), ("sampler",), ("metric",), ("dataset", "source")):
        for values, same in (
            ({"added": 3}, True),
            ({"added": 3.0, "listed": [1, 2], "off": False}, True),
            ({"added": 4}, False),
            ({"added": None}, False),
            ({"off": True}, False),
            ({"off": 0}, False),
            ({"listed": [1]}, False),
            ({"new": None}, False),
        ):
            new = copy.deepcopy(old)
            inner = new
            for key in node:
                inner = inner[key]
            inner |= values
            assert (essence(new) == essence(old)) == same, (node, values)
            assert (run_name([], new) == run_name([], old)) == same


def test_a_class_that_moves_renames_no_run(monkeypatch):
    first, now = "pds.samplers.dpm_solver.DPMSolver", "pds.samplers.elsewhere.Solver"
    old, new = old_config(), old_config()
    new["sampler"]["_target_"] = now
    name = run_name([], old)
    assert run_name([], new) != name
    monkeypatch.setattr(runs, "MOVED", {first: now})
    monkeypatch.setattr(runs, "_FIRST", {now: first})
    monkeypatch.setattr(runs, "defaults", lambda target: defaults({now: first, first: "pds.gone.Gone"}.get(target, target)))
    assert run_name([], new) == run_name([], old) == name
    assert "sampler.rho" not in essence(old) and essence(old)["sampler.eta"] == 0.5


@pytest.mark.parametrize("module", OLD_PATHS)
def test_every_class_that_old_runs_name_is_known(module):
    for name in OLD_PATHS[module]:
        path = f"{module}.{name}"
        assert get_object(runs.MOVED.get(path, path)), "add its new path to pds.lab.runs.MOVED"


def test_a_damaged_or_foreign_class_path_imports_nothing(monkeypatch):
    monkeypatch.setattr(runs, "defaults", lambda target: pytest.fail(target))
    for target in ("antigravity", "os.abort", "pdsx.y", "", None, 3, ["pds.x"]):
        essence({"model": {"_target_": target, "width": 3}})
    monkeypatch.undo()
    for target in ("pds.nowhere.Nothing", "pds", "pds.", "pds..x", "pds.files.os.abort", "pds.files.DEPTH"):
        assert essence({"model": {"_target_": target, "width": 3}})["model.width"] == 3


def test_a_group_is_a_folder_inside_of_outputs(tmp_path):
    assert group_folder(str(tmp_path), "a/b c-1") == tmp_path / "a" / "b c-1"
    for group in ("../x", "..", ".", "", "a/../../x", "/etc", "a\nb", "a\x1b[2J", "a\0", "/", "a/..", "\u202ea", "\ud800"):
        with pytest.raises(PDSError, match="is no name of a folder inside outputs") as raised:
            group_folder(str(tmp_path), group)
        assert str(raised.value).isprintable()
    with pytest.raises(PDSError, match="is no path"):
        group_folder("~nobody-of-this-name/x", "g")


@pytest.mark.parametrize(
    ("given", "leaves"),
    [([], False), (["sampler=preconditioned_sde", "sampler.iterations=6"], True), (["remedy=level_shift"], True)],
)
def test_runs_between_the_levels_of_a_ladder_are_not_those_of_older_versions(given, leaves):
    """Older versions took the score of the nearest level there; on the levels the images are the same."""
    experiment = Experiment.build(composed("model=ncsn_small", "metric=none", *given))
    assert ("between_levels" in experiment.fingerprint) == leaves
