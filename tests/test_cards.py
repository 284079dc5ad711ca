"""Models from their weights: shipped and trained files, published checkpoints, and diffusers folders."""

import contextlib
import json
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
from command_line import command
from test_configurations import composed

import pds
from pds.cards import CARDS
from pds.lab.config import build
from pds.models.ncsn import NCSN
from pds.models.safetensors_files import save_weights

SHIPPED = {
    "ncsn_small": ("asset:mnist_ncsn", "filter=parametric", pds.ParametricFilter(0.2, 1.6)),
    "ncsnpp_small": ("asset:mnist_ncsnpp", "filter=statistics filter.alpha=2.5", pds.StatisticsFilter(2.5)),
    "ncsnpp_small_skip": ("asset:mnist_ncsnpp_skip", "filter=none", None),
    "ncsnpp_small_classes": ("asset:mnist_ncsnpp_classes", "filter=none", None),
    "ncsnpp_small_colour": ("asset:cifar10_ncsnpp", "filter=statistics filter.alpha=2.5", pds.StatisticsFilter(2.5)),
    "ncsnpp_small_colour_classes": ("asset:cifar10_ncsnpp_classes", "filter=none", None),
    "ddpmpp_small": ("asset:mnist_ddpmpp.safetensors", "filter=none", None),
    "cld_small": ("asset:mnist_cld", "filter=statistics filter.alpha=2.5", pds.StatisticsFilter(2.5)),
}
CHOSEN = {
    "cld_small": ["sampler=sscs"],  # the default sampler refuses a velocity
    "ncsnpp_small_colour": ["dataset=cifar10_jpeg"],
    "ncsnpp_small_colour_classes": ["dataset=cifar10_jpeg"],
}


@pytest.mark.parametrize(("name", "sampler"), [*((name, "T=5") for name in SHIPPED), ("ncsnpp_small", "sampler=analytic_ddim")])
def test_images_are_those_of_the_command_line_to_the_bit(tmp_path, name, sampler):
    source, choice, filter = SHIPPED[name]
    model = pds.load(source, device="cpu")
    given = [*CHOSEN.get(name, []), f"sampler.iterations={25 if name == 'ddpmpp_small' else 5}"]  # VP needs so many
    if sampler != "T=5":
        given, choice, filter = [sampler, *given], "filter=none", None
    cfg = composed(f"model={name}", *given)
    rest = [*given, "images=3", "batch_size=2", "tracker=none", "metric=none", f"outputs={tmp_path}"]
    done = command("run.py", f"model={name}", *choice.split(), *rest)
    assert done.returncode == 0, done.stderr
    (shard,) = tmp_path.glob("*/*/samples/*.npz")
    samples = pds.sample(model, build(cfg.sampler), filter=filter, images=3)
    with np.load(shard) as file:
        assert np.array_equal(file["images"], samples.images.numpy())
        assert file["nfe"] == samples.nfe


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_has_the_sampler_and_the_statistics_of_its_configuration(name):
    model, cfg = pds.load(SHIPPED[name][0], device="cpu"), composed(f"model={name}", *CHOSEN.get(name, []))
    assert model.sampler == build(cfg.sampler)
    assert torch.equal(model.statistics.power, build(cfg.dataset).statistics.power)
    made = build(cfg.model)
    assert (model.title, model.shape, model.data_range) == (made.title, made.shape, made.data_range)
    assert (asdict(model.process), model.checkpoint) == (asdict(made.process), made.checkpoint)


def small_ncsn(path, **config):
    torch.manual_seed(0)
    options = {
        "kind": "ncsn",
        "shape": [1, 8, 8],
        "width": 4,
        "sigma_begin": 1.0,
        "sigma_end": 0.1,
        "levels": 3,
        "rescale": True,
    }
    text = {"config": json.dumps({"model": options, **config})} if config else {}
    save_weights(NCSN(1, 4, 3).state_dict(), path, text)
    return path


def test_a_file_that_someone_trained_says_what_it_is(tmp_path):
    model = pds.load(small_ncsn(tmp_path / "mine.safetensors", dataset={"name": "mine", "shape": [1, 8, 8]}), device="cpu")
    assert (model.shape, model.process.levels, model.statistics) == ((1, 8, 8), 3, None)
    samples = pds.sample(model, images=2)
    assert (samples.images.shape, samples.nfe) == ((2, 1, 8, 8), 7)  # T = 6, and the denoising


