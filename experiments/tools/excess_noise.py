"""Whether a network sees excess noise, how much a sampler leaves because it does not, and how strong a filter must be.

PDS_DATA=/data python experiments/tools/excess_noise.py model=ncsnpp_small iterations=[25,50,100] filter.alpha=2.5
"""

from __future__ import annotations

import math
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pds.data.dataset import Dataset
from pds.data.images import to_unit
from pds.data.statistics import choose
from pds.errors import PDSError
from pds.evaluation.excess_noise import (
    FACTORS,
    NoiseResponse,
    excess_noise,
    highest_frequencies,
    least_gain,
    noise_in,
    noise_response,
)
from pds.files import atomic_path
from pds.lab.cli import entry_point, one_sentence
from pds.lab.config import build, resolved
from pds.lab.devices import choose_device
from pds.lab.report.charts import NoiseTrack, noise_along
from pds.lab.schema import register
from pds.models.scores import ScoreModel
from pds.noise import ImageNoise
from pds.preconditioning.filters import Filter, NoFilter
from pds.preconditioning.preconditioner import Preconditioner, build_preconditioner
from pds.preconditioning.solenoids import NoSolenoid
from pds.samplers.predictor_corrector import Level, PredictorCorrector

LEVELS = 5  # at which the response is measured
DATA_SHARE = 0.01  # of the noise's variance: what the data may have in the modes looked at

failures: list[str] = []


