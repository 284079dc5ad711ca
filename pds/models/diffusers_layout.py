"""Hugging Face diffusers networks that are an NCSN++, under the names of the published NCSN++ checkpoints.

A `UNet2DModel` of Skip blocks with a Fourier embedding is the NCSN++ of [SDE] with output_skip, input_skip and their sum. The
published networks of 256x256 and 1024x1024 images are of this kind. Their output is the score. Other networks (DDPM) predict
noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pds.errors import PDSError
from pds.models.layouts import choose_weights
from pds.processes.ladders import geometric_ladder

BLOCKS = {"SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"}

# The defaults of diffusers for keys that config.json may leave out, of the keys that are read here.
DEFAULTS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def both(**modules: str) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in modules.items() for leaf in ("weight", "bias")}


PLAIN = {"weight": "weight", "bias": "bias"}
FOURIER = {"weight": "W"}
COMBINE = {"weight": "Conv_0.weight", "bias": "Conv_0.bias"}
RESIDUAL = both(
    norm1="GroupNorm_0", conv1="Conv_0", time_emb_proj="Dense_0", norm2="GroupNorm_1", conv2="Conv_1", conv_shortcut="Conv_2"
)
# The second name of each is the one in older files.
PROJECTIONS = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
ATTENTION = both(group_norm="GroupNorm_0") | {
    f"{name}.{theirs}": f"NIN_{i}.{ours}"
    for i, names in enumerate(PROJECTIONS)
    for name in names
    for theirs, ours in (("weight", "W"), ("bias", "b"))
}


class Description(NamedTuple):
    """A diffusers network as an NCSN++.

    Attributes:
        traits: attributes of its `NCSNpp` that show neither in names nor in shapes.
        settings: the arguments of `pds.models.ncsnpp.ncsnpp` that make its `NCSNpp`; arguments of its process are
            "process.NAME".
    """

    traits: dict[str, Any]
    settings: dict[str, Any]


class Published(NamedTuple):
    """A diffusers network as a published checkpoint would hold it.

    Attributes:
        state: parameters by their published names, and the noise levels `sigmas` if the scheduler has them.
        traits, settings: see `Description`.
    """

    state: dict[str, Any]
    traits: dict[str, Any]
    settings: dict[str, Any]


def described(config: dict[str, Any], scheduler: dict[str, Any], source: Path) -> Description:
    """Return a diffusers network as an NCSN++; arguments and errors as in `as_published`."""
    if config.get("_class_name") != "UNet2DModel":
        raise PDSError(f"{source} holds a {config.get('_class_name')}: only a UNet2DModel that is an NCSN++ can be read")
    config = DEFAULTS | config
    try:
        _check(config, source)
        published_names(config)
        traits, settings = _describe(config)
        if scheduler.get("_class_name") == "ScoreSdeVeScheduler":
            low, high, levels = (scheduler[key] for key in ("sigma_min", "sigma_max", "num_train_timesteps"))
            if not (0 < low <= high < math.inf and 1 <= levels <= 100_000):
                raise ValueError(f"{levels} noise levels from {high} to {low}")
            settings |= {"process.sigma_min": low, "process.sigma_max": high, "process.levels": levels}
    except PDSError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PDSError(f"the configuration of {source} is not one that diffusers writes ({error!r}): fetch it again") from None
    return Description(traits, settings)


def as_published(config: dict[str, Any], scheduler: dict[str, Any], content: Any, source: Path) -> Published:
    """Rename the parameters of a diffusers network.

    Args:
        config: config.json of the network.
        scheduler: scheduler_config.json of its pipeline, or an empty table.
        content: content of its weights file: the parameters by their names in diffusers.
        source: its name in messages.

    Raises:
        PDSError: the network is no NCSN++, or differs from one in a detail.
    """
    traits, settings = described(config, scheduler, source)
    config, state = DEFAULTS | config, {}
    if "process.levels" in settings:
        high, low, levels = (settings[f"process.{name}"] for name in ("sigma_max", "sigma_min", "levels"))
        state["sigmas"] = geometric_ladder(high, low, levels)
    names = published_names(config)
    for name, value in choose_weights(content, {}, list(names), source).state.items():
        if name not in names:
            raise PDSError(f"{source} has a parameter {name} that no NCSN++ has: it is a checkpoint of another network")
        # The weight of a linear layer is (out, in), that of a NIN (in, out).
        transposed = names[name].endswith(".W") and isinstance(value, Tensor) and value.ndim == 2
        state[names[name]] = value.T if transposed else value
    return Published(state, traits, settings)


def published_names(config: dict[str, Any]) -> dict[str, str]:
    """The published name of every parameter that a network may have, by its name in diffusers."""
    return {
        f"{module}.{theirs}": f"all_modules.{index}.{ours}"
        for index, (module, parts) in enumerate(_modules(config))
        for theirs, ours in parts.items()
    }


def current_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an older file by the names that diffusers has now."""
    renamed = {}
    for name, value in tensors.items():
        for new, old in PROJECTIONS:
            name = name.replace(f".{old}.", f".{new}.")
        renamed[name] = value
    return renamed


