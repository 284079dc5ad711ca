"""Models from their weights: files that describe their network, diffusers folders, and published checkpoints by their card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pds.data.statistics import DatasetStatistics
from pds.errors import MissingError, OptionError, PDSError, first_line
from pds.files import ASSETS, DamagedError, locate
from pds.models.checkpoints import DIFFUSERS, DiffusersFolder
from pds.models.diffusers_layout import DEFAULTS, described
from pds.models.edm import read_edm
from pds.models.ncsn import ncsn
from pds.models.ncsnpp import ncsnpp
from pds.models.ncsnv2 import ncsnv2
from pds.models.safetensors_files import read_configuration
from pds.models.scores import Model, placed, single_precision
from pds.models.unet2d import unet2d
from pds.options import Shape, checked
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.critically_damped import SSCS
from pds.samplers.edm import EDM
from pds.samplers.predictor_corrector import Ancestral, EulerMaruyama, Langevin, PredictorCorrector, ReverseDiffusion
from pds.samplers.sampler import Sampler

MAKERS: dict[str, Callable[..., Model]] = {maker.__name__: maker for maker in (ncsn, ncsnv2, ncsnpp)}
"""The networks of this library by name, as `model=NAME` and in weights files."""
PROCESSES = {kind.title: kind for kind in (VarianceExploding, VariancePreserving, SubVariancePreserving, CriticallyDamped)}


@dataclass(frozen=True)
class Card:
    """A published network.

    Attributes:
        make: makes the network, from its options and its weights.
        options: arguments of `make`.
        sampler: the sampler of its authors.
    """

    make: Callable[..., Model]
    options: Mapping[str, Any]
    sampler: Sampler[Any]

    @property
    def facts(self) -> dict[str, Any]:
        """All published facts by name: the options of the network, of its noise and of its sampler, and the image size."""
        corrector, process = getattr(self.sampler, "corrector", None), self.options.get("process")
        parts = (corrector, self.sampler, process)
        facts = {name: value for part in parts if part is not None for name, value in vars(part).items()}
        return {**facts, "size": self.options["shape"][1], **self.options}


def _ncsnv2(depth: str, size: int, sigma_begin: float, levels: int, iterations: int, step_size: float) -> Card:
    """[NCSNv2] appendix A."""
    options = {
        "shape": (3, size, size),
        "width": 128,
        "depth": depth,
        "sigma_begin": sigma_begin,
        "sigma_end": 0.01,
        "levels": levels,
    }
    return Card(ncsnv2, options, AnnealedLangevin(iterations, step_size))


def _ncsnpp(size: int, sigma_max: float, snr: float, **options: Any) -> Card:
    """[SDE] appendix H."""
    levels = 1000 if size == 32 else 2000
    process = VarianceExploding(0.01, sigma_max, levels)
    sampler = PredictorCorrector(levels, ReverseDiffusion(), Langevin(snr))
    return Card(ncsnpp, {"shape": (3, size, size), "process": process, **options}, sampler)


_LARGE = {"blocks": 2, "output": "output_skip", "input": "input_skip", "dropout": 0.0}
_256 = {"multipliers": (1, 1, 2, 2, 2, 2, 2), **_LARGE}
_DDPMPP = {"embedding": "positional", "fir": False, "input": "none", "scale_by_sigma": False, "centred": True}

CARDS: dict[str, Card] = {
    "ncsn_mnist": Card(
        ncsn,
        {"shape": (1, 28, 28), "width": 64, "sigma_begin": 1.0, "sigma_end": 0.01, "levels": 10},
        AnnealedLangevin(1000, 0.2, denoise=False),
    ),
    **{
        f"ncsn_{name}": Card(
            ncsn,
            {"shape": (3, 32, 32), "width": 128, "sigma_begin": 1.0, "sigma_end": 0.01, "levels": 10},
            AnnealedLangevin(1000, 0.2, denoise=False),
        )
        for name in ("cifar10", "celeba")
    },
    "ncsnv2_cifar10": _ncsnv2("base", 32, 50.0, 232, 1160, 0.062),
    "ncsnv2_celeba": _ncsnv2("base", 64, 90.0, 500, 2500, 0.033),
    "ncsnv2_church": _ncsnv2("deeper", 96, 140.0, 788, 3152, 0.049),
    "ncsnv2_tower": _ncsnv2("deeper", 128, 190.0, 1086, 3258, 0.018),
    "ncsnv2_bedroom": _ncsnv2("deeper", 128, 190.0, 1086, 3258, 0.018),
    "ncsnv2_ffhq": _ncsnv2("deepest", 256, 348.0, 2311, 6933, 0.009),
    "ncsnpp_cifar10": _ncsnpp(32, 50.0, 0.16),
    "ncsnpp_cifar10_deep": _ncsnpp(32, 50.0, 0.16, blocks=8),
    "ncsnpp_church": _ncsnpp(256, 380.0, 0.075, **_256),
    "ncsnpp_bedroom": _ncsnpp(256, 378.0, 0.075, **_256),
    "ncsnpp_ffhq1024": _ncsnpp(
        1024, 1348.0, 0.15, width=16, multipliers=(1, 2, 4, 8, 16, 32, 32, 32), **_LARGE | {"blocks": 1}
    ),
    "ncsnpp_ffhq256": _ncsnpp(256, 348.0, 0.075, **_256),
    "ddpmpp_cifar10": Card(
        ncsnpp,
        {"shape": (3, 32, 32), "process": VariancePreserving(), **_DDPMPP},
        PredictorCorrector(1000, EulerMaruyama(), None),
    ),
    "cld_cifar10": Card(
        ncsnpp,
        {
            "shape": (3, 32, 32),
            "process": CriticallyDamped(),
            "blocks": 8,
            "scale_by_sigma": False,
            "centred": True,
        },
        SSCS(),
    ),
}
"""Published checkpoints by network and data set; `deep` has twice the blocks."""


@checked
@single_precision()
def load(
    source: str | Path, *, card: str | None = None, shape: Shape | None = None, device: str | torch.device | None = None
) -> Model:
    """A model from its weights.

    Args:
        source: a weights file that names its network, a diffusers folder of a DDPM or an NCSN++, a pickle of EDM (.pkl), or,
            with a card, a published checkpoint.
        card: which published network it is, a key of `CARDS`.
        shape: (C, H, W) of its images, for a diffusers network that does not say it.
        device: where to put the network, as "cuda"; None for a GPU if there is one.

    Raises:
        PDSError: the file is absent, damaged or of another network, or it does not name its network and there is no card.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    place = placed(default if device is None else device)
    path = _found(source)
    if card is not None:
        if card not in CARDS:
            raise OptionError("card", f"must be one of {', '.join(CARDS)}, got {card!r}")
        chosen = CARDS[card]
        model = replace(chosen.make(**chosen.options, checkpoint=str(path)), sampler=chosen.sampler)
    elif path.is_dir() or path.stem == DIFFUSERS:
        model = _of_diffusers(path, shape)
    elif path.suffix == ".pkl":
        model = read_edm(path)
        # The README of NVlabs/edm: 18 iterations for CIFAR-10, 40 for FFHQ and AFHQv2.
        model = replace(model, sampler=EDM(18 if model.shape[1] <= 32 else 40, S_churn=0.0))
    else:
        model = _of_ours(path)
    if shape is not None and tuple(shape) != tuple(model.shape):
        raise OptionError("shape", f"is {tuple(shape)}, and the network is of images of shape {tuple(model.shape)}")
    model.score.to(place)
    return model


