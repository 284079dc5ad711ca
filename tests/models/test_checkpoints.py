"""Weights files as their authors write them, and wrong files."""

import contextlib
import json
import logging
import math
import os
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from conftest import GOLDEN, Golden, seeds
from safetensors.torch import save_file

import pds
from pds.errors import OptionError, PDSError
from pds.models.checkpoints import check_levels, load_weights
from pds.models.diffusers_layout import as_published, published_names
from pds.models.ncsn import NCSN
from pds.models.ncsnpp import NCSNpp
from pds.models.ncsnv2 import NCSNv2
from pds.models.ncsnv2 import ncsnv2 as make_ncsnv2
from pds.models.safetensors_files import save_weights
from pds.processes.forward import VarianceExploding
from pds.processes.ladders import geometric_ladder


def ncsn(width=4, levels=3, channels=1):
    torch.manual_seed(width)
    return NCSN(channels, width, levels)


def ncsnv2(width=4, depth="base", sigma_begin=50.0):
    torch.manual_seed(width)
    return NCSNv2(1, width, depth, geometric_ladder(sigma_begin, 0.01, 3))


def ncsnpp(size=8, channels=1, sigma_max=50.0, seed=0, **changed):
    torch.manual_seed(seed)
    small = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "output": "none", "input": "residual"}
    return NCSNpp(channels, size, sigmas=geometric_ladder(sigma_max, 0.01, 3), **(small | changed))


def wrapped(network):
    """The state of a network under `DataParallel` and that of its Adam, as all the authors save them."""
    moments = {"step": 5, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "params": [0]}]}
    return torch.nn.DataParallel(network).state_dict(), optimizer


def averages(network):
    return {name: (p + 1).detach() for name, p in network.named_parameters() if p.requires_grad}


def ncsn_file(path, network):
    # torch had no other format in 2019.
    torch.save([*wrapped(network)], path, _use_new_zipfile_serialization=False)


def ncsnv2_file(path, network, average):
    torch.save([*wrapped(network), 3, 500] + ([averages(network)] if average else []), path)


def sde_file(path, network, shadow=None):
    model, optimizer = wrapped(network)
    shadow = list(averages(network).values()) if shadow is None else shadow
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": shadow}
    torch.save({"optimizer": optimizer, "model": model, "ema": ema, "step": 5}, path)


@pytest.mark.parametrize(
    ("write", "make", "layout", "ema"),
    [
        (ncsn_file, ncsn, "list", False),
        (lambda path, network: ncsnv2_file(path, network, True), ncsnv2, "list", True),
        (lambda path, network: ncsnv2_file(path, network, False), ncsnv2, "list", False),
        (sde_file, ncsnpp, "dict", True),
        (lambda path, network: torch.save({"model": wrapped(network)[0]}, path), ncsnpp, "dict", False),
        (lambda path, network: torch.save(network.state_dict(), path), ncsnv2, "state dict", None),
        (lambda path, network: save_weights(network.state_dict(), path, {"weights": "ema"}), ncsnpp, "safetensors", True),
        (lambda path, network: save_weights(network.state_dict(), path, {}), ncsnpp, "safetensors", None),
    ],
)
def test_round_trips(tmp_path, caplog, write, make, layout, ema):
    caplog.set_level(logging.INFO)
    source = make()
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "checkpoint.pth")
    write(path, source)
    expected = source.state_dict()
    if ema and layout != "safetensors":
        expected |= averages(source)
    target = make()
    for value in target.state_dict().values():
        value.fill_(7)
    found = load_weights(target, path)
    assert (found.layout, found.ema, found.path) == (layout, ema, path)
    for name, value in target.state_dict().items():
        assert torch.equal(value, expected[name]), name
    said, *warned = [record.getMessage() for record in caplog.records]
    assert f"layout: {layout}" in said
    assert ("; EMA weights;" in said) == (ema is True) and len(warned) == (ema is False)


def test_a_buffer_that_no_file_has_stays(tmp_path):
    network = ncsnpp()
    state = network.state_dict()
    levels = state.pop("sigmas").clone()
    torch.save(state, tmp_path / "c.pth")
    load_weights(network, tmp_path / "c.pth")
    assert torch.equal(network.sigmas, levels)


