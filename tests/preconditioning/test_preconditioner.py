"""The operator against its definition: dense complex matrices, adjoints, inverses, and refusals."""

import math

import pytest
import torch

from pds.errors import PDSError
from pds.preconditioning.filters import NoFilter, ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity, build_preconditioner
from pds.preconditioning.solenoids import FourierSolenoid, NoSolenoid, ShiftSolenoid

SHAPES = [(2, 8, 8), (1, 7, 9), (1, 6, 11), (3, 28, 28)]


def even_filter(shape, seed=0):
    R = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return 0.5 * (R + torch.roll(R.flip(-2, -1), (1, 1), (-2, -1)))


def space_filter(shape, seed=1):
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def images(shape, seed=2):
    return torch.randn((3, *shape), generator=torch.Generator().manual_seed(seed))


def full_complex(z, R, A):
    """P z as the papers write it: full complex transforms in double precision."""
    spectrum = torch.fft.fft2(z.double() / A) / R
    back = torch.fft.ifft2(spectrum)
    assert back.imag.abs().max() < 1e-6 * back.real.abs().max()
    return back.real


def inner(x, y):
    return (x.double() * y.double()).sum((1, 2, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_half_spectrum_is_the_full_complex_operator(shape):
    R, A, z = even_filter(shape), space_filter(shape), images(shape)
    P = FourierPreconditioner(shape, R, A)
    torch.testing.assert_close(P.noise(z).double(), full_complex(z, R, A), rtol=1e-5, atol=1e-5)
    transposed = torch.fft.ifft2(torch.fft.fft2(z.double()) / R).real / A
    torch.testing.assert_close(P.drift(z).double(), full_complex(transposed, R, A), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_P_inverts_M_and_the_drift_is_its_square(shape):
    R, A, z, y = even_filter(shape), space_filter(shape), images(shape), images(shape, 5)
    P = FourierPreconditioner(shape, R, A)
    M_of_Pz = A * torch.fft.ifft2(R * torch.fft.fft2(P.noise(z).double())).real
    torch.testing.assert_close(M_of_Pz.float(), z, rtol=1e-4, atol=1e-5)
    # <P P^T f, y> = <P^T f, P^T y>: symmetric, and positive.
    torch.testing.assert_close(inner(P.drift(z), y), inner(z, P.drift(y)), rtol=1e-4, atol=1e-3)
    assert (inner(P.drift(z), z) > 0).all()
    # P P^T = (P)(P^T) measured with P alone: <P P^T f, f> = |P^T f|^2 and <P y, z> = <y, P^T z>.
    transposed = torch.fft.ifft2(torch.fft.fft2(z.double()) / R).real / A
    torch.testing.assert_close(inner(P.noise(y), z), inner(y, transposed), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(inner(P.drift(z), z), inner(transposed, transposed), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("space", [None, "pixels"])
def test_one_step_is_the_sum_of_its_parts(space):
    shape = (2, 8, 8)
    x, f, z, s = (images(shape, seed) for seed in range(4))
    P = FourierPreconditioner(
        shape, even_filter(shape), space_filter(shape) if space else None, ShiftSolenoid("S3", 1.0).spectrum((8, 8)), omega=0.7
    )
    torch.testing.assert_close(P.step(x, f, 0.3, z, s), x + P.drift(f, s) + 0.3 * P.noise(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(P.step(x, f, 0.3, z), x + P.drift(f) + 0.3 * P.noise(z), rtol=1e-5, atol=1e-5)


def test_filters_of_one_are_the_identity():
    shape = (1, 8, 8)
    x, f, z = (images(shape, seed) for seed in range(3))
    ones = FourierPreconditioner(shape, torch.ones(shape), torch.ones(shape))
    torch.testing.assert_close(ones.step(x, f, 0.3, z), Identity().step(x, f, 0.3, z), rtol=0, atol=2e-6)
    assert torch.equal(Identity().step(x, f, 0.3, z), x + f + 0.3 * z)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 11), (28, 28)])
@pytest.mark.parametrize("operator", ["S1", "S2", "S3", "spectral"])
def test_solenoids_are_skew_and_not_zero(size, operator):
    h = FourierSolenoid(operator, 1.0).spectrum(size) if operator == "spectral" else ShiftSolenoid(operator, 1.0).spectrum(size)
    S = FourierPreconditioner((1, *size), solenoid=h, omega=1.0)
    x, y = images((1, *size)), images((1, *size), 9)
    Sx, Sy = S.drift(x) - x, S.drift(y) - y
    assert (inner(x, Sx).abs() < 1e-5 * inner(x, x)).all()
    torch.testing.assert_close(inner(Sx, y), -inner(x, Sy), rtol=1e-4, atol=1e-3)
    assert Sx.abs().max() > 0.1


def test_shift_solenoids_are_the_printed_shifts():
    x = images((1, 8, 10)).double()
    for operator, (down, right) in {"S1": (0, 1), "S2": (1, 0), "S3": (1, 1)}.items():
        h = ShiftSolenoid(operator, 1.0).spectrum((8, 10))
        spectral = torch.fft.ifft2(1j * h * torch.fft.fft2(x)).real
        P = torch.roll(x, (down, right), (-2, -1))
        transposed = torch.roll(x, (-down, -right), (-2, -1))
        torch.testing.assert_close(spectral, P - transposed)


def dft_matrix(n):
    k = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * k[:, None] * k[None, :] / n)


def test_the_printed_zero_solenoids_are_zero_by_their_own_definition(caplog):
    n = 6
    F = torch.kron(dft_matrix(n), dft_matrix(n))
    assert (F - F.T).real.abs().max() < 1e-12
    unitary = F / n
    assert (unitary - unitary.conj().T).real.abs().max() < 1e-12
    for operator, shift in {"S4": (0, 1), "S5": (1, 0), "S6": (1, 1)}.items():
        pixels = torch.eye(n * n, dtype=torch.float64).reshape(n * n, n, n)
        P = torch.roll(pixels, shift, (-2, -1)).reshape(n * n, n * n).T.to(F.dtype)
        assert (unitary @ (P - P.T) @ unitary.conj().T).real.abs().max() < 1e-12
        with caplog.at_level("WARNING"):
            assert not ShiftSolenoid(operator, 1.0).spectrum((n, n)).any()
        assert caplog.text.count(f"the solenoid {operator}") == 1
    for form in ("re_f_minus_ft", "re_f_minus_finv"):
        assert not FourierSolenoid(form, 1.0).spectrum((n, n)).any()
    assert caplog.text.count("zero operator") == 5


@pytest.mark.parametrize("region", ["outside_low", "outside_high", "inside_high"])
@pytest.mark.parametrize("size", [(28, 28), (27, 31), (96, 96), (12, 20)])
def test_parametric_filters_are_even_and_on_the_side_they_name(region, size):
    R = ParametricFilter(0.2, 1.6, region).frequency((2, *size))
    FourierPreconditioner((2, *size), R)
    assert sorted(R.unique().tolist()) == pytest.approx([1.0, 1.6])
    dc, nyquist = R[0, 0, 0].item(), R[0, size[0] // 2, size[1] // 2].item()
    assert (dc, nyquist) == pytest.approx(
        {"outside_low": (1.0, 1.6), "outside_high": (1.6, 1.0), "inside_high": (1.0, 1.6)}[region]
    )


def test_parametric_disc_has_radius_sqrt2_r():
    R = ParametricFilter(0.2, 2.0).frequency((1, 100, 100))[0]
    assert R[0, 28] == 1  # sqrt(2) * 20 = 28.28
    assert R[0, 29] == 2
    assert R[20, 20] == 1
    assert R[20, 21] == 2


def test_a_filter_or_solenoid_that_does_nothing_is_the_identity():
    for solenoid in (NoSolenoid(), ShiftSolenoid("S5", 1.0), FourierSolenoid("re_f_minus_ft", 1.0), ShiftSolenoid("S1", 0.0)):
        assert isinstance(build_preconditioner(NoFilter(), solenoid, (1, 8, 8), lambda: None), Identity)
    built = build_preconditioner(NoFilter(), ShiftSolenoid("S1", 0.1), (1, 8, 8), lambda: None)
    assert isinstance(built, FourierPreconditioner)


@pytest.mark.parametrize("operator", ["S1", "S2", "S3"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_shift_of_images_without_a_direction_changes_nothing(operator, size):
    """A cyclic shift by one pixel is its own inverse there, so S = 0 up to the rounding of a sine."""
    P = build_preconditioner(NoFilter(), ShiftSolenoid(operator, 0.5), (1, *size), lambda: None)
    f = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(P.drift(f), f)


def test_stiffness_is_least_between_the_extremes_of_the_space_filter():
    # u = R^-2 A^-2 spans [8, 32] at the mean and [1/2, 2] elsewhere, where turn = 1: u + 1 / u is least at u = 1.
    R, A = torch.tensor([[[0.25, 1.0, 1.0]]]), torch.tensor([[[0.5**-0.5, 1.0, 0.5**0.5]]])
    P = FourierPreconditioner((1, 1, 3), R, A, torch.tensor([[0.0, 1.0, -1.0]]), 1.0)
    assert P.stiffness() == pytest.approx((2, 32))


def test_refusals_name_the_fault():
    shape = (1, 8, 8)
    uneven = torch.ones(shape)
    uneven[0, 1, 2] = 1.5
    cases = [
        (lambda: FourierPreconditioner(shape, uneven), r"even.*asymmetry is 0\.5"),
        (lambda: FourierPreconditioner(shape, torch.ones(1, 8, 9)), r"\(1, 8, 9\).*\(1, 8, 8\)"),
        (lambda: FourierPreconditioner(shape, torch.zeros(shape)), "positive"),
        (lambda: FourierPreconditioner(shape, space=-torch.ones(shape)), "space.*positive"),
        (lambda: FourierPreconditioner(shape, solenoid=torch.ones(8, 8), omega=1.0), "odd"),
        (lambda: FourierPreconditioner(shape, solenoid=torch.full((8, 8), math.nan), omega=1.0), "a solenoid must be finite"),
        (lambda: FourierPreconditioner(shape, solenoid=torch.full((8, 8), math.inf), omega=1.0), "a solenoid must be finite"),
        (lambda: FourierPreconditioner(shape, solenoid="S1", omega=1.0), "a solenoid must be a real tensor of .* got 'S1'"),
        (lambda: FourierPreconditioner(shape, omega=-1.0), "omega"),
        (lambda: FourierPreconditioner(shape, omega=float("nan")), "omega"),
    ]
    for build, says in cases:
        with pytest.raises(PDSError, match=says) as error:
            build()
        assert "\n" not in str(error.value)


def test_the_solenoid_turns_the_way_its_spectrum_says():
    shape, omega = (2, 6, 8), 0.7
    f = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    h = ShiftSolenoid("S3", 1.0).spectrum((6, 8))
    turned = torch.fft.ifft2(1j * omega * h * torch.fft.fft2(f.double())).real
    P = FourierPreconditioner(shape, solenoid=h, omega=omega)
    torch.testing.assert_close(P.drift(f), (f + turned).float())
    torch.testing.assert_close(P.step(f, torch.zeros_like(f), 0.0, f, f), (f + turned).float())
