"""Weights into a network: from files of this project, of the authors, of others, and from folders of diffusers.

Read the file, choose one copy of the network in it, check it whole, load it whole. Nothing here runs what a file names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pds.errors import MissingError, OptionError, PDSError
from pds.files import locate, read_json, sha256
from pds.models.diffusers_layout import as_published, current_names, spelled
from pds.models.layouts import Which, choose, tensors_of
from pds.models.safetensors_files import configuration_of, read_safetensors
from pds.models.torch_files import read_torch
from pds.options import shown
from pds.processes.ladders import geometric_ladder

log = logging.getLogger(__name__)

DIFFUSERS = "diffusion_pytorch_model"  # what it calls all its weights files
EMA = {True: "EMA weights", False: "no EMA weights", None: "EMA or not is unknown"}
LEVELS = "sigmas"  # what networks call the buffer of their noise levels


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a network come from.

    Attributes:
        layout: "safetensors" (also this project's), "list" ([NCSN], [NCSNv2]), "dict" ([SDE] and most others), "diffusers" or
            "state dict".
        ema: whether these are exponential moving averages; None where the file does not tell.
        path: the file.
        sha256: of the file's bytes.
    """

    layout: str
    ema: bool | None
    path: Path
    sha256: str


class _Weights(NamedTuple):
    """What a file holds: one copy of a network by its published names, and what more there is to check and to say."""

    layout: str
    ema: bool | None
    path: Path
    state: dict[str, Any]
    traits: Mapping[str, Any] = MappingProxyType({})
    fix: str = "it is a checkpoint of another network"


