"""The search: it finds the known optimum, samples nothing twice, loses nothing to a kill, and refuses wrong input in one
sentence."""

import contextlib
import functools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from statistics import stdev
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
import yaml
from command_line import ROOT, command, forks
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState
from test_configurations import composed

import pds
from pds.errors import OptionError, PDSError, UnwritableError
from pds.evaluation.gaussian import sampled_law
from pds.gaussian import StationaryGaussian
from pds.generation import DivergedError, ImageSampler
from pds.lab import tables
from pds.lab.config import CONF, build
from pds.lab.experiment import Experiment, measured
from pds.lab.schema import register
from pds.lab.settings import Tune
from pds.lab.tuning import recommendation as recommendations
from pds.lab.tuning import search, study
from pds.lab.tuning.page import write_page
from pds.lab.tuning.recommendation import Answer, MeasuredSetting, earlier, from_anywhere, recommended, write
from pds.lab.tuning.space import Kind, Varied, _evaluations, kinds_of, most_iterations
from pds.lab.tuning.study import storage_of
from pds.noise import ImageNoise
from pds.options import Search
from pds.preconditioning.preconditioner import Identity
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import VariancePreserving
from pds.score import CountedScore

# A Gaussian in 4 x 4 pixels: its exact denoiser, and the Fréchet distance of its pixels.
CODE = """
import numpy as np
import torch
from torch import nn

from pds.evaluation.frechet import FeatureStatistics
from pds.evaluation.panel import Panel
from pds.evaluation.reference import Reference

SIZE, MEAN = 4, 0.5
k = torch.fft.fftfreq(SIZE, 1 / SIZE, dtype=torch.float64)
POWER = 0.04 / (1 + k[:, None] ** 2 + k[None, :] ** 2) ** 2

class Exact(nn.Module):
    def forward(self, x, sigma):
        kept = POWER / (POWER + sigma.double().square()[:, None, None, None])
        return MEAN + torch.fft.ifft2(torch.fft.fft2(x.double() - MEAN) * kept).real.to(x.dtype)

class Pixels:
    name, dimension, logits, provenance = "pixels", SIZE * SIZE, None, {"features": "pixels", "resize": "none"}

    def __call__(self, images):
        return images.flatten(1).numpy().astype(np.float32) / 255

def pixels(dataset, device, /):
    rows = torch.eye(SIZE * SIZE).double().reshape(-1, SIZE, SIZE)
    covariance = torch.fft.ifft2(torch.fft.fft2(rows) * POWER).real.flatten(1)
    law = FeatureStatistics(np.full(SIZE * SIZE, MEAN), ((covariance + covariance.T) / 2).numpy(), 0)
    return Panel(Pixels(), Reference(law, "pixels", {}), short=True)
"""
SIZES = ["images=256", "final=512", "leaders=1", "seeds=[0,1,2]", "threads=1", "batch_size=512"]
ETA = ["space=sde", "space.preconditioned_sde.run=['sampler=preconditioned_sde','sampler.rho=7']"]
ETA += [f"space.preconditioned_sde.vary.sampler.{key}=null" for key in ("weight", "slope", "start", "end", "prior_norm")]
ETA += ["space.poor.run=['sampler=edm','sampler.order=1','sampler.rho=0.3']"]
ETA += ["sampler=preconditioned_sde", "sampler.eta=4", "budgets=[6]", "trials=11"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No report and no page, because their charts take longer than a search here; trials may be pruned early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "write_page", lambda folder, *rest: folder / "tuning.html")
        patch.setattr(search, "write_report", lambda folder: folder / "report.html")
        patch.setattr(study, "UNPRUNED", 2)
        patch.setattr(search, "POLL", 0.02)
        yield


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """Overrides of the exact model and its metric."""
    folder = tmp_path_factory.mktemp("exact")
    (folder / "exact_gaussian.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        model = [f"model.make={folder}/exact_gaussian.py:Exact", "model.predicts=data", "model.data_range=[0,1]"]
        levels = ["model.process.sigma_min=0.01", "model.process.sigma_max=4", "dataset.shape=[1,4,4]"]
        yield ["model=own", "model/process=ve", *model, *levels, "metric=none", "metric._target_=exact_gaussian.pixels"]


@pytest.fixture(scope="module")
def found(gaussian, tmp_path_factory):
    """An undisturbed search over eta alone: its folder, its output, and each (sampler, seed, image) that it sampled."""
    sampled, call = Counter(), ImageSampler.__call__

    def counted(self, indices, *rest):
        sampled.update((self.sampler, self.seed, index) for index in indices)
        return call(self, indices, *rest)

    outputs = tmp_path_factory.mktemp("found")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSampler, "__call__", counted)
        patch.setattr(search, "write_page", write_page)
        done = command("tune.py", *gaussian, *SIZES, *ETA, f"outputs={outputs}")
    assert done.returncode == 0, done.stderr
    return outputs / "tune" / "own", done, sampled


def recommendation(folder):
    return yaml.safe_load((folder / "recommendation.yaml").read_text())


def trials(folder):
    (name,) = optuna.get_all_study_names(storage := storage_of(folder, None))
    return optuna.load_study(study_name=name, storage=storage).trials


