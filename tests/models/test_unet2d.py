"""DDPM networks as diffusers saves them: the score, the chain, and wrong folders."""

import json
import logging
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from pds.errors import PDSError
from pds.files import sha256
from pds.models.checkpoints import Checkpoint
from pds.models.scores import DataPrediction
from pds.models.unet2d import unet2d

SHAPE = [1, 8, 8]
CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": None,
    "norm_num_groups": 4,
}
DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
DDPM |= {"num_train_timesteps": 1000}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def unet():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel.from_config(CONFIG).eval()


def saved(folder, state, scheduler=DDPM, **config):
    """The files of `save_pretrained`: of the pipeline, or of the network alone."""
    network = folder / "unet" if scheduler else folder
    network.mkdir(parents=True, exist_ok=True)
    (network / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(state, network / WEIGHTS)
    if scheduler:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return str(folder)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_score_at_the_levels_of_the_chain(tmp_path, unet, prediction):
    model = unet2d(SHAPE, saved(tmp_path, unet.state_dict(), DDPM | {"prediction_type": prediction}))
    labels = torch.tensor([0, 1, 250, 999])
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[labels].float()[:, None, None, None]
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))  # x_t = sqrt(abar) x
    x, sigma = noisy / abar.sqrt(), (1 / abar - 1).sqrt()
    with torch.no_grad():
        output = unet(noisy, labels).sample
        found = model.score(x, model.process.ladder[999 - labels].float())
    denoised = {
        "epsilon": x - sigma * output,
        "v_prediction": abar.sqrt() * noisy - (1 - abar).sqrt() * output,
        "sample": output,
    }
    torch.testing.assert_close(sigma**2 * found, denoised[prediction] - x, rtol=1e-3, atol=1e-4)
    assert (model.shape, model.data_range, model.process.title) == ((1, 8, 8), (-1, 1), "VP")
    if prediction == "epsilon":
        torch.testing.assert_close(found, -output / sigma, rtol=1e-4, atol=1e-4)


def test_between_two_levels_the_network_sees_a_label_between(tmp_path, unet):
    model = unet2d(SHAPE, saved(tmp_path, unet.state_dict()))
    labels = []
    model.score.network.unet.register_forward_pre_hook(lambda module, arguments: labels.append(arguments[1]))
    t = torch.tensor([100.25, 500.75], dtype=torch.float64) / 1000
    with torch.no_grad():
        model.score(torch.zeros(2, *SHAPE), model.process.sigma(t).float())
    torch.testing.assert_close(labels[0], torch.tensor([99.25, 499.75]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("part", ["", "unet", f"unet/{WEIGHTS}"])
def test_every_way_to_name_a_folder(tmp_path, unet, part, caplog):
    caplog.set_level(logging.INFO)
    saved(tmp_path, unet.state_dict(), DDPM | {"beta_end": 0.03})
    path = tmp_path / "unet" / WEIGHTS
    if part == "unet":
        # Early pipelines have all their files in one folder.
        (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "unet" / "scheduler_config.json")
    model = unet2d(SHAPE, str(tmp_path / part))
    assert not any(module.training for module in model.score.network.unet.modules())
    assert model.checkpoint == Checkpoint("diffusers", None, path, sha256(path))
    assert model.process.betas[-1] == pytest.approx(0.03)
    assert "from its scheduler_config.json: linear betas from 0.0001 to 0.03, N = 1000; it predicts epsilon" in caplog.text
    for name, value in model.score.network.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name]), name


def test_a_folder_without_a_scheduler_takes_the_configuration(tmp_path, unet, caplog):
    caplog.set_level(logging.INFO)
    path = saved(tmp_path / "model", unet.state_dict(), scheduler=None)
    assert unet2d(SHAPE, path).process.betas[::999] == pytest.approx((1e-4, 0.02))
    assert "from the configuration, as the folder has no scheduler: linear betas from 0.0001 to 0.02, N = 1000" in caplog.text
    model = unet2d(SHAPE, path, schedule="scaled_linear", beta_end=0.5, levels=10, prediction="sample")
    assert (model.process.levels, model.process.betas[-1]) == (10, pytest.approx(0.5))
    assert model.process.betas[1] < 0.02 and isinstance(model.score, DataPrediction)


