"""Make again what ships beside the sampled network: the MNIST classifier, its reference statistics and the filter statistics.

python experiments/tools/assets.py DATA_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

from pathlib import Path

from pds.data.mnist import mnist
from pds.data.statistics import dataset_statistics
from pds.errors import PDSError
from pds.evaluation.classifier_training import build_mnist_assets
from pds.files import pin
from pds.lab.cli import start


def assets(arguments: list[str]) -> None:
    """Train, measure and write; minutes on two cores."""
    if len(arguments) != 2:
        raise PDSError("give two folders: python experiments/tools/assets.py DATA_FOLDER OUTPUT_FOLDER")
    root, output = map(Path, arguments)
    dataset_statistics(mnist(root)).save(output / "mnist_statistics.npz")
    build_mnist_assets(root, output)
    for path in sorted(output.glob("mnist_*")):
        pin(path)


if __name__ == "__main__":
    start(assets)
