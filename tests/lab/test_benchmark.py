"""The benchmark end to end at a tiny size, its baseline as a check of the operator, checkpoints as their authors write them."""

import functools
import json
import statistics

import pytest
import torch
from hydra.errors import ConfigCompositionException
from test_configurations import composed
from torch import nn

from pds.errors import PDSError
from pds.lab import published
from pds.lab.benchmark import benchmark, first_iteration
from pds.lab.config import build, resolved
from pds.lab.runs import provenance
from pds.models.scores import LadderScore, for_sampling
from pds.preconditioning.preconditioner import FourierPreconditioner
from pds.speed.measuring import attainable, operations, peak_memory, time_in_turns

NCSNPP = [
    *["model=ncsnpp", "dataset=cifar10", "dataset.shape=[3,8,8]", "model.width=8", "model.multipliers=[1,2]"],
    *["model.blocks=1", "model.attention=[4]", "sampler.iterations=20"],
]
NCSNV2 = [
    "model=ncsnv2",
    "dataset=cifar10",
    "dataset.shape=[3,8,8]",
    "model.width=4",
    "model.levels=20",
    "sampler.iterations=20",
]
ITERATIONS = [
    (NCSNPP, "reverse diffusion + Langevin, NFE 2", "PDS α=5"),
    ([*NCSNPP, "filter.pixels=released", "batch_size=2"], "reverse diffusion + Langevin, NFE 2", "PDS α=5 space=released"),
    ([*NCSNPP, "sampler/corrector=none", "filter=none", "solenoid=shift"], "reverse diffusion, NFE 1", "S1 ω=0.1"),
    (
        [*NCSNV2, "filter=parametric", "solenoid=fft"],
        "annealed Langevin, NFE 1",
        "PDS r=0.2H λ=1.6 outside_low + spectral ω=0.1",
    ),
]


def tiny(tmp_path, *overrides):
    return composed("repeats=2", "device=cpu", f"outputs={tmp_path}", *overrides, config="benchmark")


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch):
    monkeypatch.setattr("pds.lab.benchmark.time_in_turns", functools.partial(time_in_turns, block=0))
    monkeypatch.setattr("pds.lab.benchmark.attainable", lambda device, dtype: 1e12)


@pytest.mark.parametrize(("overrides", "sampler", "filter"), ITERATIONS)
def test_it_measures_any_sampler_and_filter(tmp_path, capsys, overrides, sampler, filter):
    path = benchmark(tiny(tmp_path, *overrides), ["model=tiny"])
    assert path.parent.parent == tmp_path / "benchmark" and path.parent.name.startswith("model=tiny-")
    result = json.loads(path.read_text())
    assert (result["sampler"], result["filter"], result["shape"]) == (sampler, filter, [3, 8, 8])
    assert result["batch_size"] == result["config"]["batch_size"]
    assert (result["commit"], result["threads"]) == (provenance(torch.device("cpu"))["commit"], torch.get_num_threads())
    assert 0 < result["largest_difference"] < 1e-5
    times = {name: sorted(values) for name, values in result["milliseconds"].items()}
    assert set(times) == {"network", "vanilla", "pds", "operator", "baseline", "noise"}
    assert all(len(values) == 2 and values[0] > 0 for values in times.values())
    assert result["operator_share"] == pytest.approx(sum(times["operator"]) / sum(times["pds"]))
    assert result["speed_up"] == pytest.approx(sum(times["baseline"]) / sum(times["operator"]))
    per_evaluation, per_iteration = (statistics.median(times[name]) / 1e3 for name in ("network", "pds"))
    assert result["images_per_second"] == pytest.approx(result["batch_size"] / (per_iteration * 20))
    assert result["operations_per_second"] == pytest.approx(result["batch_size"] * result["operations"] / per_evaluation)
    table = capsys.readouterr().out
    assert str(path) in table and "3×8×8" in table and sampler in table and filter in table


@pytest.mark.parametrize("compile", [False, True])
def test_operations_are_counted_by_hand(compile):
    # Eagerly even for a network that will be compiled: 2 channels to 5, 3 x 3, then a product over the channels.
    layers = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 2, 1, bias=False))
    network = LadderScore(SeesNoLevel(layers), torch.tensor([1.0, 0.1]))
    score, x = for_sampling(network, torch.device("cpu"), compile=compile), torch.zeros(3, 2, 4, 4)
    assert operations(score, x) == 2 * 16 * (2 * 5 * 9 + 5 * 2)


def test_the_attainable_rate_is_that_of_the_fastest_product(monkeypatch):
    monkeypatch.setattr("pds.speed.measuring.time_in_turns", lambda parts, repeats, device, block: {"product": [5.0, 4.0, 6.0]})
    assert attainable(torch.device("cpu"), torch.bfloat16) == pytest.approx(2 * 2048**3 / 4e-3)


class SeesNoLevel(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, label):
        return self.layers(x)


def test_every_device_batch_and_thread_count_has_its_own_row(tmp_path, capsys):
    for batch in (1, 2, 2):
        benchmark(tiny(tmp_path, *NCSNV2, f"batch_size={batch}"), ["model=tiny"])
    last = capsys.readouterr().out.split("numbers")[-2]
    assert last.count("3×8×8") == 2 and "| 1, float32" in last and "| 2, float32" in last


