"""`PDSScheduler` beside the scheduler of diffusers, beside our sampler, and in pipelines of random weights."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from command_line import command
from conftest import GaussianTarget, natural_power
from PIL import Image

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.sigma_space import Interval

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)

from pds.integrations.diffusers import PDSScheduler, latent_statistics  # noqa: E402

SHAPE = (2, 8, 8)
DISC = ParametricFilter(0.2, 0.8)
TARGET = GaussianTarget(natural_power(8), mean=0.2)


def output(kind, x, sigma):
    """The output for a VP state of a network that knows the Gaussian."""
    now = (1 + sigma**2) ** 0.5
    s = TARGET((now * x).double(), torch.full((len(x),), sigma, dtype=torch.float64)).float()
    noise, image = -sigma * s, now * x + sigma**2 * s
    return {"epsilon": noise, "sample": image, "v_prediction": (noise - sigma * image) / now}[kind]


def path(scheduler, steps, begin=0):
    """The states of a trajectory."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *SHAPE, generator=generator)
    states = []
    for t, sigma in zip(scheduler.timesteps[begin:], scheduler.sigmas[begin:], strict=False):
        x = scheduler.step(output(scheduler.config.prediction_type, x, sigma.item()), t, x, generator=generator).prev_sample
        states.append(x)
    return states


CONFIGS = {
    "noise": {},
    "v, zero terminal SNR": {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    "image, Karras": {"prediction_type": "sample", "use_karras_sigmas": True, "solver_order": 1},
    "cosine, heun": {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "solver_type": "heun"},
    "stable diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading", "steps_offset": 1},
    "thresholding": {"thresholding": True, "use_lu_lambdas": True},
}


@pytest.mark.parametrize("precondition", ["half", "whole"])
@pytest.mark.parametrize("given", CONFIGS.values(), ids=CONFIGS)
def test_without_a_filter_it_is_the_scheduler_of_diffusers(given, precondition):
    theirs = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", final_sigmas_type="zero", **given)
    ours = PDSScheduler.from_config(theirs.config, precondition=precondition)
    for steps, begin in ((5, 0), (18, 4)):
        expected, states = path(theirs, steps, begin), path(ours, steps, begin)
        assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.sigmas, theirs.sigmas)
        for one, other in zip(states, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [{}, {"solver_type": "heun", "eta": 0.5}, {"solver_order": 1, "eta": 3.0}], ids=str)
def test_with_a_filter_it_is_the_preconditioned_reverse_sde(given):
    ours = PDSScheduler(r=0.2, lam=0.8, use_karras_sigmas=True, **given)
    states = path(ours, 7)
    sigmas = ours.sigmas.tolist()
    generator = torch.Generator().manual_seed(0)
    start = (1 + sigmas[0] ** 2) ** 0.5 * torch.randn(3, *SHAPE, generator=generator)

    class Drawn:
        def normal(self):
            return torch.randn(3, *SHAPE, generator=generator)

    weight = "exact" if "solver_type" in given else "midpoint"
    sampler = PreconditionedSDE(7, order=given.get("solver_order", 2), weight=weight, eta=given.get("eta", 1.0))
    levels = [Interval(*ends) for ends in itertools.pairwise(sigmas)]
    P = FourierPreconditioner(SHAPE, DISC.frequency(SHAPE))
    expected = []
    score = lambda x, sigma: TARGET(x.double(), sigma.double()).float()  # noqa: E731
    sampler(score, start, levels, P, Drawn(), lambda iteration, sigma, x: expected.append(x))
    for state, x, (_, below) in zip(states, expected, levels, strict=True):
        torch.testing.assert_close((1 + below**2) ** 0.5 * state, x, rtol=1e-4, atol=1e-4)
    assert (states[-1] - path(PDSScheduler(use_karras_sigmas=True, **given), 7)[-1]).abs().max() > 1e-3


