"""Train a score network by denoising score matching; the same command continues a run that was killed.

python experiments/train.py model.width=64 trainer.iterations=200000 name=mnist_ncsn64
"""

from __future__ import annotations

from pds.lab.cli import configured, start
from pds.lab.train import train

if __name__ == "__main__":
    start(configured("train", train))
