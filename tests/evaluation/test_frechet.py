"""The Fréchet distance against closed forms and against clean-fid's own."""

from __future__ import annotations

import numpy as np
import pytest

from pds.errors import PDSError
from pds.evaluation.frechet import FeatureStatistics, frechet_distance


def statistics(seed: int, count: int, dimension: int) -> FeatureStatistics:
    return FeatureStatistics.from_features(features(seed, count, dimension))


def features(seed: int, count: int, dimension: int) -> np.ndarray:
    """Correlated features whose standard deviations span a factor of 20, as those of networks do."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dimension, dimension)) * np.geomspace(1, 0.05, dimension)[:, None]
    return (rng.standard_normal((count, dimension)) @ mixing + rng.standard_normal(dimension)).astype(np.float32)


def test_statistics_are_numpys_in_float64() -> None:
    # An offset of 1e4 leaves float32 sums no digit of the variance.
    x = features(0, 50, 6) + np.float32(1e4)
    result = FeatureStatistics.from_features(x)
    assert result.count == 50
    assert result.mean.dtype == result.covariance.dtype == np.float64
    np.testing.assert_allclose(result.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


def test_closed_forms() -> None:
    rng = np.random.default_rng(1)
    mean_a, mean_b = rng.standard_normal((2, 5))
    std_a, std_b = rng.uniform(0.1, 3, (2, 5))
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    a, b = (
        FeatureStatistics(rotation @ mean, rotation @ np.diag(std**2) @ rotation.T, 100)
        for mean, std in ((mean_a, std_a), (mean_b, std_b))
    )
    expected = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    shifted = FeatureStatistics(a.mean + 2.0, a.covariance, 100)
    assert frechet_distance(a, shifted) == pytest.approx(5 * 4.0, rel=1e-12)


@pytest.mark.parametrize("count", [300, 20])
def test_zero_to_itself(count: int) -> None:
    a = statistics(2, count, 64)
    assert 0 <= frechet_distance(a, a) < 1e-11 * np.trace(a.covariance)


def test_equals_clean_fid() -> None:
    scipy = pytest.importorskip("scipy")
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("clean-fid 0.1.35 calls scipy.linalg.sqrtm with an argument that scipy 1.18 removed")
    from cleanfid.fid import frechet_distance as clean_fid_distance

    a, b = statistics(3, 1000, 64), statistics(4, 800, 64)
    with pytest.warns(DeprecationWarning, match="disp"):
        expected = clean_fid_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reference_count", [30, 500])
def test_fewer_images_than_features(reference_count: int) -> None:
    """The trace of the root is also the nuclear norm of the centred features' product, exactly at any rank."""
    x, y = features(5, 20, 64), features(5, reference_count, 64)
    a, b = FeatureStatistics.from_features(x), FeatureStatistics.from_features(y)
    product = (x - a.mean) @ (y - b.mean).T / np.sqrt((len(x) - 1) * (len(y) - 1))
    root_trace = np.linalg.svd(product, compute_uv=False).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root_trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_refusals() -> None:
    with pytest.raises(PDSError, match="at least 2 images"):
        FeatureStatistics.from_features(np.zeros((1, 4)))
    with pytest.raises(PDSError, match="not finite"):
        FeatureStatistics.from_features(np.full((3, 4), np.nan))
    with pytest.raises(PDSError, match="64 and of 32"):
        frechet_distance(statistics(0, 100, 64), statistics(0, 100, 32))
