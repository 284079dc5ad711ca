"""Train a score network by denoising score matching; the same command continues a run that was killed.

python experiments/train.py model.width=64 trainer.iterations=200000 name=mnist_ncsn64
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import hydra
import torch
import yaml
from building import build, choose_device, entry_point, resolved
from omegaconf import DictConfig
from schema import register

from pds.data.dataset import Dataset
from pds.errors import PDSError
from pds.files import write_json
from pds.logs import log_file, to_terminal
from pds.models.checkpoints import save_weights
from pds.models.scores import ScoreModel
from pds.runs import RunFolder, identity, provenance
from pds.tracking import MetricsFile
from pds.training import Trainer

log = logging.getLogger(__name__)

failures: list[str] = []


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train one network and write its averaged weights as safetensors."""
    to_terminal()
    try:
        train(cfg)
    except PDSError as error:
        log.error("error: %s", error)
        failures.append(str(error))


def train(cfg: DictConfig) -> None:
    """Build everything, then train in outputs/train/<name>."""
    config = resolved(cfg)
    device = choose_device(cfg.device, cfg.threads)
    torch.manual_seed(cfg.seed)
    model: ScoreModel = build(cfg.model)
    dataset: Dataset = build(cfg.dataset)
    trainer: Trainer = build(cfg.trainer)
    images = dataset.images
    folder = RunFolder(Path(cfg.outputs) / "train" / cfg.name)
    folder.claim(config)
    metrics = MetricsFile(folder.path / "metrics.jsonl")
    start = time.perf_counter()

    def sample_sigma(count: int, generator: torch.Generator) -> torch.Tensor:
        return model.sigmas[torch.randint(len(model.sigmas), (count,), generator=generator)]

    with log_file(folder.path / "run.log"):
        folder.status("running")
        try:
            ema = trainer.fit(model.score, images, sample_sigma, folder.path / "training.pt", device, metrics.append)
        except BaseException as error:
            folder.status("failed", str(error) or type(error).__name__)
            raise
        weights = folder.path / f"{cfg.name}.safetensors"
        about = {"config": yaml.safe_dump(identity(config)), "iterations": str(trainer.iterations), "weights": "ema"}
        save_weights({name.removeprefix("network."): value for name, value in ema.items()}, weights, about)
        # Of this process alone: a run that was resumed took longer.
        write_json(folder.path / "result.json", {"seconds": time.perf_counter() - start, **provenance(device)})
        folder.status("done")
        log.info("averaged weights in %s; sample them with model.checkpoint=%s", weights, weights)


if __name__ == "__main__":
    register()
    entry_point(main, failures)
