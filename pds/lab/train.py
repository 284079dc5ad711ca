"""The training of a score network in a run folder, and the network of a training as it ships with this package."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pds.data.dataset import Dataset
from pds.errors import MissingError, PDSError
from pds.files import json_digest, pin, reading, write_json
from pds.lab.config import build, build_model, keyed, resolved
from pds.lab.devices import prepare_device, require_compiler
from pds.lab.logs import log_file, traced
from pds.lab.runs import RunFolder, group_folder, identity, provenance, read_config
from pds.lab.settings import Train, settings
from pds.lab.tracking import MetricsFile
from pds.models.safetensors_files import as_configuration, read_safetensors, save_weights
from pds.models.scores import NetworkScore
from pds.options import Range, fitted, shown
from pds.processes.discrete import DiscreteVariancePreserving
from pds.training import Trainer, check_labels, check_network, read_state

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """Build everything, then train in outputs/train/<name>."""
    if "RANK" in os.environ and (size := int(os.environ["WORLD_SIZE"])) > 1:
        raise PDSError(f"training runs in one process, and torchrun started {size}: start it without torchrun")
    config = resolved(cfg)
    settings(Train, cfg)
    device = prepare_device(cfg.device, cfg.threads)
    torch.manual_seed(cfg.seed)
    folder = RunFolder(group_folder(f"{cfg.outputs}/train", cfg.name, "name"))
    with traced(folder.path.parent / "run.log"):
        model = build_model(cfg.model)
        dataset: Dataset = build(cfg.dataset)
        trainer: Trainer = build(cfg.trainer)
    of_edm = model.checkpoint is not None and model.checkpoint.layout == "EDM"
    if of_edm or isinstance(model.process, DiscreteVariancePreserving):
        whose = "EDM" if of_edm else "a chain of given levels"
        fix = "choose model=ncsn, ncsnv2, ncsnpp or ddpmpp, or model/process=vp for your own"
        raise PDSError(f"networks of {whose} are read, not trained here: {fix}")
    if trainer.compile:
        require_compiler("trainer.compile")
    images = dataset.images
    with keyed(cfg.model):
        check_labels(images, model.classes)
    with keyed(cfg.trainer):
        check_network(model.score, trainer.label_dropout)
        trainer.check(images, model.classes)
    # The start of training, from any file; and the network's own code, as for samples.
    code = model.beside_weights.get("code")
    seen = json_digest({**images.fingerprint, "images": len(images)})
    config["fingerprint"] = {"weights": model.checkpoint and model.checkpoint.sha256, "code": code, "images": seen}
    if "images" not in _recorded(folder):  # a training of an older version goes on
        config["fingerprint"].pop("images")
    folder.claim(config, "name")
    weights = folder.path / f"{cfg.name}.safetensors"
    if _is_whole(weights) and folder.result({"seconds": float, "device": str}) is not None:
        log.info("%s is done already", weights)
        return
    metrics = MetricsFile(folder.path / "metrics.jsonl")

    with log_file(folder.path / "run.log"):
        folder.status("running")
        try:
            ema, seconds = trainer.fit(
                model.score, images, folder.path / "training.pt", device, model.data_range, model.classes, metrics.append
            )
        except BaseException as error:
            with contextlib.suppress(OSError, PDSError):
                folder.status("failed", str(error) or type(error).__name__)
            raise
        save_network(model.score, ema, weights, config, trainer.iterations)
        write_json(folder.path / "result.json", {"seconds": seconds, **provenance(device)})
        folder.status("done")
        next_use = "samples them, or trains on from them under another name"
        log.info("averaged weights in %s; model.checkpoint=%s %s", weights, weights, next_use)


def _is_whole(weights: Path) -> bool:
    """Whether the weights of a finished training are there; damaged ones are written again from its last state."""
    if not weights.exists():
        return False
    try:
        read_safetensors(weights)
    except PDSError as error:
        log.warning("%s; it is written again", error)
        return False
    return True


def _recorded(folder: RunFolder) -> Collection[str]:
    """The facts beside the configuration that a training has recorded, or will record if it has not begun."""
    file = folder.path / "config.yaml"
    return read_config(file).get("fingerprint", {}) if file.exists() else ("images",)


def save_network(
    score: NetworkScore, ema: Mapping[str, Tensor], path: Path, config: dict[str, Any], iterations: int, half: bool = False
) -> None:
    """Write averaged weights as safetensors, with the configuration of their training.

    Args:
        score: the network; its buffers belong to the file as well.
        ema: its averaged parameters by name, and buffers that differ from those of `score`.
        path: the file.
        config: the resolved configuration of the training.
        iterations: iterations of the training so far.
        half: write the parameters that training changes as float16. The others may be frequencies, which must stay exact.
    """
    # A parameter that two layers share has two names in the file, and one in `ema`.
    names = {parameter: name for name, parameter in score.cpu().named_parameters()}
    state = {}
    for name, value in score.state_dict(keep_vars=True).items():
        written = ema.get(names.get(value, name), value.detach())
        state[name.removeprefix("network.")] = written.half() if half and value.requires_grad else written.clone()
    # The choice of weights in the file that training started from does not describe these.
    options = {key: value for key, value in identity(config).items() if key != "model.weights"}
    about = {"config": json.dumps(as_configuration(options)), "iterations": str(iterations), "weights": "ema"}
    save_weights(state, path, about)


def ship(folder: Path, output: Path) -> None:
    """Write the network of a training's last checkpoint into `output` in half precision, as it ships with this package.

    Args:
        folder: folder of the training, finished or not: outputs/train/<name>.
        output: the folder for <name>.safetensors.

    Raises:
        PDSError: the training has no checkpoint yet, or its state is damaged or of another network.
    """
    checkpoint = folder / "training.pt"
    if not checkpoint.is_file():
        raise MissingError(f"{folder} has no training.pt: give the folder of a training that has reached its first checkpoint")
    file, fix = folder / "config.yaml", "give the folder of another training"
    with reading(file, "the configuration of a training", fix):
        config = read_config(file)
        name = fitted("name", config["name"], str)
        most = fitted("iterations", config["trainer"]["iterations"], Annotated[int, Range(1)])
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"its name {shown(name)} leads out of its folder")
        node = OmegaConf.create({"model": config["model"] | {"checkpoint": None}}).model
    network: NetworkScore = build_model(node).score
    state = read_state(checkpoint, network, most, fix)
    path = output / f"{name}.safetensors"
    save_network(network, state.buffers | state.ema, path, config, state.iteration, half=True)
    pin(path)
    log.info("%s: %d iterations in %.0f s, loss %.4f", path, state.iteration, state.seconds, state.loss)
