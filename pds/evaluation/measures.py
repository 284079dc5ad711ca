"""Measures of samples beside the Fréchet distance, all from feature vectors: one image a row, float32.

Every function refuses features that are not finite, of different lengths, or of too few images for its measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pds.errors import PDSError
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.options import Count, Range, checked
from pds.progress import progress_bar

BLOCK = 2048  # rows of a block of distances, to bound memory
BLOCKS = 20  # blocks of images, for a jackknife


class Estimate(NamedTuple):
    """A number and its uncertainty.

    Attributes:
        value: the number.
        error: its spread, as defined by the function that returns it.
    """

    value: float
    error: float


class KernelDistance(NamedTuple):
    """KID with both of its uncertainties.

    Attributes:
        value: mean over subsets.
        spread: standard deviation over subsets, as papers print it.
        left_out: (blocks,) mean over the same subsets without the images of one block each; NaN if no image remains.
    """

    value: float
    spread: float
    left_out: np.ndarray


@checked
def kernel_distance(
    samples: np.ndarray,
    reference: np.ndarray,
    subsets: Count = 100,
    size: Annotated[int, Range(2, 10**6)] = 1000,
    seed: int = 0,
    progress: bool = False,
) -> KernelDistance:
    """KID, the unbiased squared MMD with the kernel (x·y / D + 1)^3, averaged over subsets (Binkowski et al., ICLR 2018).

    Args:
        samples, reference: (N, D) and (M, D) features.
        subsets: number of pairs of subsets.
        size: images in each subset, at most N and M.
        seed: seed of their choice.
        progress: show a bar.
    """
    _require(samples, reference, at_least=size, what=f"KID with subsets of {size}")
    choice = np.random.RandomState(seed % 2**32)  # numpy's legacy stream, which torch-fidelity draws from
    block_of = blocks_of(len(samples))
    distances, left_out = [], []
    for _ in progress_bar(range(subsets), desc="kernel", unit="subset", disable=not progress, leave=False, delay=1):
        chosen = choice.choice(len(samples), size, replace=False)
        x = samples[chosen].astype(np.float64)
        y = reference[choice.choice(len(reference), size, replace=False)].astype(np.float64)
        xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
        distances.append(within - 2 * xy.mean())
        # Without block b: sums over the images of other blocks alone, from sums over pairs of blocks.
        member = block_of[chosen, None] == np.arange(BLOCKS)
        np.fill_diagonal(xx, 0)
        between, kept = member.T @ xx @ member, size - member.sum(0)
        own = xx.sum() - 2 * between.sum(0) + between.diagonal()
        across = (xy.sum() - member.T @ xy.sum(1)) / (np.maximum(kept, 1) * size)
        others = (yy.sum() - np.trace(yy)) / (size * (size - 1))
        left_out.append(np.where(kept > 1, own / np.maximum(kept * (kept - 1), 1) + others - 2 * across, np.nan))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), np.mean(left_out, axis=0))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


class Manifold(NamedTuple):
    """Fidelity and diversity by nearest neighbours; all except density lie in [0, 1].

    Attributes:
        precision: share of samples inside the ball of a real image (Kynkäänniemi et al., NeurIPS 2019).
        recall: share of real images inside the ball of a sample.
        density: number of real balls that a sample lies in, divided by k (Naeem et al., ICML 2020); 1 for real images.
        coverage: share of real images whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The images in each ball. Precision, recall, density and coverage follow from this.

    Attributes:
        inside: (N,) whether a sample lies in the ball of a real image.
        balls: (N,) number of wide balls that a sample lies in, divided by k.
        recalled: (M, blocks) whether a real image lies in the ball of a sample of the block.
        grown: (M, blocks) whether it lies in a ball that grows when the block is left out.
        covered: (M, blocks) whether the wide ball of a real image holds a sample of the block.
    """

    inside: np.ndarray
    balls: np.ndarray
    recalled: np.ndarray
    grown: np.ndarray
    covered: np.ndarray

    def manifold(self, without: int | None = None) -> Manifold:
        """The four measures, of all samples or of those outside one block."""
        samples = blocks_of(len(self.inside)) != (-1 if without is None else without)
        blocks = np.arange(BLOCKS) != (-1 if without is None else without)
        recalled = self.recalled[:, blocks].any(1)
        return Manifold(
            float(self.inside[samples].mean()),
            float((recalled if without is None else recalled | self.grown[:, without]).mean()),
            float(self.balls[samples].mean(dtype=np.float64)),
            float(self.covered[:, blocks].any(1).mean()),
        )


def manifold(samples: np.ndarray, reference: np.ndarray, near: Count = 3, wide: Count = 5, device: str = "cpu") -> Manifold:
    """Precision, recall, density and coverage; see `neighbours`."""
    return neighbours(samples, reference, near, wide, device).manifold()


@checked
def neighbours(
    samples: np.ndarray, reference: np.ndarray, near: Count = 3, wide: Count = 5, device: str = "cpu", progress: bool = False
) -> Neighbours:
    """Find the images in each ball. The ball of an image reaches to its k-th nearest neighbour in its own set.

    Args:
        samples, reference: (N, D) and (M, D) features.
        near: k of precision and recall.
        wide: k of density and coverage.
        device: where distances are computed, in float32 and in blocks.
        progress: show a bar.
    """
    _require(samples, reference, at_least=max(near, wide) + 1, what=f"neighbours up to the {max(near, wide)}th")
    fake, real = _centred((samples, reference), reference, device)
    total = math.ceil(len(fake) / BLOCK) * 2 + math.ceil(len(real) / BLOCK)
    with progress_bar(total=total, desc="neighbours", unit="block", disable=not progress, leave=False, delay=1) as bar:
        block_of = blocks_of(len(fake))
        fake_radius, without = _radii_without(fake, near, torch.from_numpy(block_of).to(device), bar)
        grows = without > fake_radius[:, None]
        real_radius, real_wide = _radii(real, (near, wide), bar)
        inside, balls = [], []
        recalled, grown, covered = (torch.zeros(len(real), BLOCKS, dtype=torch.bool, device=device) for _ in range(3))
        for start, distances in _blocks(fake, real):
            inside.append((distances <= real_radius).any(1))
            within = distances < real_wide
            balls.append(within.sum(1) / wide)
            held = distances <= fake_radius[start : start + len(distances), None]
            for block in range(BLOCKS):
                wider = grows[start : start + len(distances), block].nonzero()[:, 0]
                grown[:, block] |= (distances[wider] <= without[start + wider, block, None]).any(0)
            of = block_of[start : start + len(distances)]
            for block in np.unique(of):
                first, last = np.searchsorted(of, (block, block + 1))
                recalled[:, block] |= held[first:last].any(0)
                covered[:, block] |= within[first:last].any(0)
            bar.update()
    return Neighbours(*(found.cpu().numpy() for found in (torch.cat(inside), torch.cat(balls), recalled, grown, covered)))


def _radii(points: Tensor, neighbours: tuple[int, ...], bar: tqdm[Any]) -> list[Tensor]:
    """For each k the squared distance of each point to its k-th nearest neighbour other than itself."""
    radii: list[list[Tensor]] = [[] for _ in neighbours]
    for _, distances in _blocks(points, points):
        least = distances.topk(max(neighbours) + 1, dim=1, largest=False).values
        for k, found in zip(neighbours, radii, strict=True):
            found.append(least[:, k])
        bar.update()
    return [torch.cat(found) for found in radii]


def _radii_without(points: Tensor, k: int, block_of: Tensor, bar: tqdm[Any]) -> tuple[Tensor, Tensor]:
    """The squared radii (N,) of `_radii` for one k, and those (N, blocks) without the points of each block.

    Those of a block's own points without it are 0. A list of a few more neighbours than k has nearly all of them.
    """
    radii, without = [], torch.zeros(len(points), BLOCKS, device=points.device)
    for start, distances in _blocks(points, points):
        rows = torch.arange(len(distances), device=points.device)
        distances[rows, start + rows] = math.inf
        least = distances.topk(min(k + 16, len(points)), dim=1, largest=False)
        radii.append(least.values[:, k - 1])
        of = block_of[least.indices]
        for block in range(BLOCKS):
            order = (of != block).cumsum(1)
            found = least.values.gather(1, (order >= k).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
            if len(few := (order[:, -1] < k).nonzero()[:, 0]):
                found[few] = distances[few].masked_fill(block_of == block, math.inf).kthvalue(k, 1).values
            without[start : start + len(distances), block] = found.masked_fill(block_of[start + rows] == block, 0)
        bar.update()
    return torch.cat(radii), without


def _centred(of: Sequence[np.ndarray], around: np.ndarray, device: str) -> list[Tensor]:
    """Features in float32, minus one mean: their distances stay as they are, and lose fewer digits."""
    centre = around.mean(0, dtype=np.float64)
    return [
        torch.from_numpy((features - centre.astype(features.dtype)).astype(np.float32, copy=False)).to(device)
        for features in (each if np.issubdtype(each.dtype, np.floating) else each.astype(np.float64) for each in of)
    ]


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances between the rows of `a`, a block at a time, and those of `b`; with each block its first row."""
    lengths = b.square().sum(1)
    for start in range(0, len(a), BLOCK):
        block = a[start : start + BLOCK]
        distances = torch.addmm(lengths[None], block, b.T, alpha=-2)
        yield start, distances.add_(block.square().sum(1)[:, None]).clamp_(min=0)


