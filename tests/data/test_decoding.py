"""Images as they were meant: each way of a file to hold an image, and files that hold none."""

import hashlib
import io
import os
import struct
import subprocess
import time
import zlib

import numpy as np
import pytest
from conftest import seeds
from PIL import Image

from pds.data.decoding import MOST_PIXELS, decoded
from pds.data.folder import ImageFolder
from pds.errors import PDSError


def encoded(image, format="PNG", **how):
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def ramp(rng, *shape):
    """Values with a margin on both sides, so that clipping, dropping and shifting show in the mean."""
    return rng.integers(20, 236, shape, dtype=np.uint8)


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


# The eight orientations of EXIF, as a viewer applies them to the stored pixels.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@seeds(8)
def test_pixels_are_those_that_a_viewer_shows(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 30, 2)
    grey, colour = ramp(rng, height, width), ramp(rng, height, width, 3)
    opaque = np.full((height, width, 1), 255, np.uint8)
    palette = Image.fromarray(colour).quantize(16)
    bilevel = grey > 128
    sixteen = rng.integers(0, 65536, (height, width)).astype(np.uint16)
    turn = seed + 1
    cases = {
        "grey": (encoded(Image.fromarray(grey)), grey),
        "grey with alpha": (encoded(Image.fromarray(np.concatenate([grey[..., None], opaque], 2), "LA")), grey),
        "grey bmp": (encoded(Image.fromarray(grey), "BMP"), grey),
        "16 bits": (encoded(Image.fromarray(sixteen)), np.rint(sixteen / 257)),
        "1 bit": (encoded(Image.fromarray(bilevel)), bilevel * 255),
        "colour": (encoded(Image.fromarray(colour)), colour),
        "colour with alpha": (encoded(Image.fromarray(np.concatenate([colour, opaque], 2))), colour),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "webp": (encoded(Image.fromarray(colour), "WEBP", lossless=True), colour),
        "bmp": (encoded(Image.fromarray(colour), "BMP"), colour),
        "turned": (turned(Image.fromarray(colour), turn), TURNS[turn](colour)),
    }
    for name, (file, expected) in cases.items():
        channels = 1 if expected.ndim == 2 else 3
        result = np.asarray(decoded(file, channels, expected.shape[:2]))
        assert result.dtype == np.uint8 and np.array_equal(result, expected), name


@seeds(10)
def test_pictures_without_8_bits_of_their_own_are_refused(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(3, 30, 2))
    grey, colour = Image.fromarray(ramp(rng, *size)), Image.fromarray(ramp(rng, *size, 3))
    alpha = np.full(size, 255, np.uint8)
    alpha[tuple(rng.integers(0, size))] = rng.integers(0, 255)
    ink = Image.merge("LA", [grey, Image.fromarray(alpha)])
    clear = colour.copy()
    clear.putalpha(Image.fromarray(alpha))
    keyed = encoded(colour.quantize(8), transparency=0)
    other = Image.fromarray(ramp(rng, *size, 3))
    cases = [
        (encoded(ink), "transparent"),
        (encoded(clear), "transparent"),
        (encoded(clear, "WEBP", lossless=True), "transparent"),
        (keyed, "transparent"),
        (encoded(colour, "WEBP", save_all=True, append_images=[other]), r"animated \(2 frames\)"),
        (encoded(colour, "PNG", save_all=True, append_images=[other]), "animated"),
    ]
    for file, says in cases:
        for channels in (1, 3):
            with pytest.raises(PDSError, match=says):
                decoded(file, channels)


def test_formats_that_data_sets_do_not_come_in_are_not_opened(tmp_path, monkeypatch):
    """Pillow starts Ghostscript for PostScript, and has had holes in decoders of rare formats."""
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail(f"a program was started: {a}"))
    Image.init()
    tried = 0
    image = Image.fromarray(np.zeros((32, 32), np.uint8))
    for name in sorted(set(Image.SAVE) - {"PNG", "JPEG", "WEBP", "BMP", "MPO", "DIB"}):
        for mode in ("L", "RGB", "P", "F", "1"):
            try:
                file = encoded(image.convert(mode), name)
            except Exception:  # Pillow cannot write this pair
                continue
            tried += 1
            with pytest.raises(PDSError, match="is no PNG, JPEG, WEBP, BMP image"):
                decoded(file, 1)
    assert tried >= 40
    with pytest.raises(PDSError, match="is no PNG"):
        decoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n", 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_images_are_one_short_sentence_or_an_image(format):
    rng = np.random.default_rng(0)
    whole, refused = encoded(Image.fromarray(ramp(rng, 24, 24, 3)), format), []
    for case in range(100):
        file = bytearray(whole)
        if case % 4 == 0:
            file = file[: rng.integers(len(file))]
        for position in rng.integers(0, max(1, len(file)), rng.integers(1, 9)):
            file[position : position + 1] = bytes([rng.integers(256)])
        try:
            assert decoded(bytes(file), 3, (24, 24)).size == (24, 24)
        except PDSError as error:
            refused.append(str(error))
    assert len(refused) > 15
    assert all(said.isprintable() and len(said) < 250 for said in refused)


