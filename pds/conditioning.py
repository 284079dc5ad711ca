"""Classes and guidance. Each is an adapter of a score, so that any sampler can use it.

    pds.sample(model, sampler, labels=[3], guidance=pds.ClassifierFree(scale=3))

The scores made here belong to one batch. They wrap the counter of evaluations, so both halves of guidance are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import torch
from torch import Tensor

from pds.errors import OptionError, first_line
from pds.files import read_bytes, reading, user_path
from pds.models.scores import Model, evaluating
from pds.options import MOST, Length, Range, Said, checked, options
from pds.score import Labelled, Score, score_of

WAYS = "uniform, a list of classes as in [3], or a file of whole numbers"
Labels = Annotated[Annotated[Sequence[int], Range(0, MOST), Length(1, MOST)] | str | Path, Said(WAYS)]
"""Classes of the images: image i has entry i mod n of a list or a file of n whole numbers; "uniform" takes all classes in
turn."""

GuidanceScale = Annotated[float, Range(-1000, 1000)]
NoiseInterval = Annotated[Sequence[float], Range(0, infinity="no upper limit"), Length(2, 2)]
"""The guided noise levels, (low, high], in pixel units of the model."""

MOST_LABELS = 1 << 26  # bytes of a file of labels


class Classifier(Protocol):
    """(batch, classes) logits of noisy images x at noise levels sigma, differentiable in x."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


class Conditional:
    """The score of images of given classes.

    Args:
        score: `score(x, sigma, labels)`.
        labels: (batch,) int64 class of each image.
    """

    @checked
    def __init__(self, score: Labelled, labels: Tensor) -> None:
        self.score, self.labels = score, labels

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.score(x, sigma, self.labels)

    def rows(self, rows: Tensor) -> Conditional:
        """The score of some images of the batch."""
        return Conditional(self.score, self.labels[rows])


class Guided:
    """s_u + w (s - s_u): classifier-free guidance (Ho & Salimans, 2022), within an interval of noise levels (Kynkäänniemi et
    al., *Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models*, NeurIPS 2024).

    The samples do not follow p_c^w p_u^(1-w). At each noise level this is the score of the product of the noisy densities, and
    those products are not one law with noise added.

    With w = 0 or 1 for all images, only one half is evaluated.

    Args:
        score: s, the score of a class.
        unconditional: s_u.
        scale: w within the interval; outside it w = 1.
        interval: (low, high), for low < sigma <= high, in pixel units of the model.
    """

    @checked
    def __init__(
        self, score: Score, unconditional: Score, scale: GuidanceScale, interval: NoiseInterval = (0.0, math.inf)
    ) -> None:
        self.score, self.unconditional, self.scale, self.interval = score, unconditional, scale, interval
        _require_ascending(interval)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        w = within(sigma, self.interval, self.scale, 1.0).to(x.dtype)
        if (w == 1).all():
            return self.score(x, sigma)
        unconditional = self.unconditional(x, sigma)
        if (w == 0).all():
            return unconditional
        return unconditional + w[:, None, None, None] * (self.score(x, sigma) - unconditional)

    def rows(self, rows: Tensor) -> Guided:
        """The score of some images of the batch."""
        return Guided(score_of(self.score, rows), score_of(self.unconditional, rows), self.scale, self.interval)


class ClassifierGuided:
    """s + w grad_x log p(label | x, sigma): classifier guidance ([SDE] section 5; Dhariwal & Nichol, NeurIPS 2021).

    Calls of the classifier are no score evaluations, and are not counted.

    Args:
        score: s, unconditional or of the same classes.
        classifier: a classifier of noisy images.
        labels: (batch,) int64 class of each image.
        scale: w within the interval; outside it w = 0.
        interval: (low, high), for low < sigma <= high, in pixel units of the model.
    """

    @checked
    def __init__(
        self,
        score: Score,
        classifier: Classifier,
        labels: Tensor,
        scale: GuidanceScale,
        interval: NoiseInterval = (0.0, math.inf),
    ) -> None:
        self.score, self.classifier, self.labels, self.scale, self.interval = score, classifier, labels, scale, interval
        _require_ascending(interval)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        s, w = self.score(x, sigma), within(sigma, self.interval, self.scale, 0.0).to(x.dtype)
        # Copies, because a tensor of inference mode enters no graph.
        with torch.inference_mode(False), torch.enable_grad():
            seen = x.detach().clone().requires_grad_()
            chosen = self.classifier(seen, sigma.clone()).log_softmax(1).gather(1, self.labels.clone()[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), seen)
        # A score by the velocity takes the gradient by the velocity, the last half of the state.
        return s + w[:, None, None, None] * gradient[:, -s.shape[1] :]

    def rows(self, rows: Tensor) -> ClassifierGuided:
        """The score of some images of the batch."""
        score = score_of(self.score, rows)
        return ClassifierGuided(score, self.classifier, self.labels[rows], self.scale, self.interval)


def within(sigma: Tensor, interval: Sequence[float], inside: float, outside: float) -> Tensor:
    """(batch,) `inside` for low < sigma <= high, up to the rounding of sigma, else `outside`."""
    low, high = (bound * (1 + 1e-6) for bound in interval)
    return torch.where((sigma > low) & (sigma <= high), inside, outside)


def _require_ascending(interval: Sequence[float]) -> None:
    low, high = interval
    if low >= high:
        raise OptionError("interval", f"must have the lower noise level first, got [{low:g}, {high:g}]")


