"""Predictor-corrector sampling against the published trajectories and against exact Gaussian recursions."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN, GaussianTarget, Golden, RecordedNoise, natural_power
from models.test_ncsnpp import published
from samplers.exact import Impulses, modes_of

from pds.data.statistics import DatasetStatistics
from pds.errors import OptionError, PDSError
from pds.models.scores import LadderScore, NoisePrediction, ScorePrediction
from pds.noise import ImageNoise
from pds.preconditioning.filters import ParametricFilter, StatisticsFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.preconditioning.solenoids import ShiftSolenoid
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.predictor_corrector import (
    Ancestral,
    AnnealedLangevinSteps,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from pds.score import CountedScore


class Network(torch.nn.Module):
    """The closed-form networks of the golden files, by the rule that each names."""

    def __init__(self, golden, rule, c):
        super().__init__()
        self.golden, self.rule, self.c = golden, rule, c

    def forward(self, x, condition):
        mu = self.golden["mu"]
        if self.rule == "vp":
            return (x - mu) / (self.c + (condition / 999).square()).sqrt()[:, None, None, None]
        s = self.golden["sigma_schedule_descending"].float()[condition] if self.rule == "label" else condition
        return -(x - mu) / (self.c + s.square())[:, None, None, None]


def golden_score(golden, hyper, process):
    about = golden.json("meta")["score"]
    if about["type"] == "network":
        weights = Golden(about["weights_file"].removeprefix("public/").removesuffix(".npz"))
        network = published(weights.json("config"))
        network.load_state_dict(weights.under("w/"))
    else:
        network = Network(golden, about["rule"], about["c"])
    if hyper["sde"] == "vpsde":
        return NoisePrediction(network, process, "999t")
    return ScorePrediction(network, process, "sigma") if hyper["continuous"] else LadderScore(network, process.ladder)


def golden_sampler(hyper):
    flow = hyper["probability_flow"]
    predictor = {
        "reverse_diffusion": ReverseDiffusion(flow),
        "ancestral_sampling": Ancestral(),
        "euler_maruyama": EulerMaruyama(flow),
        "none": None,
    }[hyper["predictor"]]
    corrector = {
        "langevin": Langevin(hyper["snr"], hyper["n_steps_each"], norms="batch"),
        "ald": AnnealedLangevinSteps(hyper["snr"], hyper["n_steps_each"]),
        "none": None,
    }[hyper["corrector"]]
    speed_up = hyper.get("speed_up", 1)
    end = (1e-5 if hyper["sde"] == "vesde" else 1e-3) * speed_up
    return PredictorCorrector(
        int(hyper["num_scales"] / speed_up), predictor, corrector, end, hyper["noise_removal"], precondition="published"
    )


def golden_filters(golden, hyper):
    """R and A of the masks in a golden file, by the library's own filter."""
    shape = tuple(golden.json("meta")["shape"][1:])
    # The released masks are log(1 + E|F x|^2) and E[x^2].
    power, second_moment = (golden.arrays.get(f"mask/{name}_raw", np.ones(shape)) for name in ("freq", "space"))
    moments = [torch.from_numpy(x).float() for x in (np.expm1(power.astype(np.float64)), np.zeros(shape), second_moment)]
    statistics, filter = DatasetStatistics("golden", *moments), StatisticsFilter(hyper.get("alpha", 1), "released")
    made = {"freq": filter.frequency, "space": filter.space}
    return {name: make(shape, lambda: statistics) for name, make in made.items() if f"mask/{name}_raw" in golden.arrays}


def golden_preconditioner(golden, hyper):
    filters = golden_filters(golden, hyper)
    shape = tuple(golden.json("meta")["shape"][1:])
    return FourierPreconditioner(shape, filters.get("freq"), filters.get("space")) if filters else Identity()


CASES = sorted(path.stem for pattern in ("ve_*", "vp_*", "pds_*") for path in (GOLDEN / "sampler").glob(f"{pattern}.npz"))
UNEVEN = "pds_ve_freq_space_asymmetric_mask_analytic"


