"""Many images: the same for any batch size and number of processes, after a kill and after a full disk."""

import dataclasses
import errno
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import side_by_side
from conftest import GaussianTarget, natural_power

import pds.shards
from pds import generation
from pds.errors import PDSError
from pds.files import Array
from pds.generation import ImageSampler, Processes, generate
from pds.preconditioning.filters import ParametricFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.processes.forward import VarianceExploding
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.shards import Contents, ShardWriter, shards

SHAPE = (1, 8, 8)
IMAGES = 23


def image_sampler(score=None, preconditioner=None, seed=5, **options):
    sampler = AnnealedLangevin(**{"iterations": 4, "step_size": 0.5, **options})
    P = preconditioner or FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.8).frequency(SHAPE))
    score = score or GaussianTarget(natural_power(8), mean=0.5)
    return ImageSampler(score, sampler, VarianceExploding(0.1, 1.0, 4), P, SHAPE, seed, torch.device("cpu"))


def images_of(folder):
    return np.concatenate([shard.read()["images"] for shard in shards(folder, IMAGES, 5)])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    generate(image_sampler(), shards(folder, IMAGES, 5), batch_size=5)
    return images_of(folder)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_images_do_not_depend_on_the_batch_size(tmp_path, unbroken, batch_size):
    generate(image_sampler(), shards(tmp_path, IMAGES, 5), batch_size)
    assert np.array_equal(images_of(tmp_path), unbroken)
    assert len(np.unique(unbroken.reshape(IMAGES, -1), axis=0)) == IMAGES


@pytest.mark.parametrize(("mixes", "expected"), [(False, [8, 5]), (True, [5, 5, 3])])
def test_a_batch_goes_over_the_ends_of_shards_unless_its_images_depend_on_one_another(
    tmp_path, unbroken, monkeypatch, mixes, expected
):
    target, sizes = GaussianTarget(natural_power(8), mean=0.5), []
    monkeypatch.setattr(AnnealedLangevin, "mixes_batch", mixes)
    todo = shards(tmp_path, IMAGES, 5)
    generate(image_sampler(), [todo[1], todo[3]], 5)  # the missing shards are not in a row
    sample = image_sampler(lambda x, sigma: sizes.append(len(x)) or target(x, sigma))
    start = time.perf_counter()
    generate(sample, todo, 8)
    wall = time.perf_counter() - start
    assert sizes[::5] == expected  # five evaluations an image
    assert np.array_equal(images_of(tmp_path), unbroken)
    arrays = [todo[i].read() for i in (0, 2, 4)]
    assert [float(a["nfe"]) for a in arrays] == [5.0] * 3
    assert 0 < sum(a["seconds"] for a in arrays) < wall
    if not mixes:  # the first shard lies in the first batch, the second in both, the third in the second
        first, both, second = (a["seconds"] / len(a["images"]) for a in arrays)
        assert both == pytest.approx((3 * first + 2 * second) / 5)


def test_shards_of_a_batch_wait_while_the_next_batch_is_sampled_and_no_more_than_those(tmp_path, monkeypatch):
    save, sampled, waiting, going = np.savez_compressed, [], [], threading.Event()

    def score(x, sigma):
        sampled.append(len(x))
        if len(sampled) == 6:  # the second batch, while nothing of the first is written
            waiting.append(not list(tmp_path.glob("shard-*")))
            going.set()
        return -x

    def slowly(file, **arrays):
        going.wait(300)
        save(file, **arrays)

    monkeypatch.setattr(pds.shards.np, "savez_compressed", slowly)
    most = []
    write = ShardWriter.write
    monkeypatch.setattr(ShardWriter, "write", lambda self, *shard: write(self, *shard) or most.append(len(self.unsettled)))
    generate(image_sampler(score), shards(tmp_path, 24, 4), 8)
    assert waiting == [True]
    assert max(most) <= 2


