"""Every network that ships with this package loads by its configuration and knows the noise in real images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from pds.data.images import to_unit
from pds.lab.config import build
from pds.lab.schema import register
from pds.training import denoising_loss

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("model", ["ncsn_small", "ncsnpp_small", "ncsnpp_small_skip", "ddpmpp_small"])
def test_a_shipped_network_denoises(model: str, data_root: Path) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("run", [f"model={model}", "tracker=none", f"dataset.source.root={data_root}"])
    network, images = build(cfg.model), build(cfg.dataset).images
    low, high = network.data_range
    x = low + (high - low) * to_unit(images.read(np.arange(0, 1600, 100)))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for sigma in (0.1, 1.0):
        with torch.inference_mode():
            losses.append(denoising_loss(network.score, x, torch.full((len(x),), sigma, dtype=torch.float64), z).item())
    # Half the variance of what is left of the noise: 0.5 for a network that sees nothing.
    assert max(losses) < 0.13
    assert losses == sorted(losses, reverse=True)
