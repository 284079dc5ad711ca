"""Every published network at its full size, with random weights in a file of its authors' layout."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from pds.errors import PDSError
from pds.lab.benchmark import first_iteration
from pds.lab.cli import prepare
from pds.lab.config import CONF, build
from pds.lab.devices import prepare_device
from pds.lab.runs import fingerprint
from pds.lab.terminal import show
from pds.lab.text import markdown_table
from pds.models.checkpoints import EMA
from pds.speed.measuring import peak_memory

GB = 1e9

NETWORKS: dict[str, list[str]] = {
    "ncsnpp_cifar10": ["model=ncsnpp", "dataset=cifar10"],
    "ncsnpp_cifar10_deep": ["model=ncsnpp", "dataset=cifar10", "model.blocks=8"],
    "ddpmpp_cifar10": ["model=ddpmpp", "dataset=cifar10"],
    "cld_cifar10": ["model=cld", "dataset=cifar10", "sampler=sscs"],
    "ncsnpp_church": ["model=ncsnpp", "dataset=lsun", "dataset.category=church"],
    "ncsnpp_bedroom": ["model=ncsnpp", "dataset=lsun", "dataset.category=bedroom"],
    "ncsnpp_ffhq256": ["model=ncsnpp", "dataset=ffhq", "dataset.resolution=256"],
    "ncsn_cifar10": ["model=ncsn", "dataset=cifar10"],
    "ncsnv2_cifar10": ["model=ncsnv2", "dataset=cifar10"],
    "ncsnv2_celeba": ["model=ncsnv2", "dataset=celeba"],
    "ncsnv2_church": ["model=ncsnv2", "dataset=lsun", "dataset.category=church"],
    "ncsnv2_tower": ["model=ncsnv2", "dataset=lsun", "dataset.category=tower"],
    "ncsnv2_ffhq256": ["model=ncsnv2", "dataset=ffhq"],
    "ncsnpp_ffhq1024": ["model=ncsnpp", "dataset=ffhq", "dataset.resolution=1024", "filter.pixels=released"],
}


def load_published(arguments: list[str]) -> None:
    """Show the table of the networks named, or of all of them."""
    names = arguments or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise PDSError(f"there is no published network {unknown[0]}: choose from {', '.join(NETWORKS)}")
    prepare()
    rows = [load_and_step(name, NETWORKS[name]) for name in names]
    show(f"\n{markdown_table([list(rows[0]), *(list(row.values()) for row in rows)], [False] * len(rows[0]))}")


def load_and_step(name: str, overrides: list[str]) -> dict[str, str]:
    """One row of the table.

    Args:
        name: name of the network; it begins with the name of its family (see `write_as_authors`).
        overrides: its configuration.

    Raises:
        RuntimeError: the loaded weights are not the expected ones.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("benchmark", overrides)
    device = prepare_device(cfg.device, cfg.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        expected = write_as_authors(build(cfg.model).score.network, path, name.split("_")[0])
        cfg.model.checkpoint = str(path)
        with peak_memory(device) as peak, torch.no_grad():
            start = time.perf_counter()
            iteration = first_iteration(cfg, device)
            loaded = time.perf_counter()
            # The sum waits for a GPU.
            iteration(iteration.preconditioner).sum().item()
            stepped = time.perf_counter()
        network, checkpoint = iteration.model.score.network, iteration.model.checkpoint
        assert checkpoint is not None
        if fingerprint(*averaged(network).values()) != expected:
            raise RuntimeError(f"{name}: the loaded weights are not the expected ones")
        return {
            "network": name,
            "title": iteration.model.title,
            "parameters": f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
            "file": f"{path.stat().st_size / GB:.2f} GB",
            "layout": f"{checkpoint.layout}; {EMA[checkpoint.ema]}",
            "made and loaded": f"{loaded - start:.1f} s",
            "one PDS iteration": f"{stepped - loaded:.2f} s, NFE {iteration.sampler.nfe_per_iteration}",
            "peak memory": "–" if peak.total is None else f"{peak.total / GB:.2f} GB",
        }


def averaged(network: nn.Module) -> dict[str, Tensor]:
    """The parameters with an average: the trained ones."""
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def write_as_authors(network: nn.Module, path: Path, family: str) -> str:
    """A checkpoint as its authors save it, in training under `DataParallel`.

    Args:
        family: "ncsn" (a list without averages), "ncsnv2" (a list), "ncsnpp", "ddpmpp" or "cld" (a dictionary).

    Returns:
        The fingerprint of the expected weights: the averages, which are half of the others, if the file has any.
    """
    trained = averaged(network)
    model = nn.DataParallel(network).state_dict()
    moments = [{"step": 1, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for p in trained.values()]
    groups = [{"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "params": list(range(len(moments)))}]
    optimizer = {"state": dict(enumerate(moments)), "param_groups": groups}
    if family == "ncsn":
        # torch had no other format in 2019.
        torch.save([model, optimizer], path, _use_new_zipfile_serialization=False)
        return fingerprint(*trained.values())
    averages = {name: value / 2 for name, value in trained.items()}
    if family == "ncsnv2":
        content: object = [model, optimizer, 1, 1, averages]
    else:
        ema = {"decay": 0.999, "num_updates": 1, "shadow_params": list(averages.values())}
        content = {"optimizer": optimizer, "model": model, "ema": ema, "step": 1}
    torch.save(content, path)
    return fingerprint(*averages.values())