def test_a_centred_model_gives_images_from_black_to_white():
    P = FourierPreconditioner(SHAPE, ParametricFilter(0.2, 0.8).frequency(SHAPE))
    sampler = AnnealedLangevin(iterations=4, step_size=0.5)
    process, device = VarianceExploding(0.1, 1.0, 4), torch.device("cpu")
    score = GaussianTarget(natural_power(8), mean=0.5)
    plain, _ = ImageSampler(score, sampler, process, P, SHAPE, 5, device)(range(3))
    centred, _ = ImageSampler(score, sampler, process, P, SHAPE, 5, device, data_range=(-1.0, 1.0))(range(3))
    torch.testing.assert_close(centred, (plain + 1) / 2)


def test_another_seed_gives_other_images(tmp_path, unbroken):
    generate(image_sampler(seed=6), shards(tmp_path, IMAGES, 5), 5)
    assert not np.array_equal(images_of(tmp_path), unbroken)


def test_a_run_killed_at_any_moment_resumes_to_the_same_images(tmp_path, unbroken):
    # The child dies without a word (as under SIGKILL) inside its third shard, leaving a half-written file behind.
    code = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_generation import image_sampler, IMAGES
from pds.generation import generate
from pds.shards import shards
folder, calls = Path({str(tmp_path)!r}), []
def die_in_the_third(images):
    calls.append(1)
    if len(calls) == 3:
        while len(list(folder.glob("shard-*.npz"))) < 2:  # the second is written in a thread of its own
            time.sleep(0.01)
        os._exit(9)
    return {{}}
