"""The shipped files are the pinned ones."""

import hashlib
import shutil

import numpy as np
import pytest

import pds.files
from pds.errors import PDSError
from pds.files import ASSETS, locate, pin


def test_every_file_that_ships_is_pinned():
    pinned = dict(reversed(line.split()) for line in (ASSETS / "SHA256SUMS").read_text().splitlines())
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in ASSETS.iterdir()
        if path.suffix in (".safetensors", ".npz", ".json")
    }
    assert found == pinned, "pin what changed: pds.files.pin"


def test_a_flipped_bit_of_a_file_that_ships_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pds.files, "ASSETS", tmp_path)
    shutil.copy(ASSETS / "SHA256SUMS", tmp_path)
    name = "mnist_statistics.npz"
    whole, rng = (ASSETS / name).read_bytes(), np.random.default_rng(0)
    for position in rng.integers(len(whole), size=50):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / name).write_bytes(damaged)
        for spelled in (f"asset:{name}", str(tmp_path / name)):
            with pytest.raises(PDSError, match="is not the file that shipped"):
                locate(spelled)
    (tmp_path / name).write_bytes(whole)
    assert locate(f"asset:{name}") == tmp_path / name
    assert locate("asset:mine") == tmp_path / "mine.safetensors"  # as `pds.load` and model.checkpoint have it
    (tmp_path / "new.npz").write_bytes(b"new")
    pin(tmp_path / "new.npz")
    assert locate("asset:new.npz") == tmp_path / "new.npz"
    (tmp_path / "new.npz").unlink()
    with pytest.raises(PDSError, match="is not the file that shipped"):
        locate("asset:new.npz")
