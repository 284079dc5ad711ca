"""A network from anyone's file or module, as the command line names it: `model=own model.make=mynet.py:Tiny`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from torch import nn

from pds.errors import OptionError
from pds.models.checkpoints import load_weights
from pds.models.layouts import Which
from pds.models.scores import Classes, Model
from pds.models.wrap import DataRange, Predicts, wrap
from pds.named import code_digest, named, refused
from pds.options import MOST, Range, Shape, checked
from pds.processes.forward import Process


@checked
def own(
    make: str,
    predicts: Predicts,
    process: Process,
    shape: Shape,
    data_range: DataRange,
    label: str | None = None,
    classes: Classes = 0,
    no_class: Annotated[int, Range(-1, MOST)] | None = None,
    checkpoint: str | None = None,
    weights: Which = None,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """A network of one's own, ready to sample or to train.

    Args:
        make: a class or a function that returns a `torch.nn.Module`, as FILE.py:NAME or module:NAME.
        predicts: the quantity that it returns: the score, the noise, v or the clean image (data); see `pds.wrap`.
        process: the forward process that it was trained on.
        shape: (C, H, W) of its images.
        data_range: pixel values of black and white that it was trained on, as [0,1] or [-1,1]. Noise levels have these units.
        label: its noise label: sigma, log_sigma/4, t, 999t or Nt-1; null for the label of its process.
        classes: number of its classes; it is then called as (x, label, labels). 0 for none.
        no_class: the label of an image without a class; null for a network without an unconditional score.
        checkpoint: weights file, in any layout of `pds.models.checkpoints`; null for random weights.
        weights: which of its weights, see `load_weights`.
        arguments: arguments of `make`, by name.

    Raises:
        OptionError: there is no such file, module or name, its call fails, or it makes something else than a network.
        PDSError: the weights are of another network, or the network does not fit; see `pds.wrap`.
    """
    called, module = named(make, "make")
    network = _called(called, make, arguments)
    model = wrap(
        network,
        predicts=predicts,
        process=process,
        shape=shape,
        data_range=data_range,
        label=label,
        classes=classes,
        no_class=no_class,
    )
    # Files of this project say what the network was trained for.
    trained = {"shape": list(model.shape), "predicts": predicts, "data_range": list(data_range), "classes": classes}
    trained |= {"process.kind": process.title} | {f"process.{name}": value for name, value in vars(process).items()}
    # After the call in `wrap`, which gives lazy layers their shapes.
    loaded = None if checkpoint is None else load_weights(network, checkpoint, weights, trained)
    code = code_digest(module)
    # A training that drops no label never shows `no_class`.
    always_shown = classes > 0 and loaded is not None and loaded.label_dropout == 0
    return replace(
        model,
        checkpoint=loaded,
        beside_weights={"code": code} if code else {},
        unconditional=model.unconditional and not always_shown,
    )


def _called(make: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        network = make(**arguments)
    except Exception as error:
        raise refused(
            "make", f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())}) fails", error
        ) from error
    if not isinstance(network, nn.Module):
        raise OptionError("make", f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network
