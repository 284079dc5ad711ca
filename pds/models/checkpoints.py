"""Weights into a network: from files of this project, of the authors, of others, and from folders of diffusers.

Read the file, choose one copy of the network in it, check the whole copy, load the whole copy. Nothing here runs code that a
file names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pds.dotted import dotted
from pds.errors import MissingError, OptionError, PDSError
from pds.files import locate, read_json, sha256
from pds.models.diffusers_layout import as_published, current_names
from pds.models.layouts import Which, choose_weights
from pds.models.safetensors_files import configuration_of, read_safetensors
from pds.models.torch_files import read_torch
from pds.options import shown
from pds.processes.ladders import geometric_ladder

log = logging.getLogger(__name__)

DIFFUSERS = "diffusion_pytorch_model"  # the name of every weights file of diffusers
EMA = {True: "EMA weights", False: "no EMA weights", None: "EMA or not is unknown"}
# The fixes for options that have no key of their own.
CHOSEN = {"shape": "choose images of that shape", "process.kind": "choose that process"}
LEVELS = "sigmas"  # name of the buffer of noise levels in networks
# Buffers that training fills, of normalisations of a batch and of a spectrum; others come from the constructor.
GATHERED = ("running_mean", "running_var", "weight_u", "weight_v", "._u", "._v")


@dataclass(frozen=True)
class Checkpoint:
    """The origin of a network's weights.

    Attributes:
        layout: "safetensors" (also this project's), "list" ([NCSN], [NCSNv2]), "dict" ([SDE] and most others), "diffusers",
            "EDM" or "state dict".
        ema: whether the weights are exponential moving averages; None if the file does not say.
        path: the file.
        sha256: of the file's bytes.
        label_dropout: the rate that a network with classes was trained with; None if the file does not say.
    """

    layout: str
    ema: bool | None
    path: Path
    sha256: str
    label_dropout: float | None = None


class _Weights(NamedTuple):
    """One copy of a network in a file, and the statements of the file about it.

    Attributes:
        layout, ema, path: see `Checkpoint`.
        state: tensors by their published names.
        traits: options that the network was trained with, by name.
        settings: all options that make its network, if they are known and `traits` are only a part.
        advice: what to do with weights of another network.
        label_dropout: see `Checkpoint`.
    """

    layout: str
    ema: bool | None
    path: Path
    state: dict[str, Any]
    traits: Mapping[str, Any] = MappingProxyType({})
    settings: Mapping[str, Any] = MappingProxyType({})
    advice: str = "it is a checkpoint of another network"
    label_dropout: float | None = None


class DiffusersFolder(NamedTuple):
    """A `UNet2DModel` as diffusers saves it, alone or in a pipeline.

    Attributes:
        unet: folder of the network.
        weights: its weights file.
        config: its config.json.
        scheduler: scheduler_config.json of the pipeline; empty where it is absent.
    """

    unet: Path
    weights: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def find(cls, path: Path) -> DiffusersFolder:
        """Find the parts, from the folder of the pipeline, from the folder of the network, or from its weights file.

        Raises:
            PDSError: a part is absent or cannot be read.
        """
        if not path.exists():
            raise MissingError(f"checkpoint {path} does not exist: give a diffusers folder")
        folder = path.parent if path.is_file() and path.stem == DIFFUSERS else path
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        candidates = [unet / f"{DIFFUSERS}.{suffix}" for suffix in ("safetensors", "bin")]
        weights = next((path for path in candidates if path.is_file()), None)
        if weights is None or not (unet / "config.json").is_file():
            raise PDSError(
                f"{path} is no diffusers folder: config.json and {candidates[0].name} must be in it, or in the unet/ in it"
            )
        # Early pipelines have all their files in one folder.
        schedulers = [folder / "scheduler_config.json" for folder in (unet, unet.absolute().parent / "scheduler")]
        noise = next((_configuration(path) for path in schedulers if path.is_file()), {})
        return cls(unet, weights, _configuration(unet / "config.json"), noise)


def load_weights(
    network: nn.Module,
    path: str | Path,
    which: Which = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    levels: tuple[str, str] | None = None,
) -> Checkpoint:
    """Load a checkpoint into `network`, all of it or nothing.

    Buffers that the file lacks keep their values. Noise levels that the file holds at half precision keep them as well.

    Args:
        network: any network. Those of this package have the published names, as the authors' files do.
        path: a file in any layout of `Checkpoint`, or a diffusers folder (of a pipeline or of its `UNet2DModel`).
        which: see `Which`.
        options: options of the model that the network itself does not know, by name: shape, noise. Files of this project say
            the options that they were trained with.
        levels: the options of the largest and the smallest noise level, if the levels of the file must be those of the network.

    Raises:
        PDSError: the file is absent, damaged or hostile, has no such weights, or is of another network. The message names the
            first parameter that is missing, unknown, of another shape or not finite, or the first option that differs.
    """
    return _load(network, _read(locate(path), network, which), path, which, options, levels)


def load_unet(network: nn.Module, folder: DiffusersFolder, which: Which = None) -> Checkpoint:
    """Load the weights of a diffusers folder into the network that diffusers makes of its config.json.

    diffusers itself leaves random values in a parameter that the file lacks.

    Raises:
        PDSError: as `load_weights`.
    """
    chosen = choose_weights(_content(folder.weights)[0], *_parameters(network), folder.weights)
    advice = "config.json and the weights are not of one network: fetch both again"
    weights = _Weights("diffusers", None, folder.weights, current_names(chosen.state), advice=advice)
    return _load(network, weights, folder.unet, which)


def load_edm(network: nn.Module, state: dict[str, Any], path: Path, label_dropout: float) -> Checkpoint:
    """Load the weights of a pickle of EDM, by their names here, into the network that its arguments make.

    Raises:
        PDSError: as `load_weights`.
    """
    advice = "its arguments and its weights are not of one network, fetch it again"
    return _load(network, _Weights("EDM", True, path, state, advice=advice, label_dropout=label_dropout), path, None)


def _parameters(network: nn.Module) -> tuple[dict[str, torch.Size], list[str]]:
    """Shapes of the tensors by name, in order, and the names of those that training changes; all names, if training changes
    none."""
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    if not trained:
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        return shapes, list(shapes)
    return {name: p.shape for name, p in network.named_parameters()}, trained


def _content(path: Path) -> tuple[Any, dict[str, str]]:
    """Return the content of a weights file, and its metadata."""
    return read_safetensors(path) if path.suffix == ".safetensors" else (read_torch(path), {})


def _read(path: Path, network: nn.Module, which: Which) -> _Weights:
    """One copy of the network, from a file or a folder."""
    if path.is_dir() or (path.is_file() and path.stem == DIFFUSERS):
        folder = DiffusersFolder.find(path)
        published = as_published(folder.config, folder.scheduler, _content(folder.weights)[0], folder.unet)
        return _Weights("diffusers", None, folder.weights, *published)
    if not path.exists():
        raise MissingError(f"checkpoint {path} does not exist: give a weights file")
    content, metadata = _content(path)
    layout, ema, state = choose_weights(content, *_parameters(network), path, which)
    if path.suffix != ".safetensors":
        return _Weights(layout, ema, path, state)
    if ema is None and metadata.get("weights") == "ema":
        ema = True
    configuration = configuration_of(metadata, path)
    model = dotted(configuration.get("model", {}))
    trainer = configuration.get("trainer")
    told = trainer.get("label_dropout") if isinstance(trainer, dict) else None
    dropout = float(told) if isinstance(told, (int, float)) else None
    return _Weights("safetensors", ema, path, state, model, label_dropout=dropout)


def _load(
    network: nn.Module,
    weights: _Weights,
    path: str | Path,
    which: Which,
    options: Mapping[str, Any] = MappingProxyType({}),
    levels: tuple[str, str] | None = None,
) -> Checkpoint:
    """Check all, then load all; messages call the checkpoint `path`."""
    if which == "ema" and not weights.ema:
        raise OptionError("weights", f"is ema, but {path} does not tell of averaged weights: leave it out")
    if which == "raw" and weights.ema:
        raise OptionError("weights", f"is raw, but {path} holds averaged weights alone: leave it out")
    # One option decides about the embedding of classes. A message about this option says more than one about a shape.
    classes = {name: value for name, value in weights.traits.items() if name == "classes"}
    _check_options(network, weights._replace(traits=classes), path, options)
    state = _checked_state(network, weights, path)
    _check_options(network, weights, path, options)
    if levels is not None and LEVELS in state:
        check_levels(state[LEVELS], network.get_buffer(LEVELS), path, levels)
        if _eps(state[LEVELS]) > torch.finfo(torch.float32).eps:
            del state[LEVELS]
    network.load_state_dict(state, strict=False)
    checkpoint = Checkpoint(weights.layout, weights.ema, weights.path, sha256(weights.path), weights.label_dropout)
    log.info("weights read from %s (layout: %s; %s; sha256 %s)", path, weights.layout, EMA[weights.ema], checkpoint.sha256[:12])
    if weights.ema is False and which is None:
        log.warning("%s has no averaged (EMA) weights; those of its last iteration are used, and often give worse images", path)
    return checkpoint


def _checked_state(network: nn.Module, weights: _Weights, path: str | Path) -> dict[str, Tensor]:
    """The tensors of the file, if they are exactly those of the network, with its shapes and with finite values."""

    def refused(problem: str) -> OptionError:
        advice = " (an NCSN++)" if weights.settings else f": {weights.advice}"
        return OptionError("checkpoint", f"{path} has {problem}{advice}", weights.settings)

    expected, parameters = network.state_dict(), dict(network.named_parameters())
    for name, value in expected.items():
        if name not in weights.state:
            if name in parameters:
                raise refused(f"no parameter {name} {tuple(value.shape)}")
            if name.endswith(GATHERED):
                raise refused(f"no {name} {tuple(value.shape)}, which training gathers (a whole state_dict has it)")
            continue
        found = weights.state[name]
        if not isinstance(found, Tensor):
            raise refused(f"no tensor as {name} but {shown(getattr(found, 'name', found))}")
        if found.shape != value.shape:
            raise refused(
                f"{name} of shape {tuple(found.shape)} where the model has {tuple(value.shape)} (another width, number of "
                "levels or number of channels)"
            )
        if found.is_floating_point() != value.is_floating_point() or found.is_complex() != value.is_complex():
            raise refused(f"{name} as {found.dtype} where the model has {value.dtype}")
        # A number may be too large for the type that the model has; a mask of the model may be of -inf.
        if not torch.isfinite(found.to(value.dtype)).all() and torch.isfinite(value).all():
            raise OptionError("checkpoint", f"{path} has values in {name} that are not finite numbers: fetch it again")
    unknown = next((name for name in weights.state if name not in expected), None)
    if unknown is not None:
        raise refused(f"a parameter {unknown} that the model does not have")
    return weights.state


def _check_options(network: nn.Module, weights: _Weights, path: str | Path, options: Mapping[str, Any]) -> None:
    """Refuse a network that was trained with other options than it is made with; many options leave no trace in its shapes."""
    known = {name: value for name, value in vars(network).items() if isinstance(value, (bool, int, str))} | dict(options)
    for name, value in weights.traits.items():
        if (ours := known.get(name, value)) != value:
            problem = f"is {shown(ours)}, but {path} was trained with {shown(value)}"
            if weights.settings:
                raise OptionError(name, problem, weights.settings)
            if name in CHOSEN:
                raise OptionError(name.removesuffix(".kind"), f"{problem}: {CHOSEN[name]}")
            raise OptionError(name, problem, {name: value})


def check_levels(found: Tensor, expected: Tensor, path: str | Path, options: tuple[str, str]) -> None:
    """Refuse a checkpoint that was trained on other noise levels than the model's.

    Levels are compared in the precision of the checkpoint, which may be half.

    Args:
        found: (L,) descending levels of the checkpoint.
        expected: (L,) descending levels of the model.
        path: the checkpoint.
        options: the options of the largest and the smallest level.

    Raises:
        OptionError: the levels differ; the message names both, and the options to set.
    """
    # Rounding to float32 moves a level by 1e-7; neighbours of the finest published ladder differ by 0.4%.
    exact = found.double()

    def differs(levels: Tensor) -> Tensor:
        near = max(1e-4, _eps(found)) * levels + torch.finfo(found.dtype).smallest_normal * _eps(found)
        return ~((exact - levels).abs() <= near)

    wrong = differs(expected.double())
    if not wrong.any():
        return
    i = int(wrong.nonzero()[0])
    ends = tuple(float(f"{level:g}") for level in (exact[0], exact[-1]))
    problem = f"is not that of {path}, which was trained on other noise levels (level {i}: {found[i]:g}, model {expected[i]:g})"
    largest, smallest = ends
    if not largest >= smallest > 0 or differs(geometric_ladder(largest, smallest, len(found))).any():
        raise OptionError(options[0], f"{problem}: only levels in geometric progression can be sampled")
    raise OptionError(options[0], problem, dict(zip(options, ends, strict=True)))


def _eps(value: Tensor) -> float:
    return torch.finfo(value.dtype).eps


def _configuration(path: Path) -> dict[str, Any]:
    return read_json(path, {}, "the configuration of a network or a scheduler", "fetch it again")