@checked
def inception_score(logits: np.ndarray, splits: Count = 10) -> Estimate:
    """exp E KL(p(y|x) || p(y)) of a classifier (Salimans et al., NeurIPS 2016): mean and standard deviation over splits.

    Args:
        logits: (N, classes) logits of the samples.
        splits: number of parts of the samples, in their order; each part is scored alone.
    """
    _require(logits, at_least=splits, what=f"an inception score over {splits} splits")
    log_p = torch.from_numpy(logits).double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        log_q = torch.logsumexp(part, 0) - math.log(len(part))
        scores.append((part.exp() * (part - log_q)).sum(1).mean().exp().item())
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """The share of the samples of each class that a classifier assigns to it; None for a class without samples.

    Args:
        logits: (N, classes) logits of the samples.
        labels: (N,) class that each sample should have.
    """
    _require(logits, at_least=1, what="an accuracy")
    seen = logits.argmax(1) == labels
    return [float(seen[labels == label].mean()) if (labels == label).any() else None for label in range(logits.shape[1])]


class Memorisation(NamedTuple):
    """Whether samples are nearer to the training images than new images of the same kind are.

    Attributes:
        ratio: median distance of a sample to its nearest training image, over the same median of the images from outside. It is
            near 1 if nothing is memorised, and 0 for copies.
        share: share of samples that are nearer to a training image than every image from outside.
    """

    ratio: float
    share: float