def test_the_filters_are_those_of_the_released_code():
    compared = 0
    for case in CASES:
        golden = Golden(f"sampler/{case}")
        for name, mask in golden_filters(golden, golden.json("meta")["hyper"]).items():
            torch.testing.assert_close(1 / mask[None], golden[f"mask/{name}_inverse"], rtol=1e-5, atol=0)
            compared += 1
    assert compared == 15


@pytest.mark.parametrize("case", [case for case in CASES if case != UNEVEN])
def test_published_trajectories(case):
    golden = Golden(f"sampler/{case}")
    hyper = golden.json("meta")["hyper"]
    if hyper["sde"] == "vesde":
        process = VarianceExploding(hyper["sigma_min"], hyper["sigma_max"], hyper["num_scales"])
    else:
        process = VariancePreserving(hyper["beta_min"], hyper["beta_max"], hyper["num_scales"])
    sampler, P = golden_sampler(hyper), golden_preconditioner(golden, hyper)
    score = CountedScore(golden_score(golden, hyper, process))
    noise = RecordedNoise(list(golden.under("noise/").values()))
    x = sampler.prior(noise, process, P)
    torch.testing.assert_close(x, golden["x_init"], rtol=0, atol=1e-5 * golden["x_init"].abs().max().item())
    levels, states = sampler.levels(process), []
    with torch.no_grad():
        final = sampler(score, x, levels, P, noise, lambda i, sigma, x: states.append(x))
    key = "pred/x" if sampler.predictor is not None else "corr/x"
    # After the last step our sampler has no noise to remove, so its last state is compared as `final`.
    for state, expected in zip(states[:-1], golden[key][:-1], strict=True):
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
    final = (final + 1) / 2 if hyper["centered"] else final
    torch.testing.assert_close(final, golden["final"], rtol=0, atol=1e-3 * golden["final"].abs().max().item())
    assert score.nfe == len(golden["net/labels"]) == sampler.nfe_per_iteration * sampler.iterations


def test_an_uneven_filter_is_refused():
    golden = Golden(f"sampler/{UNEVEN}")
    with pytest.raises(PDSError, match=r"must be even.*largest asymmetry"):
        golden_preconditioner(golden, golden.json("meta")["hyper"])


SIZE = 8
SHAPE = (1, SIZE, SIZE)
R = ParametricFilter(0.2, 0.85).frequency(SHAPE)
S = ShiftSolenoid("S3", 1.0).spectrum((SIZE, SIZE))
PRECONDITIONERS = {
    "vanilla": (Identity(), torch.ones(SIZE, SIZE, dtype=torch.float64), torch.zeros(SIZE, SIZE)),
    "P": (FourierPreconditioner(SHAPE, R), R[0].double() ** -2, torch.zeros(SIZE, SIZE)),
    "P and S": (FourierPreconditioner(SHAPE, R, solenoid=S, omega=0.3), R[0].double() ** -2, 0.3 * S),
}
VE, VP = VarianceExploding(0.05, 4.0, 100), VariancePreserving(0.1, 6.0, 100)
SUB_VP = SubVariancePreserving(0.1, 6.0, 100)
RULES = [
    (VE, ReverseDiffusion(), None),
    (VE, ReverseDiffusion(), AnnealedLangevinSteps(0.3, 2)),
    (VE, ReverseDiffusion(probability_flow=True), None),
    (VE, Ancestral(), None),
    (VE, EulerMaruyama(), None),
    (VP, ReverseDiffusion(), AnnealedLangevinSteps(0.3)),
    (VP, Ancestral(), None),
    (VP, EulerMaruyama(probability_flow=True), None),
    (SUB_VP, ReverseDiffusion(), None),
    (SUB_VP, EulerMaruyama(), AnnealedLangevinSteps(0.2)),
]


