"""The scheduler in the real pipeline of diffusers, beside diffusers' own scheduler and beside our sampler."""

import importlib
import sys

import pytest
import torch
from conftest import GaussianTarget, natural_power
from models.test_checkpoints import SKIP, golden_weights

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.models.ncsnpp import ncsnpp
from pds.preconditioning.filters import ParametricFilter, StatisticsFilter
from pds.preconditioning.preconditioner import FourierPreconditioner
from pds.processes.forward import VarianceExploding
from pds.samplers.predictor_corrector import Langevin, PredictorCorrector, ReverseDiffusion

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
from diffusers import DDPMScheduler, ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel  # noqa: E402

from pds.integrations.diffusers import PDSVeScheduler  # noqa: E402

SHAPE, T, SIGMAS = (3, 16, 16), 4, {"sigma_min": 0.02, "sigma_max": 2.0}
PROCESS = VarianceExploding(**SIGMAS, levels=12)
STATISTICS = DatasetStatistics(
    "waves",
    1e3 * natural_power(16).float().expand(SHAPE),
    torch.full(SHAPE, 0.5),
    torch.linspace(0.26, 0.45, 3 * 256).view(SHAPE),
    {"dataset": "waves", "images": 200},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline as diffusers saves it."""
    unet = UNet2DModel.from_config(SKIP.json("config"))
    unet.load_state_dict(dict(golden_weights()))
    folder = tmp_path_factory.mktemp("pipeline")
    ScoreSdeVePipeline(unet.eval(), ScoreSdeVeScheduler(num_train_timesteps=12, **SIGMAS)).save_pretrained(folder)
    STATISTICS.save(folder / "statistics.npz")
    return folder


@pytest.fixture
def pipe(folder):
    pipe = ScoreSdeVePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, batch=3, generator=None):
    """The images, and what the network saw."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda unet, inputs: seen.append(torch.cat([inputs[0].flatten(1), inputs[1][:, None]], 1))
    )
    generator = torch.Generator().manual_seed(3) if generator is None else generator
    images = pipe(batch, T, generator, output_type="np").images
    hook.remove()
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.stack(seen)


class Replayed:
    """The draws of a pipeline that is given the same generator."""

    def __init__(self, shape):
        self.shape, self.generator = shape, torch.Generator().manual_seed(3)

    def normal(self):
        return torch.randn(self.shape, generator=self.generator)


def sample(score, P, corrector, batch=3):
    """The images of our own sampler, clamped as the pipeline does, and what the network saw."""
    seen = []

    def watched(x, sigma):
        seen.append(torch.cat([x.flatten(1), sigma[:, None]], 1))
        return score(x, sigma)

    sampler, noise = PredictorCorrector(T, ReverseDiffusion(), corrector, end=1e-5), Replayed((batch, *SHAPE))
    with torch.no_grad():
        x = sampler(watched, sampler.prior(noise, PROCESS, P), sampler.levels(PROCESS), P, noise)
    return x.clamp(0, 1), torch.stack(seen)


def assert_same_path(path, expected, rtol):
    assert path.shape == expected.shape
    assert ((path - expected).abs() / expected.abs().amax((1, 2), keepdim=True)).max() < rtol


@pytest.mark.parametrize("correct_steps", [0, 2])
def test_without_a_filter_it_is_the_scheduler_of_diffusers(pipe, correct_steps):
    pipe.scheduler = ScoreSdeVeScheduler.from_config(pipe.scheduler.config, correct_steps=correct_steps)
    theirs, path = run(pipe)
    pipe.scheduler, unused = PDSVeScheduler.from_config(pipe.scheduler.config, return_unused_kwargs=True)
    assert all(key.startswith("_") for key in unused)
    ours, our_path = run(pipe)
    assert ((ours > 0) & (ours < 1)).float().mean() > 0.05
    assert len(path) == T * (1 + correct_steps)
    assert_same_path(our_path, path, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)

    # diffusers leaves options that were not given out of a config, and its reader takes its own defaults.
    defaults = {key: value for key, value in ScoreSdeVeScheduler().config.items() if not key.startswith("_")}
    assert defaults.items() <= PDSVeScheduler().config.items()
    one, other = pipe.scheduler, ScoreSdeVeScheduler.from_config(pipe.scheduler.config)
    assert one.init_noise_sigma == other.init_noise_sigma and len(one) == len(other) and one.order == other.order
    for scheduler in (one, other):
        scheduler.set_timesteps(T, sampling_eps=1e-2)
        scheduler.set_sigmas(T, sigma_max=5.0)
    for levels in ("timesteps", "sigmas", "discrete_sigmas"):
        torch.testing.assert_close(getattr(one, levels), getattr(other, levels))
    # The last time is so large that steps start from one level more than once, and do not reach the smallest.
    x, s = torch.rand(2, *SHAPE), torch.rand(2, *SHAPE)
    for scheduler in (one, other):
        scheduler.set_timesteps(T, sampling_eps=0.37)
        scheduler.set_sigmas(T)
    for t in one.timesteps:
        ours, theirs = (each.step_pred(s, t, x, torch.Generator().manual_seed(0)).prev_sample for each in (one, other))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    indices = torch.tensor([0, 3])
    torch.testing.assert_close(one.add_noise(x, x - 1, indices), other.add_noise(x, x - 1, indices))


