"""The schedulers of diffusers against our own samplers on the levels that they visit, step by step, and on Gaussian targets."""

import itertools
import math
import sys

import pytest
import torch
from conftest import GaussianTarget, RecordedNoise, mode_variance, natural_power
from hydra.errors import ConfigCompositionException
from samplers.exact import SHAPE, SIZE, MixtureTarget, exact_moments
from test_configurations import composed

from pds.errors import PDSError
from pds.lab.config import build
from pds.noise import ImageNoise
from pds.options import options_of
from pds.preconditioning.preconditioner import Identity
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.accelerated import DDIM
from pds.samplers.diffusers_schedulers import TITLES, DiffusersScheduler, image_generators
from pds.samplers.dpm_solver import DPMSolver
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.sigma_space import Interval
from pds.score import CountedScore, denoised

diffusers = pytest.importorskip("diffusers")

VE, VP = VarianceExploding(0.01, 20.0, 1000), VariancePreserving(0.1, 12.0, 400)
UNCLIPPED = {"timestep_spacing": "trailing", "clip_sample": False}
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def solver(T, **options):
    return DiffusersScheduler(T, "DPMSolverMultistepScheduler", options)


class Visited:
    """A schedule of given levels."""

    detail = "visited"

    def __init__(self, levels):
        self.levels = levels

    def sigmas(self, process, count):
        return torch.tensor([level.sigma for level in self.levels], dtype=torch.float64)[:count]


def own_ddim(score, x, levels, *given):
    sampler = DDIM(len(levels), Visited(levels))
    return sampler(score, x, sampler.levels(VP), *given)


def own_solver(**options):
    def run(score, x, levels, *given):
        intervals = [Interval(level.sigma, level.below) for level in levels]
        return DPMSolver(len(levels), **{"eta": 0, **options})(score, x, intervals, *given)

    return run


def own_sde(**options):
    def run(score, x, levels, *given):
        intervals = [Interval(level.sigma, level.below) for level in levels]
        return PreconditionedSDE(len(levels), eta=1.0, **options)(score, x, intervals, *given)

    return run


def ancestral(score, x, levels, preconditioner, noise, callback):
    """The posterior of DDPM (Ho et al., Eqs. 6, 7), in sigma-space."""
    for iteration, (_, _, sigma, below) in enumerate(levels):
        D, kept = denoised(score, x, sigma), (below / sigma) ** 2
        x = D + kept * (x - D)
        if below:
            x = x + below * (1 - kept) ** 0.5 * noise.normal()
        callback(iteration, sigma, x)
    return x


OWN = {
    "DDIM": (DiffusersScheduler(20, "DDIMScheduler", UNCLIPPED), own_ddim),
    "DDPM": (DiffusersScheduler(20, "DDPMScheduler", UNCLIPPED), ancestral),
    "2M": (solver(20), own_solver()),
    "2M, Karras": (solver(12, **KARRAS), own_solver()),
    "1": (solver(12, solver_order=1), own_solver(order=1)),
    "SDE": (solver(20, **SDE), own_solver(eta=1.0)),
    "SDE, Karras": (solver(12, **SDE, **KARRAS), own_solver(eta=1.0)),
    "SDE, midpoint": (solver(15, **SDE, solver_type="midpoint"), own_sde(weight="midpoint")),
    "SDE, Heun": (solver(15, **SDE, solver_type="heun"), own_sde(weight="exact")),
}


@pytest.mark.parametrize("process", [VE, VP], ids=lambda process: process.title)
@pytest.mark.parametrize("name", OWN)
def test_every_state_is_that_of_our_own_sampler_on_the_same_levels(name, process):
    compare(*OWN[name], process)


def test_equal_timesteps_are_told_apart():
    wide, sampler = VarianceExploding(0.01, 1348.0, 100), solver(100, **KARRAS)
    first, second = sampler.levels(wide)[:2]
    assert first.timestep == second.timestep == 99 and first.sigma > second.sigma == first.below
    compare(sampler, own_solver(), wide)


