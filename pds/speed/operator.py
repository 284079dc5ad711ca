"""The operator of PDS beside the same operator in full complex FFTs, and one iteration of a sampler in parts, for timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.models.scores import Model
from pds.noise import ImageNoise
from pds.preconditioning.filters import Filter
from pds.preconditioning.preconditioner import Identity, Preconditioner, Spectrum, build_preconditioner
from pds.preconditioning.solenoids import Solenoid
from pds.samplers.sampler import Sampler
from pds.score import Score

TOLERANCE = 1e-5  # difference of operator and baseline, in units of the largest value


class ComplexPreconditioner:
    """The baseline: the same P written as full complex FFTs, an axis at a time, with the real part taken at the end.

    The released code has this form. It also goes to pixels and back without a space filter; this detour is left out here.

    Args:
        R, A: filters as in `FourierPreconditioner`; None is 1.
        h, omega: solenoid, likewise.
        device: where to keep the filters.
    """

    def __init__(self, R: Tensor | None, A: Tensor | None, h: Tensor | None, omega: float, device: torch.device) -> None:
        self.inverse_R = 1.0 if R is None else (1 / R).to(device)
        self.inverse_A = None if A is None else (1 / A).to(device)
        self.solenoid = None if h is None else (1j * omega * h).to(device, torch.complex64)

    @staticmethod
    def _dft(x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-2), dim=-1)

    @staticmethod
    def _inverse_dft(spectrum: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.ifft(spectrum, dim=-2), dim=-1)

    def noise(self, z: Tensor) -> Tensor:
        """P z."""
        return self._inverse_dft(self.inverse_R * self._dft(z if self.inverse_A is None else z * self.inverse_A)).real

    def drift(self, f: Tensor, score_part: Tensor | None = None) -> Tensor:
        """P P^T f + omega S f_s."""
        spectrum = self.inverse_R * self._dft(f)
        if self.inverse_A is not None:
            spectrum = self._dft(self.inverse_A**2 * self._inverse_dft(spectrum))
        spectrum = self.inverse_R * spectrum
        if self.solenoid is not None:
            spectrum = spectrum + self.solenoid * self._dft(f if score_part is None else score_part)
        return self._inverse_dft(spectrum).real

    def step(self, x: Tensor, f: Tensor, g: float, z: Tensor, score_part: Tensor | None = None) -> Tensor:
        """x + P P^T f + omega S f_s + g P z."""
        return x + self.drift(f, score_part) + g * self.noise(z)


class RecordedPreconditioner:
    """A preconditioner that records the calls of a sampler, so that another one can be called in the same way."""

    def __init__(self, preconditioner: Preconditioner) -> None:
        self.preconditioner = preconditioner
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def spectrum(self) -> Spectrum | None:
        return self.preconditioner.spectrum

    def stiffness(self) -> tuple[float, float]:
        return self.preconditioner.stiffness()

    def noise(self, *arguments: Any) -> Tensor:
        return self._ask("noise", arguments)

    def drift(self, *arguments: Any) -> Tensor:
        return self._ask("drift", arguments)

    def step(self, *arguments: Any) -> Tensor:
        return self._ask("step", arguments)

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> Tensor:
        self.calls.append((name, arguments))
        return getattr(self.preconditioner, name)(*arguments)

    def replay(self, preconditioner: Preconditioner | ComplexPreconditioner) -> list[Tensor]:
        """The output of another preconditioner."""
        return [getattr(preconditioner, name)(*arguments) for name, arguments in self.calls]


def stand_in_statistics(shape: tuple[int, int, int]) -> DatasetStatistics:
    """Made-up statistics like those of photographs: the cost of a filter does not depend on its values."""
    h, w = (torch.fft.fftfreq(n, 1 / n) for n in shape[1:])
    power = (0.25 * (shape[1] * shape[2]) ** 2 / (1 + h[:, None] ** 2 + w[None, :] ** 2)).expand(shape).clone()
    mean = torch.linspace(0.3, 0.7, power.numel()).reshape(shape)
    return DatasetStatistics("stand-in", power, mean, mean**2)


def largest_difference(record: RecordedPreconditioner, baseline: ComplexPreconditioner) -> float:
    """The largest difference of operator and baseline on the same calls, in units of the baseline's largest value.

    Raises:
        RuntimeError: the difference is above 1e-5, so the timings would be of two different operators.
    """
    # Compare the added terms alone: the state would hide their difference.
    calls = [(name, (torch.zeros_like(a[0]), *a[1:]) if name == "step" else a) for name, a in record.calls]
    pairs = [[getattr(P, name)(*a) for P in (record.preconditioner, baseline)] for name, a in calls]
    worst = max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the operator differs from the full complex FFTs by {worst:.3g} of the largest value")
    return worst


@dataclass(frozen=True)
class Iteration:
    """One iteration of a sampler on a model, at its first noise level.

    Attributes:
        model: the model.
        score: its score on the device, in the chosen precision.
        sampler: the sampler, without the final denoising.
        filter, solenoid: makers of the preconditioner.
        preconditioner: P and S.
        levels: levels of this iteration alone.
        noise: source of its draws.
        x: (batch, C, H, W) state before it.
    """

    model: Model
    score: Score
    sampler: Sampler[Any]
    filter: Filter
    solenoid: Solenoid
    preconditioner: Preconditioner
    levels: Any
    noise: ImageNoise
    x: Tensor

    @classmethod
    def of(
        cls,
        model: Model,
        score: Score,
        sampler: Sampler[Any],
        filter: Filter,
        solenoid: Solenoid,
        batch_size: int,
        device: torch.device,
    ) -> Iteration:
        """The first iteration, with stand-in statistics.

        Raises:
            PDSError: filter and solenoid do nothing, or the sampler cannot sample with them.
        """
        P = build_preconditioner(filter, solenoid, model.shape, lambda: stand_in_statistics(model.shape), device)
        if isinstance(P, Identity):
            raise PDSError("there is no operator to time without a filter and a solenoid: give a filter")
        sampler.check(sampler.levels(model.process), P)
        sampler = sampler.without_denoising()
        noise = ImageNoise(0, torch.arange(batch_size, device=device), model.shape)
        levels, x = sampler.levels(model.process)[:1], sampler.prior(noise, model.process, P)
        return cls(model, score, sampler, filter, solenoid, P, levels, noise, x)

    def __call__(self, preconditioner: Preconditioner) -> Tensor:
        """The state after it."""
        return self.sampler(self.score, self.x, self.levels, preconditioner, self.noise)

    def baseline(self) -> ComplexPreconditioner:
        """P and S in full complex FFTs."""
        shape, device = self.model.shape, self.x.device
        R, A = (make(shape, lambda: stand_in_statistics(shape)) for make in (self.filter.frequency, self.filter.space))
        return ComplexPreconditioner(R, A, self.solenoid.spectrum(shape[1:]), self.solenoid.omega, device)

    def parts(self) -> tuple[dict[str, Callable[[], Any]], float]:
        """The parts to time, by name, and the largest difference of the operator from the baseline, see `largest_difference`.

        Raises:
            PDSError: the sampler takes no filter.
            RuntimeError: the operator differs from the baseline.
        """
        record, baseline = RecordedPreconditioner(self.preconditioner), self.baseline()
        drawn = self.noise.draws
        self(record)
        draws = self.noise.draws - drawn
        if not record.calls:
            raise PDSError("the released code leaves this sampler without a filter, and there is no operator to time")
        sigma = self.x.new_full((len(self.x),), 1.0)
        made: dict[str, Callable[[], Any]] = {
            "network": lambda: self.score(self.x, sigma),
            "vanilla": lambda: self(Identity()),
            "pds": lambda: self(self.preconditioner),
            "operator": lambda: record.replay(self.preconditioner),
            "baseline": lambda: record.replay(baseline),
            "noise": lambda: [self.noise.normal() for _ in range(draws)],
        }
        return made, largest_difference(record, baseline)
