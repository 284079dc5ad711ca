"""Train a score network by denoising score matching; the same command continues a run that was killed.

python experiments/train.py model.width=64 trainer.iterations=200000 name=mnist_ncsn64
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

import torch
from omegaconf import DictConfig

from pds.data.dataset import Dataset
from pds.errors import PDSError
from pds.files import write_json
from pds.lab.config import build, resolved
from pds.lab.devices import choose_device, require_compiler
from pds.lab.logs import log_file
from pds.lab.runs import RunFolder, identity, provenance
from pds.lab.tracking import MetricsFile
from pds.models.safetensors_files import as_configuration, save_weights
from pds.models.scores import Model
from pds.processes.discrete import DiscreteVariancePreserving
from pds.training import Trainer

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """Build everything, then train in outputs/train/<name>."""
    config = resolved(cfg)
    device = choose_device(cfg.device, cfg.threads)
    torch.manual_seed(cfg.seed)
    model: Model = build(cfg.model)
    if isinstance(model.process, DiscreteVariancePreserving):
        raise PDSError("networks of diffusers are read, not trained here: choose model=ncsn, ncsnv2, ncsnpp or ddpmpp")
    dataset: Dataset = build(cfg.dataset)
    trainer: Trainer = build(cfg.trainer)
    if trainer.compile:
        require_compiler("trainer.compile")
    images = dataset.images
    trainer.check(images)
    folder = RunFolder(Path(cfg.outputs) / "train" / cfg.name)
    # Where training starts, whatever file that came from.
    config["fingerprint"] = {"weights": model.checkpoint and model.checkpoint.sha256}
    folder.claim(config)
    weights = folder.path / f"{cfg.name}.safetensors"
    if folder.result() is not None:
        log.info("%s is done already", weights)
        return
    metrics = MetricsFile(folder.path / "metrics.jsonl")

    with log_file(folder.path / "run.log"):
        folder.status("running")
        try:
            ema, seconds = trainer.fit(
                model.score, images, folder.path / "training.pt", device, model.data_range, metrics.append
            )
        except BaseException as error:
            with contextlib.suppress(OSError):
                folder.status("failed", str(error) or type(error).__name__)
            raise
        about = {
            "config": json.dumps(as_configuration(identity(config))),
            "iterations": str(trainer.iterations),
            "weights": "ema",
        }
        # The buffers of the network belong to its file, too.
        state = model.score.cpu().state_dict() | ema
        save_weights({name.removeprefix("network."): value for name, value in state.items()}, weights, about)
        write_json(folder.path / "result.json", {"seconds": seconds, **provenance(device)})
        folder.status("done")
        log.info("averaged weights in %s; sample them with model.checkpoint=%s", weights, weights)
