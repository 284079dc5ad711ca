"""Networks of Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022 (EDM), from the
pickles that their code writes.

Such a file holds the arguments of its network, its weights, and the source of its classes. The source is not read. `SongUNet`
is the NCSN++ or the DDPM++ of [SDE] under other names, so it becomes an `NCSNpp`. The class around it becomes a prediction
(`pds.models.scores`) and a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pds.errors import MissingError, OptionError, PDSError
from pds.files import locate
from pds.models.checkpoints import load_edm
from pds.models.diffusers_layout import COMBINE, PLAIN, both
from pds.models.ncsnpp import Embedding, Input, NCSNpp
from pds.models.scores import Classes, Model, NoisePrediction, Prediction, ScorePrediction
from pds.models.torch_files import read_pickle
from pds.options import Count, Length, NonNegative, Positive, Range, Shape, checked, fitted, options, options_of, shown
from pds.processes.forward import Process, VarianceExploding, VariancePreserving

WHAT = "a pickle of EDM"
READ = "EDMPrecond, VPPrecond and VEPrecond around a SongUNet are read"
MOST, LENGTH = 100_000, 1000  # limits of modules, and of the length of their names: a table may hold itself
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # the levels of EDM's sampler for a file without limits of its own (table 1)

Limit = Annotated[float, Range(above=0, infinity="no upper limit")]

RESIDUAL = both(norm0="GroupNorm_0", conv0="Conv_0", affine="Dense_0", norm1="GroupNorm_1", conv1="Conv_1", skip="Conv_2")
JOIN = {"skip": COMBINE, "residual": {"weight": "Conv2d_0.weight", "bias": "Conv2d_0.bias"}}
ATTENTION = {"norm2.weight": "GroupNorm_0.weight", "norm2.bias": "GroupNorm_0.bias"}
ATTENTION |= {"proj.weight": "NIN_3.W", "proj.bias": "NIN_3.b"}
ATTENTION |= {f"qkv{i}.{theirs}": f"NIN_{i}.{ours}" for i in range(3) for theirs, ours in (("weight", "W"), ("bias", "b"))}
INPUT: dict[str, Input] = {"standard": "none", "skip": "input_skip", "residual": "residual"}


class EDMPrediction(Prediction):
    """The network predicts F of D = c_skip x + c_out F(c_in x; c_noise) (EDM, table 1).

    With m = c_in = 1 / sqrt(sigma^2 + sigma_data^2), the score is m (sigma_data F / sigma - m x).

    Args:
        network, process, label: see `Prediction`; c_noise = log(sigma) / 4.
        sigma_data: standard deviation of the pixels that c_in, c_skip and c_out expect.
    """

    def __init__(self, network: NCSNpp, process: Process, label: str | Callable[[Tensor], Tensor], sigma_data: float) -> None:
        super().__init__(network, process, label)
        self.sigma_data = sigma_data

    def scale(self, t: Tensor, sigma: Tensor) -> Tensor:
        return (sigma.double().square() + self.sigma_data**2).rsqrt()

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        return m * (self.sigma_data * output / sigma - m * x)


@options
class SongUNet:
    """The arguments of a `SongUNet`, by their names in its file, with its defaults.

    Attributes:
        img_resolution: height and width.
        in_channels, out_channels: C.
        label_dim: number of classes.
        augment_dim: length of the labels of augmentation. These are zero in sampling, so their layer, without a bias, adds
            nothing.
        model_channels: channels of the first level.
        channel_mult: width of each level in units of these.
        channel_mult_emb: width of the embedding in units of these.
        num_blocks: residual blocks a level.
        attn_resolutions: heights with attention.
        dropout: dropout of training.
        label_dropout: share of training images that were shown without their class.
        embedding_type: embedding of the noise level.
        channel_mult_noise: features of the noise level in units of `model_channels`.
        encoder_type: how the image enters the levels.
        decoder_type: how the levels make the image.
        resample_filter: taps of the filter.
    """

    img_resolution: Annotated[int, Range(1, 16_384)]
    in_channels: Annotated[int, Range(1, 64)]
    out_channels: Annotated[int, Range(1, 64)]
    label_dim: Classes = 0
    augment_dim: Annotated[int, Range(0, 1024)] = 0
    model_channels: Annotated[int, Range(4, 1024)] = 128
    channel_mult: Annotated[Sequence[int], Range(1, 64), Length(1, 12)] = (1, 2, 2, 2)
    channel_mult_emb: Literal[4] = 4
    num_blocks: Annotated[int, Range(1, 64)] = 4
    attn_resolutions: Annotated[Sequence[int], Range(1, 16_384), Length(0, 12)] = (16,)
    dropout: Annotated[float, Range(0, below=1)] = 0.1
    label_dropout: Annotated[float, Range(0, 1)] = 0.0
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: Annotated[int, Range(1, 64)] = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: Annotated[Sequence[int], Length(1, 64)] = (1, 1)

    def __post_init__(self) -> None:
        self._require("out_channels", self.in_channels)
        self._require("channel_mult_noise", 2 if self.embedding_type == "fourier" else 1)
        if self.encoder_type == "residual" or tuple(self.resample_filter) != (1, 1):
            self._require("resample_filter", (1, 3, 3, 1))

    def _require(self, name: str, value: Any) -> None:
        given = getattr(self, name)
        if (tuple(given) if isinstance(given, Sequence) else given) != value:
            raise OptionError(name, f"must be {value} here, got {shown(given)}")

    def network(self, process: Process, zero_to_one: bool) -> NCSNpp:
        """The same network here: of images in [0, 1] and divided by sigma, for the score of VE, or of images in [-1, 1]."""
        return NCSNpp(
            channels=self.in_channels,
            size=self.img_resolution,
            width=self.model_channels,
            multipliers=self.channel_mult,
            blocks=self.num_blocks,
            attention=self.attn_resolutions,
            sigmas=process.ladder,
            embedding=self.embedding_type,
            fir=len(self.resample_filter) == 4,
            output="output_skip" if self.decoder_type == "skip" else "none",
            input=INPUT[self.encoder_type],
            scale_by_sigma=zero_to_one,
            centred=not zero_to_one,
            dropout=self.dropout,
            classes=self.label_dim,
        ).eval()

    def modules(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Its modules in the order of the flat list of an `NCSNpp`, and the names in each."""
        levels, low = [self.img_resolution >> i for i in range(len(self.channel_mult))], self.img_resolution
        if self.embedding_type == "fourier":
            yield "map_noise", {"freqs": "W"}
        yield "map_layer0", PLAIN
        yield "map_layer1", PLAIN
        yield f"enc.{low}x{low}_conv", PLAIN
        for size, low in zip(levels, [*levels[1:], 0], strict=True):
            for i in range(self.num_blocks):
                yield from self._block(f"enc.{size}x{size}_block{i}", size in self.attn_resolutions)
            if low:
                yield f"enc.{low}x{low}_down", RESIDUAL
                if self.encoder_type != "standard":
                    yield f"enc.{low}x{low}_aux_{self.encoder_type}", JOIN[self.encoder_type]
        low = levels[-1]
        yield from self._block(f"dec.{low}x{low}_in0", True)
        yield f"dec.{low}x{low}_in1", RESIDUAL
        for size, up in zip(reversed(levels), [*reversed(levels[:-1]), 0], strict=True):
            for i in range(self.num_blocks + 1):
                yield from self._block(f"dec.{size}x{size}_block{i}", i == self.num_blocks and size in self.attn_resolutions)
            if not up or self.decoder_type == "skip":
                yield f"dec.{size}x{size}_aux_norm", PLAIN
                yield f"dec.{size}x{size}_aux_conv", PLAIN
            if up:
                yield f"dec.{up}x{up}_up", RESIDUAL

    def _block(self, name: str, attention: bool) -> Iterator[tuple[str, dict[str, str]]]:
        yield name, RESIDUAL
        if attention:
            yield name, ATTENTION