def test_the_best_setting_of_a_gaussian_is_found_to_within_the_noise(gaussian, found):
    folder, _, _ = found
    line = recommendation(folder)["budgets"]["6"]
    process = build(composed(*gaussian).model.process)
    scope = {}
    exec(CODE, scope)
    power = scope["POWER"][None]
    target = StationaryGaussian(torch.full_like(power, 0.5), power)

    def exact(eta):
        return sampled_law(pds.PreconditionedSDE(6, 7.0, eta=eta), target, process, Identity()).distance(target)

    best = min(map(exact, torch.logspace(-0.6, 0.9, 40, dtype=torch.float64).tolist()))
    (eta,) = (float(override.partition("=")[2]) for override in line["winner"]["run"] if "eta" in override)
    spread = stdev(line["winner"]["distances"].values())
    assert exact(eta) - best < spread
    assert exact(4.0) - best > 3 * spread  # so not every setting would pass
    assert line["verdict"].startswith("better (")
    assert line["run"] == line["winner"]["run"]
    page = (folder / "tuning.html").read_text()
    assert all(text in page for text in (line["verdict"], "Pareto front", "winner, seed 0", "default, seed 0", "seed 2"))
    assert list(line["default"]["distances"]) == ["0", "1", "2"]


def test_no_image_is_sampled_twice_and_trials_share_their_noise(found):
    folder, _, sampled = found
    assert set(sampled.values()) == {1}
    images = Counter((sampler, seed) for sampler, seed, _ in sampled)
    ended = trials(folder)
    states = Counter(trial.state for trial in ended)
    assert len(ended) == 11
    assert states[TrialState.PRUNED] > 0 < states[TrialState.COMPLETE]
    # 64 images of those that were pruned, 256 of the others, 512 of the leader and the default, also on three seeds more.
    of_trials = Counter(count for (_, seed), count in images.items() if seed == 10)
    assert of_trials == {64: states[TrialState.PRUNED], 256: states[TrialState.COMPLETE] - 2, 512: 2}
    names = ["default", "preconditioned_sde, guessed", "preconditioned_sde"]
    assert [trial.user_attrs.get("start") for trial in ended[:3]] == names
    assert sorted(count for (_, seed), count in images.items() if seed != 10) == [512] * 6


def test_another_choice_of_a_group_leaves_nothing_of_the_recommended_one(tmp_path, caplog):
    run = ["sampler=preconditioned_sde", "sampler.eta=2", "filter=statistics", "filter.alpha=3"]
    write(
        tmp_path,
        ["model=own", "metric=panel", "metric.features=x.py:f"],
        "fid_x",
        {6: Answer(MeasuredSetting(run, 6), None)},
        "",
    )
    told = []
    work = recommended(told.extend)
    work([f"recommendation={tmp_path}/recommendation.yaml", "budget=6", "metric=none", "sampler=edm", "filter.alpha=5"])
    assert told == ["model=own", "filter=statistics", "metric=none", "sampler=edm", "filter.alpha=5"]
    replaced = "sampler=preconditioned_sde sampler.eta=2 filter.alpha=3"
    assert caplog.messages == [f"the command replaces a part of the recommendation, which was measured as a whole: {replaced}"]
    caplog.clear()
    work([f"recommendation={tmp_path}/recommendation.yaml", "budget=6", 'filter.alpha="3"', "metric.features='x.py:f'"])
    assert caplog.messages == []


def test_files_of_a_recommendation_are_found_from_every_folder(tmp_path, monkeypatch):
    folder = tmp_path / "it's (mine)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("net.py", "w.pt", "score", "mnist"):
        (folder / name).touch()
    given = ["model.make=net.py:Tiny", "model.checkpoint='w.pt'", "model.checkpoint=asset:w.pt", "dataset=mnist", "seed=1"]
    made = OverridesParser.create().parse_overrides([from_anywhere(override) for override in given])
    values = [f"{folder}/net.py:Tiny", f"{folder}/w.pt", "asset:w.pt", "mnist", 1]
    assert [override.value() for override in made] == values
    for name in ("data", "asset"):
        (folder / name).mkdir()
    assert from_anywhere("model.checkpoint=asset:w.pt") == "model.checkpoint=asset:w.pt"
    assert from_anywhere("model.predicts=data") == "model.predicts=data"
    (folder / "l.txt").touch()
    (labels,) = OverridesParser.create().parse_overrides([from_anywhere("labels=l.txt")])
    assert labels.value() == f"{folder}/l.txt" and from_anywhere("labels=uniform") == "labels=uniform"
    (root,) = OverridesParser.create().parse_overrides([from_anywhere("dataset.source.root=data")])
    assert root.value() == f"{folder}/data"


def test_run_composes_a_recommendation(found):
    folder, _, sampled = found
    before = sum(sampled.values())
    written = (folder / "recommendation.yaml").read_text().splitlines()[1].removeprefix("# ")
    python, script, take, budget = shlex.split(written)
    assert sys.executable in (shutil.which(python), str(ROOT / python))
    assert (script, budget) == ("experiments/run.py", "budget=6")
    take = [take, "group=tune/own", f"outputs={folder.parents[1]}", "tracker=none"]
    again = command("run.py", *take, budget, "images=512", "seed=2", "shard_size=64")
    assert again.returncode == 0, again.stderr
    assert "is done already" in again.stderr
    assert sum(sampled.values()) == before
    wrong = {"budget=7": "budget=7 is not in ", "": "belong together"}
    for budget, said in wrong.items():
        refused = command("run.py", *take, *filter(None, [budget]))
        assert refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr


