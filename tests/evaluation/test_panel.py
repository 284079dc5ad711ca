"""A panel is its measures under exact names, its errors are those of a jackknife done directly, and bad input comes early."""

import logging
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from pds.data.dataset import Dataset
from pds.data.images import ArrayImages
from pds.data.mnist import mnist
from pds.errors import PDSError
from pds.evaluation.features import ClassifierFeatures, InceptionFeatures
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.measures import BLOCKS, inception_score, kernel_distance, manifold
from pds.evaluation.metric import mnist_classifier_metric, panel_metric
from pds.evaluation.panel import NAMES, NEIGHBOURS, Panel, Seen, better, long_name, parts, short_name
from pds.evaluation.reference import MadeReference, PublishedReference, kept_whole, shipped_reference

COUNT, SIZE = 120, 30
DIGITS = Dataset("mnist", (1, 28, 28), partial(mnist, root="/nowhere"), reference=MadeReference())


@pytest.fixture(scope="module")
def panel():
    made = panel_metric(DIGITS, kid_size=SIZE)
    return replace(made, reference=replace(made.reference, held_out=made.reference.held_out[:400]))


@pytest.fixture(scope="module")
def features():
    """Features of real digits, moved."""
    single = shipped_reference(ClassifierFeatures().network.__class__).single
    return single[5000 : 5000 + COUNT] * np.float32(1.1)


@pytest.fixture(scope="module")
def measured(panel, features):
    return panel.measure(features)


def short(name):
    return name.removesuffix(f"_mnist_classifier_native_n{COUNT}")


def test_every_measure_is_that_of_its_function_under_its_exact_name(panel, features, measured):
    metrics = {short(name): value for name, value in measured.metrics.items()}
    reference, single = panel.reference.statistics, panel.reference.single
    assert list(metrics) == ["fid", f"kid{SIZE}", *NEIGHBOURS, "inception_score", "fid_infinity"]
    assert metrics["fid"] == frechet_distance(FeatureStatistics.from_features(features), reference)
    today = mnist_classifier_metric().measure(features).metrics
    assert today == {f"fid_mnist_classifier_{COUNT}": metrics["fid"]}
    kid = kernel_distance(features, single, size=SIZE)
    assert (metrics[f"kid{SIZE}"], measured.spreads[f"kid{SIZE}_mnist_classifier_native_n{COUNT}"]) == kid[:2]
    assert [metrics[name] for name in NEIGHBOURS] == list(manifold(features, single))
    score = inception_score(panel.features.network.head(relu(features)).detach().numpy())
    assert metrics["inception_score"] == pytest.approx(score.value)
    assert {name: better(name) for name in ("kid_x_n1", "recall_x_n1", "inception_score_x_n1", "memorisation_share_x_n1")} == {
        "kid_x_n1": "low",
        "recall_x_n1": "high",
        "inception_score_x_n1": "high",
        "memorisation_share_x_n1": "",
    }


def relu(features):
    import torch

    return torch.from_numpy(features).relu()


def jackknife(measure, features):
    """Standard error of a measure of features, computed anew without each block (Efron & Stein, 1981)."""
    parts = np.array_split(np.arange(len(features)), BLOCKS)
    return ((BLOCKS - 1) * np.var([measure(np.delete(features, part, axis=0)) for part in parts])) ** 0.5


def test_errors_are_those_of_measuring_anew_without_each_block(panel, features, measured):
    errors = {short(name): value for name, value in measured.errors.items()}
    assert errors.keys() == {short(name) for name in measured.metrics}
    distance = lambda x: frechet_distance(FeatureStatistics.from_features(x), panel.reference.statistics)  # noqa: E731
    assert errors["fid"] == pytest.approx(jackknife(distance, features), rel=1e-6)
    for name in ("precision", "recall", "density", "coverage"):
        anew = jackknife(lambda x, name=name: getattr(manifold(x, panel.reference.single), name), features)
        assert errors[name] == pytest.approx(anew, rel=1e-6), name


def test_kid_of_subsets_that_lie_in_one_block_has_no_error(features, panel):
    """Without that block nothing is left of them: a NaN in a result would make the run look damaged."""
    found = replace(panel, measures=("kid",), kid_size=2).measure(features)
    ((name, value),) = found.metrics.items()
    assert math.isfinite(value)
    assert name not in found.errors and name not in found.left_out


