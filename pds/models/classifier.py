"""Small convolutional classifiers. Their penultimate layer serves as offline evaluation features."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def _pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(in_channels, out_channels), nn.MaxPool2d(2))


def _reduced(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions; the first is pooled before its normalisation, at a quarter of the memory traffic."""
    convolution, *rest = _convolution(in_channels, out_channels)
    return nn.Sequential(convolution, nn.MaxPool2d(2), *rest, *_convolution(out_channels, out_channels))


class Classifier(nn.Module):
    """Convolutional stages, a linear layer of features, and a linear layer of classes.

    Args:
        stages: (n, *shape) images in [0, 1] to maps of `size` values in all.
        size: C * H * W of these maps.

    Attributes:
        data: the data set whose classes it tells apart, named as in files and metrics.
        shape: (C, H, W) of its images.
        dimension: number of features.
        classes: number of classes.
    """

    data: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    dimension: ClassVar[int] = 64
    classes: ClassVar[int] = 10

    def __init__(self, stages: nn.Sequential, size: int) -> None:
        super().__init__()
        self.stages = stages
        self.embed = nn.Linear(size, self.dimension)
        self.head = nn.Linear(self.dimension, self.classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, dimension) features of (n, *shape) images in [0, 1].

        They are taken before the ReLU. Its zeros would move the features away from the Gaussian that the Fréchet distance
        assumes.
        """
        return self.embed(self.stages(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, classes) logits of (n, *shape) images in [0, 1]."""
        return self.head(self.features(x).relu())


class DigitClassifier(Classifier):
    """MNIST: three stages of convolution, normalisation and pooling, 28 to 3 pixels; 107 thousand parameters."""

    data = "mnist"
    shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__(nn.Sequential(_pooled(1, 24), _pooled(24, 48), _pooled(48, 96)), 96 * 3 * 3)


class ObjectClassifier(Classifier):
    """CIFAR-10: seven convolutions, 32 to 4 pixels and their maximum; 665 thousand parameters."""

    data = "cifar10"
    shape = (3, 32, 32)

    def __init__(self) -> None:
        stages = nn.Sequential(
            *_convolution(3, 24),
            _reduced(24, 48),
            _reduced(48, 144),
            _reduced(144, 144),
            nn.AdaptiveMaxPool2d(1),
        )
        super().__init__(stages, 144)

    def features(self, x: Tensor) -> Tensor:
        """(n, dimension) features of (n, *shape) images in [0, 1], their mean over an image and its mirror image.

        Training, which mirrors images at random, takes the given image alone.
        """
        return super().features(x) if self.training else (super().features(x) + super().features(x.flip(-1))) / 2