def test_statistics_that_training_gathers_must_be_in_the_file(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    whole, parameters = network.state_dict(), dict(network.named_parameters())
    whole["1.running_mean"] = torch.ones(2)
    torch.save({"ema": parameters}, tmp_path / "c.pth")
    with refused(network, r"has no 1\.running_mean \(2,\), which training gathers \(a whole state_dict has it\)"):
        load_weights(network, tmp_path / "c.pth")
    spectral = torch.nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(1, 2, 3)))
    torch.save(dict(spectral.named_parameters()), tmp_path / "s.pth")
    with refused(spectral, r"has no 0\.parametrizations\.weight\.0\._u \(2,\), which training gathers"):
        load_weights(spectral, tmp_path / "s.pth")
    # An average of the parameters alone takes them from the other weights of its file.
    torch.save({"ema": parameters, "model": whole}, tmp_path / "c.pth")
    load_weights(network, tmp_path / "c.pth")
    assert torch.equal(network[1].running_mean, torch.ones(2))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@seeds(80)
def test_levels_are_compared_in_the_precision_of_the_file_and_what_mends_them_does(seed):
    rng = np.random.default_rng(seed)
    ends, count, dtype = (10 ** rng.uniform(0, 3.2), 10 ** rng.uniform(-2.7, -1)), int(rng.integers(3, 2000)), DTYPES[seed % 4]
    levels, names = geometric_ladder(*ends, count), ("sigma_begin", "sigma_end")
    found = levels.to(dtype)
    check_levels(found, levels.float(), "file", names)
    # The finest published ladder has steps of 0.4%.
    for other in (geometric_ladder(1.02 * ends[0], ends[1], count), geometric_ladder(ends[0], 1.02 * ends[1], count)):
        with pytest.raises(OptionError, match=r"sigma_begin is not that of file, .*: set sigma_begin=.* sigma_end=") as error:
            check_levels(found, other, "file", names)
        check_levels(found, geometric_ladder(*(error.value.fix[name] for name in names), count), "file", names)
    bent = found * (1 + 0.3 * torch.linspace(0, math.pi, count).sin()).to(dtype)
    for wrong in (bent, found.flip(0), found * 0, found - found[0], found * torch.nan):
        with pytest.raises(OptionError, match="only levels in geometric progression can be sampled") as error:
            check_levels(wrong, levels, "file", names)
        assert not error.value.fix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [ncsn, ncsnv2, ncsnpp])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_copies_in_other_precisions_load_and_keep_the_exact_levels(tmp_path, make, dtype, suffix):
    source, target, path = make(), make(), tmp_path / f"w.{suffix}"
    exact = {name: value.clone() for name, value in source.state_dict().items()}
    copies = {name: value.to(dtype) for name, value in exact.items()}
    save_weights(copies, path, {}) if suffix == "safetensors" else torch.save({"ema": copies, "step": 3}, path)
    levels = ("begin", "end") if "sigmas" in exact else None
    load_weights(target, path, levels=levels)
    for name, value in target.state_dict().items():
        half = dtype in (torch.float16, torch.bfloat16)
        wanted = exact[name] if name == "sigmas" and half else copies[name]
        assert torch.equal(value, wanted.to(value.dtype)), name


