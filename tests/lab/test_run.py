"""The whole path as a user walks it: a sweep with a failing point, its files, its report, and the same command again."""

import contextlib
import dataclasses
import errno
import html
import json
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from command_line import command, forks
from PIL import Image
from safetensors.torch import load_file
from test_configurations import composed

from pds.errors import PDSError
from pds.evaluation.features import ClassifierFeatures
from pds.files import ASSETS
from pds.generation import ImageSampler
from pds.lab.cli import STOPPED, sentence
from pds.lab.experiment import Experiment, run
from pds.lab.moments import make_moments
from pds.lab.points import Points
from pds.lab.report import read_runs
from pds.lab.runs import RunFolder, run_name
from pds.lab.terminal import command_line
from pds.lab.train import train
from pds.models.ncsn import NCSN
from pds.models.safetensors_files import save_weights
from pds.moments import read_moments


def test_a_sweep_with_a_failing_point_and_the_same_sweep_again(tmp_path):
    # T = 5 visits half of the ladder, T = 15 does not fit it: two points finish, two fail.
    sweep = ["-m", "filter=none,parametric", "sampler.iterations=5,15", "sampler.step_size=1.0", "images=6"]
    sweep += ["debug=tiny", f"outputs={tmp_path}"]
    first = command("run.py", *sweep)
    assert first.returncode == 1, first.stderr
    assert first.stderr.count("error: sampler.iterations must be a multiple of 10 from 10 on") == 2
    assert "Traceback" not in first.stderr
    runs = sorted(path.parent for path in tmp_path.glob("debug/*/result.json"))
    assert [path.name.rsplit("-", 1)[0] for path in runs] == [
        "filter=none,images=6,sampler.iterations=5,sampler.step_size=1.0",
        "filter=parametric,images=6,sampler.iterations=5,sampler.step_size=1.0",
    ]
    results = [json.loads((path / "result.json").read_text()) for path in runs]
    assert [result["vanilla"] for result in results] == [True, False]
    for path, result in zip(runs, results, strict=True):
        assert (result["iterations"], result["nfe"], result["images"]) == (5, 6, 6)
        assert list(result["metrics"]) == ["fid_mnist_classifier_6"] == list(result["floor"])
        last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["fid_mnist_classifier_6"] == result["metrics"]["fid_mnist_classifier_6"]
        assert json.loads((path / "status.json").read_text())["state"] == "done"
        assert yaml.safe_load((path / "config.yaml").read_text())["sampler"]["iterations"] == 5
        assert (path / "grid.png").stat().st_size > 100
    assert not (runs[0] / "filter.npz").exists()
    assert np.load(runs[1] / "filter.npz")["frequency"].shape == (1, 28, 28)
    report = (tmp_path / "debug" / "report.html").read_text()
    assert all(f"{result['metrics']['fid_mnist_classifier_6']:.1f}" in report for result in results)

    stamps = [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")]
    again = command("run.py", *sweep)
    assert again.stderr.count("is done already") == 2
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("debug/*/samples/*")] == stamps
    assert "fid_mnist_classifier_6" in again.stdout


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    sweep = ["-m", "seed=0,1,2", "images=4", "shard_size=2", "sampler.iterations=2", "tracker=none", f"outputs={tmp_path}"]
    here, there = forks.Pipe()

    def stuck_in_its_fourth_shard():
        save, saved = np.savez_compressed, []

        def slowly(file, **arrays):
            saved.append(file)
            if len(saved) == 4:
                there.send("stuck")
                time.sleep(600)
            save(file, **arrays)

        with mock.patch.object(np, "savez_compressed", slowly):
            command("run.py", *sweep)

    killed = forks.Process(target=stuck_in_its_fourth_shard, daemon=True)
    killed.start()
    assert here.poll(300)
    killed.kill()
    killed.join()
    (group,) = tmp_path.glob("seed-*")
    points = Points(group)
    assert [point.state for point in points.read()] == ["done", "running", "waiting"]
    before = {path: path.stat().st_mtime_ns for path in group.glob("*/samples/*.npz")}
    assert len(before) == 3
    sweep += ["batch_size=1"]  # the advice for a GPU with too little memory: the same sweep, smaller batches
    again = command("run.py", *sweep)
    assert again.returncode == 0
    assert [point.state for point in points.read()] == ["done"] * 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert "point 3 of 3" in again.stderr
    assert "left for the sweep" in again.stderr
    assert all(point.command == command_line(["experiments/run.py", *sweep]) for point in points.read())
    assert html.escape(points.read()[0].command) in (group / "report.html").read_text()
    assert len(list(group.glob("*/result.json"))) == 3