@hydra.main(config_path="../../conf", config_name="excess_noise", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """The response of one network, then a line for each number of iterations."""
    with one_sentence(failures):
        report(cfg)


def report(cfg: DictConfig) -> None:
    """Measure, predict, sample and print."""
    resolved(cfg)
    device = choose_device(cfg.device, cfg.threads)
    model: ScoreModel = build(cfg.model)
    dataset: Dataset = build(cfg.dataset)
    sampler = build(cfg.sampler)
    if not isinstance(sampler, PredictorCorrector) or sampler.predictor is None or sampler.corrector is not None:
        raise PDSError(
            "excess noise is followed through the steps of a predictor: set sampler=predictor_corrector sampler/corrector=none "
            "and one of sampler/predictor=reverse_diffusion, ancestral, euler_maruyama"
        )
    if not cfg.iterations or cfg.images < 1:
        raise PDSError("iterations must name at least one T, as in iterations=[25,50], and images must be at least 1")
    if model.checkpoint is None:
        raise PDSError("model.checkpoint=null has random weights, which see nothing: give a weights file")
    filter: Filter = build(cfg.filter)
    if filter.space(model.shape, lambda: dataset.statistics) is not None:
        raise PDSError("a space filter mixes the frequencies, in which excess noise is followed: set filter.pixels=none")
    if sampler.precondition == "published" and not sampler.predictor.published_with_filter and filter.title:
        raise PDSError(f"sampler.precondition=published does not filter {sampler.predictor.title} steps: set filter=none")
    # Whatever cannot be sampled is refused here, before anything is.
    ImageNoise(cfg.seed, torch.zeros(1, dtype=torch.long), model.shape)
    for iterations in cfg.iterations:
        _with_iterations(cfg, iterations, model)
    model.score.to(device)
    black, white = model.data_range
    chosen = choose(dataset.images, cfg.images, 0)
    images = black + (white - black) * to_unit(dataset.images.read(chosen)).to(device)
    ladder = model.process.ladder
    sigmas = np.geomspace(ladder[-1].item(), ladder[0].item(), LEVELS).tolist()
    response = noise_response(model.score, images, sigmas)
    print(f"\n{model.title}: noise it predicts where there is k times as much as its level says, averaged over {cfg.images}")
    print("images (an exact score of pure noise: k; a network that does not see the excess: the same for every k):\n")
    _row(["sigma", *(f"k = {k:g}" for k in FACTORS)], head=True)
    for sigma, values in zip(reversed(sigmas), reversed(response.values), strict=True):
        _row([f"{sigma:.3g}", *(f"{value:.2f}" for value in values)])

    print(
        f"\nNoise in the highest frequencies of {sampler.title}, in units of its level, where the data begin to show in them:\n"
    )
    named = [name for name in ("vanilla", filter.title) if name]
    told = [f"{name}, {how}" for name in named for how in ("predicted", "sampled")]
    _row(["T", "sigma there", *told, "least gain", "alpha for it"], head=True)
    tracks: list[NoiseTrack] = []
    for iterations in cfg.iterations:
        cells, followed = _line(cfg, iterations, model, dataset, response, device)
        _row(cells)
        tracks += followed
    print(
        "\nLeast gain: the least 1 / R^2 there with which the noise is below twice its level at the end of the run; alpha for"
    )
    print("it: that of the weakest statistics filter that has it. inf, none: no gain up to 8 does, take more iterations.")
    picture = Path(cfg.outputs) / "excess_noise.svg"
    with atomic_path(picture) as temporary:
        temporary.write_text(noise_along("excess_noise", tracks).on_paper(), encoding="utf-8")
    print(f"\npicture  {picture}")


def _with_iterations(cfg: DictConfig, iterations: int, model: ScoreModel) -> tuple[PredictorCorrector, Filter, list[Level]]:
    """Sampler, filter (whose alpha may follow T) and levels of one line."""
    here = cfg.copy()
    OmegaConf.update(here, "sampler.iterations", iterations)
    sampler: PredictorCorrector = build(here.sampler)
    return sampler, build(here.filter), sampler.levels(model.process)


def _line(
    cfg: DictConfig, iterations: int, model: ScoreModel, dataset: Dataset, response: NoiseResponse, device: torch.device
) -> tuple[list[str], list[NoiseTrack]]:
    sampler, filter, levels = _with_iterations(cfg, iterations, model)
    modes = highest_frequencies(model.shape[1:])
    black, white = model.data_range
    data = (white - black) ** 2 * dataset.statistics.power[:, modes].mean().item() / math.prod(model.shape[1:])
    last = max(i for i, level in enumerate(levels) if i == 0 or data <= DATA_SHARE * level.sigma**2)
    cells = [str(iterations), f"{levels[last].sigma:.3g}"]
    tracks = []
    for made in [NoFilter()] + [filter] * bool(filter.title):
        R = made.frequency(model.shape, lambda: dataset.statistics)
        gain = 1.0 if R is None else R[:, modes].double().pow(-2).mean().item()
        P = build_preconditioner(made, NoSolenoid(), model.shape, lambda: dataset.statistics, device)
        predicted = list(excess_noise(levels, response, gain))[: last + 1]
        sampled = _sampled(cfg, sampler, model, P, last, modes, device)
        cells += [f"{predicted[-1]:.3g}", f"{sampled[-1]:.3g}"]
        sigmas = [level.sigma for level in levels[: last + 1]]
        tracks.append(NoiseTrack(iterations, made.title or "vanilla", sigmas, predicted, sampled))
    gain = least_gain(levels, response)
    spectrum = dataset.statistics.power.double().log1p()
    lowest = (spectrum[:, modes].mean() / spectrum.max()).item()
    # Of R = (lowest + alpha - 1) / alpha = 1 / m there.
    alpha = (1 - lowest) / (1 - gain**-0.5) if 1 < gain < math.inf else math.inf if gain == 1 else math.nan
    cells += [f"{gain:.3g}", "any" if alpha == math.inf else "none" if math.isnan(alpha) else f"{alpha:.2g}"]
    return cells, tracks


@torch.no_grad()
def _sampled(
    cfg: DictConfig,
    sampler: PredictorCorrector,
    model: ScoreModel,
    preconditioner: Preconditioner,
    last: int,
    modes: Tensor,
    device: torch.device,
) -> list[float]:
    """k before each iteration of a real run, up to that before iteration `last`."""
    levels = sampler.levels(model.process)
    noise = ImageNoise(cfg.seed, torch.arange(cfg.images, device=device), model.shape)
    x = sampler.prior(noise, model.process, preconditioner)
    left = [noise_in(x, modes) / levels[0].std]

    def follow(iteration: int, sigma: float, x: Tensor) -> None:
        left.append(noise_in(x, modes) / levels[iteration + 1].std)

    sampler.without_denoising()(model.score, x, levels[:last], preconditioner, noise, follow)
    return left


def _row(cells: list[str], head: bool = False) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
    if head:
        print(f"|{' --: |' * len(cells)}")


if __name__ == "__main__":
    register()
    entry_point(main, failures)
