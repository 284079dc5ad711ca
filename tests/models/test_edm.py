"""Networks of EDM: the numbers of its own code from the pickles that it writes; damaged, hostile and foreign files."""

import json
import math
import os
import pickle
import pickletools
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, Golden
from test_configurations import composed
from test_torch_files import CALLS, MARK, Call, by_hand, nothing_runs  # noqa: F401  # a fixture

import pds
from pds.errors import OptionError, PDSError
from pds.files import sha256
from pds.lab.config import build
from pds.models.checkpoints import Checkpoint
from pds.models.edm import SongUNet, _published, edm, read_edm
from pds.models.torch_files import read_pickle
from pds.processes.forward import VarianceExploding, VariancePreserving

CASES = {
    "edm_cond": ("DDPM++ (EDMPrecond, width 4, 5 classes)", VarianceExploding(0.002, 80.0), (-1, 1), 5, False),
    "edm_fourier": ("NCSN++ (EDMPrecond, width 4)", VarianceExploding(0.002, 80.0), (-1, 1), 0, True),
    "edm_skip": ("NCSN++ (EDMPrecond, width 4, 4 classes)", VarianceExploding(0.002, 80.0), (-1, 1), 4, True),
    "vp": ("DDPM++ (VPPrecond, width 4)", VariancePreserving(0.1, 20.0), (-1, 1), 0, True),
    "ve": ("NCSN++ (VEPrecond, width 4, 3 classes)", VarianceExploding(0.01, 50.0), (0, 1), 3, False),
}


def written(path, case="edm_cond"):
    """A pickle of the reference."""
    path.write_bytes(Golden(f"edm/{case}").arrays["pickle"].tobytes())
    return path


@pytest.mark.parametrize("case", CASES)
def test_denoised_images_are_those_of_the_reference_and_nothing_runs(tmp_path, nothing_runs, case):  # noqa: F811
    golden, path = Golden(f"edm/{case}"), written(tmp_path / "edm.pkl", case)
    model = read_edm(path)
    title, process, data_range, classes, unconditional = CASES[case]
    assert (model.title, model.shape, model.data_range) == (f"{title} 3x8x8", (3, 8, 8), data_range)
    assert (model.process, model.classes, model.unconditional) == (process, classes, unconditional)
    dropout = golden.json("meta")["kwargs"].get("label_dropout", 0.0)
    assert model.checkpoint == Checkpoint("EDM", True, path, sha256(path), dropout)
    x, sigma = golden["x"], golden["sigma"][:, None, None, None]
    unit = (data_range[1] - data_range[0]) / 2  # of the model, whose images the reference has in [-1, 1]
    for expected, labels in (("D", [golden["labels"]] if classes else []), ("unlabelled", [])):
        with torch.no_grad():
            score = model.score(data_range[0] + unit * (x + 1), unit * golden["sigma"], *labels)
        noise = (x - golden[expected]) / sigma
        error = (-sigma * unit * score - noise).abs().amax((1, 2, 3)) / noise.abs().amax((1, 2, 3))
        # At sigma = 0.01 the reference itself has lost five bits of the noise.
        assert (error < torch.tensor([3e-5, 1e-5, 1e-5, 1e-5])).all(), error
    assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


@pytest.mark.parametrize("name", json.loads((GOLDEN / "edm" / "full.json").read_text()))
def test_published_networks_at_full_size_have_these_parameters(name):
    listing = json.loads((GOLDEN / "edm" / "full.json").read_text())[name]
    unet = SongUNet(**listing["arguments"])
    with torch.device("meta"):
        network = unet.network(VarianceExploding(), False)
        found = _published({key: torch.empty(shape) for key, shape in listing["state"].items()}, unet)
    expected = {key: value.shape for key, value in network.state_dict().items() if key != "sigmas"}
    assert {key: value.shape for key, value in found.items()} == expected
    augment = listing["state"]["map_augment.weight"]
    count = sum(p.numel() for p in network.parameters())  # Fourier frequencies are a buffer in EDM
    assert (
        count - (unet.model_channels if "fourier" in unet.embedding_type else 0) + math.prod(augment) == listing["parameters"]
    )


