"""Measure this machine's GPU: speed, precision, the runner and training, into gpu.json and gpu.md.

python experiments/gpu_report.py                     # everything, in the order of its value: half an hour; again to go on
python experiments/gpu_report.py --minutes 9 --parts peaks cifar10
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from pds.errors import PDSError
from pds.speed.parts import PARTS, SMALL, Plan
from pds.speed.report import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/gpu"), help="where the report is, and goes on")
    parser.add_argument("--parts", nargs="+", default=[], help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--minutes", type=float, help="for everything; each part has its own limit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a test of this program")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(run(given.folder, SMALL if given.small else Plan(), torch.device(given.device), given.parts, given.minutes))
    except PDSError as error:
        raise SystemExit(f"error: {error}") from None