generate(image_sampler(), shards(folder, IMAGES, 5), 5, die_in_the_third)
"""
    child = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.returncode == 9
    done = sorted(path.name for path in tmp_path.glob("shard-*.npz"))
    assert done == ["shard-00000.npz", "shard-00001.npz"]
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("shard-*.npz"))]
    made = []
    generate(image_sampler(), shards(tmp_path, IMAGES, 5), 5, on_shard=lambda shard, seconds: made.append(shard.indices))
    assert [indices.start for indices in made] == [10, 15, 20]
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("shard-*.npz"))[:2]] == stamps
    assert np.array_equal(images_of(tmp_path), unbroken)


def test_two_processes_share_the_shards_of_one_run(tmp_path, unbroken):
    def work():
        processes, mine = Processes.join(), []
        if processes.rank:
            Path.exists = lambda path: True  # on its view of the disk all shards are there
        todo, told = shards(tmp_path, IMAGES, 5), lambda shard, seconds: mine.append(shard.indices.start)
        generate(image_sampler(), todo, 5, processes=processes, on_shard=told)
        (tmp_path / f"rank-{processes.rank}").write_text(" ".join(map(str, mine)))
        assert len(list(tmp_path.glob("shard-*.npz"))) == 5, "a process returned before all shards were there"

    side_by_side(work)
    shares = [Path(tmp_path, f"rank-{rank}").read_text().split() for rank in (0, 1)]
    assert sorted(shares) == [["0", "10", "20"], ["5", "15"]]
    assert np.array_equal(images_of(tmp_path), unbroken)


def test_images_that_are_not_finite_stop_the_run_and_keep_what_is_done(tmp_path):
    class Breaks(GaussianTarget):
        def __call__(self, x, sigma):
            bad = (x - 0.5).isfinite() & (sigma < 0.2)[:, None, None, None]
            return torch.where(bad, torch.nan, super().__call__(x, sigma))

    good, bad = image_sampler(), image_sampler(Breaks(natural_power(8)))
    todo = shards(tmp_path, IMAGES, 5)
    generate(good, todo[:2], 5)
    with pytest.raises(PDSError, match=r"not finite after step 4 of 4 \(sigma = 0\.1\).*weaker filter"):
        generate(bad, todo, 5)
    assert len(list(tmp_path.iterdir())) == 2
    calls = []
    late = image_sampler(lambda x, sigma: calls.append(1) or (x * torch.nan if len(calls) == 5 else -x))
    with pytest.raises(PDSError, match="not finite after the final denoising"):
        late(range(2))


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("fails", [False, True])
def test_the_step_that_broke_the_values_is_named_though_it_is_found_later(step, fails):
    calls = []

    def score(x, sigma):
        calls.append(1)
        if fails and len(calls) > step:
            raise ValueError("of values that are not finite")
        return x * torch.nan if len(calls) == step else -x

    with pytest.raises(PDSError, match=f"not finite after step {step} of 4 "):
        image_sampler(score)(range(2))
    assert len(calls) == step + 1


def test_what_a_compiled_network_does_once_is_neither_timed_nor_counted(tmp_path):
    seen = set()

    def score(x, sigma):
        if len(x) not in seen:
            seen.add(len(x))
            time.sleep(0.5)
        return -x

    todo = shards(tmp_path, 8, 5)
    start = time.perf_counter()
    generate(dataclasses.replace(image_sampler(score), compiled=True), todo, 5)
    whole = time.perf_counter() - start
    assert seen == {5, 3}
    timed = [shard.read() for shard in todo]
    assert 0 < sum(arrays["seconds"] for arrays in timed) < whole - 2 * 0.5
    assert [arrays["nfe"] for arrays in timed] == [5, 5]


def test_what_goes_wrong_in_one_process_is_raised_in_all(tmp_path):
    def work():
        processes = Processes.join()

        def annotate(images):
            if processes.rank == 1:
                raise PDSError("the second process has no disk")
            return {}

        with pytest.raises(PDSError) as error:
            generate(image_sampler(), shards(tmp_path, 10, 5), 5, annotate, processes)
        (tmp_path / f"rank-{processes.rank}").write_text(str(error.value))

    side_by_side(work)
    for rank in (0, 1):
        assert Path(tmp_path, f"rank-{rank}").read_text() == "the second process has no disk"
    assert sorted(path.name for path in tmp_path.glob("shard-*")) == ["shard-00000.npz"]


def test_a_shard_is_written_while_the_next_one_is_sampled_and_even_if_that_fails(tmp_path, monkeypatch):
    todo, calls, next_one, waited, told = shards(tmp_path, 10, 5), [], threading.Event(), [], []

    def score(x, sigma):
        calls.append(1)
        if len(calls) <= 5:
            return -x
        next_one.set()
        return x * torch.nan

    def slowly(file, **arrays):
        waited.append(next_one.wait(300))
        time.sleep(0.2)
        save(file, **arrays)

    save = np.savez_compressed
    monkeypatch.setattr(pds.shards.np, "savez_compressed", slowly)
    with pytest.raises(PDSError, match="not finite after step 1 of 4"):
        generate(image_sampler(score), todo, 5, on_shard=lambda shard, seconds: told.append(shard))
    assert waited == [True]
    assert [shard.path.exists() for shard in todo] == [True, False]
    assert told == todo[:1]


def test_what_goes_wrong_in_writing_stops_the_next_shard_at_its_next_batch(tmp_path, monkeypatch):
    begun, sampled = threading.Event(), []

    def no_room(file, **arrays):
        assert begun.wait(300)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def score(x, sigma):
        sampled.append(len(x))
        if len(sampled) > 10:  # the second shard
            begun.set()
            while not writers[0].unsettled[0][2].done():
                time.sleep(0.01)
        return -x

    write, writers = ShardWriter.write, []
    monkeypatch.setattr(ShardWriter, "write", lambda self, *shard: writers.append(self) or write(self, *shard))
    monkeypatch.setattr(pds.shards.np, "savez_compressed", no_room)
    with pytest.raises(PDSError, match="No space left"):
        generate(image_sampler(score), shards(tmp_path, 20, 5), 3)
    assert len(sampled) == 15, "two batches of the first shard, one of the second"
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("aside", [False, True])
def test_a_writer_annotates_in_its_own_thread_or_at_once(tmp_path, aside):
    (shard,), threads = shards(tmp_path, 3, 3, Contents(beside={"features": Array("uint64", ("N",))})), []

    def annotate(images):
        threads.append(threading.current_thread() is threading.main_thread())
        return {"features": images.sum((1, 2, 3))}

    with ShardWriter(annotate, aside, lambda shard, seconds: None) as writer:
        writer.write(shard, {"images": np.ones((3, *SHAPE), np.uint8), "nfe": 5.0, "seconds": 1.0})
    assert threads == [not aside]
    assert shard.read()["features"].tolist() == [64] * 3


@pytest.mark.parametrize("kind", ["gpu", "torch", "python"])
def test_too_little_memory_names_a_batch_that_may_fit(tmp_path, kind):
    def score(x, sigma):
        if len(x) > 2 and kind == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        if len(x) > 2:
            raise {"gpu": torch.cuda.OutOfMemoryError, "python": MemoryError}[kind]("Tried to allocate 20.00 MiB.")
        return -x

    with pytest.raises(PDSError, match=r"too little memory for 5 images at once: .* batch_size=2; finished shards are kept"):
        generate(image_sampler(score), shards(tmp_path, 10, 5), 5)
    generate(image_sampler(score), shards(tmp_path, 10, 5), 2)


def test_a_full_disk_stops_the_run_with_nothing_lost(tmp_path, unbroken, monkeypatch):
    todo, real = shards(tmp_path, IMAGES, 5), np.savez_compressed
    calls = []

    def disk_full_at_the_third(file, **arrays):
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half a shard")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)

    monkeypatch.setattr(pds.shards.np, "savez_compressed", disk_full_at_the_third)
    with pytest.raises(PDSError, match=r"No space left on device.*run the same command again"):
        generate(image_sampler(), todo, 5)
    # The fourth is there if it was sampled before the third was found to have failed.
    assert {path.name for path in tmp_path.iterdir()} - {"shard-00003.npz"} == {"shard-00000.npz", "shard-00001.npz"}
    generate(image_sampler(), todo, 5)
    assert np.array_equal(images_of(tmp_path), unbroken)


def test_a_damaged_shard_is_named(tmp_path):
    todo = shards(tmp_path, IMAGES, 5)
    generate(image_sampler(preconditioner=Identity()), todo, 5)
    todo[1].path.write_bytes(todo[1].path.read_bytes()[:-40])
    with pytest.raises(PDSError, match=r"shard-00001\.npz is not a whole shard"):
        todo[1].read()
    with pytest.raises(PDSError, match="at least 1"):
        shards(tmp_path, 0, 5)


def test_an_environment_of_processes_that_cannot_be_is_one_sentence(monkeypatch):
    draw = random.Random(0)
    whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    numbers = [*(name for name in whole if name != "MASTER_ADDR"), "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    cases = [{name: None} for name in whole if name != "RANK"] + [{name: ""} for name in whole]
    values = ["x", "-1", "1.5", "1e3", "0 1", "9" * 5000, *(str(draw.randrange(65_536, 10**20)) for _ in range(5))]
    cases += [{name: value} for name in numbers for value in values]
    assert len(cases) > 50
    for case in cases:
        for name in (*whole, *numbers):
            monkeypatch.delenv(name, raising=False)
        for name, value in (whole | case).items():
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(PDSError, match=r"RANK is .*: start the processes with torchrun, or unset RANK") as told:
            Processes.join()
        assert str(told.value).isprintable() and len(str(told.value)) < 200 and next(iter(case)) in str(told.value)


@pytest.mark.parametrize(("rank", "absent"), [(0, "1, 2"), (1, "the first")])
def test_processes_that_never_come_are_named_in_time(monkeypatch, rank, absent):
    monkeypatch.setattr(generation, "PATIENCE", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(PDSError, match=f"^process {rank} of 3 waited at 127.0.0.1:{port} for {absent}, which did not come"):
        Processes.join()