def _modules(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The modules in the order of the published flat list, which is the order of construction, and the names in each."""
    # No network has a thousand layers a block, and a hostile number must not fill the memory.
    down, up, layers = config["down_block_types"], config["up_block_types"], min(config["layers_per_block"], 1000)
    yield "time_proj", FOURIER
    yield "time_embedding.linear_1", PLAIN
    yield "time_embedding.linear_2", PLAIN
    yield "conv_in", PLAIN
    for i, kind in enumerate(down):
        for j in range(layers):
            yield f"down_blocks.{i}.resnets.{j}", RESIDUAL
            if kind.startswith("Attn"):
                yield f"down_blocks.{i}.attentions.{j}", ATTENTION
        if i + 1 < len(down):
            yield f"down_blocks.{i}.resnet_down", RESIDUAL
            yield f"down_blocks.{i}.skip_conv", COMBINE
    yield "mid_block.resnets.0", RESIDUAL
    yield "mid_block.attentions.0", ATTENTION
    yield "mid_block.resnets.1", RESIDUAL
    for i, kind in enumerate(up):
        for j in range(layers + 1):
            yield f"up_blocks.{i}.resnets.{j}", RESIDUAL
        if kind.startswith("Attn"):
            yield f"up_blocks.{i}.attentions.0", ATTENTION
        if i + 1 < len(up):
            yield f"up_blocks.{i}.skip_norm", PLAIN
            yield f"up_blocks.{i}.skip_conv", PLAIN
            yield f"up_blocks.{i}.resnet_up", RESIDUAL
    yield "conv_norm_out", PLAIN
    yield "conv_out", PLAIN


def _check(config: dict[str, Any], source: Path) -> None:
    kinds = {*config["down_block_types"], *config["up_block_types"]}
    if kinds - BLOCKS or config["time_embedding_type"] != "fourier":
        raise PDSError(
            f"{source} is a UNet2DModel of {', '.join(sorted(kinds))} with a {config['time_embedding_type']} embedding, as "
            "DDPM has, and predicts noise: load it as a DDPM; only NCSN++ (Skip blocks, fourier) is read here"
        )
    widths, groups, head = config["block_out_channels"], config["norm_num_groups"], config["attention_head_dim"]
    attentive = {c for c, kind in zip(widths, config["down_block_types"], strict=True) if kind.startswith("Attn")}
    # None of these options shows in names or shapes.
    fits = {
        "norm_eps": math.isclose(config["norm_eps"], 1e-6),
        "mid_block_scale_factor": math.isclose(config["mid_block_scale_factor"], math.sqrt(2), rel_tol=1e-6),
        "act_fn": config["act_fn"] in ("silu", "swish"),
        "class_embed_type": config["class_embed_type"] is None,
        "attention_head_dim": head is None or {head} == attentive | {widths[-1]},
        "norm_num_groups": groups is None or {groups} == {min(c // 4, 32) for c in (widths[0], widths[-1])},
        "attn_norm_num_groups": config["attn_norm_num_groups"] is None,
        # Attention in Skip blocks has 32 groups at every width, NCSN++ has fewer groups below a width of 128.
        "block_out_channels": all(c >= 128 for c in attentive),
    }
    wrong = next((name for name, fit in fits.items() if not fit), None)
    if wrong is not None:
        raise PDSError(f"{source} has {wrong}={config[wrong]}, which makes it another network than NCSN++: it cannot be read")


def _describe(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its traits, and the arguments of `pds.models.ncsnpp.ncsnpp` in full."""
    widths, size = config["block_out_channels"], config["sample_size"]
    traits: dict[str, Any] = {
        "fir": True,
        "skip_rescale": True,
        "scale_by_sigma": True,
        "centred": not config["center_input_sample"],
    }
    settings: dict[str, Any] = {}
    if isinstance(size, int):
        heights = zip((size >> i for i in range(len(widths))), config["down_block_types"], strict=True)
        settings["shape"] = [config["in_channels"], size, size]
        settings["attention"] = [height for height, kind in heights if kind.startswith("Attn")]
        traits["size"] = size
    settings |= {"width": widths[0], "multipliers": [c // widths[0] for c in widths], "blocks": config["layers_per_block"]}
    settings |= {"embedding": "fourier", "block": "biggan", "output": "output_skip", "input": "input_skip", "combine": "sum"}
    settings |= {name: value for name, value in traits.items() if name != "size"}
    return traits, settings
