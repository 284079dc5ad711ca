"""Shared by the tests: golden files, a Gaussian target with exactly known samplers, recorded noise."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_composition import hasten
from torch import Tensor

from pds.models.ncsn import NCSN
from pds.models.ncsnv2 import NCSNv2
from pds.models.scores import LadderScore

torch.set_num_threads(1)
hasten()

GOLDEN = Path(__file__).parent / "golden"


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect tests without collecting garbage: what is imported stays, and Python would go through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


def seeds(count):
    """The test takes `count` seeds in turn, and its failure names the seed. A test for each would cost more than its work."""

    def over(test):
        @functools.wraps(test)
        def each(**fixtures):
            for seed in range(count):
                try:
                    test(seed=seed, **fixtures)
                except Exception as error:
                    raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error

        about = inspect.signature(test)
        each.__signature__ = about.replace(parameters=[one for name, one in about.parameters.items() if name != "seed"])
        return each

    return over


class Golden:
    """A golden file: arrays by name, `meta` and `config` decoded."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def json(self, key: str) -> dict:
        return json.loads(str(self.arrays[key]))

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.arrays if key.startswith(prefix)}


class RecordedNoise:
    """The draws of a golden trajectory, in their order."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.draws = iter(draws)

    def normal(self) -> Tensor:
        return next(self.draws)

    uniform = normal


def golden_score(golden, sigmas):
    rule = golden.json("meta")["score"]
    if rule["type"] == "network":
        weights = Golden(rule["weights_file"].removeprefix("public/").removesuffix(".npz"))
        config = weights.json("config")
        channels, width = config["data"]["channels"], config["model"]["ngf"]
        if weights.json("meta")["model"] == "NCSNv2":
            network = NCSNv2(channels, width, "base", sigmas)
        else:
            network = NCSN(channels, width, config["model"]["num_classes"])
        network.load_state_dict(weights.under("w/"))
        return LadderScore(network.eval(), sigmas)
    table = golden["sigmas"].float()
    labelled = lambda x, label: -(x - golden["mu"]) / (rule["c"] + table[label].square()[:, None, None, None])  # noqa: E731
    return Labelled(labelled, sigmas)


class Labelled(torch.nn.Module):
    """A function of (x, label) as a score of (x, sigma), through the adapter that networks use."""

    def __init__(self, function, sigmas):
        super().__init__()
        self.adapter = LadderScore(torch.nn.Identity(), sigmas)
        self.function = function

    def forward(self, x, sigma):
        return self.function(x, self.adapter.label(sigma))


class GaussianTarget:
    """Images drawn from N(mean, F^-1 diag(p) F), p (H, W) the variance of each orthonormal Fourier mode: the exact score.

    It repeats `pds.evaluation.gaussian` on purpose: the library may not check itself.
    """

    def __init__(self, power: Tensor, mean: float = 0.0) -> None:
        self.power, self.mean = power, mean

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        spectrum = torch.fft.fft2((x - self.mean).double())
        return -torch.fft.ifft2(spectrum / (self.power + sigma.double().square()[:, None, None, None])).real.to(x.dtype)


def mode_variance(x: Tensor) -> Tensor:
    """(H, W) variance of each orthonormal Fourier mode over batch and channels."""
    return torch.fft.fft2(x.double(), norm="ortho").abs().square().mean((0, 1))


def natural_power(size: int) -> Tensor:
    """(size, size) spectrum falling with frequency like that of natural images."""
    k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    return 4.0 / (1 + k[:, None] ** 2 + k[None, :] ** 2)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, if there is one."""
    candidates = [os.environ.get("PDS_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for root in filter(None, candidates):
        if (Path(root) / "mnist").is_dir():
            return Path(root)
    pytest.skip("real data sets not found: set PDS_DATA to a folder with mnist/ in it")
