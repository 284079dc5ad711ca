import json
import math

import pytest
import torch
from conftest import GOLDEN, Golden

from pds.errors import PDSError
from pds.models.ncsnv2 import NCSNv2, max_pool, ncsnv2
from pds.processes.ladders import geometric_ladder

DEPTH = {"NCSNv2": "base", "NCSNv2Deeper": "deeper", "NCSNv2Deepest": "deepest"}
FORWARD = sorted(path.stem for path in (GOLDEN / "forward").glob("ncsnv2*.npz"))
KEYS = sorted(path.stem for path in (GOLDEN / "keys").glob("ncsnv2_*.json"))


def of_config(name, config, sigmas):
    model, data = config["model"], config["data"]
    return NCSNv2(data["channels"], model["ngf"], DEPTH[name], sigmas, rescale=not data["rescaled"])


@pytest.mark.parametrize("case", FORWARD)
def test_the_published_network(case):
    golden = Golden(f"forward/{case}")
    weights = golden.under("w/")
    network = of_config(golden.json("meta")["model"], golden.json("config"), torch.zeros_like(weights["sigmas"])).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        y = network(golden["x"], golden["labels"])
    expected = golden["y"]
    worst = ((y - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))).max()
    assert worst < 1e-4


@pytest.mark.parametrize("name", KEYS)
def test_the_published_size_has_the_published_parameters(name):
    published = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    with torch.device("meta"):
        levels = torch.empty(published["config"]["model"]["num_classes"], dtype=torch.float64)
        network = of_config(published["model"], published["config"], levels)
    state = network.state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == list(published["state_dict"].items())
    assert [name for name, _ in network.named_parameters()] == published["trainable_parameters_in_order"]
    assert [name for name, _ in network.named_buffers()] == published["buffers"]
    assert sum(p.numel() for p in network.parameters()) == published["num_parameters"]
    assert published["dtypes"] == {"default": "float32", "exceptions": {}}
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("size", [(7, 4), (1, 2), (16, 16)])
def test_the_fast_maximum_is_the_pooling(size):
    x = torch.randn(2, 3, *size) - 3
    assert torch.equal(max_pool(x), torch.nn.functional.max_pool2d(x, 5, stride=1, padding=2))


def checkpoint(path, sigmas):
    """A base network of width 2 with these levels, as the authors' code saves one."""
    torch.manual_seed(0)
    network = NCSNv2(1, 2, "base", sigmas)
    torch.save([{f"module.{key}": value for key, value in network.state_dict().items()}], path)
    return network


def test_the_score_of_a_checkpoint_is_its_network_over_sigma(tmp_path):
    # The authors' ladder: logarithms in float64, levels in float32.
    sigmas = torch.linspace(math.log(140), math.log(0.01), 6, dtype=torch.float64).exp().float()
    network = checkpoint(tmp_path / "c.pth", sigmas)
    model, centred = (
        ncsnv2((1, 4, 6), 2, "base", 140, 0.01, 6, str(tmp_path / "c.pth"), rescale=rescale) for rescale in (True, False)
    )
    x = torch.rand(2, 1, 4, 6)
    with torch.no_grad():
        expected = network.eval()(x, torch.tensor([1, 5]))
        assert torch.equal(model.score(x, sigmas[[1, 5]]), expected)
        assert torch.equal(centred.score(2 * x - 1, sigmas[[1, 5]]), expected)
        # The network itself does not see the level.
        torch.testing.assert_close(network(x, torch.tensor([0, 0])) * sigmas[0], expected * sigmas[[1, 5]][:, None, None, None])


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        (geometric_ladder(190, 0.01, 6), "set sigma_begin=190.0 sigma_end=0.01"),
        (geometric_ladder(140, 0.02, 6), "set sigma_begin=140.0 sigma_end=0.02"),
        (torch.linspace(140, 0.01, 6), "level 1: 112.002, model 20.7445.*geometric progression"),
        (geometric_ladder(140, 0.01, 5), "another width, number of levels"),
    ],
)
def test_a_checkpoint_of_other_noise_levels_is_refused(tmp_path, levels, says):
    checkpoint(tmp_path / "c.pth", levels)
    with pytest.raises(PDSError, match=says) as error:
        ncsnv2((1, 4, 4), 2, "base", 140, 0.01, 6, checkpoint=str(tmp_path / "c.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((3, 31, 32), 4, "base"), "divisible by 2 for NCSNv2 base, got 31x32"),
        (((3, 32, 30), 4, "deeper"), "divisible by 4 for NCSNv2 deeper, got 32x30"),
        (((1, 28, 28), 4, "deepest"), "divisible by 8 for NCSNv2 deepest, got 28x28"),
    ],
)
def test_what_the_network_cannot_take_is_refused(arguments, says):
    with pytest.raises(PDSError, match=says):
        ncsnv2(*arguments, 50, 0.01, 3)
