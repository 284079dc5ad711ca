"""Training: the loss is that of the score, a killed run continues as if unbroken, and the network learns."""

import io
import math
import os
import resource
import zipfile

import numpy as np
import pytest
import torch
from conftest import seeds

from pds import training
from pds.data.images import ArrayImages
from pds.errors import OptionError, PDSError
from pds.models.ncsn import ncsn
from pds.models.scores import DataPrediction, LadderScore, NetworkScore, NoisePrediction, ScorePrediction
from pds.models.wrap import wrap
from pds.processes.forward import VarianceExploding, VariancePreserving
from pds.training import Trainer, denoising_loss


def images():
    rng = np.random.default_rng(0)
    return ArrayImages("stripes", "train", (rng.integers(0, 2, (64, 1, 1, 8)) * np.ones((1, 1, 8, 1)) * 255).astype(np.uint8))


def small(seed=0):
    torch.manual_seed(seed)
    return ncsn((1, 8, 8), 4, 1.0, 0.3, 2).score


def trained(**options):
    return Trainer(**{"compile": False, **options})


class Exact(NetworkScore):
    """The score of N(0, p) plus noise."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x, sigma):
        return -x / (self.p + sigma[:, None, None, None] ** 2)


def test_the_loss_is_least_at_the_true_score():
    generator = torch.Generator().manual_seed(0)
    x = 0.5**0.5 * torch.randn(20_000, 1, 2, 2, generator=generator)
    z, sigma = torch.randn(x.shape, generator=generator), torch.full((20_000,), 0.7)
    losses = {p: denoising_loss(Exact(p), x, sigma, z).item() for p in (0.4, 0.5, 0.62)}
    # Its value there is half the noise that the image hides: p / (p + sigma^2) / 2.
    assert losses[0.5] == pytest.approx(0.5 * 0.5 / (0.5 + 0.49), rel=0.02)
    assert losses[0.5] < min(losses[0.4], losses[0.62])


class WithState(torch.nn.Module):
    """A network with dropout, a batch normalisation and a layer that is used under two names."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.norm, self.same = torch.nn.BatchNorm2d(1), network.last
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x, label):
        return torch.nn.functional.dropout(self.norm(self.network(x, label)), 0.3, self.training)


def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path):
    trainer = trained(iterations=12, batch_size=8, warmup=2, checkpoint_every=5, bf16=False)

    class Killed(Exception):
        pass

    def fit(path, stop_at=None):
        score = tiny()
        score.network = WithState(score.network)

        def draw_sigma(count, generator):
            if generator.initial_seed() == stop_at:
                raise Killed
            return LadderScore.draw_sigma(score, count, generator)

        score.draw_sigma = draw_sigma
        before = torch.random.get_rng_state()
        made = trainer.fit(score, images(), path, torch.device("cpu"))
        assert torch.equal(torch.random.get_rng_state(), before)  # dropout draws from torch's own generator
        return made, score.state_dict()

    (unbroken, _), ended = fit(tmp_path / "a.pt")
    with pytest.raises(Killed):
        fit(tmp_path / "b.pt", stop_at=7)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["iteration"] == 5
    (resumed, seconds), resumed_ended = fit(tmp_path / "b.pt")
    assert seconds > torch.load(tmp_path / "b.pt", weights_only=True)["seconds"] * 0.99 > 0
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert all(torch.equal(ended[name], resumed_ended[name]) for name in ended)


