"""DDPM networks of Hugging Face diffusers: a `UNet2DModel`, built by diffusers itself, as a score."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pds.errors import MissingError, OptionError, PDSError, first_line
from pds.files import locate
from pds.models.checkpoints import DiffusersFolder, load_unet
from pds.models.diffusers_layout import DEFAULTS
from pds.models.layouts import Which
from pds.models.scores import DataPrediction, Model, NoisePrediction, Prediction, VelocityPrediction
from pds.options import Shape, checked
from pds.processes.discrete import BetaSchedule, DiscreteVariancePreserving, Levels, OneBeta, beta_schedule

log = logging.getLogger(__name__)

# By the name in diffusers (prediction_type).
PREDICTIONS: dict[str, type[Prediction]] = {
    "epsilon": NoisePrediction,
    "v_prediction": VelocityPrediction,
    "sample": DataPrediction,
}
# The names of `unet2d`'s arguments in scheduler_config.json, and their defaults: the values of DDPM.
SCHEDULER = {
    "schedule": ("beta_schedule", "linear"),
    "beta_start": ("beta_start", 1e-4),
    "beta_end": ("beta_end", 0.02),
    "levels": ("num_train_timesteps", 1000),
    "prediction": ("prediction_type", "epsilon"),
}


class _Network(nn.Module):
    """A `UNet2DModel` that returns its output alone."""

    pds_memory_format: ClassVar = torch.channels_last

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.unet(x, label, return_dict=False)[0]


@checked
def unet2d(
    shape: Shape,
    checkpoint: str | Path | None,
    weights: Which = None,
    schedule: BetaSchedule | None = None,
    beta_start: OneBeta | None = None,
    beta_end: OneBeta | None = None,
    levels: Levels | None = None,
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None,
) -> Model:
    """A DDPM network that diffusers saved, with the chain it was trained on, ready to sample.

    The chain is that of its scheduler_config.json. If the folder has no scheduler, the other arguments give the chain, and None
    is DDPM's value. If it has one, they may only repeat its values. Samplers here do not clip the predicted image, which
    diffusers may do (clip_sample).

    Args:
        shape: (C, H, W) of the images.
        checkpoint: local folder of a pipeline (unet/, scheduler/, or all in one) or of its `UNet2DModel`.
        weights: which of its weights, see `load_weights`.
        schedule: beta_schedule, if the folder has no scheduler; None: linear, as DDPM.
        beta_start: first beta; None: 0.0001, as DDPM.
        beta_end: last beta; None: 0.02, as DDPM.
        levels: N (num_train_timesteps); None: 1000, as DDPM.
        prediction: what the network predicts (prediction_type); None: epsilon, as DDPM.

    Raises:
        PDSError: diffusers is absent, the folder is not whole, or the network is of other images, of another chain or of
            another kind.
    """
    if checkpoint is None:
        raise OptionError("checkpoint", "must be a diffusers folder, which describes the network")
    folder = DiffusersFolder.find(locate(checkpoint))
    _check(folder, shape)
    given = {"schedule": schedule, "beta_start": beta_start, "beta_end": beta_end, "levels": levels, "prediction": prediction}
    process, predicted = _chain(folder, given)
    network: Any = _build(folder)
    loaded = load_unet(network, folder, weights)
    title = f"DDPM (discrete VP, width {network.config.block_out_channels[0]}) {shape[0]}x{shape[1]}x{shape[2]}"
    score = PREDICTIONS[predicted](_Network(network), process, "Nt-1")
    beside = {"config": folder.config, "betas": process.betas, "prediction": predicted}
    channels, height, width = shape
    return Model(title, score, process, (channels, height, width), loaded, (-1.0, 1.0), beside)


def _check(folder: DiffusersFolder, shape: Sequence[int]) -> None:
    """Refuse networks that diffusers can build and no sampler here can sample."""
    source, config = folder.unet, DEFAULTS | folder.config
    if config.get("_class_name") != "UNet2DModel":
        raise PDSError(f"{source} holds a {config.get('_class_name')}: only a UNet2DModel can be read")
    if config["time_embedding_type"] == "fourier":
        raise PDSError(
            f"{source} has a fourier embedding, as VE networks have: load it as NCSN++, which reads those of Skip blocks"
        )
    if config["time_embedding_type"] != "positional":
        raise PDSError(
            f"{source} has a {config['time_embedding_type']} embedding, which has no value between two levels: only "
            "positional ones can be sampled"
        )
    classes = {name: config[name] for name in ("class_embed_type", "num_class_embeds") if config[name] is not None}
    if classes:
        name, value = classes.popitem()
        raise PDSError(f"{source} is conditioned on classes ({name}={value}): only unconditional networks can be sampled")
    if config["out_channels"] != config["in_channels"]:
        raise PDSError(
            f"{source} has out_channels={config['out_channels']} and in_channels={config['in_channels']}, as networks that "
            "learn the variance have: only networks that predict the noise alone can be sampled"
        )
    if config["center_input_sample"]:
        raise PDSError(f"{source} has center_input_sample=true: only networks of images from -1 to 1 can be sampled")
    size = config["sample_size"]
    trained = [config["in_channels"], *(shape[1:] if size is None else size if isinstance(size, list) else [size, size])]
    if trained != list(shape):
        raise OptionError("shape", f"is {list(shape)}, but {source} is of images of shape {trained}: choose such images")


def _chain(folder: DiffusersFolder, given: dict[str, Any]) -> tuple[DiscreteVariancePreserving, str]:
    """The chain, and the quantity that the network predicts."""
    scheduler, betas = folder.scheduler, folder.scheduler.get("trained_betas")
    if not scheduler:
        source = "the configuration, as the folder has no scheduler"
        told: dict[str, Any] = {key: default if given[key] is None else given[key] for key, (_, default) in SCHEDULER.items()}
    else:
        source = "its scheduler_config.json"
        what = "no beta_schedule" if "beta_schedule" not in scheduler else beside_its_betas(scheduler)
        if what or scheduler.get("rescale_betas_zero_snr"):
            raise PDSError(
                f"{folder.unet} has a {scheduler.get('_class_name')} with {what or 'rescale_betas_zero_snr'}: only chains of "
                "finite noise levels, given and labelled by their betas, can be sampled"
            )
        told = {key: scheduler.get(name, default) for key, (name, default) in SCHEDULER.items()}
        if betas is not None:
            told["schedule"] = "trained_betas"
        wrong = next((key for key, value in given.items() if value is not None and value != told[key]), None)
        if wrong is not None:
            raise OptionError(
                wrong, f"is {given[wrong]}, but {folder.unet} was trained with {told[wrong]} ({source}): leave it out"
            )
    prediction = told["prediction"]
    if prediction not in PREDICTIONS:
        raise PDSError(
            f"{folder.unet} predicts {prediction!r} (from {source}), not one of {', '.join(PREDICTIONS)}: it cannot be sampled"
        )
    try:
        if betas is None:
            betas = beta_schedule(told["schedule"], told["beta_start"], told["beta_end"], told["levels"])
        process = DiscreteVariancePreserving(tuple(float(beta) for beta in betas))
    except PDSError as error:
        raise PDSError(f"the noise of {folder.unet}, from {source}, cannot be sampled: {error}") from None
    except (TypeError, ValueError) as error:
        raise PDSError(
            f"the scheduler of {folder.unet} is not one that diffusers writes ({first_line(error)}): fetch it again"
        ) from None
    log.info(
        "noise levels of %s from %s: %s betas from %g to %g, N = %d; it predicts %s",
        *(folder.unet, source, told["schedule"], process.betas[0], process.betas[-1], process.levels, prediction),
    )
    return process, prediction


def beside_its_betas(scheduler: Mapping[str, Any]) -> str | None:
    """The option of a scheduler's configuration that makes its noise levels or labels others than those of its betas."""
    if scheduler.get("timestep_type") == "continuous":  # log(sigma) / 4 as the label, as in EDM
        return "timestep_type=continuous"
    shift = scheduler.get("snr_shift_scale")
    return None if shift in (None, 1) else f"snr_shift_scale={shift}"


def _build(folder: DiffusersFolder) -> nn.Module:
    """The network of config.json, with random weights."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise MissingError("DDPM networks need diffusers: install it with pip install 'pds-lab[diffusers]'") from None
    try:
        return UNet2DModel.from_config(folder.config).eval()
    except Exception as error:  # a broken configuration may raise anything
        raise PDSError(
            f"diffusers cannot build the network of {folder.unet} ({first_line(error)}): fetch its config.json again"
        ) from None