def compare(sampler, own, process):
    """The states of both after each iteration, in units of 1 + sigma."""
    levels, shape = sampler.levels(process), (1, 1, 2)
    x = sampler.prior(ImageNoise(0, torch.arange(5), shape), process, Identity())
    generators = image_generators(ImageNoise(1, torch.arange(5), shape))
    draws = [torch.cat([torch.randn(1, *shape, generator=one) for one in generators]) for _ in levels]
    states, expected = [], []
    for run, noise, seen in (
        (sampler, ImageNoise(1, torch.arange(5), shape), states),
        (own, RecordedNoise(draws), expected),
    ):
        final = run(MixtureTarget(), x, levels, Identity(), noise, lambda _, sigma, x, seen=seen: seen.append(x / (1 + sigma)))
        assert torch.equal(final / (1 + levels[-1].sigma), seen[-1])
    torch.testing.assert_close(torch.stack(states).double(), torch.stack(expected).double(), rtol=0, atol=1e-4)


CHOICES = {
    "diffusers_ddim": ("DDIM (diffusers)", False),
    "diffusers_ddpm": ("DDPM (diffusers)", True),
    "diffusers_dpm_solver": ("DPM-Solver++(2M) (diffusers)", False),
    "diffusers_dpm_solver_sde": ("SDE-DPM-Solver++(2M) (diffusers)", True),
    "diffusers_unipc": ("UniPC (diffusers)", False),
}


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_visits_the_ladder_from_its_largest_level_to_zero(choice, karras):
    asked = ["model=ddpmpp", f"sampler={choice}", "sampler.iterations=20", *["sampler.options.use_karras_sigmas=true"] * karras]
    if karras and choice in ("diffusers_ddim", "diffusers_ddpm"):
        with pytest.raises(ConfigCompositionException, match="use_karras_sigmas"):
            composed(*asked)
        return
    cfg = composed(*asked)
    sampler, process = build(cfg.sampler), build(cfg.model.process)
    assert (sampler.title, sampler.stochastic) == CHOICES[choice]
    assert ("karras" in sampler.detail) == karras
    levels, ladder = sampler.levels(process), process.ladder
    sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    at = [999 - level.timestep for level in levels]
    torch.testing.assert_close(sigmas, ladder[at], rtol=6e-2 if karras else 1e-4, atol=0)  # Karras levels lie between
    assert levels[0].sigma == pytest.approx(ladder[0].item(), rel=1e-6)
    assert [level.below for level in levels] == [*sigmas[1:].tolist(), 0]
    assert sampler.check(levels, Identity()) == []
    # Images outside of [-1, 1], so that clipping would show.
    score, noise = CountedScore(GaussianTarget(natural_power(SIZE) / 4, 3.0)), ImageNoise(0, torch.arange(2), SHAPE)
    final = sampler(score, sampler.prior(noise, process, Identity()), levels, Identity(), noise)
    assert final.mean().item() == pytest.approx(3, abs=0.5)
    assert (score.nfe, noise.draws) == (20 * sampler.nfe_per_iteration, 1 + sampler.stochastic)


def flow(levels, power):
    """Variance of every mode after the exact ODE, from 1 + sigma_T^2."""
    start, end = levels[0].sigma, levels[-1].below
    return (1 + start**2) * (power + end**2) / (power + start**2)