def test_betas_of_the_scheduler(tmp_path, unet):
    model = unet2d(SHAPE, saved(tmp_path, unet.state_dict(), DDPM | {"trained_betas": [0.1, 0.5, 0.2]}))
    assert model.process.betas == (0.1, 0.5, 0.2)


def test_older_files_and_pickles(tmp_path, unet):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in unet.state_dict().items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = value.half()
    assert state.keys() != unet.state_dict().keys()
    path = tmp_path / saved(tmp_path / "model", {"unused": torch.zeros(1)}, scheduler=None)
    (path / WEIGHTS).unlink()
    torch.save(state, path / "diffusion_pytorch_model.bin")
    for name, value in unet2d(SHAPE, str(path)).score.network.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name].half().float()), name


# Refused before diffusers is imported, which takes seconds.
EARLY = [
    ({"_class_name": "UNet2DConditionModel"}, {}, {}, "holds a UNet2DConditionModel: only a UNet2DModel"),
    ({"time_embedding_type": "fourier"}, {}, {}, "fourier embedding, as VE networks have: load it as NCSN"),
    ({"time_embedding_type": "learned"}, {}, {}, "learned embedding, .* only positional"),
    ({"class_embed_type": "timestep"}, {}, {}, r"conditioned on classes \(class_embed_type=timestep\)"),
    ({"num_class_embeds": 10}, {}, {}, r"conditioned on classes \(num_class_embeds=10\)"),
    ({"out_channels": 2}, {}, {}, "out_channels=2 and in_channels=1, as networks that learn the variance"),
    ({"center_input_sample": True}, {}, {}, "center_input_sample=true: only networks of images from -1 to 1"),
    ({"sample_size": 16}, {}, {}, r"shape is \[1, 8, 8\], but .* is of images of shape \[1, 16, 16\]"),
    ({"sample_size": [8, 16]}, {}, {}, r"is of images of shape \[1, 8, 16\]: choose such"),
    ({"sample_size": "large"}, {}, {}, r"is of images of shape \[1, 'large', 'large'\]"),
    (
        {"in_channels": 3, "out_channels": 3, "sample_size": None},
        {},
        {},
        r"shape is \[1, 8, 8\], but .* is of images of shape \[3, 8, 8\]",
    ),
    ({}, {"beta_schedule": "sigmoid"}, {}, "scheduler_config.json, cannot be sampled: .* one of linear, .* got 'sigmoid'"),
    ({}, {"beta_end": "large"}, {}, "cannot be sampled: beta_end must be a number above 0 and below 1, got 'large'"),
    ({}, {"num_train_timesteps": 10.5}, {}, "levels must be a whole number from 2 to 100000, got 10.5"),
    ({}, {"num_train_timesteps": 10**12}, {}, "from 2 to 100000, got 1000000000000"),
    ({}, {"trained_betas": 3}, {}, "is not one that diffusers writes"),
    ({}, {"trained_betas": [0.1, 1.0]}, {}, "numbers above 0 and below 1, got"),
    ({}, {"rescale_betas_zero_snr": True}, {}, "a DDPMScheduler with rescale_betas_zero_snr: only chains of finite"),
    ({}, {"timestep_type": "continuous"}, {}, "a DDPMScheduler with timestep_type=continuous: only chains of finite"),
    ({}, {"snr_shift_scale": 3.0}, {}, "a DDPMScheduler with snr_shift_scale=3.0: only chains of finite"),
    ({}, {"prediction_type": "flow"}, {}, "predicts 'flow' .* not one of epsilon, v_prediction, sample"),
    ({}, {}, {"beta_end": 0.03}, r"beta_end is 0.03, but .* was trained with 0.02 .*: leave it out"),
    ({}, {}, {"schedule": "scaled_linear"}, "schedule is scaled_linear, but .* was trained with linear"),
    ({}, {"trained_betas": [0.1, 0.2]}, {"schedule": "linear"}, "schedule is linear, but .* was trained with trained_betas"),
    ({}, {}, {"prediction": "sample"}, "prediction is sample, but .* was trained with epsilon"),
]


