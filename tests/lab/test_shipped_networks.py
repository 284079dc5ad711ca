"""Every network that ships with this package loads by its configuration and knows the noise in real images."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_configurations import composed

from pds.data.images import ImageSource, to_unit
from pds.errors import MissingError, PDSError
from pds.lab.config import build
from pds.lab.train import save_network, ship, train
from pds.models.safetensors_files import read_safetensors
from pds.models.scores import LadderScore, Model
from pds.training import denoising_loss

DIGITS = ["ncsn_small", "ncsnpp_small", "ncsnpp_small_skip", "ncsnpp_small_classes", "ddpmpp_small", "cld_small"]
COLOUR = ["ncsnpp_small_colour", "ncsnpp_small_colour_classes"]
SHIPPED = [*((model, "mnist") for model in DIGITS), *((model, "cifar10_jpeg") for model in COLOUR)]


def beside_data(model: str, data: str, root: Path) -> tuple[Model, ImageSource]:
    """A shipped network, and the images that it was trained on."""
    if data == "cifar10_jpeg" and not (root / "cifar10-jpeg").is_dir():
        pytest.skip("there is no cifar10-jpeg in PDS_DATA: unpack cifar10-jpeg.tar.xz")
    cfg = composed(f"model={model}", f"dataset={data}", f"dataset.source.root={root}")
    return build(cfg.model), build(cfg.dataset).images


@pytest.mark.parametrize(("model", "data"), SHIPPED)
def test_a_shipped_network_denoises(model: str, data: str, data_root: Path) -> None:
    network, images = beside_data(model, data, data_root)
    low, high = network.data_range
    x = low + (high - low) * to_unit(images.read(np.arange(0, 1600, 100)))
    shape = (len(x), network.score.halves * x.shape[1], *x.shape[2:])
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for sigma in (0.1, 1.0):
        with torch.inference_mode():
            losses.append(denoising_loss(network.score, x, torch.full((len(x),), sigma, dtype=torch.float64), z).item())
    # Half the variance of the noise that is left: 0.5 for a network that sees nothing.
    assert max(losses) < 0.13
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("model", "data"), [pair for pair in SHIPPED if pair[0].endswith("classes")])
def test_a_shipped_network_with_classes_denoises_the_true_class_best(model: str, data: str, data_root: Path) -> None:
    network, images = beside_data(model, data, data_root)
    chosen = np.linspace(0, len(images) - 1, 200).astype(int)
    x, sigma = to_unit(images.read(chosen)), torch.full((200,), 3.0, dtype=torch.float64)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert images.labels is not None
    true = torch.from_numpy(images.labels[chosen].astype(np.int64))
    with torch.inference_mode():
        losses = [
            denoising_loss(network.score, x, sigma, z, labels).item()
            for labels in (true, -torch.ones_like(true), (true + 5) % 10)
        ]
    assert losses == sorted(losses) and losses[2] > 1.01 * losses[0]


def test_shipping_halves_what_is_trained_and_keeps_the_frequencies(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    tiny = ["model=ncsnpp_small", "model.width=4", "model.attention=[]", "dataset=folder", "dataset.shape=[1,8,8]"]
    fast = ["trainer.iterations=2", "trainer.batch_size=4", "trainer.compile=false", "trainer.bf16=false", "name=tiny"]
    train(composed(*tiny, f"dataset.source.root={tmp_path}", f"outputs={tmp_path}", *fast, config="train"))
    folder = tmp_path / "train" / "tiny"
    ship(folder, tmp_path)
    (whole, said), (half, says) = (read_safetensors(path / "tiny.safetensors") for path in (folder, tmp_path))
    assert says == said
    assert half.keys() == whole.keys()
    exact = {name for name, value in half.items() if value.dtype == whole[name].dtype}
    assert exact == {"sigmas", "all_modules.0.W"}
    for name, value in whole.items():
        assert torch.equal(half[name], value if name in exact else value.half()), name
    assert build(composed(*tiny, f"model.checkpoint={tmp_path / 'tiny.safetensors'}").model).checkpoint.ema
    state = torch.load(folder / "training.pt")
    torch.save(state | {"ema": {"a": torch.ones(2)}}, folder / "training.pt")
    with pytest.raises(PDSError, match=r"its ema are of another network.*: give the folder of another training"):
        ship(folder, tmp_path)
    (folder / "training.pt").unlink()
    with pytest.raises(MissingError, match=r"has no training\.pt"):
        ship(folder, tmp_path)


def test_a_layer_with_two_names_is_averaged_under_both(tmp_path: Path) -> None:
    layer = torch.nn.Conv2d(1, 1, 1)
    score = LadderScore(torch.nn.Sequential(layer, torch.nn.BatchNorm2d(1), layer), torch.ones(1))
    ema = {name: value + 1 for name, value in score.named_parameters()}
    for half in (False, True):
        save_network(score, ema, tmp_path / "a.safetensors", {"model": {}}, 1, half)
        state, _ = read_safetensors(tmp_path / "a.safetensors")
        written = ema["network.0.weight"].half() if half else ema["network.0.weight"]
        assert torch.equal(state["0.weight"], written) and torch.equal(state["2.weight"], written)
        assert torch.equal(state["1.running_var"], torch.ones(1))


def test_a_folder_that_is_no_training_is_one_sentence(tmp_path: Path) -> None:
    draw, folder = random.Random(0), tmp_path / "mine"
    folder.mkdir()
    (folder / "training.pt").write_bytes(b"x")
    whole = {"name": "mine", "model": {"_target_": "pds.models.ncsn.ncsn"}, "trainer": {"iterations": 6}}
    odd = [None, True, -1, "x", [], [1], {"a": 1}, 10**30, "../../x", "/x", {"_target_": "os.abort"}]
    for _ in range(60):
        key, value = draw.choice(list(whole)), draw.choice(odd)
        found = whole | {key: value} if draw.random() < 0.7 else {k: v for k, v in whole.items() if k != key}
        (folder / "config.yaml").write_text(json.dumps(found))
        with pytest.raises(PDSError) as told:
            ship(folder, tmp_path / "out")
        assert str(told.value).isprintable() and len(str(told.value)) < 600
    assert not (tmp_path / "out").exists()
