"""What a filter does for a sampler when the score is exact: the Fréchet distance on a Gaussian with the data's spectrum.

python experiments/tools/gaussian.py model=ddpmpp_small sampler/predictor=ancestral
python experiments/tools/gaussian.py filter=parametric vary=filter.lam over=[0.8,0.9,0.95,1.1] iterations=[50]
"""

from __future__ import annotations

import math

import hydra
from omegaconf import DictConfig, OmegaConf

from pds.data.dataset import Dataset
from pds.errors import PDSError
from pds.evaluation.gaussian import StationaryGaussian, sampled_law
from pds.lab.cli import entry_point, one_sentence
from pds.lab.config import build, resolved
from pds.lab.schema import register
from pds.models.scores import Model
from pds.preconditioning.preconditioner import Identity, Preconditioner, build_preconditioner

PARTS = ("filter", "solenoid", "sampler")
T = "sampler.iterations"

failures: list[str] = []


@hydra.main(config_path="../../conf", config_name="gaussian", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """One sampler, with every value of one key."""
    with one_sentence(failures):
        resolved(cfg)
        if not (cfg.iterations and cfg.over):
            raise PDSError("iterations and over must name at least one value each, as in iterations=[50] over=[2,3]")
        group, _, name = cfg.vary.rpartition(".")
        node = OmegaConf.select(cfg, group) if group else None
        if cfg.vary.split(".")[0] not in PARTS or cfg.vary == T or not isinstance(node, DictConfig) or name not in node:
            raise PDSError(
                f"vary={cfg.vary} is no key of {', '.join(PARTS)} here: choose one such as filter.alpha or filter.lam"
            )
        model: Model = build(cfg.model)
        dataset: Dataset = build(cfg.dataset)
        target = StationaryGaussian.of(dataset.statistics, model.data_range)

        def distance(iterations: int, value: float | None) -> float:
            """That of the sampler with a value of the key, or without a filter."""
            here = cfg.copy()
            OmegaConf.update(here, T, iterations)
            P: Preconditioner = Identity()
            if value is not None:
                OmegaConf.update(here, cfg.vary, value)
                P = build_preconditioner(build(here.filter), build(here.solenoid), model.shape, lambda: dataset.statistics)
            return sampled_law(build(here.sampler), target, model.process, P).distance(target)

        sampler = build(cfg.sampler)
        for index, iterations in enumerate(cfg.iterations):
            vanilla, *distances = (distance(iterations, value) for value in (None, *cfg.over))
            if index == 0:
                heads = ["T", "vanilla", *(f"{name}={value:g}" for value in cfg.over), "lowest"]
                print(f"\nFréchet distance in pixels from a Gaussian of {cfg.dataset.name} to what {sampler.title}")
                print(f"({sampler.detail}) makes of its exact score, {model.process.title}:\n")
                print(f"| {' | '.join(heads)} |\n|{' --: |' * len(heads)}")
            finite = [(d, f"{value:g}") for d, value in zip(distances, cfg.over, strict=True) if math.isfinite(d)]
            _, best = min([(vanilla, "vanilla"), *finite])
            numbers = (f"{d:.3g}" if math.isfinite(d) else "diverges" for d in (vanilla, *distances))
            print(f"| {' | '.join([str(iterations), *numbers, best])} |", flush=True)


if __name__ == "__main__":
    register()
    entry_point(main, failures)
