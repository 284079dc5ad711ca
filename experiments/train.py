"""Train a score network by denoising score matching; the same command continues a run that was killed.

python experiments/train.py model.width=64 trainer.iterations=200000 name=mnist_ncsn64
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from pds.lab.cli import entry_point, one_sentence
from pds.lab.schema import register
from pds.lab.train import train

failures: list[str] = []


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train one network and write its averaged weights as safetensors."""
    with one_sentence(failures):
        train(cfg)


if __name__ == "__main__":
    register()
    entry_point(main, failures)
