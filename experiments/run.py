"""Sample a model with and without PDS, measure the distance to the data, and compare.

python experiments/run.py filter=parametric filter.r=0.2 filter.lam=1.6 sampler.iterations=20
python experiments/run.py -m filter=none,statistics sampler.iterations=20,50
torchrun --nproc-per-node=2 experiments/run.py filter=statistics images=50000
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pds.lab.cli import entry_point, one_sentence
from pds.lab.experiment import run
from pds.lab.schema import register
from pds.lab.sweep import leads, run_point

failures: list[str] = []


@hydra.main(config_path="../conf", config_name="run", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """One run, or one point of a sweep."""
    overrides = HydraConfig.get().overrides.task
    if cfg.sweep.number is not None:
        run_point(cfg, overrides)
    else:
        # torchrun ends all processes as soon as one fails: the leader, which writes, answers for the others.
        with one_sentence(failures if leads() else []):
            run(cfg, overrides)


if __name__ == "__main__":
    register()
    entry_point(main, failures)