FILTERS = {
    "statistics": ({"alpha": 3, "pixels": "released"}, StatisticsFilter(3, "released")),
    "parametric": ({"r": 0.2, "lam": 0.9, "region": "inside_high"}, ParametricFilter(0.2, 0.9, "inside_high")),
}


def keys(name, folder):
    return FILTERS[name][0] | ({"statistics": str(folder / "statistics.npz")} if name == "statistics" else {})


def operator(name):
    made = FILTERS[name][1]
    return FourierPreconditioner(SHAPE, made.frequency(SHAPE, lambda: STATISTICS), made.space(SHAPE, lambda: STATISTICS))


@pytest.mark.parametrize(
    ("name", "correct_steps", "norms"), [("statistics", 1, "batch"), ("parametric", 2, "image"), ("statistics", 0, "image")]
)
def test_with_a_filter_it_is_our_sampler(pipe, folder, name, correct_steps, norms):
    vanilla = run(pipe)[1][0]
    config = pipe.scheduler.config
    pipe.scheduler = PDSVeScheduler.from_config(config, correct_steps=correct_steps, norms=norms, **keys(name, folder))
    images, path = run(pipe)
    corrector = Langevin(0.15, correct_steps, norms) if correct_steps else None
    expected, expected_path = sample(lambda x, sigma: pipe.unet(x, sigma).sample, operator(name), corrector)
    assert torch.equal(path, expected_path) and torch.equal(images, expected)
    assert not torch.allclose(path[0], vanilla, rtol=0.01)  # the prior went through P

    options = {"width": 32, "multipliers": [1, 4, 2], "blocks": 1, "attention": [8]}
    model = ncsnpp(SHAPE, PROCESS, **options, output="output_skip", input="input_skip", checkpoint=str(folder))
    assert_same_path(sample(model.score, operator(name), corrector)[1], path, 1e-3)


@pytest.mark.parametrize("name", FILTERS)
def test_pipelines_that_call_step_alone(folder, name):
    scheduler, P = PDSVeScheduler(**SIGMAS, **keys(name, folder)), operator(name)
    score = GaussianTarget(natural_power(16))
    if name == "parametric":
        # Made for other images and another device first: the operator kept for those must not be used for these.
        assert (torch.ones(1, 3, 8, 8) * scheduler.init_noise_sigma).shape == (1, 3, 8, 8)
        assert (torch.ones(1, 3, 16, 16, device="meta") * scheduler.init_noise_sigma).device.type == "meta"
    noise = Replayed((2, *SHAPE))
    x = noise.normal() * scheduler.init_noise_sigma
    scheduler.set_timesteps(T)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        s = score(scheduler.scale_model_input(x, t), sigma.expand(2))
        x = scheduler.step(s, t, x, generator=noise.generator).prev_sample
    assert torch.equal(x.clamp(0, 1), sample(score, P, None, batch=2)[0])
    assert float(scheduler.init_noise_sigma) == 2


