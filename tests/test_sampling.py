"""The front door: the names of `pds`, what its import loads, and its images, which are those of the command line."""

import ast
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GaussianTarget, natural_power
from PIL import Image

import pds
from pds.data.images import ArrayImages, as_uint8
from pds.data.statistics import dataset_statistics
from pds.evaluation.denoising import denoising_errors
from pds.evaluation.excess_noise import response_of
from pds.evaluation.first_guess import look_at

SHAPE = (1, 8, 8)
VE = pds.VarianceExploding(0.01, 20.0, 100)
TARGET = GaussianTarget(natural_power(8), mean=0.5)


def gaussian(**about):
    """The exact score of a Gaussian as a user's own network."""
    given = {"predicts": "score", "process": VE, "shape": SHAPE, "data_range": (0, 1)} | about
    return pds.wrap(lambda x, sigma: TARGET(x, sigma), **given)


def run_python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_is_lazy():
    program = "import sys; before = set(sys.modules); import pds; print(*sorted(set(sys.modules) - before))"
    loaded = run_python(program).split()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"pds"}
    assert [name for name in loaded if name.startswith("pds")] == ["pds"]


def test_every_name_is_there_for_python_and_for_type_checkers():
    tree = ast.parse(Path(pds.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {(node.module, alias.asname) for node in block.body for alias in node.names}
    assert declared == {(home, name) for name, home in pds._HOME.items()}
    for name in pds.__all__:
        assert getattr(pds, name) is not None, name
    assert {"load", "wrap", "sample", "statistics", "grid", "diagnose"} <= set(dir(pds))
    with pytest.raises(AttributeError, match="'pds' has no attribute 'smaple'"):
        pds.smaple  # noqa: B018


def test_a_network_in_training_is_sampled_in_evaluation_mode_and_goes_on_in_training():
    """Dropout would change the images of a seed, and sampling would move the statistics of a batch normalisation."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.5))
    model = pds.wrap(Alone(network), predicts="data", process=VE, shape=SHAPE, data_range=(0, 1))
    network.train()
    first, second = (pds.sample(model, pds.EDM(3), images=4).images for _ in range(2))
    assert torch.equal(first, second)
    assert not network[0].running_mean.any()
    assert all(module.training for module in network)


def test_networks_that_a_function_calls_and_all_that_looks_at_a_network_are_in_evaluation_mode():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.5))
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    known = pds.statistics(images)
    looks = (
        lambda model: pds.sample(model, pds.EDM(3), images=4).images.float(),
        lambda model: response_of(model, as_uint8(images)).values,
        lambda model: [error.network for error in denoising_errors(model, as_uint8(images), known)],
        lambda model: look_at(model, 3).response.values,
    )
    for given in (Alone(network), lambda x, sigma: network(x / 20)):
        model = pds.wrap(given, predicts="noise", process=VE, shape=SHAPE, data_range=(0, 1))
        network.train()
        for look in looks:
            assert torch.equal(*(torch.as_tensor(look(model)) for _ in range(2)))
        assert not network[0].running_mean.any()
        assert all(module.training for module in network)


class Alone(torch.nn.Module):
    """A network that takes no noise level."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigma):
        return self.network(x)


def test_a_sample_is_that_of_its_seed_and_index_whatever_the_batch():
    model, sampler = gaussian(), pds.PredictorCorrector(10, pds.ReverseDiffusion(), corrector=None)
    whole = pds.sample(model, sampler, images=5, seed=3)
    assert (whole.images.shape, whole.images.dtype, whole.nfe, whole.doubts) == ((5, *SHAPE), torch.uint8, 10, [])
    assert whole.seconds > 0
    assert torch.equal(whole.images, pds.sample(model, sampler, images=5, seed=3, batch_size=2).images)
    assert not torch.equal(whole.images, pds.sample(model, sampler, images=5, seed=4).images)


def test_the_data_range_is_undone():
    # The same Gaussian from black = -3 to white = 5.
    shifted = pds.wrap(
        lambda x, sigma: TARGET((x + 3) / 8, sigma / 8) / 8,
        predicts="score",
        process=pds.VarianceExploding(0.08, 160.0, 100),
        shape=SHAPE,
        data_range=(-3, 5),
    )
    sampler = pds.PredictorCorrector(10, pds.ReverseDiffusion(), None)
    a, b = (pds.sample(model, sampler, images=4).images.int() for model in (gaussian(), shifted))
    assert (a - b).abs().max() <= 1
    assert a.float().std() > 20


def test_the_sampler_comes_from_the_model_and_the_callback_sees_each_step():
    seen = []
    own = pds.PredictorCorrector(7, pds.EulerMaruyama(), None)
    model = dataclasses.replace(gaussian(), sampler=own)
    samples = pds.sample(model, images=3, batch_size=2, callback=lambda i, sigma, x: seen.append((i, len(x))))
    assert seen == [(i, n) for n in (2, 1) for i in range(7)]
    assert torch.equal(samples.images, pds.sample(model, own, images=3).images)
    assert pds.sample(gaussian(), images=1).nfe == 200


def test_a_filter_needs_statistics():
    sampler = pds.PredictorCorrector(10, pds.ReverseDiffusion(), None)
    with pytest.raises(pds.OptionError, match=r"statistics is missing.*pds\.statistics"):
        pds.sample(gaussian(), sampler, filter=pds.StatisticsFilter(2.5))
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    filtered = pds.sample(gaussian(), sampler, filter=pds.StatisticsFilter(2.5), statistics=pds.statistics(images))
    assert not torch.equal(filtered.images, pds.sample(gaussian(), sampler).images)


def test_what_cannot_be_sampled_is_said():
    with pytest.raises(pds.OptionError, match=r"sampler needs the moments .* on 256 images.*pds\.moments\.noise_moments"):
        pds.sample(gaussian(), pds.AnalyticDDIM(5, pds.ProcessTimes()))
    with pytest.raises(pds.PDSError, match="images must be a whole number from 1"):
        pds.sample(gaussian(), images=0)
    with pytest.raises(pds.PDSError, match="seed must be"):
        pds.sample(gaussian(), seed=-1)
    with pytest.raises(pds.PDSError, match="takes no filter"):
        pds.sample(gaussian(), pds.EDM(4), filter=pds.ParametricFilter(0.2, 1.6))


WRONG = {
    "a network": (lambda: pds.sample(torch.nn.Identity()), "model must be a model, from pds.load or pds.wrap, got Identity"),
    "a class": (lambda: pds.sample(gaussian(), pds.EDM), "sampler must be a Sampler, got <class"),
    "a filter as sampler": (lambda: pds.sample(gaussian(), pds.ParametricFilter()), "sampler must be a Sampler"),
    "an empty sampler": (lambda: pds.sample(gaussian(), []), "sampler must be a Sampler"),
    "a class of filters": (lambda: pds.sample(gaussian(), filter=pds.StatisticsFilter), "filter must be a Filter"),
    "a file of statistics": (lambda: pds.sample(gaussian(), statistics="x.npz"), "statistics must be a DatasetStatistics"),
    "images": (lambda: pds.sample(gaussian(), statistics=torch.rand(4, *SHAPE)), "statistics must be a DatasetStatistics"),
    "a device": (lambda: pds.sample(gaussian(), device="gpu"), "device must be cpu.*, got 'gpu'"),
    "a device without values": (lambda: pds.sample(gaussian(), device="meta"), "device must be cpu.*, got 'meta'"),
    "a GPU too many": (lambda: pds.sample(gaussian(), device="cuda:99"), "device must be cpu.*, got 'cuda:99'"),
    "a device to load to": (lambda: pds.load("asset:mnist_ncsn", device="gpu"), "device must be cpu.*, got 'gpu'"),
    "a count": (lambda: pds.statistics(torch.rand(4, *SHAPE), count=2.0), "count must be a whole number from 1"),
    "a seed": (lambda: pds.statistics(torch.rand(4, *SHAPE), seed=-1), "seed must be a whole number from 0"),
    "an array": (lambda: pds.statistics(np.zeros((4, *SHAPE))), "images must be a folder of images, or a tensor"),
    "T": (
        lambda: pds.diagnose(gaussian(), torch.rand(4, *SHAPE), 25),
        "iterations must be a list of .* whole numbers at least 2, got 25",
    ),
    "no T": (lambda: pds.diagnose(gaussian(), torch.rand(4, *SHAPE), []), "iterations must be a list of 1 to "),
    "a corrector": (
        lambda: pds.diagnose(gaussian(), torch.rand(4, *SHAPE), (25,), pds.Langevin()),
        "predictor must be a Predictor",
    ),
    "columns": (lambda: pds.grid(torch.zeros(1, *SHAPE).byte(), columns=0), "columns must be a whole number from 1"),
    "scale": (lambda: pds.grid(torch.zeros(1, *SHAPE).byte(), scale=0), "scale must be a whole number from 1"),
    "a remedy's model": (lambda: pds.seen_noise(torch.nn.Identity()), "model must be a model, from pds.load or pds.wrap"),
    "a remedy's data": (lambda: pds.time_shift(gaussian(), "mnist"), "dataset must be a Dataset"),
    "a guided scale": (lambda: pds.Guided(TARGET, TARGET, math.nan), "scale must be a number from -1000"),
    "labels": (lambda: pds.Conditional(TARGET, [1]), "labels must be a Tensor"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_argument_of_another_kind_is_refused_by_name(what):
    call, message = WRONG[what]
    with pytest.raises(pds.OptionError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


class OwnFilter:
    title = "PDS of my own"

    def __init__(self, mask):
        self.mask = mask

    def frequency(self, shape, statistics):
        return self.mask

    def space(self, shape, statistics):
        return None


@pytest.mark.parametrize("mask", [np.ones(SHAPE), torch.ones(SHAPE, dtype=torch.complex64)], ids=["array", "complex"])
def test_a_filter_that_makes_no_real_tensor_is_refused(mask):
    with pytest.raises(pds.PDSError, match=r"frequency filter must be a real tensor of the shape \(1, 8, 8\), got "):
        pds.sample(gaussian(), filter=OwnFilter(mask))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_statistics_of_a_folder_and_of_a_tensor(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 7, len(mode)), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze(-1) if mode == "L" else image).save(tmp_path / f"{i}.png")
    images = pixels.transpose(0, 3, 1, 2)
    expected = dataset_statistics(ArrayImages("x", "all", np.ascontiguousarray(images)), 6)
    for source in (tmp_path, str(tmp_path), torch.from_numpy(images), torch.from_numpy(images) / 255):
        found = pds.statistics(source)
        assert torch.equal(found.power, expected.power) and found.provenance["images"] == 6
    assert pds.statistics(tmp_path, count=2).provenance["images"] == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("/nowhere/at/all", "does not exist"),
        (torch.rand(3, 8, 8), r"shape \(n, C, H, W\)"),
        (torch.rand(0, 1, 8, 8), "n at least 1"),
        (torch.rand(3, 1, 8, 0), "no side of 0"),
        (torch.randn(9, 1, 8, 8), "floats from 0"),
        (torch.ones(2, 1, 8, 8, dtype=torch.int64), "uint8, or floats"),
    ],
)
def test_statistics_of_what_are_no_images(images, message):
    with pytest.raises(pds.PDSError, match=message):
        pds.statistics(images)


def test_each_row_of_a_grid_begins_a_line():
    black, white = (torch.full((n, 3, 4, 4), value, dtype=torch.uint8) for n, value in ((3, 0), (2, 255)))
    picture = np.asarray(pds.grid(black, white, columns=2, scale=1))
    assert picture.shape == (3 * 6 + 2, 2 * 6 + 2, 3)
    corners = picture[2::6, 2::6, 0][:3, :2]
    assert corners.tolist() == [[0, 0], [0, 128], [255, 255]]
    assert pds.grid(white[:1]).size == (2 * 2 + 8, 2 * 2 + 8)


def test_a_grid_shows_channels_that_are_no_colours_beside_each_other():
    images = torch.arange(4, dtype=torch.uint8).mul(60).reshape(1, 4, 1, 1).expand(2, 4, 3, 3)
    shown = np.asarray(pds.grid(images, columns=1, scale=1))
    assert shown.shape == (2 * (3 + 2) + 2, 4 * 3 + 4)
    assert shown[2:5, 2:14].tolist() == [[value for value in (0, 60, 120, 180) for _ in range(3)]] * 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "at least one tensor"),
        ((torch.zeros(4, 4, dtype=torch.uint8),), "at least one tensor of"),
        ((torch.zeros(1, 1, 4, 4),), r"uint8 images of one shape, got \(1, 1, 4, 4\) float32"),
        ((torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), "one shape"),
    ],
)
def test_a_grid_of_what_are_no_images(rows, message):
    with pytest.raises(pds.PDSError, match=message):
        pds.grid(*rows)