@pytest.mark.parametrize("fast", [False, True])
def test_the_average_follows_its_recursion_and_bf16_trains(fast, tmp_path, monkeypatch):
    warned, compiled = [], []
    monkeypatch.setattr(training, "warn_of_slow_bf16", warned.append)
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    # With one weight seen after every step, the average is the recursion e <- d e + (1 - d) w by hand.
    score, weights = small(), []
    start = score.network.end_conv.bias.detach().clone()

    def draw_sigma(count, generator):
        weights.append(score.network.end_conv.bias.detach().clone())
        return LadderScore.draw_sigma(score, count, generator)

    score.draw_sigma = draw_sigma
    trainer = trained(iterations=4, batch_size=4, warmup=1, ema_decay=0.3, checkpoint_every=4, bf16=fast, compile=fast)
    ema, _ = trainer.fit(score, images(), tmp_path / "t.pt", torch.device("cpu"))
    expected = start
    for iteration, after in enumerate([*weights[1:], score.network.end_conv.bias.detach()]):
        decay = min(0.3, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * after
    torch.testing.assert_close(ema["network.end_conv.bias"], expected)
    assert not torch.equal(expected, score.network.end_conv.bias)
    assert (warned, compiled) == ([torch.device("cpu")] * fast, [score] * fast)


def test_it_learns(tmp_path):
    seen = []
    trained(iterations=100, batch_size=8, learning_rate=1e-2, warmup=10, checkpoint_every=100, bf16=False).fit(
        tiny(), images(), tmp_path / "t.pt", torch.device("cpu"), callback=seen.append
    )
    assert [record["iteration"] for record in seen] == [50, 100]
    # 0.5 is the loss of a network that predicts nothing; from either of two seeds it reaches 0.33 or less.
    assert seen[1]["loss"] < min(0.4, seen[0]["loss"])


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(PDSError, match="batch_size must be at most 64, the images of stripes train, got 65"):
        trained(iterations=1, batch_size=65).fit(small(), images(), tmp_path / "t.pt", torch.device("cpu"))
    with pytest.raises(PDSError, match=r"loss is nan.*lower learning_rate"):
        broken = small()
        broken.network.begin_conv.weight.data.fill_(torch.nan)
        trained(iterations=3, batch_size=4, bf16=False).fit(broken, images(), tmp_path / "t.pt", torch.device("cpu"))


class WithExtraState(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def get_extra_state(self):
        return {"a": 1}


def test_a_network_that_cannot_be_trained_is_refused(tmp_path):
    extra = small()
    extra.network = WithExtraState(extra.network)
    for score, says in (
        (small().requires_grad_(False), "training changes no parameter of this network"),
        (small().bfloat16(), "the parameter .* is bfloat16, which loses the small steps"),
        (extra, "cannot hold network._extra_state"),
    ):
        with pytest.raises(PDSError, match=says):
            trained(iterations=1, batch_size=4).fit(score, images(), tmp_path / "t.pt", torch.device("cpu"))
    assert not any(tmp_path.iterdir())


class Unusual(torch.nn.Module):
    """Complex weights, as of a Fourier layer; with a forward that loses the gradient, or spoils it under a finite loss."""

    def __init__(self, fault=None):
        super().__init__()
        self.weight, self.fault = torch.nn.Parameter(torch.ones(8, 5, dtype=torch.complex64)), fault

    def forward(self, x, label, labels=None):
        y = torch.fft.irfft2(self.weight * torch.fft.rfft2(x), s=x.shape[-2:])
        if self.fault == "infinite":
            y = y + (0 * self.weight.real.sum()).sqrt()
        return y.detach() if self.fault == "lost" else y


def unusual(fault=None, **options):
    return wrap(
        Unusual(fault), predicts="noise", process=VarianceExploding(), shape=(1, 8, 8), data_range=(0, 1), **options
    ).score


def test_complex_weights_continue_from_a_checkpoint(tmp_path):
    for iterations in (2, 4):
        trainer = trained(iterations=iterations, batch_size=4, bf16=False)
        ema, _ = trainer.fit(unusual(), images(), tmp_path / "t.pt", torch.device("cpu"))
    assert ema["network.weight"].is_complex()


def test_weights_that_a_gradient_spoils_reach_no_checkpoint(tmp_path):
    for fault, says in (
        ("infinite", "the gradient's norm is nan at iteration 0: lower learning_rate [^;]*$"),
        ("lost", "no_grad"),
    ):
        with pytest.raises(PDSError, match=says):
            trainer = trained(iterations=1, batch_size=4, bf16=False)
            trainer.fit(unusual(fault), images(), tmp_path / "t.pt", torch.device("cpu"))
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a larger file fails, as on a full disk
    try:
        with pytest.raises(PDSError, match=r"cannot write .*training\.pt .*: make room"):
            trained(iterations=1, batch_size=4).fit(small(), images(), tmp_path / "training.pt", torch.device("cpu"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_labels_are_dropped_only_for_a_network_that_knows_no_class(tmp_path):
    labelled = ArrayImages("stripes", "train", images().images, np.zeros(64, dtype=np.int64))
    trainer = trained(iterations=1, batch_size=4, bf16=False, label_dropout=1e-6)
    with pytest.raises(OptionError, match=r"label_dropout must be 0 .* give its no_class"):
        trainer.fit(unusual(classes=2), labelled, tmp_path / "t.pt", torch.device("cpu"), classes=2)
    trainer.fit(unusual(classes=2, no_class=2), labelled, tmp_path / "t.pt", torch.device("cpu"), classes=2)


def test_parameters_that_training_leaves_alone_may_be_of_any_type(tmp_path):
    score = small()
    score.network.numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    ema, _ = trained(iterations=2, batch_size=4, bf16=False).fit(score, images(), tmp_path / "t.pt", torch.device("cpu"))
    assert torch.equal(ema["network.numbers"], torch.arange(3))


def test_training_shows_the_noise_that_the_network_is_for():
    generator = torch.Generator().manual_seed(0)
    drawn = small().draw_sigma(2000, generator)
    assert sorted(set(drawn.tolist())) == pytest.approx([0.3, 1.0])
    assert 800 < (drawn == drawn.max()).sum() < 1200
    for adapter, label, process in (
        (ScorePrediction, "sigma", VarianceExploding(0.01, 50.0, 10)),
        (NoisePrediction, "999t", VariancePreserving()),
    ):
        t = process.time(adapter(torch.nn.Identity(), process, label).draw_sigma(20_000, generator))
        # Uniform on (0, 1]: mean and variance to five standard errors.
        assert t.min() > 0 and t.max() <= 1 + 1e-9
        assert t.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 20_000) ** 0.5)
        assert t.var().item() == pytest.approx(1 / 12, abs=5 * (1 / 180 / 20_000) ** 0.5)


class Watched(NetworkScore):
    """A score that keeps what it is given."""

    def __init__(self, *levels):
        super().__init__()
        self.levels, self.bias, self.seen = torch.tensor(levels), torch.nn.Parameter(torch.zeros(())), []

    def draw_sigma(self, count, generator):
        return self.levels[torch.randint(len(self.levels), (count,), generator=generator)]

    def forward(self, x, sigma, labels=None):
        self.seen.append((x, sigma, labels))
        return self.bias * x


def shown(trainer, source, path, score, **options):
    """What the network is shown in the last iteration: images with noise, noise levels, labels."""
    trainer.fit(score, source, path, torch.device("cpu"), **options)
    assert len(score.seen) == trainer.iterations
    return score.seen[-1]


def test_flips_mirror_about_half_of_the_images(tmp_path):
    source = ArrayImages("ramp", "train", np.tile(np.arange(8, dtype=np.uint8), (400, 1, 8, 1)))
    trainer = trained(iterations=1, batch_size=400, flip=True, bf16=False)
    x, *_ = shown(trainer, source, tmp_path / "t.pt", Watched(1e-6))
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, -1]).sum().item()
    assert abs(mirrored - 200) < 50  # five standard deviations
    torch.testing.assert_close(x.sort(dim=-1).values, torch.arange(8).expand(400, 1, 8, 8) / 255, rtol=0, atol=1e-5)


