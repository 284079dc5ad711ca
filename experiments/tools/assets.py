"""Make the shipped files of a data set again, beside its networks: the classifier, its reference and the filter statistics.

python experiments/tools/assets.py mnist|cifar10_jpeg DATA_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

from pathlib import Path

from pds.data.cifar10 import cifar10_jpeg
from pds.data.mnist import mnist
from pds.data.statistics import dataset_statistics
from pds.errors import PDSError
from pds.evaluation.classifier_training import build_assets
from pds.files import pin
from pds.lab.cli import documented, start
from pds.models.classifier import DigitClassifier, ObjectClassifier

DATA = {"mnist": (mnist, DigitClassifier), "cifar10_jpeg": (cifar10_jpeg, ObjectClassifier)}


def assets(arguments: list[str]) -> None:
    """Train, measure and write; minutes on two cores."""
    if len(arguments) != 3 or arguments[0] not in DATA:
        data = "|".join(DATA)
        raise PDSError(f"give a data set and two folders: python experiments/tools/assets.py {data} DATA_FOLDER OUTPUT_FOLDER")
    read, classifier = DATA[arguments[0]]
    root, output = map(Path, arguments[1:])
    images = read(root, "train")
    dataset_statistics(images).save(output / f"{classifier.data}_statistics.npz")
    build_assets(classifier, images, read(root, "test"), output)
    for path in sorted(output.glob(f"{classifier.data}_*")):
        pin(path)


if __name__ == "__main__":
    start(documented(assets, __doc__))
