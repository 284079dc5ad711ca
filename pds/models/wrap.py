"""Any network as a model: its prediction, its noise label, and one call that proves that both fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from pds.errors import OptionError, PDSError, first_line
from pds.models.scores import (
    Classes,
    DataPrediction,
    FunctionNetwork,
    Model,
    NoisePrediction,
    Prediction,
    ScorePrediction,
    VelocityPrediction,
    evaluating,
)
from pds.options import MOST, Length, Range, Said, Shape, checked, shown
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import Process

Predicts = Literal["score", "noise", "v", "data"]
DataRange = Annotated[Sequence[float], Range(-1e6, 1e6), Length(2, 2)]
"""Pixel values of black and white."""

PREDICTIONS: dict[Predicts, type[Prediction]] = {
    "score": ScorePrediction,
    "noise": NoisePrediction,
    "v": VelocityPrediction,
    "data": DataPrediction,
}


class _WithClasses(nn.Module):
    """A network with classes, which is shown `no_class` for an image without a class."""

    def __init__(self, network: nn.Module, no_class: int | None) -> None:
        super().__init__()
        self.network, self.no_class = network, no_class

    def forward(self, x: Tensor, label: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = torch.full(label.shape, -1, device=x.device) if labels is None else labels
        if self.no_class is not None:
            labels = labels.where(labels >= 0, self.no_class)
        elif (labels < 0).any():
            problem = "is missing, and an image has no class: give the label that stands for none"
            raise OptionError("no_class", problem)
        output: Tensor = self.network(x, label, labels.clone())  # a network may change them in place
        return output


@checked
def wrap(
    network: Annotated[Callable[..., Tensor], Said("a torch.nn.Module or a function of (x, label)")],
    *,
    predicts: Predicts,
    process: Annotated[Process, Said("a forward process, as VarianceExploding(0.01, 50, 1000) is")],
    shape: Shape,
    data_range: DataRange,
    label: str | Callable[[Tensor], Tensor] | None = None,
    classes: Classes = 0,
    no_class: Annotated[int, Range(-1, MOST)] | None = None,
) -> Model:
    """A pretrained network as a model that every sampler here can sample.

    The network is called as `network(x, label)`, or as `network(x, label, labels)` if it has classes:

    - x: (batch, C, H, W) float32, the state m(t) (x_0 + sigma z) of the process; m = 1 for VE.
    - label: (batch,) float32.
    - labels: (batch,) int64, the class of each image.

    It returns a tensor of the shape of x. It is called once here, with two images, and is put into evaluation mode. So are the
    networks that a function calls. Most samplers with few iterations step between the levels of a chain, and N t - 1 is
    fractional there. A network that looks its label up in a table of N levels should interpolate between two of them.

    Args:
        network: a `torch.nn.Module` or a function.
        predicts: the quantity that it returns. "score": the score of the state that it sees. "noise": z. "v": m (z - sigma
            x_0), for VP states (Salimans & Ho, ICLR 2022). "data": the clean image x_0, as the denoiser D(x; sigma) of EDM
            does.
        process: the forward process that it was trained on.
        shape: (C, H, W) of its images.
        data_range: pixel values of black and white that it was trained on, such as (0, 1) or (-1, 1). Noise levels have the
            same units: a level of a network on [-1, 1] is twice that of one on [0, 1].
        label: its noise label: "sigma" (in units of `data_range`), "log_sigma/4" (EDM's c_noise), "t" (from 0 to 1), "999t"
            ([SDE]), "Nt-1" (DDPM; N of the process), or a function of the (batch,) float64 sigma. None takes the label of
            published networks of the process: sigma (VE), 999 t (VP, sub-VP), N t - 1 (a chain of N levels).
        classes: number of classes of its labels; 0 for none.
        no_class: the label of an image without a class, as 1000 for ImageNet; None for a network without an unconditional
            score.

    Raises:
        PDSError: an argument does not fit, the network fails, or it returns something else than a tensor like x.
    """
    if isinstance(network, type):
        raise OptionError("network", f"must be an object, got the class {network.__name__}: give {network.__name__}(…)")
    if no_class is not None and not classes:
        raise OptionError("no_class", f"must be left out where classes is 0, got {no_class}")
    black, white = data_range
    if not black < white:
        raise OptionError("data_range", f"must be (black, white) with black below white, got {shown(data_range)}")
    if isinstance(process, CriticallyDamped):
        raise OptionError("process", "must be one of images: pds.load reads the networks of CLD, which see a velocity as well")
    channels, height, width = shape
    name = type(network).__name__ if isinstance(network, nn.Module) else getattr(network, "__name__", "network")
    module: nn.Module = network if isinstance(network, nn.Module) else FunctionNetwork(network)
    module = _WithClasses(module, no_class) if classes else module
    score = PREDICTIONS[predicts](module.eval(), process, process.label if label is None else label)
    # The largest labels: an embedding of fewer classes knows the smallest.
    labels = [classes - 1, 0 if no_class is None else no_class] if classes else []
    _try(score, (channels, height, width), name, labels)
    title = f"{name} ({process.title}) {channels}x{height}x{width}"
    unconditional = not classes or no_class is not None
    size = (channels, height, width)
    return Model(title, score, process, size, None, (black, white), classes=classes, unconditional=unconditional)


@torch.no_grad()
def _try(score: Prediction, shape: tuple[int, int, int], name: str, labels: Sequence[int]) -> None:
    """Call the network once, with two images at the largest and the smallest noise level.

    Args:
        score: the score of the network.
        shape: (C, H, W).
        name: name of the network.
        labels: a label for each of the two images; empty for a network without classes.
    """
    device = next((p.device for p in score.parameters()), torch.device("cpu"))
    sigma, size = score.process.ladder[[0, -1]].to(device), (2, *shape)
    try:
        label = score.label(sigma, score.process.time(sigma))
    except Exception as error:  # someone else's function may raise anything
        raise OptionError("label", f"fails for two noise levels: {type(error).__name__}, {first_line(error)}") from error
    if not isinstance(label, Tensor) or label.shape != (2,):
        raise OptionError("label", f"must give a tensor of shape (2,) for two noise levels, got {_described(label)}")
    called = f"{name}(x, label, labels)" if labels else f"{name}(x, label)"
    given = f"x of shape {size} and label of shape (2,), both float32 on {device.type}"
    given += f", and labels {', '.join(map(str, labels))}" if labels else ""
    try:
        x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
        with evaluating():
            output = score.network(x, label.to(x.dtype), *([torch.tensor(labels, device=device)] if labels else []))
    except Exception as error:  # so may a network
        raise PDSError(f"{called} fails for {given}: {type(error).__name__}, {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.shape != x.shape or not output.is_floating_point():
        expected = f"a floating-point tensor of shape {size}, that of x"
        raise PDSError(f"{called} returned {_described(output)}, expected {expected}")
    if output.device != x.device:
        raise PDSError(f"{called} returned a tensor on {output.device}, and x is on {x.device}: leave it there")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    parts = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"a {type(value).__name__}{parts}"