@pytest.mark.parametrize("plus", ["", "++"])
def test_weights_swept_over_are_points_of_their_own_however_the_key_is_given(plus, tmp_path):
    given = [f"{plus}model.checkpoint={tmp_path}/{name}.pth" for name in "ab"]
    command("run.py", "-m", f"{given[0]},{tmp_path}/b.pth", "images=4", "tracker=none", f"outputs={tmp_path}")
    (folder,) = tmp_path.glob("*/points")
    points = Points(folder.parent).read()
    assert [(point.overrides[0], point.state) for point in points] == [(override, "skipped") for override in given]


def test_runs_are_named_by_what_they_are(tmp_path):
    config = {"filter": {"r": 0.2}, "outputs": "a", "device": "cpu", "seed": 0}
    name = run_name(["filter.r=0.2", "outputs=a", "experiment=x", "hydra.verbose=true"], config)
    assert name == run_name(["outputs=b", "filter.r=0.2", "experiment=x"], config | {"outputs": "b", "device": "cuda"})
    assert name.startswith("filter.r=0.2,x-")
    assert name != run_name(["filter.r=0.2"], config | {"seed": 1})
    assert run_name([], config).startswith("default-")


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({"seed": 0, "device": "cpu"})
    folder.claim({"seed": 0, "device": "cuda"})
    with pytest.raises(PDSError, match="holds a run with seed=0, not 1"):
        folder.claim({"seed": 1, "device": "cpu"})


def test_a_full_disk_is_one_sentence_and_a_kill_before_the_last_line_heals(tmp_path, monkeypatch, capsys):
    cfg = composed("debug=tiny", f"outputs={tmp_path}", "images=2", "sampler.iterations=2")
    run(cfg, [])
    (folder,) = (path.parent for path in tmp_path.glob("debug/*/result.json"))
    # A run killed between result.json and status.json is found done, and its status is mended.
    (folder / "status.json").write_text('{"state": "running", "message": ""}')
    capsys.readouterr()
    run(cfg, [])
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert "fid_mnist_classifier_2" in capsys.readouterr().out

    def disk_full(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pds.lab.runs.write_json", disk_full)
    with pytest.raises(OSError, match="No space left") as error:
        run(composed("debug=tiny", f"outputs={tmp_path}", "images=3", "sampler.iterations=2"), [])
    assert sentence(error.value).endswith("make room and run the same command again")


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_a_report_that_cannot_be_written_is_told_and_the_work_is_done(tmp_path, monkeypatch, sweep):
    def unwritable(folder):
        raise PDSError(f"cannot write {folder}/report.html (no space): make room")

    monkeypatch.setattr("pds.lab.experiment.write_report", unwritable)
    given = ["debug=tiny", f"outputs={tmp_path}", "images=2", "sampler.iterations=2", "metric=none"]
    ended = command("run.py", *sweep, *given)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("debug/*/result.json"))) == max(1, len(sweep))
    assert "report.html (no space): make room" in ended.stderr and "Traceback" not in ended.stderr


def test_other_weights_or_filters_are_another_run(tmp_path):
    weights = tmp_path / "weights.safetensors"
    names = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_weights(NCSN(1, 4, 10).state_dict(), weights, {})
        cfg = composed(f"model.checkpoint={weights}", "model.width=4", "filter=parametric")
        experiment = Experiment.build(cfg)
        # A network that loads its own file has no record of it.
        own = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, checkpoint=None))
        names |= {run_name([], {"fingerprint": run.fingerprint}) for run in (experiment, own)}
    assert len(names) == 4


