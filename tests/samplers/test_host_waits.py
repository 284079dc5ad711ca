"""No step of a sampler, and no evaluation of a network, waits for a GPU: fake tensors on one show it without a GPU."""

from copy import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pds.models.ncsnpp import NCSNpp
from pds.models.scores import LadderScore, ScorePrediction
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity, Spectrum
from pds.processes.forward import VarianceExploding
from pds.samplers.accelerated import AcceleratedStochastic
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.dpm_solver import DPMSolver
from pds.samplers.edm import EDM
from pds.samplers.momentum_langevin import MomentumLangevin
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import PredictorCorrector
from pds.samplers.sampler import Task

SHAPE = (2, 8, 8)
VE = VarianceExploding(0.05, 4.0, 30)
FILTER = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.9).frequency(SHAPE))


class Copies(TorchDispatchMode):
    """Counts copies between devices, which wait. Whatever reads a value on the host fails on a fake tensor by itself."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.count += len({leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}) > 1
        return result


class Known(list):
    """Levels that stay numbers among fake tensors."""

    class Number(float):
        item = float.__float__

    tolist = list.copy

    def __init__(self, levels):
        super().__init__(map(self.Number, levels.tolist()))


class Drawn:
    """Noise whose making costs nothing."""

    def normal(self):
        return torch.empty(3, *SHAPE, device="cuda")


def on_gpu(preconditioner):
    """The same on a fake GPU."""
    if isinstance(preconditioner, Identity):
        return preconditioner
    moved = copy(preconditioner)
    moved.inverse_R = moved.inverse_R.to("cuda")
    moved.spectrum = Spectrum(moved.spectrum.gain.to("cuda"), moved.spectrum.turn)
    return moved


TAKERS = [PredictorCorrector(4), PreconditionedSDE(4), AnnealedLangevin(4, 0.4), MomentumLangevin(4, 0.4)]
TAKERS += [AcceleratedStochastic(4)]
CASES = [(sampler, P) for sampler in TAKERS for P in (Identity(), FILTER)] + [(EDM(4), Identity()), (DPMSolver(4), Identity())]


@pytest.mark.parametrize(("sampler", "P"), CASES, ids=lambda value: type(value).__name__)
def test_no_step_waits(sampler, P):
    levels = sampler.levels(VE)
    levels = Known(levels) if isinstance(levels, torch.Tensor) else levels
    with FakeTensorMode(allow_non_fake_inputs=True):
        P, noise = on_gpu(P), Drawn()
        score = lambda x, sigma: -x / (0.1 + sigma.square())[:, None, None, None]  # noqa: E731
        with Copies() as copies:
            steps = [x for _, x in sampler.walk(noise.normal(), Task(score, levels, P, noise))]
    assert len(steps) == len(levels) and steps[-1].device.type == "cuda"
    assert copies.count == 0


@pytest.mark.parametrize("embedding", ["fourier", "positional"])
def test_no_evaluation_waits(embedding):
    with FakeTensorMode(), torch.device("cuda"):
        sigmas = torch.linspace(4, 0.05, 30)
        network = NCSNpp(2, 8, 8, (1, 2), 1, (4,), sigmas, embedding).eval()
        score = ScorePrediction(network, VE, "sigma") if embedding == "fourier" else LadderScore(network, sigmas)
        with Copies() as copies:
            x = score(ImageNoise(0, torch.arange(3), SHAPE).normal(), torch.empty(3))
    assert x.device.type == "cuda"
    assert copies.count == 0


def test_the_eigenvalues_are_where_the_filter_is():
    assert FourierPreconditioner(SHAPE, 1 + torch.ones(SHAPE), device="cpu").spectrum.turn == 0.0
    P = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.9).frequency(SHAPE), device="meta")
    assert P.spectrum.gain.device == P.inverse_R.device