Made = tuple[Prediction, tuple[float, float]]
"""A score, and its data range."""


def _edm(unet: SongUNet, given: dict[str, Any], most: int) -> Made:
    low, high = _told(given, "sigma_min", NonNegative), _told(given, "sigma_max", Limit)
    process = VarianceExploding(max(low, SIGMA_MIN), min(high, SIGMA_MAX))
    # c_noise; a network with Fourier features takes the logarithm itself.
    label = "log_sigma/4" if unet.embedding_type == "positional" else lambda sigma: sigma**0.25
    network = _bounded(unet, process, False, most)
    return EDMPrediction(network, process, label, _told(given, "sigma_data", Positive)), (-1.0, 1.0)


def _vp(unet: SongUNet, given: dict[str, Any], most: int) -> Made:
    """D = x - sigma F(x / sqrt(1 + sigma^2); (M - 1) t): F is the noise, as in a DDPM++."""
    _require_embedding(unet, "positional")
    low, slope = _told(given, "beta_min", Positive), _told(given, "beta_d", NonNegative)
    levels = _told(given, "M", Count)
    process = VariancePreserving(low, low + slope, levels)
    network = _bounded(unet, process, False, most)
    return NoisePrediction(network, process, lambda sigma: (levels - 1) * process.time(sigma)), (-1.0, 1.0)


