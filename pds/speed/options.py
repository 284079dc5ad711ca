"""Ways to evaluate a network: memory format, precision, compilation, CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pds.errors import PDSError
from pds.models.ncsnpp import NCSNpp
from pds.models.scores import Bfloat16Score, Model
from pds.score import Labelled
from pds.speed.plain import PlainNCSNpp


class GraphedScore:
    """A score that is captured in a CUDA graph at its first call for each batch size, and replayed afterwards.

    Args:
        score: without labels, on a GPU.
    """

    def __init__(self, score: Labelled) -> None:
        self.score = score
        self.captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        if labels:
            raise PDSError("a score captured in a CUDA graph takes no labels: sample without classes, or without the graph")
        if x.shape not in self.captured:
            self.captured[x.shape] = self._capture(x.clone(), sigma.clone())
        graph, given, level, output = self.captured[x.shape]
        given.copy_(x)
        level.copy_(sigma)
        graph.replay()
        return output.clone()  # the next replay overwrites it

    def _capture(self, x: Tensor, sigma: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their algorithms here; a capture forbids it
            for _ in range(3):
                self.score(x, sigma)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.score(x, sigma)
        return graph, x, sigma, output


@dataclass(frozen=True)
class Option:
    """A way to evaluate a network.

    Attributes:
        plain: use the arithmetic of `PlainNCSNpp`.
        tf32: float32 arithmetic that rounds to TensorFloat-32: "none", "convolutions" (the default of torch), or "all".
        channels_last: memory format of the weights; the maps follow it.
        bf16: use bfloat16 autocast.
        compile: mode of `torch.compile`; "" for none.
        graph: replay a CUDA graph.
    """

    plain: bool = False
    tf32: str = "none"
    channels_last: bool = False
    bf16: bool = False
    compile: str = ""
    graph: bool = False

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The rounding of float32 arithmetic on a GPU while the block runs."""
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, products.allow_tf32
        cudnn.allow_tf32, products.allow_tf32 = self.tf32 != "none", self.tf32 == "all"
        try:
            yield
        finally:
            cudnn.allow_tf32, products.allow_tf32 = before

    def score(self, model: Model, device: torch.device) -> Labelled:
        """The score of a freshly made model, evaluated in this way; the model is changed."""
        if self.plain:
            assert isinstance(model.score.network, NCSNpp)
            model.score.network = PlainNCSNpp(model.score.network)
        network: nn.Module = model.score.to(device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        network.to(memory_format=layout)
        if self.compile:
            torch.compiler.reset()
            model.score.network.compile(mode=self.compile, dynamic=False)
        score: Labelled = Bfloat16Score(model.score) if self.bf16 else model.score
        return GraphedScore(score) if self.graph else score


FASTEST = "bf16 channels_last"
OPTIONS: dict[str, Option] = {
    "plain": Option(plain=True),
    "float32": Option(),
    "tf32 channels_last": Option(tf32="all", channels_last=True),
    FASTEST: Option(bf16=True, channels_last=True),
    "bf16 compile": Option(bf16=True, channels_last=True, compile="default"),
    "bf16 graph": Option(bf16=True, channels_last=True, graph=True),
    "tf32 graph": Option(tf32="all", channels_last=True, graph=True),
    "plain, torch's rounding": Option(plain=True, tf32="convolutions"),
    "channels_last": Option(channels_last=True),
    "tf32": Option(tf32="all"),
    "bf16": Option(bf16=True),
    "tf32 compile": Option(tf32="all", channels_last=True, compile="default"),
    "bf16 reduce-overhead": Option(bf16=True, channels_last=True, compile="reduce-overhead"),
    "bf16 max-autotune": Option(bf16=True, channels_last=True, compile="max-autotune"),
}
"""In the order of their value. Compilation that searches takes minutes."""