def striped(folder, count=4, side=28):
    folder.mkdir()
    for i in range(count):
        image = np.zeros((side, side), np.uint8)
        image[:: i + 2] = 10 * len(folder.name) + 40 * i
        Image.fromarray(image).save(folder / f"{i}.png")
    return [
        "dataset=folder",
        f"dataset.source.root={folder}",
        f"dataset.shape=[1,{side},{side}]",
        f"dataset.statistics_images={count}",
    ]


@pytest.mark.parametrize(("remedy", "known"), [("seen_noise", True), ("time_shift", True), ("level_shift", False)])
def test_a_remedy_with_the_statistics_of_other_images_is_another_run(tmp_path, remedy, known):
    chosen = ["model=ncsnpp_small", "model.process.sigma_max=16", "metric=none", f"remedy={remedy}"]
    first, second = (
        Experiment.build(composed(*chosen, *striped(tmp_path / name))).fingerprint.get("remedy") for name in ("a", "other")
    )
    assert (first is not None) == known
    assert (first != second) == known


def test_the_classifier_of_one_data_set_compares_another_with_its_own_images(tmp_path, monkeypatch):
    """MNIST's shipped reference would give a distance of these images to digits."""
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    metric = Experiment.build(composed("model=ncsnpp_small", "model.process.sigma_max=16", *striped(tmp_path / "a"))).metric
    assert metric.reference.provenance["dataset"] == "folder"
    digits = Experiment.build(composed("model=ncsnpp_small")).metric
    assert digits.reference.provenance["dataset"] == "mnist"


def test_analytic_ddim_measures_once_finds_the_file_beside_the_weights_and_says_which_it_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pds.moments.LEVELS", 5)
    weights, folder = tmp_path / "net.safetensors", tmp_path / "stripes"
    shutil.copy(ASSETS / "mnist_ncsnpp.safetensors", weights)
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.full((28, 28), 90 * i, np.uint8)).save(folder / f"{i}.png")
    data = ["dataset=folder", f"dataset.source.root={folder}", "dataset.shape=[1,28,28]", "metric=none"]
    data += ["model.process.sigma_max=16"]
    chosen = [*data, "model=ncsnpp_small", f"model.checkpoint={weights}", "sampler=analytic_ddim", "sampler.iterations=2"]
    first = Experiment.build(composed(*chosen, "sampler.training_images=1"))
    assert len(list((tmp_path / "cache" / "moments").glob("net_folder_1-*.json"))) == 1
    assert torch.isfinite(first.sample(range(2))[0]).all()
    labelled = ["model=ncsnpp_small_classes", "labels=[3]", *chosen[-2:], "sampler.training_images=1"]
    assert "moments are of the network without a class" in Experiment.build(composed(*data, *labelled)).doubts[-1]
    assert not first.doubts
    make_moments(composed(*chosen, "sampler.training_images=2"))
    shutil.rmtree(folder)
    second = Experiment.build(composed(*chosen, "sampler.training_images=2"))
    assert second.sample.sampler.moments == read_moments(tmp_path / "net_moments.json")
    assert first.fingerprint["moments"] != second.fingerprint["moments"]
    with pytest.raises(PDSError, match="takes no filter and no solenoid"):
        Experiment.build(composed(*chosen, "filter=parametric", "sampler.training_images=3"))
    with pytest.raises(PDSError, match="the DDIM sampler needs no moments: give sampler=analytic_ddim"):
        make_moments(composed("model=ncsnpp_small", "sampler=ddim"))
    # A sampler without moments has the same name as before.
    assert list(Experiment.build(composed()).fingerprint) == ["weights", "filters", "reference", "batch"]


