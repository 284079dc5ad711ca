"""Our own weights files: their content, its integrity, and hostile content."""

import json
import struct
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import pds
from pds.errors import PDSError
from pds.files import ASSETS
from pds.models.safetensors_files import (
    TITLES,
    _flat,
    as_configuration,
    read_configuration,
    read_safetensors,
    save_weights,
    state_digest,
)

CONFIG = {"model": {"kind": "ncsnpp", "width": 4, "process": {"kind": "VE", "sigma_max": 16.0}}, "dataset": {"name": "mnist"}}


def state():
    generator = torch.Generator().manual_seed(0)
    weights = {"weight": torch.randn(20, 30, generator=generator), "half": torch.zeros(5).half(), "count": torch.tensor(3)}
    return weights | {
        "bfloat": torch.ones(2, 2).bfloat16(),
        "empty": torch.zeros(0, 2),
        "turned": torch.arange(6.0).view(2, 3).T,
    }


def test_every_flipped_bit_of_our_own_files_is_refused_or_changes_nothing(tmp_path):
    path, rng = tmp_path / "w.safetensors", np.random.default_rng(0)
    save_weights(state(), path, {"config": json.dumps(CONFIG), "weights": "ema"})
    whole, expected = path.read_bytes(), read_safetensors(path)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for position in [*rng.integers(header, len(whole), 60), *rng.integers(header, size=60)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if position < header:
            try:
                tensors, metadata = read_safetensors(path)
            except PDSError:
                continue
            # A space of the padding, or the name of the digest, which then is ordinary text.
            assert state_digest(tensors) == state_digest(expected[0])
            assert metadata == expected[1] or expected[1].items() < metadata.items()
        else:
            with pytest.raises(PDSError, match=r"w\.safetensors is damaged"):
                read_safetensors(path)


def test_the_digest_is_of_names_shapes_types_and_numbers():
    first = state()
    others = [
        {**first, "weight": first["weight"].view(30, 20)},
        {**first, "weight": first["weight"].T},
        {**first, "weight": first["weight"] + 1e-6},
        {**first, "half": first["half"].bfloat16()},
        {name if name != "half" else "halves": value for name, value in first.items()},
        {name: value for name, value in first.items() if name != "empty"},
    ]
    assert len({state_digest(other) for other in [first, *others]}) == 7
    assert state_digest(first, {"a": "b"}) != state_digest(first)
    again = {name: first[name].clone(memory_format=torch.contiguous_format) for name in reversed(first)}
    assert state_digest(again) == state_digest(first)


def test_files_of_others_need_no_digest(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"format": "pt"})
    assert read_safetensors(tmp_path / "w.safetensors")[1] == {"format": "pt"}
    assert read_configuration(tmp_path / "w.safetensors") == {}


def test_what_was_written_as_yaml_with_class_paths_is_read_as_what_is_written_now(tmp_path):
    old = {
        "model._target_": "pds.models.ncsnpp.ncsnpp",
        "model.width": 4,
        "dataset.name": "mnist",
        "model.process.sigma_max": 16.0,
    }
    old |= {"model.process._target_": "pds.processes.forward.VarianceExploding", "dataset.source._partial_": True}
    save_file({"a": torch.ones(1)}, tmp_path / "old.safetensors", {"config": yaml.safe_dump(old)})
    save_weights({"a": torch.ones(1)}, tmp_path / "new.safetensors", {"config": json.dumps(as_configuration(old))})
    for name in ("old", "new"):
        found = read_configuration(tmp_path / f"{name}.safetensors")
        assert found == CONFIG | {"dataset": {"name": "mnist"}}
    for name, title in TITLES.items():
        assert getattr(pds, name).title == title


def laughs(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)])


HOSTILE = {
    "bomb of aliases": laughs(10),
    "small bomb": laughs(7),
    "deep flow": "model.a: " + "[" * 200_000,
    "deep json": '{"model": ' * 100_000,
    "digits": f'{{"model": {{"width": {"9" * 100_000}}}}}',
    "infinite": '{"model": {"width": 1e999}}',
    "tag": "model.width: !!python/object/apply:os.system [ls]",
    "name": "model.width: !!python/name:os.system",
    "list": "[1, 2]",
    "number": "3",
    "keys": "1: 2",
    "model is text": '{"model": "ncsn"}',
    "dataset is a list": '{"model": {}, "dataset": []}',
    "both": "model: 1\nmodel.width: 2",
    "surrogate": '{"model": {"width": "\\ud800"}}',
    "cut": '{"model": {"width": 4',
    "tab": "\tmodel: 1",
    "none": "null",
    "huge": "model.a: " + "x" * 2_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_are_refused_at_once_in_one_sentence(tmp_path, name):
    save_weights({"a": torch.ones(1)}, tmp_path / "w.safetensors", {"config": HOSTILE[name]})
    begun = time.process_time()
    with pytest.raises(PDSError, match="not a file with a table of options as its metadata `config`") as error:
        read_configuration(tmp_path / "w.safetensors")
    assert time.process_time() - begun < 2
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


def test_mutants_of_the_metadata_are_read_or_refused(tmp_path):
    path, rng = tmp_path / "w.safetensors", np.random.default_rng(0)
    texts = [json.dumps(CONFIG), yaml.safe_dump({"model._target_": "a.b", "model.shape": [1, 2], "dataset.name": "x"})]
    alphabet = np.array(list('{}[]":,&*!-\n\t\\ 019.eE\x1b\u202e~#|>%@`'))
    for i in range(200):
        text = list(texts[i % 2])
        for position in rng.integers(len(text), size=3):
            text[position] = str(rng.choice(alphabet))
        save_weights({"a": torch.ones(1)}, path, {"config": "".join(text)})
        try:
            found = read_configuration(path)
        except PDSError as error:
            said = str(error)
        else:
            said = ""
            assert isinstance(found, dict) and isinstance(found.get("model", {}), dict)
        assert said.isprintable()


def test_what_is_no_regular_file_or_no_safetensors_file_is_told(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "claims.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    for name, says in {
        "folder": "is not a file.*no regular file|is not a whole.*no regular file",
        "text": "is not a whole safetensors file",
        "empty": "is not a whole safetensors file",
        "claims": "is not a whole safetensors file",
        "absent": "does not exist",
    }.items():
        for read in (read_safetensors, read_configuration):
            with pytest.raises(PDSError, match=rf"{name}\.safetensors {says}"):
                read(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("name", ["mnist_ncsn", "mnist_ncsnpp", "mnist_ddpmpp"])
def test_the_files_that_ship_need_no_parser_of_yaml(name):
    text = read_safetensors(ASSETS / f"{name}.safetensors")[1]["config"]
    assert _flat(text) == yaml.safe_load(text)


ODD_YAML = ["a: yes", "a: 1e5", "a: 010", "a:", "a:\n- - 1", "a: [1]", "a: 'b'", "a: b # c", "a: &x 1", "- 1", "on: 1", ""]
ODD_YAML += ["a: 1\na: 2", "a:\n  b: 1", "a: b\n- c", "a: 1_000", "a: 2020-01-01", "a: ~", "a: b: c", "a: 0x10", "a: 1:20"]


@pytest.mark.parametrize("text", ODD_YAML)
def test_what_is_not_of_the_simplest_form_is_left_to_the_parser(text):
    assert _flat(text) is None