def expected_step(process, predictor, t, T):
    """(linear, weight, noise variance) from the papers' formulas, sigma_j and beta_j written out."""
    if process is VE:
        sigma = 0.05 * 80 ** ((T - 1 - t) / (T - 1))
        below = 0.05 * 80 ** ((T - 2 - t) / (T - 1)) if t < T - 1 else 0.0
        if isinstance(predictor, EulerMaruyama):
            at = 0.05 * 80 ** torch.linspace(1, 1e-5 * 100 / T, T, dtype=torch.float64)[t].item()
            return 0.0, (g2 := at**2 * 2 * torch.tensor(80.0, dtype=torch.float64).log().item() / T), g2
        delta = sigma**2 - below**2
        return 0.0, delta, below**2 * delta / sigma**2 if isinstance(predictor, Ancestral) else delta
    time = torch.linspace(1, 1e-3 * 100 / T, T, dtype=torch.float64)[t].item()
    beta_t = 0.1 + 5.9 * time
    beta = (6.0 - 5.9 * t / (T - 1)) / T
    if isinstance(predictor, Ancestral):
        return (1 - beta) ** -0.5 - 1, beta * (1 - beta) ** -0.5, beta
    if process is VP and isinstance(predictor, ReverseDiffusion):
        return 1 - (1 - beta) ** 0.5, beta, beta
    g2 = beta_t / T
    if process is SUB_VP:
        B = 0.1 * time + 5.9 * time**2 / 2
        g2 *= 1 - torch.tensor(-2 * B).exp().item()
    return beta_t / 2 / T, g2, g2


@pytest.mark.parametrize("name", PRECONDITIONERS)
@pytest.mark.parametrize(("process", "predictor", "corrector"), RULES)
def test_the_variance_of_every_frequency_follows_the_exact_recursion(process, predictor, corrector, name):
    P, m2, turn = PRECONDITIONERS[name]
    power, T = natural_power(SIZE), 10
    sampler = PredictorCorrector(T, predictor, corrector)
    noise = Impulses(1 + T * (1 + (corrector.steps if corrector else 0)))
    x = sampler.prior(noise, process, P)
    final = sampler(GaussianTarget(power), x, sampler.levels(process), P, noise)

    times = torch.linspace(1, process.end(100 / T), T, dtype=torch.float64)
    v = m2 * process.prior_std**2
    for i, t in enumerate(times):
        m, std = process.scale(t), process.scale(t) * process.sigma(t)
        q = m**2 * power + std**2
        if corrector is not None:
            alpha = 1.0 if process is VE else 1 - (6.0 - 5.9 * i / (T - 1)) / T
            a = 2 * alpha * (corrector.snr * std) ** 2
            for _ in range(corrector.steps):
                v = ((1 - a * m2 / q) ** 2 + (a * turn / q) ** 2) * v + 2 * a * m2
        linear, weight, noise_variance = expected_step(process, predictor, i, T)
        if getattr(predictor, "probability_flow", False):
            weight, noise_variance = weight / 2, 0.0
        v = ((1 + m2 * (linear - weight / q)) ** 2 + (turn * weight / q) ** 2) * v
        v = v + m2 * noise_variance * (i < T - 1)
    torch.testing.assert_close(modes_of(final), v, rtol=1e-5, atol=0)


@pytest.mark.parametrize("P", [Identity(), FourierPreconditioner(SHAPE, R)], ids=["vanilla", "P"])
@pytest.mark.parametrize("process", [VE, VP])
def test_many_small_steps_reach_the_data(process, P):
    # The reverse equation ends at the data. With P on drift and noise, a preconditioned equation does so too if a corrector
    # lets every level settle.
    power, T = natural_power(SIZE), 60
    sampler = PredictorCorrector(T, ReverseDiffusion(), AnnealedLangevinSteps(0.25, 4), end=1e-4)
    noise = Impulses(1 + 5 * T)
    final = sampler(GaussianTarget(power), sampler.prior(noise, process, P), sampler.levels(process), P, noise)
    m = process.scale(torch.tensor(1e-4)).item()
    ratio = modes_of(final) / (m**2 * power)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.12)


