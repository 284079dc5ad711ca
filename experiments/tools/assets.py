"""Make again what ships beside the sampled network: the MNIST classifier, its reference statistics and the filter statistics.

python experiments/tools/assets.py DATA_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from pds.data.mnist import mnist
from pds.data.statistics import dataset_statistics
from pds.errors import PDSError
from pds.evaluation.classifier_training import build_mnist_assets
from pds.lab.logs import to_terminal


def main(arguments: list[str]) -> None:
    """Train, measure and write; minutes on two cores."""
    if len(arguments) != 2:
        sys.exit("usage: python experiments/tools/assets.py DATA_FOLDER OUTPUT_FOLDER")
    root, output = map(Path, arguments)
    to_terminal()
    try:
        dataset_statistics(mnist(root)).save(output / "mnist_statistics.npz")
        build_mnist_assets(root, output)
    except PDSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