def test_a_file_of_this_project_is_of_the_images_and_the_noise_it_says(tmp_path):
    path, made = (
        tmp_path / "weights.safetensors",
        {"width": 4, "depth": "base", "sigma_begin": 50.0, "sigma_end": 0.01, "levels": 3},
    )
    network = make_ncsnv2([1, 16, 16], **made).score.network
    says = yaml.safe_dump(
        {"model.shape": [1, 16, 16], "trainer.seed": 0} | {f"model.{key}": value for key, value in made.items()}
    )
    save_weights(network.state_dict(), path, {"config": says})
    assert make_ncsnv2([1, 16, 16], **made, checkpoint=path).checkpoint.path == path
    with pytest.raises(
        PDSError, match=r"shape is \[1, 32, 32\], but .* was trained with \[1, 16, 16\]: choose images of that shape"
    ):
        make_ncsnv2([1, 32, 32], **made, checkpoint=path)
    with pytest.raises(PDSError, match=r"sigma_begin is .* set sigma_begin=50"):
        make_ncsnv2([1, 16, 16], **(made | {"sigma_begin": 90.0}), checkpoint=path)
    says = yaml.safe_dump({"model.rescale": "\x1b[2J\rerror: all is well\n" * 1000})
    save_weights(network.state_dict(), path, {"config": says})
    with pytest.raises(PDSError, match=r"rescale is True, but .* was trained with '\\x1b\[2J.*: set rescale=") as error:
        make_ncsnv2([1, 16, 16], **made, checkpoint=path)
    assert str(error.value).isprintable() and len(str(error.value)) < 2500
    for broken in ("[1, {", "- model.rescale", "3", "1: 2", "model.rescale: !!python/name:os.system", "[" * 10_000, "!!bool x"):
        save_weights(network.state_dict(), path, {"config": broken})
        with refused(network, "not a file with a table of options as its metadata `config`"):
            load_weights(network, path)


def test_the_shipped_network_says_that_it_is_an_average():
    assert load_weights(NCSN(1, 16, 10), "asset:mnist_ncsn.safetensors").ema is True


