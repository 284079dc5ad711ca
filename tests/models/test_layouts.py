"""Weights in the layouts of practice: with any nesting or wrapper, the average is found, or refused by name."""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import seeds
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from pds.errors import OptionError
from pds.models.checkpoints import load_weights


class Small(nn.Module):
    """Some layers, a parameter that is not trained, and a buffer."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem = nn.Linear(2, 3)
        self.body = nn.ModuleList([nn.Linear(3, 3), nn.LayerNorm(3)])
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.frequencies = nn.Parameter(torch.full((2,), float(seed)), requires_grad=False)
        self.register_buffer("sigmas", torch.tensor([2.0, 1.0]))


WRAPPERS = ["module.", "_orig_mod.", "model.", "net.", "network.", "score_fn."]
KEYS = ["model", "state_dict", "model_state_dict", "net", "network", "unet", "generator"]
AVERAGES = [
    "ema",
    "ema_model",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
    "EMAModel",
    "shadow",
    "swa_model",
]
BESIDE = [
    ("step", np.int64(5)),
    ("loss", np.float32(0.5)),
    ("args", argparse.Namespace(lr=1e-3, ema_decay=0.99)),
    ("folder", Path("runs/first")),
    ("config", OmegaConf.create({"model": {"width": 4}, "ema_rate": 0.99})),
    ("ema_decay", 0.999),
    ("use_ema", True),
    ("rng", torch.zeros(16, dtype=torch.uint8)),
    ("epochs", [1, 2]),
    ("names", {"a", "b"}),
    ("ema_scheduler", None),
]


def trained(network):
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def optimizer(network):
    adam = torch.optim.Adam(p for p in network.parameters() if p.requires_grad)
    for p in trained(network):
        network.get_parameter(p).grad = torch.ones_like(network.get_parameter(p))
    adam.step()
    return adam.state_dict()


def wrapped(state, rng, at_most=3):
    prefix = "".join(rng.choice(WRAPPERS, rng.integers(at_most + 1)))
    return {prefix + name: value for name, value in state.items()}


def averages(network, rng):
    """An average of the network, in one of the forms that people save."""
    state = trained(network) if rng.random() < 0.5 else network.state_dict()
    match rng.integers(7):
        case 0:
            return list(trained(network).values())
        case 1:
            return {"decay": 0.999, "num_updates": 7, "shadow_params": list(trained(network).values())} | {
                "collected_params": list(trained(Small(9)).values())
            }
        case 2:
            return {str(rng.choice(["shadow", "params", "state_dict", "module"])): wrapped(state, rng, 1), "decay": 0.99}
        case 3:
            # of ema_pytorch, which keeps the raw ones beside
            raw = {f"online_model.{name}": value for name, value in Small(9).state_dict().items()}
            return raw | {f"ema_model.{name}": value for name, value in state.items()} | {"initted": torch.ones(1)}
        case 5:  # of torch_ema, with the parameters that are not trained
            return {"shadow_params": [p.detach() for p in network.parameters()], "collected_params": None}
        case 4:
            return {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in network.state_dict().items()}
    return wrapped(state, rng)


def drawn(rng, with_average):
    """The raw weights, the averaged ones, and content that holds them."""
    raw, average = Small(1), Small(2)
    table = wrapped(raw.state_dict(), rng)
    match rng.integers(4):
        case 0:  # of the authors of NCSN and NCSNv2
            adam = optimizer(Small(1))
            content = [table, adam, 3, 500, wrapped(trained(average), rng)] if with_average else [table, adam]
        case 1 if not with_average:
            content = dict(table)
        case 2:  # of Lightning
            attribute = rng.choice(["model", "net"])
            content = {"state_dict": {f"{attribute}.{name}": value for name, value in table.items()}}
            content |= {"epoch": 3, "hyper_parameters": argparse.Namespace(width=4), "loops": {"fit": {"state": {}}}}
            if with_average:
                content["state_dict"] |= {
                    f"ema_model.{name}": value for name, value in wrapped(average.state_dict(), rng).items()
                }
        case _:
            content = {str(rng.choice(KEYS)): table, "optimizer": optimizer(Small(1))}
            if with_average:
                content[str(rng.choice(AVERAGES))] = averages(average, rng)
    if isinstance(content, dict):
        beside = [BESIDE[i] for i in rng.choice(len(BESIDE), rng.integers(4), replace=False)]
        # A tensor in the table itself would be one of the network's.
        content |= {key: value for key, value in beside if key != "rng" or table.keys().isdisjoint(content)}
    return raw, average, content


def saved(content, folder, rng):
    """A file of the content, in a format that can hold it."""
    table = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    if table and rng.random() < 0.5:
        save_file({name: value.contiguous().clone() for name, value in content.items()}, folder / "w.safetensors")
        return folder / "w.safetensors"
    torch.save(
        content,
        folder / "w.pth",
        pickle_protocol=int(rng.integers(2, 6)),
        _use_new_zipfile_serialization=bool(rng.integers(2)),
    )
    return folder / "w.pth"


def assert_loaded(network, names, expected):
    found = network.state_dict()
    assert all(torch.equal(found[name], expected.state_dict()[name]) for name in names)


@seeds(60)
def test_the_average_is_taken_and_the_last_weights_on_demand(tmp_path, seed):
    rng = np.random.default_rng(seed)
    raw, average, content = drawn(rng, with_average=True)
    path = saved(content, tmp_path, rng)
    names = trained(raw)
    for which, expected in ((None, average), ("ema", average), ("raw", raw)):
        network = Small()
        assert load_weights(network, path, which).ema is (which != "raw")
        assert_loaded(network, names, expected)
        assert network.frequencies[0] in (1, 2)


@seeds(60)
def test_without_an_average_the_last_weights_are_taken_and_an_average_asked_for_is_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    raw, _, content = drawn(rng, with_average=False)
    path = saved(content, tmp_path, rng)
    for which in (None, "raw"):
        network = Small()
        assert not load_weights(network, path, which).ema
        assert_loaded(network, raw.state_dict(), raw)
    with pytest.raises(OptionError, match=r"weights is ema, but .* does not tell of averaged weights: leave it out"):
        load_weights(Small(), path, "ema")


class EMAHelper:
    pass


UNMATCHED = [
    lambda state: {name: value for name, value in state.items() if name != "body.0.bias"},
    lambda state: {f"x{name}": value for name, value in state.items()},
    lambda state: {name.replace(".", ""): value for name, value in state.items()},
    lambda state: list(state.values())[1:],
    lambda state: {"shadow_params": list(state.values())[:-1]},
    lambda state: {"params": [*state.values(), torch.zeros(2)]},
    lambda state: {"shadow": {name: value for name, value in state.items() if name.startswith("stem")}},
    lambda state: EMAHelper(),
    lambda state: {"helper": EMAHelper()},
]


@seeds(60)
def test_what_looks_like_an_average_and_cannot_be_matched_is_refused_by_name(tmp_path, seed):
    rng = np.random.default_rng(seed)
    key, raw = str(rng.choice(AVERAGES[:6])), Small(1)
    content = {str(rng.choice(KEYS)): wrapped(raw.state_dict(), rng), key: UNMATCHED[seed % len(UNMATCHED)](trained(raw))}
    torch.save(content, tmp_path / "w.pth")
    network = Small()
    for which in (None, "ema"):
        with pytest.raises(OptionError, match=rf"under '{re.escape(key)}.*set weights=raw") as error:
            load_weights(network, tmp_path / "w.pth", which)
        assert "\n" not in str(error.value)
    assert_loaded(network, raw.state_dict(), Small())
    load_weights(network, tmp_path / "w.pth", "raw")
    assert_loaded(network, raw.state_dict(), raw)


def test_an_average_alone_is_taken_and_is_not_raw(tmp_path):
    torch.save(
        {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in Small(2).state_dict().items()}, tmp_path / "w.pth"
    )
    network = Small()
    assert load_weights(network, tmp_path / "w.pth").ema is True
    assert_loaded(network, network.state_dict(), Small(2))
    with pytest.raises(OptionError, match=r"weights is raw, but .* holds averaged weights alone"):
        load_weights(network, tmp_path / "w.pth", "raw")


def test_two_networks_in_one_file_are_not_chosen_between(tmp_path):
    torch.save({"model": Small(1).state_dict(), "teacher": Small(2).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(OptionError, match=r"holds the network several times \(under 'model', 'teacher'\): keep one of them"):
        load_weights(Small(), tmp_path / "w.pth")


def test_a_larger_network_of_the_same_names_beside_is_no_second_copy(tmp_path):
    larger = {name: torch.zeros(7, 7) for name in Small().state_dict()}
    torch.save({"teacher": larger, "student": Small(1).state_dict()}, tmp_path / "w.pth")
    network = Small()
    load_weights(network, tmp_path / "w.pth")
    assert_loaded(network, network.state_dict(), Small(1))


def test_an_average_that_an_optimizer_keeps_is_found(tmp_path):
    states = [{"opt": optimizer(Small(1)), "ema": list(trained(Small(2)).values()), "current_step": 3}]
    torch.save({"state_dict": Small(1).state_dict(), "optimizer_states": states}, tmp_path / "w.pth")
    network = Small()
    assert load_weights(network, tmp_path / "w.pth").ema is True
    assert_loaded(network, trained(network), Small(2))


def test_tables_that_hold_themselves_are_refused_at_once(tmp_path):
    inside = {"stem.weight": torch.zeros(3, 2)}
    for _ in range(30):
        inside = {f"model{i}": inside for i in range(8)}
    itself = {"model": Small(1).state_dict()}
    itself |= {f"again{i}": itself for i in range(8)}
    for content in (inside, itself):
        torch.save(content, tmp_path / "w.pth")
        begun = time.process_time()
        with pytest.raises(OptionError, match="has more tables than any network"):
            load_weights(Small(), tmp_path / "w.pth")
        assert time.process_time() - begun < 5