@checked
def memorisation(samples: np.ndarray, training: np.ndarray, outside: np.ndarray, device: str = "cpu") -> Memorisation:
    """Distances in feature space to the nearest training image, of samples and of images that the network never saw.

    Args:
        samples: (N, D) features of the samples.
        training: (M, D) features of the images that the network was trained on.
        outside: (K, D) features of images of the same kind outside the training set, not of a part of the training set.
        device: where distances are computed.
    """
    _require(samples, training, outside, at_least=1, what="memorisation")
    a, b, c = _centred((samples, training, outside), training, device)
    own, others = (torch.cat([d.amin(1) for _, d in _blocks(x, b)]).sqrt() for x in (a, c))
    if not others.median() > 0:
        raise PDSError("memorisation needs images that are not in the training set, and most of these are: give others")
    return Memorisation((own.median() / others.median()).item(), (own < others.min()).float().mean().item())


@checked
def frechet_limit(
    samples: np.ndarray, reference: FeatureStatistics, points: Annotated[int, Range(3, 1000)] = 15, seed: int = 0
) -> Estimate:
    """FID extrapolated to infinitely many samples (Chong & Forsyth, CVPR 2020): the bias of N images falls as 1/N.

    Args:
        samples: (N, D) features, at least 20.
        reference: the statistics to compare them with.
        points: number of random subsets of N/10 to N images; the line in 1/N is fitted to their distances.
        seed: seed of their choice.

    Returns:
        The line's value at 1/N = 0, and the standard error of that fit. Subsets overlap, so the error is too small rather
        than too large.
    """
    _require(samples, at_least=20, what="an extrapolated distance")
    order, counts = np.random.default_rng(seed), np.linspace(len(samples) / 10, len(samples), points).astype(int)
    distances = []
    for count in counts:
        chosen = samples[order.choice(len(samples), count, replace=False)]
        distances.append(frechet_distance(FeatureStatistics.from_features(chosen), reference))
    line = np.stack([np.ones(points), 1 / counts], 1)
    (value, slope), *_ = np.linalg.lstsq(line, np.array(distances), rcond=None)
    residual = np.array(distances) - line @ (value, slope)
    covariance = np.linalg.inv(line.T @ line) * (residual @ residual / (points - 2))
    return Estimate(float(value), float(covariance[0, 0] ** 0.5))


