"""The network of CLD against vectors and the key listing of the reference implementation."""

import json

import pytest
import torch
from conftest import GOLDEN, Golden

from pds.errors import OptionError
from pds.models.ncsnpp import NCSNpp, ncsnpp
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.forward import VariancePreserving

SMALL = {
    "shape": (2, 8, 8),
    "process": CriticallyDamped(),
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "scale_by_sigma": False,
    "centred": True,
    "dropout": 0.0,
}


def test_outputs_are_the_published_ones():
    golden = Golden("cld/network")
    network = ncsnpp(**SMALL).score.network
    network.load_state_dict(golden.under("w/"))
    with torch.no_grad():
        y = network(golden["x"], golden["t"])
    assert y.shape == (2, 2, 8, 8)
    assert (y - golden["y"]).abs().max() < 1e-4 * golden["y"].abs().max()


def test_full_size_names_shapes_and_order_are_the_published_ones():
    listing = json.loads((GOLDEN / "keys" / "cld_cifar10.json").read_text())
    with torch.device("meta"):
        network = NCSNpp(3, 32, 128, (1, 2, 2, 2), 8, (16,), None, scale_by_sigma=False, centred=True, velocity=True)
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == listing["state_dict"]
    assert list(network.state_dict()) == list(listing["state_dict"])
    assert [name for name, p in network.named_parameters() if p.requires_grad] == listing["trainable_parameters_in_order"]
    assert sum(p.numel() for p in network.parameters()) == listing["num_parameters"] == 107_593_987


@pytest.mark.parametrize("which", [None, "raw"])
def test_checkpoints_of_the_authors_layout_load(tmp_path, which):
    weights = Golden("cld/network").under("w/")
    trained = [name for name, p in ncsnpp(**SMALL).score.network.named_parameters() if p.requires_grad]
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": [weights[name] / 2 for name in trained]}
    state = {"optimizer": {}, "model": {f"module.{name}": value for name, value in weights.items()}, "ema": ema, "step": 3}
    torch.save(state, tmp_path / "checkpoint.pth")
    model = ncsnpp(**SMALL, checkpoint=tmp_path / "checkpoint.pth", weights=which)
    for name, value in model.score.network.state_dict().items():
        assert torch.equal(value, weights[name] if which == "raw" or name not in trained else weights[name] / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centred": False}, "centred must be true for a CLD network"),
        ({"embedding": "positional"}, "embedding must be fourier for a CLD network"),
        ({"scale_by_sigma": True}, "scale_by_sigma must be false for a CLD process"),
        ({"process": VariancePreserving()}, "embedding must be positional for a VP network"),
    ],
)
def test_networks_and_processes_that_do_not_belong_together_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ncsnpp(**SMALL | options)
