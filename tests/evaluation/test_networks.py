"""The code of the large networks, with stand-in weights: no published file was ever here. Also anyone's own features."""

import sys
import urllib.error
import urllib.request
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_clip import CLIPVisual
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric

from pds.data.dataset import Dataset
from pds.data.images import ArrayImages
from pds.errors import MissingError, PDSError
from pds.evaluation.features import PUBLISHED, FidelityFeatures, OwnFeatures, extractor
from pds.evaluation.measures import inception_score
from pds.evaluation.metric import panel_metric
from pds.evaluation.reference import MadeReference
from pds.files import sha256

SHAPE = (1, 12, 12)


def images(count, channels=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, channels, 12, 12), np.uint8))


def standing_in(choice, file, **changes):
    return PUBLISHED[choice]._replace(sha256=sha256(file), file=file.name, **changes)


@pytest.fixture
def _offline(monkeypatch):
    def refuse(*arguments, **more):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def test_inception_of_torch_fidelity_has_its_features_and_its_classes(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "i.pth")
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)  # for speed
    torch.manual_seed(0)
    features = FidelityFeatures(standing_in("inception_tf", tmp_path / "i.pth"), cache=tmp_path)
    found = features(images(3))
    network = features.network
    network.features_list = ["2048", "logits_unbiased"]
    expected, logits = network(images(3).expand(-1, 3, -1, -1))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(features.logits(found), logits, rtol=1e-5)
    theirs = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(features.logits(found), splits=1).value == pytest.approx(theirs, rel=1e-4)
    assert features.provenance["resize"] == "tf"


def test_clip_and_dinov2_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    clip = CLIPVisual(512, 8, 1, 64, 4)
    state = clip.state_dict() | {"text_projection": torch.zeros(1, 512)}
    (tmp_path / "c.pt").write_bytes(b"stand-in")
    holding = type("Archive", (), {"state_dict": staticmethod(lambda: dict(state))})
    monkeypatch.setattr(torch.jit, "load", lambda path, map_location: holding)
    features = FidelityFeatures(standing_in("clip_vitb32", tmp_path / "c.pt"), cache=tmp_path)
    assert features(images(2)).shape == (2, 512) and features.logits is None
    np.testing.assert_array_equal(features(images(2)), features.network(images(2).expand(-1, 3, -1, -1))[0])

    asked = []
    small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1024))
    monkeypatch.setattr(torch.hub, "load", lambda *arguments: asked.append(arguments) or small)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / PUBLISHED["dinov2_vitl14"].file).write_bytes(b"stand-in")
    features = extractor("dinov2_vitl14", SHAPE)
    assert asked == [("facebookresearch/dinov2", "dinov2_vitl14")] and features(images(2, 3)).shape == (2, 1024)
    with pytest.raises(PDSError, match=r"dinov2_vitl14 features need uint8 images of shape \(n, 1 or 3, H, W\)"):
        features(images(2, 2))


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("choice", PUBLISHED)
def test_a_missing_network_is_named_with_its_source_checksum_and_place(choice, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = PUBLISHED[choice]
    with pytest.raises(MissingError) as raised:
        extractor(choice, SHAPE, cache=tmp_path)
    said = str(raised.value)
    assert published.url in said and str(tmp_path / published.file) in said
    assert (f"sha256 {published.sha256}" if published.sha256 else "no published checksum") in said


@pytest.mark.usefixtures("_offline")
def test_a_network_without_its_code_or_torch_fidelity_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / PUBLISHED["dinov2_vitl14"].file).write_bytes(b"stand-in")
    with pytest.raises(MissingError, match=r"put the repository https://github\.com/facebookresearch/dinov2 at .*dinov2_main"):
        extractor("dinov2_vitl14", SHAPE)
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", None)
    with pytest.raises(MissingError, match=r"clip_vitb32 features need torch-fidelity: pip install 'pds-lab\[features\]'"):
        extractor("clip_vitb32", SHAPE, cache=tmp_path)


class Means(nn.Module):
    def forward(self, x):
        return x.float().mean((2, 3)).repeat(1, 4) / 255


OWN = """
import torch
def rows(images): return images.float().mean(3).flatten(1)
def number(images): return 3
def fails(images): raise RuntimeError("no idea")
def flat(images): return images.float().mean((1, 2, 3))
"""


def test_own_features_measure_like_any_other(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    data = {split: ArrayImages("own", split, images(60, seed=seed).numpy()) for split, seed in (("train", 1), ("test", 2))}
    dataset = Dataset("own", SHAPE, lambda split="train": data[split], reference=MadeReference(60))
    make = partial(panel_metric, dataset, cache=tmp_path / "cache", kid_size=20)
    measures = ["fid", "kid", "precision", "memorisation"]
    panel = make(features=f"{tmp_path}/mine.py:rows", measures=measures)
    found = panel.measure(panel.features(images(50)))
    assert list(found.metrics)[:2] == ["fid_rows_native_n50", "kid20_rows_native_n50"] and panel.features.dimension == 12
    panel = make(features=str(tmp_path / "means.pt"), measures=["kid"])
    assert list(panel.measure(panel.features(images(50))).metrics) == ["kid20_means_native_n50"]
    with pytest.raises(PDSError, match="measures has inception_score, which needs classes, and rows features have none"):
        make(features=f"{tmp_path}/mine.py:rows", measures=["inception_score"])


def test_the_networks_of_own_features_are_in_evaluation_mode(tmp_path):
    (tmp_path / "mine.py").write_text(OWN + "drop = torch.nn.Dropout(0.5)\ndef dropped(images): return drop(rows(images))\n")
    dropped, rows = (OwnFeatures(f"{tmp_path}/mine.py:{name}", SHAPE)(images(3)) for name in ("dropped", "rows"))
    np.testing.assert_array_equal(dropped, rows)


def test_own_features_that_cannot_be_are_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "no.pt").write_bytes(b"no network")
    for source, says in {
        f"{tmp_path}/mine.py:number": r"features .*mine\.py:number gives int, not an \(n, D\) tensor of 1 images",
        f"{tmp_path}/mine.py:flat": r"gives \(1,\), not an \(n, D\) tensor",
        f"{tmp_path}/mine.py:fails": r"fails on images of shape \(1, 1, 12, 12\): RuntimeError, no idea",
        f"{tmp_path}/mine.py:colums": "has no such class or function, only rows|only fails",
        f"{tmp_path}/no.pt": "is no TorchScript file",
        f"{tmp_path}/absent.pt": "which is no file",
    }.items():
        with pytest.raises(PDSError, match=says):
            OwnFeatures(source, SHAPE)
