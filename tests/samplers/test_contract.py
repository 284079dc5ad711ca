"""The contract of every sampler of `pds.samplers`: each image depends on its own noise alone, and the sampler's facts are true.

The samplers are found, and varied over their options one at a time. So a new sampler is tested here without a new line.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
import typing
from dataclasses import MISSING, fields, replace

import pytest
import torch

import pds.samplers
from pds.errors import OptionError, PDSError
from pds.gaussian import StationaryGaussian
from pds.noise import ImageNoise
from pds.options import Range, fitted
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import VarianceExploding
from pds.processes.schedules import LearningRates, ProcessTimes
from pds.samplers.adaptive import AdaptiveSDE
from pds.samplers.critically_damped import VelocitySampler
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import Ancestral, AnnealedLangevinSteps, EulerMaruyama, Langevin, ReverseDiffusion
from pds.samplers.restart import Restart
from pds.samplers.sampler import Sampler
from pds.score import CountedScore, NoiseMoments

SHAPE = (2, 4, 4)
VE = VarianceExploding(0.05, 4.0, 30)
CLD = CriticallyDamped()
ONES = FourierPreconditioner(SHAPE, torch.ones(SHAPE))
FILTER = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.9).frequency(SHAPE))

# The first value of each option is the base of all variations.
TRIED = {
    "iterations": [10],
    "step_size": [0.4],
    "steps_per_level": [None, 2],
    "gamma": [0.3, [0.1, 0.5]],
    "rho": [7.0, math.inf],
    "eta": [1.0, 0.0],
    "tau": [1.0, 0.0],
    "restarts": [2, 0],
    "S_churn": [3.0, 0.0],
    "schedule": [ProcessTimes(), LearningRates()],
    "predictor": [ReverseDiffusion(), ReverseDiffusion(probability_flow=True), EulerMaruyama(), Ancestral(), None],
    "corrector": [Langevin(0.2), Langevin(0.2, 2, "batch"), AnnealedLangevinSteps(0.3, 2), None],
    "end": [None, 0.02],
    "start": [math.inf, 2.0],
    "data": [StationaryGaussian(torch.full(SHAPE, 0.5).double(), torch.full(SHAPE, 0.1).double())],
    "moments": [NoiseMoments((0.05, 4.0), (0.1, 0.99))],
}
OF_A_CLASS = {AdaptiveSDE: {"iterations": [2000], "eps_rel": [0.1]}, PreconditionedSDE: {"end": [0.0, 0.1]}}
OF_A_VELOCITY = {"end": [1e-3, 0.02]}


def classes() -> list[type[Sampler]]:
    modules = [importlib.import_module(f"pds.samplers.{found.name}") for found in pkgutil.iter_modules(pds.samplers.__path__)]
    found = {one for module in modules for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, Sampler)}
    return sorted((one for one in found if one.title is not Sampler.title), key=lambda one: one.__name__)


def tried(cls: type[Sampler], name: str, annotation: typing.Any, default: typing.Any) -> list:
    own = OF_A_VELOCITY if issubclass(cls, VelocitySampler) else OF_A_CLASS.get(cls, {})
    if name in (given := TRIED | own):
        return given[name]
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if annotation is bool:
        return [True, False]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [default]


def variants() -> list[Sampler]:
    made = []
    for cls in classes():
        hints = typing.get_type_hints(cls, include_extras=True)
        values = {f.name: tried(cls, f.name, hints[f.name], f.default) for f in fields(cls) if f.default_factory is MISSING}
        first = {name: choices[0] for name, choices in values.items()}
        made.append(cls(**first))
        made += [cls(**first | {name: other}) for name, choices in values.items() for other in choices[1:]]
    return made


pytest.importorskip("diffusers")
SAMPLERS = variants()
every = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.title}-{s.detail}".replace(" ", "_"))


def process_of(sampler):
    return CLD if isinstance(sampler, VelocitySampler) else VE


def score(x, sigma):
    if x.shape[1] == 2 * SHAPE[0]:
        x, v = x.chunk(2, dim=1)
        return -(v - 0.1 * torch.sin(3 * x)) / CLD.mass
    return -(x - 0.5 - 0.2 * torch.sin(x)) / (0.1 + sigma.square())[:, None, None, None]


def sample(sampler, *indices, preconditioner=None, callback=lambda i, sigma, x: None):
    """The images, the counted score and the noise."""
    counted, noise, P = CountedScore(score), ImageNoise(1, torch.tensor(indices), SHAPE), preconditioner or Identity()
    process = process_of(sampler)
    x = sampler.prior(noise, process, P)
    assert noise.draws == (1 if process is VE else 2)
    return sampler(counted, x, sampler.levels(process), P, noise, callback), counted, noise


def test_the_samplers_are_found():
    assert len(classes()) >= 11
    assert len(SAMPLERS) > 3 * len(classes())


@every
def test_an_image_is_its_own(sampler):
    together, _, noise = sample(sampler, 4, 7, 9)
    again, _, _ = sample(sampler, 4, 7, 9)
    assert torch.equal(together, again)
    alone, _, noise_alone = sample(sampler, 7)
    assert torch.allclose(together[1:2], alone, rtol=1e-4, atol=1e-5) != sampler.mixes_batch
    others, _, _ = sample(sampler, 1, 2, 3)
    assert not torch.allclose(together, others, atol=1e-3)
    assert (noise.draws > (1 if process_of(sampler) is VE else 2)) == sampler.stochastic
    if sampler.nfe is not None:
        assert noise.draws == noise_alone.draws


@every
def test_evaluations_and_callbacks_are_what_it_says(sampler):
    seen = []
    images, counted, _ = sample(sampler, 4, 7, callback=lambda i, sigma, x: seen.append((i, sigma, x.clone())))
    levels = sampler.levels(process_of(sampler))
    assert len(levels) == sampler.iterations
    most = sampler.iterations * sampler.nfe_per_iteration + 1
    if sampler.nfe is None:
        assert counted.images / 2 <= most
        assert len(seen) < sampler.iterations
    else:
        assert counted.nfe == sampler.nfe <= most
        assert counted.images == 2 * sampler.nfe
        assert len(seen) == sampler.iterations
    assert [i for i, _, _ in seen] == list(range(len(seen)))
    sigmas = [sigma for _, sigma, _ in seen]
    assert sigmas == sorted(sigmas, reverse=True) or isinstance(sampler, Restart)
    assert max(sigmas) == sigmas[0] and min(sigmas) == sigmas[-1] > 0
    assert images.shape == (2, *SHAPE) and images.isfinite().all()
    if isinstance(sampler, VelocitySampler):  # it denoises from the velocity, which the callback is not given
        return
    # A sampler may denoise after the last callback, from the state of that callback.
    last = seen[-1][2]
    assert torch.equal(images, last) or torch.equal(images, last + sigmas[-1] ** 2 * score(last, torch.full((2,), sigmas[-1])))


@every
def test_a_filter_is_refused_or_taken(sampler):
    plain = sample(sampler, 4, 7)[0]
    if sampler.takes_filter:
        doubts = sampler.check(sampler.levels(process_of(sampler)), FILTER)
        torch.testing.assert_close(sample(sampler, 4, 7, preconditioner=ONES)[0], plain, rtol=1e-3, atol=1e-4)
        idle = torch.allclose(sample(sampler, 4, 7, preconditioner=FILTER)[0], plain, atol=1e-3)
        assert idle == any("the filter changes nothing" in doubt for doubt in doubts)
    else:
        counted, noise = CountedScore(score), ImageNoise(0, torch.arange(2), SHAPE)
        for refusing in (
            lambda: sampler.check(sampler.levels(process_of(sampler)), ONES),
            lambda: sampler(counted, torch.zeros(2, *SHAPE), sampler.levels(process_of(sampler)), ONES, noise),
        ):
            with pytest.raises(PDSError, match="takes no filter and no solenoid: leave both out") as error:
                refusing()
            assert str(error.value).startswith(sampler.title) and "\n" not in str(error.value)
        assert (counted.nfe, noise.draws) == (0, 0)
    assert sampler.check(sampler.levels(process_of(sampler)), Identity()) == []


@every
def test_facts_are_there(sampler):
    assert sampler.title and sampler.source and isinstance(sampler.detail, str)
    assert replace(sampler) == sampler
    ended = sampler.without_denoising()
    assert ended.without_denoising() == ended
    assert not getattr(ended, "denoise", False)
    assert all(isinstance(name, str) for name in sampler.provenance)
    moments = NoiseMoments((0.1, 2.0), (0.2, 0.9), provenance={"weights": "a"})
    assert ("moments" in sampler.with_moments(lambda count: moments).provenance) == hasattr(sampler, "moments")


def numbers(cls):
    """(option, its range, whether it counts) of each number."""
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        parts = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)
        for part in parts:
            if typing.get_origin(part) is typing.Annotated and isinstance(limit := part.__metadata__[0], Range):
                yield name, limit, part.__origin__ is int


ODD = [True, False, "3", "abc", math.nan, -math.inf, math.inf, -1, -1e-300, 1e308, 10**400, 1e12, [], {}, [math.nan], 1 + 1j]


@pytest.mark.parametrize("sampler", {type(sampler): sampler for sampler in SAMPLERS}.values(), ids=lambda s: type(s).__name__)
def test_each_number_has_a_range_that_an_odd_value_is_not_in(sampler):
    named = {f.name for f in fields(sampler)}
    ranged = [row for row in numbers(type(sampler)) if row[0] in named]
    assert {f.name for f in fields(sampler) if isinstance(getattr(sampler, f.name), float)} <= {name for name, _, _ in ranged}
    for (name, limit, _), value in itertools.product(ranged, ODD):
        if value == math.inf and limit.infinity:
            continue
        with pytest.raises(OptionError) as error:
            replace(sampler, **{name: value})
        assert (error.value.name, "\n" in str(error.value)) == (name, False)
    hints = typing.get_type_hints(type(sampler), include_extras=True)
    for name, limit, whole in ranged:
        for value in (limit.low, limit.high):
            if math.isfinite(value) and not whole:
                assert fitted(name, value, hints[name]) == value
