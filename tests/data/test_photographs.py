"""LSUN, FFHQ and CelebA: the authors' preprocessing stated a second time, the published layouts, and refusals."""

import gc
import hashlib
import subprocess
from functools import partial
from io import BytesIO

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

import pds.data.lsun as lsun_module
from pds.data.celeba import CelebA
from pds.data.dataset import Dataset, form_of_dataset
from pds.data.ffhq import FFHQ
from pds.data.folder import EncodedImages
from pds.data.lsun import LSUN
from pds.errors import PDSError


def photograph(height, width, seed=0):
    """Blocks of full contrast: a cubic filter overshoots on them."""
    blocks = np.random.default_rng(seed).choice([0, 9, 131, 255], (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def keys_cubic(x):
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def triangle(x):
    return np.maximum(0, 1 - np.abs(x))


def antialiased(pixels, size, kernel):
    """Each result is the mean of all pixels weighted by the kernel, stretched by the reduction, around its place."""
    scale = len(pixels) / size
    distance = (np.arange(len(pixels)) + 0.5)[None] - (np.arange(size)[:, None] + 0.5) * scale
    weights = kernel(distance / scale)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", weights, pixels.astype(np.float64), weights, optimize=True)


def make(cls, resolution, preprocessing, root="data", **choice):
    choice = {"split": "all" if cls is FFHQ else "train"} | ({"category": "church"} if cls is LSUN else {}) | choice
    return cls(root=root, resolution=resolution, preprocessing=preprocessing, **choice)


@pytest.mark.parametrize("size", [(256, 341), (300, 256), (257, 259), (96, 96)])
@pytest.mark.parametrize("resolution", [96, 47])
def test_ncsnv2_is_torchvision_resize_then_centre_crop(size, resolution):
    image = photograph(*size)
    expected = np.asarray(Compose([Resize(resolution), CenterCrop(resolution)])(image))
    assert np.array_equal(make(LSUN, resolution, "ncsnv2").preprocess(image), expected)
    if size[0] == size[1]:
        assert np.array_equal(make(FFHQ, resolution, "ncsnv2").preprocess(image), expected)


def test_ncsnv2_cuts_celeba_before_it_shrinks():
    image = photograph(218, 178)
    expected = np.asarray(Compose([CenterCrop(140), Resize(64)])(image))
    assert np.array_equal(make(CelebA, 64, "ncsnv2").preprocess(image), expected)


@pytest.mark.parametrize("size", [(256, 341), (343, 256)])
def test_score_sde_cuts_lsun_and_shrinks_it_by_keys_cubic(size):
    image, (height, width) = photograph(*size), size
    pixels = np.asarray(image)[(height - 256) // 2 : (height + 256) // 2, (width - 256) // 2 : (width + 256) // 2]
    assert np.array_equal(make(LSUN, 256, "score_sde").preprocess(image), pixels)
    exact = antialiased(pixels, 96, keys_cubic)
    assert exact.min() < -1 and exact.max() > 256
    exact = exact.clip(0, 255)
    certain = np.abs(exact - np.rint(exact)) > 1e-3
    assert certain.mean() > 0.5
    assert np.array_equal(make(LSUN, 96, "score_sde").preprocess(image)[certain], np.floor(exact)[certain])


def test_score_sde_shrinks_celeba_by_a_triangle():
    image = photograph(218, 178)
    exact = antialiased(np.asarray(image)[39:179, 19:159], 64, triangle)
    certain = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    result = make(CelebA, 64, "score_sde").preprocess(image)
    assert np.array_equal(result[certain], np.rint(exact)[certain])


def test_score_sde_averages_ffhq_and_rounds_once():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mean = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
    face = make(FFHQ, 8, "score_sde")
    assert np.array_equal(face.preprocess(Image.fromarray(pixels)), np.rint(mean))
    assert np.array_equal(make(FFHQ, 32, "score_sde").preprocess(Image.fromarray(pixels)), pixels)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def webp(image):
    file = BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


def write_lmdb(folder, values):
    """An LMDB laid out as LSUN's: SHA-1 keys, encoded images. Returns the values in the order of their keys."""
    entries = {hashlib.sha1(str(i).encode()).hexdigest().encode(): value for i, value in enumerate(values)}
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return [entries[key] for key in sorted(entries)]


def images_of(count, height=16, width=20):
    return [photograph(height, width, seed) for seed in range(count)]


def church(root, resolution=16, preprocessing="ncsnv2", **choice):
    return make(LSUN, resolution, preprocessing, root, **choice)()


def test_the_published_lmdb_is_read_in_the_order_of_its_keys(tmp_path, cache, monkeypatch):
    ordered = write_lmdb(tmp_path / "lsun" / "church_outdoor_train_lmdb", [webp(image) for image in images_of(7)])
    images = church(tmp_path)
    assert (len(images), images.shape, images.split, images.name) == (7, (3, 16, 16), "train", "lsun_church_16_ncsnv2")
    expected = [np.asarray(Image.open(BytesIO(value)))[:, 2:18].transpose(2, 0, 1) for value in ordered]
    assert np.array_equal(images.read([5, 0, 5]).numpy(), np.stack([expected[5], expected[0], expected[5]]))

    # Listed once: the list lies in the cache, and is made again only when it is damaged.
    lists = []
    ask = lsun_module.Database.ask
    monkeypatch.setattr(
        lsun_module.Database, "ask", lambda self, question, *rest: lists.append(question) or ask(self, question, *rest)
    )
    again = church(tmp_path / "lsun" / "church_outdoor_train_lmdb")
    assert again.fingerprint == images.fingerprint
    assert "keys" not in lists
    (keys,) = (cache / "lmdb").iterdir()
    keys.write_bytes(keys.read_bytes()[:-1])
    assert church(tmp_path).fingerprint == images.fingerprint
    assert "keys" in lists


def test_lsun_as_a_folder_and_as_an_lmdb_are_the_same_images(tmp_path, cache):
    files = [webp(image) for image in images_of(4)]
    write_lmdb(tmp_path / "a" / "tower_val_lmdb", files)
    for i, file in enumerate(files):
        path = tmp_path / "b" / "tower_val" / hashlib.sha1(str(i).encode()).hexdigest()
        path.mkdir(parents=True)
        (path / "x.webp").write_bytes(file)
    a, b = (church(tmp_path / root, category="tower", split="val").read(range(4)) for root in "ab")
    assert torch.equal(a, b)
    assert len(church(tmp_path / "b" / "tower_val", category="tower", split="val")) == 4


def test_a_damaged_lmdb_is_one_sentence_and_no_crash(tmp_path, cache, monkeypatch):
    whole = tmp_path / "whole" / "church_outdoor_train_lmdb"
    write_lmdb(whole, [webp(photograph(64, 64, i)) for i in range(20)])
    raw = (whole / "data.mdb").read_bytes()
    damages = {"half": (raw[: len(raw) // 2], "cut off"), "other": (b"hello" * 9999, "not a readable LMDB")}
    for name, (content, says) in (damages | {"none": (b"", "not a readable LMDB")}).items():
        folder = tmp_path / name / "church_outdoor_train_lmdb"
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(content)
        with pytest.raises(PDSError, match=f"{says}.*fetch it again") as error:
            church(tmp_path / name)
        assert "\n" not in str(error.value)
    with open(whole / "data.mdb", "r+b") as file:
        file.truncate(60 << 30)  # that of the bedrooms has 54 GB
    assert len(church(tmp_path / "whole").read([3])) == 1
    good = webp(photograph(64, 64))
    write_lmdb(tmp_path / "value" / "church_outdoor_train_lmdb", [good[:-50], good])
    with pytest.raises(PDSError, match=r"church_outdoor_train_lmdb, key b6589fc6\w+, cannot be read as an image"):
        church(tmp_path / "value").read([0, 1])
    write_lmdb(tmp_path / "empty" / "church_outdoor_train_lmdb", [])
    with pytest.raises(PDSError, match="holds no images"):
        church(tmp_path / "empty")
    lsun_module._open.cache_clear()
    monkeypatch.setattr(lsun_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PDSError, match=r"needs the lmdb package.*pds-lab\[lsun\].*folder"):
        church(tmp_path / "whole")


def save(images, folder, names):
    folder.mkdir(parents=True)
    for image, name in zip(images, names, strict=True):
        image.save(folder / name)


def test_ffhq_and_celeba_in_their_published_layouts(tmp_path):
    save(images_of(3, 32, 32), tmp_path / "ffhq" / "images1024x1024" / "00000", ["00000.png", "00001.png", "00002.png"])
    save(images_of(1, 32, 32), tmp_path / "ffhq" / "thumbnails128x128", ["00000.png"])
    faces = make(FFHQ, 16, "score_sde", tmp_path)()
    assert (len(faces), faces.shape) == (3, (3, 16, 16))
    assert len(make(FFHQ, 16, "score_sde", tmp_path / "ffhq" / "images1024x1024")()) == 3

    names = ["000001.jpg", "162770.jpg", "162771.jpg", "182637.jpg", "182638.jpg"]
    save(images_of(5, 218, 178), tmp_path / "celeba" / "img_align_celeba", names)
    sizes = {split: len(make(CelebA, 64, "ncsnv2", tmp_path, split=split)()) for split in ("train", "val", "test")}
    assert sizes == {"train": 2, "val": 2, "test": 1}


def test_the_classes_of_celeba_in_folders_are_those_of_the_images_of_its_split(tmp_path):
    for kind, names in {"a": ["000001.jpg", "162771.jpg"], "b": ["162772.jpg"]}.items():
        save(images_of(len(names), 218, 178), tmp_path / "img_align_celeba" / kind, names)
    labels = {split: make(CelebA, 64, "ncsnv2", tmp_path, split=split)().labels.tolist() for split in ("train", "val")}
    assert labels == {"train": [0], "val": [0, 1]}


def test_statistics_decode_only_the_images_they_are_of(tmp_path, cache, monkeypatch):
    write_lmdb(tmp_path / "church_outdoor_train_lmdb", [webp(image) for image in images_of(60)])
    decoded = set()
    original = EncodedImages._image
    monkeypatch.setattr(EncodedImages, "_image", lambda self, i: decoded.add(int(i)) or original(self, i))
    source = partial(LSUN, root=tmp_path, split="train")
    form = {"category": "church", "resolution": 8, "preprocessing": "score_sde"}
    dataset = form_of_dataset(source, name="lsun_church", shape=[3, 8, 8], statistics_images=20, **form)
    statistics = dataset.statistics
    assert decoded == {*np.random.default_rng(0).choice(60, 20, replace=False)}
    chosen = dataset.images.read(sorted(decoded)).double() / 255
    torch.testing.assert_close(statistics.mean.double(), chosen.mean(0), rtol=1e-5, atol=1e-7)
    assert statistics.provenance["dataset"] == "lsun_church_8_score_sde"
    with pytest.raises(PDSError, match="has 60 images, and statistics_images is 200: give statistics_images=60, or"):
        Dataset("lsun_church", [3, 8, 8], dataset.source).statistics  # noqa: B018
    (kept,) = (cache / "statistics").iterdir()
    assert kept.name.startswith("lsun_church_8_score_sde-")


def test_damaged_pages_are_one_sentence_whatever_they_do_to_the_process_that_reads_them(tmp_path, cache, monkeypatch):
    whole = tmp_path / "whole" / "church_outdoor_train_lmdb"
    write_lmdb(whole, [webp(photograph(16, 16, i)) for i in range(12)])
    raw, rng, outcomes = (whole / "data.mdb").read_bytes(), np.random.default_rng(0), []
    started, opened, popen = [], set(), subprocess.Popen
    monkeypatch.setattr(
        lsun_module.subprocess, "Popen", lambda *args, **how: started.append(popen(*args, **how)) or started[-1]
    )
    for case in range(50):
        damaged = bytearray(raw)
        for position in rng.integers(0, len(raw), 2 + case):
            damaged[position] = rng.integers(256)
        folder = tmp_path / str(case) / "church_outdoor_train_lmdb"
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(damaged)
        try:
            images = church(tmp_path / str(case))
            opened.add(images.database.process)
            images.read(range(len(images)))
            outcomes.append("")
        except PDSError as error:
            outcomes.append(str(error))
    assert all(said.isprintable() or not said for said in outcomes)
    assert 10 < sum(map(bool, outcomes)) <= 50
    # An LMDB that cannot be opened keeps no process.
    left = {one for one in started if one.returncode is None}
    assert len(started) == 50 and left <= opened and len(opened) < 50
    # Neither does one that nobody uses, except for the last.
    del images
    gc.collect()
    assert sum(one.poll() is None for one in started) <= 1
    # Any end of the reader, such as an abort in LMDB, is reported as well.
    images = church(tmp_path / "whole")
    images.database.process.kill()
    with pytest.raises(PDSError, match=r"key \w+, cannot be read \(its pages are damaged\): fetch it again"):
        images.read([0])
    assert len(church(tmp_path / "whole").read([0])) == 1


REFUSED = [
    (LSUN, {"category": "castle"}, "category must be one of church, tower, bedroom"),
    (LSUN, {"resolution": 0}, "resolution must be a whole number from 1 to 8192, got 0"),
    (LSUN, {"preprocessing": "mine"}, "preprocessing must be one of ncsnv2, score_sde"),
    (LSUN, {"split": "test"}, "split must be one of train, val"),
    (CelebA, {"resolution": 256}, "resolution must be a whole number from 1 to 140, got 256"),
]


@pytest.mark.parametrize(("cls", "choice", "says"), REFUSED)
def test_a_form_that_does_not_exist_is_refused_before_files_are_looked_for(cls, choice, says):
    with pytest.raises(PDSError, match=says):
        make(cls, **{"resolution": 64, "preprocessing": "ncsnv2"} | choice)


def test_missing_and_unfit_images_say_what_to_do(tmp_path, cache):
    with pytest.raises(PDSError, match=r"LSUN bedroom train not found: .*bedroom_train_lmdb.*dl.yf.io.*another root"):
        church(tmp_path, category="bedroom")
    with pytest.raises(PDSError, match=r"FFHQ not found.*images1024x1024"):
        make(FFHQ, 8, "score_sde", tmp_path)()
    with pytest.raises(PDSError, match=r"CelebA not found.*img_align_celeba.*MD5 [0-9a-f]{32}"):
        make(CelebA, 64, "ncsnv2", tmp_path)()
    write_lmdb(tmp_path / "tower_train_lmdb", [webp(photograph(16, 16))])
    with pytest.raises(PDSError, match=r"category is church, and .* holds LSUN tower"):
        church(tmp_path / "tower_train_lmdb")
    with pytest.raises(PDSError, match=r"key b6589fc6\w+, is 16x16, smaller than the resolution 32"):
        church(tmp_path, 32, category="tower").read([0])
    save([photograph(16, 20)], tmp_path / "ffhq", ["a.png"])
    with pytest.raises(PDSError, match=r"a\.png is 16x20, FFHQ has squares"):
        make(FFHQ, 8, "score_sde", tmp_path)().read([0])
    save([photograph(64, 64)], tmp_path / "img_align_celeba", ["000001.png"])
    with pytest.raises(PDSError, match=r"000001\.png is 64x64, smaller than the 140x140.*aligned"):
        make(CelebA, 64, "ncsnv2", tmp_path)().read([0])
    with pytest.raises(PDSError, match=r"none of the images 182638\.jpg to 202599\.jpg"):
        make(CelebA, 64, "ncsnv2", tmp_path, split="test")()
    save([photograph(218, 178)], tmp_path / "celeba", ["portrait.png"])
    with pytest.raises(PDSError, match=r"not called 000001\.jpg"):
        make(CelebA, 64, "ncsnv2", tmp_path / "celeba")()
