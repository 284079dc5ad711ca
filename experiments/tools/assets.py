"""Make again what ships for a data set beside its networks: the classifier, its reference statistics and the filter statistics.

python experiments/tools/assets.py mnist|cifar10_jpeg DATA_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from pds.data.cifar10 import cifar10_jpeg
from pds.data.mnist import mnist
from pds.data.statistics import dataset_statistics
from pds.errors import PDSError
from pds.evaluation.classifier_training import build_assets
from pds.lab.logs import to_terminal
from pds.models.classifier import DigitClassifier, ObjectClassifier

DATA = {"mnist": (mnist, DigitClassifier), "cifar10_jpeg": (cifar10_jpeg, ObjectClassifier)}


def main(arguments: list[str]) -> None:
    """Train, measure and write; minutes on two cores."""
    if len(arguments) != 3 or arguments[0] not in DATA:
        sys.exit(f"usage: python experiments/tools/assets.py {'|'.join(DATA)} DATA_FOLDER OUTPUT_FOLDER")
    read, classifier = DATA[arguments[0]]
    root, output = map(Path, arguments[1:])
    to_terminal()
    try:
        images = read(root, "train")
        dataset_statistics(images).save(output / f"{classifier.data}_statistics.npz")
        build_assets(classifier, images, read(root, "test"), output)
    except PDSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