def blocks_of(count: int) -> np.ndarray:
    """(count,) the block that each image belongs to: `BLOCKS` contiguous parts of equal size, up to one image."""
    return np.repeat(np.arange(BLOCKS), [len(part) for part in np.array_split(np.empty(count), BLOCKS)])


def jackknife_error(left_out: Sequence[float] | np.ndarray) -> float:
    """Standard error of a measure from its values without each block of images in turn (Efron & Stein, 1981).

    The error does not contain a bias that all blocks share. The Fréchet distance of N images has a bias of the order of 1/N,
    which its error does not show.
    """
    values = np.asarray(left_out)
    return math.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum())


# 97.5% quantiles of Student's t for 1 to 10 degrees of freedom; beyond, their expansion around the normal quantile.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Comparison(NamedTuple):
    """Two settings at equal noise.

    Attributes:
        difference: first minus second, a mean over seeds.
        error: its standard error.
        low, high: 95% interval of the difference (Student's t).
    """

    difference: float
    error: float
    low: float
    high: float

    @property
    def level(self) -> bool:
        """Whether the interval holds 0: then the measurement shows neither setting to be better."""
        return self.low <= 0 <= self.high


def _quantile(degrees: int) -> float:
    return STUDENT[degrees - 1] if degrees <= len(STUDENT) else 1.95996 + 2.3724 / degrees + 2.8225 / degrees**2


Blocks = Sequence[float] | np.ndarray
"""A measure without each of the blocks of images in turn, as `jackknife_error` takes it."""


def compared(
    first: Sequence[float], second: Sequence[float], left_out: Sequence[tuple[Blocks, Blocks]] | None = None
) -> Comparison:
    """The paired comparison of two settings at equal noise, seed by seed.

    The noise of an image depends on (seed, index) alone, so images of different seeds are as independent as those of one seed.
    Hence the blocks of images of S seeds give one error with 19 S degrees of freedom. The differences of the seeds themselves
    have S - 1, and with three seeds Student's t is twice as large. On samples of the shipped VE network the jackknife's error
    was 1.1 to 1.7 times too large (experiments/RESULTS.md).

    Args:
        first, second: the measure of each setting, by seed.
        left_out: both settings' measures without each block, by seed. None takes the error from the differences of the seeds.

    Raises:
        PDSError: the seeds of both are not as many, or there is no seed, or without `left_out` a single one.
    """
    least = 2 if left_out is None else 1
    if len(first) != len(second) or len(first) < least:
        raise PDSError(
            f"a paired comparison needs the same seeds of both settings, at least {least}: got {len(first)} and {len(second)}"
        )
    differences = np.subtract(first, second)
    if left_out is None:
        error, degrees = float(differences.std(ddof=1) / math.sqrt(len(differences))), len(differences) - 1
    else:
        errors = [jackknife_error(np.subtract(*blocks)) for blocks in left_out]
        error, degrees = math.hypot(*errors) / len(errors), len(errors) * (BLOCKS - 1)
    mean, reach = float(differences.mean()), _quantile(degrees) * error
    return Comparison(mean, error, mean - reach, mean + reach)


def _require(*features: np.ndarray, at_least: int, what: str) -> None:
    if any(f.ndim != 2 for f in features) or len({f.shape[1] for f in features}) > 1:
        raise PDSError(
            f"{what} needs (N, D) features of one length D, got the shapes {', '.join(str(f.shape) for f in features)}"
        )
    if (fewest := min(len(f) for f in features)) < at_least:
        raise PDSError(f"{what} needs at least {at_least} images, got {fewest}: sample more, or leave this measure out")
    if not all(np.isfinite(f).all() for f in features):
        raise PDSError(f"{what} needs finite features: look for NaN or infinity in the images they come from")
