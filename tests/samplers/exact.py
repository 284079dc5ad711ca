"""Exact means and variances of samplers on Gaussian targets, without random numbers, and a target that is no Gaussian."""

import functools
import itertools
import math

import torch
from conftest import GaussianTarget

from pds.noise import ImageNoise
from pds.preconditioning.preconditioner import Identity

SIZE = 8
SHAPE = (1, SIZE, SIZE)


class Impulses:
    """Draw d is 1 at one pixel of image d and 0 elsewhere; the last image gets no draw.

    It repeats the noise of `pds.evaluation.gaussian.sampled_law` on purpose: the library may not check itself.
    """

    def __init__(self, draws):
        self.total, self.draws = draws, 0

    def normal(self):
        z = torch.zeros(self.total + 1, *SHAPE, dtype=torch.float64)
        z[self.draws, 0, 0, 0] = 1
        self.draws += 1
        return z


def exact_moments(sampler, process, power, mean, draws, preconditioner=Identity(), target=None):
    """(mean, (H, W) variance of every mode) that the sampler has on N(mean, power), which must draw `draws` times.

    On a Gaussian target a sampler is affine in its noise: its responses to impulses, of flat spectrum, add up to its
    covariance.
    """
    noise = Impulses(draws)
    x = sampler.prior(noise, process, preconditioner)
    final = sampler(target or GaussianTarget(power, mean), x, sampler.levels(process), preconditioner, noise)
    assert noise.draws == draws
    return final[-1].mean().item(), modes_of(final)


def modes_of(final):
    """(H, W) variance of every mode, from the answers of an affine sampler to `Impulses`."""
    return torch.fft.fft2((final[:-1] - final[-1:])[:, 0]).abs().square().sum(0)


class MixtureTarget:
    """Three Gaussians in the plane, images of 1 x 1 x 2: the exact score."""

    centres = torch.tensor([[1.0, 0.5], [-0.6, 0.8], [0.2, -1.1]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    variance = 0.09

    def __call__(self, x, sigma):
        v = (self.variance + sigma.square())[:, None]
        away = self.centres - x.flatten(1)[:, None]
        shares = torch.softmax(self.weights.log() - away.square().sum(-1) / (2 * v), dim=1)
        return ((shares[..., None] * away).sum(1) / v).reshape(x.shape)


def measured_orders(sampler, process):
    """[order from 64 to 128 iterations, from 128 to 256] on the mixture down to the smallest level."""
    errors = [(_end(sampler(count + 1), process) - _fine(process)).abs().mean().item() for count in (64, 128, 256)]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def _start(process):
    return process.prior_std * ImageNoise(0, torch.arange(32), (1, 1, 2)).normal().double()


def _end(solver, process):
    return solver(MixtureTarget(), _start(process), solver.levels(process)[:-1], Identity(), None)


@functools.cache
def _fine(process):
    return flow(MixtureTarget(), _start(process), process.ladder[0].item(), process.ladder[-1].item())


def flow(score, x, start, end, steps=300):
    """The probability flow, dx / d log sigma = -sigma^2 s, by Runge-Kutta's fourth order."""
    u, h = math.log(start), math.log(end / start) / steps

    def rate(x, u):
        return -math.exp(2 * u) * score(x, torch.full((len(x),), math.exp(u), dtype=torch.float64))

    for _ in range(steps):
        k1 = rate(x, u)
        k2 = rate(x + h / 2 * k1, u + h / 2)
        k3 = rate(x + h / 2 * k2, u + h / 2)
        k4 = rate(x + h * k3, u + h)
        x, u = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + h
    return x


def ddim(target, x, process, sampler):
    """Song et al., ICLR 2021, Eq. 12 with eta = 0, in the variables of a VP process; the state in sigma-space."""
    sigmas = [level.sigma for level in sampler.levels(process)]
    abar = [1 / (1 + sigma**2) for sigma in sigmas] + [1.0]
    x = abar[0] ** 0.5 * x
    for sigma, now, after in zip(sigmas, abar, abar[1:], strict=False):
        noise = -sigma * target(x / now**0.5, torch.full((len(x),), sigma, dtype=x.dtype))
        x = after**0.5 * (x - (1 - now) ** 0.5 * noise) / now**0.5 + (1 - after) ** 0.5 * noise
    return x
