"""Shards that are read back: damaged, foreign and old ones, and those of another run."""

import dataclasses
import logging
import os
import random
import shutil

import numpy as np
import pytest

from pds.errors import MissingError, PDSError
from pds.files import Array, DamagedError
from pds.shards import Contents, read_all, shards, take_over

CONTENTS = Contents((1, 4, 4), "digest-of-this-run", {"features": Array("float32", ("N", 6))})
IMAGES, SIZE = 20, 8


def arrays(shard, seed=0):
    rng = np.random.default_rng([seed, shard.indices.start])
    n = len(shard.indices)
    images = rng.integers(0, 256, (n, 1, 4, 4), np.uint8)
    return {"images": images, "features": annotate(images)["features"], "nfe": 7.0, "seconds": 0.5}


def annotate(images):
    return {"features": images.reshape(len(images), -1)[:, :6].astype(np.float32)}


def run(folder, contents=CONTENTS, seed=0):
    todo = shards(folder / "samples", IMAGES, SIZE, contents)
    for shard in todo:
        shard.write(arrays(shard, seed))
    return todo


def save(shard, **changed):
    """Write a shard's file with these arrays instead of its own; None leaves one out."""
    own = {"indices": np.asarray(shard.indices), "samples": np.array(shard.contents.samples)}
    whole = arrays(shard) | own | changed
    np.savez_compressed(shard.path, **{key: value for key, value in whole.items() if value is not None})