def test_the_error_of_kid_is_that_of_its_subsets_without_each_block(features, panel):
    single = panel.reference.single
    kid = kernel_distance(features, single, subsets=1, size=COUNT)
    choice = np.random.RandomState(0)
    choice.choice(COUNT, COUNT, replace=False)
    y = single[choice.choice(len(single), COUNT, replace=False)].astype(np.float64)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
    for block, part in enumerate(np.array_split(np.arange(COUNT), BLOCKS)):
        x = np.delete(features, part, axis=0).astype(np.float64)
        assert kid.left_out[block] == pytest.approx(off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("dead", [False, True])
def test_statistics_without_some_vectors_are_those_of_the_rest(dead):
    x = np.random.default_rng(3).normal(2, 1, (50, 6)).astype(np.float32)
    x[:, 2] = 0.1 if dead else x[:, 2]
    rest = FeatureStatistics.from_features(x).without(x[7:19])
    expected = FeatureStatistics.from_features(np.delete(x, np.s_[7:19], axis=0))
    assert rest.count == expected.count == 38
    np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(rest.covariance, expected.covariance, atol=1e-9)


def test_older_names_and_exact_ones_are_one_to_one():
    for name in ("fid_mnist_classifier_native_n2048", "fid_cifar10_classifier_native_n2000", "fid_inception_clean_n50000"):
        assert short_name(name) != name and long_name(short_name(name)) == name
        assert parts(name) == ("fid", name.removeprefix("fid_"))
    for name in (
        "kid_inception_clean_n2000",
        "fid_infinity_inception_clean_n2000",
        "fid_dinov2_vitl14_native_n2",
        "fid_made_up_256",
    ):
        assert short_name(name) == long_name(name) == name
    assert parts("fid_infinity_x_native_n9") == ("fid_infinity", "x_native_n9")
    assert parts("kid100_x_native_n9") == ("kid100", "x_native_n9")
    assert parts("memorisation_share_x_native_n9") == ("memorisation_share", "x_native_n9")
    assert parts("fid_made_up_256") is None


def images_of(split, count, seed):
    return ArrayImages("mnist", split, np.random.default_rng(seed).integers(0, 256, (count, 1, 28, 28), np.uint8))


def test_memorisation_compares_with_the_files_and_refuses_a_part_of_the_training_set(tmp_path, features):
    train, test = images_of("train", 60, 0), images_of("test", 30, 1)
    files = {"train": train, "test": test}
    made = replace(DIGITS, source=lambda split="train": files[split])
    panel = panel_metric(made, measures=["memorisation"], cache=tmp_path)
    copies = panel.features(train.read(range(30)))
    values = panel.measure(copies).metrics
    assert {short(name).replace("_n30", "") for name in values} == {
        f"memorisation_{what}_mnist_classifier_native" for what in ("ratio", "share")
    }
    ratio, share = values.values()
    assert ratio < 0.05 and share == 1
    assert panel.measure(panel.features(test.read(range(30)))).metrics.popitem()[1] < 0.2
    assert len(list((tmp_path / "features").iterdir())) == 2
    held_out = ArrayImages("mnist", "train", train.images[:9])
    with pytest.raises(
        PDSError, match="needs images outside the training set, and mnist train belongs to it, as do the held-out images"
    ):
        Seen.of(train, held_out, lambda images: kept_whole(images, panel.features, tmp_path))
    with pytest.raises(PDSError, match=r"needs the train images of mnist \(a reference's held-out images are of the training"):
        panel_metric(DIGITS, measures=["memorisation"], cache=tmp_path)
    with pytest.raises(PDSError, match="measures has memorisation, and mnist has no test images apart"):
        panel_metric(replace(DIGITS, source=lambda: train), measures=["memorisation"], cache=tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_only_measures_that_somebody_named_ask_for_more_images(seed, caplog):
    caplog.set_level(logging.INFO, "pds")
    rng, whole = np.random.default_rng(seed), panel_metric(DIGITS)
    for count in [*map(int, rng.integers(2, 1200, 18)), 2, 999, 1000]:
        caplog.clear()
        fitting = whole.within(count)
        fitting.require(count)
        left = [name for name in whole.measures if name not in fitting.measures]
        assert [f"{name} (" in caplog.text for name in whole.measures] == [name in left for name in whole.measures]
        assert len(caplog.records) == bool(left)
        for name in left:
            with pytest.raises(PDSError, match=f"has {name}, which needs"):
                replace(whole, measures=(name,)).require(count)
    named = panel_metric(DIGITS, measures=["fid", "kid"]).within(256)
    with pytest.raises(PDSError, match="has kid, which needs at least 1000 images"):
        named.require(256)


def test_what_cannot_be_measured_is_said_with_its_fix_before_anything_is_sampled(panel, features, tmp_path):
    for name in NAMES:
        alone = replace(panel, measures=(name,), seen=None)
        alone.require(SIZE)
        with pytest.raises(
            PDSError, match=f"measures has {name}, which needs at least .* images, and there are 0: sample more"
        ):
            alone.require(0)
    with pytest.raises(PDSError, match="needs at least 1000 images, and there are 256: sample more, give a smaller kid_size"):
        panel_metric(DIGITS).require(256)
    bare = replace(panel.reference, held_out=None)
    for name in ("kid", *NEIGHBOURS):
        with pytest.raises(PDSError, match=f"measures has {name}, which compares single images, and the reference holds stat"):
            Panel(panel.features, bare, (name,))
    with pytest.raises(PDSError, match="kid_size must be at most 400, the reference's images, got 1000"):
        replace(panel, kid_size=1000, named=True)
    assert "kid" not in replace(panel, kid_size=1000, named=False).within(4000).measures
    with pytest.raises(PDSError, match="measures must be a list of 1 to 9 of fid, kid"):
        panel_metric(DIGITS, measures=["fod"])
    with pytest.raises(PDSError, match=r"features must be .*, got 'lenet'"):
        panel_metric(DIGITS, features="lenet")
    for wrong in (np.where(features > 3, np.nan, features), features[:, :9]):
        with pytest.raises(PDSError):
            panel.measure(wrong)
    with pytest.raises(
        PDSError, match="clean-fid publishes statistics of its Inception features alone, not of mnist_classifier"
    ):
        PublishedReference("mnist", 28)(lambda: None, panel.features, tmp_path)


def test_a_reference_that_is_made_keeps_features_of_single_images(tmp_path):
    source, extractor = images_of("train", 70, 2), ClassifierFeatures()
    made = MadeReference(50)(lambda: source, extractor, tmp_path)
    again = MadeReference(50)(lambda: source, extractor, tmp_path)
    assert made.single.shape == (50, 64)
    assert np.array_equal(made.single, again.single)
    assert made.statistics.mean == pytest.approx(made.single.mean(0, dtype=np.float64))
    assert InceptionFeatures.logits is None
