"""Write a network of experiments/train.py in its shipping form, averaged weights in half precision, during or after training.

python experiments/tools/ship.py outputs/train/NAME OUTPUT_FOLDER
"""

from __future__ import annotations

from pathlib import Path

from pds.errors import PDSError
from pds.lab.cli import documented, start
from pds.lab.train import ship


def shipped(arguments: list[str]) -> None:
    """One network, from the last checkpoint of its training."""
    if len(arguments) != 2:
        raise PDSError("give two folders: python experiments/tools/ship.py outputs/train/NAME OUTPUT_FOLDER")
    ship(*map(Path, arguments))


if __name__ == "__main__":
    start(documented(shipped, __doc__))
