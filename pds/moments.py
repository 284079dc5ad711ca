"""The noise moments of a model, which Analytic-DDIM needs: a file beside its weights, one in the cache, or measured once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

import pds
from pds.cache import cache_folder, make_once
from pds.data.dataset import Dataset
from pds.data.images import image_digest, read_in_batches, to_range, to_unit
from pds.data.statistics import choose_images
from pds.errors import OptionError, PDSError
from pds.files import json_digest, locate, read_json, reading, write_json
from pds.models.checkpoints import Checkpoint
from pds.models.scores import Model, in_evaluation_mode
from pds.noise import ImageNoise
from pds.options import Positive, Range
from pds.processes.forward import noise_range
from pds.progress import progress_bar
from pds.remedies import without_remedy
from pds.score import NoiseMoments, Score, score_at

log = logging.getLogger(__name__)

LEVELS = 64  # of noise, evenly in log(sigma): neighbours are 12% (VE of MNIST) to 16% (VP) apart
SEED = 0  # of the choice of images, and of the noise added to them


def write_moments(path: Path, moments: NoiseMoments) -> None:
    """Write moments as JSON, atomically."""
    names = ("sigmas", "values", "data_range", "provenance")
    write_json(path, {name: getattr(moments, name) for name in names})


def read_moments(path: Path) -> NoiseMoments:
    """Read a file of `write_moments`; anything else is a `PDSError`."""
    what, fix = "a file of noise moments of this project", "delete it"
    keys = {"sigmas": list[Positive], "values": list[Annotated[float, Range(0, 1)]], "data_range": list[float]}
    content = read_json(path, keys | {"provenance": dict}, what, fix)
    with reading(path, what, fix):
        sigmas, values = content["sigmas"], content["values"]
        black, white = content["data_range"]
        if not (sigmas and len(sigmas) == len(values) and np.all(np.diff(sigmas) > 0) and black < white):
            raise ValueError("its noise levels do not ascend, or it has not as many values")
        return NoiseMoments(tuple(sigmas), tuple(values), (black, white), content["provenance"])


def moments_file(checkpoint: Checkpoint) -> Path:
    """The file of moments that travels with a weights file: NAME_moments.json in its folder."""
    return checkpoint.path.with_name(f"{checkpoint.path.stem}_moments.json")


def moments_beside(checkpoint: Checkpoint) -> NoiseMoments | None:
    """The moments that travel with a weights file, if there are any of the same choice of weights; a `PDSError` if they are of
    another file."""
    path = moments_file(checkpoint)
    if not path.is_file():
        return None
    moments = read_moments(locate(path))
    if moments.provenance.get("averaged", True) != (checkpoint.ema is not False):
        return None  # a file may have both
    if moments.provenance.get("weights") != checkpoint.sha256:
        raise PDSError(
            f"{path} was measured with other weights than {checkpoint.path.name}: delete it, or make it again with "
            "experiments/tools/moments.py"
        )
    return moments


def measure(
    score: Score,
    read: Callable[[np.ndarray], Tensor],
    indices: np.ndarray,
    sigmas: Sequence[float],
    device: torch.device,
    batch_size: int = 64,
) -> np.ndarray:
    """Monte-Carlo estimate of Gamma, one evaluation for each image and noise level.

    Args:
        score: `score(x, sigma)`, on `device`.
        read: (n, C, H, W) float32 images at n indices, in the data range of the model.
        indices: (M,) int64 indices of the images; the noise of an image depends on its index, not on its batch.
        sigmas: K noise levels.
        device: where to evaluate.
        batch_size: images evaluated at once.

    Returns:
        (K,) float64, not clamped: its error can lead out of [0, 1].
    """
    excess, pixels = np.zeros(len(sigmas)), 0
    with torch.no_grad(), progress_bar(desc="noise moments", total=len(indices) * len(sigmas), unit="eval") as bar:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            x = read(batch).to(device)
            _, channels, height, width = x.shape
            noise = ImageNoise(SEED, torch.from_numpy(batch).to(device), (channels, height, width))
            pixels += x.numel()
            for k, sigma in enumerate(sigmas):
                z = noise.normal()
                e = -sigma * score_at(score, x + sigma * z, sigma)
                # E‖z‖² = d is known, and ‖z‖² is correlated with ‖e‖², the more the larger sigma.
                excess[k] += (e.square() - z.square()).sum(dtype=torch.float64).item()
                bar.update(len(x))
    return 1 + excess / pixels


def measured_moments(
    model: Model, dataset: Dataset, training_images: int, device: torch.device, batch_size: int
) -> NoiseMoments:
    """The moments of a model without its remedies over the noise levels of its process, measured now; arguments as in
    `noise_moments`.

    They are kept within the bounds of the paper's Theorem 2. The variance of the noise given x, 1 - Gamma, lies between 0 and
    ((white - black) / (2 sigma))². A larger one would need data outside the data range.

    Raises:
        PDSError: the network has no unconditional score, or its noise is not finite.
    """
    model.require_unconditional("noise moments are measured")
    images, (black, white) = dataset.images, model.data_range
    provenance = _facts(model, dataset, training_images) | _image_facts(dataset, training_images) | {"pds": pds.__version__}
    log.info("measuring the noise moments of %s on %d images of %s, once", model.title, training_images, images.name)
    sigmas = np.geomspace(*noise_range(model.process), LEVELS)
    read = lambda indices: to_range(to_unit(images.read(indices)), model.data_range)  # noqa: E731
    chosen, score = choose_images(images, training_images, SEED), without_remedy(model.score)
    with in_evaluation_mode(score):
        values = measure(score, read, chosen, sigmas.tolist(), device, batch_size)
    if not np.isfinite(values).all():
        raise PDSError(f"the noise that {model.title} predicts is not finite: its weights are broken")
    largest = np.minimum(1, ((white - black) / (2 * sigmas)) ** 2)
    values = np.clip(values, 1 - largest, 1)
    return NoiseMoments(tuple(sigmas.tolist()), tuple(values.tolist()), model.data_range, provenance)


def noise_moments(
    model: Model, dataset: Dataset, training_images: int, device: torch.device, batch_size: int = 64
) -> NoiseMoments:
    """The moments of a model: those beside its weights if they fit, else those in the cache, else measured and kept there.

    Args:
        model: the model, its score on `device`.
        dataset: its training data; the files are not needed if there are moments beside the weights.
        training_images: number of images to measure on.
        device: where to evaluate.
        batch_size: images evaluated at once.

    Raises:
        PDSError: the data set is absent or has fewer images, or a file is broken or belongs to other weights.
    """
    facts, checkpoint = _facts(model, dataset, training_images), model.checkpoint
    if checkpoint is None:
        return measured_moments(model, dataset, training_images, device, batch_size)
    moments = moments_beside(checkpoint)
    if moments is not None and facts.items() <= moments.provenance.items():
        return moments
    facts |= _image_facts(dataset, training_images)
    path = cache_folder() / "moments" / f"{checkpoint.path.stem}_{dataset.name}_{training_images}-{json_digest(facts)}.json"
    make_once(path, lambda: write_moments(path, measured_moments(model, dataset, training_images, device, batch_size)))
    moments = read_moments(path)
    if not facts.items() <= moments.provenance.items():
        raise PDSError(f"{path} was measured on something else ({moments.provenance}): delete it")
    return moments


def _facts(model: Model, dataset: Dataset, training_images: int) -> dict[str, Any]:
    """Return the facts that moments depend on, of those known without the files of the data set."""
    process = model.process
    beside: dict[str, Any] = {"beside_weights": json_digest(model.beside_weights)} if model.beside_weights else {}
    smallest, largest = noise_range(process)
    if model.checkpoint and model.checkpoint.ema is False:
        beside["averaged"] = False
    return beside | {
        "weights": model.checkpoint and model.checkpoint.sha256,
        "process": f"{process.title}, {process.levels} levels, sigma {smallest:.6g} to {largest:.6g}",
        "data_range": list(model.data_range),
        "dataset": dataset.name,
        "images": training_images,
        "levels": LEVELS,
        "seed": SEED,
    }


def _image_facts(dataset: Dataset, training_images: int) -> dict[str, str]:
    """Return the facts that tell the images from others."""
    images = dataset.images
    if training_images > len(images):
        raise OptionError(
            "training_images",
            f"must be at most {len(images)}, the images of {images.name} {images.split}, got {training_images}",
        )
    chosen = choose_images(images, training_images, SEED)
    return {"split": images.split, "images_sha256": image_digest(read_in_batches(images, chosen))}
