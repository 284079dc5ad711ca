"""Solenoidal terms S: skew-symmetric operators that leave the stationary law as it is ([IJCV] Eqs. 29, 38, 39).

Every operator here is F^-1 diag(i h) F with h real and odd, so it maps real images to real images and <x, S x> = 0.
They do not keep a step stable: an explicit one multiplies a Gaussian mode of curvature 1/q by 1 - a (m^2 + i omega h) / q. So
a large omega diverges at any noise level.

Some of the operators that the papers print are zero. The DFT matrix F is symmetric, so Re[F - F^T] = 0 (Eq. 29). Re[F - F^-1] =
0 under the unitary norm, since both transforms have the real part cos. F (P_i - P_i^T) F^-1 is a purely imaginary diagonal, so
the real parts S_4, S_5, S_6 vanish on real images. The zero operators are offered as printed; choosing one logs a warning.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from pds.options import Range, options

log = logging.getLogger(__name__)


class Solenoid(Protocol):
    """A way to make S.

    Attributes:
        omega: its weight beside P P^T, >= 0.
    """

    omega: float

    @property
    def title(self) -> str:
        """Its name in tables; empty for none."""
        ...

    def spectrum(self, size: tuple[int, int]) -> Tensor | None:
        """h of S = F^-1 diag(i h) F: (H, W) float64, real and odd, DC at [0, 0]; None for S = 0."""
        ...


@dataclass(frozen=True)
class NoSolenoid:
    """S = 0."""

    omega = 0.0
    title = ""

    def spectrum(self, size: tuple[int, int]) -> None:
        return None


SHIFTS = {"S1": (0, 1), "S2": (1, 0), "S3": (1, 1)}
ZERO_SHIFTS = {"S4": "S1", "S5": "S2", "S6": "S3"}


Omega = Annotated[float, Range(0, 10_000)]


@options
class ShiftSolenoid:
    """S_i = P_i - P_i^T, P_i a cyclic shift by one pixel ([IJCV] Eq. 38): h = -2 sin(2 pi <k, shift>).

    Attributes:
        operator: "S1" (shift along the width), "S2" (along the height), "S3" (along both), or "S4", "S5", "S6", the printed
            real parts of F S_i F^-1 (Eq. 39). These three are ZERO on real images: choosing one changes nothing, and is logged.
        omega: weight of S beside P P^T ([IJCV] Eq. 29); large values diverge.
    """

    operator: Literal["S1", "S2", "S3", "S4", "S5", "S6"] = "S1"
    omega: Omega = 0.1

    @property
    def title(self) -> str:
        return f"{self.operator} ω={self.omega:g}"

    def spectrum(self, size: tuple[int, int]) -> Tensor:
        if self.operator in ZERO_SHIFTS:
            return _zero(size, f"{self.operator} = Re[F {ZERO_SHIFTS[self.operator]} F^-1]")
        return -2 * torch.sin(_phase(size, SHIFTS[self.operator]))


ZERO_FORMS = {"re_f_minus_ft": "Re[F - F^T]", "re_f_minus_finv": "Re[F - F^-1]"}


@options
class FourierSolenoid:
    """A solenoid in frequency space.

    Attributes:
        form: "spectral", the derivative along the diagonal, scaled to max |h| = 1 (a true spectral solenoid). The printed forms
            "re_f_minus_ft" (Re[F - F^T], Eq. 29) and "re_f_minus_finv" (Re[F - F^-1], unitary norm) are ZERO: choosing one
            changes nothing, and is logged.
        omega: weight of S beside P P^T ([IJCV] Eq. 29); large values diverge.
    """

    form: Literal["spectral", "re_f_minus_ft", "re_f_minus_finv"] = "spectral"
    omega: Omega = 0.1

    @property
    def title(self) -> str:
        return f"{self.form} ω={self.omega:g}"

    def spectrum(self, size: tuple[int, int]) -> Tensor:
        if self.form in ZERO_FORMS:
            return _zero(size, ZERO_FORMS[self.form])
        phase = _phase(size, (1, 1))
        # A Nyquist frequency is its own mirror image. So an odd h is 0 there.
        for axis, n in enumerate(size):
            if n % 2 == 0:
                phase.select(axis, n // 2).zero_()
        return phase / phase.abs().max().clamp_min(1e-12)


def _phase(size: tuple[int, int], pixels: tuple[int, int]) -> Tensor:
    """(H, W) 2 pi <k, pixels>: the phase of a shift by `pixels` at each frequency."""
    h, w = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    return 2 * math.pi * (h[:, None] * pixels[0] + w[None, :] * pixels[1])


def _zero(size: tuple[int, int], printed: str) -> Tensor:
    log.warning("the solenoid %s is the zero operator on real images: this run samples without a solenoidal term", printed)
    return torch.zeros(size, dtype=torch.float64)
