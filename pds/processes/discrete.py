"""The VP chain of a given number of levels: Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020 (DDPM)."""

from __future__ import annotations

import math
from dataclasses import field
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from pds.errors import OptionError
from pds.options import Length, Range, checked, options
from pds.processes.forward import BetaProcess

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
MOST_LEVELS = 100_000
Levels = Annotated[int, Range(2, MOST_LEVELS)]
OneBeta = Annotated[float, Range(above=0, below=1)]


@checked
def beta_schedule(schedule: BetaSchedule, beta_start: OneBeta, beta_end: OneBeta, levels: Levels) -> tuple[float, ...]:
    """beta_0, ..., beta_{N-1} as diffusers names them, in float64.

    Args:
        schedule: "linear" (DDPM); "scaled_linear", linear in sqrt(beta); or "squaredcos_cap_v2", the cosine of Nichol &
            Dhariwal, ICML 2021. The cosine has no other parameter.
        beta_start, beta_end: first and last beta; the last is at least the first.
        levels: N (num_train_timesteps).

    Raises:
        OptionError: for other values.
    """
    if schedule == "squaredcos_cap_v2":
        abar = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
        return tuple(min(1 - abar[i + 1] / abar[i], 0.999) for i in range(levels))
    if beta_start > beta_end:
        raise OptionError("beta_start", f"must be at most beta_end, got {beta_start:g} and {beta_end:g}")
    power = 2 if schedule == "scaled_linear" else 1
    roots = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), levels, dtype=torch.float64)
    return tuple((roots**power).tolist())


@checked
def discrete_vp(
    schedule: BetaSchedule = "linear", beta_start: OneBeta = 1e-4, beta_end: OneBeta = 0.02, levels: Levels = 1000
) -> DiscreteVariancePreserving:
    """VP of N given levels, by the name of their schedule: DDPM's own, unless another is given.

    Args:
        schedule: as in `beta_schedule`.
        beta_start, beta_end: first and last beta; the cosine has no use for them.
        levels: N.
    """
    return DiscreteVariancePreserving(beta_schedule(schedule, beta_start, beta_end, levels))


@options
class DiscreteVariancePreserving(BetaProcess):
    """VP of N given levels: abar_i = prod_{j <= i} (1 - beta_j), sigma_i = sqrt(1 / abar_i - 1), i = 0, ..., N - 1.

    Level i is at t = (i + 1) / N, and t = 0 is the data. T iterations are at times 1, ..., 1 / T. For T = N they visit all
    levels. For T < N they visit every N/T-th, from the last one on (the "trailing" spacing of diffusers). Samplers also visit
    times between two levels. There B(t) = -log abar is linear, so beta(t) is constant.

    A sampler of T iterations runs the chain respaced to the levels that it visits (Nichol & Dhariwal, ICML 2021, section 4). So
    1 - beta' = abar(t_j) / abar(t_{j+1}), with abar = 1 after the last, for any T.

    Attributes:
        betas: beta_0, ..., beta_{N-1}; see `beta_schedule`.
    """

    label: ClassVar[str] = "Nt-1"

    betas: Annotated[tuple[float, ...], Range(above=0, below=1), Length(2, MOST_LEVELS)] = field(repr=False)
    _on_devices: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def levels(self) -> int:
        return len(self.betas)

    @cached_property
    def _nodes(self) -> Tensor:
        """(N + 1,) B at t = 0, 1 / N, ..., 1."""
        betas = torch.tensor([0.0, *self.betas], dtype=torch.float64)
        return -(-betas).log1p().cumsum(0)

    def _nodes_beside(self, t: Tensor) -> Tensor:
        """`_nodes` on the device of t, copied there once instead of at every evaluation."""
        if t.device not in self._on_devices:
            self._on_devices[t.device] = self._nodes.to(t.device)
        return self._on_devices[t.device]

    @property
    def ladder(self) -> Tensor:
        return self._nodes[1:].flip(0).expm1().sqrt()

    def end(self, speed_up: float) -> float:
        # With more iterations than levels the walk also stops at the smallest level.
        return max(speed_up, 1.0) / self.levels

    def _after(self, t: Tensor) -> Tensor:
        """k = 1, ..., N with (k - 1) / N < t <= k / N; the times of a level may be off by rounding."""
        return (self.levels * t.double() - 1e-9).ceil().long().clamp(1, self.levels)

    def beta(self, t: Tensor) -> Tensor:
        nodes, k = self._nodes_beside(t), self._after(t)
        return self.levels * (nodes[k] - nodes[k - 1])

    def integral(self, t: Tensor) -> Tensor:
        nodes, k = self._nodes_beside(t), self._after(t)
        return nodes[k] + (self.levels * t.double() - k) * (nodes[k] - nodes[k - 1])

    def _inverse_integral(self, B: Tensor) -> Tensor:
        nodes = self._nodes_beside(B)
        k = torch.searchsorted(nodes, B).clamp(1, self.levels)
        return (k + (B - nodes[k]) / (nodes[k] - nodes[k - 1])) / self.levels

    def _betas(self, t: Tensor) -> Tensor:
        B = self.integral(t)
        return -torch.expm1(torch.cat([B[1:], B.new_zeros(1)]) - B)
