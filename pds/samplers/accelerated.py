"""DDIM and the accelerated deterministic and stochastic samplers of [LI]: Li, Huang, Efimov, Wei, Chi & Chen, ICML 2024.

They are written for a VP state Y_t = sqrt(abar_t) (x_0 + sigma_t z), abar = 1 / (1 + sigma^2), alpha_t = abar_t / abar_{t-1}.
A score depends on sigma alone, so a model of any process has such states. The samplers keep x_t = Y_t / sqrt(abar_t) and the
score S_t(x) = sqrt(abar_t) s_t(Y) of data plus sigma_t noise. With h_t = sigma_t^2 - sigma_{t-1}^2 = (1 - alpha_t) / abar_t the
papers' rules lose their scale factors. The start Y_T ~ N(0, I) becomes x_T = sqrt(1 + sigma_T^2) z.

With `denoise` the last iteration goes to sigma_0 = 0 by the mean of x_0 given x_1, x_1 + sigma_1^2 S_1(x_1). DDIM of order 2
ends there by its own rule. This iteration costs one evaluation.

An order in T holds between fixed ends: set `denoise=False` and a schedule whose end does not move with T:
`ProcessTimes(end)` with a number. The step to 0 is a single step for every T, so its error remains. For data of variance p, the
mean of x_0 is sqrt(p / (p + sigma_1^2)) times the result of the flow. The published end of VP, 1e-3 N / T, has sigma_1^2 in
proportion to 1 / T. With this end the order of denoised images tends to 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from torch import Tensor

from pds.noise import NoiseSource
from pds.options import MOST, Range, options
from pds.preconditioning.preconditioner import Preconditioner
from pds.processes.forward import Process
from pds.processes.schedules import ProcessTimes, Schedule
from pds.samplers.sampler import Sampler, Steps, Task, amplified_noise

if TYPE_CHECKING:
    from typing_extensions import Self


class VPLevel(NamedTuple):
    """Noise levels of one iteration.

    Attributes:
        sigma: sigma_t, of the state before it.
        below: sigma_{t-1}, of the state after it; 0 in the last iteration of `denoise`.
        above: sigma_{t+1}; infinite for a first iteration that does not use it.
    """

    sigma: float
    below: float
    above: float


@options
class VPStateSampler(Sampler[list[VPLevel]]):
    """The common part of samplers of VP states: levels and start.

    Attributes:
        iterations: T.
        schedule: the noise levels.
        denoise: end at sigma = 0, with the mean of x_0; else at the smallest level of the schedule.
    """

    source: ClassVar[str] = "Li et al., ICML 2024"
    levels_above: ClassVar[int] = 0  # levels that the first iteration needs above its own

    iterations: Annotated[int, Range(2, MOST)] = 50
    schedule: Schedule = ProcessTimes()
    denoise: bool = True

    @property
    def detail(self) -> str:
        return self.schedule.detail + ("" if self.denoise else ", noisy end")

    def without_denoising(self) -> Self:
        return replace(self, denoise=False)

    def levels(self, process: Process) -> list[VPLevel]:
        """Noise levels of each of the T iterations."""
        count = self.iterations + self.levels_above + (not self.denoise)
        sigmas = self.schedule.sigmas(process, count).tolist()
        if self.denoise:
            sigmas.append(0.0)
        above = sigmas if self.levels_above else [math.inf, *sigmas]
        sigmas = sigmas[self.levels_above :]
        return [VPLevel(*row) for row in zip(sigmas[:-1], sigmas[1:], above, strict=False)]

    def prior(self, noise: NoiseSource, process: Process, preconditioner: Preconditioner) -> Tensor:
        """x_T = sqrt(1 + sigma_T^2) P z: the prior goes through P, as in the other samplers."""
        return (1 + self.levels(process)[0].sigma ** 2) ** 0.5 * preconditioner.noise(noise.normal())


@options
class DDIM(VPStateSampler):
    """DDIM, and the accelerated sampler of [LI] in its practical form: one evaluation an iteration.

    The noise prediction is e_t = -sqrt(1 - abar_t) s_t(Y) = -sigma_t S_t(x). In the paper's variable gamma = abar the ODE is

        x_{t-1} = x_t - 1/2 int e_gamma / sqrt(gamma^3 (1 - gamma)) dgamma, gamma from abar_t to abar_{t-1}.

    As gamma = 1 / (1 + sigma^2), dgamma / sqrt(gamma^3 (1 - gamma)) = -2 dsigma, and x_{t-1} = x_t + int e dsigma. With e = e_t
    constant (`order` 1) this is DDIM, x_{t-1} = x_t + (sigma_{t-1} - sigma_t) e_t. With `order` 2, e is linear in gamma through
    the last two evaluations: e_t + (gamma - abar_t) d with d = (e_t - e_{t+1}) / (abar_t - abar_{t+1}). This needs one more
    integral, int gamma dsigma = arctan sigma:

        x_{t-1} = x_t + (sigma_{t-1} - sigma_t) e_t + (arctan sigma_{t-1} - arctan sigma_t - abar_t (sigma_{t-1} - sigma_t)) d.

    The first iteration has one evaluation only and is DDIM's.

    Attributes:
        iterations: T.
        order: 1, errors of the ODE fall as 1 / T; 2, as 1 / T^2. Both hold with `denoise=False` and a given end. Errors of
            denoised images stop falling at the order of sigma_1^2 / p, p the variance of the data.
    """

    source: ClassVar[str] = "Song, Meng & Ermon, ICLR 2021, Eq. 12 (order 1); Li et al., ICML 2024, practical form (order 2)"

    stochastic: ClassVar[bool] = False

    order: Literal[1, 2] = 1

    @property
    def title(self) -> str:
        return "DDIM" if self.order == 1 else "accelerated DDIM"

    def walk(self, x: Tensor, task: Task[list[VPLevel]]) -> Steps:
        last = None
        for sigma, below, _ in task.levels:
            gamma, e, step = 1 / (1 + sigma**2), -sigma * task.score(x, sigma), below - sigma
            x = x + step * e
            if self.order == 2 and last is not None:
                weight = (math.atan(below) - math.atan(sigma) - gamma * step) / (gamma - last[0])
                x = x + weight * (e - last[1])
            last = gamma, e
            yield sigma, x


@options
class AcceleratedDeterministic(VPStateSampler):
    """The accelerated deterministic sampler of [LI]: two evaluations an iteration.

        Y-_t    = sqrt(alpha_{t+1}) (Y_t - (1 - alpha_{t+1}) / 2 s_t(Y_t))
        Y_{t-1} = (Y_t + (1 - alpha_t) / 2 s_t(Y_t)
                   + (1 - alpha_t)^2 / (4 (1 - alpha_{t+1})) (s_t(Y_t) - sqrt(alpha_{t+1}) s_{t+1}(Y-_t))) / sqrt(alpha_t)

    Y-_t is a step forward in time, to level t + 1, so the first iteration needs a level above its own. The largest level of the
    schedule serves as this level, and the start is at the second. In x, with a = alpha_{t+1}:

        x-      = x - a h_{t+1} / 2 S_t(x)
        x_{t-1} = x + h_t / 2 S_t(x) + h_t^2 / (4 a h_{t+1}) (S_t(x) - S_{t+1}(x-)),

    Euler's step of dx = -S dsigma^2 / 2, corrected by a difference of S.

    Attributes:
        iterations: T.
        denoise: end at sigma = 0, with the mean of x_0; else at the smallest level of the schedule. Without
            it and with a given end, errors of the ODE fall as 1 / T^2. With it they stop falling at the order of sigma_1^2 / p,
            p the variance of the data.
    """

    title: ClassVar[str] = "accelerated deterministic"

    iterations: Annotated[int, Range(2, MOST)] = 25
    stochastic: ClassVar[bool] = False
    nfe_per_iteration: ClassVar[int] = 2
    levels_above: ClassVar[int] = 1

    @property
    def nfe(self) -> int:
        return 2 * self.iterations - self.denoise

    def walk(self, x: Tensor, task: Task[list[VPLevel]]) -> Steps:
        for sigma, below, above in task.levels:
            s, h, h_above = task.score(x, sigma), sigma**2 - below**2, above**2 - sigma**2
            if below:
                a = (1 + sigma**2) / (1 + above**2)
                forward = x - a * h_above / 2 * s
                x = x + h / 2 * s + h**2 / (4 * a * h_above) * (s - task.score(forward, above))
            else:
                x = x + h * s
            yield sigma, x


@options
class AcceleratedStochastic(VPStateSampler):
    """The accelerated stochastic sampler of [LI]: one evaluation and two draws an iteration. The iteration that denoises draws
    nothing.

        Y+_t    = Y_t + sqrt((1 - alpha_t) / 2) z
        Y_{t-1} = (Y+_t + (1 - alpha_t) s_t(Y+_t) + sqrt((1 - alpha_t) / 2) z+) / sqrt(alpha_t)

    The printed form has z+ outside of the brackets, not divided by sqrt(alpha_t). In x the rule is x+ = x + sqrt(h_t / 2) z and
    x_{t-1} = x+ + h_t S_t(x+) + sqrt(h_t / 2) z+. The printed form has sqrt(alpha_t h_t / 2) z+.

    The exact reverse step from x has the mean x + h S and the variance h (1 + h S'). The step of DDPM has the variance h, a
    relative error of h S'. This step has h / 2 (1 + h S')^2 + h / 2, an error of (h S')^2 / 2. So the law of the whole
    trajectory is off by 1 / T instead of 1 / sqrt(T) (root of the Kullback-Leibler divergence). The printed form has a relative
    error of (1 - alpha_t) / 2 in the variance, and the rate of DDPM.

    A preconditioner acts on both noises, on the prior, and on the drift of the second half with its linear term. The first half
    is Y+ = Y + sqrt((1 - alpha) / 2) P z, the second Y+ + P P^T f + omega S f_s + g P z+. Here f = f_s + (1 / sqrt(alpha) - 1)
    Y+, f_s = (1 - alpha) / sqrt(alpha) s(Y+) and g = sqrt((1 - alpha) / (2 alpha)). As in every predictor, P corrects the
    errors of few steps, and this sampler makes fewer of them. In the limit of many steps only P = I has the law of the data.

    Attributes:
        iterations: T.
        second_noise: "scaled", divided by sqrt(alpha); or "printed".
    """

    title: ClassVar[str] = "accelerated stochastic"
    takes_filter: ClassVar[bool] = True

    second_noise: Literal["scaled", "printed"] = "scaled"

    @property
    def detail(self) -> str:
        return super().detail + ("" if self.second_noise == "scaled" else ", printed noise")

    def check(self, levels: list[VPLevel], preconditioner: Preconditioner) -> list[str]:
        """Warn when the steps amplify the noise of a frequency without data variance."""
        gain = preconditioner.stiffness()[1]
        # On such a mode S = -x / sigma^2, so its variance follows an exact recursion.
        v = gain * (1 + levels[0].sigma ** 2)
        steps = [level for level in levels if level.below]
        if not steps:
            return []
        for level in steps:
            h, root = level.sigma**2 - level.below**2, self._root(level)
            factor = root + gain * (1 - root - h / level.sigma**2)
            v = min(factor**2 * (v + gain * h / 2) + gain * self._second(level) ** 2, 1e200)
        left = v**0.5 / steps[-1].below
        return amplified_noise(len(levels), gain, left, "use more iterations or a weaker filter")

    def _root(self, level: VPLevel) -> float:
        """sqrt(alpha_t)."""
        return ((1 + level.below**2) / (1 + level.sigma**2)) ** 0.5

    def _second(self, level: VPLevel) -> float:
        """Scale of z+ in x."""
        scaled = ((level.sigma**2 - level.below**2) / 2) ** 0.5
        return scaled if self.second_noise == "scaled" else self._root(level) * scaled

    def walk(self, x: Tensor, task: Task[list[VPLevel]]) -> Steps:
        P = task.preconditioner
        for level in task.levels:
            h = level.sigma**2 - level.below**2
            if level.below:
                root = self._root(level)
                x = x + (h / 2) ** 0.5 * P.noise(task.noise.normal())
                drift = h * task.score(x, level.sigma)
                # The linear term of Y is (1 - sqrt(alpha)) x in x, which itself shrinks by sqrt(alpha).
                x = P.step(root * x, (1 - root) * x + drift, self._second(level), task.noise.normal(), drift)
            else:
                x = x + h * task.score(x, level.sigma)
            yield level.sigma, x
