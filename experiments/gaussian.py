"""What a filter does for a sampler when the score is exact: the Fréchet distance on a Gaussian with the data's spectrum.

python experiments/gaussian.py model=ddpmpp_small sampler/predictor=ancestral
python experiments/gaussian.py filter=parametric vary=filter.lam over=[0.8,0.9,0.95,1.1] iterations=[50]
"""

from __future__ import annotations

import math

import hydra
from building import build, entry_point, one_sentence, resolved
from omegaconf import DictConfig, OmegaConf
from schema import register

from pds.data.dataset import Dataset
from pds.errors import PDSError
from pds.evaluation.gaussian import StationaryGaussian, sampled_law
from pds.models.scores import ScoreModel
from pds.preconditioning.preconditioner import Identity, Preconditioner, build_preconditioner

failures: list[str] = []


@hydra.main(config_path="../conf", config_name="gaussian", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """One sampler, with every value of one key."""
    with one_sentence(failures):
        resolved(cfg)
        if not (cfg.iterations and cfg.over):
            raise PDSError("iterations and over must name at least one value each, as in iterations=[50] over=[2,3]")
        group, _, name = cfg.vary.rpartition(".")
        if name not in (OmegaConf.select(cfg, group) if group else cfg):
            raise PDSError(f"vary={cfg.vary} is no key of this configuration: choose one such as filter.alpha or filter.lam")
        model: ScoreModel = build(cfg.model)
        heads = ["T", "vanilla", *(f"{name}={value:g}" for value in cfg.over), "lowest"]
        for index, T in enumerate(cfg.iterations):
            cells = line(cfg, model, T)
            if index == 0:
                sampler = build(cfg.sampler)
                print(f"\nFréchet distance in pixels from a Gaussian of {cfg.dataset.name} to what {sampler.title}")
                print(f"({sampler.detail}) makes of its exact score, {model.process.title}:\n")
                print(f"| {' | '.join(heads)} |\n|{' --: |' * len(heads)}")
            print(f"| {' | '.join(cells)} |", flush=True)


def line(cfg: DictConfig, model: ScoreModel, iterations: int) -> list[str]:
    """T, the distance without a filter, those with one, and the value of the lowest."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    cfg.sampler.iterations = iterations
    dataset: Dataset = build(cfg.dataset)
    target = StationaryGaussian.of(dataset.statistics, model.data_range)

    def distance(preconditioner: Preconditioner) -> float:
        return sampled_law(build(cfg.sampler), target, model.process, preconditioner).distance(target)

    distances = [distance(Identity())]
    for value in cfg.over:
        OmegaConf.update(cfg, cfg.vary, value)
        preconditioner = build_preconditioner(build(cfg.filter), build(cfg.solenoid), model.shape, lambda: dataset.statistics)
        distances.append(distance(preconditioner))
    best = min(zip(distances[1:], cfg.over, strict=True))
    lowest = f"{best[1]:g}" if best[0] < distances[0] else "vanilla"
    return [str(iterations), *(f"{d:.3g}" if d < 1e6 and math.isfinite(d) else "diverges" for d in distances), lowest]


if __name__ == "__main__":
    register()
    entry_point(main, failures)
