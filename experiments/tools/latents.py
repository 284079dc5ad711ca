"""Statistics of a pipeline's latents, for the filter of `PDSScheduler`, by the pipeline's own VAE.

python experiments/tools/latents.py PIPELINE_FOLDER IMAGE_FOLDER OUTPUT.npz
"""

from __future__ import annotations

from pathlib import Path

from pds.errors import MissingError, PDSError
from pds.lab.cli import documented, start


def latents(arguments: list[str]) -> None:
    """Use 200 of the images, or all if there are fewer."""
    if len(arguments) != 3:
        raise PDSError("give three paths: python experiments/tools/latents.py PIPELINE_FOLDER IMAGE_FOLDER OUTPUT.npz")
    pipeline, images, output = arguments
    from diffusers import AutoencoderKL

    from pds.integrations.diffusers import latent_statistics  # here, so that a missing package is one sentence

    if not (Path(pipeline) / "vae" / "config.json").is_file():
        raise MissingError(f"{pipeline} has no vae/config.json: give the folder of a pipeline with latents")
    latent_statistics(AutoencoderKL.from_pretrained(pipeline, subfolder="vae"), images).save(Path(output))


if __name__ == "__main__":
    start(documented(latents, __doc__))