class DiffusersFolder(NamedTuple):
    """A `UNet2DModel` as diffusers saves it, alone or in a pipeline.

    Attributes:
        unet: folder of the network.
        weights: its weights file.
        config: its config.json.
        scheduler: scheduler_config.json of the pipeline; empty where there is none.
    """

    unet: Path
    weights: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def find(cls, path: Path) -> DiffusersFolder:
        """Find the parts, from the folder of the pipeline, that of the network, or its weights file.

        Raises:
            PDSError: when one is absent or cannot be read.
        """
        if not path.exists():
            raise MissingError(f"checkpoint {path} does not exist: set model.checkpoint to a diffusers folder")
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
        noise = next((_read_json(path) for path in schedulers if path.is_file()), {})
        return cls(unet, weights, _read_json(unet / "config.json"), noise)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in the file."""
        if self.weights.suffix == ".safetensors":
            return _read_safetensors(self.weights)[0]
        return _table(_read_torch(self.weights), self.weights)


def load_weights(network: nn.Module, path: str | Path, options: Mapping[str, Any] = MappingProxyType({})) -> Checkpoint:
    """Load a checkpoint into `network`, all of it or nothing: averaged (EMA) weights where there are any.

    Buffers that the checkpoint lacks stay as they are.

    Args:
        network: one of this package, whose parameters have the published names and order.
        path: a file in any of the layouts of `Checkpoint`, or a diffusers folder (of a pipeline or of its `UNet2DModel`).
        options: what the network itself does not know of its model, by configuration key below `model.`: shape, noise. Files
            of this project say what they were trained with.

    Raises:
        PDSError: for a missing, truncated or hostile file, or weights of another network, naming the first parameter that
            is missing, unknown, of another shape or not finite, or the first option that differs.
    """
    weights = _read(locate(path), [name for name, p in network.named_parameters() if p.requires_grad])
    return _load(network, weights, path, options)


def load_unet(network: nn.Module, folder: DiffusersFolder) -> Checkpoint:
    """Load the weights of a diffusers folder into the network that diffusers makes of its config.json.

    diffusers itself would leave a parameter that the file lacks at random.

    Raises:
        PDSError: as `load_weights`.
    """
    fix = "config.json and the weights are not of one network, fetch both again"
    return _load(network, _Weights("diffusers", None, folder.weights, current_names(folder.tensors()), fix=fix), folder.unet)


def _load(
    network: nn.Module, weights: _Weights, path: str | Path, options: Mapping[str, Any] = MappingProxyType({})
) -> Checkpoint:
    """Check all, then load all; `path` is what messages call the checkpoint."""
    expected, parameters = network.state_dict(), dict(network.named_parameters())
    state = {name: value for name, value in expected.items() if name not in parameters} | weights.state
    for name, value in expected.items():
        if name not in state:
            raise PDSError(f"{path} has no parameter {name} {tuple(value.shape)}: {weights.fix}")
        found = state[name]
        if found.shape != value.shape:
            raise PDSError(
                f"{path} has {name} of shape {tuple(found.shape)} where the model has {tuple(value.shape)} (another width, "
                f"number of levels or number of channels): {weights.fix}"
            )
        if not (found.is_floating_point() and torch.isfinite(found).all()):
            raise PDSError(f"{path} has values in {name} that are not finite numbers: fetch it again")
    unknown = next((name for name in state if name not in expected), None)
    if unknown is not None:
        raise PDSError(f"{path} has a parameter {unknown} that the model does not have: {weights.fix}")
    known = {name: value for name, value in vars(network).items() if isinstance(value, (bool, int, str))} | dict(options)
    for name, value in weights.traits.items():
        if (ours := known.get(name, value)) != value:
            fix = weights.fix if weights.layout == "diffusers" else _setting(name, value)
            raise PDSError(f"{path} is of a network with {name} {value}, the model has {ours}: {fix}")
    network.load_state_dict(state)
    checkpoint = Checkpoint(weights.layout, weights.ema, weights.path, sha256(weights.path))
    log.info("weights read from %s (layout: %s; %s; sha256 %s)", path, weights.layout, EMA[weights.ema], checkpoint.sha256[:12])
    if weights.ema is False:
        log.warning(
            "%s has no averaged (EMA) weights; those of its last iteration are used, whose images are often worse", path
        )
    return checkpoint


def check_levels(found: Tensor, expected: Tensor, path: str | Path, begin: str, end: str) -> None:
    """Refuse a checkpoint that was trained on other noise levels than the model's.

    Args:
        found: (L,) descending `sigmas` of the checkpoint.
        expected: (L,) descending levels of the model.
        path: the checkpoint.
        begin, end: configuration keys of the largest and the smallest level.

    Raises:
        PDSError: naming both, and what to set.
    """
    # Rounding to float32 moves a level by 1e-7; neighbours of the finest published ladder differ by 0.4%.
    wrong = (found.double() / expected - 1).abs() > 1e-4
    if not wrong.any():
        return
    fix = f"set {begin}={found[0]:g} and {end}={found[-1]:g}"
    if not (wrong[0] or wrong[-1]):
        fix = "only levels in geometric progression can be sampled"
    i = int(wrong.nonzero()[0])
    raise PDSError(
        f"{path} was trained on other noise levels than the model's (level {i}: {found[i]:g}, model {expected[i]:g}): {fix}"
    )


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write weights as safetensors, atomically, with where they come from as metadata."""
    with atomic_path(path) as temporary:
        # `save_file` would give the file a mode that only its owner can read.
        temporary.write_bytes(save({name: value.contiguous() for name, value in state.items()}, metadata=metadata))


