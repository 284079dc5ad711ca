"""Measure the noise moments that Analytic-DDIM needs, and keep them beside the weights: then no run needs the data set.

python experiments/tools/moments.py model=ncsnpp_small sampler=analytic_ddim

Keys are those of experiments/run.py; model, dataset, sampler.training_images, device, threads and batch_size are used.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from pds.errors import PDSError
from pds.lab.cli import entry_point, one_sentence
from pds.lab.config import build, resolved
from pds.lab.devices import choose_device
from pds.lab.schema import register
from pds.models.scores import Model
from pds.moments import beside, measured_moments, write_moments
from pds.samplers.analytic import AnalyticDDIM

failures: list[str] = []


@hydra.main(config_path="../../conf", config_name="run", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Measure those of one model."""
    with one_sentence(failures):
        make_moments(cfg)


def make_moments(cfg: DictConfig) -> None:
    """Write NAME_moments.json beside the weights file NAME, over an older one."""
    resolved(cfg)
    device, sampler = choose_device(cfg.device, cfg.threads), build(cfg.sampler)
    if not isinstance(sampler, AnalyticDDIM):
        raise PDSError(f"the {sampler.title} sampler needs no moments: give sampler=analytic_ddim")
    model: Model = build(cfg.model)
    if model.checkpoint is None:
        raise PDSError("model.checkpoint=null has no weights to keep moments beside: give a weights file")
    model.score.to(device)
    path = beside(model.checkpoint)
    write_moments(path, measured_moments(model, build(cfg.dataset), sampler.training_images, device, cfg.batch_size))
    print(f"moments  {path}")


if __name__ == "__main__":
    register()
    entry_point(main, failures)