BROKEN = {
    "a filter off by a ten-thousandth": lambda self, z: FourierPreconditioner._noise(self, z) * 1.0001,
    "no filter": lambda self, z: z,
    "not a number": lambda self, z: z * torch.nan,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_operator_is_not_timed(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(FourierPreconditioner, "_noise", FourierPreconditioner.noise, raising=False)
    monkeypatch.setattr(FourierPreconditioner, "noise", BROKEN[fault])
    with pytest.raises(RuntimeError, match="the operator differs from the full complex FFTs by"):
        benchmark(tiny(tmp_path, *NCSNPP), [])
    assert not list(tmp_path.glob("benchmark/*"))


def test_a_small_error_of_a_step_is_seen_beside_a_large_state(tmp_path, monkeypatch):
    step = FourierPreconditioner.step
    monkeypatch.setattr(FourierPreconditioner, "step", lambda self, x, f, g, z, s=None: step(self, x, f, g * 1.0001, z, s))
    with pytest.raises(RuntimeError, match="differs"):
        benchmark(tiny(tmp_path, *NCSNPP, "sampler.iterations=1000"), [])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["filter=none"], "there is no operator to time without a filter and a solenoid"),
        (
            ["sampler/predictor=ancestral", "sampler/corrector=none", "sampler.precondition=published"],
            "leaves this sampler without a filter",
        ),
        (["batch_size=0"], "must be a whole number from 1 to"),
        (["repeats=0"], "must be a whole number from 1 to"),
    ],
)
def test_refusals_name_the_fault(tmp_path, overrides, says):
    with pytest.raises(PDSError, match=says) as error:
        benchmark(tiny(tmp_path, *NCSNPP, *overrides), [])
    assert "\n" not in str(error.value)


def test_a_misspelt_key_fails_at_composition():
    with pytest.raises(ConfigCompositionException, match="batchsize"):
        composed("batchsize=2", config="benchmark")


def test_peak_memory_sees_what_a_block_needs_for_a_while():
    device, size = torch.device("cpu"), 100 * 2**20
    held = torch.ones(size // 4)
    with peak_memory(device) as peak:
        torch.ones(size // 4)
    if peak.total is None:
        pytest.skip("this system does not start the high-water mark of the resident set again")
    assert peak.added == pytest.approx(size, rel=0.1)
    assert peak.total > 2 * size
    with peak_memory(device) as peak:
        held += 1
    assert peak.added < size / 10

    def small_tensors():
        return [torch.ones(2**14) for _ in range(320)]

    # After a large block is freed, the C library keeps the small ones.
    torch.ones(30 * 2**18)
    small_tensors()
    with peak_memory(device) as peak:
        small_tensors()
    assert peak.added == pytest.approx(20 * 2**20, rel=0.2)


NCSN = ["model=ncsn", "dataset=cifar10", "dataset.shape=[3,8,8]", "model.width=4", "sampler.iterations=20"]


@pytest.mark.parametrize(
    ("name", "layout", "kept", "overrides"),
    [
        ("ncsnpp", "dict; EMA weights", 0.5, NCSNPP),
        ("ncsnv2", "list; EMA weights", 0.5, NCSNV2),
        ("ncsn", "list; no EMA weights", 1.0, NCSN),
    ],
)
def test_a_file_made_to_the_published_layout_loads_and_steps(tmp_path, monkeypatch, name, layout, kept, overrides):
    torch.manual_seed(0)
    network = build(composed(*overrides, config="benchmark").model).score.network
    published.write_as_authors(network, tmp_path / "checkpoint.pth", name)
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert type(content).__name__ == layout.split(";")[0]
    model, optimizer = (content["model"], content["optimizer"]) if isinstance(content, dict) else content[:2]
    assert all(key.startswith("module.") for key in model)
    trained = published.averaged(network)
    assert len(optimizer["state"]) == len(trained)

    iteration = first_iteration(
        composed(*overrides, f"model.checkpoint={tmp_path}/checkpoint.pth", config="benchmark"), torch.device("cpu")
    )
    loaded = dict(iteration.model.score.network.named_parameters())
    assert all(torch.equal(loaded[key], kept * value) for key, value in trained.items())
    assert torch.isfinite(iteration(iteration.preconditioner)).all()

    row = published.load_and_step(name, overrides)
    assert (row["network"], row["layout"]) == (name, layout)
    write = published.write_as_authors
    monkeypatch.setattr(published, "write_as_authors", lambda *a, **k: write(*a, **k)[::-1])
    with pytest.raises(RuntimeError, match="the loaded weights are not the expected ones"):
        published.load_and_step(name, overrides)


def test_every_published_network_composes():
    shapes = {
        name: resolved(composed(*given, config="benchmark"))["model"]["shape"] for name, given in published.NETWORKS.items()
    }
    assert [size for _, _, size in shapes.values()] == [32, 32, 32, 32, 256, 256, 256, 32, 32, 64, 96, 128, 256, 1024]