def test_all_files_of_a_search_are_in_one_group(gaussian, tmp_path):
    name = "2024_01_06"
    done = command(
        "tune.py", *gaussian, *SIZES, *ETA, "trials=1", "leaders=1", "budgets=[6]", f"group={name}", f"outputs={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    one = next(tmp_path.glob("*/*/result.json"))
    again = shlex.split(json.loads(one.read_text())["command"])
    assert again[1] == "experiments/run.py"
    done = command("run.py", *again[2:], "tracker=none")
    assert done.returncode == 0 and "is done already" in done.stderr, done.stderr


def test_answers_for_other_budgets_stay_and_those_of_another_search_are_not_mixed(tmp_path):
    common, found = ["model=own", "bf16=true"], Answer(MeasuredSetting(["sampler=edm"], 6, {"0": 1.0}), None)
    write(tmp_path, common, "fid_x", {20: found}, "one")
    write(tmp_path, common[::-1], "fid_x", {7: found}, "two")
    kept = recommendation(tmp_path)
    assert list(kept["budgets"]) == ["7", "20"] and kept["budgets"]["20"]["winner"]["distances"] == {"0": 1.0}
    for others in ((common, None), (["model=own"], "fid_x")):
        with pytest.raises(PDSError, match="holds answers of another search, by fid_x: give another group, or delete it"):
            earlier(tmp_path, *others)
    assert recommendation(tmp_path) == kept


def forked(*arguments):
    """A separate process that searches, without a start of Python."""
    if (child := os.fork()) == 0:
        status = 99
        try:
            status = command("tune.py", *arguments).returncode
        finally:
            os._exit(status)
    return child


def test_killed_it_goes_on_and_shared_it_ends(gaussian, found, tmp_path):
    sizes = ["images=256", "final=256", "leaders=1", "seeds=[0,1]", "threads=1", "batch_size=512"]
    arguments = [*gaussian, *sizes, *ETA, f"outputs={tmp_path}"]
    folder = tmp_path / "tune" / "own"
    child = forked(*arguments)
    while len(list(folder.glob("*/samples/*.npz"))) < 9:  # in its third trial
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(folder / "study.journal", "ab") as journal:
        journal.write(b'{"op_code": 5, "wor')  # as a kill leaves it
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/samples/*.npz")}

    def told(where):
        return [(trial.number, trial.state, trial.params, trial.value) for trial in trials(where)]

    ended = [row for row in told(folder) if row[1].is_finished()]
    assert len(ended) >= 2
    assert command("tune.py", *arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert told(folder)[: len(ended)] == ended
    assert told(folder) == told(found[0])
    # Two processes share two more trials, and both have the answer.
    children = [forked(*(a for a in arguments if a != "trials=11"), "trials=13") for _ in range(2)]
    assert [os.waitpid(one, 0)[1] for one in children] == [0, 0]
    numbers = [trial.number for trial in trials(folder)]
    assert numbers == list(range(13))
    assert TrialState.RUNNING not in {trial.state for trial in trials(folder)}


def test_a_trial_that_fails_or_diverges_is_recorded_and_the_others_go_on(gaussian, tmp_path, monkeypatch):
    real, begun = search.measured, []

    def measured(cfg, *rest):
        begun.append(cfg)
        if len(begun) == 2:
            raise PDSError("the disk is full")
        if len(begun) == 3:
            raise DivergedError("image values are not finite")
        return real(cfg, *rest)

    monkeypatch.setattr(search, "measured", measured)
    sizes = ["images=8", "final=32", "leaders=1", "seeds=[0,1]", "threads=1", "max_evaluations=336"]
    done = command("tune.py", *gaussian, *ETA, *sizes, f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    ended = trials(tmp_path / "tune" / "own")
    assert [trial.state.name for trial in ended[:3]] == ["COMPLETE", "FAIL", "PRUNED"]
    assert [trial.user_attrs.get("reason") for trial in ended[1:3]] == ["the disk is full", "image values are not finite"]
    # Half of the evaluations are for trials: 8 + 2 + 2 + 8 + 8 images at 6 evaluations. The leader's other 24 images fit into
    # the rest, and none of the confirmation.
    assert len(ended) == 5
    assert "max_evaluations=336 came first" in recommendation(tmp_path / "tune" / "own")["budgets"]["6"]["verdict"]


def test_a_full_disk_ends_a_search_and_the_same_command_tries_the_trial_again(gaussian, tmp_path, monkeypatch):
    real, begun = search.measured, []

    def measured(cfg, *rest):
        begun.append(cfg)
        if len(begun) == 2:
            raise UnwritableError("cannot write it: make room")
        return real(cfg, *rest)

    monkeypatch.setattr(search, "measured", measured)
    sizes = ["images=8", "final=8", "leaders=1", "seeds=[0,1]", "threads=1", "trials=3"]
    arguments = [*gaussian, *(override for override in ETA if not override.startswith("trials")), *sizes, f"outputs={tmp_path}"]
    full = command("tune.py", *arguments)
    assert full.returncode == 1 and "cannot write it: make room" in full.stderr
    assert command("tune.py", *arguments).returncode == 0
    assert TrialState.FAIL not in {trial.state for trial in trials(tmp_path / "tune" / "own")}


def test_a_ladder_that_is_shorter_than_the_defaults_walk_can_be_searched(tmp_path):
    """The shipped NCSN has 10 levels, and the default has 20 iterations until a budget gives it others."""
    default = ["model=ncsn_small", f"outputs={tmp_path}", "threads=1"]
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert search.Tuning(Tune([5]), {}, default, "tune.py").like.model.process.levels == 10


def test_without_a_metric_the_network_itself_is_asked(gaussian, tmp_path):
    plain = [override for override in gaussian if not override.startswith("metric._target_")]
    done = command("tune.py", *plain, "budgets=[6]", "threads=1", f"outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    line = recommendation(tmp_path / "tune" / "own")["budgets"]["6"]
    assert line["verdict"] == "not confirmed: a first guess of 64 images, which nothing has measured"
    assert "367 evaluations" in done.stdout  # of 64 x 6: 32 x 6 for its images, 35 for each of 5 responses
    # Another budget joins it, one that is too small hides no other, and what a guess cannot obey is refused.
    later = command("tune.py", *plain, "budgets=[1,5]", "threads=1", f"outputs={tmp_path}")
    assert later.returncode == 1 and "budget 1: a first guess needs at least 2 iterations" in later.stderr
    assert recommendation(tmp_path / "tune" / "own")["budgets"].keys() == {"5", "6"}
    assert recommendation(tmp_path / "tune" / "own")["budgets"]["6"] == line
    for more, said in {
        "sampler=edm": "a first guess chooses sampler, filter, solenoid, remedy itself: leave sampler=edm out",
        "trials=3": "there are no trials: leave trials=3 out",
        "max_evaluations=10": "budget 6: a first guess takes up to 384 evaluations, and max_evaluations=10 came first",
    }.items():
        refused = command("tune.py", *plain, "budgets=[6]", "threads=1", more, f"outputs={tmp_path}")
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr


def test_networks_of_cld_keep_their_own_sampler_and_have_kinds_of_their_own(tmp_path):
    refused = command("tune.py", "model=cld_small", "budgets=[6]", "metric=none", f"outputs={tmp_path}")
    assert refused.returncode == 1 and refused.stderr.endswith("is of CLD: give a metric\n"), refused.stderr
    small = ["images=8", "final=16", "leaders=1", "seeds=[0,1]", "trials=1", "threads=1", f"outputs={tmp_path}"]
    done = command("tune.py", "model=cld_small", "budgets=[4]", *small)
    assert done.returncode == 0, done.stderr
    assert recommendation(tmp_path / "tune" / "cld_small")["budgets"]["4"]["run"][0] == "sampler=cld_small"
    left_out = [line.partition(":")[0] for line in done.stderr.splitlines() if line.startswith("budget 4: without")]
    assert "budget 4: without preconditioned_sde, level_shift" in done.stderr and len(left_out) == 1, done.stderr


def test_auto_takes_the_first_guess_and_is_part_of_a_run(gaussian):
    experiment = Experiment.build(composed(*gaussian, "sampler=preconditioned_sde", "sampler.eta=auto"))
    assert experiment.fingerprint["sampler.eta"] == f"{experiment.sample.sampler.eta:g}"
    # An exact score sees all noise, so a filter has nothing to remove.
    filtered = ["filter=statistics", "filter.alpha=auto", "sampler=predictor_corrector", "sampler/corrector=none"]
    statistics = ["dataset=folder", "dataset.shape=[1,4,4]", "dataset.source.root=nowhere"]
    with pytest.raises(PDSError, match=r"filter.alpha must be a number, or filter=none: the network sees its excess noise"):
        Experiment.build(composed(*gaussian, *filtered, *statistics, "sampler.iterations=20"))


def answer(winner, default, nfe=20, error=None):
    """Three seeds of both; with an error, the jackknife of the winner's blocks has it and the default's are constant."""
    seeds = [str(seed) for seed in range(3)]
    sides = [dict(zip(seeds, values, strict=True)) for values in (winner, default)]
    step = 0 if error is None else error / 19**0.5  # half of the blocks one step above, half below
    blocks = [np.repeat([step, -step], 10), np.zeros(20)]
    left_out = [{} if error is None else dict.fromkeys(seeds, of_one.tolist()) for of_one in blocks]
    tuned = MeasuredSetting(["tuned"], nfe, sides[0], left_out=left_out[0])
    return Answer(tuned, MeasuredSetting(["default"], 20, sides[1], left_out=left_out[1]))


@pytest.mark.parametrize(
    ("found", "recommended", "said"),
    [
        (answer([10, 11, 12], [20, 21.2, 22.1]), "tuned", "better (-10.1"),
        (answer([10, 30, 20], [21, 22, 23]), "default", "the simpler one is recommended"),
        # The blocks of images know the error better than three seeds: 3 / sqrt(3), times 2.002 for 57 degrees of freedom.
        (answer([10, 18, 20], [21, 22, 23], error=3), "tuned", "better (-6 beside the default, 95% interval -9.47 to -2.53)"),
        (answer([10, 18, 20], [21, 22, 23], error=6), "default", "level (-6 beside the default, 95% interval -12.9 to 0.937)"),
        (answer([10, 30, 20], [21, 22, 23], nfe=19), "tuned", "the cheaper one is recommended"),
        (answer([30, 31, 32], [20, 21.2, 22.1]), "default", "worse on new noise (+9.9"),
        (Answer(MeasuredSetting(["tuned"], 20), None, "max_minutes=1 came first"), "tuned", "not confirmed: max_minutes=1"),
    ],
)
def test_a_lead_within_the_spread_is_level_and_the_cheaper_or_simpler_is_recommended(found, recommended, said):
    assert found.recommended.run == [recommended]
    assert said in found.verdict


def test_kinds_take_the_most_iterations_that_fit_and_what_a_process_cannot_take_is_left_out():
    vp = SimpleNamespace(process=VariancePreserving(0.1, 20, 1000), shape=(1, 28, 28), data_range=(0, 1))
    space = {
        "heun": {"run": ["sampler=edm"]},
        "discrete": {"run": ["sampler=predictor_corrector", "sampler/corrector=none"]},
        "adaptive": {"run": ["sampler=adaptive"]},
        "gone": None,
    }
    kinds, left_out = kinds_of(space, 20, lambda run: a_run(*run), vp, None)
    assert [(kind.run[-1], kind.nfe) for kind in kinds] == [("sampler.iterations=10", 19)]
    assert left_out.keys() == {"discrete", "adaptive"}
    assert "above 20" in left_out["discrete"] and "chooses its evaluations itself" in left_out["adaptive"]
    cld = SimpleNamespace(process=CriticallyDamped(), shape=(1, 28, 28), data_range=(0, 1))
    space["of its own"] = {"run": ["sampler=sscs"]}
    kinds, left_out = kinds_of(
        {"sde": {"run": ["sampler=preconditioned_sde"]}, **space}, 20, lambda run: a_run(*run), cld, None
    )
    assert [kind.name for kind in kinds] == ["of its own"] and "velocity" in left_out["sde"]


def test_kinds_vary_what_their_signatures_say_and_the_space_narrows_it():
    space = yaml.safe_load((CONF / "space" / "default.yaml").read_text())
    space = {name: space[name] for name in ("preconditioned_sde_filtered", "langevin", "dpm_solver")}
    space["dpm_solver"]["vary"] = {"sampler": {"order": [1, 2], "eta": [0, 1]}}
    space["langevin"]["vary"] = {"filter.alpha": None}
    kinds, _ = kinds_of(space, 9, lambda run: a_run(*run), VE, MNIST)
    varied = {kind.name: {one.key: one.tried for one in kind.varied} for kind in kinds}
    assert all(varied["preconditioned_sde_filtered"].pop(f"sampler.{end}").level for end in ("start", "end"))
    assert varied["preconditioned_sde_filtered"] == {
        "sampler.rho": Search(2, 14, log=True),
        "sampler.weight": ("exact", "midpoint"),
        "sampler.eta": Search(0.25, 8, log=True, auto=True),
        "sampler.slope": Search(0.7, 2),
        "sampler.prior_norm": ("drawn", "exact"),
        "filter.alpha": Search(1.3, 20, log=True),
    }
    assert varied["langevin"] == {"sampler.corrector.snr": Search(0.05, 0.4, log=True)}
    assert varied["dpm_solver"] == {"sampler.order": (1, 2), "sampler.eta": Search(0, 1)}
    assert [kind.nfe for kind in kinds] == [9, 8, 9]
    assert all(one.starts for kind in kinds for one in kind.varied)


PROCESSES = {
    "VE of 50": (pds.VarianceExploding(0.01, 50, 1000), (0, 1), (1, 50), (0.01, 0.3)),
    "VE of 348": (pds.VarianceExploding(0.01, 348, 2000), (0, 1), (1, 348), (0.01, 0.3)),
    "VP": (VariancePreserving(0.1, 20, 1000), (-1, 1), (2, 152.167), (0.0104860, 0.6)),
    "a short ladder": (pds.VarianceExploding(0.05, 0.9, 10), (0, 1), None, (0.05, 0.3)),
}


@pytest.mark.parametrize("what", PROCESSES)
def test_the_ends_of_a_walk_are_searched_within_the_levels_of_any_process(what):
    process, data_range, *expected = PROCESSES[what]
    model = SimpleNamespace(process=process, shape=(1, 28, 28), data_range=data_range)
    ((kind,), _) = kinds_of({"sde": {"run": ["sampler=preconditioned_sde"]}}, 9, lambda run: a_run(*run), model, MNIST)
    varied = {one.key: one for one in kind.varied}
    for name, ends in zip(("sampler.start", "sampler.end"), expected, strict=True):
        assert (name in varied) == (ends is not None)
        if ends:
            assert (varied[name].tried.low, varied[name].tried.high) == pytest.approx(ends, rel=1e-4)
    # The first trial is the default itself, and the last levels of a range are the whole walk.
    started = optuna.trial.FixedTrial(kind.starts)
    assert kind.suggested(started) == ["sampler=preconditioned_sde", "sampler.iterations=9"]
    found = kind.of_guess(pds.PreconditionedSDE(9, 14.0, eta=99, start=5.5, end=0.1))
    assert kind.suggested(optuna.trial.FixedTrial(found)) == [
        *("sampler=preconditioned_sde", "sampler.iterations=9", "sampler.rho=14.0", "sampler.eta=8"),
        *(["sampler.start=5.5"] if expected[0] else []),
        "sampler.end=0.1",
    ]


def test_a_remedy_is_a_choice_and_what_a_line_sets_varies_from_there(tmp_path):
    space = yaml.safe_load((CONF / "space" / "default.yaml").read_text())
    experiment = Experiment.build(a_run("metric=none"))
    ((kind,), _) = kinds_of(
        {"level_shift": space["level_shift"]}, 20, lambda run: a_run(*run), experiment.model, experiment.dataset
    )
    varied = {one.key: one for one in kind.varied}
    assert varied["remedy.scale"].tried == Search(1, 2, log=True) and varied["remedy.scale"].start == 1
    assert {"sampler.start", "sampler.end", "sampler.slope"} <= varied.keys()
    shifted = kind.suggested(optuna.trial.FixedTrial({**kind.starts, "level_shift.remedy.scale": 1.5}))
    assert shifted == ["sampler=preconditioned_sde", "remedy=level_shift", "remedy.scale=1.5", "sampler.iterations=20"]
    # A run that is built like another one has its own remedy and the other one's network.
    shifted = Experiment.build(a_run("metric=none", "remedy=level_shift", "remedy.scale=1.5"), experiment)
    assert shifted.sample.score.scale == 1.5
    assert shifted.sample.score.network is experiment.sample.score.network


@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        ("preconditioned_sde", "scale=3"),
        ("edm", "scale=3 interval=[0.05,2]"),
        ("predictor_corrector", "scale=3"),
        ("predictor_corrector", "scale=1"),
    ],
)
def test_a_budget_is_met_by_the_count_of_evaluations(sampler, guidance):
    cfg = a_run(f"sampler={sampler}", "guidance=classifier_free", *(f"guidance.{option}" for option in guidance.split()))
    ((kind,), _) = kinds_of({"one": {"run": []}}, 11, lambda run: cfg, VE, MNIST)

    def counted(iterations):
        made = replace(build(cfg.sampler), iterations=iterations)
        score, noise = CountedScore(lambda x, sigma, *labels: -x / (1 + sigma[0] ** 2)), ImageNoise(0, ONE, (1, 4, 4))
        guided = build(cfg.guidance)(score, ONE, 10)
        made(guided, made.prior(noise, VE.process, Identity()), made.levels(VE.process), Identity(), noise)
        return score.nfe

    iterations = int(kind.run[-1].removeprefix("sampler.iterations="))
    assert counted(iterations) == kind.nfe <= 11 < counted(iterations + 1)


@pytest.mark.parametrize("interval", [[0.0, math.inf], [0.1, 1.0]])
def test_guidance_of_a_velocity_is_counted(interval):
    model = SimpleNamespace(process=CriticallyDamped(), score=SimpleNamespace(halves=2), classes=10)
    sampler, guidance = pds.SSCS(10), f"guidance.interval={interval}"
    seen = []

    def score(x, sigma):
        seen.append(sigma.item())
        return -x[:, 1:]

    noise = ImageNoise(0, ONE, (1, 1, 1))
    sampler(score, torch.zeros(1, 2, 1, 1), sampler.levels(model.process), Identity(), noise)
    guided = sum(interval[0] <= sigma <= interval[1] for sigma in seen)
    assert guided > 0 and (guided < 10) == (interval[0] > 0)
    cfg = a_run("guidance=classifier_free", "guidance.scale=3", guidance)
    assert _evaluations(sampler, build(cfg.guidance), model) == len(seen) + guided


def test_a_range_from_zero_is_not_spread_in_the_logarithm():
    space = {"sde": {"run": ["sampler=preconditioned_sde"], "vary": {"sampler.eta": [0, 4]}}}
    ((kind,), _) = kinds_of(space, 6, lambda run: a_run(*run), VE, MNIST)
    (eta,) = (varied for varied in kind.varied if varied.key == "sampler.eta")
    assert (eta.tried.low, eta.tried.high, eta.tried.log) == (0, 4, False)


ONE = torch.zeros(1, dtype=torch.long)
MNIST = SimpleNamespace(statistics=pds.load("asset:mnist_ncsnpp").statistics)
VE = SimpleNamespace(
    process=pds.VarianceExploding(0.01, 16, 1000),
    shape=(1, 28, 28),
    data_range=(0, 1),
    classes=10,
    score=SimpleNamespace(halves=1),
)


@functools.cache
def a_run(*overrides):
    return composed("model=ncsnpp_small", *overrides)


SPACES = {
    "empty": ({"sde": None}, "space has no kind of sampler left"),
    "a kind without overrides": ({"sde": {"vary": {"sampler": {"eta": [1, 2]}}}}, "space.sde is no kind of sampler"),
    "another network": (
        {"sde": {"run": ["model=ncsnpp_small"]}},
        "space.sde.run must set sampler, filter, solenoid, remedy alone",
    ),
    "no such option": ({"sampler": {"etta": [1, 2]}}, "sampler.etta is no option of sampler=preconditioned_sde"),
    "upside down": ({"sampler.eta": [2, 1]}, "space.sde.vary.sampler.eta must have a lowest value below its highest"),
    "out of range": ({"sampler.eta": [-1, 1]}, "space.sde.vary.sampler.eta must be a number from 0 to 1000, got -1"),
    "no such choice": ({"sampler.weight": ["exact", "heun"]}, "must be one of exact, midpoint, got 'heun'"),
    "one value": ({"sampler.eta": 3}, r"must be \[lowest,highest\], a list of choices, or null, got 3"),
}


@pytest.mark.parametrize("what", SPACES)
def test_a_wrong_space_is_one_sentence(what):
    space, said = SPACES[what]
    if "sde" not in space:
        space = {"sde": {"run": ["sampler=preconditioned_sde"], "vary": space}}
    with pytest.raises(PDSError, match=said):
        kinds_of(space, 6, lambda run: a_run(*run), VE, None)


REFUSED = {
    "no budget": ([], "budgets has no value"),
    "iterations": (["budgets=[6]", "sampler.iterations=6"], "budgets says it"),
    "a sweep": (["budgets=[6]", "-m"], "a search is no sweep: leave -m out"),
    "a misspelt key": (
        ["budgets=[6]", "trails=3"],
        "there is no trails (did you mean trials?): the keys of a search are space",
    ),
    "no such kind": (["budgets=[6]", "space.dpm_sover=null"], "space has no dpm_sover to leave out: its kinds are "),
    "a limit below a trial": (["budgets=[6]", "max_evaluations=1"], "no trial was measured: max_evaluations=1 came first"),
    "no space": (["budgets=[6]", "~space"], "space has no kind of sampler left"),
    "nothing fits": (["budgets=[1]", "space.preconditioned_sde.run=['sampler=adaptive']"], "nothing in the space can sample"),
    "a metric of other images": (["budgets=[6]", "metric=mnist_classifier"], "28"),
    "no such database": (["budgets=[6]", "storage=nothing://here"], "storage=nothing://here cannot be used"),
}


def test_numbers_that_do_not_belong_together_are_refused():
    with pytest.raises(OptionError, match="images must be a whole number from 8 "):
        Tune([6], images=4)  # a quarter of them is one image, which has no distance
    for given, said in {
        "budgets": ([0], "budgets must be a list of 1 to 100 whole numbers from 1 to 100000"),
        "images": (10, "images must be a multiple of 4 that divides final, got 10 and 2048"),
        "seeds": ([9, 10], "none of them the seed of the trials, 10"),
    }.items():
        with pytest.raises(OptionError, match=said[1]):
            Tune(**{"budgets": [6], given: said[0]})


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_searched_is_one_sentence_and_samples_nothing(gaussian, tmp_path, what):
    given, said = REFUSED[what]
    model = [o for o in gaussian if not (o.startswith("metric") and "metric" in "".join(given))]
    space = [] if "~space" in given else ["space=sde"]
    done = command("tune.py", *model, *space, *given, f"outputs={tmp_path}")
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("**/*.npz"))


OTHERS = {
    "another network": (["model.process.sigma_max=5"], "model.process.sigma_max=4"),
    "another space": (["space.preconditioned_sde.vary.sampler.eta=[1,2]"], "space.preconditioned_sde="),
    "a damaged journal": ([], "is not the journal of a search"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_search_in_the_same_folder_is_refused_and_nothing_is_lost(gaussian, found, what):
    folder, _, _ = found
    changed, said = OTHERS[what]
    journal, kept = folder / "study.journal", (folder / "study.journal").read_bytes()
    if not changed:
        journal.write_bytes(b"{]\n" + kept)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.parent.name != "locks"}
    done = command("tune.py", *gaussian, *SIZES, *ETA, *changed, f"outputs={folder.parents[1]}")
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    journal.write_bytes(kept)


@pytest.mark.parametrize("what", ["fifo", "folder", "hole", "/dev/zero", "/dev/full", "/dev/urandom", "loop"])
def test_a_journal_that_is_no_file_is_refused_at_once(tmp_path, what):
    journal = tmp_path / "study.journal"
    if what == "fifo":
        os.mkfifo(journal)
    elif what == "folder":
        journal.mkdir()
    elif what == "hole":  # some 900 MB that are nowhere on the disk
        journal.touch()
        os.truncate(journal, 900_000_000)
    else:
        journal.symlink_to(what if what != "loop" else journal)
    with pytest.raises(PDSError, match=r"study\.journal is (not the journal|not a file that can be read)"):
        storage_of(tmp_path, None)


def test_a_trial_whose_process_ended_before_it_drew_draws_what_it_would_have_drawn(tmp_path, monkeypatch):
    kinds = [Kind("sde", (), 6, (Varied("sampler.eta", Search(0.25, 4, log=True), False, 1.0),))]

    def drawn(name, ends_at):
        started = functools.partial(
            study.Study, optuna.storages.InMemoryStorage(), name, tmp_path / name, kinds, 8, 64, 3, "tpe"
        )
        made, made_of, asked = started(), study.Study._made, []

        def ended(self, trial):
            asked.append(trial.number)
            if asked.count(ends_at) == 1 and trial.number == ends_at:
                raise KeyboardInterrupt
            return made_of(self, trial)

        monkeypatch.setattr(study.Study, "_made", ended)
        while len(made.ended) < 8:
            try:
                with made.next() as (trial, _):
                    made.tell(trial, TrialState.COMPLETE, 0.0, trial.params["sde.sampler.eta"])
            except KeyboardInterrupt:
                made = started()
        monkeypatch.undo()
        return [trial.params for trial in made.ended]

    assert drawn("ended", 5) == drawn("undisturbed", None)


def test_every_kind_is_tried_untuned_also_if_a_command_with_more_trials_goes_on(tmp_path):
    kinds = [
        Kind("default", (), 6),
        *(Kind(name, (), 6, (Varied("sampler.eta", Search(0.25, 4), False, 1.0),)) for name in "ab"),
    ]
    storage = optuna.storages.InMemoryStorage()
    for count in (1, 5):
        made = study.Study(storage, "more", tmp_path, kinds, count, 64, 3, "random")
        for _ in range(count - len(made.ended)):
            with made.next() as (trial, _):
                made.tell(trial, TrialState.COMPLETE, 0.0, 1.0)
        with made.next() as none:
            assert none is None
    assert [trial.user_attrs.get("start") for trial in made.ended] == ["default", "a", "b", None, None]


def test_a_damaged_picture_costs_no_page_of_a_search(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "grid.png").write_bytes(b"no picture")
    one = Answer(MeasuredSetting(["sampler=edm"], 6, {"0": 1.0}, {"0": "run"}), None)
    storage = optuna.storages.InMemoryStorage()
    trial = optuna.create_study(storage=storage, study_name="one").ask()
    for name, value in {"overrides": ["sampler=edm"], "nfe": 6}.items():
        trial.set_user_attr(name, value)
    trial.study.tell(trial, 1.0)
    trial.study.add_trial(optuna.trial.create_trial(value=0.5))  # of another program
    trials = study.Study(storage, "one", tmp_path, [], 1, 64, 3, "random")
    assert [ended.number for ended in trials.ended] == [ended.number for ended in trials.best] == [trial.number]
    about = {"command": "tune.py", "metric": "fid_x_2048", "images": 256, "evaluations": 1, "seconds": 1.0}
    page = write_page(tmp_path, about, {6: trials}, {6: one}).read_text()
    assert "This cannot be shown" in page and "winner, seed 0" in page
    assert "distance of 256 images" in page, "the trials are measured on fewer images than the confirmation"


def test_a_finished_run_without_its_images_is_looked_at_like_another(gaussian, tmp_path):
    cfg = composed(*gaussian, f"outputs={tmp_path}", "images=8", "shard_size=4", "threads=1", "sampler=preconditioned_sde")
    looked = []
    result = measured(cfg, [], [], look=looked.append)
    (samples,) = tmp_path.glob("runs/*/samples")
    shutil.rmtree(samples)
    assert measured(cfg, [], [], look=looked.append) == result
    assert looked[1].shape == (4, 16) and np.array_equal(*looked)


def test_a_default_with_a_first_guess_meets_its_budget_and_a_refusal_has_the_key_of_its_part(gaussian):
    part = functools.partial(composed, *gaussian, "sampler=preconditioned_sde")
    model, dataset = (build(part()[name]) for name in ("model", "dataset"))
    assert most_iterations(part("sampler.eta=auto"), 6, model, dataset) == (6, 6)
    filtered = ["dataset=folder", "dataset.shape=[1,4,4]", "dataset.source.root=nowhere", "filter=statistics"]
    known = ["filter.alpha=auto", "filter.reference.alpha=1", "filter.reference.iterations=100"]
    with pytest.raises(OptionError, match=r"^filter\.alpha must be"):
        most_iterations(part(*filtered, *known), 6, model, dataset)


def test_several_trackers_are_given_to_the_runs_of_a_search_and_of_a_table(gaussian, tmp_path, monkeypatch):
    given = ["tracker=several", "+tracker@tracker.tensorboard=tensorboard", "+tracker@tracker.mlflow=mlflow"]
    told = []

    def run(self):
        self.like = None
        told.extend((self.common, self.composed(self.default).tracker, self.measured(self.default, 8, 0)))

    def plan(config, runs, command):
        told.append(runs)
        raise PDSError("planned")

    monkeypatch.setattr(search.Tuning, "run", run)
    monkeypatch.setattr(search, "measured", lambda cfg, named, command, *rest: command)
    monkeypatch.setattr(tables, "plan", plan)
    search.tune([*gaussian, "budgets=[6]", f"outputs={tmp_path}", "tracker=[tensorboard,mlflow]"])
    with pytest.raises(PDSError, match="planned"):
        tables.reproduce(["table.images=7", "table=clean_fid", "small=true", "tracker=[tensorboard,mlflow]"])
    common, tracker, command_of_run, runs = told
    assert common[-3:] == runs == given
    assert tracker.tensorboard is not None and tracker.mlflow is not None
    assert not any("tracker" in override.partition("=")[0] for override in command_of_run)


class Meeting:
    """Two processes meet at one point, if nothing keeps one of them away until the other has left."""

    def __init__(self):
        self.start, self.middle = forks.Barrier(2), forks.Barrier(2)

    def begin(self):
        self.start.wait(60)

    def hesitate(self):
        """Wait for the other process, but not for long: it may be waiting for this one."""
        with contextlib.suppress(threading.BrokenBarrierError):
            self.middle.wait(0.5)


def together(*works):
    """Run each function in a process of its own, all at once; none may fail."""
    processes = [forks.Process(target=work, daemon=True) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert {process.exitcode for process in processes} == {0}


def test_two_searches_at_once_lose_no_answer(gaussian, tmp_path, monkeypatch):
    meeting, guessed, read = Meeting(), search.guess, recommendations.earlier

    def guess(*given, **options):
        found = guessed(*given, **options)
        meeting.begin()
        return found

    def earlier_of_file(*given):
        found = read(*given)
        meeting.hesitate()  # each process has read the file, unless one keeps the other away while it writes
        return found

    def searching(budget):
        assert command("tune.py", *arguments, f"budgets=[{budget}]").returncode == 0

    arguments = [*(override for override in gaussian if not override.startswith("metric._target_")), f"outputs={tmp_path}"]
    monkeypatch.setattr(search, "guess", guess)
    monkeypatch.setattr(recommendations, "earlier", earlier_of_file)
    together(lambda: searching(4), lambda: searching(5))
    assert recommendation(tmp_path / "tune" / "own")["budgets"].keys() == {"4", "5"}


def test_one_process_at_a_time_makes_the_tables_of_a_database(tmp_path):
    meeting, tables_of = Meeting(), BaseModel.metadata

    def opening():
        # By now a process has looked for the tables, and found none.
        sqlalchemy.event.listen(tables_of, "before_create", lambda *about, **options: meeting.hesitate())
        meeting.begin()
        storage_of(tmp_path, f"sqlite:///{tmp_path}/study.db")

    together(opening, opening)


def test_runs_of_more_images_than_a_trial_have_the_measures_that_they_have_alone():
    few, many = (composed("model=ncsnpp_small", "metric=panel", f"images={images}", "device=cpu") for images in (256, 2048))
    like = Experiment.build(few)
    assert "kid" not in like.metric.measures, "it needs 1,000 images"
    assert Experiment.build(many, like).metric.measures == Experiment.build(many).metric.measures
