"""NCSN++ and DDPM++ against vectors and key listings of the reference implementation."""

import json

import pytest
import torch
from conftest import GOLDEN, Golden

from pds.errors import OptionError
from pds.models.ncsnpp import NCSNpp, ncsnpp
from pds.models.safetensors_files import save_weights
from pds.processes.discrete import DiscreteVariancePreserving, beta_schedule
from pds.processes.ladders import geometric_ladder
from pds.speed.plain import PlainNCSNpp


def published(config, device="cpu"):
    """The network that a configuration of the reference describes."""
    data, model = config["data"], config["model"]
    sigmas = geometric_ladder(model["sigma_max"], model["sigma_min"], model["num_scales"])
    with torch.device(device):
        return NCSNpp(
            channels=data["num_channels"],
            size=data["image_size"],
            width=model["nf"],
            multipliers=model["ch_mult"],
            blocks=model["num_res_blocks"],
            attention=model["attn_resolutions"],
            sigmas=sigmas,
            embedding=model["embedding_type"],
            block=model["resblock_type"],
            fir=model["fir"],
            resample_conv=model["resamp_with_conv"],
            output=model["progressive"],
            input=model["progressive_input"],
            combine=model["progressive_combine"],
            skip_rescale=model["skip_rescale"],
            scale_by_sigma=model["scale_by_sigma"],
            conditional=model["conditional"],
            centred=data["centered"],
            dropout=model["dropout"],
        ).eval()


FORWARD = sorted(path.stem for path in (GOLDEN / "forward").glob("ncsnpp_*.npz"))
KEYS = sorted(path.stem for path in (GOLDEN / "keys").glob("ncsnpp_*.json"))


@pytest.mark.parametrize("form", [lambda network: network, PlainNCSNpp], ids=["ours", "plain"])
@pytest.mark.parametrize("case", FORWARD)
def test_outputs_are_the_published_ones(case, form):
    golden = Golden(f"forward/{case}")
    network = published(golden.json("config"))
    network.load_state_dict(golden.under("w/"))
    with torch.no_grad():
        y = form(network)(golden["x"], golden["time_cond"])
    scale = golden["y"].abs().amax((1, 2, 3), keepdim=True)
    assert ((y - golden["y"]).abs() / scale).max() < 1e-4
    assert y.dtype == golden["y"].dtype


@pytest.mark.parametrize("case", KEYS)
def test_full_size_names_shapes_and_order_are_the_published_ones(case):
    listing = json.loads((GOLDEN / "keys" / f"{case}.json").read_text())
    network = published(listing["config"], device="meta")
    state = network.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == listing["state_dict"]
    assert list(state) == list(listing["state_dict"])
    assert {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()} == {
        name: listing["dtypes"]["exceptions"].get(name, "float32") for name in state
    }
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trainable == listing["trainable_parameters_in_order"]
    assert sum(p.numel() for p in network.parameters()) == listing["num_parameters"]


@pytest.mark.parametrize(("embedding", "features"), [("fourier", 16), ("positional", 8)])
def test_a_class_adds_its_column_to_the_features_of_the_noise_as_in_edm(embedding, features):
    def made(classes):
        torch.manual_seed(0)
        return NCSNpp(1, 8, 8, (1, 2), 1, (4,), geometric_ladder(16, 0.01, 10), embedding, fir=False, classes=classes).eval()

    plain, labelled = made(0), made(5)
    extra = dict(labelled.named_parameters()).keys() - dict(plain.named_parameters()).keys()
    assert extra == {"class_embedding.weight", "class_embedding.bias"}  # and the others are drawn as before
    assert all(torch.equal(value, labelled.state_dict()[name]) for name, value in plain.state_dict().items())
    for name, parameter in labelled.named_parameters():  # nothing that starts as next to nothing
        torch.nn.init.normal_(parameter, std=0.2)
        if name not in extra:
            plain.get_parameter(name).data.copy_(parameter)
    x, condition, labels = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 3.0, 2.0]), torch.tensor([4, -1, 0])
    weight, bias = labelled.class_embedding.weight, labelled.class_embedding.bias
    # EDM multiplies the one-hot label by sqrt(classes). No class is zeros, plus the bias.
    shift = bias + 5**0.5 * torch.stack([weight[:, 4], torch.zeros(features), weight[:, 0]])
    first = plain._dense[0]
    expected = first.bias + shift @ first.weight.T
    first.register_forward_hook(lambda module, given, output: output - module.bias + expected)
    with torch.no_grad():
        # The bias is added in another order, so the difference is that of float32 rounding between values around 1.
        torch.testing.assert_close(labelled(x, condition, labels), plain(x, condition), rtol=1e-5, atol=1e-5)
        assert torch.equal(labelled(x, condition), labelled(x, condition, torch.full((3,), -1)))


@pytest.mark.parametrize(("classes", "dropout", "known"), [(0, 0.0, True), (3, 0.0, False), (3, 0.1, True)])
def test_what_training_dropped_matters_to_networks_with_classes_alone(tmp_path, classes, dropout, known):
    options = {
        "width": 4,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [],
        "fir": False,
        "input": "none",
        "classes": classes,
    }
    about = {"model": {"kind": "ncsnpp", "shape": [1, 8, 8], **options}, "trainer": {"label_dropout": dropout}}
    path = tmp_path / "w.safetensors"
    save_weights(ncsnpp((1, 8, 8), **options).score.network.state_dict(), path, {"config": json.dumps(about)})
    assert ncsnpp((1, 8, 8), **options, checkpoint=path).unconditional == known


def test_a_network_on_a_chain_is_told_the_labels_of_the_chain():
    chain = DiscreteVariancePreserving(beta_schedule("linear", 1e-4, 0.02, 100))
    options = {"embedding": "positional", "scale_by_sigma": False, "centred": True, "blocks": 1, "attention": ()}
    score = ncsnpp((1, 8, 8), process=chain, width=8, multipliers=(1, 2), **options).score
    sigma = chain.ladder[[0, -1]]
    torch.testing.assert_close(score.label(sigma, chain.time(sigma)), torch.tensor([99.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(("width", "embedding"), [(9, "fourier"), (100, "fourier"), (5, "positional")])
def test_a_width_that_no_level_can_have_is_refused(width, embedding):
    with pytest.raises(OptionError) as error:
        ncsnpp((1, 8, 8), width=width, multipliers=(1, 2), blocks=1, attention=(), embedding=embedding)
    assert error.value.name == "width"