class Guidance(Protocol):
    """Makes the score of a batch from its labels."""

    @property
    def title(self) -> str:
        """Its name in tables."""
        ...

    def check(self, model: Model) -> None:
        """Refuse a model that cannot be guided."""
        ...

    def __call__(self, score: Labelled, labels: Tensor, classes: int) -> Score:
        """The guided score of a batch.

        Args:
            score: `score(x, sigma, labels)` of the network.
            labels: (batch,) int64 class of each image.
            classes: number of classes that the network takes; 0 for none.
        """
        ...


@options
class ClassifierFree:
    """Classifier-free guidance: see `Guided`, with the network's own unconditional score.

    Attributes:
        scale: w; 1 is the network's class alone, 0 no class. These two cost one evaluation, other values two.
        interval: noise levels that are guided, (low, high], in pixel units of the model; the class alone elsewhere.
    """

    scale: GuidanceScale = 1.0
    interval: NoiseInterval = (0.0, math.inf)

    def __post_init__(self) -> None:
        _require_ascending(self.interval)

    @property
    def title(self) -> str:
        """Its name in tables."""
        low, high = self.interval
        return f"w={self.scale:g}" + (f" for σ in ({low:g}, {high:g}]" if low or high < math.inf else "")

    def check(self, model: Model) -> None:
        """Refuse a network without an unconditional score if this score is needed."""
        if self.scale != 1 and not model.unconditional:
            raise OptionError(
                "scale",
                f"must be 1 for {model.title}, got {self.scale:g}: it has no unconditional score. A network of "
                "your own has one if it is given no_class",
            )

    def __call__(self, score: Labelled, labels: Tensor, classes: int) -> Score:
        towards = Conditional(score, labels)
        # `Guided` reads which images are guided, and on a GPU that waits for the device.
        return towards if self.scale == 1 else Guided(towards, score, self.scale, self.interval)


@options
class ClassifierGuidance:
    """Classifier guidance: see `ClassifierGuided`. A network with classes gets the labels as well.

    Attributes:
        classifier: a classifier of noisy images, on the device of the network.
        classes: number of its classes.
        scale: w.
        interval: noise levels that are guided, (low, high], in pixel units of the model.
    """

    classifier: Classifier
    classes: Annotated[int, Range(1, 1_000_000)]
    scale: GuidanceScale = 1.0
    interval: NoiseInterval = (0.0, math.inf)

    def __post_init__(self) -> None:
        _require_ascending(self.interval)

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"classifier guidance, w={self.scale:g}"

    def check(self, model: Model) -> None:
        """Refuse a network of other classes, and a classifier that cannot guide: it is called once, with two images, and is put
        into evaluation mode."""
        if model.classes not in (0, self.classes):
            raise OptionError("classes", f"must be {model.classes}, the classes of {model.title}, got {self.classes}")
        channels, height, width = model.shape
        size = (2, model.score.halves * channels, height, width)
        needed = f"must give logits of shape (2, {self.classes}) that depend on x, for x of shape {size}"
        try:
            with torch.inference_mode(False), torch.enable_grad(), evaluating():
                x = torch.zeros(size, device=model.device, requires_grad=True)
                levels = model.process.sigma(torch.tensor([1.0, 0.5], dtype=torch.float64))
                logits = self.classifier(x, levels.to(x))
                found = tuple(logits.shape)
                torch.autograd.grad(logits.sum(), x)
        except Exception as error:  # someone else's classifier may raise anything
            raise OptionError("classifier", f"{needed}: {type(error).__name__}, {first_line(error)}") from error
        if found != (2, self.classes):
            raise OptionError("classifier", f"{needed}, got {found}")

    def __call__(self, score: Labelled, labels: Tensor, classes: int) -> Score:
        s = Conditional(score, labels) if classes else score
        return ClassifierGuided(s, self.classifier, labels, self.scale, self.interval)


CLASS_ALONE = ClassifierFree()


def labels_of(model: Model, labels: Labels | None, guidance: Guidance | None = None) -> Tensor | None:
    """(n,) int64 classes of images 0 to n - 1; later images begin again at the first. None for images without classes.

    Raises:
        OptionError: a network without classes gets labels, a network that needs labels gets none, or a label is out of range.
        PDSError: a file of labels is absent or holds something else than whole numbers.
    """
    classes = guidance.classes if isinstance(guidance, ClassifierGuidance) else model.classes
    if guidance is not None and not classes:
        raise OptionError("guidance", f"must be left out: {model.title} takes no classes")
    if labels is None:
        if guidance is not None or not model.unconditional:
            why = f"{model.title} has no unconditional score" if guidance is None else "guidance is towards a class"
            raise OptionError("labels", f"is missing, and {why}: give {WAYS}")
        return None
    if not classes:
        raise OptionError("labels", f"must be left out: {model.title} takes no classes")
    if labels == "uniform":
        return torch.arange(classes)
    given = _read(user_path(labels)) if isinstance(labels, (str, Path)) else list(labels)
    wrong = next((label for label in given if not 0 <= label < classes), None)
    if wrong is not None or not given:
        what = "none" if wrong is None else f"{wrong}"
        raise OptionError("labels", f"must be from 0 to {classes - 1} for {model.title}, got {what}")
    return torch.tensor(given)


def _read(path: Path) -> list[int]:
    fix = f"give {WAYS}"
    if not path.exists():
        raise OptionError("labels", f"names {path}, which does not exist: {fix}")
    with reading(path, "a file of labels", fix):
        return [int(word) for word in read_bytes(path, MOST_LABELS).decode("ascii").split()]
