"""sampler.eta=auto and filter.alpha=auto: the first guess for the network in their place."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pds.errors import OptionError
from pds.evaluation.first_guess import ALPHAS, best_eta, guess_alpha, look_at
from pds.lab.config import build
from pds.models.scores import Model
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import PredictorCorrector
from pds.samplers.sampler import Sampler


def settled(cfg: DictConfig, model: Model, device: torch.device) -> tuple[DictConfig, DictConfig, dict[str, str]]:
    """The nodes of sampler and filter with a number for each auto, and these numbers by key.

    An alpha with a published reference stays auto: it follows T (`statistics_filter`).

    Raises:
        OptionError: there is no guess for this sampler, the network sees its excess noise, or no filter is enough.
    """
    sampler_node, filter_node, found = cfg.sampler, cfg.filter, dict[str, str]()
    of_eta, of_alpha = _guessed(cfg)
    if not (of_eta or of_alpha):
        return sampler_node, filter_node, found
    if of_eta:
        sampler_node = _with(cfg.sampler, "eta", 1.0)
    sampler: Sampler[Any] = build(sampler_node)
    alone = isinstance(sampler, PredictorCorrector) and sampler.corrector is None
    if of_eta and not isinstance(sampler, PreconditionedSDE):
        raise OptionError("sampler.eta", f"must be a number: no first guess is known for {sampler.title}")
    if not (isinstance(sampler, PreconditionedSDE) or alone):
        problem = "none was published for this model and data set, and no first guess is known for"
        raise OptionError("filter.alpha", f"must be a number: {problem} {sampler.title}")
    model.score.to(device)
    look = look_at(model, sampler.iterations)
    if of_eta and isinstance(sampler, PreconditionedSDE):
        sampler = best_eta(sampler, model, look).sampler
        found["sampler.eta"] = f"{sampler.eta:.3g}"
        sampler_node = _with(cfg.sampler, "eta", float(found["sampler.eta"]))
    if of_alpha:
        if isinstance(sampler, PreconditionedSDE):
            alpha = best_eta(sampler, model, look, (sampler.eta,), ALPHAS).alpha
        else:
            alpha = guess_alpha(model, look, sampler.levels(model.process))
        if not math.isfinite(alpha):
            seen = "the network sees its excess noise, so the first guess has no filter, and one may still help"
            said = seen if alpha == math.inf else "no filter removes the noise of so few iterations"
            raise OptionError("filter.alpha", f"must be a number, or filter=none: {said}")
        found["filter.alpha"] = f"{alpha:.3g}"
        filter_node = _with(cfg.filter, "alpha", float(found["filter.alpha"]))
    return sampler_node, filter_node, found


def without_auto(cfg: DictConfig) -> tuple[DictConfig, DictConfig]:
    """The nodes of sampler and filter with any valid number for each value that `settled` guesses: no evaluation depends on
    it."""
    of_eta, of_alpha = _guessed(cfg)
    sampler_node = _with(cfg.sampler, "eta", 1.0) if of_eta else cfg.sampler
    return sampler_node, _with(cfg.filter, "alpha", 5.0) if of_alpha else cfg.filter


def _guessed(cfg: DictConfig) -> tuple[bool, bool]:
    """Whether eta and alpha are guessed."""
    of_alpha = OmegaConf.select(cfg, "filter.alpha") == "auto" and OmegaConf.select(cfg, "filter.reference.alpha") is None
    return OmegaConf.select(cfg, "sampler.eta") == "auto", of_alpha


def _with(node: DictConfig, name: str, value: float) -> DictConfig:
    node = node.copy()
    OmegaConf.update(node, name, value)
    return node