@pytest.mark.parametrize("process", [VE, VP], ids=lambda process: process.title)
@pytest.mark.parametrize("name", ["DDIM", "2M", "UniPC"])
def test_mean_and_variance_of_the_deterministic_ones(name, process):
    power, mean = natural_power(SIZE) / 4, 0.4
    sampler = {
        "DDIM": DiffusersScheduler(40, "DDIMScheduler", UNCLIPPED),
        "2M": solver(60, **KARRAS),
        "UniPC": DiffusersScheduler(60, "UniPCMultistepScheduler", KARRAS),
    }[name]
    levels = sampler.levels(process)
    expected = flow(levels, power)
    if name == "DDIM":
        shrink = (1 - (1 - below / sigma) * sigma**2 / (power + sigma**2) for _, _, sigma, below in levels)
        expected = (1 + levels[0].sigma ** 2) * math.prod(shrink) ** 2
    found_mean, variance = exact_moments(sampler, process, power, mean, draws=1)
    torch.testing.assert_close(variance, expected, rtol=1e-5 if name == "DDIM" else 0.025, atol=0)
    left = (expected[0, 0] / (1 + levels[0].sigma ** 2)).sqrt().item()
    assert found_mean == pytest.approx(mean * (1 - left), rel=1e-3)


@pytest.mark.parametrize("name", ["DDPM", "SDE"])
def test_mean_and_variance_of_the_stochastic_ones(name):
    images, power, mean = 1200, natural_power(SIZE) / 4, 0.4
    sampler = {"DDPM": DiffusersScheduler(20, "DDPMScheduler", UNCLIPPED), "SDE": solver(40, **SDE)}[name]
    levels, noise = sampler.levels(VE), ImageNoise(2, torch.arange(images), SHAPE)
    final = sampler(GaussianTarget(power, mean), sampler.prior(noise, VE, Identity()), levels, Identity(), noise)
    variance = 1 + levels[0].sigma ** 2
    for _, _, sigma, below in levels:
        kept = (below / sigma) ** 2
        variance = (kept + (1 - kept) * power / (power + sigma**2)) ** 2 * variance + below**2 * (1 - kept)
    ratio = mode_variance(final - final.mean(dim=0, keepdim=True)) / (variance if name == "DDPM" else power)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=5 * (2 / images) ** 0.5)
    assert final.mean().item() == pytest.approx(mean, abs=4 * (power[0, 0].item() / images) ** 0.5 / SIZE)


def test_the_order_of_unipc():
    # Down to the smallest level: the last step, to 0, is of the first order.
    power, errors = natural_power(SIZE) / 4, []
    for T in (20, 40, 80):
        sampler = DiffusersScheduler(T, "UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"})
        levels = sampler.levels(VP)
        assert levels[-1].below == pytest.approx(VP.ladder[-1].item(), rel=1e-3)
        variance = exact_moments(sampler, VP, power, 0.0, draws=1)[1]
        errors.append((variance / flow(levels, power) - 1).abs().mean().item())
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([2, 2], abs=0.2)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "2M", "SDE"])
def test_neighbours_and_calls_before_change_nothing(name):
    sampler, target = OWN[name][0], GaussianTarget(natural_power(SIZE))
    levels = sampler.levels(VE)

    def images(*indices):
        noise = ImageNoise(1, torch.tensor(indices), SHAPE)
        return sampler(target, sampler.prior(noise, VE, Identity()), levels, Identity(), noise)

    alone, together = images(7), images(4, 7, 9)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(images(9, 4, 7)[[1, 2, 0]], together)


def test_images_do_not_share_their_noise():
    # Torch takes 32 bits of a seed. Two of 20,000 seeds agree with a probability of 5%; these do not.
    generators = image_generators(ImageNoise(0, torch.arange(20_000), (1, 1, 2)))
    assert len({generator.initial_seed() % 2**32 for generator in generators}) == 20_000