def _found(source: str | Path) -> Path:
    """The file or folder. Names of this project's files may be given without their suffix."""
    path = locate(source)
    named = path if path.exists() or path.suffix else path.with_name(f"{path.name}.safetensors")
    if named.exists():
        return named
    ours = [file.stem for file in sorted(ASSETS.glob("*.safetensors")) if read_configuration(file).get("model")]
    raise MissingError(
        f"{source} does not exist: give a weights file, a diffusers folder, or asset:NAME, one of {', '.join(ours)}"
    )


def _of_ours(path: Path) -> Model:
    """The model of a file that describes its network."""
    configuration = read_configuration(path)
    options, dataset = dict(configuration.get("model", {})), configuration.get("dataset", {})
    kind, process = options.pop("kind", None), options.pop("process", None)
    if kind is None:
        problem = f"is missing, and {path} does not say which published network it is: give one of {', '.join(CARDS)}"
        raise OptionError("card", f"{problem}; a network of your own is made first, then loaded and given to wrap")
    if not isinstance(kind, str) or kind not in MAKERS:
        raise PDSError(f"{path} is of a network that is not this library's ({kind}): make it, load its weights, and wrap it")
    options.pop("checkpoint", None)
    try:
        if process is not None:
            options["process"] = PROCESSES[process["kind"]](**{key: value for key, value in process.items() if key != "kind"})
        model = MAKERS[kind](**options, checkpoint=str(path))
    except PDSError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise DamagedError(
            f"{path} describes no {kind} ({type(error).__name__}: {first_line(error)}): fetch it again"
        ) from None
    sampler: Sampler[Any] = PredictorCorrector(50, ReverseDiffusion(), None)
    if isinstance(model.process, CriticallyDamped):
        sampler = SSCS()
    elif kind in ("ncsn", "ncsnv2"):
        sampler = AnnealedLangevin(2 * model.process.levels, 1.0)
    file = dataset.get("statistics_file")
    known = DatasetStatistics.load(file) if isinstance(file, str) and locate(file).is_file() else None
    return replace(model, statistics=known, sampler=sampler)


def _of_diffusers(path: Path, shape: Sequence[int] | None) -> Model:
    """The model of a diffusers folder: an NCSN++ if its embedding is that of a VE network, else a DDPM."""
    folder = DiffusersFolder.find(path)
    config = DEFAULTS | folder.config
    if config["time_embedding_type"] != "fourier":
        size = config["sample_size"]
        if size is None and shape is None:
            raise OptionError("shape", f"is missing, and {folder.unet} does not say it: give (C, H, W)")
        sides = size if isinstance(size, (list, tuple)) else (size, size)
        model = unet2d(tuple(shape or (config["in_channels"], *sides)), str(path))
        return replace(model, sampler=PredictorCorrector(model.process.levels, Ancestral(), None))
    options = dict(described(folder.config, folder.scheduler, folder.unet).settings)
    noise = {key.partition(".")[2]: options.pop(key) for key in list(options) if key.startswith("process.")}
    if not noise or "shape" not in options:
        raise OptionError("card", f"is missing, and {folder.unet} does not say its noise levels and its shape: give it")
    process = VarianceExploding(**noise)
    sampler = PredictorCorrector(process.levels, ReverseDiffusion(), Langevin(folder.scheduler.get("snr", 0.16)))
    return replace(ncsnpp(**options, process=process, checkpoint=str(path)), sampler=sampler)
