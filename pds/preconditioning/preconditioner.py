"""The preconditioner of PDS: P = F^-1 diag(1/R) F diag(1/A), and the one rule of every preconditioned step.

    x <- x + P P^T f + omega S f_s + g P z                              [ECCV] Eq. 20, [IJCV] Eq. 29

The drift f of the vanilla sampler is the score term times the step size, for VP with the linear term. Its score part is f_s,
and its noise scale g. P = I is the vanilla sampler, so samplers are written once, for any preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pds.errors import PDSError
from pds.options import fitted, shown
from pds.preconditioning.filters import Filter, ImageShape, LazyStatistics
from pds.preconditioning.solenoids import Omega, Solenoid


class Spectrum(NamedTuple):
    """Eigenvalues of an operator that is diagonal in the Fourier plane, one a mode of `rfft2`.

    Attributes:
        gain: of P P^T, 1 / R^2, (C, H, W // 2 + 1) float64; a number where all are one.
        turn: of omega S, without its i, (H, W // 2 + 1) float64; a number where all are one, which is 0.
    """

    gain: float | Tensor
    turn: float | Tensor

    def transforms(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The transforms to the modes and back: `rfft2` and `irfft2`, or identities where the factors are numbers."""
        if isinstance(self.gain, Tensor) or isinstance(self.turn, Tensor):
            size = x.shape[-2:]
            return torch.fft.rfft2, lambda spectrum: torch.fft.irfft2(spectrum, s=size)
        return (lambda x: x), (lambda x: x)


class Preconditioner(Protocol):
    """The operators that a sampler asks for. Images are (batch, C, H, W) float32."""

    def noise(self, z: Tensor) -> Tensor:
        """P z."""
        ...

    def drift(self, f: Tensor, score_part: Tensor | None = None) -> Tensor:
        """P P^T f + omega S f_s; `score_part` is f_s, by default f."""
        ...

    def step(self, x: Tensor, f: Tensor, g: float, z: Tensor, score_part: Tensor | None = None) -> Tensor:
        """x + P P^T f + omega S f_s + g P z."""
        ...

    @property
    def spectrum(self) -> Spectrum | None:
        """The eigenvalues of P P^T and omega S; None with a space filter, which mixes the modes."""
        ...

    def stiffness(self) -> tuple[float, float]:
        """Bounds (lowest, highest) of (m^4 + (omega h)^2) / m^2 over the modes, m^2 the gains of P P^T.

        A Langevin step of size a on a mode of curvature 1/q is stable when a * stiffness < 2 q. Below 2 q / highest every mode
        is stable, above 2 q / lowest no mode is.
        """
        ...


def spectrum_of(preconditioner: Preconditioner, title: str) -> Spectrum:
    """The eigenvalues of P P^T and omega S, for a sampler of this title that cannot do without them."""
    if preconditioner.spectrum is None:
        raise PDSError(f"{title} needs a filter that keeps the frequencies apart: leave the space filter out")
    return preconditioner.spectrum


class Identity:
    """P = I, S = 0: the vanilla sampler, to the bit."""

    spectrum = Spectrum(1.0, 0.0)

    def noise(self, z: Tensor) -> Tensor:
        return z

    def drift(self, f: Tensor, score_part: Tensor | None = None) -> Tensor:
        return f

    def step(self, x: Tensor, f: Tensor, g: float, z: Tensor, score_part: Tensor | None = None) -> Tensor:
        return x + f + g * z

    def stiffness(self) -> tuple[float, float]:
        return 1.0, 1.0


class FourierPreconditioner:
    """P from a frequency filter R, a space filter A and a solenoid S, by half-spectrum FFTs.

    An even R, R(k) = R(-k), makes P a real operator. So `rfft2` computes the papers' complex form exactly at half its cost.

    Args:
        shape: (C, H, W) of the images.
        frequency: R, (C, H, W) positive and even, DC at [0, 0]; None is 1.
        space: A, (C, H, W) positive; None is 1.
        solenoid: h of S = F^-1 diag(i h) F, (H, W) real and odd; None is 0.
        omega: weight of the solenoidal term, >= 0.
        device: where to keep the filters.

    Raises:
        PDSError: for a filter of another shape, not positive or not finite, an uneven R or an h that is not odd.
    """

    def __init__(
        self,
        shape: ImageShape,
        frequency: Tensor | None = None,
        space: Tensor | None = None,
        solenoid: Tensor | None = None,
        omega: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = shape[1:]
        half = shape[-1] // 2 + 1
        R = _checked(frequency, shape, "frequency")
        _check_parity(R, +1, "frequency filter must be even, R(k) = R(-k)")
        A = _checked(space, shape, "space")
        omega = fitted("omega", omega, Omega)
        h = torch.zeros(self.size) if solenoid is None else solenoid
        if not isinstance(h, Tensor) or h.is_complex():
            raise PDSError(f"a solenoid must be a real tensor of the shape {tuple(self.size)}, got {shown(h)}")
        if tuple(h.shape) != tuple(self.size):
            raise PDSError(f"a solenoid for {shape} images must have the shape {tuple(self.size)}, got {tuple(h.shape)}")
        if not h.isfinite().all():
            raise PDSError("a solenoid must be finite")
        _check_parity(h, -1, "solenoid must be odd, h(k) = -h(-k)")
        # Complex, because complex times real is slower: torch converts the real factor at every product.
        self.inverse_R = (1 / R.double())[..., :half].to(torch.complex64).to(device)
        self.inverse_A = None if space is None else (1 / A.double()).float().to(device)
        turn = omega * h.double()
        self.solenoid = (1j * turn[..., :half]).to(torch.complex64).to(device) if turn.abs().max() > 0 else None
        in_one = (_in_one(eigenvalues[..., :half]) for eigenvalues in (R.double() ** -2, turn))
        # On the device: a sampler that asks at every step would copy it there at every step, and wait.
        placed = (value.to(device) if isinstance(value, Tensor) else value for value in in_one)
        self.spectrum = None if space is not None else Spectrum(*placed)
        # The eigenvalues of P P^T lie between those of F^-1 R^-2 F times the extremes of A^-2. The bounds are exact without a
        # space filter. A space filter and a solenoid do not commute, so with both the bounds are estimates.
        gain_R, gain_A = R.double() ** -2, A.double() ** -2
        low, high = gain_R * gain_A.min(), gain_R * gain_A.max()
        # u + turn^2 / u is least at u = |turn|, largest at an end.
        bounds = [u + turn**2 / u for u in (turn.abs().clamp(low, high), low, high)]
        self._stiffness = (bounds[0].min().item(), max(bound.max().item() for bound in bounds))

    def stiffness(self) -> tuple[float, float]:
        return self._stiffness

    # Fresh spectra are overwritten: at 1024x1024 a new one costs as much as the product written to it.

    def _pulled(self, f: Tensor, g: float = 0.0, z: Tensor | None = None) -> Tensor:
        """F A^-1 (P^T f + g z), half spectrum. P has still to divide it by R and transform it back to pixels."""
        spectrum = torch.fft.rfft2(f).mul_(self.inverse_R)
        if self.inverse_A is None:
            return spectrum if z is None else spectrum.add_(torch.fft.rfft2(z), alpha=g)
        pixels = torch.fft.irfft2(spectrum, s=self.size).mul_(self.inverse_A)
        if z is not None:
            pixels.add_(z, alpha=g)
        return torch.fft.rfft2(pixels.mul_(self.inverse_A))

    def _back(self, spectrum: Tensor, score_part: Tensor | None) -> Tensor:
        """F^-1 [spectrum / R + i omega h F f_s]: the last transform carries the solenoidal term along."""
        spectrum.mul_(self.inverse_R)
        if score_part is not None and self.solenoid is not None:
            spectrum.addcmul_(self.solenoid, torch.fft.rfft2(score_part))
        return torch.fft.irfft2(spectrum, s=self.size)

    def noise(self, z: Tensor) -> Tensor:
        return self._back(torch.fft.rfft2(z if self.inverse_A is None else z * self.inverse_A), None)

    def drift(self, f: Tensor, score_part: Tensor | None = None) -> Tensor:
        return self._back(self._pulled(f), f if score_part is None else score_part)

    def step(self, x: Tensor, f: Tensor, g: float, z: Tensor, score_part: Tensor | None = None) -> Tensor:
        # Linearity: P P^T f + g P z = P (P^T f + g z) needs one inverse transform instead of two.
        return self._back(self._pulled(f, g, z), f if score_part is None else score_part).add_(x)


def build_preconditioner(
    filter: Filter, solenoid: Solenoid, shape: ImageShape, statistics: LazyStatistics, device: torch.device | str = "cpu"
) -> Preconditioner:
    """P and S from their makers; `Identity()` where neither does anything.

    Args:
        filter: makes R and A.
        solenoid: makes S.
        shape: (C, H, W) of the images that the model samples.
        statistics: called when the filter needs the statistics of the data set.
        device: where to sample.
    """
    R, A = filter.frequency(shape, statistics), filter.space(shape, statistics)
    h = solenoid.spectrum(shape[1:])
    P = FourierPreconditioner(shape, R, A, h, solenoid.omega, device)
    return Identity() if R is None and A is None and P.solenoid is None else P


def _checked(mask: Tensor | None, shape: ImageShape, name: str) -> Tensor:
    if mask is None:
        return torch.ones(shape)
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise PDSError(f"the {name} filter must be a real tensor of the shape {tuple(shape)}, got {shown(mask)}")
    if tuple(mask.shape) != tuple(shape):
        raise PDSError(
            f"the {name} filter has the shape {tuple(mask.shape)}, the model samples images of {tuple(shape)}: take the "
            "statistics of the data set that the model was trained on"
        )
    if not (torch.isfinite(mask).all() and mask.min() > 0):
        raise PDSError(f"the {name} filter must be positive and finite, its values span {mask.min():g} to {mask.max():g}")
    return mask


def _in_one(values: Tensor) -> float | Tensor:
    """The number that all values equal, if there is one; else the values."""
    first = values.flatten()[0]
    return first.item() if (values == first).all() else values


def _check_parity(values: Tensor, sign: int, rule: str) -> None:
    mirrored = sign * torch.roll(values.flip(-2, -1), (1, 1), (-2, -1))
    asymmetry = (values - mirrored).abs().max().item()
    # A sine of pi is 1e-16, and images of sides 1 and 2 have no other.
    if asymmetry > max(1e-4 * values.abs().max().item(), 1e-12):
        raise PDSError(f"the {rule}, or P would not be a real operator: the largest asymmetry is {asymmetry:.3g}")
