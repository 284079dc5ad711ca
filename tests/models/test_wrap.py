"""Users' own networks: exact networks of every kind give the exact score, and a network that does not fit is refused with the
reason."""

import itertools
import math

import pytest
import torch
from conftest import GaussianTarget
from torch import nn

import pds
from pds.errors import OptionError, PDSError
from pds.models.scores import LABELS
from pds.models.wrap import PREDICTIONS, wrap
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.discrete import DiscreteVariancePreserving, beta_schedule
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving

SHAPE = (3, 6, 5)
VE = VarianceExploding(0.01, 50.0, 1000)
PROCESSES = [
    VE,
    VariancePreserving(),
    SubVariancePreserving(),
    DiscreteVariancePreserving(beta_schedule("linear", 1e-4, 0.02, 100)),
]
TARGET = GaussianTarget(torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) + 0.1, mean=0.3)

# The noise level that a network reads from its label.
READ = {
    "sigma": lambda label, process: label,
    "log_sigma/4": lambda label, process: (4 * label).exp(),
    "t": lambda label, process: process.sigma(label),
    "999t": lambda label, process: process.sigma(label / 999),
    "Nt-1": lambda label, process: process.sigma((label + 1) / process.levels),
}


def exact(predicts, label, process):
    """The network that was trained to perfection on Gaussian images, in float64."""

    def network(y, given):
        sigma = READ[label](given.double(), process)
        m, std = (value[:, None, None, None] for value in (process.scale(process.time(sigma)), sigma))
        x = y.double() / m
        s = TARGET(x, sigma)
        x_0, z = x + std**2 * s, -std * s
        return {"score": s / m, "noise": z, "v": m * (z - std * x_0), "data": x_0}[predicts]

    return network


CASES = [
    case
    for case in itertools.product(PREDICTIONS, LABELS, PROCESSES)
    if case[0] != "v" or case[2].title == "VP"  # v is of states of constant variance
]


