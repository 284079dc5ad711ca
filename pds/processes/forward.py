"""Forward processes: how noise enters the data, x_t = m(t) (x_0 + sigma(t) z) for 0 < t <= 1 ([SDE] sections 3, 4, appendix B).

A score depends on sigma alone (`pds.score`): the score of the state x_t is s(x_t / m, sigma) / m. Coefficients are float64.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from pds.errors import OptionError, PDSError
from pds.options import MOST, Range, checked, options
from pds.processes.ladders import NoiseLevel, geometric_ladder

Time = Annotated[float, Range(1e-9, below=1)]
Beta = Annotated[float, Range(1e-6, 60)]
"""Above this, float32 cannot hold the variance of x_1 / m(1)."""


class Transitions(NamedTuple):
    """One reverse update an iteration, x <- x + linear x + weight s(x) + noise z; (T,) each, from the first iteration on."""

    linear: Tensor
    weight: Tensor
    noise: Tensor


class Process(Protocol):
    """The methods that samplers and training use. Times and coefficients are float64.

    Attributes:
        title: "VE", "VP", "sub-VP" or "CLD".
        label: the noise label of published networks of this process, a key of `pds.models.scores.LABELS`.
        levels: N, the iterations of the published sampler.
        prior_std: standard deviation of x_1.
    """

    title: ClassVar[str]
    label: ClassVar[str]

    @property
    def levels(self) -> int: ...

    @property
    def prior_std(self) -> float: ...

    @property
    def ladder(self) -> Tensor:
        """(N,) sigma of the discrete levels, descending."""
        ...

    def end(self, speed_up: float) -> float:
        """The last time of the published code when it takes `speed_up` times fewer iterations than N."""
        ...

    def scale(self, t: Tensor) -> Tensor:
        """m(t)."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t), increasing."""
        ...

    def time(self, sigma: Tensor) -> Tensor:
        """t(sigma), the inverse of `sigma`."""
        ...

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and g^2 of dx = f(t) x dt + g(t) dw."""
        ...

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and G^2 of the published one-step discretisation, x_{i+1} = x_i + f x_i + G z, at (T,) descending times."""
        ...

    def ancestral(self, t: Tensor) -> Transitions:
        """The exact posterior step of the discrete chain ([SDE] appendix F), at (T,) descending times."""
        ...

    def corrector_scale(self, t: Tensor) -> Tensor:
        """alpha_t, the factor of the Langevin corrector's step ([SDE] Algorithms 4, 5), at (T,) descending times."""
        ...


def noise_range(process: Process) -> tuple[float, float]:
    """(sigma_min, sigma_max) of the discrete levels, in pixel units of the model."""
    ladder = process.ladder
    return ladder[-1].item(), ladder[0].item()


@checked
def integration_times(process: Process, iterations: Annotated[int, Range(2, MOST)], end: Time | None = None) -> Tensor:
    """(T,) times from 1 to `end`, both included; `end` as in the published code for N / T times fewer iterations."""
    published = process.end(process.levels / iterations)
    end = published if end is None else end
    if not 0 < end < 1:
        raise OptionError(
            "end", f"must be given: the published last time of {iterations} iterations would be {end:g}, not below 1"
        )
    return torch.linspace(1, end, iterations, dtype=torch.float64)


def _reached(t: Tensor) -> Tensor:
    """(T,) place of each of T times among T levels, 0 the largest: floor(t (T - 1)) from below, as in the published code.

    They are 0, 1, ..., T - 1 unless the last time is above 1 / (T - 1).
    """
    last = len(t) - 1
    return last - (last * t.double() + 1e-6).floor().long()


