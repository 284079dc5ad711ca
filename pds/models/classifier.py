"""A small convolutional classifier of MNIST digits, whose penultimate layer serves as offline evaluation features."""

from __future__ import annotations

from torch import Tensor, nn


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class DigitClassifier(nn.Module):
    """Three stages of convolution, normalisation and pooling (28 to 3 pixels), then a linear layer of 64 features.

    107 thousand parameters.
    """

    shape = (1, 28, 28)
    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(_stage(1, 24), _stage(24, 48), _stage(48, 96))
        self.embed = nn.Linear(96 * 3 * 3, self.dimension)
        self.head = nn.Linear(self.dimension, 10)

    def features(self, x: Tensor) -> Tensor:
        """(n, 64) features of (n, 1, 28, 28) images in [0, 1].

        They are taken before the ReLU that follows them: with its zeros they would be further from Gaussian, which is
        what the Fréchet distance takes them for.
        """
        return self.embed(self.stages(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 10) logits of (n, 1, 28, 28) images in [0, 1]."""
        return self.head(self.features(x).relu())