@contextlib.contextmanager
def refused(network, says):
    """One sentence, and the network is as it was."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(PDSError, match=says) as error:
        yield
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("write", "source", "target", "says"),
    [
        (ncsn_file, ncsn(), ncsn(width=6), r"begin_conv\.weight of shape \(4, 1, 3, 3\) where the model has \(6, 1, 3, 3\)"),
        (ncsn_file, ncsn(), ncsn(levels=5), r"normalizer\.embed\.weight of shape \(3, 12\) where the model has \(5, 12\)"),
        (ncsn_file, ncsn(), ncsn(channels=3), r"begin_conv\.weight of shape \(4, 1, 3, 3\) where the model has \(4, 3, 3, 3\)"),
        (ncsn_file, ncsn(), torch.nn.Linear(2, 2), r"weight of shape \(4, 1, 3, 3\) where the model has \(2, 2\)"),
        (ncsn_file, ncsn(), ncsnv2(), r"no parameter normalizer.alpha \(4,\)"),
        (sde_file, ncsnpp(), ncsnv2(), r"no parameter begin_conv.weight \(4, 1, 3, 3\): it is"),
        (sde_file, ncsnpp(), ncsnpp(channels=3), r"shape \(8, 1, 3, 3\) where the model has \(8, 3, 3, 3\)"),
        (sde_file, ncsnpp(), ncsnpp(size=16), r"no parameter all_modules"),
    ],
)
def test_another_network_is_refused_whole(tmp_path, write, source, target, says):
    write(tmp_path / "checkpoint.pth", source)
    with refused(target, says):
        load_weights(target, tmp_path / "checkpoint.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def state_with(**changed):
    return ncsn().state_dict() | changed


@pytest.mark.filterwarnings("error")
def test_broken_and_hostile_files_give_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sde_file("whole.pth", ncsnpp())
    ncsn_file("old.pth", ncsn())
    save_weights(ncsn().state_dict(), tmp_path / "whole.safetensors", {})
    for whole, cut in (("whole.pth", "cut.pth"), ("old.pth", "cut_old.pth"), ("whole.safetensors", "cut.safetensors")):
        (tmp_path / cut).write_bytes((tmp_path / whole).read_bytes()[:-3000])
    # Its table promises 40 KB that the file does not have.
    torch.save({"begin_conv.weight": torch.zeros(10_000)}, "long.pth")
    with zipfile.ZipFile("long.pth") as source, zipfile.ZipFile("short.pth", "w") as short:
        for name in source.namelist():
            short.writestr(name, source.read(name)[: 3 if "/data/" in name else None])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([{"begin_conv.weight": Hostile()}], "hostile.pth")
    torch.save([ncsnv2().state_dict(), {}, 3, 500, {"begin_conv.weight": Hostile()}], "hostile_average.pth")
    for protocol in (0, 4, 5):
        (tmp_path / f"hostile_{protocol}.pkl").write_bytes(pickle.dumps([os.system.__module__, Hostile()], protocol))
        torch.save(
            [{"begin_conv.weight": torch.zeros(1)}, Hostile()], f"hostile_{protocol}.pth", pickle_protocol=max(2, protocol)
        )
    torch.save([Hostile()], "hostile_old.pth", pickle_protocol=4, _use_new_zipfile_serialization=False)
    torch.save({"a": 1}, "numbers.pth")
    torch.save([], "nothing.pth")
    torch.save(state_with(**{"end_conv.bias": torch.zeros(1).to_sparse()}), "sparse.pth")
    torch.save(state_with(**{"end_conv.bias": torch.zeros(1, device="meta")}), "meta.pth")
    torch.save(state_with(**{"end_conv.bias": torch.zeros(1, dtype=torch.complex64)}), "complex.pth")
    torch.save({"model": ncsn().state_dict(), "ema": 3}, "no_average.pth")
    torch.save([ncsn().state_dict(), {}, 3, 500, {"begin_conv.weight": torch.zeros(4, 1, 3, 3)}], "part.pth")
    save_weights(state_with(**{"end_conv.bias": torch.tensor([torch.nan])}), tmp_path / "nan.safetensors", {})
    save_weights(state_with(surplus=torch.zeros(1)), tmp_path / "extra.safetensors", {})
    (tmp_path / "folder").mkdir()
    says = {
        "cut.pth": "not a whole file of torch.save",
        "cut_old.pth": "not a whole file",
        "short.pth": "shorter than its table",
        "text.pth": "not a whole file",
        "empty.pth": "not a whole file",
        "hostile.pth": r"no table of tensors by name but holds code \(\w+\.system\), which is never executed",
        "hostile_average.pth": "no parameter normalizer.embed.weight",
        **{
            f"hostile_{end}": "begin_conv.weight of shape"
            if end[1:] == ".pth"
            else "not a whole file"
            if end[1:] == ".pkl"
            else "holds code"
            for end in ("0.pkl", "4.pkl", "5.pkl", "0.pth", "4.pth", "5.pth", "old.pth")
        },
        "numbers.pth": "no table of tensors",
        "nothing.pth": "no table of tensors",
        "sparse.pth": "no tensor as end_conv.bias but .*sparse",
        "meta.pth": "no tensor as end_conv.bias but .*meta",
        "complex.pth": "end_conv.bias as torch.complex64",
        "no_average.pth": "no average of the parameter .* under 'ema', .*: set weights=raw",
        "part.pth": "no average of the parameter begin_conv.bias",
        "cut.safetensors": "not a whole safetensors",
        "nan.safetensors": "end_conv.bias that are not finite",
        "extra.safetensors": "a parameter surplus",
        "absent.pth": "does not exist",
        "folder": "no diffusers folder",
    }
    before = sorted(os.listdir())
    for file, sentence in says.items():
        network = ncsn()
        with refused(network, sentence):
            load_weights(network, tmp_path / file)
    assert sorted(os.listdir()) == before


SKIP = Golden("diffusers/ncsnpp_skip")


def skip_network(size=16, width=32, seed=0, sigma_max=380.0, **changed):
    """The NCSN++ of the golden `UNet2DModel`."""
    options = {"multipliers": [1, 4, 2], "attention": [8], "output": "output_skip", "input": "input_skip"}
    return ncsnpp(size, 3, sigma_max, seed, width=width, **(options | changed)).eval()


def golden_weights():
    """The parameters of the golden `UNet2DModel`: a formula in their names and shapes."""
    for name, shape in SKIP.json("state_dict").items():
        count = math.prod(shape)
        wave = np.sin(zlib.crc32(name.encode()) % 1000 + 1.7 * np.arange(count) ** 1.3)
        if name == "time_proj.weight":
            value = 16 * wave
        elif len(shape) > 1:
            value = wave * math.sqrt(2 / math.prod(shape[1:]))
        else:
            value = 0.1 * wave + name.endswith("weight")
        yield name, torch.from_numpy(value.reshape(shape).astype(np.float32))


@pytest.fixture(scope="module")
def weights():
    return dict(golden_weights())


def diffusers_folder(folder, weights, scheduler=None, **changed):
    """The files of `save_pretrained`: of the network, or of the pipeline if there is a scheduler."""
    unet = folder / "unet" if scheduler else folder
    unet.mkdir(parents=True, exist_ok=True)
    (unet / "config.json").write_text(json.dumps(SKIP.json("config") | changed))
    save_file(weights, unet / "diffusion_pytorch_model.safetensors")
    if scheduler:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "num_train_timesteps": 3} | scheduler)
        )
    return folder


def assert_golden(network):
    with torch.no_grad():
        y = network(SKIP["x"], SKIP["sigma"])
    scale = SKIP["y"].abs().amax((1, 2, 3), keepdim=True)
    assert ((y - SKIP["y"]).abs() / scale).max() < 3e-5


def test_a_diffusers_folder_gives_the_score_of_its_unet(tmp_path, weights, caplog):
    caplog.set_level(logging.INFO)
    network = skip_network()
    found = load_weights(network, diffusers_folder(tmp_path / "model", weights))
    assert (found.layout, found.ema) == ("diffusers", None) and "layout: diffusers; EMA or not is unknown" in caplog.text
    assert found.path == tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    assert_golden(network)


@pytest.mark.parametrize("path", ["", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_a_diffusers_pipeline_tells_its_noise_levels(tmp_path, weights, path):
    network = skip_network()
    load_weights(network, diffusers_folder(tmp_path, weights, scheduler={"sigma_max": 348.0}) / path)
    assert_golden(network)
    with pytest.raises(PDSError, match=r"level 0: 348, model 380\): set process.sigma_max=348.0 process.sigma_min=0.01"):
        check_levels(network.sigmas, geometric_ladder(380, 0.01, 3), tmp_path, ("process.sigma_max", "process.sigma_min"))
    check_levels(network.sigmas, geometric_ladder(348, 0.01, 3), tmp_path, ("a", "b"))


@pytest.mark.parametrize("path", ["", "unet/diffusion_pytorch_model.safetensors"])
def test_a_diffusers_pipeline_needs_no_configuration(tmp_path, weights, path):
    folder = diffusers_folder(tmp_path, weights, scheduler={"sigma_max": 348.0, "snr": 0.15})
    model = pds.load(folder / path, device="cpu")
    assert_golden(model.score)
    assert model.process == VarianceExploding(0.01, 348.0, 3)
    assert model.sampler == pds.PredictorCorrector(3, pds.ReverseDiffusion(), pds.Langevin(0.15))


def test_older_diffusers_folders(tmp_path, weights):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in weights.items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = value
    assert renamed.keys() != weights.keys()
    diffusers_folder(tmp_path, weights)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(renamed, tmp_path / "diffusion_pytorch_model.bin")
    network = skip_network()
    load_weights(network, tmp_path)
    assert_golden(network)


def published_configs():
    """config.json of the published networks that diffusers can hold, and the listing of their checkpoints."""
    for path in sorted((GOLDEN / "keys").glob("ncsnpp_*.json")):
        listing = json.loads(path.read_text())
        data, model = listing["config"]["data"], listing["config"]["model"]
        if model["progressive"] != "output_skip":
            continue
        attentive = [data["image_size"] >> i in model["attn_resolutions"] for i in range(len(model["ch_mult"]))]
        config = SKIP.json("config") | {
            "sample_size": data["image_size"],
            "block_out_channels": [model["nf"] * m for m in model["ch_mult"]],
            "layers_per_block": model["num_res_blocks"],
            "down_block_types": ["AttnSkipDownBlock2D" if a else "SkipDownBlock2D" for a in attentive],
            "up_block_types": ["AttnSkipUpBlock2D" if a else "SkipUpBlock2D" for a in reversed(attentive)],
        }
        yield config, listing


def test_every_published_name_is_known_in_diffusers():
    cases = list(published_configs())
    assert len(cases) == 4
    for config, listing in cases:
        assert set(listing["state_dict"]) - {"sigmas"} <= set(published_names(config).values())


def test_diffusers_itself_agrees(tmp_path, weights):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: its recorded names and outputs stand in")
    unet = diffusers.UNet2DModel.from_pretrained(diffusers_folder(tmp_path, weights)).eval()
    assert {name: list(value.shape) for name, value in unet.state_dict().items()} == SKIP.json("state_dict")
    assert_golden(lambda x, sigma: unet(x, sigma).sample)
    for config, listing in published_configs():
        with torch.device("meta"):
            theirs = diffusers.UNet2DModel.from_config(config).state_dict()
        ours = as_published(config, {}, theirs, tmp_path).state
        shapes = {name: list(value.shape) for name, value in ours.items()}
        assert shapes == {name: shape for name, shape in listing["state_dict"].items() if name != "sigmas"}


DDPM = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3, "time_embedding_type": "positional"}


@pytest.mark.parametrize(
    ("network", "changed", "says"),
    [
        (
            {},
            DDPM,
            "is a UNet2DModel of DownBlock2D, UpBlock2D with a positional embedding, as DDPM has, .*: load it as a DDPM",
        ),
        ({}, {"time_embedding_type": "positional"}, "with a positional embedding"),
        ({}, {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
        ({}, {"norm_eps": 1e-5}, "norm_eps=1e-05, which makes it another network"),
        ({}, {"mid_block_scale_factor": 1}, "mid_block_scale_factor=1,"),
        ({}, {"attention_head_dim": 8}, "attention_head_dim=8,"),
        ({}, {"norm_num_groups": 32}, "norm_num_groups=32,"),
        ({}, {"act_fn": "gelu"}, "act_fn=gelu,"),
        ({}, {"block_out_channels": [32, 64, 64]}, "block_out_channels="),
        ({}, {"block_out_channels": [0, 128, 64]}, "not one that diffusers writes"),
        ({}, {"down_block_types": 3}, "not one that diffusers writes"),
        ({}, {"layers_per_block": 10**12}, "no parameter all_modules|a parameter .* no NCSN"),
        ({}, {"layers_per_block": 2}, "no parameter all_modules|has a parameter|of shape"),
        (
            {},
            {"center_input_sample": False},
            "centred is False, but .* was trained with True: set shape=",
        ),
        ({"fir": False}, {}, "fir is False, but .* was trained with True"),
        ({"scale_by_sigma": False}, {}, "scale_by_sigma is False, but .* was trained with True"),
        (
            {"width": 64},
            {},
            r"an NCSN\+\+\): set shape=\[3,16,16\] attention=\[8\] width=32 multipliers=\[1,4,2\]",
        ),
        ({"size": 32}, {}, r"set shape=\[3,16,16\]"),
        ({"output": "none", "input": "residual"}, {}, "output=output_skip input=input_skip"),
    ],
)
def test_another_diffusers_network_is_refused_whole(tmp_path, weights, network, changed, says):
    target = skip_network(**network)
    with refused(target, says):
        load_weights(target, diffusers_folder(tmp_path, weights, **changed))


def test_broken_diffusers_folders_give_one_sentence(tmp_path, weights):
    def config(text):
        return lambda folder: (folder / "unet" / "config.json").write_text(text)

    def cut(folder):
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-3000])

    def scheduler(**changed):
        path = "scheduler/scheduler_config.json"
        return lambda folder: (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | changed))

    says = {
        config("{"): "is not the configuration of a network",
        config("[" * 100_000): "is not the configuration of a network",
        config("[1]"): "not the configuration of a network",
        config("{}"): "holds a None",
        config('{"_class_name": "UNet2DModel"}'): "not one that diffusers writes",
        cut: "not a whole safetensors",
        (lambda folder: (folder / "unet" / "config.json").unlink()): "no diffusers folder",
        (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()): "no diffusers folder",
        scheduler(sigma_max="large"): "not one that diffusers writes",
        scheduler(sigma_min=-1): "3 noise levels from 380.0 to -1",
        scheduler(num_train_timesteps=10**12): "1000000000000 noise levels",
        scheduler(num_train_timesteps=5): r"sigmas of shape \(5,\) .* process.levels=5",
    }
    network = skip_network()
    for i, (harm, sentence) in enumerate(says.items()):
        folder = diffusers_folder(tmp_path / str(i), weights, scheduler={"sigma_max": 380.0})
        harm(folder)
        with refused(network, sentence):
            load_weights(network, folder)
        for path in sorted(folder.rglob("*.safetensors")):
            path.unlink()