def test_a_file_that_describes_no_network_is_one_sentence(tmp_path):
    """Anything may stand in the description of a file whose digest fits."""
    draw, refused, state = random.Random(0), 0, NCSN(1, 4, 3).state_dict()
    whole = {"shape": [1, 8, 8], "width": 4, "sigma_begin": 1.0, "sigma_end": 0.1, "levels": 3, "rescale": True}
    process = {"kind": "VE", "sigma_min": 0.1, "sigma_max": 1.0}
    odd = [None, True, -1, 3, 0.5, 1e308, "x", "", [], [1], [[1]], {}, {"x": 1}, {"kind": "VE"}, "VE", "ncsnv2", "w" * 5000]
    for _ in range(60):
        options = {"kind": draw.choice(["ncsn", "ncsnv2"]), **whole}
        about = {"model": options, "dataset": {"name": "x", "statistics_file": None}}
        tables = [options, about["dataset"]]
        if draw.random() < 0.5:
            options["process"] = dict(process)
            tables.append(options["process"])
        table = draw.choice(tables)
        key = draw.choice([*table, "", "more", "checkpoint"])
        if draw.random() < 0.3 and key in table:
            del table[key]
        else:
            table[key] = draw.choice(odd)
        save_weights(state, tmp_path / "w.safetensors", {"config": json.dumps(about)})
        with contextlib.suppress(pds.PDSError):
            pds.load(tmp_path / "w.safetensors", device="cpu")
            continue
        refused += 1
    assert refused > 40


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (
            "asset:mnist_nscn",
            {},
            "asset:mnist_nscn does not exist: .* asset:NAME, one of cifar10_ncsnpp, cifar10_ncsnpp_classes, mnist_cld, ",
        ),
        ("/nowhere/w.pth", {}, "/nowhere/w.pth does not exist"),
        (
            "plain.safetensors",
            {},
            "card is missing, and .*plain.safetensors does not say which published network it is: give one of ncsn_",
        ),
        ("own.safetensors", {}, r"own.safetensors is of a network that is not this library's \(own\)"),
        ("w.pth", {}, "card is missing, and .*w.pth does not say"),
        ("w.pth", {"card": "ncsn_church"}, "card must be one of ncsn_mnist, .*, got 'ncsn_church'"),
        ("plain.safetensors", {"card": "ncsn_mnist"}, "begin_conv.weight of shape"),
        (
            "asset:mnist_ncsn",
            {"shape": (3, 28, 28)},
            r"shape is \(3, 28, 28\), and the network is of images of shape \(1, 28, 28\)",
        ),
    ],
)
def test_what_cannot_be_loaded(tmp_path, monkeypatch, source, given, message):
    monkeypatch.chdir(tmp_path)
    small_ncsn(tmp_path / "plain.safetensors")
    save_weights(NCSN(1, 4, 3).state_dict(), tmp_path / "own.safetensors", {"config": '{"model": {"kind": "own"}}'})
    torch.save(NCSN(1, 4, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(pds.PDSError, match=message):
        pds.load(source, **given)


def test_a_published_checkpoint_by_its_card(tmp_path):
    card = CARDS["ncsn_mnist"]
    with torch.device("meta"):
        state = card.make(**card.options).score.network.state_dict()
    zeros = {name: torch.zeros(value.shape) for name, value in state.items()}
    torch.save([zeros, {}], tmp_path / "checkpoint.pth")
    model = pds.load(tmp_path / "checkpoint.pth", card="ncsn_mnist", device="cpu")
    assert (model.shape, model.sampler, model.checkpoint.layout) == ((1, 28, 28), card.sampler, "list")


def test_a_diffusers_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(100)).save_pretrained(tmp_path)
    model = pds.load(tmp_path, device="cpu")
    assert (model.shape, model.process.levels, model.data_range) == ((1, 8, 8), 100, (-1.0, 1.0))
    assert model.sampler == pds.PredictorCorrector(100, pds.Ancestral(), None)


def test_a_program_in_double_precision_samples_the_same_images():
    sampler, images = pds.PreconditionedSDE(2), []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            images.append(pds.sample(pds.load("asset:mnist_ncsnpp", device="cpu"), sampler, images=1).images)
            assert torch.get_default_dtype() == default
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(*images)
