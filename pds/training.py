"""Training of score networks by denoising score matching ([NCSN] Eqs. 5-6)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pds.data.folder import ImageFolder
from pds.data.images import ImageSource, random_flip, to_range, to_unit
from pds.errors import OptionError, PDSError
from pds.files import atomic_path, reading
from pds.models.scores import NetworkScore, warn_of_slow_bf16
from pds.models.torch_files import read_torch
from pds.options import Range, Seed, fitted, options
from pds.progress import progress_bar

log = logging.getLogger(__name__)

Iterations = Annotated[int, Range(1, 100_000_000)]
DROPOUT = 1 << 63  # tells the seeds of dropout from those of the noise


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) indices of the images in the order of an epoch. They are kept: an order of millions takes longer than a step."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def denoising_loss(score: NetworkScore, x: Tensor, sigma: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """Denoising score matching weighted by the variance of the noise ([NCSN] Eq. 6), averaged over pixels.

    The loss is ½ mean (deviation s + noise)², with the state, the noise and its deviation of `NetworkScore.noised`. This is ½
    mean (sigma s + z)², or the hybrid objective of a network with a velocity.

    Args:
        score: the network, compiled or not.
        x: (batch, C, H, W) clean images.
        sigma: (batch,) noise levels.
        z: standard normal noise like the state.
        labels: (batch,) int64 class of each image, -1 for none; for networks that take them.

    Returns:
        Scalar; 0.5 for a network that predicts nothing, 0 for a network that knows the noise.
    """
    state, noise, deviation = score.noised(x, sigma, z)
    given = () if labels is None else (labels,)
    return 0.5 * (deviation * score(state, sigma, *given) + noise).square().mean()


def check_labels(images: ImageSource, classes: int) -> None:
    """Refuse a number of classes for which the images have no labels.

    Raises:
        OptionError: `classes` is not 0, and the images have no labels, or larger ones.
    """
    if classes and images.labels is None:
        raise OptionError("classes", f"is {classes}, and {images.name} {images.split} has no labels: give 0")
    if classes and images.labels is not None and images.labels.max() >= classes:
        last = int(images.labels.max())
        problem = f"is {classes}, and {images.name} {images.split} has labels up to {last}: give {last + 1}"
        raise OptionError("classes", problem)


def check_network(score: nn.Module, label_dropout: float = 0.0) -> None:
    """Refuse a network that cannot be trained.

    Raises:
        PDSError: training changes no parameter, a parameter is in half precision, or a file of weights cannot hold the state
            of the network.
        OptionError: labels are dropped, and the network has no label for that.
    """
    if label_dropout and getattr(getattr(score, "network", None), "no_class", -1) is None:  # of `pds.wrap`
        raise OptionError("label_dropout", "must be 0 for a network that knows no label of no class: give its no_class")
    trained = {name: parameter for name, parameter in score.named_parameters() if parameter.requires_grad}
    if not trained:
        raise PDSError("training changes no parameter of this network: give one whose parameters have requires_grad")
    for name, parameter in trained.items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            kind = str(parameter.dtype).removeprefix("torch.")
            fix = "make it float32; bf16=true computes in bfloat16"
            raise PDSError(f"the parameter {name} is {kind}, which loses the small steps of training: {fix}")
    if other := [name for name, value in score.state_dict().items() if not isinstance(value, Tensor)]:
        raise PDSError(f"a file of weights cannot hold {other[0]}: make a network without get_extra_state")


@options
class Trainer:
    """Adam with linear warm-up, cosine decay to zero and an exponential moving average of the weights.

    Batch, noise levels, noise and dropouts of iteration i depend on (seed, i) alone. So a run that was killed and started again
    from its last checkpoint equals the unbroken run.

    Attributes:
        iterations: optimisation steps.
        batch_size: images a step.
        learning_rate: peak of the schedule.
        warmup: iterations of linear warm-up.
        ema_decay: decay of the moving average of the weights per iteration.
        seed: of data order, noise levels and noise.
        checkpoint_every: iterations between checkpoints.
        bf16: run the network under bfloat16 autocast (weights, loss and averages stay float32).
        compile: compile the network with `torch.compile` (minutes at the start, 3-4 times faster after).
        flip: mirror each image left to right with probability 1/2, as the authors do except for MNIST.
        label_dropout: probability that an image is shown without its class, for networks with classes. So the network also
            learns the unconditional score (Ho & Salimans, *Classifier-Free Diffusion Guidance*, 2022).
    """

    iterations: Iterations = 4000
    batch_size: Annotated[int, Range(1, 65_536)] = 64
    learning_rate: Annotated[float, Range(1e-12, 10)] = 2e-3
    warmup: Annotated[int, Range(0, 100_000_000)] = 200
    ema_decay: Annotated[float, Range(0, below=1)] = 0.999
    seed: Seed = 0
    checkpoint_every: Annotated[int, Range(1, 100_000_000)] = 250
    bf16: bool = True
    compile: bool = True
    flip: bool = False
    label_dropout: Annotated[float, Range(0, below=1)] = 0.0

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))

    def check(self, images: ImageSource, classes: int = 0) -> None:
        """Read a batch, and the header of every file of a folder, so that unsuitable images are refused at once.

        Raises:
            PDSError: there are fewer images than a batch, an image cannot be read, or label_dropout is given without labels.
        """
        if not classes and self.label_dropout:
            raise OptionError("label_dropout", "must be 0 for a network without classes: give classes")
        if len(images) < self.batch_size:
            raise OptionError(
                "batch_size",
                f"must be at most {len(images)}, the images of {images.name} {images.split}, got {self.batch_size}",
            )
        images.read(range(self.batch_size))
        if isinstance(images, ImageFolder):
            images.check_headers()

    def fit(
        self,
        score: NetworkScore,
        images: ImageSource,
        checkpoint: Path,
        device: torch.device,
        data_range: tuple[float, float] = (0.0, 1.0),
        classes: int = 0,
        callback: Callable[[dict[str, float]], None] = lambda metrics: None,
    ) -> tuple[dict[str, Tensor], float]:
        """Train `score` in place, from `checkpoint` if it exists.

        Args:
            score: the score network to train; its parameters are float32.
            images: training images.
            checkpoint: file that holds the state of training; written atomically.
            device: where to train.
            data_range: pixel values of black and white for the network.
            classes: number of classes of its labels; 0 for none.
            callback: receives {"iteration", "loss", "learning_rate"} every 50 iterations.

        Returns:
            The exponential moving average of the parameters, by name, on the CPU; and the seconds of training, including those
            before a restart.

        Raises:
            PDSError: see `check_network`, `check_labels` and `check`. Also if `checkpoint` is damaged or of another network
                (the file stays as it is), or if the loss or its gradient is no longer finite.
        """
        check_network(score, self.label_dropout)
        check_labels(images, classes)
        self.check(images, classes)
        score = score.moved(device).train()
        layout = getattr(getattr(score, "network", None), "pds_memory_format", torch.contiguous_format)
        parameters = dict(score.named_parameters())
        optimizer = torch.optim.Adam(parameters.values(), lr=self.learning_rate)
        ema = {name: p.detach().clone() for name, p in parameters.items()}
        averaged = [(ema[name], p) for name, p in parameters.items() if p.requires_grad]
        averages, weights = map(list, zip(*averaged, strict=True))
        start, spent, running = self._restore(checkpoint, score, ema, optimizer)
        network: Any = torch.compile(score) if self.compile else score
        if self.bf16:
            warn_of_slow_bf16(device)
        clock = time.perf_counter() - spent
        with progress_bar(range(start, self.iterations), initial=start, total=self.iterations, unit="it", desc="train") as bar:
            for iteration in bar:
                x, sigma, z, *labels = (t.to(device) for t in self._batch(iteration, images, score, classes))
                x = to_range(x, data_range).contiguous(memory_format=layout)
                with self._dropout_of(iteration, device), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = denoising_loss(network, x, sigma, z, *labels)
                norm = self._step(optimizer, loss, iteration)
                # A short memory at the start, so that the average does not remember the initialisation.
                decay = min(self.ema_decay, (1 + iteration) / (10 + iteration))
                with torch.no_grad():
                    torch._foreach_lerp_(averages, weights, 1 - decay)
                value = loss.item()
                self._require_finite(value, norm.item(), iteration, checkpoint)
                running = value if running is None else 0.98 * running + 0.02 * value
                bar.set_postfix(loss=f"{running:.4f}", refresh=False)
                if (iteration + 1) % 50 == 0:
                    callback({"iteration": iteration + 1, "loss": running, "learning_rate": self.rate(iteration)})
                if (iteration + 1) % self.checkpoint_every == 0 or iteration + 1 == self.iterations:
                    progress = {"iteration": iteration + 1, "seconds": time.perf_counter() - clock, "loss": running}
                    self._save(checkpoint, progress, score, ema, optimizer)
        return {name: value.cpu() for name, value in ema.items()}, time.perf_counter() - clock

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor, iteration: int) -> Tensor:
        """Take a step down the gradient of `loss`, clipped to a norm of 1. Returns the norm before."""
        if not loss.requires_grad:
            raise PDSError("the network's output has no gradient by its parameters: take no_grad out of its forward")
        (group,) = optimizer.param_groups
        group["lr"] = self.rate(iteration)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        return norm

    def _require_finite(self, loss: float, norm: float, iteration: int, checkpoint: Path) -> None:
        """Refuse a loss or a gradient's norm that is not finite.

        Such a gradient spoils the weights under a finite loss, and no checkpoint may keep them.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"training loss is {loss}"
        kept = f"; the last checkpoint is kept in {checkpoint}" if checkpoint.exists() else ""
        raise PDSError(f"{what} at iteration {iteration}: lower learning_rate (now {self.learning_rate}){kept}")

    def _batch(self, iteration: int, images: ImageSource, score: NetworkScore, classes: int = 0) -> tuple[Tensor, ...]:
        """Images in [0, 1], noise levels, noise and, for a network with classes, labels."""
        epoch, position = divmod(iteration, len(images) // self.batch_size)
        order = _order(self.seed, epoch, len(images))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        x = to_unit(images.read(chosen))
        generator = torch.Generator().manual_seed(self._seed(iteration))
        sigma = score.draw_sigma(len(x), generator)
        z = torch.randn((len(x), score.halves * x.shape[1], *x.shape[2:]), generator=generator)
        if self.flip:
            x = random_flip(x, generator)
        if not classes or images.labels is None:
            return x, sigma, z
        dropped = torch.rand(len(x), generator=generator) < self.label_dropout
        labels = torch.from_numpy(images.labels[chosen].astype(np.int64))
        return x, sigma, z, labels.masked_fill(dropped, -1)

    def _seed(self, iteration: int) -> int:
        return (self.seed * 1_000_003 + iteration) % 2**64

    @contextmanager
    def _dropout_of(self, iteration: int, device: torch.device) -> Iterator[None]:
        """Seed torch's own generators, which dropout draws from, and restore them at the end.

        The seed differs from that of the noise. With one seed both streams would be equal on a CPU.
        """
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed(iteration) ^ DROPOUT)
            yield

    def _restore(
        self,
        checkpoint: Path,
        score: nn.Module,
        ema: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[int, float, float | None]:
        """Iterations done, seconds spent and the running loss."""
        if not checkpoint.exists():
            return 0, 0.0, None
        state = read_state(checkpoint, score, self.iterations, "delete it to train from the start")
        here: dict[str, Mapping[str, Tensor]] = {
            "parameters": dict(score.named_parameters()),
            "buffers": _buffers(score),
            "ema": ema,
        }
        for table, values in here.items():
            for name, value in values.items():
                value.data.copy_(getattr(state, table)[name])
        # Adam moves its moments to the device of the parameters, and leaves its step counters on the CPU, where they are fast.
        optimizer.load_state_dict({"state": state.moments, "param_groups": optimizer.state_dict()["param_groups"]})
        log.info("training continues from iteration %d of %d (%s)", state.iteration, self.iterations, checkpoint)
        return state.iteration, state.seconds, state.loss

    def _save(
        self,
        checkpoint: Path,
        progress: dict[str, float],
        score: nn.Module,
        ema: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        state = {
            **progress,
            "parameters": {name: p.detach() for name, p in score.named_parameters()},
            "buffers": _buffers(score),
            "ema": ema,
            "optimizer": optimizer.state_dict(),
        }
        with atomic_path(checkpoint) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch hides the reason, such as a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class State(NamedTuple):
    """A training at its last checkpoint.

    Attributes:
        iteration: iterations done.
        seconds: of training, with those before a restart.
        loss: running mean.
        parameters, ema: the weights and their moving average, by name.
        buffers: by name, such as the running statistics of a batch normalisation.
        moments: of Adam, by index of the parameter.
    """

    iteration: int
    seconds: float
    loss: float
    parameters: dict[str, Tensor]
    ema: dict[str, Tensor]
    buffers: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]


def read_state(checkpoint: Path, score: nn.Module, iterations: int, fix: str) -> State:
    """Read the state of a training of `iterations`, and check that it fits `score`, which is not changed.

    Raises:
        PDSError: it is damaged or of another network; the sentence ends with `fix`.
        OptionError: it has more iterations.
    """
    with reading(checkpoint, "the state of this training", fix):
        state = read_torch(checkpoint, fix)
        iteration = fitted("iteration", state["iteration"], Iterations)
        seconds = fitted("seconds", state["seconds"], Annotated[float, Range(0)])
        loss = fitted("loss", state["loss"], Annotated[float, Range()])
        parameters, buffers = dict(score.named_parameters()), _buffers(score)
        kept = state.get("buffers", buffers)  # older states have none: they stay those of the network
        for table, found, wanted in (
            ("parameters", state["parameters"], parameters),
            ("ema", state["ema"], parameters),
            ("buffers", kept, buffers),
        ):
            _require_alike(table, found, wanted)
        moments = _moments(state["optimizer"]["state"], list(parameters.values()), iteration)
    if iteration > iterations:
        raise OptionError("iterations", f"must be at least {iteration}, which {checkpoint} has reached, got {iterations}")
    return State(iteration, seconds, loss, state["parameters"], state["ema"], kept, moments)


def _buffers(score: nn.Module) -> dict[str, Tensor]:
    """What a file of weights keeps beside the parameters, under all their names if layers share them."""
    parameters = dict(score.named_parameters(remove_duplicate=False))
    return {name: value for name, value in score.state_dict().items() if name not in parameters}


def _require_alike(what: str, found: Any, wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `found` holds tensors of the names, shapes and types of `wanted`, finite where these are, and no
    others."""
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        names = found.keys() ^ wanted.keys() if isinstance(found, dict) else wanted.keys()
        raise ValueError(f"its {what} are of another network, by {min(map(str, names))}")
    for name, value in wanted.items():
        tensor = found[name]
        if not isinstance(tensor, Tensor) or tensor.shape != value.shape or tensor.dtype != value.dtype:
            kind = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"its {what} have {name} as {kind}, not {value.dtype} {tuple(value.shape)}")
        if torch.isfinite(value).all() and not torch.isfinite(tensor).all():  # a buffer may be a mask of -inf
            raise ValueError(f"its {what} have values in {name} that are not finite")


def _moments(found: Any, parameters: Sequence[Tensor], iteration: int) -> dict[int, dict[str, Tensor]]:
    """The moments of Adam by index of parameter, copied; parameters without a gradient have none. ValueError for other
    moments."""
    if not isinstance(found, dict) or not found or not found.keys() <= set(range(len(parameters))):
        raise ValueError("its optimizer is of another network")
    for number, moments in found.items():
        like = parameters[number].detach()
        step = torch.zeros(())
        _require_alike(f"moments of parameter {number}", moments, {"step": step, "exp_avg": like, "exp_avg_sq": like})
        if not 1 <= moments["step"] <= iteration or (moments["exp_avg_sq"].real < 0).any():
            raise ValueError(f"its moments of parameter {number} are out of range")
    return {number: {name: value.clone() for name, value in moments.items()} for number, moments in found.items()}
