"""Adapters from networks to the score contract of `pds.score`. Each knows the noise levels that its network is trained on."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pds.errors import OptionError, PDSError
from pds.models.checkpoints import Checkpoint
from pds.options import Range, Said, shown
from pds.processes.critically_damped import VELOCITY, CriticallyDamped
from pds.processes.forward import Process
from pds.score import Labelled

if TYPE_CHECKING:
    from typing_extensions import Self

    from pds.data.statistics import DatasetStatistics
    from pds.samplers.sampler import Sampler

log = logging.getLogger(__name__)

Classes = Annotated[int, Range(0, 1_000_000)]
"""How many classes a network takes; 0 for one that takes none."""

TRAINING_END = 1e-5  # smallest training time of continuous models ([SDE] appendix C, [CLD] appendix E)


def _training_times(count: int, generator: torch.Generator) -> Tensor:
    """(count,) uniform times, float64."""
    return TRAINING_END + (1 - TRAINING_END) * torch.rand(count, generator=generator, dtype=torch.float64)


class NetworkScore(nn.Module):
    """A network as a score. It knows the noise levels for its training.

    The score of a network with classes also takes labels, `score(x, sigma, labels)`: (batch,) int64, -1 for no class. Without
    labels it is the unconditional score, if its training dropped labels.

    Attributes:
        network: the network.
        halves: how many images a state is made of: 1, or 2 for data and velocity.
    """

    network: nn.Module
    halves: ClassVar[int] = 1

    def moved(self, device: torch.device) -> Self:
        """This score, moved in place. Networks of this package are faster in channels_last; someone else's keeps its layout,
        which its code may rely on."""
        kept = getattr(getattr(self, "network", None), "pds_memory_format", torch.preserve_format)
        return self.to(device, memory_format=kept)  # type: ignore[call-overload]

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) random noise levels, float64."""
        raise NotImplementedError

    def noised(self, x: Tensor, sigma: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A state of training, and the score that it asks for, -noise / deviation.

        Args:
            x: (batch, C, H, W) clean images.
            sigma: (batch,) noise levels.
            z: (batch, halves C, H, W) standard normal noise.

        Returns:
            The state, like z; the noise, like x; and its deviation, (batch, 1, 1, 1).
        """
        deviation = sigma.to(x.dtype)[:, None, None, None]
        return x + deviation * z, z, deviation


class LadderScore(NetworkScore):
    """A network that takes the index of a noise level, as a score.

    Between two levels the noise e that it predicts at the nearest one gives the score -e / sigma.

    Args:
        network: `network(x, label)` with int64 labels, 0 = the largest level, returning the score of that level.
        sigmas: (L,) descending noise levels the network was trained on, in pixel units of the model.
    """

    sigmas: Tensor

    def __init__(self, network: nn.Module, sigmas: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sigmas", sigmas.double(), persistent=False)

    def label(self, sigma: Tensor) -> Tensor:
        """(batch,) int64 index of the level nearest to each sigma on a logarithmic scale."""
        distance = (sigma.double()[:, None] / self.sigmas[None, :]).log().abs()
        return distance.argmin(dim=1)

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) levels of the ladder, each as likely."""
        return self.sigmas.cpu()[torch.randint(len(self.sigmas), (count,), generator=generator)]

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        label = self.label(sigma)
        output: Tensor = self.network(x, label, *labels)
        ratio = self.sigmas[label] / sigma.double()
        # At a level, up to its rounding in float32, the score is the network's own output to the bit.
        ratio = torch.where((ratio - 1).abs() < 1e-6, 1.0, ratio)
        return output.float() * ratio.float()[:, None, None, None]


Labeller = Callable[[Tensor, Tensor, Process], Tensor]
"""(sigma, t, process) -> label, all (batch,)."""

LABELS: dict[str, Labeller] = {
    "sigma": lambda sigma, t, process: sigma,
    "log_sigma/4": lambda sigma, t, process: sigma.log() / 4,  # c_noise of Karras et al., NeurIPS 2022 (EDM), table 1
    "t": lambda sigma, t, process: t,
    "999t": lambda sigma, t, process: 999 * t,  # [SDE]
    # Ho et al., NeurIPS 2020 (DDPM): 0 is the smallest level. A sampler may leave the chain, and a table has no further labels.
    "Nt-1": lambda sigma, t, process: (process.levels * t - 1).clamp(0, process.levels - 1),
}
"""The noise labels that networks take. The t of a process runs from 0 (data) to 1, its N is `process.levels`."""


class Prediction(NetworkScore):
    """A network trained on all noise levels of a process, as a score; its subclasses say what the network predicts.

    With x = x_0 + sigma z the network is called as `network(m(t) x, label)`, with the state of its process and (batch,) labels.

    Args:
        network: `network(x, label) -> tensor like x`.
        process: the forward process that it was trained on.
        label: a name from `LABELS`, or a function of the (batch,) float64 sigma.
    """

    def __init__(self, network: nn.Module, process: Process, label: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.process, self._label = network, process, label
        if not callable(label) and label not in LABELS:
            raise OptionError("label", f"must be a function of sigma or one of {', '.join(LABELS)}, got {label!r}")

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) noise levels at uniform times."""
        return self.process.sigma(_training_times(count, generator))

    def label(self, sigma: Tensor, t: Tensor) -> Tensor:
        """(batch,) noise label of the noise level sigma, the level of time t."""
        return self._label(sigma) if callable(self._label) else LABELS[self._label](sigma, t, self.process)

    def scale(self, t: Tensor, sigma: Tensor) -> Tensor:
        """(batch,) m, the factor of what the network sees."""
        return self.process.scale(t)

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        """The score of x from the network's float32 output; m and sigma are (batch, 1, 1, 1)."""
        raise NotImplementedError

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        t = self.process.time(sigma)
        label = self.label(sigma.double(), t).to(x.dtype)
        m, std = (value.to(x.dtype)[:, None, None, None] for value in (self.scale(t, sigma), sigma))
        output: Tensor = self.network(m * x, label, *labels)
        if not isinstance(output, Tensor) or output.shape != x.shape:
            returned = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise PDSError(f"the network returned {returned} for x of shape {tuple(x.shape)}: it must return a tensor like x")
        return self.read(output.float(), x, m, std)


class ScorePrediction(Prediction):
    """The network predicts the score of the state that it sees, s(x) / m."""

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        return m * output


class NoisePrediction(Prediction):
    """The network predicts the noise z: s = -z / sigma."""

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        return -output / sigma


class VelocityPrediction(Prediction):
    """The network predicts v = m (z - sigma x_0) of a VP state (Salimans & Ho, ICLR 2022): z = m (v + sigma m x)."""

    def __init__(self, network: nn.Module, process: Process, label: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__(network, process, label)
        t = torch.linspace(0.05, 1, 20, dtype=torch.float64)  # sub-VP states have a variance of 1 at the end alone
        variance = process.scale(t).square() * (1 + process.sigma(t).square())
        if (variance - 1).abs().max() > 1e-6:
            raise OptionError("predicts", f"v is defined for variance-preserving states, and the process is {process.title}")

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        return -(m * (output + sigma * m * x)) / sigma


class DataPrediction(Prediction):
    """The network predicts the clean image, D = E[x_0 | x]: s = (D - x) / sigma^2."""

    def read(self, output: Tensor, x: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
        return -((x - output) / sigma) / sigma


class VelocityScore(NetworkScore):
    """A network of critically-damped Langevin diffusion, as the score by the velocity ([CLD] section 3.2, the mixed score).

    It predicts what the score of a Gaussian velocity leaves: s = -v / Sigma_vv - l_t network(u, t), where Sigma_vv and l_t are
    of the law of u_t given x_0 = 0. So the network learns noise of unit variance at every level.

    Args:
        network: `network(u, t) -> (batch, C, H, W)`, u being (batch, 2 C, H, W).
        process: the forward process that it was trained on.
        channels: C.
    """

    halves: ClassVar[int] = 2

    def __init__(self, network: nn.Module, process: CriticallyDamped, channels: int) -> None:
        super().__init__()
        self.network, self.process, self.channels = network, process, channels

    def draw_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) noise levels at uniform times."""
        return self.process.sigma(_training_times(count, generator))

    def noised(self, x: Tensor, sigma: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hybrid score matching ([CLD] section 3.1): u_t given x_0, whatever the initial velocity was.

        The score by v_t of that law is -z_v / deviation, z_v being the half of z that v_t alone has.
        """
        mean, root = (value.to(x.dtype)[..., None, None, None] for value in self.process.kernel(self.process.time(sigma)))
        z_x, z_v = z.chunk(2, dim=1)
        state_x = mean[:, 0] * x + root[:, 0, 0] * z_x
        state_v = mean[:, 1] * x + root[:, 1, 0] * z_x + root[:, 1, 1] * z_v
        return torch.cat([state_x, state_v], dim=1), z_v, root[:, 1, 1]

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        if x.shape[1] != 2 * self.channels:
            wanted, given = 2 * self.channels, x.shape[1]
            raise PDSError(f"the state of CLD is data and velocity, of {wanted} channels, and this one has {given}: {VELOCITY}")
        t = self.process.time(sigma)
        root = self.process.kernel(t)[1].to(x.dtype)[..., None, None, None]
        output: Tensor = self.network(x, t.to(x.dtype), *labels)
        variance = root[:, 1, 0] ** 2 + root[:, 1, 1] ** 2
        return -x[:, self.channels :] / variance - output.float() / root[:, 1, 1]


class Bfloat16Score:
    """A score whose network runs under bfloat16 autocast; states, noise and the output stay float32."""

    def __init__(self, score: NetworkScore) -> None:
        self.score = score

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            output: Tensor = self.score(x, sigma, *labels)
            return output


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Make networks in float32, as their states and noise are, whatever the program has for its default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def evaluating() -> Iterator[list[nn.Module]]:
    """Put every module that runs inside the block into evaluation mode, permanently, and list them. A wrapped function does not
    reveal its modules beforehand."""
    thread, settled = threading.get_ident(), list[nn.Module]()

    def settle(module: nn.Module, arguments: Any) -> None:
        if module.training and threading.get_ident() == thread:
            settled.extend(part for part in module.modules() if part.training)
            module.eval()

    hook = register_module_forward_pre_hook(settle)
    try:
        yield settled
    finally:
        hook.remove()


class FunctionNetwork(nn.Module):
    """A function as a network. It may call modules that nobody sees before."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, label: Tensor, *labels: Tensor) -> Tensor:
        return self.function(x, label, *labels)


@contextlib.contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode: no dropout, fixed batch normalisation. Its modes are restored at the end."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    # Looking at each call costs time, so only functions pay it.
    hidden = any(isinstance(module, FunctionNetwork) for module in network.modules())
    with evaluating() if hidden else contextlib.nullcontext(list[nn.Module]()) as met:
        try:
            yield
        finally:
            for module in (*training, *met):
                module.training = True


@cache
def warn_of_slow_bf16(device: torch.device) -> None:
    """Say once that bfloat16 on this CPU is slower than float32, if it is: without AVX-512, oneDNN leaves it to slow loops."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("bf16 is several times slower than float32 on this CPU, which has no instructions for it: leave bf16 off")


def placed(device: str | torch.device) -> torch.device:
    """A device that torch has here.

    Raises:
        OptionError: torch has none, or one that holds no values.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=found).item()  # noise is made in double precision
    except Exception:  # each kind of device raises its own
        gpus = torch.cuda.device_count()
        there = f"cpu, cuda or cuda:0 to cuda:{gpus - 1}" if gpus else "cpu, as torch sees no GPU here"
        raise OptionError("device", f"must be {there}, got {shown(str(device))}") from None
    return found


def for_sampling(score: NetworkScore, device: torch.device, bf16: bool = False, compile: bool = False) -> Labelled:
    """The score as samplers call it; `score` itself is moved and compiled in place.

    Args:
        score: from a `Model`.
        device: where to sample.
        bf16: run the network under bfloat16 autocast. Its rounding, 0.4% of a value, changes the images.
        compile: compile the network with `torch.compile`, at its first call for each batch size. Images change by rounding
            in the precision that the device computes in.
    """
    score.moved(device)
    if compile:
        score.network.compile()
    if bf16:
        warn_of_slow_bf16(device)
    return Bfloat16Score(score) if bf16 else score


@dataclass(frozen=True)
class Model:
    """A network ready to sample: the score and the facts of its training.

    Attributes:
        title: its name in tables.
        score: `score(x, sigma)`, in evaluation mode.
        process: the forward process that it was trained on.
        shape: (C, H, W) of its images.
        checkpoint: origin of the weights; None for random weights and for a wrapped network.
        data_range: pixel values of black and white in its state: (0, 1), or (-1, 1) for centred models.
        beside_weights: facts that its function depends on beyond weights and arguments: other files of its folder.
        statistics: statistics of its training images, if they are known; filters are made of them.
        sampler: the sampler of its authors, if it is known.
        classes: number of classes of its labels; 0 for none.
        unconditional: whether it gives a score without labels; true if this is not known.
    """

    title: str
    score: NetworkScore
    process: Process
    shape: tuple[int, int, int]
    checkpoint: Checkpoint | None
    data_range: tuple[float, float] = (0.0, 1.0)
    beside_weights: Mapping[str, Any] = field(default_factory=dict)
    statistics: DatasetStatistics | None = None
    sampler: Sampler[Any] | None = None
    classes: int = 0
    unconditional: bool = True

    @property
    def device(self) -> torch.device:
        """The device of the network; the CPU for a network without parameters."""
        return next((parameter.device for parameter in self.score.parameters()), torch.device("cpu"))

    def require_unconditional(self, what: str) -> None:
        """Refuse a network that was always shown its labels; `what` evaluates it without."""
        if not self.unconditional:
            raise PDSError(f"{what} without a class, and {self.title} has no unconditional score")


GivenModel = Annotated[Model, Said("a model, from pds.load or pds.wrap")]
"""A model as an argument of a user."""