def _ve(unet: SongUNet, given: dict[str, Any], most: int) -> Made:
    """D = x + sigma F(x; log(sigma / 2)) of images in [-1, 1]. For images in [0, 1], F / sigma is the score, as in an
    NCSN++."""
    _require_embedding(unet, "fourier")
    low, high = _told(given, "sigma_min", Positive), _told(given, "sigma_max", Positive)
    process = VarianceExploding(low / 2, high / 2)
    return ScorePrediction(_bounded(unet, process, True, most), process, "sigma"), (0.0, 1.0)


MAKERS: dict[str, Callable[[SongUNet, dict[str, Any], int], Made]] = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve}


def _told(given: dict[str, Any], name: str, annotation: Any) -> Any:
    """One option among the attributes of a network, checked; an `OptionError` if it is missing."""
    if name not in given:
        raise OptionError(name, "is missing")
    return fitted(name, given[name], annotation)


def _require_embedding(unet: SongUNet, due: Embedding) -> None:
    if unet.embedding_type != due:
        raise OptionError("embedding_type", f"must be {due} here, got {unet.embedding_type}")


def _bounded(unet: SongUNet, process: Process, zero_to_one: bool, most: int) -> NCSNpp:
    """The network, if a file of `most` bytes can hold its weights; the arguments may be false."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in unet.network(process, zero_to_one).parameters())
    if 2 * count > most:  # at half precision
        raise OptionError("model_channels", f"and others make a network of {count:,} parameters, which the file does not hold")
    return unet.network(process, zero_to_one)


def _arguments(given: dict[str, Any]) -> SongUNet:
    known = options_of(SongUNet)
    for name in given:
        if name not in known:
            raise OptionError(shown(name), "is no argument of a SongUNet")
    for name, option in known.items():
        if option.required and name not in given:
            raise OptionError(name, "is missing")
    return SongUNet(**given)


def _object(value: Any, path: Path, where: str) -> tuple[Any, dict[str, Any]]:
    """Class name and attributes of an object whose class keeps its source."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise PDSError(f"{path} holds no network of EDM as {where}: only {READ}")
    return value["class_name"], _table(value, "state")


def _table(attributes: dict[str, Any], name: str) -> dict[str, Any]:
    value = attributes.get(name)
    return value if isinstance(value, dict) else {}