def test_published_filtering_is_vanilla_where_the_released_code_forgets_the_filter():
    power, P = natural_power(SIZE), FourierPreconditioner(SHAPE, R)
    for predictor, corrector, forgotten in (
        (Ancestral(), None, True),
        (EulerMaruyama(), None, True),
        (None, AnnealedLangevinSteps(0.2), True),
        (ReverseDiffusion(), Langevin(0.2), False),
    ):
        finals = {}
        for name, how, preconditioner in (
            ("vanilla", "everywhere", Identity()),
            ("filtered", "everywhere", P),
            ("published", "published", P),
        ):
            sampler = PredictorCorrector(6, predictor, corrector, precondition=how)
            noise = ImageNoise(2, torch.arange(3), SHAPE)
            x = 4 * noise.normal()
            finals[name] = sampler(GaussianTarget(power), x, sampler.levels(VE), preconditioner, noise)
        assert torch.equal(finals["published"], finals["vanilla" if forgotten else "filtered"])
        assert not torch.allclose(finals["vanilla"], finals["filtered"])


def test_a_ladder_model_and_a_continuous_one_take_either_sampler():
    score, noise = GaussianTarget(natural_power(SIZE)), ImageNoise(0, torch.arange(2), SHAPE)
    for process in (VE, VP, SUB_VP):
        for sampler in (AnnealedLangevin(20, 0.5), PredictorCorrector(20, ReverseDiffusion(), None)):
            levels = sampler.levels(process)
            x = sampler.prior(noise, process, Identity())
            assert torch.isfinite(sampler(score, x, levels, Identity(), noise)).all()


def test_impossible_settings_are_refused():
    with pytest.raises(PDSError, match="needs a predictor, a corrector or both, and has neither"):
        PredictorCorrector(5, None, None)
    with pytest.raises(OptionError, match="precondition must be one of everywhere, published, got 'never'"):
        PredictorCorrector(5, Ancestral(), None, precondition="never")
    with pytest.raises(OptionError, match="norms must be one of image, batch, got 'both'"):
        Langevin(0.1, norms="both")
    for snr, steps, name in ((0.0, 1, "snr"), (0.1, 0, "steps"), (0.1, 10**12, "steps")):
        with pytest.raises(OptionError) as error:
            Langevin(snr, steps)
        assert error.value.name == name
    with pytest.raises(OptionError, match="iterations must be a whole number from 2 to 1000000, got 1"):
        PredictorCorrector(1, Ancestral(), None)
    with pytest.raises(PDSError, match=r"iterations must be above 20 .*beta_max / T = 20 / 12"):
        PredictorCorrector(12, ReverseDiffusion(), None).levels(VariancePreserving())
    with pytest.raises(PDSError, match="no ancestral step"):
        PredictorCorrector(12, Ancestral(), None).levels(SUB_VP)

    hasty = PredictorCorrector(20, None, AnnealedLangevinSteps(1.2))
    assert "is unstable where the data have no variance" in hasty.check(hasty.levels(VE), Identity())[0]
    calm = PredictorCorrector(20, None, AnnealedLangevinSteps(0.5))
    assert calm.check(calm.levels(VE), Identity()) == []

    strong = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.3).frequency(SHAPE))
    for P, T, warned in ((Identity(), 10, False), (strong, 10, True), (strong, 400, False)):
        sampler = PredictorCorrector(T, ReverseDiffusion(), None)
        levels = sampler.levels(VE)
        assert len(sampler.check(levels, P)) == warned
        noise = ImageNoise(0, torch.arange(64), SHAPE)
        flat = GaussianTarget(torch.zeros(SIZE, SIZE))
        left = sampler(flat, sampler.prior(noise, VE, P), levels, P, noise).std().item()
        assert (left > 1) == warned


def test_only_a_predictor_has_a_noisy_end():
    told = [PredictorCorrector(9, predictor, Langevin(), denoise=False).detail for predictor in (ReverseDiffusion(), None)]
    assert ["noisy end" in detail for detail in told] == [True, False]