@options
class VarianceExploding:
    """VE: m = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t ([SDE] Eq. 30).

    With `levels` = L it is also the ladder of the NCSN family.

    Attributes:
        sigma_min: smallest noise level, in pixel units of the model.
        sigma_max: largest noise level, near the largest distance between two images ([NCSNv2] technique 1).
        levels: N (L), iterations of the published sampler.
    """

    title: ClassVar[str] = "VE"
    label: ClassVar[str] = "sigma"

    sigma_min: NoiseLevel = 0.01
    sigma_max: NoiseLevel = 50.0
    levels: Annotated[int, Range(2, MOST)] = 1000

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise OptionError("sigma_min", f"must be below sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}")

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def ladder(self) -> Tensor:
        return geometric_ladder(self.sigma_max, self.sigma_min, self.levels)

    def end(self, speed_up: float) -> float:
        return 1e-5 * speed_up

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t.double()

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.double() / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2

    def _neighbours(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma_j and sigma_{j-1}. The published code spreads T levels anew, and takes 0 below the smallest."""
        sigmas, level = geometric_ladder(self.sigma_max, self.sigma_min, len(t)), _reached(t)
        return sigmas[level], torch.cat([sigmas[1:], sigmas.new_zeros(1)])[level]

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma, below = self._neighbours(t)
        return torch.zeros_like(t), sigma**2 - below**2

    def ancestral(self, t: Tensor) -> Transitions:
        sigma, below = self._neighbours(t)
        weight = sigma**2 - below**2
        return Transitions(torch.zeros_like(t), weight, (below**2 * weight).sqrt() / sigma)

    def corrector_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class BetaProcess:
    """dx = -beta x / 2 dt + sqrt(beta) dw: m^2 = exp(-B), std^2 = 1 - m^2 with B(t) = int_0^t beta ([SDE] Eqs. 31-33).

    Subclasses differ in beta(t), with B and its inverse, and in the discrete chain of T iterations.
    """

    title: ClassVar[str] = "VP"
    label: ClassVar[str] = "999t"

    @property
    def prior_std(self) -> float:
        return 1.0

    def beta(self, t: Tensor) -> Tensor:
        """beta(t)."""
        raise NotImplementedError

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        raise NotImplementedError

    def _inverse_integral(self, B: Tensor) -> Tensor:
        """t with B(t) = B."""
        raise NotImplementedError

    def _betas(self, t: Tensor) -> Tensor:
        """(T,) beta_j of the discrete chain, descending, at (T,) descending times."""
        raise NotImplementedError

    def scale(self, t: Tensor) -> Tensor:
        return (-self.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return self.integral(t).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self._inverse_integral(sigma.double().square().log1p())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.beta(t) / 2, self.beta(t)

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._betas(t)
        return (1 - beta).sqrt() - 1, beta

    def ancestral(self, t: Tensor) -> Transitions:
        beta = self._betas(t)
        root = (1 - beta).sqrt()
        return Transitions(1 / root - 1, beta / root, beta.sqrt())

    def corrector_scale(self, t: Tensor) -> Tensor:
        return 1 - self._betas(t)


@options
class VariancePreserving(BetaProcess):
    """VP with beta linear in t ([SDE] section 3.4, appendix C).

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        levels: N, iterations of the published sampler.
    """

    beta_min: Beta = 0.1
    beta_max: Beta = 20.0
    levels: Annotated[int, Range(2, MOST)] = 1000

    def __post_init__(self) -> None:
        if self.beta_min > self.beta_max:
            raise OptionError("beta_min", f"must be at most beta_max, got {self.beta_min:g} and {self.beta_max:g}")

    @property
    def ladder(self) -> Tensor:
        return self.sigma(torch.linspace(1, self.end(1.0), self.levels, dtype=torch.float64))

    def end(self, speed_up: float) -> float:
        return 1e-3 * speed_up

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t.double()

    def integral(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _inverse_integral(self, B: Tensor) -> Tensor:
        # This form has no cancellation at small B.
        slope = self.beta_max - self.beta_min
        return 2 * B / (self.beta_min + (self.beta_min**2 + 2 * slope * B).sqrt())

    def _betas(self, t: Tensor) -> Tensor:
        # The published code spreads T levels anew.
        count = len(t)
        if self.beta_max >= count:
            raise OptionError(
                "iterations",
                f"must be above {math.floor(self.beta_max)} for this process: its discrete chain needs beta_max / T = "
                f"{self.beta_max:g} / {count} below 1; the Euler-Maruyama predictor without a corrector takes fewer",
            )
        return torch.linspace(self.beta_max / count, self.beta_min / count, count, dtype=torch.float64)[_reached(t)]


@options
class SubVariancePreserving(VariancePreserving):
    """sub-VP: the drift and scale of VP, std = 1 - m^2 ([SDE] Eq. 29)."""

    title: ClassVar[str] = "sub-VP"

    def sigma(self, t: Tensor) -> Tensor:
        # (1 - m^2) / m with m = exp(-B / 2).
        return 2 * (self.integral(t) / 2).sinh()

    def time(self, sigma: Tensor) -> Tensor:
        return self._inverse_integral(2 * (sigma.double() / 2).asinh())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.beta(t) / 2, -self.beta(t) * (-2 * self.integral(t)).expm1()

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # The published code has no discrete chain for sub-VP, and takes Euler's step.
        drift, diffusion = self.rates(t)
        return drift / len(t), diffusion / len(t)

    def ancestral(self, t: Tensor) -> Transitions:
        raise PDSError("sub-VP has no ancestral step: use the reverse diffusion or the Euler-Maruyama predictor")
