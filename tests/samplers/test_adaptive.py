"""Adaptive steps against Algorithm 1 written out for one image, and the Gaussian that they must reach."""

import pytest
import torch
from conftest import GaussianTarget, mode_variance, natural_power
from samplers.exact import SHAPE, SIZE

from pds.errors import PDSError
from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity
from pds.processes.forward import VarianceExploding, VariancePreserving
from pds.samplers.adaptive import AdaptiveSDE
from pds.score import CountedScore

VE, VP = VarianceExploding(0.01, 50.0, 100), VariancePreserving(0.1, 20.0, 100)
TARGET = GaussianTarget(natural_power(SIZE) / 4, 0.4)


class CountedImages:
    """A target that counts its evaluated images, not its batches."""

    def __init__(self):
        self.images = 0

    def __call__(self, x, sigma):
        self.images += len(x)
        return TARGET(x, sigma)


def algorithm_1(x, normal, eps_rel, eps_abs):
    """One image, with the drift -g^2 s of the reverse VE SDE; also its attempts and how many were rejected."""
    score = lambda x, t: TARGET(x, torch.tensor([0.01 * 5000**t], dtype=torch.float64))  # noqa: E731
    g = lambda t: 0.01 * 5000**t * (2 * torch.tensor(5000.0, dtype=torch.float64).log().item()) ** 0.5  # noqa: E731
    t, h, x_prev, attempts, rejected = 1.0, 0.01, x, 0, 0
    while t > 0:
        z = normal()
        attempts += 1
        x1 = x + h * g(t) ** 2 * score(x, t) + h**0.5 * g(t) * z
        x2 = x + h * g(t - h) ** 2 * score(x1, t - h) + h**0.5 * g(t - h) * z
        new = (x1 + x2) / 2
        delta = torch.maximum(torch.tensor(eps_abs), eps_rel * torch.maximum(x1.abs(), x_prev.abs()))
        E = ((x1 - new) / delta).norm().item() / x.numel() ** 0.5
        if E <= 1:
            x, x_prev, t = new, x1, t - h
        else:
            rejected += 1
        h = min(t, 0.9 * h * E**-0.9)
    return x + 0.01**2 * score(x, 0.0), attempts, rejected


class Double(ImageNoise):
    def normal(self):
        return super().normal().double()


def test_every_image_follows_algorithm_1_whatever_its_neighbours():
    sampler, indices, counted = AdaptiveSDE(500, eps_rel=0.05), [3, 8, 11], CountedImages()
    noise, states = Double(2, torch.tensor(indices), SHAPE), []
    x = sampler.prior(noise, VE, Identity())
    calls = CountedScore(counted)
    final = sampler(calls, x, sampler.levels(VE), Identity(), noise, lambda i, sigma, x: states.append(sigma))
    attempts, rejected = [], 0
    for row, index in enumerate(indices):
        own = Double(2, torch.tensor([index]), SHAPE)
        expected, tried, failed = algorithm_1(50 * own.normal(), own.normal, 0.05, 0.0039)
        torch.testing.assert_close(final[row : row + 1], expected, rtol=0, atol=1e-8)
        attempts.append(tried)
        rejected += failed
    # There are rejections, images differ in their steps, and images that have arrived are not evaluated.
    assert rejected > 0
    assert len(set(attempts)) > 1
    assert counted.images == 2 * sum(attempts) + len(indices)
    assert calls.nfe == 2 * max(attempts) + 1
    assert noise.draws == 1 + max(attempts)
    assert len(states) == max(attempts)
    assert states == sorted(states, reverse=True)
    assert states[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("process", [VE, VP], ids=["VE", "VP"])
def test_a_small_tolerance_reaches_the_data(process):
    images, sampler = 800, AdaptiveSDE(2000, eps_rel=0.05)
    noise = ImageNoise(3, torch.arange(images), SHAPE)
    final = sampler(TARGET, sampler.prior(noise, process, Identity()), sampler.levels(process), Identity(), noise)
    ratio = mode_variance(final - 0.4) / TARGET.power
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.05 + 5 * (2 / images) ** 0.5)
    assert final.mean().item() == pytest.approx(0.4, abs=5 * (TARGET.power[0, 0].item() / SIZE**2 / images) ** 0.5 + 0.01)


def test_images_that_do_not_arrive_are_told():
    sampler, noise = AdaptiveSDE(20), ImageNoise(0, torch.arange(3), SHAPE)
    with pytest.raises(PDSError, match=r"3 of 3 images have not arrived after 20 attempts: allow more iterations"):
        sampler(TARGET, sampler.prior(noise, VE, Identity()), sampler.levels(VE), Identity(), noise)


def test_what_is_not_finite_is_told_at_once():
    def broken(x, sigma):
        return torch.full_like(x, torch.nan)

    def stop(iteration, sigma, x):
        assert iteration == 0
        raise PDSError("not finite" if x.isnan().all() else "finite")

    sampler, noise = AdaptiveSDE(20), ImageNoise(0, torch.arange(2), SHAPE)
    with pytest.raises(PDSError, match="not finite"):
        sampler(broken, sampler.prior(noise, VE, Identity()), sampler.levels(VE), Identity(), noise, stop)
