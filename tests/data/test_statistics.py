import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Golden

import pds.data.statistics as statistics_module
from pds.data.cifar10 import cifar10
from pds.data.dataset import Dataset
from pds.data.images import ArrayImages
from pds.data.mnist import mnist
from pds.data.statistics import DatasetStatistics, dataset_statistics
from pds.errors import PDSError
from pds.preconditioning.filters import StatisticsFilter


def random_images(seed=0, name="noise", shape=(1, 6, 8)):
    rng = np.random.default_rng(seed)
    return ArrayImages(name, "train", rng.integers(0, 256, (300, *shape), dtype=np.uint8))


def test_the_published_masks_of_mnist(data_root):
    golden = Golden("filter/mnist")
    statistics = dataset_statistics(mnist(data_root))
    torch.testing.assert_close(torch.log1p(statistics.power), golden["freq_mask"], rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics.second_moment, golden["space_mask"], rtol=1e-5, atol=1e-9)


def test_the_published_masks_of_cifar10(data_root):
    try:
        images = cifar10(data_root)
    except PDSError as missing:
        pytest.skip(str(missing))
    golden = Golden("filter/cifar")
    statistics = dataset_statistics(images)
    torch.testing.assert_close(torch.log1p(statistics.power), golden["freq_mask"], rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics.second_moment, golden["space_mask"], rtol=1e-5, atol=0)


def test_the_shipped_file_has_the_published_masks_of_mnist():
    golden = Golden("filter/mnist")
    shipped = DatasetStatistics.load("asset:mnist_statistics.npz")
    assert shipped.provenance["images"] == 200
    torch.testing.assert_close(torch.log1p(shipped.power), golden["freq_mask"], rtol=1e-5, atol=0)
    torch.testing.assert_close(shipped.second_moment, golden["space_mask"], rtol=1e-5, atol=1e-9)


def test_the_shipped_file_of_cifar10_is_of_its_jpeg_copy():
    shipped = DatasetStatistics.load("asset:cifar10_statistics.npz")
    assert (shipped.name, shipped.provenance["images"], shipped.shape) == ("cifar10_jpeg", 200, (3, 32, 32))
    # The law of natural images: power falls with frequency, and a pixel's variance is the sum over its frequencies (Parseval).
    variance = (shipped.second_moment - shipped.mean.square()).mean()
    constant = torch.fft.fft2(shipped.mean.double()).abs().square()
    assert (shipped.power - constant).sum() / (3 * 1024**2) == pytest.approx(variance.item(), rel=1e-4)
    assert shipped.power[:, 0, 1].min() > 100 * shipped.power[:, 16, 16].max()


