"""Make the Weights & Biases report of a group of runs, vanilla beside PDS.

python experiments/tools/dashboard.py outputs/quickstart

It needs an account (`wandb login`); outputs/<group>/report.html is the same comparison without one.
"""

from __future__ import annotations

from pds.lab.cli import start
from pds.lab.report.wandb import main

if __name__ == "__main__":
    start(main)