def wrong(shard):
    """Arrays that do not belong to this shard."""
    whole = arrays(shard)
    n = len(shard.indices)
    yield from ({key: None} for key in whole)
    yield from ({key: np.array(None, object)} for key in whole)
    yield from ({key: np.array("text")} for key in whole)
    for key in ("images", "features"):
        array = whole[key]
        for other in ("uint8", "int8", "bool", "uint16", "float16", "float32", "float64", "complex64", ">f4", "U1"):
            if array.dtype != np.dtype(other):
                yield {key: array.astype(other)}
        yield from (
            {key: value} for value in (array[:1], array[:0], array[:-1], np.concatenate([array, array]), array[0], array[None])
        )
        yield {key: array[:, :-1]}
        yield {f"{key}2": array}
    for value in (np.nan, np.inf, -np.inf):
        features = whole["features"].copy()
        features[n // 2, 3] = value
        yield {"features": features}
    for key in ("nfe", "seconds"):
        yield from ({key: value} for value in (np.nan, np.inf, -np.inf, -1.0, 7, True, [7.0], np.full(n, 7.0), 1j, "7"))
    yield from ({"seconds": 0.0}, {"nfe": 1e300})
    start = shard.indices.start
    yield from ({"indices": np.arange(n) + other} for other in {0, 1, SIZE, 2 * SIZE} - {start})
    yield from (
        {"indices": np.asarray(shard.indices)[::-1]},
        {"indices": np.full(n, start)},
        {"indices": np.arange(n - 1) + start},
    )
    yield from ({"indices": np.asarray(shard.indices, dtype)} for dtype in ("int32", "float64", "uint8"))
    yield from ({"samples": np.array(text)} for text in ("", "other", CONTENTS.samples[:-1], b"x", 3))


def test_arrays_that_are_not_those_of_the_shard_are_refused(tmp_path):
    todo = run(tmp_path)
    for shard in todo[1:]:
        cases = list(wrong(shard))
        assert len(cases) > 80
        for case in cases:
            save(shard, **case)
            with pytest.raises(DamagedError, match=f"{shard.path.name} is not a whole shard of this run"):
                shard.read()
        save(shard)
        assert shard.read()["images"].shape == (len(shard.indices), 1, 4, 4)


def damaged(path, draw):
    """Damage a file in one of the ways of disks and people."""
    whole, kind = path.read_bytes(), draw.randrange(6)
    path.unlink()
    if kind == 0:
        path.write_bytes(whole[: draw.randrange(len(whole))])
    elif kind == 1:
        at = draw.randrange(len(whole) - 200)
        path.write_bytes(whole[:at] + draw.randbytes(200) + whole[at + 200 :])
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/urandom", "/dev/null"]))
    elif kind == 4:
        path.mkdir()
    else:
        path.write_bytes(draw.choice([b"", b"\0" * 1000, b"PK\x03\x04", b"\x80\x04\x95"]))


def test_a_damaged_shard_is_made_again_and_a_line_says_so(tmp_path, caplog):
    todo, draw = run(tmp_path), random.Random(0)
    whole = [shard.read() for shard in todo]
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            which, made = draw.randrange(len(todo)), []
            shard = todo[which]
            if draw.random() < 0.2:  # another's
                shutil.copy(todo[which - 1].path, shard.path)
            else:
                damaged(shard.path, draw)

            def make(shard, made=made):
                assert not os.path.lexists(shard.path)
                made.append(shard)
                shard.write(arrays(shard))

            caplog.clear()
            read = list(read_all(todo, make))
            assert made == [shard]
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert shard.path.name in caplog.text and "it is made again now" in caplog.text
            assert all(np.array_equal(one[key], other[key]) for one, other in zip(read, whole, strict=True) for key in one)
            aside = shard.path.with_name(f"{shard.path.name}.damaged")
            assert os.path.lexists(aside)
            aside.rmdir() if aside.is_dir() else aside.unlink()


def test_a_shard_that_cannot_be_made_again_stops_the_run(tmp_path):
    todo = run(tmp_path)
    todo[0].path.write_bytes(b"")
    with pytest.raises(PDSError, match="is not a whole shard"):
        list(read_all(todo, lambda shard: shard.path.write_bytes(b"still no shard")))


def test_a_shard_of_an_old_version_is_accepted_once_and_then_says_what_it_is(tmp_path):
    todo = run(tmp_path)
    for shard in todo:
        save(shard, indices=None, samples=None)
    assert not any("samples" in shard.read() for shard in todo)
    list(read_all(todo, pytest.fail))
    assert all(str(shard.read()["samples"]) == CONTENTS.samples for shard in todo)
    shutil.copy(todo[0].path, todo[1].path)
    with pytest.raises(DamagedError, match="holds the images 0 to 7"):
        todo[1].read()
    with pytest.raises(DamagedError, match="sampled with other settings"):
        dataclasses.replace(todo[0], contents=dataclasses.replace(CONTENTS, samples="another")).read()
    for case in wrong(todo[1]):  # the other checks hold for old ones, too
        if not case.keys() & {"indices", "samples"}:
            save(todo[1], indices=None, samples=None, **case)
            with pytest.raises(DamagedError):
                todo[1].read()
    for n in (0, 1, 7):
        fewer = {key: arrays(todo[1])[key][:n] for key in ("images", "features")}
        save(todo[1], indices=None, samples=None, **fewer)
        with pytest.raises(DamagedError, match=f"holds {n} images, not 8"):
            todo[1].read()


def test_what_is_wrong_with_a_neighbour_neither_stops_nor_enters_a_run(tmp_path):
    draw, mine = random.Random(1), shards(tmp_path / "mine" / "samples", IMAGES, SIZE, CONTENTS)
    theirs = run(tmp_path / "theirs")
    for round_ in range(50):
        bad = draw.randrange(len(theirs))
        if round_ % 2:
            damaged(theirs[bad].path, draw)
        else:
            case = draw.choice(list(wrong(theirs[bad])))
            # If the images are measured anew, the features in the file do not matter.
            save(theirs[bad], **case)
        assert take_over(mine, tmp_path / "theirs" / "samples", "theirs", None) == len(theirs) - 1
        assert [shard.path.exists() for shard in mine] == [shard is not theirs[bad] for shard in theirs]
        for shard in mine:
            if shard.path.exists():
                taken = shard.read()
                assert str(taken["taken_from"]) == "theirs" and np.array_equal(taken["images"], arrays(shard)["images"])
                shard.path.unlink()
        path = theirs[bad].path
        path.rmdir() if path.is_dir() else path.unlink()
        theirs[bad].write(arrays(theirs[bad]))


def test_images_are_taken_and_measured_anew_where_the_other_run_measured_otherwise(tmp_path):
    other = dataclasses.replace(CONTENTS, beside={"features": Array("float32", ("N", 3))})
    theirs = shards(tmp_path / "theirs" / "samples", IMAGES, SIZE, other)
    for shard in theirs:
        shard.write(arrays(shard) | {"features": np.zeros((len(shard.indices), 3), np.float32)})
    mine = shards(tmp_path / "mine" / "samples", IMAGES, SIZE, CONTENTS)
    assert take_over(mine, tmp_path / "theirs" / "samples", "theirs", None) == 0
    assert take_over(mine, tmp_path / "theirs" / "samples", "theirs", annotate) == len(mine)
    assert all(np.array_equal(shard.read()["features"], arrays(shard)["features"]) for shard in mine)


def test_an_absent_shard_is_missing_and_no_damage(tmp_path):
    with pytest.raises(MissingError):
        shards(tmp_path, IMAGES, SIZE, CONTENTS)[0].read()