def test_a_finished_run_gets_new_measures_without_sampling_and_without_its_features_anew(tmp_path, monkeypatch):
    given = ["debug=tiny", f"outputs={tmp_path}", "images=42", "sampler.iterations=2"]
    run(composed(*given), given)
    sampled, seen, read = [], [], ClassifierFeatures.__call__
    monkeypatch.setattr(ImageSampler, "__call__", lambda *arguments, **more: sampled.append(arguments))
    monkeypatch.setattr(ClassifierFeatures, "__call__", lambda self, images: seen.append(len(images)) or read(self, images))
    more = [*given, "metric=panel", "metric.kid_size=20"]
    run(composed(*more), more)
    with pytest.raises(PDSError, match=r"metric\.measures has kid, which needs at least 1000 images, and there are 42: sample"):
        run(composed(*given, "metric=panel", "metric.measures=[kid]"), [])
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("debug/*/result.json"), key=os.path.getmtime)]
    assert not sampled and seen == [1, 1], "an image, to see whether the extractor takes such"
    assert results[1]["taken_from"] == [results[0]["name"]]
    before, after = (result["metrics"] for result in results)
    assert before == {"fid_mnist_classifier_42": after["fid_mnist_classifier_native_n42"]}
    assert len(after) == 8 == len(results[1]["errors"])


def test_the_tracker_mirrors_the_run(tmp_path):
    cfg = composed("debug=tiny", f"outputs={tmp_path}", "images=8", "shard_size=1", "sampler.iterations=2", "filter=parametric")
    opened, looked, exists = [], [], Path.exists

    class Recorder:
        patience = 60

        @contextlib.contextmanager
        def run(self, folder, name, group, job_type, config):
            record = {"group": group, "job_type": job_type, "config": config, "log": [], "summary": {}, "images": []}
            opened.append(record)

            class Handle:
                log = staticmethod(lambda metrics, step_name=None: record["log"].append(metrics))
                image = staticmethod(lambda name, path: record["images"].append(path.exists()))
                table = staticmethod(lambda name, columns, rows: record.update(table=(columns, rows)))
                summary = staticmethod(record["summary"].update)

            yield Handle()

    experiment = Experiment.build(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "build", classmethod(lambda cls, *given: dataclasses.replace(experiment, tracker=Recorder())))
        patch.setattr(Path, "exists", lambda path: looked.append(path.name) or exists(path))
        run(cfg, [])
    (record,) = opened
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("debug/*/result.json"))
    assert (record["group"], record["job_type"]) == ("debug", "pds")
    assert record["config"]["filter"]["lam"] == cfg.filter.lam
    steps = [entry["images_done"] for entry in record["log"] if "images_per_second" in entry]
    assert steps == sorted(steps) and len(steps) == steps[-1] == 8
    assert sum(name.startswith("shard-") for name in looked) <= 3 * 8, "each file once before and twice while sampling"
    assert record["summary"]["NFE"] == 3
    assert record["summary"]["fid_mnist_classifier_8"] == result["metrics"]["fid_mnist_classifier_8"]
    assert result["source"].startswith("Song & Ermon")
    assert record["images"] == [True]
    assert [len(row) for row in record["table"][1]] == [len(record["table"][0])]


