"""The discrete VP chain: DDPM's own if every level is visited, else respaced, and continuous in between."""

import pytest
import torch
from conftest import RecordedNoise, natural_power
from samplers import exact

from pds.errors import OptionError
from pds.preconditioning.preconditioner import Identity
from pds.processes.discrete import DiscreteVariancePreserving, beta_schedule
from pds.processes.forward import integration_times
from pds.samplers.predictor_corrector import Ancestral, PredictorCorrector

SCHEDULES = {
    "linear": ("linear", 1e-4, 0.02, 1000),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012, 1000),
    "squaredcos_cap_v2": ("squaredcos_cap_v2", 1e-4, 0.02, 100),
}
CHAINS = [DiscreteVariancePreserving(beta_schedule(*arguments)) for arguments in SCHEDULES.values()]
each_chain = pytest.mark.parametrize("chain", CHAINS, ids=SCHEDULES)


def abar_of(chain):
    return (1 - torch.tensor(chain.betas, dtype=torch.float64)).cumprod(0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_diffusers_has_the_same_levels(name):
    diffusers = pytest.importorskip("diffusers")
    schedule, beta_start, beta_end, levels = SCHEDULES[name]
    theirs = diffusers.DDPMScheduler(levels, beta_start, beta_end, schedule).alphas_cumprod.double()
    ours = abar_of(DiscreteVariancePreserving(beta_schedule(*SCHEDULES[name])))
    # diffusers keeps betas in float32, where 1 - 0.999 has 4 digits.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@each_chain
def test_as_many_iterations_as_levels_are_the_chain(chain):
    t, abar = integration_times(chain, chain.levels), abar_of(chain).flip(0)
    betas = torch.tensor(chain.betas, dtype=torch.float64).flip(0)
    torch.testing.assert_close(chain.scale(t) ** 2, abar, rtol=1e-9, atol=0)
    torch.testing.assert_close(chain.sigma(t), (1 / abar - 1).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(chain.ladder, (1 / abar - 1).sqrt(), rtol=1e-9, atol=0)
    f, variance = chain.steps(t)
    linear, weight, noise = chain.ancestral(t)
    expected = {"variance": betas, "f": (1 - betas).sqrt() - 1, "alpha": 1 - betas}
    expected |= {"linear": 1 / (1 - betas).sqrt() - 1, "weight": betas / (1 - betas).sqrt(), "noise": betas.sqrt()}
    found = {
        "variance": variance,
        "f": f,
        "alpha": chain.corrector_scale(t),
        "linear": linear,
        "weight": weight,
        "noise": noise,
    }
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
    # The rate at a level is that of the step that ends at it.
    torch.testing.assert_close(chain.rates(t)[1] / chain.levels, -(1 - betas).log(), rtol=1e-8, atol=0)


@each_chain
@pytest.mark.parametrize("count", [2, 7, 50, 1500])
def test_a_respaced_chain_has_the_levels_it_visits(chain, count):
    t = integration_times(chain, count)
    abar = (1 - chain.steps(t)[1]).flip(0).cumprod(0).flip(0)
    torch.testing.assert_close(abar, 1 / (1 + chain.sigma(t) ** 2), rtol=1e-9, atol=0)
    if count == 50:
        # Every N / T-th level from the last one on.
        torch.testing.assert_close(abar.flip(0), abar_of(chain)[chain.levels // 50 - 1 :: chain.levels // 50])
    assert chain.levels * t[-1] > 1 - 1e-9


@each_chain
def test_time_and_sigma_are_inverse_and_monotone(chain):
    nodes = torch.arange(1, chain.levels + 1, dtype=torch.float64) / chain.levels
    t = torch.cat([torch.logspace(-6, 0, 60, dtype=torch.float64), nodes]).sort()[0]
    sigma = chain.sigma(t)
    assert (sigma.diff() >= 0).all()
    torch.testing.assert_close(chain.time(sigma), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        chain.levels * chain.time(chain.ladder) - 1, torch.arange(chain.levels).double().flip(0), rtol=0, atol=1e-6
    )


@each_chain
def test_between_two_levels_the_marginals_solve_the_equation_of_their_rates(chain):
    t, h = (torch.arange(chain.levels, dtype=torch.float64)[3:-3] + 0.4) / chain.levels, 1e-7
    f, g2 = chain.rates(t)
    torch.testing.assert_close((chain.scale(t + h) - chain.scale(t - h)) / (2 * h), f * chain.scale(t), rtol=1e-5, atol=1e-7)
    variance = [(chain.scale(at) * chain.sigma(at)) ** 2 for at in (t - h, t, t + h)]
    torch.testing.assert_close((variance[2] - variance[0]) / (2 * h), 2 * f * variance[1] + g2, rtol=1e-5, atol=1e-6)


def test_the_ancestral_sampler_is_that_of_ddpm_on_a_gaussian():
    """Ho et al., Algorithm 2, by the score s: x <- (x + beta s) / sqrt(1 - beta) + sqrt(beta) z."""
    chain, power, target = DiscreteVariancePreserving(beta_schedule("linear", 0.01, 0.4, 20)), natural_power(exact.SIZE), 0.7
    sampler = PredictorCorrector(20, Ancestral(), None)
    mean, variance = exact.exact_moments(sampler, chain, power, target, draws=20)
    expected_mean, expected = torch.zeros(1).double(), torch.ones_like(power)
    abar = abar_of(chain)
    for i in range(19, -1, -1):
        beta, spread = chain.betas[i], abar[i] * power + 1 - abar[i]
        # The mean is the mode of frequency 0.
        pull = (expected_mean - abar[i].sqrt() * target) / spread[0, 0]
        expected_mean = (expected_mean - beta * pull) / (1 - beta) ** 0.5
        expected = (1 - beta / spread) ** 2 / (1 - beta) * expected + (beta if i else 0)
    assert mean == pytest.approx(expected_mean.item(), rel=1e-9)
    torch.testing.assert_close(variance, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("count", [50, 1000])
def test_diffusers_takes_the_same_steps(count):
    diffusers = pytest.importorskip("diffusers")
    chain, sampler = CHAINS[0], PredictorCorrector(count, Ancestral(), None, denoise=False)
    theirs = diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(count)
    shape, seed = (2, 1, 4, 4), torch.Generator().manual_seed(0)
    start, *draws = (torch.randn(shape, generator=seed) for _ in range(count + 1))

    def score(x, sigma):
        # The network predicts tanh(x_t).
        return -(x / (1 + sigma[0] ** 2).sqrt()).tanh() / sigma[0]

    ours = sampler(score, start.double(), sampler.levels(chain), Identity(), RecordedNoise(draws))
    seed.manual_seed(0)
    x = torch.randn(shape, generator=seed)
    for t in theirs.timesteps:
        x = theirs.step(x.tanh(), t, x, generator=seed).prev_sample
        if t == 0:
            # In the last step they leave out the noise.
            x = x + chain.betas[0] ** 0.5 * draws[-1]
    torch.testing.assert_close(ours.float(), x, rtol=1e-3, atol=1e-3)


def test_a_list_of_betas_makes_the_same_chain_as_a_tuple():
    one, other = (DiscreteVariancePreserving(kind([0.1, 0.2])) for kind in (list, tuple))
    assert one == other and hash(one) == hash(other)


def test_betas_that_fall_are_refused():
    with pytest.raises(OptionError, match=r"beta_start must be at most beta_end, got 0\.02 and 0\.0001"):
        beta_schedule("scaled_linear", 0.02, 1e-4, 1000)


@pytest.mark.parametrize("betas", [(0.1,), (0.1, 1.0), (0.1, float("nan"))])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(OptionError, match="betas must be a list of 2 to 100000 numbers above 0 and below 1"):
        DiscreteVariancePreserving(betas)
