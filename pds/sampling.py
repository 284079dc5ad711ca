"""Sampling from a program: images of a model, with a filter or without, and statistics to make filters of."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from pds.conditioning import Guidance, Labels, labels_of
from pds.data.folder import folder_of_images
from pds.data.images import ArrayImages, ImageSource, as_uint8, to_uint8
from pds.data.statistics import DatasetStatistics, dataset_statistics
from pds.errors import OptionError
from pds.generation import BAR, ImageSampler
from pds.models.scores import GivenModel, for_sampling, in_evaluation_mode, placed
from pds.moments import moments_beside
from pds.options import Count, Said, Seed, checked
from pds.preconditioning.filters import Filter, NoFilter
from pds.preconditioning.preconditioner import build_preconditioner
from pds.preconditioning.solenoids import NoSolenoid, Solenoid
from pds.progress import progress_bar
from pds.remedies import Remedy
from pds.samplers.predictor_corrector import PredictorCorrector
from pds.samplers.sampler import Callback, Sampler, no_callback
from pds.score import NoiseMoments

log = logging.getLogger(__name__)

DEFAULT = PredictorCorrector()
"""The sampler of a model without a sampler of its own."""


@dataclass(frozen=True)
class Samples:
    """Sampled images and their cost.

    Attributes:
        images: (n, C, H, W) uint8, on the CPU.
        nfe: score evaluations an image, on average.
        seconds: seconds of sampling, without the first evaluation on a GPU.
        doubts: a sentence for each reason why the images may be worse than they should be.
    """

    images: Tensor
    nfe: float
    seconds: float
    doubts: list[str]


@checked
def sample(
    model: GivenModel,
    sampler: Sampler[Any] | None = None,
    *,
    filter: Filter | None = None,
    solenoid: Solenoid | None = None,
    statistics: DatasetStatistics | None = None,
    labels: Labels | None = None,
    guidance: Guidance | None = None,
    images: Count = 16,
    seed: Seed = 0,
    batch_size: Count = 64,
    device: str | torch.device | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Sample images. Image i depends on (seed, i) alone, unless the sampler mixes the batch. It is that of `experiments/run.py`
    with the same options.

    Args:
        model: from `load` or `wrap`.
        sampler: None for the model's own, or `DEFAULT` where it has none.
        filter: a frequency or space filter, for PDS; None: no filter.
        solenoid: a solenoidal term; None: no term.
        statistics: of the training images, for a `StatisticsFilter` or a sampler's `start`; None: the model's own.
        labels: classes of the images in turn: a list, "uniform" for all classes, or a file of whole numbers. None is for images
            without a class.
        guidance: guidance towards the labels, as `ClassifierFree`; None for the network's class alone.
        images: number of images.
        seed: seed of all noise.
        batch_size: images sampled at once. It changes the images of a sampler that mixes the batch, and no others.
        device: where to sample, as "cuda"; None for where the model is. The model stays there.
        callback: called with (iteration, sigma, x) after each iteration of a batch, x being the sampler's own state.

    Raises:
        PDSError: labels, guidance, sampler or filter do not fit the model, statistics are missing, or values are not finite.
    """
    place = model.device if device is None else placed(device)
    sampler = sampler or model.sampler or DEFAULT
    known = statistics or model.statistics

    def required() -> DatasetStatistics:
        if known is None:
            raise OptionError("statistics", "is missing, and it is needed here: give pds.statistics(folder of images)")
        return known

    def moments(count: int) -> NoiseMoments:
        if isinstance(model.score, Remedy):
            doubts.append("the noise moments are of the network without the remedy")
        if labels is not None:
            doubts.append("the noise moments are of the network without a class, and the images have classes")
        found = None if model.checkpoint is None else moments_beside(model.checkpoint)
        if found is None or found.provenance.get("images") != count:
            problem = (
                f"needs the moments of the noise that the model predicts on {count} images, and none are beside its weights"
            )
            raise OptionError("sampler", f"{problem}: give its moments, from pds.moments.noise_moments")
        return found

    doubts = list[str]()
    sampler = sampler.with_moments(moments).with_statistics(required, model.data_range, model.process)
    P = build_preconditioner(filter or NoFilter(), solenoid or NoSolenoid(), model.shape, required, place)
    steps = sampler.levels(model.process)
    doubts += sampler.check(steps, P)
    for doubt in doubts:
        log.warning(doubt)
    score = for_sampling(model.score, place)
    if guidance is not None:  # on the device of the network
        guidance.check(model)
    classes = labels_of(model, labels, guidance)
    make = ImageSampler.of(model, score, sampler, P, seed, place, labels=classes, guidance=guidance)
    batches, evaluations, seconds = [], 0.0, 0.0
    with in_evaluation_mode(model.score), progress_bar(desc="sample", total=images, unit="img", bar_format=BAR) as bar:
        for start in range(0, images, batch_size):
            batch = range(start, min(start + batch_size, images))

            def step(iteration: int, sigma: float, x: Tensor, batch: range = batch) -> None:
                bar.update(min(len(batch) / len(steps), batch.stop - bar.n))
                (callback or no_callback)(iteration, sigma, x)

            if start == 0 or len(batch) < batch_size:
                make.warm_up(len(batch))
            begun = time.perf_counter()
            x, nfe = make(batch, step)
            batches.append(to_uint8(x).cpu())
            seconds += time.perf_counter() - begun
            evaluations += nfe * len(batch)
            bar.update(batch.stop - bar.n)
    return Samples(torch.cat(batches), evaluations / images, seconds, doubts)


@checked
def statistics(
    images: Annotated[str | Path | Tensor, Said("a folder of images, or a tensor of (n, C, H, W) images")],
    count: Count | None = None,
    seed: Seed = 0,
) -> DatasetStatistics:
    """Statistics of training images, for a `StatisticsFilter`.

    Args:
        images: a folder of image files of one size, searched recursively; or (n, C, H, W) images, uint8 or floats in [0, 1].
        count: number of images, chosen at random. None takes 200 as in the papers, or all if there are fewer.
        seed: seed of the choice.

    Raises:
        PDSError: there are no such images, or fewer than `count`.
    """
    if isinstance(images, Tensor):
        source: ImageSource = ArrayImages("images", "all", np.ascontiguousarray(as_uint8(images).cpu().numpy()))
    else:
        source = folder_of_images(images)
    return dataset_statistics(source, min(200, len(source)) if count is None else count, seed)
