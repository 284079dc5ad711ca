"""A user's own network on the command line, from the user's file and without a file in the checkout."""

import json
import sys

import numpy as np
import pytest
import torch
from command_line import command
from PIL import Image
from test_configurations import composed

import pds
from pds.errors import PDSError
from pds.lab.config import build, build_model, resolved
from pds.lab.schema import CHOICES, PartialTarget
from pds.lab.train import save_network, train
from pds.sampling import DEFAULT
from pds.training import Trainer

CODE = """
from __future__ import annotations

from dataclasses import dataclass

import scaling  # what lies beside it
from torch import nn

@dataclass
class Sizes:
    width: int = 2

class Tiny(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x, sigma):
        return scaling.half(self.layers(x / (1 + sigma[:, None, None, None])))

def fails(width=2):
    raise KeyError("no such width")

def nothing():
    return {}

three = 3
"""


@pytest.fixture
def network(tmp_path, monkeypatch):
    """mynet.py with weights beside it, in a folder that this process is in."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "scaling", raising=False)
    (tmp_path / "scaling.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "mynet.py").write_text(CODE)
    made = build_by_hand(tmp_path)
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save({name: torch.randn_like(value) for name, value in made.state_dict().items()}, tmp_path / f"w{seed}.pt")
    return tmp_path


def build_by_hand(folder, weights=None):
    sys.path.append(str(folder))
    scope = {"__name__": __name__}
    exec((folder / "mynet.py").read_text(), scope)
    made = scope["Tiny"]()
    if weights:
        made.load_state_dict(torch.load(folder / weights))
    return made


def overrides(folder, weights="w1.pt", **changed):
    given = {
        "model": "own",
        "model.make": f"{folder}/mynet.py:Tiny",
        "model.predicts": "data",
        "model/process": "ve",
        "model.data_range": "[-1,1]",
        "model.checkpoint": folder / weights,
    }
    return [f"{key}={value}" for key, value in (given | changed).items()]


def test_a_network_of_ones_own_is_sampled_from_the_command_line(network):
    rest = ["sampler/corrector=none", "sampler.iterations=3", "debug=tiny", "metric=none", "images=4", f"outputs={network}/out"]
    for weights in ("w1.pt", "w2.pt", "w1.pt"):
        done = command("run.py", *overrides(network, weights), *rest)
        assert done.returncode == 0, done.stderr
    results = sorted((network / "out" / "debug").glob("*/result.json"))
    assert len(results) == 2  # for two weights files; the third command found its run done
    sampler = pds.PredictorCorrector(3, pds.ReverseDiffusion(), None)
    for weights in ("w1.pt", "w2.pt"):
        model = pds.wrap(
            build_by_hand(network, weights),
            predicts="data",
            process=pds.VarianceExploding(0.01, 50.0, 1000),
            shape=(1, 28, 28),
            data_range=(-1, 1),
        )
        (result,) = (path for path in results if json.loads(path.read_text())["checkpoint"]["file"] == weights)
        with np.load(next(result.parent.glob("samples/*.npz"))) as shard:
            assert np.array_equal(shard["images"], pds.sample(model, sampler, images=4).images.numpy())


def test_latents_are_sampled_and_shown(network):
    (network / "mynet.py").write_text(
        "from torch import nn\n\nclass Tiny(nn.Identity):\n    def forward(self, x, s):\n        return 0 * x\n"
    )
    given = overrides(network, **{"model.checkpoint": "null", "model.shape": "[4,200,4]"})
    rest = ["sampler=edm", "sampler.iterations=2", "debug=tiny", "metric=none", "images=2", f"outputs={network}/out"]
    done = command("run.py", *given, *rest)
    assert done.returncode == 0, done.stderr
    (grid,) = (network / "out" / "debug").glob("*/grid.png")
    with Image.open(grid) as shown:
        assert shown.size[0] >= 2 * 4 * 4  # the channels lie beside each other
    assert "data:image" in (network / "out" / "debug" / "report.html").read_text()


def test_a_mask_need_not_be_finite(network):
    masked = CODE.replace("from torch import nn", "import torch\nfrom torch import nn")
    masked = masked.replace("super().__init__()", "super().__init__(); self.register_buffer('mask', -torch.ones(2) / 0)")
    (network / "mynet.py").write_text(masked)
    weights = torch.load(network / "w1.pt") | {"mask": torch.tensor([0.0, -torch.inf])}
    torch.save(weights, network / "w1.pt")
    made = build(composed(*overrides(network)).model).score.network
    assert torch.equal(made.mask, weights["mask"])


def test_lazy_layers_have_their_shapes_before_the_weights_are_read(network):
    lazy = CODE.replace("nn.Conv2d(1, width,", "nn.LazyConv2d(width,")
    (network / "mynet.py").write_text(lazy)
    made = build(composed(*overrides(network)).model).score.network
    weights = torch.load(network / "w1.pt")
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())


def test_other_code_is_another_run(network):
    cfg = composed(*overrides(network))
    before = build(cfg.model).beside_weights
    (network / "mynet.py").write_text(CODE.replace("SiLU", "ReLU"))
    assert build(cfg.model).beside_weights != before


def test_other_code_in_a_file_that_it_imports_is_another_run(network):
    """Modules beside the file can be imported, so their code counts as well; that of installed packages does not."""
    (network / "blocks_of_mine.py").write_text("ACTIVATION = 1\n")
    (network / "mynet.py").write_text(CODE + "\n\nimport blocks_of_mine\n")
    cfg = composed(*overrides(network))
    before = build(cfg.model).beside_weights
    assert build(cfg.model).beside_weights == before
    (network / "blocks_of_mine.py").write_text("ACTIVATION = 2\n")
    assert build(cfg.model).beside_weights != before


def test_other_code_is_another_training(network, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self, score, *rest: (dict(score.named_parameters()), 1.0))
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(network / "1.png")
    data = ["dataset=folder", f"dataset.source.root={network}", "dataset.shape=[1,28,28]", f"outputs={network}/out"]
    cfg = composed(*overrides(network), *data, "trainer.batch_size=1", "trainer.compile=false", config="train")
    train(cfg)
    train(cfg)  # done
    (network / "mynet.py").write_text(CODE.replace("SiLU", "ReLU"))
    with pytest.raises(PDSError, match=r"holds a run with fingerprint\.code="):
        train(cfg)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model.predicts": "noise"}, "predicts is 'noise', but .* was trained with 'data'"),
        ({"model.data_range": "[0,1]"}, "data_range is .* but .* was trained with"),
        ({"model.process.sigma_max": 80}, "sigma_max is 80"),
        (
            {"model/process": "vp"},
            "process is 'VP', but .* was trained with 'VE'",
        ),
    ],
)
def test_weights_that_were_trained_here_are_refused_for_another_use(network, changed, says):
    trained = {"model.predicts": "data", "model.data_range": "[-1,1]"}
    cfg = composed(*overrides(network, **trained))
    save_network(build_model(cfg.model).score, {}, network / "w.safetensors", resolved(cfg), 1)
    again = overrides(network, "w.safetensors", **trained)
    assert build_model(composed(*again).model).checkpoint is not None
    with pytest.raises(PDSError, match=says):
        build_model(composed(*overrides(network, "w.safetensors", **trained | changed)).model)


def test_arguments_of_the_network_are_given_without_a_plus(network):
    given = [*overrides(network, **{"model.checkpoint": "null"}), "images=2", "sampler.iterations=2", "metric=none"]
    for width in ("model.arguments.width=5", "model.arguments={width: 6}"):
        done = command("run.py", *given, width, "tracker=none", f"outputs={network}/out")
        assert done.returncode == 0, done.stderr
    refused = command("run.py", *given, "model.arguments.depth=5", f"outputs={network}/out")
    assert "unexpected keyword argument 'depth'" in refused.stderr


def test_a_network_that_was_always_shown_its_labels_has_no_score_without(network):
    (network / "mynet.py").write_text(CODE.replace("(self, x, sigma)", "(self, x, sigma, labels=None)"))
    classes = {"model.classes": 2, "model.no_class": 2}
    made = build_model(composed(*overrides(network, **classes)).model)
    assert made.unconditional  # the file does not say how it was trained
    for dropout in (0.0, 0.1):
        save_network(made.score, {}, network / "w.safetensors", {"trainer.label_dropout": dropout}, 1)
        assert build_model(composed(*overrides(network, "w.safetensors", **classes)).model).unconditional == (dropout > 0)


def test_a_module_and_its_arguments(network, monkeypatch):
    monkeypatch.chdir(network)
    monkeypatch.setitem(sys.modules, "mynet", None)
    monkeypatch.delitem(sys.modules, "mynet")
    given = overrides(network, **{"model.make": "mynet:Tiny", "model.checkpoint": "null", "+model.arguments.width": 5})
    model = build(composed(*given, "model/process=vp", "model.label=t").model)
    assert model.score.network.layers[0].out_channels == 5
    assert (model.process.title, model.data_range, model.checkpoint) == ("VP", (-1.0, 1.0), None)
    monkeypatch.delitem(sys.modules, "mynet")


def test_the_sampler_is_that_of_the_model_or_the_predictor_corrector():
    assert composed("model=ncsn_small").sampler._target_ == "pds.samplers.annealed_langevin.AnnealedLangevin"
    assert build(composed("model=own", "model/process=ve").sampler) == DEFAULT
    assert (
        composed("model=own", "model/process=ve").sampler
        == composed("model=own", "model/process=ve", "sampler=predictor_corrector").sampler
    )
    for model in ("cld", "cld_small"):
        assert composed(f"model={model}").sampler == composed("sampler=sscs").sampler
    assert composed("model=own", "model/process=ve", "sampler=edm").sampler._target_ == "pds.samplers.edm.EDM"


OFFERED = ("model/process", "filter", "solenoid", "sampler", "sampler/schedule", "sampler/predictor", "sampler/corrector")


def test_what_the_command_line_offers_the_library_offers():
    choices = [choice for group in OFFERED for base in (group, f"schema/{group}") for choice in CHOICES.get(base, {}).values()]
    classes = {choice.target if isinstance(choice, PartialTarget) else choice for choice in choices}
    offered = {choice for choice in classes if isinstance(choice, type)} | set(CHOICES["remedy"].values())
    assert len(offered) > 20
    assert {choice for choice in offered if getattr(pds, choice.__name__, None) is not choice} == set()


REFUSED = {
    "no colon": ({"model.make": "mynet.py"}, "model.make must be FILE.py:NAME or module:NAME, got 'mynet.py'"),
    "no file": ({"model.make": "/nowhere/net.py:Tiny"}, "model.make names /nowhere/net.py, which is no file"),
    "no module": ({"model.make": "nowhere_to_be_found:Tiny"}, "cannot be imported: ModuleNotFoundError, No module named"),
    "no such name": (
        {"model.make": "{folder}/mynet.py:Tny"},
        r"has no such class or function, only Sizes, Tiny, fails, nothing",
    ),
    "a number": ({"model.make": "{folder}/mynet.py:three"}, "has no such class or function"),
    "it fails": ({"model.make": "{folder}/mynet.py:fails"}, r"mynet.py:fails\(\) fails: KeyError"),
    "no network": ({"model.make": "{folder}/mynet.py:nothing"}, "gives a dict, not a torch.nn.Module"),
    "syntax": ({"model.make": "{folder}/broken.py:Tiny"}, "cannot be imported: SyntaxError"),
    "wrong arguments": ({"+model.arguments.depth": "3"}, r"Tiny\(depth=3\) fails: TypeError, .*unexpected keyword"),
    "other prediction": ({"model.predicts": "epsilon"}, "model.predicts must be one of score, noise, v, data, got 'epsilon'"),
    "v of VE": ({"model.predicts": "v"}, "model.predicts v is defined for variance-preserving states"),
    "other label": ({"model.label": "index"}, "model.label must be .*one of sigma"),
    "other range": ({"model.data_range": "[1]"}, "model.data_range must be a list of 2 numbers"),
    "other weights": ({"model.checkpoint": "asset:mnist_ncsn.safetensors"}, "has no parameter layers.0.weight"),
    "other channels": ({"dataset.shape": "[3,28,28]"}, r"Tiny\(x, label\) fails for x of shape \(2, 3, 28, 28\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_sampled_is_one_sentence(network, what):
    (network / "broken.py").write_text("class Tiny(:\n")
    changed, message = REFUSED[what]
    changed = {key: value.replace("{folder}", str(network)) for key, value in changed.items()}
    with pytest.raises(pds.PDSError, match=message) as caught:
        build(composed(*overrides(network, **changed)).model)
    assert "\n" not in str(caught.value)


def test_what_makes_no_model_is_told_the_way(network):
    with pytest.raises(pds.PDSError, match=r"model makes a Identity, not a model: .*model=own"):
        build_model(composed("model=ncsn_small", "model._target_=torch.nn.Identity").model)


def test_the_data_range_is_asked_for(network):
    without = [override for override in overrides(network) if not override.startswith("model.data_range")]
    done = command("run.py", *without, f"outputs={network}/out")
    assert done.returncode == 1
    assert "model.data_range has no value: give model.data_range=..." in done.stderr


def test_the_process_is_asked_for(network):
    without = [override for override in overrides(network) if not override.startswith("model/process")]
    done = command("run.py", *without, f"outputs={network}/out")
    assert (done.returncode, done.stderr) == (
        1,
        "error: model/process is not given: choose one of cld, discrete_vp, sub_vp, ve, vp\n",
    )


def test_a_chain_of_named_betas_is_that_of_the_library(network):
    given = overrides(network, **{"model/process": "discrete_vp", "model.checkpoint": "null"})
    assert build(composed(*given).model).process == pds.DiscreteVariancePreserving(
        pds.beta_schedule("linear", 1e-4, 0.02, 1000)
    )
    cosine = build(composed(*given, "model.process.schedule=squaredcos_cap_v2", "model.process.levels=50").model)
    assert cosine.process == pds.DiscreteVariancePreserving(pds.beta_schedule("squaredcos_cap_v2", 1e-4, 0.02, 50))


def test_a_file_that_is_too_large_for_code_is_not_read(tmp_path):
    with open(tmp_path / "net.py", "wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(PDSError, match=r"net\.py is not a file that can be read here \(it has 107,374,182,400 bytes"):
        build_model(
            composed(
                "model=own",
                f"model.make={tmp_path}/net.py:Net",
                "model.predicts=data",
                "model/process=ve",
                "model.data_range=[0,1]",
            ).model
        )