def test_load_takes_the_sampler_of_the_paper_and_the_command_line_takes_the_file(tmp_path):
    path = written(tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
    model = pds.load(path, device="cpu")
    assert model.sampler == pds.EDM(18, S_churn=0.0)
    few = pds.EDM(2, S_churn=0.0)
    images = pds.sample(model, few, labels="uniform", guidance=pds.ClassifierFree(1.0), images=5).images
    assert images.shape == (5, 3, 8, 8) and not torch.equal(images, pds.sample(model, few, labels=[0], images=5).images)
    with pytest.raises(OptionError, match=r"scale must be 1 for DDPM.*no unconditional score"):
        pds.sample(model, few, labels="uniform", guidance=pds.ClassifierFree(3.0))
    cfg = composed("model=edm", "dataset=cifar10", f"model.checkpoint={path}", "model.shape=[3,8,8]")
    made = build(cfg.model)
    assert (made.title, made.checkpoint, build(cfg.sampler).title) == (model.title, model.checkpoint, "EDM Heun")
    with pytest.raises(OptionError, match=r"shape is \[3, 32, 32\], but .*pkl is of images of shape \[3, 8, 8\]"):
        edm([3, 32, 32], path)
    with pytest.raises(OptionError, match="checkpoint must be a pickle of EDM"):
        edm([3, 8, 8], None)


def content_of(path):
    """The readable content of a pickle, as the machine reads it."""
    content = read_pickle(written(path), "a pickle of EDM")
    modules = unet(content)["state"]["_modules"]
    modules.update({name: dict(modules[name]) for name in ("enc", "dec")})
    return content


def unet(content):
    return content["ema"]["state"]["_modules"]["model"]


def arguments(content, **changed):
    unet(content)["state"]["_init_kwargs"].update(changed)


def itself(content):
    modules = unet(content)["state"]["_modules"]
    modules["enc"] = {"_modules": modules}


def parameters(content, *path):
    table = unet(content)["state"]
    for name in path:
        table = table["_modules"][name]
        table = table.get("state", table)
    return table["_parameters"]


FOREIGN = {
    "no ema": (lambda c: c.pop("ema"), "has no ema, as a pickle of EDM has: EDMPrecond, VPPrecond and VEPrecond around"),
    "EDM2": (lambda c: c["ema"].update(class_name="Precond"), "holds a 'Precond', as files of EDM2 do: only EDMPrecond, "),
    "iDDPM": (lambda c: c["ema"].update(class_name="iDDPMPrecond"), "holds a 'iDDPMPrecond': only EDMPrecond"),
    "ADM": (lambda c: unet(c).update(class_name="DhariwalUNet"), "holds a 'DhariwalUNet' in an EDMPrecond: only EDMPrecond"),
    "a tensor": (lambda c: c.update(ema=torch.ones(2)), "holds no network of EDM as ema: only"),
    "text": (lambda c: c["ema"]["state"]["_modules"].update(model="x"), "holds no network of EDM as ema.model: only"),
    "no arguments": (lambda c: unet(c)["state"].pop("_init_kwargs"), r"cannot be built \(img_resolution is missing\)"),
    "no sigma_data": (lambda c: c["ema"]["state"].pop("sigma_data"), r"cannot be built \(sigma_data is missing\)"),
    "sigma_data": (lambda c: c["ema"]["state"].update(sigma_data=math.nan), r"\(sigma_data must be .*, got nan\)"),
    "another argument": (lambda c: arguments(c, heads=2), r"cannot be built \('heads' is no argument of a SongUNet\)"),
    "a kind": (lambda c: arguments(c, encoder_type="\x1b[2J"), r"encoder_type must be one of standard, skip, residual"),
    "a filter": (lambda c: arguments(c, resample_filter=[1, 2, 1]), r"resample_filter must be \(1, 3, 3, 1\) here"),
    "too large": (
        lambda c: arguments(c, model_channels=1024, channel_mult=[64] * 2),
        "parameters, which the file does not hold",
    ),
    "larger": (lambda c: arguments(c, model_channels=5), "of shape .* its arguments and its weights are not of one network"),
    "a level more": (lambda c: arguments(c, channel_mult=[1, 1, 1, 1, 1]), "must have a size divisible by 16"),
    "missing": (lambda c: parameters(c, "map_layer1").pop("weight"), "has no parameter all_modules.1.weight"),
    "more": (lambda c: parameters(c).update(extra=torch.ones(2)), "a parameter extra that the model does not have"),
    "nan": (lambda c: parameters(c, "map_layer0")["bias"].fill_(math.nan), "that are not finite numbers: fetch it again"),
    "wide": (
        lambda c: parameters(c, "enc", "4x4_block0", "qkv").update(weight=torch.ones(3, 8).expand(10**9, 3, 8)[:24]),
        "NIN_0.W of shape",
    ),
    "itself": (itself, "has more modules than any network"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_told_in_a_sentence(tmp_path, name):
    change, message = FOREIGN[name]
    content = content_of(tmp_path / "w.pkl")
    change(content)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(PDSError, match=rf"w\.pkl .*{message}") as told:
        read_edm(tmp_path / "w.pkl")
    assert str(told.value).isprintable() and len(str(told.value)) < 600


def test_hostile_pickles_run_nothing(tmp_path, nothing_runs):  # noqa: F811
    programs = [*by_hand(), *(pickle.dumps({"ema": make()}, protocol) for make in CALLS.values() for protocol in range(6))]
    packed = pickle.dumps(Call(os.system, (MARK,)))
    programs += [pickle.dumps({"ema": Call(torch.storage._load_from_bytes, (data,))}) for data in (packed, b"", b"\x80\x02")]
    for program in programs:
        (tmp_path / "w.pkl").write_bytes(program)
        with pytest.raises(PDSError, match=r"w\.pkl (has no ema|holds no network of EDM as ema|is not a pickle of EDM)"):
            read_edm(tmp_path / "w.pkl")
    content = content_of(tmp_path / "w.pkl")
    calls = [make() for make in CALLS.values()]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"before": calls, **content, "loss_fn": calls}))
    assert read_edm(tmp_path / "w.pkl").classes == 5


