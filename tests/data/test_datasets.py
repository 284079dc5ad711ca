"""Readers of the data sets: published layouts, and wrong files."""

import gzip
import pickle
import struct
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import pds
from pds import cards, files, options
from pds.data import folder, statistics
from pds.data import images as images_of_data
from pds.data.cifar10 import CLASSES, cifar10, cifar10_jpeg
from pds.data.dataset import Dataset
from pds.data.folder import ImageFolder
from pds.data.mnist import mnist, read_idx
from pds.errors import OptionError, PDSError
from pds.training import Trainer


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fake_mnist(folder, packed=True, images=None, labels=None):
    images = np.zeros((10_000, 28, 28), np.uint8) if images is None else images
    labels = np.zeros(10_000, np.uint8) if labels is None else labels
    for name, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        raw = idx(array)
        (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(raw, 1) if packed else raw)


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_reads_idx_files(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    fake_mnist(tmp_path, packed, images, np.arange(10_000, dtype=np.uint8) % 10)
    data = mnist(tmp_path, "test")
    assert data.shape == (1, 28, 28)
    assert len(data) == 10_000
    assert np.array_equal(data.read([3, 1]).numpy(), images[[3, 1], None])
    assert data.labels[13] == 3


def test_mnist_says_what_is_wrong(tmp_path):
    with pytest.raises(PDSError, match=r"MNIST train images not found: put train-images-idx3-ubyte\.gz into"):
        mnist(tmp_path)
    with pytest.raises(PDSError, match="split must be one of train, test"):
        mnist(tmp_path, "validation")
    fake_mnist(tmp_path, images=np.zeros((9_999, 28, 28), np.uint8))
    with pytest.raises(PDSError, match=r"shape \(9999, 28, 28\), not \(10000"):
        mnist(tmp_path, "test")
    fake_mnist(tmp_path, labels=np.full(10_000, 12, np.uint8))
    with pytest.raises(PDSError, match="up to 12"):
        mnist(tmp_path, "test")


def test_other_digits_in_the_files_of_mnist_are_told(tmp_path, caplog):
    fake_mnist(tmp_path)
    mnist(tmp_path, "test")
    assert "is not the published file" in caplog.text


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_idx_file_is_one_sentence(tmp_path, packed):
    """Every detectable mutation is seen: those of the header and the length, and in gzip those of each byte."""
    array = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    raw = gzip.compress(idx(array), 1) if packed else idx(array)
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(raw)
    assert np.array_equal(read_idx(path, array.shape), array)
    rng = np.random.default_rng(1)
    damaged = [raw[: rng.integers(len(raw))] for _ in range(30)] + [
        raw + bytes(rng.integers(1, 99)) for _ in range(10) if not packed
    ]
    for _ in range(60):
        position = int(rng.integers(10, len(raw)) if packed else rng.integers(0, 16))
        damaged.append(raw[:position] + bytes([raw[position] ^ 1 << int(rng.integers(8))]) + raw[position + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(PDSError, match="fetch it again"):
            read_idx(path, array.shape)


def test_no_more_of_a_file_is_unpacked_than_the_data_set_has(tmp_path):
    shape, bomb = (100, 28, 28), tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(idx(np.zeros(shape, np.uint8)))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(PDSError, match="more bytes"):
        read_idx(bomb, shape)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_cifar10_reads_python_and_binary_batches_alike(tmp_path):
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (10_000, 3072), dtype=np.uint8), rng.integers(0, 10, 10_000)
    python, binary = tmp_path / "cifar-10-batches-py", tmp_path / "b" / "cifar-10-batches-bin"
    python.mkdir()
    binary.mkdir(parents=True)
    with open(python / "test_batch", "wb") as file:
        pickle.dump({b"data": data, b"labels": labels.tolist()}, file, protocol=2)
    (binary / "test_batch.bin").write_bytes(np.concatenate([labels[:, None].astype(np.uint8), data], 1).tobytes())
    a, b = cifar10(tmp_path, "test"), cifar10(tmp_path / "b", "test")
    assert np.array_equal(a.images, data.reshape(-1, 3, 32, 32))
    assert np.array_equal(a.images, b.images)
    assert np.array_equal(a.labels, b.labels)


def test_cifar10_jpeg_takes_its_labels_from_the_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("pds.data.cifar10.IMAGES_PER_BATCH", 20)
    folder = tmp_path / "cifar10-jpeg" / "test"
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (20 * label, 100 * i, 0)).save(folder / name / f"{i}.jpg", quality=100)
    images = cifar10_jpeg(tmp_path, "test")
    assert (images.name, images.split, images.shape) == ("cifar10_jpeg", "test", (3, 32, 32))
    assert images.labels.tolist() == [label for label in range(10) for _ in range(2)]
    for image, label, i in zip(images.images, images.labels, 10 * [0, 1], strict=True):
        assert np.abs(image.mean((1, 2)) - [20 * label, 100 * i, 0]).max() < 4
    assert np.array_equal(cifar10_jpeg(tmp_path / "cifar10-jpeg", "test").images, images.images)
    (folder / "truck" / "1.jpg").rename(folder / "ship" / "2.jpg")
    with pytest.raises(PDSError, match=r"must hold 2 images in each of airplane, .*, truck"):
        cifar10_jpeg(tmp_path, "test")


class Hostile:
    def __reduce__(self):
        return print, ("hostile code ran",)


def test_cifar10_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(PDSError, match="CIFAR-10 test batch test_batch not found"):
        cifar10(tmp_path, "test")
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(PDSError, match="not a CIFAR-10 python batch"):
        cifar10(tmp_path, "test")
    assert "hostile" not in capsys.readouterr().out
    (tmp_path / "test_batch").unlink()
    (tmp_path / "test_batch.bin").write_bytes(b"1234")
    with pytest.raises(PDSError, match="has 4 bytes"):
        cifar10(tmp_path, "test")


def test_folders_of_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), dtype=np.uint8)
    (tmp_path / "sub").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "sub" / "a.png")
    Image.fromarray(pixels[1]).save(tmp_path / "b.png")
    (tmp_path / "._b.png").write_bytes(b"macOS")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(pixels[1]).save(tmp_path / ".ipynb_checkpoints" / "b-checkpoint.png")
    folder = ImageFolder(tmp_path, (3, 6, 4))
    assert len(folder) == 2
    assert torch.equal(folder.read([1]), torch.from_numpy(pixels[:1].transpose(0, 3, 1, 2).copy()))
    assert ImageFolder(tmp_path, (1, 6, 4)).read([0]).shape == (1, 1, 6, 4)
    with pytest.raises(PDSError, match="6x4, the data set is 8x8"):
        ImageFolder(tmp_path, (3, 8, 8)).read([0])
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(PDSError, match=r"c\.png is no PNG, JPEG, WEBP, BMP image: convert or remove it"):
        ImageFolder(tmp_path, (3, 6, 4)).read([1])
    with pytest.raises(PDSError, match="does not exist"):
        ImageFolder(tmp_path / "no", (3, 6, 4))
    # Training looks at every file before it begins; cropping takes images of any size.
    (tmp_path / "c.png").unlink()
    Trainer(batch_size=2, iterations=1).check(ImageFolder(tmp_path, (3, 6, 4)))
    Image.new("RGB", (9, 9)).save(tmp_path / "z.png")
    with pytest.raises(PDSError, match=r"z\.png is 9x9, the data set is 6x4: remove or replace it"):
        Trainer(batch_size=2, iterations=1).check(ImageFolder(tmp_path, (3, 6, 4)))
    cropped = ImageFolder(tmp_path, (3, 4, 4), preprocess=lambda image: np.asarray(image)[:4, :4])
    Trainer(batch_size=2, iterations=1).check(cropped)
    (tmp_path / "z.png").write_bytes(b"")
    with pytest.raises(PDSError, match=r"z\.png is no PNG, "):
        Trainer(batch_size=2, iterations=1).check(cropped)
    (tmp_path / "z.png").unlink()
    with pytest.raises(PDSError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        ImageFolder(tmp_path / "empty", (3, 6, 4))


def makers():
    """Functions and classes of this library, with and without a statement of what they make."""
    for module in (pds, options, files, cards, folder, images_of_data, statistics):
        for name, made in vars(module).items():
            if callable(made) and not name.startswith("_"):
                yield made


def test_a_source_that_says_that_it_makes_no_images_is_refused_at_once():
    tried, kept = 0, [mnist, cifar10, ImageFolder, lambda: None]
    for made in makers():
        says = made if isinstance(made, type) else getattr(made, "__annotations__", {}).get("return")
        for source in (made, partial(made)):
            if says is None or (isinstance(says, type) and hasattr(says, "read")) or "Image" in str(says):
                continue
            if not isinstance(says, type) and says not in ("str", "int", "bytes", "Path", "bool"):
                continue
            with pytest.raises(OptionError, match=r"^source must open images, and .* makes a "):
                Dataset("x", (1, 8, 8), source)
            tried += 1
    assert tried >= 50
    for source in kept:
        assert Dataset("x", (1, 8, 8), source)