def test_a_centred_model_is_trained_on_its_own_range(tmp_path):
    trainer = trained(iterations=1, batch_size=64, bf16=False)
    x, *_ = shown(trainer, images(), tmp_path / "t.pt", Watched(1e-6), data_range=(-1.0, 1.0))
    assert sorted(set(x.round().flatten().tolist())) == [-1, 1]


class Tiny(torch.nn.Module):
    """Two convolutions, frequencies that training leaves alone, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1, bias=False)
        self.frequencies = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x, label):
        return self.last(self.first(x).relu()) * self.frequencies.sum()


def tiny(seed=0):
    torch.manual_seed(seed)
    return LadderScore(Tiny(), torch.tensor([1.0, 0.3]))


def damages(state, rng):
    """The state with one thing wrong in it."""
    table = str(rng.choice(["parameters", "ema", "buffers"]))
    name = str(rng.choice(sorted(state[table])))
    moments = state["optimizer"]["state"][int(rng.choice(list(state["optimizer"]["state"])))]
    moment = str(rng.choice(["exp_avg", "exp_avg_sq"]))
    value = state[table][name]
    match rng.integers(22):
        case 0:
            state["iteration"] = ["x", -1, 0, 3.5, True, None, 10**9, []][rng.integers(8)]
        case 1:
            state["seconds"] = [math.nan, math.inf, -1.0, "long"][rng.integers(4)]
        case 2:
            state["loss"] = [math.nan, None, "small", -math.inf][rng.integers(4)]
        case 3:
            del state[str(rng.choice(sorted(state.keys() - {"buffers"})))]  # states of old have no buffers
        case 4:
            del state[table][name]
        case 5:
            state[table]["other"] = value
        case 6:
            state[table] = [*state[table].values()]
        case 7:
            value[(0,) * value.ndim] = [math.nan, math.inf][rng.integers(2)]
        case 8:  # which would be broadcast
            state[table][name] = value.flatten()[:1]
        case 9:
            state[table][name] = value[None]
        case 10:
            state[table][name] = value.double() if rng.random() < 0.5 else value.half()
        case 11:
            state[table][name] = float(value.flatten()[0])
        case 12:
            moments[moment][(0,) * moments[moment].ndim] = math.nan
        case 13:
            moments["exp_avg_sq"] -= 1
        case 14:
            moments[moment] = torch.zeros(1)
        case 15:
            del moments[moment]
        case 16:
            moments["step"] = torch.tensor([math.nan, -1.0, 1e9][rng.integers(3)])
        case 17:
            state["optimizer"]["state"] = {}
        case 18:
            state["optimizer"]["state"][10_000] = moments
        case 19:
            state["optimizer"] = None
        case 20:
            return [state]
        case _:
            state[table] = {f"module.{name}": value for name, value in state[table].items()}
    return state


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The state of a training of four steps."""
    path = tmp_path_factory.mktemp("training") / "training.pt"
    trained(iterations=4, batch_size=4, warmup=1, checkpoint_every=4, bf16=False).fit(
        tiny(), images(), path, torch.device("cpu")
    )
    return path.read_bytes()