@pytest.mark.parametrize(("config", "scheduler", "given", "says"), EARLY)
def test_what_cannot_be_sampled_is_refused_early(tmp_path, monkeypatch, config, scheduler, given, says):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PDSError, match=says) as error:
        unet2d(SHAPE, saved(tmp_path, {"a": torch.zeros(1)}, DDPM | scheduler, **config), **given)
    assert "\n" not in str(error.value)


def test_a_scheduler_without_betas_is_refused(tmp_path):
    scheduler = {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0}
    with pytest.raises(PDSError, match="a ScoreSdeVeScheduler with no beta_schedule"):
        unet2d(SHAPE, saved(tmp_path, {"a": torch.zeros(1)}, scheduler))


def test_without_diffusers_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PDSError, match=r"need diffusers: install it with pip install 'pds-lab\[diffusers\]'"):
        unet2d(SHAPE, saved(tmp_path, {"a": torch.zeros(1)}, beta_end=0.02))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_broken_and_hostile_folders_give_one_sentence(tmp_path, unet, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = dict(unet.state_dict())
    some = "mid_block.resnets.0.conv1.weight"

    def weights(changed):
        return lambda network: save_file(changed, network / WEIGHTS)

    def cut(network):
        (network / WEIGHTS).write_bytes((network / WEIGHTS).read_bytes()[:-3000])

    def pickled(network):
        (network / WEIGHTS).unlink()
        torch.save({"a": Hostile()}, network / "diffusion_pytorch_model.bin")

    def text(path, content):
        return lambda network: (network / path).write_text(content)

    def built_from(**changed):
        return text("config.json", json.dumps(CONFIG | changed))

    says = {
        cut: "not a whole safetensors",
        pickled: r"holds code \(\w+\.system\), which is never executed",
        text("config.json", "{"): "not the configuration of a network",
        text("../scheduler/scheduler_config.json", "[]"): "not the configuration of a network or a scheduler",
        (
            lambda network: (network / WEIGHTS).unlink()
        ): "no diffusers folder: config.json and diffusion_pytorch_model.safetensors",
        (lambda network: (network / "config.json").unlink()): "no diffusers folder",
        weights({name: value for name, value in state.items() if name != some}): f"no parameter {some} .*of one network",
        weights(state | {"surplus": torch.zeros(1)}): "a parameter surplus that the model does not have",
        weights(state | {some: torch.zeros(4, 8, 3, 3)}): r"of shape \(4, 8, 3, 3\) where the model has \(8, 8, 3, 3\)",
        weights(state | {some: torch.full((8, 8, 3, 3), torch.nan)}): "not finite",
        built_from(block_out_channels=[8, 16]): "of shape .* where the model has",
        built_from(down_block_types=["Other", "DownBlock2D"]): "diffusers cannot build the network of .*Other",
        built_from(block_out_channels=3): "diffusers cannot build the network",
    }
    for i, (harm, sentence) in enumerate(says.items()):
        folder = saved(tmp_path / str(i), state)
        harm(tmp_path / str(i) / "unet")
        with pytest.raises(PDSError, match=sentence) as error:
            unet2d(SHAPE, folder)
        assert "\n" not in str(error.value)
    for checkpoint, sentence in {
        "/nowhere": "/nowhere does not exist: give a diffusers folder",
        str(tmp_path): "no diffusers folder",
        f"{tmp_path}/0/unet/config.json": "no diffusers folder",
        None: "checkpoint must be a diffusers folder",
    }.items():
        with pytest.raises(PDSError, match=sentence):
            unet2d(SHAPE, checkpoint)
    assert not (tmp_path / "hostile-code-ran").exists()
