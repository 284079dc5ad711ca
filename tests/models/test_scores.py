"""The score as samplers call it: in bfloat16, compiled, or neither."""

import shutil

import pytest
import torch
from torch import nn

from pds.models.ncsnpp import NCSNpp
from pds.models.scores import LadderScore, ScorePrediction, for_sampling, warn_of_slow_bf16
from pds.processes.forward import VarianceExploding

CPU = torch.device("cpu")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")


def small_score():
    torch.manual_seed(0)
    process = VarianceExploding(0.01, 16.0, 10)
    network = NCSNpp(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), sigmas=process.ladder)
    for parameter in network.parameters():  # also those that start at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    return ScorePrediction(network.eval(), process, "sigma").requires_grad_(False)


def inputs(batch):
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    return x, torch.full((batch,), 0.7)


class Told(nn.Module):
    """-x / sigma² of the levels of a ladder."""

    def __init__(self, sigmas):
        super().__init__()
        self.sigmas = sigmas

    def forward(self, x, label):
        return -x / self.sigmas[label].float()[:, None, None, None]


def test_between_two_levels_of_a_ladder_the_noise_is_that_of_the_nearest():
    sigmas = torch.tensor([8.0, 2.0, 0.7]).double()
    score = LadderScore(Told(sigmas), sigmas)  # predicts the noise x
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([8.0, 5.0, 1.3, 0.35])
    torch.testing.assert_close(score(x, sigma), -x / sigma[:, None, None, None])
    # A level in single precision gives the output of the network to the bit.
    level = sigmas[2].float().expand(4)
    assert torch.equal(score(x, level), score.network(x, torch.full((4,), 2)))


def test_bfloat16_is_the_score_rounded():
    score, (x, sigma) = small_score(), inputs(5)
    exact, rounded = score(x, sigma), for_sampling(score, CPU, bf16=True)(x, sigma)
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 2e-2
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(for_sampling(score, CPU)(x, sigma), exact)


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_without_bfloat16_is_named_once(native, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    warn_of_slow_bf16.cache_clear()
    for bf16 in (False, True, True):
        assert not (caplog.messages and not bf16)
        for_sampling(small_score(), CPU, bf16)
    assert ["leave bf16 off" in message for message in caplog.messages] == [True] * (not native)
    warn_of_slow_bf16.cache_clear()


class Witness(nn.Module):
    """A convolution, doubled where the compiler runs it."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)

    def forward(self, x, label):
        return self.convolution(x) * (2.0 if torch.compiler.is_compiling() else 1.0)


@needs_a_compiler
@torch.no_grad()
def test_a_compiled_network_is_the_same_function():
    score, (x, sigma) = LadderScore(Witness(), torch.tensor([1.0, 0.1])), inputs(2)
    expected = 2 * score(x, sigma)
    torch.testing.assert_close(for_sampling(score, CPU, compile=True)(x, sigma), expected)