def refused(path):
    """The training is refused in one sentence, and the network and the file do not change."""
    score, before = tiny(1), path.read_bytes()
    weights = {name: value.clone() for name, value in score.state_dict().items()}
    with pytest.raises(PDSError, match=r"training\.pt is not .*: delete it to train from the start") as error:
        Trainer(iterations=9, batch_size=4, bf16=False).fit(score, images(), path, torch.device("cpu"))
    assert str(error.value).isprintable()
    assert path.read_bytes() == before
    assert all(torch.equal(value, weights[name]) for name, value in score.state_dict().items())


@seeds(80)
def test_a_wrong_training_state_is_refused(tmp_path, stopped, seed):
    state = damages(torch.load(io.BytesIO(stopped), weights_only=True), np.random.default_rng(seed))
    torch.save(state, tmp_path / "training.pt", _use_new_zipfile_serialization=bool(seed % 2))
    refused(tmp_path / "training.pt")


def test_a_damaged_training_state_is_refused(tmp_path, stopped):
    rng, path = np.random.default_rng(0), tmp_path / "training.pt"
    with zipfile.ZipFile(io.BytesIO(stopped)) as archive:
        starts = [
            stopped.index(archive.read(name))
            for name in archive.namelist()
            if "/data/" in name and len(archive.read(name)) > 32
        ]
    for position in rng.choice(starts, 30) + rng.integers(32, size=30):
        damaged = bytearray(stopped)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refused(path)
    for length in [0, 1, *rng.integers(len(stopped), size=30)]:
        path.write_bytes(stopped[:length])
        refused(path)
    torch.save(Hostile(), path)
    refused(path)
    path.write_bytes(stopped)
    with pytest.raises(PDSError, match=r"iterations must be at least 4, which .*training\.pt has reached, got 3$"):
        Trainer(iterations=3, batch_size=4, bf16=False, compile=False).fit(tiny(1), images(), path, torch.device("cpu"))
    assert path.read_bytes() == stopped
    Trainer(iterations=9, batch_size=4, bf16=False, compile=False).fit(tiny(1), images(), path, torch.device("cpu"))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_labels_go_with_their_images_and_are_dropped_at_random(tmp_path):
    shades = np.arange(200, dtype=np.uint8)
    source = ArrayImages("shades", "train", np.tile(shades[:, None, None, None], (1, 1, 2, 2)), shades)
    about = {"iterations": 2, "batch_size": 200, "bf16": False}
    trainer = trained(**about, label_dropout=0.3)
    x, sigma, labels = shown(trainer, source, tmp_path / "t.pt", Watched(1e-4, 2e-4), classes=200)
    kept = labels >= 0
    assert torch.equal(labels[kept], (255 * x[kept, 0, 0, 0]).round().long())
    assert set(labels[~kept].tolist()) == {-1}
    assert abs(int(kept.sum()) - 140) < 33  # five standard deviations
    # The labels change no other draw.
    bare, levels, none = shown(trained(**about), source, tmp_path / "u.pt", Watched(1e-4, 2e-4))
    assert torch.equal(bare, x) and torch.equal(levels, sigma) and none is None


