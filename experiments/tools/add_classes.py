"""Give a network without classes an embedding of classes, at zero: the start of a training with classes.

python experiments/tools/add_classes.py WEIGHTS CLASSES OUTPUT.safetensors
python experiments/train.py model.classes=CLASSES trainer.label_dropout=0.1 model.checkpoint=OUTPUT.safetensors name=NAME ...
"""

from __future__ import annotations

from pds.errors import PDSError
from pds.files import locate, user_path
from pds.lab.cli import start
from pds.lab.train import add_classes


def added(arguments: list[str]) -> None:
    """One file, from another."""
    if len(arguments) != 3 or not arguments[1].isdecimal():
        raise PDSError(
            "give two files and a number: python experiments/tools/add_classes.py WEIGHTS CLASSES OUTPUT.safetensors"
        )
    add_classes(locate(arguments[0]), int(arguments[1]), user_path(arguments[2]))


if __name__ == "__main__":
    start(added)