def png_of_zeros(height, width):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    row = zlib.compressobj(9)
    data = b"".join([row.compress(bytes(width + 1)) for _ in range(height)] + [row.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_size_is_checked_before_pixels_take_memory(monkeypatch):
    assert decoded(png_of_zeros(3, 5), 1).size == (5, 3)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were unpacked"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were unpacked"))
    large = png_of_zeros(9000, 8000)
    with pytest.raises(PDSError, match=f"9000x8000, more than {MOST_PIXELS} pixels"):
        decoded(large, 1)
    with pytest.raises(PDSError, match="9000x8000, the data set is 24x24"):
        decoded(large, 1, (24, 24))


def test_a_folder_is_read_through_its_links_and_refuses_what_is_no_file(tmp_path):
    image = encoded(Image.fromarray(np.full((4, 4), 9, np.uint8)))
    for place in ("data/a", "other/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").write_bytes(image)
    (tmp_path / "data" / "linked").symlink_to("../other", target_is_directory=True)
    (tmp_path / "data" / "a" / "circle").symlink_to("..", target_is_directory=True)
    (tmp_path / "data" / "again").symlink_to("a", target_is_directory=True)
    folder = ImageFolder(tmp_path / "data", (1, 4, 4))
    assert folder.paths == ["a/x.png", "linked/deep/x.png"]
    assert folder.read([0, 1]).unique().tolist() == [9]
    (tmp_path / "data" / "y").mkdir()
    os.mkfifo(tmp_path / "data" / "y" / "fifo.png")
    (tmp_path / "data" / "y" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "data" / "y" / "random.png").symlink_to("/dev/urandom")
    (tmp_path / "data" / "y" / "gone.png").symlink_to("nowhere")
    with open(tmp_path / "data" / "y" / "sparse.png", "wb") as file:
        file.truncate(10**11)
    folder, begun = ImageFolder(tmp_path / "data", (1, 4, 4)), time.process_time()
    for i, path in enumerate(folder.paths):
        if path.startswith("y/"):
            with pytest.raises(PDSError, match=path):
                folder.read([i])
    with pytest.raises(PDSError, match="y/"):
        folder.fingerprint  # noqa: B018
    assert time.process_time() - begun < 2  # nothing read the sparse file


@pytest.mark.parametrize("seed", range(4))
def test_a_folder_has_another_fingerprint_just_where_older_versions_read_other_pixels(seed, tmp_path):
    rng, outcomes = np.random.default_rng(seed), set()
    for case in range(15):
        grey, turn = Image.fromarray(ramp(rng, 4, 4)), int(rng.integers(1, 9))
        exif = Image.Exif()
        exif[0x0112] = turn
        exif[0x010F] = "exif"  # the maker's name
        file = [
            encoded(grey),
            encoded(Image.fromarray(rng.integers(0, 65536, (4, 4)).astype(np.uint16))),
            encoded(grey, exif=exif),
            encoded(grey, "JPEG", exif=exif, quality=100),
            encoded(grey.convert("RGB"), "WEBP", exif=exif, lossless=True),
        ][case % 5]
        folder = tmp_path / str(case)
        folder.mkdir()
        (folder / "a.png").write_bytes(file)
        source = ImageFolder(folder, (1, 4, 4))
        before = np.asarray(Image.open(io.BytesIO(file)).convert("L"))
        same = np.array_equal(before, source.read([0])[0, 0].numpy())
        fingerprint = hashlib.sha256(b"a.png" + file).hexdigest()
        assert (source.fingerprint["files_sha256"] == fingerprint) == same, (case, turn)
        outcomes.add(same)
    assert len(outcomes) == 2


def test_the_folders_of_images_are_their_classes(tmp_path):
    for path in ("cat/b.png", "ant/x/1.png", "cat/a.png", "dog/0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / path)
    assert ImageFolder(tmp_path, (1, 2, 2)).labels.tolist() == [0, 1, 1, 2]
    Image.new("L", (2, 2)).save(tmp_path / "z.png")
    assert ImageFolder(tmp_path, (1, 2, 2)).labels is None


@pytest.mark.parametrize("seed", range(3))
def test_a_link_to_a_folder_around_the_images_is_refused_and_nothing_else_is_walked(tmp_path, seed):
    rng, tried = np.random.default_rng(seed), 0
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "other.png").write_bytes(encoded(Image.new("L", (2, 2))))
    for case in range(20):
        root = tmp_path / f"case{case}" / "deep" / "images"
        inner = root.joinpath(*"abc"[: rng.integers(4)])
        inner.mkdir(parents=True)
        (inner / "x.png").write_bytes(encoded(Image.new("L", (2, 2))))
        around = [*root.parents]
        target = around[int(rng.integers(len(around)))]
        link = draw_link(rng, inner, root.parent / "there", target)
        with pytest.raises(PDSError, match=rf"leads to {target}, which holds .*images itself: remove the link"):
            ImageFolder(root, (1, 2, 2))
        link.unlink()
        for harmless in (tmp_path / "beside", inner, root):
            link.symlink_to(harmless, target_is_directory=True)
            assert len(ImageFolder(root, (1, 2, 2))) == 1 + (harmless.name == "beside")
            link.unlink()
            tried += 1
    assert tried >= 50


def draw_link(rng, inner, between, target):
    """A link in a folder to another folder: absolute, relative, or by a link between them."""
    link, kind = inner / "link", rng.integers(3)
    if kind == 2:
        between.symlink_to(target, target_is_directory=True)
        target = between
    link.symlink_to(os.path.relpath(target, inner) if kind else target, target_is_directory=True)
    return link