class Labelled(torch.nn.Module):
    """Predicts the mean of each class, and zero for images without a class."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Embedding(3, 1)

    def forward(self, x, sigma, labels):
        return self.mean(labels + 1)[:, :, None, None].expand_as(x)


def test_a_network_with_classes_learns_from_their_labels(tmp_path):
    source = ArrayImages(
        "two", "train", np.tile(np.array([0, 255], np.uint8)[:, None, None, None], (8, 1, 2, 2)), np.tile([0, 1], 8)
    )
    process = VarianceExploding(0.5, 0.5001, 2)
    score = DataPrediction(Labelled(), process, "sigma")
    fit = trained(
        iterations=300, batch_size=16, learning_rate=0.1, warmup=1, checkpoint_every=300, bf16=False, label_dropout=0.3
    )
    fit.fit(score, source, tmp_path / "t.pt", torch.device("cpu"), classes=2)
    # Without its class, an image is as likely black as white.
    assert score.network.mean.weight.flatten().tolist() == pytest.approx([0.5, 0, 1], abs=0.1)


def test_classes_without_their_labels_are_refused(tmp_path):
    bare = images()
    labelled = ArrayImages("stripes", "train", bare.images, np.arange(64) % 3)
    for source, classes, options, message in (
        (bare, 3, {}, "classes is 3, and stripes train has no labels: give 0"),
        (labelled, 2, {}, "classes is 2, and stripes train has labels up to 2: give 3"),
        (labelled, 0, {"label_dropout": 0.1}, "label_dropout must be 0 for a network without classes"),
    ):
        with pytest.raises(OptionError, match=message):
            trained(iterations=1, batch_size=4, **options).fit(
                small(), source, tmp_path / "t.pt", torch.device("cpu"), classes=classes
            )
    with pytest.raises(OptionError, match="label_dropout must be a number at least 0 and below 1, got 1"):
        trained(label_dropout=1)
