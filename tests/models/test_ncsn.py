import json

import pytest
import torch
from conftest import GOLDEN, Golden

from pds.errors import PDSError
from pds.models.ncsn import NCSN, ncsn
from pds.models.scores import LadderScore
from pds.processes.ladders import geometric_ladder


@pytest.mark.parametrize("case", ["ncsn_mnist28", "ncsn_rgb16", "ncsn_rect_logit", "ncsn_lowvariance"])
def test_the_published_network(case):
    golden = Golden(f"forward/{case}")
    config = golden.json("config")
    network = NCSN(
        config["data"]["channels"],
        config["model"]["ngf"],
        config["model"]["num_classes"],
        rescale=not config["data"]["logit_transform"],
    ).eval()
    network.load_state_dict(golden.under("w/"))
    with torch.no_grad():
        y = network(golden["x"], golden["labels"])
    expected = golden["y"]
    worst = ((y - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))).max()
    assert worst < 1e-4


@pytest.mark.parametrize("name", ["ncsn_mnist", "ncsn_cifar10"])
def test_the_published_size_has_the_published_parameters(name):
    published = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    model = published["config"]["model"]
    with torch.device("meta"):
        network = NCSN(published["config"]["data"]["channels"], model["ngf"], model["num_classes"])
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes.items()) == list(published["state_dict"].items())
    assert sum(p.numel() for p in network.parameters()) == published["num_parameters"]


def test_a_ladder_score_picks_the_level_of_each_sigma():
    sigmas = geometric_ladder(1, 0.01, 10)
    score = LadderScore(torch.nn.Identity(), sigmas)
    assert score.label(sigmas.float()).tolist() == list(range(10))
    assert score.label(torch.tensor([0.97, 0.0101, 5.0])).tolist() == [0, 9, 0]
    # Nearest on a logarithmic scale: there 0.79 is nearer to 1; on a linear scale it is nearer to 0.599 (0.19 against 0.21).
    assert score.label(torch.tensor([0.79])).tolist() == [0]


def test_odd_images_are_refused():
    with pytest.raises(PDSError, match="divisible by 2 for NCSN, got 27x28"):
        ncsn((1, 27, 28), 4, 1.0, 0.01, 2)