def test_a_finished_run_stays_done_when_its_tracker_is_interrupted(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pds.lab.experiment.mirror", interrupted)
    tiny = ["images=2", "sampler.iterations=2", "tracker=none", "metric=none", f"outputs={tmp_path}", "group=g"]
    assert command("run.py", *tiny).returncode == STOPPED
    (run,) = read_runs(tmp_path / "g")
    assert run.state == "done" and run.result["images"] == 2


def test_training_from_the_command_line_makes_weights_that_sample(tmp_path):
    folder = tmp_path / "stripes"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(folder / f"{i}.png")
    data = ["dataset=folder", f"dataset.source.root={folder}", "dataset.shape=[1,8,8]", f"outputs={tmp_path}", "model.width=4"]
    fast = ["trainer.iterations=3", "trainer.batch_size=4", "trainer.compile=false", "trainer.bf16=false", "name=tiny"]
    first = command("train.py", *data, *fast)
    assert first.returncode == 0, first.stderr
    weights = tmp_path / "train" / "tiny" / "tiny.safetensors"
    assert "is done already" in command("train.py", *data, *fast).stderr
    written = load_file(weights)
    for spoil in (weights.unlink, lambda: weights.write_bytes(b""), lambda: weights.write_bytes(weights.read_bytes()[:-9])):
        spoil()
        assert command("train.py", *data, *fast).returncode == 0
        again = load_file(weights)
        assert all(torch.equal(again[name], value) for name, value in written.items()), "from the last state"
    refused = command("train.py", *data, *fast, "trainer.iterations=4").stderr
    assert "holds a run with" in refused and "give another name, or other outputs" in refused
    # Other images are another training. One of a version that did not record its images goes on.
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "1.png")
    assert "holds a run with fingerprint.images=" in command("train.py", *data, *fast).stderr
    recorded = weights.with_name("config.yaml")
    recorded.write_text("\n".join(line for line in recorded.read_text().splitlines() if "  images: " not in line))
    assert "is done already" in command("train.py", *data, *fast).stderr
    experiment = Experiment.build(composed(*data, f"model.checkpoint={weights}", "metric=none"))
    x, nfe = experiment.sample(range(2))
    assert x.shape == (2, 1, 8, 8)
    assert nfe == 21


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["trainer.batch_size=5"], "trainer.batch_size must be at most 4, the images of .*, got 5"),
        (["trainer.batch_size=4"], r"3\.png is no PNG, .* image"),
        (["trainer.batch_size=2", "trainer.compile=true"], r"trainer\.compile=true needs .* no no-such-compiler here: install"),
    ],
)
def test_training_that_cannot_be_is_refused_before_anything_is_written(tmp_path, monkeypatch, given, says):
    monkeypatch.setenv("CXX", "'no-such-compiler' -O2")
    for i in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    data = ["dataset=folder", f"dataset.source.root={tmp_path}", "dataset.shape=[1,8,8]", f"outputs={tmp_path / 'outputs'}"]
    with pytest.raises(PDSError, match=says):
        train(composed(*data, "model.width=4", "trainer.compile=false", *given, config="train"))
    assert not (tmp_path / "outputs").exists()


def test_training_under_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PDSError, match="training runs in one process, and torchrun started 2: start it without torchrun"):
        train(composed(f"outputs={tmp_path}", config="train"))
    assert not any(tmp_path.iterdir())


def test_a_run_that_fails_midway_says_so_in_its_status_and_report(tmp_path, monkeypatch):
    cfg = composed("debug=tiny", f"outputs={tmp_path}", "images=2", "sampler.iterations=2")

    def explode(self, images):
        raise PDSError("the disk caught fire")

    monkeypatch.setattr(Experiment, "annotate", explode)
    with pytest.raises(PDSError):
        run(cfg, [])
    (status,) = tmp_path.glob("debug/*/status.json")
    assert json.loads(status.read_text())["message"] == "the disk caught fire"
    assert "the disk caught fire" in (tmp_path / "debug" / "report.html").read_text()


def test_a_network_of_diffusers_by_our_sampler_with_pds_and_by_its_own(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "block_out_channels": [8, 8]}
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(28, 1, 1, **blocks, layers_per_block=1, norm_num_groups=4)
    folder = tmp_path / "ddpm"
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    common = ["model=ddpm", f"model.checkpoint={folder}", "images=2", "tracker=none", "group=g", f"outputs={tmp_path}"]
    for chosen in (
        ["sampler.iterations=3", "filter=statistics"],
        ["sampler=diffusers_ddim", "sampler.iterations=4"],
        ["sampler=accelerated_ddim", "sampler.iterations=3"],
    ):
        overrides = [*common, *chosen]
        run(composed(*overrides), overrides)
    results = {r["sampler"]: r for r in (json.loads(path.read_text()) for path in tmp_path.glob("g/*/result.json"))}
    assert {name: (r["nfe"], r["vanilla"]) for name, r in results.items()} == {
        "ancestral": (3, False),
        "DDIM (diffusers)": (4, True),
        "accelerated DDIM": (3, True),
    }
    assert all(np.isfinite(r["metrics"]["fid_mnist_classifier_2"]) for r in results.values())
    assert results["DDIM (diffusers)"]["checkpoint"]["layout"] == "diffusers"
    assert results["DDIM (diffusers)"]["versions"]["diffusers"] == diffusers.__version__
    # The same weights with another config.json, or another chain, are another model.
    before = Experiment.build(composed(*common)).fingerprint
    for file, key, value in (("unet/config.json", "norm_eps", 0.1), ("scheduler/scheduler_config.json", "beta_end", 0.03)):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {key: value}))
        after = Experiment.build(composed(*common)).fingerprint
        assert after["weights"] == before["weights"] and after["beside_weights"] != before["beside_weights"]
        before = after