def _read(path: Path, trainable: list[str]) -> _Weights:
    """Find the layout of a file or folder; `trainable` are the names that an average without names belongs to."""
    if path.is_dir() or (path.is_file() and path.stem == DIFFUSERS):
        folder = DiffusersFolder.find(path)
        state, traits, fix = as_published(folder.config, folder.scheduler, folder.tensors(), folder.unet)
        return _Weights("diffusers", None, folder.weights, state, traits, fix)
    if not path.is_file():
        raise MissingError(f"checkpoint {path} does not exist: set model.checkpoint to a weights file")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        return _Weights(
            "safetensors", True if metadata.get("weights") == "ema" else None, path, state, _trained_as(path, metadata)
        )
    content = _read_torch(path)
    if isinstance(content, (list, tuple)) and content:
        # [NCSN] saves [model, optimizer]; [NCSNv2] saves [model, optimizer, epoch, step, average by name].
        layout, state, average = "list", content[0], content[4] if len(content) > 4 else None
    elif isinstance(content, dict) and "model" in content:
        # [SDE] saves optimizer, model, ema and step; its average is a list in the order of the trainable parameters.
        layout, state, average = "dict", content["model"], content.get("ema")
        average = average.get("shadow_params") if isinstance(average, dict) else average
    else:
        return _Weights("state dict", None, path, _table(content, path))
    state = _table(state, path)
    if average is None:
        return _Weights(layout, False, path, state)
    if isinstance(average, list):
        if len(average) != len(trainable):
            raise PDSError(
                f"{path} averages {len(average)} parameters where the model trains {len(trainable)}: it is a checkpoint of "
                "another network, choose its model and data set"
            )
        average = dict(zip(trainable, average, strict=True))
    average = _table(average, path)
    missing = next((name for name in trainable if name not in average), None)
    if missing is not None:
        raise PDSError(
            f"{path} has no average of the parameter {missing}: it is a checkpoint of another network, choose its model and "
            "data set"
        )
    # Buffers and the parameters that are not trained have no average.
    return _Weights(layout, True, path, state | average)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise PDSError(f"{path} is not a whole safetensors file ({first_line(error)}): fetch it again") from None


def _trained_as(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The options of the model that a file of this project was trained as: many leave no trace in its shapes."""
    try:
        config = yaml.safe_load(metadata.get("config", "{}"))
        return {key.removeprefix("model."): value for key, value in config.items() if key.startswith("model.")}
    except Exception:  # The parser fails in more ways than its own.
        raise PDSError(f"{path} has no table of options as its metadata `config`: fetch it again") from None


def _setting(name: str, value: Any) -> str:
    """What gives a model an option that a file of this project was trained with."""
    if name == "shape":
        return "choose a data set of this shape (dataset.shape or dataset.resolution)"
    return f"set model.{name}={spelled(value)}"


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They are of what is refused in a moment.
            # The format of torch before 1.6 cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise PDSError(f"{path} cannot be read ({first_line(error)}): set model.checkpoint to a weights file") from None
    except Exception as error:  # A file that is no checkpoint fails in any way the unpickler can fail.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        code = refused[1] if refused else _code(path)
        if code:
            raise PDSError(f"{path} holds code ({code}), which is never executed here: get a file of plain weights") from None
        raise PDSError(
            f"{path} is a truncated checkpoint, or none at all (fetch it again), or was saved with a pickle protocol above 2"
        ) from None


def _code(path: Path) -> str | None:
    """The first function or class, but those of plain weights, that a file of `torch.save` would import.

    torch names it for pickles of its own protocol alone; nothing is executed, here neither.
    """
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            file = stack.enter_context(archive.open(next(x for x in archive.namelist() if x.endswith("data.pkl"))))
        # Before 1.6 torch wrote five pickles in a row, then the numbers.
        for _ in range(5):
            for name in _imports(file):
                if not PLAIN.fullmatch(name):
                    return name
    return None


def _imports(pickled: IO[bytes]) -> Iterator[str]:
    """What one pickle imports, in order."""
    pushed: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, value, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            pushed.append(".".join(map(str, pushed[-2:])) if value is None else value.replace(" ", "."))
            yield pushed[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
        elif opcode.stack_after:
            pushed.append(memo.get(value) if "GET" in opcode.name else value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise PDSError(f"{path} cannot be read as JSON ({first_line(error)}): fetch it again") from None
    if not isinstance(content, dict):
        raise PDSError(f"{path} is not the configuration of a network or a scheduler: fetch it again")
    return content


def _table(content: Any, path: Path) -> dict[str, Tensor]:
    """`content` as tensors by name, without the prefix of `DataParallel`."""
    if not (isinstance(content, dict) and content and all(isinstance(name, str) and _plain(x) for name, x in content.items())):
        raise PDSError(f"{path} holds no table of tensors by name: it is not a checkpoint of a network this project knows")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