def test_statistics_are_the_moments_of_the_chosen_images():
    images = random_images()
    statistics = dataset_statistics(images, count=50, seed=3)
    chosen = images.images[np.random.default_rng(3).choice(300, 50, replace=False)].astype(np.float64) / 255
    np.testing.assert_allclose(statistics.power, (np.abs(np.fft.fft2(chosen)) ** 2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.mean, chosen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.second_moment, (chosen**2).mean(0), rtol=1e-5)


def test_filters_from_statistics():
    statistics = dataset_statistics(random_images(), count=50)
    shape, lazily = statistics.shape, lambda: statistics
    R = StatisticsFilter(5).frequency(shape, lazily)
    assert R.max() == 1
    expected = (torch.log1p(statistics.power) / torch.log1p(statistics.power).max() + 4) / 5
    torch.testing.assert_close(R, expected)
    assert (1 - StatisticsFilter(1e6).frequency(shape, lazily)).abs().max() < 1e-5
    A = StatisticsFilter(2, "released").space(shape, lazily)
    torch.testing.assert_close(A, (statistics.second_moment / statistics.second_moment.max() + 1) / 2)
    paper = StatisticsFilter(2, "paper").space(shape, lazily)
    torch.testing.assert_close(paper, torch.log1p(statistics.mean) / torch.log1p(statistics.mean).max())
    with pytest.raises(PDSError, match="alpha must be a number from 1"):
        StatisticsFilter(0.9)
    with pytest.raises(PDSError, match="none, released, paper"):
        StatisticsFilter(2, "both")
    black = DatasetStatistics(
        "black", torch.ones(shape), torch.zeros(shape), torch.zeros(shape).index_fill(2, torch.tensor(0), 1.0)
    )
    with pytest.raises(PDSError, match=r"released or none: .* 0 at 48 pixels of black"):
        StatisticsFilter(2, "paper").space(shape, lambda: black)
    with pytest.raises(PDSError, match="alpha must be above 1: 1 leaves zeros"):
        StatisticsFilter(1, "released").space(shape, lambda: black)
    nothing = DatasetStatistics("night", *[torch.zeros(shape)] * 3)
    with pytest.raises(PDSError, match="needs images that are not all black"):
        StatisticsFilter(2).frequency(shape, lambda: nothing)
    for name in ("power", "second_moment"):
        with pytest.raises(PDSError, match=f"{name} must not be negative"):
            replace(black, **{name: -torch.ones(shape)})


def test_the_cache_is_keyed_by_the_images_and_checked(tmp_path, monkeypatch):
    first = dataset_statistics(random_images(), 50, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    passes = []
    monkeypatch.setattr(statistics_module, "to_unit", lambda images: passes.append(1) or images.float() / 255)
    again = dataset_statistics(random_images(), 50, cache=tmp_path)
    assert not passes
    assert torch.equal(first.power, again.power)
    other = dataset_statistics(random_images(seed=1), 50, cache=tmp_path)
    assert not torch.equal(first.power, other.power)
    assert len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(PDSError, match="not a statistics file"):
        dataset_statistics(random_images(), 50, cache=tmp_path)
    with pytest.raises(PDSError, match="has 300 images, fewer than 400"):
        dataset_statistics(random_images(), 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": np.ones((1, 4, 4))}, "power must be a Tensor"),
        ({"mean": torch.ones(4, 4)}, r"second_moment must have one shape \(C, H, W\), got \(1, 4, 4\), \(4, 4\), \(1, 4, 4\)"),
        ({"power": torch.ones(1, 4, 5)}, r"must have one shape"),
        (dict.fromkeys(("power", "mean", "second_moment"), torch.ones(4, 4)), r"must have one shape"),
        ({"second_moment": torch.full((1, 4, 4), math.nan)}, "second_moment must be finite"),
    ],
)
def test_moments_are_finite_tensors_of_one_shape(change, message):
    moments = {name: torch.ones(1, 4, 4) for name in ("power", "mean", "second_moment")}
    assert DatasetStatistics("ones", **moments).shape == (1, 4, 4)
    with pytest.raises(PDSError, match=message):
        DatasetStatistics("ones", **moments | change)


def test_statistics_of_double_precision_are_read_again(tmp_path):
    moments = torch.full((1, 2, 3), 0.25, dtype=torch.float64, requires_grad=True)
    DatasetStatistics("mine", moments, moments, moments, {"dataset": "mine", "images": 4}).save(tmp_path / "mine.npz")
    assert torch.equal(DatasetStatistics.load(tmp_path / "mine.npz").mean, moments.float())


def test_what_is_no_statistics_file_is_one_sentence(tmp_path):
    masks = dict.fromkeys(("power", "mean", "second_moment"), np.ones((1, 6, 8), np.float32))
    whole = masks | {"provenance": json.dumps({"dataset": "noise", "images": 200})}
    broken = {
        "holds no table": whole | {"provenance": json.dumps(["noise", 200])},
        "has no images": whole | {"provenance": json.dumps({"dataset": "noise"})},
        "images must be a whole number at least 1": whole | {"provenance": json.dumps({"dataset": "noise", "images": 0})},
        "not float32": whole | {"mean": np.full((1, 6, 8), "grey")},
        "with 9 instead of 8": whole | {"mean": np.ones((1, 6, 9), np.float32)},
        "2 axes, not 3": whole | dict.fromkeys(masks, np.ones((6, 8), np.float32)),
        "has no provenance": masks,
        "not finite": whole | {"power": np.full((1, 6, 8), np.nan, np.float32)},
        "values lie from": whole | {"mean": np.full((1, 6, 8), 1.5, np.float32)},
        "have such moments": whole | {"second_moment": np.full((1, 6, 8), 0.5, np.float32)},
    }
    np.savez(tmp_path / "whole.npz", **whole)
    assert DatasetStatistics.load(tmp_path / "whole.npz").shape == (1, 6, 8)
    # The format of the released masks.
    np.save(tmp_path / "mask.npy", masks["power"])
    with pytest.raises(PDSError, match=r"mask\.npy is not a statistics file of this project"):
        DatasetStatistics.load(tmp_path / "mask.npy")
    for i, (says, content) in enumerate(broken.items()):
        np.savez(tmp_path / f"{i}.npz", **content)
        with pytest.raises(PDSError, match=f"is not a statistics file.*{says}") as error:
            DatasetStatistics.load(tmp_path / f"{i}.npz")
        assert "\n" not in str(error.value)


def test_a_data_set_opens_its_files_only_when_asked():
    opened = []
    dataset = Dataset("noise", [1, 6, 8], lambda: opened.append(1) or random_images(), "asset:mnist_statistics.npz")
    assert dataset.statistics.name == "mnist"
    assert not opened
    with pytest.raises(PDSError, match=r"noise images are \[1, 6, 8\], not \[1, 4, 4\]: set its shape to \[1, 6, 8\]"):
        Dataset("noise", [1, 4, 4], random_images).images  # noqa: B018
