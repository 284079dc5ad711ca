"""Measures: equal to torch-fidelity's on the same features, and to their definitions written out."""

import numpy as np
import pytest
import torch

from pds.errors import PDSError
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.measures import (
    blocks_of,
    class_accuracy,
    compared,
    frechet_limit,
    inception_score,
    jackknife_error,
    kernel_distance,
    manifold,
    memorisation,
    neighbours,
)


def features(count, dimension, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / dimension**0.5
    return (rng.normal(size=(count, dimension)) @ mixing + 3 + shift).astype(np.float32)


SIZES = [(400, 300, 8, 0.3), (120, 500, 32, 0.0), (257, 256, 3, 1.0)]


@pytest.mark.parametrize("size", SIZES)
def test_distances_and_neighbours_are_those_of_torch_fidelity(size):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    count, references, dimension, shift = size
    a, b = features(count, dimension, 0, shift), features(references, dimension, 1)
    pair = [torch.from_numpy(x).double() for x in (a, b)]
    theirs = kid_features_to_metric(*pair, kid_subsets=20, kid_subset_size=100, rng_seed=7, verbose=False)
    expected = (theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"])
    assert kernel_distance(a, b, subsets=20, size=100, seed=7)[:2] == pytest.approx(expected, rel=1e-4)
    assert kernel_distance(a, b, subsets=2, size=100, seed=2**40 + 7)[0] == kernel_distance(a, b, 2, 100, 7)[0]
    near = manifold(a, b)
    theirs = prc_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
    assert (near.precision, near.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-4)
    theirs = isc_features_to_metric(torch.from_numpy(a), splits=7, shuffle=False)
    expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
    assert inception_score(a, splits=7) == pytest.approx(expected, rel=1e-4)
    statistics = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (a, b)]
    ours = frechet_distance(FeatureStatistics.from_features(a), FeatureStatistics.from_features(b))
    assert ours == pytest.approx(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"], rel=1e-4)


def directly(a, b, near, wide):
    """The four definitions, a pair of images at a time."""
    distance = lambda x, y: np.sqrt(np.square(x[:, None].astype(np.float64) - y[None]).sum(-1))  # noqa: E731
    ball = lambda x, k: np.sort(distance(x, x), axis=1)[:, k]  # noqa: E731
    d = distance(a, b)
    precision = np.mean([any(d[i, j] <= r for j, r in enumerate(ball(b, near))) for i in range(len(a))])
    recall = np.mean([any(d[i, j] <= r for i, r in enumerate(ball(a, near))) for j in range(len(b))])
    density = np.mean([sum(d[i, j] < r for j, r in enumerate(ball(b, wide))) / wide for i in range(len(a))])
    coverage = np.mean([min(d[:, j]) < r for j, r in enumerate(ball(b, wide))])
    return precision, recall, density, coverage


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_in_blocks_are_their_definitions(seed, monkeypatch):
    monkeypatch.setattr("pds.evaluation.measures.BLOCK", 17)
    a, b = features(60, 4, seed, 0.2), features(45, 4, seed + 10)
    assert manifold(a, b, near=2 + seed, wide=4) == pytest.approx(directly(a, b, 2 + seed, 4))
    assert manifold(b, b, wide=3).coverage == 1


@pytest.mark.parametrize(("count", "near"), [(60, 3), (137, 5), (400, 15)])
def test_without_a_block_neighbours_are_those_of_the_other_samples(count, near, monkeypatch):
    monkeypatch.setattr("pds.evaluation.measures.BLOCK", 50)
    a, b = features(count, 3, count), features(90, 3, 1)
    a[: count // 4] = a[0] + a[: count // 4] / 100  # whole blocks beside one another, beyond the list of neighbours
    found, block_of = neighbours(a, b, near), blocks_of(count)
    for block in range(20):
        assert found.manifold(without=block) == pytest.approx(manifold(a[block_of != block], b, near))


def test_an_extrapolated_distance_has_no_bias_where_that_of_few_images_has():
    reference = FeatureStatistics(np.zeros(16), np.eye(16), 0)
    sets = [np.random.default_rng(seed).normal(size=(400, 16)).astype(np.float32) for seed in range(12)]
    plain = np.mean([frechet_distance(FeatureStatistics.from_features(x), reference) for x in sets])
    limits = [frechet_limit(x, reference) for x in sets]
    assert plain > 0.1
    assert abs(np.mean([limit.value for limit in limits])) < 0.2 * plain
    assert all(0 < limit.error < plain for limit in limits)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    blocks = np.random.default_rng(0).normal(size=20)
    left_out = (blocks.sum() - blocks) / 19
    assert jackknife_error(left_out) == pytest.approx(blocks.std(ddof=1) / 20**0.5, rel=1e-9)


def test_copies_are_memorised_and_new_images_are_not():
    training, outside, fresh = (features(300, 6, seed) for seed in (0, 1, 2))
    new = memorisation(fresh, training, outside)
    assert new.ratio == pytest.approx(1, abs=0.1)
    assert new.share < 0.05
    half = np.concatenate([fresh[:150], training[:150]])
    copied = memorisation(half, training, outside)
    assert copied.share == pytest.approx(0.5, abs=0.03)
    assert memorisation(training[:100], training, outside).ratio == pytest.approx(0, abs=0.01)
    with pytest.raises(PDSError, match="images that are not in the training set"):
        memorisation(fresh, training, training[:100])


def test_features_in_float64_are_measured_as_in_float32():
    single, others = features(60, 4, 0), features(50, 4, 1)
    double, doubled = single.astype(np.float64), others.astype(np.float64)
    assert manifold(double, doubled) == manifold(single, others)
    assert memorisation(double, doubled, double[::-1]) == pytest.approx(memorisation(single, others, single[::-1]))


def test_a_paired_difference_tells_what_the_spread_of_each_cannot():
    better = compared([19.4, 26.7, 25.3], [25.9, 35.6, 39.7])
    assert better.difference == pytest.approx(-9.933, abs=1e-3)
    assert better.error == pytest.approx(2.3383, abs=1e-4)
    assert better.level == (better.low <= 0 <= better.high)
    assert compared([1.0, 2.0, 4.0], [1.1, 1.9, 4.0]).level
    assert not compared([1.0, 2.0, 4.0], [2.0, 3.1, 5.0]).level
    from scipy.stats import t

    for seeds in (2, 3, 11, 12, 30):
        wide = compared(list(np.arange(float(seeds))), [0.0] * seeds)
        assert (wide.high - wide.difference) / wide.error == pytest.approx(t.ppf(0.975, seeds - 1), rel=1e-3)


def test_what_cannot_be_measured_is_refused_in_one_sentence():
    good = features(30, 4, 0)
    wrong = [features(30, 5, 0), good[0], np.where(good > 3, np.nan, good), np.where(good > 3, np.inf, good)]
    for bad in wrong:
        for measure in (
            lambda x: kernel_distance(x, good, size=10),
            lambda x: manifold(x, good),
            lambda x: memorisation(x, good, good),
        ):
            with pytest.raises(PDSError, match="needs"):
                measure(bad)
    with pytest.raises(PDSError, match="KID with subsets of 31 needs at least 31 images, got 30"):
        kernel_distance(good, good, size=31)
    with pytest.raises(PDSError, match="at least 6 images, got 5"):
        manifold(good[:5], good)
    with pytest.raises(PDSError, match="same seeds of both settings"):
        compared([1.0], [2.0])


def test_the_accuracy_of_a_class_is_the_share_of_its_own_samples():
    logits = np.eye(4)[[0, 0, 1, 2, 1, 0]]
    labels = np.array([0, 1, 1, 2, 2, 0])
    assert class_accuracy(logits, labels) == [1.0, 0.5, 0.5, None]


def test_whole_numbers_are_features_like_any_other():
    a, b = (np.random.RandomState(i).randint(0, 256, (60, 8)) for i in (0, 1))
    for kind in ("uint8", "int64", "float16"):
        assert manifold(a.astype(kind), b.astype(kind)) == manifold(a.astype("f4"), b.astype("f4"))