def test_what_it_refuses(monkeypatch):
    impossible = [
        ((20, "EulerDiscreteScheduler"), "must be one of DDIMScheduler, DDPMScheduler, .*, got 'EulerDiscreteScheduler'"),
        (
            (401, "DDPMScheduler"),
            "iterations must be at most 400, the noise levels of the model, got 401",
        ),
        (
            (20, "DDIMScheduler", {"eta": 1}),
            r"options.eta is no option of DDIMScheduler here, which takes clip_sample, ",
        ),
        ((20, "DDIMScheduler", {"beta_end": 1}), "options.beta_end is no option"),
        ((20, "DDIMScheduler", {"clip_sample": "maybe"}), "options.clip_sample must be true or false, got 'maybe'"),
        ((20, "DDIMScheduler", {"timestep_spacing": "even"}), "options.timestep_spacing must be one of .*, got 'even'"),
        ((20, "DPMSolverMultistepScheduler", {"variance_type": "learned"}), "options.variance_type must be fixed, got learned"),
        ((20, "DDIMScheduler", {"steps_offset": 90}), "does not take.*out of bounds"),
        ((31, "DDIMScheduler", UNCLIPPED), "31 of the 400 noise levels.*; use 30 or"),  # timestep -1
        ((31, "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}), "31 of the 400.*; use 30 or"),
        ((400, "UniPCMultistepScheduler"), "400 of the 400 noise levels.*; use 399 or"),  # one twice
    ]
    for arguments, says in impossible:
        with pytest.raises(PDSError, match=says) as error:
            DiffusersScheduler(*arguments).levels(VP)
        assert "\n" not in str(error.value)
    with pytest.raises(PDSError, match="cannot walk down"), pytest.warns(RuntimeWarning):
        solver(20, **KARRAS).levels(SubVariancePreserving())  # its smallest level is 0 in float32
    with pytest.raises(PDSError, match="take another scheduler, no smaller number works"):
        DiffusersScheduler(2, "DDIMScheduler").levels(SubVariancePreserving())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        PDSError, match=r"^DDIM \(diffusers\) needs diffusers: install it with pip install 'pds-lab\[diffusers\]'$"
    ):
        DiffusersScheduler(20, "DDIMScheduler", UNCLIPPED).levels(VP)


def test_values_of_another_type_than_the_scheduler_states_are_refused():
    odd, tried = [None, "x", "../..", -1, 0, 7, 0.5, math.nan, math.inf, [1], {"a": 1}, 10**30], 0
    for name in TITLES:
        for option, stated in options_of(getattr(diffusers, name)).items():
            if stated.annotation not in (bool, int, float):
                continue
            for value in odd:
                if isinstance(value, int) and stated.annotation in (int, float):
                    continue
                if isinstance(value, float) and not math.isnan(value) and stated.annotation is float:
                    continue
                with pytest.raises(PDSError, match=rf"^options\.{option} (must be .*, got |is no option of {name} here)"):
                    DiffusersScheduler(20, name, {option: value}).levels(VP)
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "UniPCMultistepScheduler"])
def test_data_that_a_scheduler_clips_are_told(name):
    def told(data_range, **options):
        sampler = DiffusersScheduler(20, name, {"timestep_spacing": "trailing", **options})
        sampler = sampler.with_statistics(lambda: pytest.fail("statistics are slow to make"), data_range, VP)
        return [doubt for doubt in sampler.check(sampler.levels(VP), Identity()) if " clips " in doubt]

    clips = name != "UniPCMultistepScheduler"
    assert len(told((0, 255))) == len(told((-1.5, 0.5))) == clips
    assert told((-1, 1)) == told((0, 1)) == []
    assert len(told((0, 255), **({"thresholding": True} | ({"clip_sample": False} if clips else {})))) == 1
    assert not clips or (told((0, 255), clip_sample=False), told((-2, 2), clip_sample_range=2.0)) == ([], [])


@pytest.mark.parametrize(("T", "doubts"), [(20, 0), (30, 1)])
def test_steps_that_do_not_meet_are_told(T, doubts):
    for name in ("DDIMScheduler", "DDPMScheduler"):
        sampler = DiffusersScheduler(T, name, UNCLIPPED)
        told = sampler.check(sampler.levels(VP), Identity())
        assert len(told) == (doubts if name == "DDIMScheduler" else 0)
        assert not told or "goes 13 of the 400 noise levels" in told[0]
