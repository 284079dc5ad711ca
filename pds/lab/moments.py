"""Noise moments of a network, kept beside its weights."""

from __future__ import annotations

from omegaconf import DictConfig

from pds.errors import PDSError
from pds.lab.config import build, build_model, resolved
from pds.lab.devices import prepare_device
from pds.lab.terminal import show
from pds.moments import measured_moments, moments_file, write_moments
from pds.samplers.analytic import AnalyticDDIM


def make_moments(cfg: DictConfig) -> None:
    """Write NAME_moments.json beside the weights file NAME, over an older one."""
    resolved(cfg)
    device, sampler = prepare_device(cfg.device, cfg.threads), build(cfg.sampler)
    if not isinstance(sampler, AnalyticDDIM):
        raise PDSError(f"the {sampler.title} sampler needs no moments: give sampler=analytic_ddim")
    model = build_model(cfg.model)
    if model.checkpoint is None:
        raise PDSError("model.checkpoint=null has no weights to keep moments beside: give a weights file")
    model.score.to(device)
    path = moments_file(model.checkpoint)
    write_moments(path, measured_moments(model, build(cfg.dataset), sampler.training_images, device, cfg.batch_size))
    show(f"moments  {path}")
