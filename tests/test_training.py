"""Training: the loss is the score's, a killed run continues as if it had not been, and it learns."""

import numpy as np
import pytest
import torch

from pds.data.images import ArrayImages
from pds.errors import PDSError
from pds.models.ncsn import ncsn
from pds.training import Trainer, denoising_loss

LEVELS = torch.tensor([1.0, 0.3])


def images():
    rng = np.random.default_rng(0)
    return ArrayImages("stripes", "train", (rng.integers(0, 2, (64, 1, 1, 8)) * np.ones((1, 1, 8, 1)) * 255).astype(np.uint8))


def sample_sigma(count, generator):
    return LEVELS[torch.randint(2, (count,), generator=generator)]


def small(seed=0):
    torch.manual_seed(seed)
    return ncsn((1, 8, 8), 4, 1.0, 0.3, 2).score


class Exact(torch.nn.Module):
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


def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path):
    trainer = Trainer(iterations=12, batch_size=8, warmup=2, checkpoint_every=5, bf16=False)

    class Killed(Exception):
        pass

    def fit(path, stop_at=None):
        score = small()

        def sigmas(count, generator):
            if stop_at is not None and generator.initial_seed() == stop_at:
                raise Killed
            return sample_sigma(count, generator)

        return trainer.fit(score, images(), sigmas, path, torch.device("cpu"))

    unbroken, _ = fit(tmp_path / "a.pt")
    with pytest.raises(Killed):
        fit(tmp_path / "b.pt", stop_at=7)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["iteration"] == 5
    resumed, seconds = fit(tmp_path / "b.pt")
    assert seconds > torch.load(tmp_path / "b.pt", weights_only=True)["seconds"] * 0.99 > 0
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_the_average_follows_its_recursion_and_bf16_trains(tmp_path):
    # With one weight seen after every step, the average is the recursion e <- d e + (1 - d) w by hand.
    score, weights = small(), []
    start = score.network.end_conv.bias.detach().clone()

    def sigmas(count, generator):
        weights.append(score.network.end_conv.bias.detach().clone())
        return sample_sigma(count, generator)

    trainer = Trainer(iterations=4, batch_size=4, warmup=1, ema_decay=0.3, checkpoint_every=4, bf16=True)
    ema, _ = trainer.fit(score, images(), sigmas, tmp_path / "t.pt", torch.device("cpu"))
    expected = start
    for iteration, after in enumerate([*weights[1:], score.network.end_conv.bias.detach()]):
        decay = min(0.3, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * after
    torch.testing.assert_close(ema["network.end_conv.bias"], expected)
    assert not torch.equal(expected, score.network.end_conv.bias)


def test_it_learns(tmp_path):
    score = small()
    seen = []
    Trainer(iterations=150, batch_size=16, learning_rate=5e-3, warmup=10, checkpoint_every=150, bf16=False).fit(
        score, images(), sample_sigma, tmp_path / "t.pt", torch.device("cpu"), seen.append
    )
    assert [record["iteration"] for record in seen] == [50, 100, 150]
    assert seen[-1]["loss"] < 0.6 * seen[0]["loss"]


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(PDSError, match="at least 1"):
        Trainer(iterations=0)
    with pytest.raises(PDSError, match="learning_rate must be positive"):
        Trainer(iterations=1, learning_rate=-1.0)
    with pytest.raises(PDSError, match="ema_decay"):
        Trainer(iterations=1, ema_decay=1.0)
    with pytest.raises(PDSError, match=r"loss is nan.*lower trainer.learning_rate"):
        broken = small()
        broken.network.begin_conv.weight.data.fill_(torch.nan)
        Trainer(iterations=3, batch_size=4, bf16=False).fit(
            broken, images(), sample_sigma, tmp_path / "t.pt", torch.device("cpu")
        )
