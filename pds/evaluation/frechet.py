"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al., NeurIPS 2017, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pds.errors import PDSError

ROWS = 8192  # features that are converted to float64 at once, to bound memory


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased (divided by N - 1).
        count: the number N of vectors; 0 if a published file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or not len(self.mean) or self.covariance.shape != 2 * self.mean.shape:
            raise PDSError(
                f"feature statistics need a mean of shape (D,) and a covariance of shape (D, D), "
                f"got {self.mean.shape} and {self.covariance.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise PDSError("feature statistics are not finite: look for NaN or infinity in the features or in their file")
        scale = np.abs(self.covariance).max(initial=0)
        if np.abs(self.covariance - self.covariance.T).max(initial=0) > 1e-6 * scale or self.covariance.diagonal().min() < 0:
            raise PDSError("feature statistics need a symmetric covariance with variances of at least 0: make them again")

    @classmethod
    def from_features(cls, features: np.ndarray) -> FeatureStatistics:
        """Statistics of (N, D) features; N < 2 or non-finite features raise `PDSError`."""
        if features.ndim != 2 or len(features) < 2:
            raise PDSError(f"a Fréchet distance needs (N, D) features of at least 2 images, got shape {features.shape}")
        mean = features.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise PDSError("features are not finite: look for NaN or infinity in the images they come from")
        return cls(mean, _products(features, mean) / (len(features) - 1), len(features))

    def without(self, features: np.ndarray) -> FeatureStatistics:
        """Statistics of the vectors without `features`, (n, D), which are some of them."""
        rest = self.count - len(features)
        shift = len(features) * (self.mean - features.mean(axis=0, dtype=np.float64)) / rest
        products = (self.count - 1) * self.covariance - _products(features, self.mean) - rest * np.outer(shift, shift)
        np.fill_diagonal(products, products.diagonal().clip(min=0))  # a constant feature may be below 0 by rounding
        return FeatureStatistics(self.mean + shift, (products + products.T) / (2 * (rest - 1)), rest)


def _products(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Sum over vectors of the outer product of their differences to `mean`, in float64."""
    total = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), ROWS):
        block = features[start : start + ROWS] - mean
        total += block.T @ block
    return total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), in float64 and never negative.

    With Σa = H Hᵀ the trace of the root is the sum of the roots of the eigenvalues of Hᵀ Σb H. This matrix is symmetric. So no
    root of a non-symmetric matrix is needed, and nothing complex can arise. H spans the range of Σa alone. So sets with fewer
    images than features lose no precision to the roots of rounded zeros.
    """
    if a.mean.shape != b.mean.shape:
        raise PDSError(f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared: use one extractor")
    # Decomposing the smaller set gives the smaller H; a count of 0 is a large published set.
    a, b = sorted((a, b), key=lambda statistics: statistics.count or np.inf)
    values, vectors = np.linalg.eigh(a.covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    h = vectors[:, kept] * np.sqrt(values[kept])
    roots = np.sqrt(np.linalg.eigvalsh(h.T @ b.covariance @ h).clip(min=0))
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum()
    if not np.isfinite(distance):
        raise PDSError("the Fréchet distance is not finite: the features are too large to be compared")
    return max(0.0, float(distance))