@pytest.mark.parametrize(("predicts", "label", "process"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_an_exact_network_of_any_kind_is_the_exact_score(predicts, label, process):
    model = wrap(
        exact(predicts, label, process), predicts=predicts, process=process, shape=SHAPE, data_range=(-1, 1), label=label
    )
    sigma = process.ladder[[0, 5, 50, 90, -10]].float()
    x = TARGET.mean + (1 + sigma.square()).sqrt()[:, None, None, None] * torch.randn(
        5, *SHAPE, generator=torch.Generator().manual_seed(0)
    )
    # In units of the noise: float32 images lose the score of a small sigma, as labels lose their last digits.
    found, expected = (sigma[:, None, None, None] * score(x, sigma) for score in (model.score, TARGET))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda v: type(v).__name__)
def test_the_label_is_what_published_networks_of_the_process_see(process):
    seen = []

    def network(x, label):
        seen.append(label)
        return x

    model = wrap(network, predicts="noise", process=process, shape=SHAPE, data_range=(0, 1))
    sigma = process.ladder[:1].float()
    model.score(torch.zeros(1, *SHAPE), sigma)
    largest = {"VE": 50.0, "VP": 999.0, "sub-VP": 999.0}[process.title] if process.levels == 1000 else 99.0
    assert seen[-1].item() == pytest.approx(largest, rel=1e-5)
    assert seen[-1].dtype == torch.float32


def test_a_function_makes_a_label():
    # EDM's parametrisation of a network F with an index as label.
    seen = []
    model = wrap(
        lambda x, label: seen.append(label) or x,
        predicts="data",
        process=VE,
        shape=SHAPE,
        data_range=(-1, 1),
        label=lambda sigma: (sigma / 0.01).log2().round(),
    )
    model.score(torch.zeros(2, *SHAPE), torch.tensor([0.02, 0.08]))
    assert seen[-1].tolist() == [1, 3]


class Tiny(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, sigma):
        return self.convolution(x) / sigma[:, None, None, None]


def test_a_module_is_in_evaluation_mode_and_named():
    network = Tiny().train()
    model = wrap(network, predicts="score", process=VE, shape=list(SHAPE), data_range=(-1, 1))
    assert not network.training and model.score.network is network
    assert model.title == "Tiny (VE) 3x6x5"
    assert (model.shape, model.data_range, model.checkpoint) == (SHAPE, (-1.0, 1.0), None)


@pytest.mark.parametrize("scripted", [False, True])
def test_the_networks_that_a_function_calls_are_in_evaluation_mode(scripted):
    inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    inner = torch.jit.script(inner) if scripted else inner
    model = wrap(lambda x, label: inner(x), predicts="data", process=VE, shape=SHAPE, data_range=(-1, 1))
    assert not inner.training
    one, other = (pds.sample(model, pds.EDM(3), images=4, batch_size=size).images for size in (4, 3))
    assert torch.equal(one, other)
    assert inner.state_dict()["1.num_batches_tracked"] == 0
    bystander = nn.Dropout()
    bystander(torch.ones(1))
    assert bystander.training


GIVEN = {"predicts": "data", "process": VE, "shape": SHAPE, "data_range": (-1, 1)}
WRONG_NETWORKS = {
    "crop": (
        lambda x, label: x[..., 1:],
        r"crop\(x, label\) returned a float32 tensor of shape \(2, 3, 6, 4\), expected .*\(2, 3, 6, 5\)",
    ),
    "tuple": (lambda x, label: (x, label), "returned a tuple of 2, expected a floating-point tensor"),
    "nothing": (lambda x, label: None, "returned a NoneType, expected"),
    "whole numbers": (lambda x, label: x.long(), "returned a int64 tensor of shape"),
    "learned variance": (lambda x, label: torch.cat([x, x], 1), r"shape \(2, 6, 6, 5\), expected"),
    "one argument": (
        lambda x: x,
        r"fails for x of shape \(2, 3, 6, 5\) and label of shape \(2,\).*TypeError, .*positional argument",
    ),
    "other channels": (Tiny(1), r"Tiny\(x, label\) fails .*: RuntimeError, .*expected input\[2, 3, 6, 5\] to have 1 channels"),
    "another device": (lambda x, label: x.to("meta"), r"returned a tensor on meta, and x is on cpu"),
    "a class": (Tiny, r"network must be an object, got the class Tiny: give Tiny\(…\)"),
    "no function": (3, r"network must be a torch.nn.Module or a function of \(x, label\), got 3"),
}


@pytest.mark.parametrize("what", WRONG_NETWORKS)
def test_a_network_that_does_not_fit_is_told_why(what):
    network, message = WRONG_NETWORKS[what]
    if what == "crop":
        network.__name__ = "crop"
    with pytest.raises(PDSError, match=message) as caught:
        wrap(network, **GIVEN)
    assert "\n" not in str(caught.value)


WRONG_ARGUMENTS = [
    ({"predicts": "epsilon"}, "predicts must be one of score, noise, v, data, got 'epsilon'"),
    ({"predicts": "v"}, "predicts v is defined for variance-preserving states, and the process is VE"),
    # Its variance is 1 at the end of the process alone.
    ({"predicts": "v", "process": SubVariancePreserving(0.1, 40.0)}, "predicts v is defined for variance-preserving states"),
    ({"shape": (6, 5)}, "shape must be a list of 3 whole numbers"),
    ({"shape": (3, 0, 5)}, "shape must be a list of 3 whole numbers"),
    ({"data_range": (1, -1)}, "data_range must be"),
    ({"data_range": (1, math.nan)}, "data_range must be"),
    ({"data_range": (0, 1, 2)}, "data_range must be a list of 2 numbers"),
    ({"data_range": 255}, "data_range must be a list"),
    ({"no_class": 3}, "no_class must be left out where classes is 0, got 3"),
    ({"label": "index"}, "label must be a function of sigma or one of sigma, log_sigma/4, t, 999t, Nt-1, got 'index'"),
    (
        {"label": lambda sigma: sigma.mean()},
        r"label must give a tensor of shape \(2,\) .* got a float64 tensor of shape \(\)",
    ),
    ({"label": lambda sigma: 3}, "label must give .* got a int"),
    ({"label": lambda sigma: sigma / [1]}, "label fails for two noise levels: TypeError, "),
    ({"shape": (16384, 16384, 16384)}, r"Tiny\(x, label\) fails for x of shape \(2, 16384, 16384, 16384\) .*memory"),
    (
        {"process": VarianceExploding},
        r"process must be a forward process, as VarianceExploding\(0.01, 50, 1000\) is, got <class",
    ),
    ({"process": "ve"}, r"process must be a forward process, .*, got 've'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ARGUMENTS)
def test_arguments_that_do_not_fit_are_named(change, message):
    with pytest.raises(PDSError, match=message):
        wrap(Tiny(), **GIVEN | change)


class Table(nn.Module):
    """A network that looks its label up."""

    def __init__(self, levels):
        super().__init__()
        self.table = nn.Embedding(levels, 3)

    def forward(self, x, label):
        return x + self.table(label.round().long())[..., None, None]


@pytest.mark.parametrize(
    "sampler",
    [
        pds.EDM(5),  # its churn goes above the largest level
        pds.PredictorCorrector(9, pds.ReverseDiffusion(), None, end=4e-3),
        pds.DDIM(5, schedule=pds.ProcessTimes(4e-3)),
    ],
    ids=lambda sampler: sampler.title,
)
def test_a_network_of_a_chain_is_shown_its_own_labels_alone(sampler):
    chain = PROCESSES[-1]
    model = wrap(Table(chain.levels), predicts="noise", process=chain, shape=SHAPE, data_range=(-1, 1))
    assert pds.sample(model, sampler, images=2).images.shape == (2, *SHAPE)


class Classed(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(4, 3)

    def forward(self, x, label, labels):
        return x + self.classes(labels)[..., None, None]


@pytest.mark.parametrize(("classes", "no_class"), [(5, None), (1000, None), (3, 4), (3, -1)])
def test_labels_that_the_network_does_not_know_are_refused_at_once(classes, no_class):
    shown = f"{classes - 1}, {0 if no_class is None else no_class}"
    with pytest.raises(
        PDSError, match=rf"Classed\(x, label, labels\) fails .*, and labels {shown}: IndexError, .*out of range"
    ):
        wrap(Classed(), **GIVEN, classes=classes, no_class=no_class)


class Counting(Classed):
    def forward(self, x, label, labels):
        labels += 1  # 0 is reserved
        return super().forward(x, label, labels)


def test_a_network_that_changes_its_labels_in_place_is_shown_the_same_class_at_each_step():
    model = wrap(Counting(), **GIVEN, classes=3)
    labels = torch.zeros(1, dtype=torch.int64)
    model.score(torch.zeros(1, *SHAPE), torch.ones(1), labels)
    assert labels.tolist() == [0]


class Formatted(Tiny):
    memory_format = "channels_last"  # its own attribute


def test_the_attributes_of_a_network_are_its_own():
    assert pds.sample(wrap(Formatted(), **GIVEN), pds.EDM(2), images=1).images.shape == (1, *SHAPE)


def test_the_largest_labels_that_the_network_knows_are_taken():
    assert wrap(Classed(), **GIVEN, classes=4).classes == 4
    assert wrap(Classed(), **GIVEN, classes=3, no_class=3).unconditional


class Flattening(nn.Module):
    """Its view needs the layout of its own maps, and its parameter of five axes has no channels_last."""

    def __init__(self):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(torch.ones(1, 1, 1, 1, 1))

    def forward(self, x, label):
        return (self.conv(x).view(len(x), -1) * self.factor.flatten()).view(x.shape)


def test_a_network_keeps_its_layout():
    assert pds.sample(wrap(Flattening(), **GIVEN), pds.EDM(2), images=2).images.shape == (2, *SHAPE)


@pytest.mark.parametrize("late", [lambda x: (x, x), lambda x: x[:1], lambda x: None], ids=["a tuple", "one image", "nothing"])
def test_a_later_answer_of_another_form_is_refused(late):
    calls = []

    def network(x, label):
        calls.append(0)
        return x if len(calls) == 1 else late(x)

    with pytest.raises(
        PDSError, match=r"the network returned .* for x of shape \(2, 3, 6, 5\): it must return a tensor like x"
    ):
        pds.sample(wrap(network, **GIVEN), pds.EDM(2), images=2)


def test_cld_is_refused_by_its_name():
    with pytest.raises(OptionError, match=r"process must be one of images: pds\.load reads the networks of CLD"):
        wrap(Tiny(), **GIVEN | {"process": CriticallyDamped()})


def test_the_data_range_must_be_given():
    with pytest.raises(TypeError, match="data_range"):
        wrap(Tiny(), predicts="data", process=VE, shape=SHAPE)
