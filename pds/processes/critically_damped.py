"""Critically-damped Langevin diffusion (CLD): noise enters a velocity, and reaches the data through it.

Dockhorn, Vahdat & Kreis, *Score-Based Generative Modeling with Critically-Damped Langevin Diffusion*, ICLR 2022, [CLD] here.
The state u = (x, v) is (batch, 2 C, H, W), data before velocity. With M the mass and Gamma^2 = 4 M, the critical damping,

    dx = v / M beta dt        dv = -(x + Gamma v / M) beta dt + sqrt(2 Gamma beta) dw        v_0 ~ N(0, gamma M)

In the phase y(t) = int_0^t beta / sqrt(M) and the velocity w = v / sqrt(M) no parameter is left:

    dx = w dy                 dw = -(x + 2 w) dy + 2 dw_y

The transition over y is e^-y [[1 + y, y], [-y, 1 - y]], and the stationary law is N(0, I).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NoReturn

import torch
from torch import Tensor

from pds.errors import OptionError, PDSError
from pds.options import Range, options
from pds.processes.forward import Transitions

MOST_PHASE = 60.0  # float32 holds sigma up to this phase
SERIES = 20  # terms of the exponential, exact to rounding up to 2 y = 1
NEWTON = 12
VELOCITY = "choose SSCS, CLDEulerMaruyama or CLDFlow as the sampler"


@options
class CriticallyDamped:
    """CLD with beta linear in t. Given x_0 the data half is m(t) (x_0 + sigma(t) z), so a state has a level sigma here as well.

    The score of this process is the one by the velocity, `score(u, sigma) -> (batch, C, H, W)`. Samplers need no other.

    Attributes:
        beta_0: beta at t = 0.
        beta_1: slope of beta.
        mass: M, the variance of the velocity at t = 1.
        gamma: variance of the initial velocity in units of M.
        numerical_eps: added to the variances of data and velocity in training, as the authors do. Their double precision needs
            it near t = 0.
    """

    title: ClassVar[str] = "CLD"
    label: ClassVar[str] = "t"
    levels: ClassVar[int] = 2000
    """The most steps in [CLD]."""
    prior_std: ClassVar[float] = 1.0

    beta_0: Annotated[float, Range(1e-3, 1e3)] = 4.0
    beta_1: Annotated[float, Range(0, 1e3)] = 0.0
    mass: Annotated[float, Range(1e-4, 1e4)] = 0.25
    gamma: Annotated[float, Range(1e-4, 1)] = 0.04
    numerical_eps: Annotated[float, Range(0, 1e-3)] = 1e-9

    def __post_init__(self) -> None:
        last = (self.beta_0 + self.beta_1 / 2) / math.sqrt(self.mass)
        if last > MOST_PHASE:
            problem = (
                f"must be smaller: float32 cannot hold the noise of a phase (beta_0 + beta_1 / 2) / sqrt(mass) of {last:g}"
            )
            raise OptionError("beta_0", f"{problem}, above {MOST_PHASE:g}")

    def beta(self, t: Tensor) -> Tensor:
        """beta(t)."""
        return self.beta_0 + self.beta_1 * t.double()

    def phase(self, t: Tensor) -> Tensor:
        """y(t)."""
        t = t.double()
        return (self.beta_0 * t + self.beta_1 * t**2 / 2) / math.sqrt(self.mass)

    def scale(self, t: Tensor) -> Tensor:
        y = self.phase(t)
        return (1 + y) * (-y).exp()

    def sigma(self, t: Tensor) -> Tensor:
        y = self.phase(t)
        return self._variance(y).sqrt() / (1 + y)

    def _variance(self, y: Tensor) -> Tensor:
        """e^2y times the variance of x given x_0."""
        return _remainder(y) + self.gamma * y**2

    def time(self, sigma: Tensor) -> Tensor:
        """t(sigma), by Newton's method in log y."""
        sigma = sigma.double()
        y = torch.minimum(sigma / math.sqrt(self.gamma), sigma.log1p() + 2)
        for _ in range(NEWTON):
            variance = self._variance(y)
            slope = y * ((2 * y.expm1() * (y.exp() + 1) - 4 * y + 2 * self.gamma * y) / (2 * variance) - 1 / (1 + y))
            error = variance.sqrt().log() - y.log1p() - sigma.log()
            y = y * (-error / slope).clamp(-1, 1).exp()
        B = y * math.sqrt(self.mass)
        return 2 * B / (self.beta_0 + (self.beta_0**2 + 2 * self.beta_1 * B).sqrt())

    def transition(self, t: Tensor) -> Tensor:
        """(..., 2, 2) mean of (x_t, v_t) as a factor on (x_0, v_0)."""
        y, root = self.phase(t), math.sqrt(self.mass)
        rows = [torch.stack([1 + y, y / root], -1), torch.stack([-y * root, 1 - y], -1)]
        return (-y).exp()[..., None, None] * torch.stack(rows, -2)

    def covariance(self, t: Tensor) -> Tensor:
        """(..., 2, 2) of (x_t, v_t) given x_0, the initial velocity marginalised; without `numerical_eps`."""
        y, root = self.phase(t), math.sqrt(self.mass)
        xx = self._variance(y)
        xw = 2 * y**2 + self.gamma * y * (1 - y)
        ww = (2 * y).expm1() + 2 * y - 2 * y**2 + self.gamma * (1 - y) ** 2
        rows = [torch.stack([xx, root * xw], -1), torch.stack([root * xw, self.mass * ww], -1)]
        return (-2 * y).exp()[..., None, None] * torch.stack(rows, -2)

    def kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2) mean of (x_t, v_t) as a factor on x_0, and the (..., 2, 2) lower Cholesky factor of the covariance, with
        `numerical_eps`. The last entry is 1 / l_t of [CLD], the deviation of v_t given x_t and x_0."""
        covariance = self.covariance(t) + self.numerical_eps * torch.eye(2, dtype=torch.float64, device=t.device)
        x = covariance[..., 0, 0].sqrt()
        both = covariance[..., 0, 1] / x
        v = (covariance[..., 1, 1] - both**2).sqrt()
        rows = [torch.stack([x, torch.zeros_like(x)], -1), torch.stack([both, v], -1)]
        return self.transition(t)[..., 0], torch.stack(rows, -2)

    def data_score(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 3) factors a, b, c of the score by the data, s_x = a s_v + b x + c v; (...,) variance of x_t given v_t and x_0.

        Given x_0, u_t is N(x_0 k, S) with k the mean of `kernel`. So the score is S^-1 (k D - u), D being the expected image.
        s_v gives D, and D gives s_x, exactly.
        """
        mean, root = self.kernel(t)
        inverse = torch.cholesky_inverse(root)
        along = (inverse @ mean[..., None])[..., 0]
        a = along[..., 0] / along[..., 1]
        b, c = (a * inverse[..., 1, i] - inverse[..., 0, i] for i in (0, 1))
        return torch.stack([a, b, c], -1), 1 / inverse[..., 0, 0]

    def _refused(self) -> NoReturn:
        raise PDSError(f"the state of CLD is data and velocity, and this sampler takes data alone: {VELOCITY}")

    @property
    def ladder(self) -> Tensor:
        self._refused()

    def end(self, speed_up: float) -> float:
        self._refused()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        self._refused()

    def steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        self._refused()

    def ancestral(self, t: Tensor) -> Transitions:
        self._refused()

    def corrector_scale(self, t: Tensor) -> Tensor:
        self._refused()


def _remainder(y: Tensor) -> Tensor:
    """e^2y - 1 - 2 y - 2 y^2, without cancellation where y is small."""
    z, series = 2 * y, torch.zeros_like(y)  # of z^k / k! from k = 3 on, over z^2 / 2
    for k in range(SERIES, 2, -1):
        series = (1 + series) * z / k
    return torch.where(z < 1, series * z**2 / 2, z.expm1() - z - z**2 / 2)