def _tensors(attributes: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tensors of a module and of its submodules, by name."""
    found: dict[str, Any] = {}
    modules = [("", attributes)]
    for prefix, module in modules:  # the list grows
        if len(modules) > MOST or len(prefix) > LENGTH:
            raise PDSError(f"{path} has more modules than any network: it is damaged, fetch it again")
        tensors = {**_table(module, "_parameters"), **_table(module, "_buffers")}
        found |= {f"{prefix}{name}": value for name, value in tensors.items() if value is not None}
        for name in (inner := _table(module, "_modules")):
            child = _table(inner, name)
            # A container of modules keeps no source.
            modules.append((f"{prefix}{name}.", _table(child, "state") or child))
    return found


def _published(tensors: dict[str, Any], unet: SongUNet) -> dict[str, Any]:
    """The tensors by their names in an `NCSNpp`, without those that have no effect in sampling."""
    names = {
        f"{module}.{theirs}": f"all_modules.{index}.{ours}"
        for index, (module, parts) in enumerate(unet.modules())
        for theirs, ours in parts.items()
    }
    names |= {f"map_label.{leaf}": f"class_embedding.{leaf}" for leaf in ("weight", "bias")}
    state = {}
    for name, value in tensors.items():
        if name.endswith(".resample_filter") or name == "map_augment.weight":
            continue
        module, dot, leaf = name.rpartition(".")
        thirds = [(name, value)]
        if module.endswith(".qkv") and isinstance(value, Tensor) and value.ndim:
            # Channel 3 c + j is channel c of the query, the key or the value.
            thirds = [(f"{module}{j}{dot}{leaf}", value[j::3]) for j in range(3)]
        for theirs, part in thirds:
            ours = names.get(theirs, theirs)
            # A convolution of one pixel is (out, in, 1, 1), the weight of a NIN (in, out).
            turned = ".NIN_" in ours and isinstance(part, Tensor) and part.shape[2:] == (1, 1)
            state[ours] = part[..., 0, 0].T if turned else part
    return state


@checked
def edm(shape: Shape, checkpoint: str | Path | None) -> Model:
    """A network of EDM with its forward process and its weights, ready to sample. All of it comes from the file.

    Args:
        shape: (C, H, W) of its images.
        checkpoint: the pickle.

    Raises:
        PDSError: as in `read_edm`, or the images are of another shape.
    """
    if checkpoint is None:
        raise OptionError("checkpoint", f"must be {WHAT}, which says what network it holds")
    model = read_edm(locate(checkpoint))
    if model.shape != tuple(shape):
        problem = f"is {list(shape)}, but {checkpoint} is of images of shape {list(model.shape)}: choose such images"
        raise OptionError("shape", problem)
    return model


def read_edm(path: Path) -> Model:
    """A network of EDM from its pickle: a `SongUNet` in an `EDMPrecond`, or for its baselines in a `VPPrecond` or a
    `VEPrecond`.

    Nothing in the file is imported or executed. Only the averaged weights ("ema") and the arguments are read.

    Raises:
        PDSError: the file is absent, damaged or hostile, or holds another network, such as one of EDM2 or a DhariwalUNet.
    """
    if not path.exists():
        raise MissingError(f"checkpoint {path} does not exist: give {WHAT}")
    content = read_pickle(path, WHAT)
    if not isinstance(content, dict) or "ema" not in content:
        raise PDSError(f"{path} has no ema, as a pickle of EDM has: {READ}")
    kind, outer = _object(content["ema"], path, "ema")
    if kind not in MAKERS:
        raise PDSError(f"{path} holds a {shown(kind)}{', as files of EDM2 do' if kind == 'Precond' else ''}: only {READ}")
    inner, attributes = _object(_table(outer, "_modules").get("model"), path, "ema.model")
    if inner != "SongUNet":
        raise PDSError(f"{path} holds a {shown(inner)} in an {kind}: only {READ}")
    try:
        unet = _arguments(_table(attributes, "_init_kwargs"))
        score, data_range = MAKERS[kind](unet, outer, path.stat().st_size)
    except OptionError as error:
        raise PDSError(f"{path} holds a network that cannot be built ({error}): only {READ}") from None
    loaded = load_edm(score.network, _published(_tensors(attributes, path), unet), path, unet.label_dropout)
    channels, size, classes = unet.in_channels, unet.img_resolution, unet.label_dim
    name = "NCSN++" if unet.embedding_type == "fourier" else "DDPM++"
    taken = f", {classes} classes" if classes else ""
    title = f"{name} ({kind}, width {unet.model_channels}{taken}) {channels}x{size}x{size}"
    unconditional = not classes or unet.label_dropout > 0
    shape = (channels, size, size)
    return Model(title, score, score.process, shape, loaded, data_range, classes=classes, unconditional=unconditional)