def test_a_generator_for_each_image(pipe):
    pipe.scheduler = PDSVeScheduler.from_config(pipe.scheduler.config, r=0.2, lam=0.9, norms="image")
    together = run(pipe, generator=[torch.Generator().manual_seed(i) for i in range(3)])[1]
    alone = run(pipe, 1, [torch.Generator().manual_seed(1)])[1]
    assert_same_path(together[:, 1:2], alone, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(dtype):
    scheduler = PDSVeScheduler(**SIGMAS, r=0.2, lam=0.9)
    scheduler.set_timesteps(T)
    x, s = torch.randn(2, 1, 2, 3, 12, 10).to(dtype)[:, 0]

    def steps(x, s):
        drawn = lambda: torch.Generator().manual_seed(0)  # noqa: E731
        yield x * scheduler.init_noise_sigma
        yield scheduler.step_correct(s, x, drawn()).prev_sample
        yield from scheduler.step_pred(s, scheduler.timesteps[2], x, drawn(), return_dict=False)
        yield from scheduler.step(s, scheduler.timesteps[-1], x, drawn(), return_dict=False)

    for half, full in zip(steps(x, s), steps(x.float(), s.float()), strict=True):
        assert torch.equal(half, full.to(dtype))


def test_it_is_saved_and_loaded_with_its_pipeline(pipe, folder, tmp_path):
    pipe.scheduler = PDSVeScheduler.from_config(pipe.scheduler.config, norms="image", **keys("statistics", folder))
    expected = run(pipe)[0]
    pipe.save_pretrained(tmp_path)
    loaded = ScoreSdeVePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is PDSVeScheduler
    assert loaded.scheduler.to_json_string() == pipe.scheduler.to_json_string()
    assert torch.equal(run(loaded)[0], expected)

    passed = PDSVeScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert type(ScoreSdeVePipeline.from_pretrained(folder, scheduler=passed).scheduler) is PDSVeScheduler
    assert pipe.scheduler.compatibles == [ScoreSdeVeScheduler]
    back = ScoreSdeVeScheduler.from_config(pipe.scheduler.config)
    assert back.config.sigma_max == 2 and PDSVeScheduler.from_config(back.config).config.alpha == 3
    other = PDSVeScheduler.from_config(pipe.scheduler.config, alpha=None, statistics=None, pixels=None, r=0.2, lam=0.9)
    assert other.config.r == 0.2 and other.config.norms == "image"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"alpha": 5, "statistics": "s.npz", "r": 0.2}, "^alpha, statistics make a filter from statistics, r a parametric"),
        ({"alpha": 5}, "needs alpha and statistics .* got only alpha$"),
        ({"pixels": "released"}, "needs alpha and statistics"),
        ({"lam": 0.9, "region": "outside_low"}, "needs r and lam, got only lam, region$"),
        ({"alpha": 0.5, "statistics": "s.npz"}, "alpha must be a number from 1 to"),
        ({"alpha": 5, "statistics": "s.npz"}, "s.npz does not exist: give a statistics file"),
        ({"r": 0.2, "lam": 0.9, "region": "low"}, "region must be one of"),
        ({"norms": "both"}, "norms must be one of image, batch"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma"),
        ({"sampling_eps": 1.0}, "^sampling_eps must be a number at least 1e-09 and below 1"),
        ({"correct_steps": -1}, "correct_steps must be a whole number from 0 to 1000000, got -1$"),
        ({"num_train_timesteps": 1}, "num_inference_steps must be a whole number from 2 to 1000000, got 1$"),
    ],
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(PDSError, match=says):
        PDSVeScheduler(**wrong)


def test_an_option_that_it_does_not_have_is_refused_where_diffusers_would_drop_it(pipe):
    with pytest.raises(PDSError, match=r"aplha is no option of PDSVeScheduler: give alpha, or one of num_train_timesteps"):
        PDSVeScheduler.from_config(pipe.scheduler.config, aplha=2.2, statistics="s.npz")


@pytest.mark.parametrize("config", [{}, DDPMScheduler().config], ids=["empty", "VP"])
def test_the_configuration_of_another_process_is_refused(config):
    with pytest.raises(PDSError, match="not for VE networks"):
        PDSVeScheduler.from_config(config)


def test_wrong_samples_are_refused(folder):
    scheduler = PDSVeScheduler(**keys("statistics", folder))
    with pytest.raises(PDSError, match=r"has the shape \(3, 16, 16\), the model samples images of \(3, 8, 8\)"):
        torch.ones(1, 3, 8, 8) * scheduler.init_noise_sigma
    with pytest.raises(PDSError, match=r"a time in \(0, 1\], one of scheduler.timesteps, got 5"):
        scheduler.step(torch.ones(1, *SHAPE), 5, torch.ones(1, *SHAPE))


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "pds.integrations.diffusers")
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    with pytest.raises(PDSError, match=r"needs diffusers .*: install it with pip install 'pds-lab\[diffusers\]'$"):
        importlib.import_module("pds.integrations.diffusers")