def test_diagnosis_of_a_network_that_sees_excess_noise_and_of_one_that_does_not():
    # Images have less than a thousandth of their variance in the highest frequencies.
    smooth = torch.nn.functional.interpolate(
        torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 32, mode="bicubic"
    )
    images = (255 * smooth.clamp(0, 1)).byte()
    blind = lambda x, sigma: -x / x.square().mean((1, 2, 3), keepdim=True).sqrt() / sigma[:, None, None, None]  # noqa: E731
    seeing = lambda x, sigma: -x / sigma[:, None, None, None] ** 2  # noqa: E731
    about = {
        "predicts": "score",
        "process": pds.VarianceExploding(0.01, 20.0, 1000),
        "shape": (1, 32, 32),
        "data_range": (0, 1),
    }
    found = [pds.diagnose(pds.wrap(network, **about), images, iterations=(20, 100)) for network in (seeing, blind)]
    exact, unseen = (diagnosis.excess[0] for diagnosis in found)
    assert exact.k < 1.6 and exact.least_gain == 1 and exact.alpha == float("inf")
    assert unseen.k > 2 and unseen.least_gain > 1 and 1 < unseen.alpha < 100
    assert found[1].excess[0].k > found[1].excess[1].k
    assert str(found[1]).splitlines()[0].split() == ["T", "sigma", "k", "least", "gain", "alpha"]
    with pytest.raises(pds.PDSError, match=r"shape \(1, 32, 32\) of the model's"):
        pds.diagnose(pds.wrap(seeing, **about), images[..., 1:])
    other = dataclasses.replace(
        pds.wrap(seeing, **about), statistics=dataset_statistics(ArrayImages("x", "all", images[..., :8].numpy()), 8)
    )
    with pytest.raises(pds.PDSError, match=r"statistics are of images of the shape \(1, 32, 8\), and .* has \(1, 32, 32\)"):
        pds.diagnose(other, images)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_network_that_predicts_no_noise_has_no_diagnosis(value):
    made = gaussian()
    made.score.network.function = lambda x, sigma: torch.full_like(x, value)
    with pytest.raises(
        pds.PDSError, match=r"a diagnosis needs the noise that the network predicts, and (there is none|it is not finite)"
    ):
        pds.diagnose(made, torch.rand(4, *SHAPE), (25,))


@pytest.mark.parametrize(
    ("name", "page", "picture", "side", "lines"),
    [
        ("sample", "README.md", "pds", 28, 2),
        ("your_network", "README.md", "your_network", 32, 1),
        ("walk", "docs/why.md", "walk", 28, 1),
    ],
)
def test_an_example_is_a_whole_program(tmp_path, monkeypatch, name, page, picture, side, lines):
    root = Path(__file__).parents[1]
    code = (root / "experiments" / "examples" / f"{name}.py").read_text()
    assert f"```python\n{code}```" in (root / page).read_text()
    small = re.sub(r"(PredictorCorrector|EDM|PreconditionedSDE)\(\d+", r"\1(2", code).replace("images=16", "images=2")
    assert small != code
    monkeypatch.chdir(tmp_path)
    exec(small, {"__name__": "example"})
    with Image.open(f"{picture}.png") as shown:  # a pixel is a square of 2
        assert shown.size == (2 * (2 * side + 2) + 2, lines * (2 * side + 2) + 2)
