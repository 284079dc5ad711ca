"""Solenoidal terms S: skew-symmetric operators that leave the stationary law as it is ([IJCV] Eqs. 29, 38, 39).

Every operator here is F^-1 diag(i h) F with h real and odd, so it maps real images to real images and <x, S x> = 0.
Stability is another matter: an explicit step multiplies a Gaussian mode of curvature 1/q by 1 - a (m^2 + i omega h) / q,
so a large omega diverges at any noise level.

The papers print more operators than are not zero. The DFT matrix F is symmetric, so Re[F - F^T] = 0 (Eq. 29), and so is
Re[F - F^-1] under the unitary norm, since both transforms have the real part cos; F (P_i - P_i^T) F^-1 is a purely imaginary
diagonal, so the real parts S_4, S_5, S_6 vanish on real images. They are offered as printed, by `zero_solenoid`.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from pds.errors import PDSError

log = logging.getLogger(__name__)

SHIFTS = {"S1": (0, 1), "S2": (1, 0), "S3": (1, 1)}
PRINTED_ZERO_SHIFTS = ("S4", "S5", "S6")
FOURIER_FORMS = ("spectral", "re_f_minus_ft", "re_f_minus_finv")


def _phase(size: tuple[int, int], pixels: tuple[int, int]) -> Tensor:
    """(H, W) 2 pi <k, pixels>: the phase that a shift by `pixels` gives to each frequency."""
    h, w = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    return 2 * math.pi * (h[:, None] * pixels[0] + w[None, :] * pixels[1])


def shift_solenoid(size: tuple[int, int], operator: str) -> Tensor:
    """h of S_i = P_i - P_i^T, P_i a cyclic shift by one pixel ([IJCV] Eq. 38): h = -2 sin(2 pi <k, shift>).

    Args:
        size: (H, W).
        operator: "S1" (shift along the width), "S2" (along the height), "S3" (along both), or "S4", "S5", "S6", the printed
            real parts of F S_i F^-1 (Eq. 39), which are ZERO on real images: choosing one changes nothing and is logged.

    Returns:
        (H, W) float64, DC at [0, 0].
    """
    if operator in PRINTED_ZERO_SHIFTS:
        return zero_solenoid(size, f"{operator} = Re[F {SHIFTS_OF[operator]} F^-1]")
    if operator not in SHIFTS:
        raise PDSError(f"solenoid.operator must be one of {', '.join((*SHIFTS, *PRINTED_ZERO_SHIFTS))}, got {operator!r}")
    return -2 * torch.sin(_phase(size, SHIFTS[operator]))


SHIFTS_OF = dict(zip(PRINTED_ZERO_SHIFTS, SHIFTS, strict=True))


def fourier_solenoid(size: tuple[int, int], form: str) -> Tensor:
    """h of a solenoid in frequency space.

    Args:
        size: (H, W).
        form: "spectral", the derivative along the diagonal scaled to max |h| = 1 (a true spectral solenoid), or one
            of the printed "re_f_minus_ft" (Re[F - F^T], Eq. 29) and "re_f_minus_finv" (Re[F - F^-1], unitary norm), which
            are ZERO: choosing one changes nothing and is logged.

    Returns:
        (H, W) float64, DC at [0, 0].
    """
    if form not in FOURIER_FORMS:
        raise PDSError(f"solenoid.form must be one of {', '.join(FOURIER_FORMS)}, got {form!r}")
    if form != "spectral":
        return zero_solenoid(size, {"re_f_minus_ft": "Re[F - F^T]", "re_f_minus_finv": "Re[F - F^-1]"}[form])
    phase = _phase(size, (1, 1))
    # A Nyquist frequency is its own mirror image, so an odd h is 0 there.
    for axis, n in enumerate(size):
        if n % 2 == 0:
            phase.select(axis, n // 2).zero_()
    return phase / phase.abs().max().clamp_min(1e-12)


def zero_solenoid(size: tuple[int, int], printed: str) -> Tensor:
    """h = 0: an operator that the papers print and that vanishes on real images; says so in the log."""
    log.warning("the solenoid %s is the zero operator on real images: this run samples without a solenoidal term", printed)
    return torch.zeros(size, dtype=torch.float64)
