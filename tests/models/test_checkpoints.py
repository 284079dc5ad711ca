"""Weights files as their authors write them, and files that are not what they should be."""

import os

import pytest
import torch

from pds.errors import PDSError
from pds.models.checkpoints import load_weights, read_checkpoint, save_weights
from pds.models.ncsn import NCSN


def network(width=4, levels=3, channels=1):
    torch.manual_seed(width)
    return NCSN(channels, width, levels)


def published(path, source):
    """[model, optimizer] saved from a DataParallel wrapper, as the NCSN code does."""
    wrapped = torch.nn.DataParallel(source)
    optimizer = torch.optim.Adam(wrapped.parameters())
    wrapped.module.begin_conv.weight.sum().backward()
    optimizer.step()
    torch.save([wrapped.state_dict(), optimizer.state_dict()], path)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trips(tmp_path):
    source = network()
    published(tmp_path / "checkpoint.pth", source)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    save_weights(source.state_dict(), tmp_path / "weights.safetensors", {"made": "here"})
    for file, layout in (("checkpoint.pth", "list"), ("state.pt", "state dict"), ("weights.safetensors", "safetensors")):
        torch.manual_seed(99)
        target = NCSN(1, 4, 3)
        assert not same(source, target)
        assert load_weights(target, tmp_path / file).layout == layout
        assert same(source, target)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (network(width=6), r"begin_conv\.weight of shape \(4, 1, 3, 3\) where the model has \(6, 1, 3, 3\)"),
        (network(levels=5), r"normalizer\.embed\.weight of shape \(3, 12\) where the model has \(5, 12\)"),
        (network(channels=3), r"begin_conv\.weight of shape \(4, 1, 3, 3\) where the model has \(4, 3, 3, 3\)"),
        (torch.nn.Linear(2, 2), r"no parameter weight \(2, 2\)"),
    ],
)
def test_another_network_is_refused_whole(tmp_path, target, says):
    published(tmp_path / "checkpoint.pth", network())
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(PDSError, match=says) as error:
        load_weights(target, tmp_path / "checkpoint.pth")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_broken_and_hostile_files_give_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "whole.pth", network())
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-3000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([{"begin_conv.weight": Hostile()}], tmp_path / "hostile.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    save_weights(network().state_dict(), tmp_path / "whole.safetensors", {})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-3000])
    broken = network().state_dict()
    broken["end_conv.bias"][0] = torch.nan
    save_weights(broken, tmp_path / "nan.safetensors", {})
    extra = network().state_dict() | {"surplus": torch.zeros(1)}
    save_weights(extra, tmp_path / "extra.safetensors", {})
    says = {
        "cut.pth": "truncated",
        "text.pth": "cannot be read",
        "empty.pth": "cannot be read",
        "hostile.pth": "holds code",
        "numbers.pth": "no table of tensors",
        "cut.safetensors": "not a whole safetensors",
        "nan.safetensors": "end_conv.bias that are not finite",
        "extra.safetensors": "a parameter surplus",
        "absent.pth": "does not exist",
    }
    for file, sentence in says.items():
        with pytest.raises(PDSError, match=sentence) as error:
            load_weights(network(), tmp_path / file)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "hostile-code-ran").exists()
    assert read_checkpoint("asset:mnist_ncsn.safetensors").layout == "safetensors"
