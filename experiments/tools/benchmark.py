"""The cost of PDS, and the speed of sampling. It times one iteration with and without PDS, the operator alone, the same
operator in full complex FFTs, and the network. It compares the network with the machine's limits.

python experiments/tools/benchmark.py model=ncsnpp dataset=cifar10
python experiments/tools/benchmark.py model=ncsnpp dataset=ffhq filter.pixels=released repeats=3
python experiments/tools/benchmark.py -m batch_size=1,8,64 bf16=false,true compile=false,true
"""

from __future__ import annotations

from omegaconf import DictConfig

from pds.lab.benchmark import benchmark
from pds.lab.cli import configured, given_overrides, start


def measure(cfg: DictConfig) -> None:
    """One network at one image size."""
    benchmark(cfg, given_overrides())


if __name__ == "__main__":
    start(configured("benchmark", measure))