def test_on_the_whole_step_it_is_the_rule_of_pds():
    ours = PDSScheduler(r=0.2, lam=0.8, precondition="whole", solver_order=1)
    theirs = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=1)
    P = FourierPreconditioner(SHAPE, DISC.frequency(SHAPE))
    x, z, e = (torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    torch.testing.assert_close(z * ours.init_noise_sigma, P.noise(z))
    results = []
    for noise in (torch.zeros_like(z), z):
        theirs.set_timesteps(6)
        results.append(theirs.step(e, theirs.timesteps[0], x, variance_noise=noise).prev_sample)
    ours.set_timesteps(6)
    mean, noisy = results
    expected = x + P.drift(mean - x) + P.noise(noisy - mean)
    torch.testing.assert_close(ours.step(e, ours.timesteps[0], x, variance_noise=z).prev_sample, expected, rtol=1e-4, atol=1e-5)


def random(model):
    """A network whose output is not zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def unet():
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    return random(UNet2DModel(sample_size=8, in_channels=2, out_channels=2, **blocks, **sizes))


def vae():
    return random(
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, layers_per_block=1, sample_size=8)
    )


def dit():
    return DiTPipeline(
        random(
            DiTTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=4,
                in_channels=2,
                out_channels=4,
                num_layers=1,
                norm_num_groups=2,
                sample_size=8,
                patch_size=2,
                num_embeds_ada_norm=1000,
            )
        ),
        vae(),
        DDIMScheduler(),
    )


def of_ddpm(pipe):
    return pipe(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images


def of_dit(pipe):
    return pipe([1, 2], 3.0, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images


PIPELINES = {"DDPM": (lambda: DDPMPipeline(unet(), DDPMScheduler()), of_ddpm), "DiT": (dit, of_dit)}


@pytest.mark.parametrize(("make", "sampled"), PIPELINES.values(), ids=PIPELINES)
def test_it_samples_in_pipelines_saves_loads_and_swaps(tmp_path, make, sampled):
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    before = pipe.scheduler.config
    torch.manual_seed(0)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(before, algorithm_type="sde-dpmsolver++")
    theirs = sampled(pipe)
    torch.manual_seed(0)
    pipe.scheduler = PDSScheduler.from_config(before)
    assert abs(sampled(pipe) - theirs).max() < 1e-4
    torch.manual_seed(0)
    pipe.scheduler = PDSScheduler.from_config(pipe.scheduler.config, r=0.2, lam=0.7)
    filtered = sampled(pipe)
    assert abs(filtered - theirs).max() > 1e-3
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, PDSScheduler) and again.scheduler.config.lam == 0.7
    torch.manual_seed(0)
    assert abs(sampled(again) - filtered).max() < 1e-6
    back = type(make().scheduler).from_config(again.scheduler.config).config
    assert all(back[key] == before[key] for key in ("num_train_timesteps", "beta_schedule", "prediction_type"))


def conditional_unet(channels):
    """A network that takes texts of width 8."""
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
    shape = {"sample_size": 8, "in_channels": channels, "out_channels": channels, "cross_attention_dim": 8}
    return random(UNet2DConditionModel(**shape, **blocks, **sizes))


def test_a_conditional_network_with_guidance_of_ones_own():
    network = conditional_unet(2)
    text = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
    latents = {}
    for make, given in (
        (PDSScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (PDSScheduler, {"r": 0.2, "lam": 0.7, "precondition": "whole"}),
    ):
        scheduler, generator = make(beta_schedule="scaled_linear", **given), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(4)
        x = torch.randn(2, *SHAPE, generator=generator) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            with torch.no_grad():
                none, some = network(scheduler.scale_model_input(torch.cat([x] * 2), t), t, text).sample.chunk(2)
            x = scheduler.step(none + 3 * (some - none), t, x, generator=generator).prev_sample
        latents[f"{make.__name__} {given}"] = x
    ours, theirs, whole = latents.values()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert whole.isfinite().all() and (whole - ours).abs().max() > 0.01


def test_in_the_pipeline_of_stable_diffusion():
    pipe = diffusers.StableDiffusionPipeline(
        vae(), None, None, conditional_unet(2), PNDMScheduler(steps_offset=1), None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    some, none = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(1))

    def sampled(make, **given):
        pipe.scheduler = make.from_config(pipe.scheduler.config, **given)
        generator = torch.Generator().manual_seed(0)
        texts = {"prompt_embeds": some, "negative_prompt_embeds": none, "guidance_scale": 3.0}
        return pipe(height=8, width=8, num_inference_steps=4, generator=generator, output_type="latent", **texts).images

    theirs, ours = sampled(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"), sampled(PDSScheduler)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for given in ({"r": 0.2, "lam": 0.7}, {"precondition": "whole"}):
        filtered = sampled(PDSScheduler, **given)
        assert filtered.isfinite().all() and (filtered - ours).abs().max() > 0.01


REFUSED = {
    "flow matching": (diffusers.FlowMatchEulerDiscreteScheduler, {}, {}, "this scheduler is for a flow-matching network"),
    "flow sigmas": (
        DPMSolverMultistepScheduler,
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {},
        "this scheduler is for a flow-matching network",
    ),
    "VE": (diffusers.ScoreSdeVeScheduler, {}, {}, "this scheduler is not for VP networks"),
    "EDM": (diffusers.EDMEulerScheduler, {}, {}, "this scheduler is not for VP networks"),
    "labels of EDM": (
        diffusers.EulerDiscreteScheduler,
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {},
        "this scheduler has timestep_type=continuous: give that of a network whose labels are the levels of its betas",
    ),
    "shifted chain": (
        diffusers.CogVideoXDDIMScheduler,
        {},
        {},
        "this scheduler has snr_shift_scale=3.0: give that of a network",
    ),
    "prediction": (DDPMScheduler, {}, {"prediction_type": "x"}, "prediction_type must be epsilon, v_prediction or sample"),
    "order": (DDPMScheduler, {}, {"solver_order": 3}, "solver_order must be one of 1, 2, got 3"),
    "schedule": (DDPMScheduler, {"beta_schedule": "sigmoid"}, {}, "beta_schedule must be one of linear, .*give trained_betas"),
    "beta": (DDPMScheduler, {}, {"beta_end": 2.0}, "beta_end must be a number above 0 and at most 1, got 2.0"),
    "no beta": (DDPMScheduler, {}, {"beta_start": None}, "beta_start must be a number above 0 and at most 1, got None"),
    "betas": (
        DDPMScheduler,
        {},
        {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2},
        "the betas must be above 0 and at most 1, and these go from 0.1 to 2",
    ),
    "no betas": (DDPMScheduler, {}, {"trained_betas": []}, r"trained_betas must be a list of 1 to 1000000 numbers, got \[\]"),
    "betas for some levels": (
        DDPMScheduler,
        {},
        {"trained_betas": [0.1, 0.2]},
        "num_train_timesteps must be at most 2, the number of trained_betas, got 1000",
    ),
    "no levels": (DDPMScheduler, {}, {"num_train_timesteps": 0}, "num_train_timesteps must be a whole number from 1 to"),
    "half a level": (
        DDPMScheduler,
        {},
        {"num_train_timesteps": 10.5},
        "num_train_timesteps must be a whole number .* got 10.5",
    ),
    "weight": (DDPMScheduler, {}, {"solver_type": "exact"}, "solver_type must be midpoint or heun, got 'exact'"),
    "spacing": (
        DDPMScheduler,
        {},
        {"timestep_spacing": "foo"},
        "timestep_spacing must be one of linspace, leading, trailing, got",
    ),
    "two kinds of levels": (
        DDPMScheduler,
        {},
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "use_karras_sigmas and use_beta_sigmas cannot both be true: give one of them",
    ),
    "eta": (DDPMScheduler, {}, {"eta": math.nan}, "eta must be a number from 0 to 1000, got nan"),
    "eta of PDS": (DDPMScheduler, {}, {"precondition": "whole", "eta": 2.0}, "eta must be 1 with precondition=whole"),
    "eta without a Langevin half": (
        DDPMScheduler,
        {},
        {"eta": 0, "r": 0.2, "lam": 0.5},
        "eta must be above 0 with a filter, got 0: the filter acts on the Langevin half, which eta=0 leaves out",
    ),
    "precondition": (DDPMScheduler, {}, {"precondition": "some"}, "precondition must be one of half, whole, got 'some'"),
    "misspelt": (DDPMScheduler, {}, {"alhpa": 5.0}, "alhpa is no option of PDSScheduler: give alpha, or one of"),
    "half a filter": (DDPMScheduler, {}, {"alpha": 2.0}, "a filter from statistics needs alpha and statistics"),
    "statistics": (
        DDPMScheduler,
        {},
        {"alpha": 2.0, "statistics": ["s.npz"]},
        r"statistics must be the path of a file, got a list: save it by its save\(path\), and give that path",
    ),
    "two filters": (DDPMScheduler, {}, {"alpha": 2.0, "r": 0.2}, "give one kind"),
}


@pytest.mark.parametrize(("other", "theirs", "given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_take_the_place_of_is_refused(other, theirs, given, message):
    with pytest.raises(PDSError, match=message):
        PDSScheduler.from_config(other(**theirs).config, **given)


def test_as_many_steps_as_levels_of_training_need_a_spacing_that_has_them():
    scheduler = PDSScheduler(num_train_timesteps=20)
    for wrong in (0, -3, 2.5):
        with pytest.raises(PDSError, match=f"num_inference_steps must be a whole number from 1 to .*, got {wrong}"):
            scheduler.set_timesteps(wrong)
    with pytest.raises(PDSError, match="timesteps must descend: two of them are equal, or one is above the one before it"):
        scheduler.set_timesteps(timesteps=[5, 9])
    for wrong in ([20, 5, 1], [9, 5, -1]):
        with pytest.raises(PDSError, match="timesteps must be from 0 to 19, the levels of training, got"):
            scheduler.set_timesteps(timesteps=wrong)
    scheduler.set_timesteps(timesteps=[19, 5, 0])
    scheduler.set_timesteps(19)
    with pytest.raises(PDSError, match=r"num_inference_steps is 20, and two of these steps have one noise level: give fewer"):
        scheduler.set_timesteps(20)
    PDSScheduler(num_train_timesteps=20, timestep_spacing="trailing").set_timesteps(20)
    leading = {"timestep_spacing": "leading", "steps_offset": 100}
    # diffusers rounds the first of these to a 62nd step.
    for given, most, steps, outside in (({"timestep_spacing": "trailing"}, 62, 61, -1), (leading, 8, 9, 1000)):
        scheduler = PDSScheduler(**given)
        scheduler.set_timesteps(most)
        says = f"num_inference_steps is {steps}, and one of these steps is at {outside}, not from 0 to 999: give another number"
        with pytest.raises(PDSError, match=says):
            scheduler.set_timesteps(steps)


@pytest.mark.parametrize("levels", ["karras", "exponential", "beta"])
def test_a_walk_begins_at_its_first_level_though_the_next_has_the_same_timestep(levels):
    scheduler = PDSScheduler(beta_schedule="squaredcos_cap_v2", **{f"use_{levels}_sigmas": True})
    scheduler.set_timesteps(20)
    first, second = scheduler.timesteps[:2]
    assert first == second
    x = torch.zeros(1, *SHAPE)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    assert scheduler.step_index == 20
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(1)  # as image-to-image pipelines do
    scheduler.step(x, second, x)
    assert scheduler.step_index == 2


def test_a_file_of_another_scheduler_is_refused_by_its_name(tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(PDSError, match="FlowMatchEulerDiscreteScheduler is for a flow-matching network"):
        PDSScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DDIM"])
def test_the_chain_is_the_others_also_where_that_has_its_defaults(name):
    theirs = getattr(diffusers, f"{name}Scheduler")()
    assert torch.equal(PDSScheduler.from_config(theirs.config).betas, theirs.betas)
    given = PDSScheduler.from_config(theirs.config, beta_start=0.001).config
    assert (given.beta_start, given.beta_end, given.timestep_spacing) == (0.001, theirs.config.beta_end, "linspace")


def test_the_third_order_of_others_becomes_the_second():
    assert PDSScheduler.from_config(DPMSolverMultistepScheduler(solver_order=3).config).config.solver_order == 2


def test_it_keeps_its_own_solver_where_a_file_states_another(tmp_path):
    theirs = diffusers.UniPCMultistepScheduler(beta_schedule="scaled_linear").config | {
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "sigma_min",
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(theirs))
    expected = path(PDSScheduler(beta_schedule="scaled_linear"), 5)
    for made in (PDSScheduler.from_config(theirs), PDSScheduler.from_pretrained(tmp_path)):
        assert torch.equal(path(made, 5)[-1], expected[-1])


def test_statistics_of_latents_are_of_the_pipelines_own_vae(tmp_path):
    made, size = vae(), (8, 8)
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.effect_noise(size, 60 + i).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    made.save_pretrained(tmp_path / "vae")
    done = command("tools/latents.py", str(tmp_path), str(tmp_path / "images"), str(tmp_path / "latents.npz"))
    assert done.returncode == 0, done.stderr
    statistics = DatasetStatistics.load(tmp_path / "latents.npz")
    assert (statistics.shape, statistics.provenance["images"]) == ((2, 8, 8), 3)
    files = sorted((tmp_path / "images").iterdir())
    x = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]) / 127.5 - 1
    law = made.encode(x[np.random.default_rng(0).choice(3, 3, replace=False)]).latent_dist
    z = law.sample(torch.Generator().manual_seed(0)).detach()  # scaled or not, which their ends take away
    expected = torch.fft.fft2((z - z.min()) / (z.max() - z.min())).abs().square().mean(0)
    torch.testing.assert_close(statistics.power, expected, rtol=0.05, atol=0.01)  # 8 bits
    with pytest.raises(PDSError, match="the VAE takes images of 3 channels, and these have 1"):
        latent_statistics(made, torch.rand(2, 1, 8, 8))
    for name in ("count", "batch_size"):
        with pytest.raises(PDSError, match=f"^{name} must be"):
            latent_statistics(made, torch.rand(2, 3, 8, 8), **{name: 0})
    pipe = dit()
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda *inputs: calls.append(1))
    pipe.scheduler = PDSScheduler.from_config(pipe.scheduler.config, alpha=2.0, statistics="asset:mnist_statistics.npz")
    with pytest.raises(PDSError, match="the frequency filter has the shape"):
        of_dit(pipe)
    assert not calls
    pipe.scheduler = PDSScheduler.from_config(DDIMScheduler().config, alpha=2.0, statistics=str(tmp_path / "latents.npz"))
    assert of_dit(pipe).shape == (2, 8, 8, 3) and calls


def test_a_filter_refuses_samples_that_are_no_batch_of_images():
    scheduler = PDSScheduler(r=0.2, lam=0.9)
    scheduler.set_timesteps(4)
    with pytest.raises(PDSError, match=r"a filter takes samples of the shape \(batch, C, H, W\), got \(1, 4, 8, 6, 6\)"):
        scheduler.scale_model_input(torch.zeros(1, 4, 8, 6, 6), 999)
