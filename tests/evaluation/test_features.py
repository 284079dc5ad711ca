"""Feature extractors, references and the metric, offline: a stand-in network lies where Inception's file would be."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from dataclasses import replace
from email.message import Message
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pds.cache import cache_folder
from pds.data.cifar10 import cifar10_jpeg
from pds.data.dataset import Dataset
from pds.data.folder import ImageFolder
from pds.data.images import ArrayImages, image_digest, random_flip
from pds.data.mnist import mnist
from pds.errors import PDSError
from pds.evaluation import classifier_training
from pds.evaluation.classifier_training import RECIPES, accuracy, random_shift, train_classifier
from pds.evaluation.features import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    ClassifierFeatures,
    InceptionFeatures,
    classifier_file,
)
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.metric import classifier_metric, clean_fid_metric, mnist_classifier_metric
from pds.evaluation.panel import Panel, short_name
from pds.evaluation.reference import (
    MadeReference,
    PublishedReference,
    make_reference,
    published_or_made,
    published_reference,
    shipped_reference,
)
from pds.files import ASSETS, sha256
from pds.models.classifier import Classifier, DigitClassifier, ObjectClassifier


class StandInLayers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, (26, 27)).flatten(1)[:, :2048]


class StandIn(nn.Module):
    """Has the part of the published Inception file that clean-fid uses: `layers`, (n, 3, 299, 299) to (n, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = StandInLayers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def inception_cache(tmp_path: Path) -> tuple[Path, str]:
    """A cache folder with the stand-in at Inception's place, and its checksum."""
    path = tmp_path / INCEPTION_FILE
    torch.jit.script(StandIn()).save(str(path))
    return tmp_path, sha256(path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes, length: int | None = None) -> list[str]:
    """Let `urlopen` answer with `content`; returns the list of requested addresses."""
    requested = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        requested.append(url)
        response = io.BytesIO(content)
        response.headers = Message()
        response.headers["Content-Length"] = str(len(content) if length is None else length)
        return response

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return requested


def noise(kind: type[Classifier], count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *kind.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def digits(count: int, seed: int = 0) -> Tensor:
    return noise(DigitClassifier, count, seed)


def source(count: int, seed: int = 0) -> ArrayImages:
    return ArrayImages("noise", "train", digits(count, seed).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_path_is_clean_resize_then_network(inception_cache: tuple[Path, str], channels: int) -> None:
    images = torch.randint(0, 256, (34, channels, 28, 20), dtype=torch.uint8)
    folder, checksum = inception_cache
    features = InceptionFeatures("cpu", folder, checksum)
    result = features(images)
    assert result.shape == (34, features.dimension)
    assert result.dtype == np.float32
    # 33 lies in the second chunk: neither it nor image 0 may depend on the grouping.
    for i in (0, 33):
        planes = [Image.fromarray(plane.astype(np.float32)) for plane in images[i].expand(3, -1, -1).numpy()]
        resized = np.stack([np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for p in planes])
        expected = StandInLayers()(torch.from_numpy((resized - 128) / 128)[None])[0].numpy()
        np.testing.assert_allclose(result[i], expected, atol=1e-5)


def test_inception_offline_names_file_address_checksum_and_place(tmp_path: Path, offline: None) -> None:
    with pytest.raises(PDSError) as caught:
        InceptionFeatures("cpu", tmp_path / "pds" / "cache")
    message = str(caught.value)
    for part in ("Inception", "https://", INCEPTION_SHA256, str(tmp_path / "pds" / "cache" / INCEPTION_FILE), "not known"):
        assert part in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_inception_with_another_checksum_is_refused(inception_cache: tuple[Path, str], offline: None) -> None:
    folder, checksum = inception_cache
    with pytest.raises(PDSError, match=f"not the published.*{checksum}.*{INCEPTION_SHA256}"):
        InceptionFeatures("cpu", folder)


def test_download_is_whole_checked_and_logged(
    inception_cache: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, checksum = inception_cache
    content = (folder / INCEPTION_FILE).read_bytes()
    empty = folder / "cache"
    serve(monkeypatch, content[:-1], length=len(content))
    with pytest.raises(PDSError, match="bytes arrived"):
        InceptionFeatures("cpu", empty, checksum)
    serve(monkeypatch, content[:-1] + b"x")
    with pytest.raises(PDSError, match="the downloaded file has the sha256"):
        InceptionFeatures("cpu", empty, checksum)
    assert not empty.exists()
    requested = serve(monkeypatch, content)
    with caplog.at_level("INFO", logger="pds"):
        for _ in range(2):
            InceptionFeatures("cpu", empty, checksum)
    assert len(requested) == 1
    assert f"downloading {requested[0]} to {empty / INCEPTION_FILE}" in caplog.text


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PDS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("~/.cache/pds").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/pds")
    monkeypatch.setenv("PDS_CACHE", "/own")
    assert cache_folder() == Path("/own")


@pytest.mark.parametrize("kind", RECIPES)
def test_classifier_features_refuse_other_images(kind: type[Classifier], tmp_path: Path) -> None:
    save_file(kind().state_dict(), tmp_path / "weights.safetensors")
    features, (channels, height, width) = ClassifierFeatures(kind, weights=tmp_path / "weights.safetensors"), kind.shape
    assert features(noise(kind, 2)).shape == (2, kind.dimension)
    for shape in ((4 - channels, height, width), (channels, height, 30), (channels, 30, width)):
        with pytest.raises(PDSError, match=rf"{kind.data}_classifier .*\(n, {channels}, {height}, {width}\)"):
            features(torch.zeros(2, *shape, dtype=torch.uint8))
    with pytest.raises(PDSError, match=r"got torch\.float32"):
        features(noise(kind, 2) / 255)


def test_published_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    np.savez(file, mu=np.arange(2048.0), sigma=np.eye(2048))
    requested = serve(monkeypatch, file.getvalue())
    reference = published_reference("CIFAR10", 32, "train", tmp_path)
    assert requested == ["https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_train_32.npz"]
    assert reference.features_name == "inception"
    assert reference.statistics.mean[7] == 7
    assert reference.provenance["file_sha256"] == sha256(tmp_path / "statistics" / "cifar10_clean_train_32.npz")
    (tmp_path / "statistics" / "cifar10_clean_train_32.npz").write_text("<html>moved</html>")
    with pytest.raises(PDSError, match="delete it"):
        published_reference("cifar10", 32, "train", tmp_path)


def test_published_reference_offline(inception_cache: tuple[Path, str], offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checksum = inception_cache
    monkeypatch.setattr("pds.evaluation.metric.InceptionFeatures", partial(InceptionFeatures, checksum=checksum))
    faces = Dataset("ffhq", [3, 256, 256], lambda: pytest.fail("opened"), reference=published_or_made("ffhq", 256))
    says = r"ffhq trainval70k at 256 .*https://.*/ffhq_clean_trainval70k_256\.npz .*no published checksum"
    with pytest.raises(PDSError, match=says):
        clean_fid_metric(faces, cache=folder)
    with pytest.raises(PDSError, match="ffhq names no reference"):
        clean_fid_metric(replace(faces, reference=None), cache=folder)


def test_which_references_are_published() -> None:
    assert published_or_made("cifar10", 32) == PublishedReference("cifar10", 32, "train")
    assert published_or_made("lsun_church", 256, "trainfull") == PublishedReference("lsun_church", 256, "trainfull")
    assert published_or_made("lsun_church", 96, images=7) == MadeReference(7)
    with pytest.raises(PDSError, match="one of trainval70k, trainval, clean-fid's of ffhq at 1024 pixels, got 'train'"):
        published_or_made("ffhq", 1024, "train")


def test_made_reference_is_cached_with_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, file = ClassifierFeatures(), tmp_path / "reference.npz"
    images = source(600)
    made = make_reference(images, features, file)
    expected = FeatureStatistics.from_features(features(digits(600)))
    assert frechet_distance(made.statistics, expected) < 1e-6 * np.trace(expected.covariance)
    assert made.provenance["images_sha256"] == image_digest([digits(600)])

    monkeypatch.setattr(ClassifierFeatures, "__call__", None)  # the second time must not compute
    again = make_reference(images, features, file)
    np.testing.assert_array_equal(again.statistics.covariance, made.statistics.covariance)
    assert (again.features_name, again.provenance) == (made.features_name, made.provenance)
    with pytest.raises(PDSError, match="images_sha256"):
        make_reference(source(600, seed=1), features, file)
    features.provenance = {**features.provenance, "weights_sha256": "0"}
    with pytest.raises(PDSError, match="weights_sha256"):
        make_reference(images, features, file)


def write_digits(folder: Path, count: int) -> ImageFolder:
    for i, digit in enumerate(digits(count)):
        Image.fromarray(digit[0].numpy()).save(folder / f"{i:03}.png")
    return ImageFolder(folder, (1, 28, 28), "digits")


def test_a_reference_is_made_of_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept under all that it depends on: found again without decoding, made anew when files or choices differ."""
    folder, cache, features = tmp_path / "digits", tmp_path / "cache", ClassifierFeatures()
    folder.mkdir()
    images, maker = write_digits(folder, 80), MadeReference(60)
    made = maker(lambda: images, features, cache)
    chosen = np.sort(np.random.default_rng(0).choice(80, 60, replace=False))
    expected = FeatureStatistics.from_features(features(digits(80)[chosen]))
    np.testing.assert_allclose(made.statistics.mean, expected.mean, atol=1e-5)
    stated = {"dataset": "digits", "split": "all", "shape": "1x28x28", "count": 60, "seed": 0, **features.provenance}
    assert made.provenance == stated | images.fingerprint

    decode = ImageFolder._image
    monkeypatch.setattr(ImageFolder, "_image", None)
    again = maker(lambda: ImageFolder(folder, (1, 28, 28), "digits"), features, cache)
    np.testing.assert_array_equal(again.statistics.covariance, made.statistics.covariance)
    monkeypatch.setattr(ImageFolder, "_image", decode)
    Image.fromarray(digits(1, seed=9)[0, 0].numpy()).save(folder / "000.png")
    changed = ImageFolder(folder, (1, 28, 28), "digits")
    maker(lambda: changed, features, cache)
    replace(maker, images=70)(lambda: changed, features, cache)
    assert len(list((cache / "references").iterdir())) == 3

    (folder / "079.png").rename(folder / "080.png")
    assert ImageFolder(folder, (1, 28, 28), "digits").fingerprint != changed.fingerprint
    (folder / "050.png").write_bytes(b"no image")
    with pytest.raises(PDSError, match=r"050\.png is no PNG"):
        replace(maker, images=80)(lambda: ImageFolder(folder, (1, 28, 28), "digits"), features, cache)
    (tmp_path / "one").mkdir()
    with pytest.raises(PDSError, match="digits all has 1 image"):
        maker(lambda: write_digits(tmp_path / "one", 1), features, cache)
    with pytest.raises(PDSError, match=r"^images must be a whole number from 2"):
        MadeReference(1)
    assert len(list((cache / "references").iterdir())) == 3


def test_features_and_reference_must_be_of_one_kind(inception_cache: tuple[Path, str]) -> None:
    reference = shipped_reference(DigitClassifier)
    with pytest.raises(PDSError, match="choose a reference made with inception"):
        Panel(InceptionFeatures("cpu", *inception_cache), reference)
    with pytest.raises(PDSError, match="choose a reference made with mnist_classifier"):
        Panel(ClassifierFeatures(), replace(reference, features_name="lenet"))
    other = replace(reference, provenance={**reference.provenance, "weights_sha256": "0"})
    with pytest.raises(PDSError, match="weights_sha256"):
        Panel(ClassifierFeatures(), other)


def test_names_carry_features_and_count() -> None:
    metric = mnist_classifier_metric()
    assert metric.name("fid", 256) == "fid_mnist_classifier_256"
    assert metric.name("fid", 2000) == "fid_mnist_classifier_2k"
    exact = replace(metric, short=False)
    assert exact.name("kid", 2048) == "kid_mnist_classifier_native_n2048"
    assert replace(exact, kid_size=100).name("kid", 2048) == "kid100_mnist_classifier_native_n2048"
    assert short_name(exact.name("fid", 2048)) == "fid_mnist_classifier_2048"
    assert short_name("fid_inception_clean_n50000") == "clean_fid_inception_50k"
    assert short_name("kid_inception_clean_n50000") == "kid_inception_clean_n50000"


def test_floor_is_that_of_the_held_out_images() -> None:
    metric = mnist_classifier_metric()
    name, value = metric.floor(256)
    assert name == "fid_mnist_classifier_256"
    assert value == metric.measure(metric.reference.held_out[:256]).metrics[name]
    assert metric.floor(50_000)[0] == "fid_mnist_classifier_10k"
    assert 0 < metric.floor(10_000)[1] < metric.floor(2_000)[1] < value
    # Halves of one distribution: at most a thousandth of the variance apart.
    assert metric.floor(10_000)[1] < 1e-3 * np.trace(metric.reference.statistics.covariance)
    # Noise lies far above the floor.
    assert metric.measure(metric.features(digits(256))).metrics[name] > 20 * value
    assert replace(metric, reference=replace(metric.reference, held_out=None)).floor(256) is None


@pytest.mark.parametrize("kind", RECIPES)
def test_training_learns_and_measures_what_it_returns(kind: type[Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes told apart by the rows and columns of bright points."""
    measured = []
    monkeypatch.setattr(
        classifier_training, "accuracy", lambda network, images: measured.append(network) or accuracy(network, images)
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 100).astype(np.uint8)
    images = rng.integers(0, 60, (100, *kind.shape), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, :: label // 5 + 2, :: label % 5 + 1] = 255
    data = ArrayImages("grids", "train", images, labels)
    # So small a step reaches 1.0 from each of six seeds: the bound stands far from rounding.
    recipe = replace(RECIPES[kind], cycles=(4,), batch_size=5, learning_rate=1e-3)
    state, reached = train_classifier(kind, data, data, recipe)
    assert reached > 0.9
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    # The network measured holds exactly the rounded weights, and measuring left its running statistics alone.
    for name, value in measured[0].state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name
    once, few = replace(RECIPES[kind], cycles=(1, 1), batch_size=10), ArrayImages("grids", "train", images[:20], labels[:20])
    first = train_classifier(kind, few, few, once)[0]
    torch.rand(1)  # the state of the global generator must not matter
    second = train_classifier(kind, few, few, once)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_shift_moves_each_image_and_fills_with_zeros() -> None:
    images = torch.zeros(200, 2, 28, 28, dtype=torch.uint8)
    images[:, :, 10, 15] = torch.stack([torch.arange(1, 201), torch.arange(200, 0, -1)], 1).to(torch.uint8)
    moved = random_shift(images, 2, torch.Generator().manual_seed(0))
    n, channel, rows, columns = moved.nonzero(as_tuple=True)
    assert torch.equal(moved[n, channel, rows, columns], images[:, :, 10, 15].flatten())
    assert torch.equal(rows[0::2], rows[1::2])
    assert set(rows.tolist()) == set(range(8, 13))
    assert set(columns.tolist()) == set(range(13, 18))


def test_random_flip_mirrors_half_of_the_images() -> None:
    images = torch.arange(4, dtype=torch.uint8).expand(400, 2, 3, 4)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).all((1, 2, 3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 150 < mirrored.sum() < 250


def real(kind: type[Classifier], root: Path, split: str) -> ArrayImages:
    if kind is ObjectClassifier and not (root / "cifar10-jpeg" / split).is_dir():
        pytest.skip(f"there is no cifar10-jpeg/{split} in PDS_DATA: unpack cifar10-jpeg.tar.xz")
    return {DigitClassifier: mnist, ObjectClassifier: cifar10_jpeg}[kind](root, split)


def test_features_of_objects_do_not_see_which_side_is_left() -> None:
    images, features = noise(ObjectClassifier, 4), ClassifierFeatures(ObjectClassifier)
    np.testing.assert_allclose(features(images.flip(-1)), features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", RECIPES)
def test_shipped_classifier_is_as_accurate_as_it_says(kind: type[Classifier], data_root: Path) -> None:
    from safetensors import safe_open

    file = ASSETS / classifier_file(kind)
    assert file.stat().st_size < 2_000_000
    with safe_open(file, "pt") as opened:
        stated = json.loads(opened.metadata()["provenance"])["test_accuracy"]
    assert stated >= {DigitClassifier: 0.99, ObjectClassifier: 0.88}[kind]
    test = real(kind, data_root, "test")
    some = np.random.default_rng(0).choice(len(test), 1_000, replace=False)
    part = ArrayImages("some", "test", test.images[some], test.labels[some])
    measured = accuracy(ClassifierFeatures(kind).network, part)
    assert abs(measured - stated) < 3 * np.sqrt(stated * (1 - stated) / len(some))


@pytest.mark.parametrize("kind", RECIPES)
def test_shipped_reference_reproduces(kind: type[Classifier], data_root: Path) -> None:
    train, metric = real(kind, data_root, "train"), classifier_metric(kind)
    provenance = metric.reference.provenance
    order, half = np.random.default_rng(0).permutation(len(train)), len(train) // 2
    described, held_out = np.sort(order[:half]), order[half:]
    assert metric.reference.statistics.count == provenance["count"] == half
    assert provenance["images_sha256"] == image_digest([train.read(described)])
    # The mean over 1,500 of its images lies within their sampling error: Hotelling's T² is about chi-squared with D degrees.
    statistics = metric.reference.statistics
    values = metric.features(train.read(np.random.default_rng(1).choice(described, 1_500, replace=False)))
    difference = values.mean(axis=0, dtype=np.float64) - statistics.mean
    dimension = metric.features.dimension
    t_squared = len(values) * difference @ np.linalg.solve(statistics.covariance, difference)
    assert abs(t_squared - dimension) < 5 * np.sqrt(2 * dimension)
    assert np.trace(np.cov(values, rowvar=False)) == pytest.approx(np.trace(statistics.covariance), rel=0.02)
    expected = metric.features(train.read(held_out[:50]))
    np.testing.assert_allclose(metric.reference.held_out[:50], expected, rtol=2e-3, atol=2e-2)