def again(packed, times):
    """A pickle that unpacks the same bytes again and again."""
    call = b"\x80\x04ctorch.storage\n_load_from_bytes\nq\x00B" + struct.pack("<I", len(packed)) + packed + b"q\x01"
    return call + b"h\x00h\x01\x85R0" * times + b"}."


def test_bombs_are_refused_at_once(tmp_path):
    whole = written(tmp_path / "w.pkl").read_bytes()
    numbers = next(value for opcode, value, _ in pickletools.genops(whole) if opcode.name == "BINBYTES")
    bombs = {
        "its numbers overlap": again(numbers, 100_000),
        "its table is longer than that of any network": again(b"\x80\x02" + b"]0" * 600_000 + b".", 1),
        "it does not begin as one": again(b"\x80\x02]." + bytes(100), 100),
        "unknown": again(b"", 1),
    }
    for reason, bomb in bombs.items():
        (tmp_path / "w.pkl").write_bytes(bomb)
        begun = time.process_time()
        with pytest.raises(PDSError, match=rf"is not a pickle of EDM \(.*{reason}"):
            read_edm(tmp_path / "w.pkl")
        assert time.process_time() - begun < 10


def outcome(path):
    """The shape of the images, or the sentence that refuses the file."""
    try:
        return read_edm(path).shape
    except PDSError as error:
        return str(error)


def test_cut_and_damaged_pickles_are_a_network_or_one_sentence(tmp_path):
    whole, rng = written(tmp_path / "w.pkl").read_bytes(), np.random.default_rng(0)
    for length in [0, 1, 2, *rng.integers(len(whole), size=12)]:
        (tmp_path / "w.pkl").write_bytes(whole[:length])
        with pytest.raises(PDSError, match=r"w\.pkl is not a pickle of EDM .*: fetch it again"):
            read_edm(tmp_path / "w.pkl")
    for _ in range(25):
        damaged = bytearray(whole)
        for position in rng.integers(len(whole), size=20):
            damaged[position] = rng.integers(256)
        (tmp_path / "w.pkl").write_bytes(damaged)
        found = outcome(tmp_path / "w.pkl")
        assert found == (3, 8, 8) or ("w.pkl" in found and len(found) < 1000 and found.isprintable())
    with pytest.raises(PDSError, match=r"absent\.pkl does not exist: give a pickle of EDM"):
        read_edm(Path(tmp_path / "absent.pkl"))