def test_more_images_and_another_metric_take_what_was_sampled_before(tmp_path):
    def ran(outputs, *given):
        here = ["debug=tiny", f"outputs={outputs}", "sampler.iterations=2", "shard_size=2", *given]
        run(composed(*here), here)
        path = max(outputs.glob("debug/*/result.json"), key=lambda path: path.stat().st_mtime_ns)
        shards = [np.load(file) for file in sorted((path.parent / "samples").glob("*.npz"))]
        return json.loads(path.read_text()), np.concatenate([shard["images"] for shard in shards]), shards

    few, first, _ = ran(tmp_path, "images=5", "metric=none")
    more, images, shards = ran(tmp_path, "images=8")
    assert "taken_from" not in few and more["taken_from"] == [few["name"]]
    # The third shard had one image, which is not the two that it should have.
    assert ["taken_from" in shard for shard in shards] == [True, True, False, False]
    assert np.array_equal(images[:5], first)
    # The state after a kill between the two.
    for file in ("result.json", "samples/shard-00001.npz"):
        (tmp_path / "debug" / more["name"] / file).unlink()
    assert ["taken_from" in shard for shard in ran(tmp_path, "images=8")[2]] == [True, True, False, False]
    alone, fresh, _ = ran(tmp_path / "alone", "images=8")
    assert "taken_from" not in alone and np.array_equal(fresh, images) and alone["metrics"] == more["metrics"]
    for other in ("seed=1", "filter=parametric", "shard_size=4"):
        assert "taken_from" not in ran(tmp_path, "images=8", other)[0], other
    without, _, shards = ran(tmp_path, "images=8", "metric=none")
    assert without["metrics"] == {} and not any("features" in shard for shard in shards)


@pytest.mark.parametrize("many", [False, True])
def test_a_value_that_refers_to_another_is_used_or_refused_in_one_sentence(tmp_path, many):
    given = ["debug=tiny", "metric=none", "sampler.iterations=5", "sampler.step_size=1.0", f"outputs={tmp_path}"]
    given += ["-m"] if many else []
    whole = command("run.py", "images=2", "batch_size=${images}", "group=seed${seed}", *given)
    assert whole.returncode == 0, whole.stderr
    (result,) = tmp_path.glob("seed0/*/result.json")
    assert yaml.safe_load((result.parent / "config.yaml").read_text())["batch_size"] == 2
    kinds = {"${nowhere}": "images", "${oc.env:PDS_NOWHERE}": "seed", "${seed}": "seed", "${no.resolver:1}": "images"}
    for value, key in kinds.items():
        broken = command("run.py", f'{key}="{value}"', *given)
        assert broken.returncode == 1 and "Traceback" not in broken.stderr, broken.stderr
        assert len([line for line in broken.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_numbers_of_processes_that_cannot_be_fail_every_process_at_once(monkeypatch):
    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}
    wrong = [{name: value} for name in whole for value in ("", *(["x", "-1", "1.5"] if name != "MASTER_ADDR" else []))]
    wrong += [{"RANK": "2"}, {"RANK": "3"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "1"}]
    for change in wrong:
        for name, value in (whole | change).items():
            monkeypatch.setenv(name, value)
        for arguments in ([], ["-m"]):
            refused = command("run.py", "debug=tiny", *arguments)
            assert refused.returncode == 1 and refused.stderr.startswith("error: RANK "), change
