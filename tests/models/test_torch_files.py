"""Files of torch.save, read without running anything: whole ones, damaged ones, hostile ones."""

import argparse
import os
import pickle
import pickletools
import re
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from pds.errors import PDSError
from pds.models.torch_files import Inert, read_torch


def content():
    base = torch.arange(24.0)
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.note = "kept beside"
    adam = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    adam.step()
    return {
        "tensors": {
            **{str(dtype): torch.ones(2, 3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64)},
            "bool": torch.tensor([True, False]),
            "complex": torch.ones(2, dtype=torch.complex64),
            "view": base.view(4, 6)[1:, ::2],
            "turned": base.view(4, 6).T,
            "same": base[3:9],
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 3),
            "repeated": torch.ones(1).expand(5),
            "parameter": parameter,
        },
        "table": OrderedDict(a=1, b=[1.5, "text", None, True, 2**70, b"bytes"]),
        "more": defaultdict(list, {"c": (1, (2, 3, 4, 5))}),
        "size": torch.Size([1, 2]),
        "optimizer": adam.state_dict(),
        3: "a number as a key",
    }


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected.detach())
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        for value, other in zip(found, expected, strict=True):
            assert_same(value, other)
    else:
        assert found == expected


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_that_is_plain_is_read_as_torch_reads_it(tmp_path, protocol, new):
    saved = content()
    path = tmp_path / "w.pth"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    found = read_torch(path)
    note = saved["table"]["b"].pop(), found["table"]["b"].pop()
    assert note[1] in (note[0], Inert("_codecs.encode"))  # bytes are a call before protocol 3
    assert_same(found, saved)
    assert_same(found["tensors"], torch.load(path, weights_only=False)["tensors"])


def outcome(path):
    """The content, or the sentence that refuses it."""
    try:
        return read_torch(path)
    except PDSError as error:
        return str(error)


def rezipped(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """The archive with other entries, and checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))


def test_entries_that_lie_anywhere_are_read(tmp_path):
    saved = {str(i): torch.randn(3, generator=torch.Generator().manual_seed(i)).to(torch.float64) for i in range(9)}
    torch.save(saved, tmp_path / "w.pth")
    rezipped(tmp_path / "w.pth")  # without the alignment of torch
    assert_same(read_torch(tmp_path / "w.pth"), saved)


def test_a_flipped_bit_is_refused_and_the_entry_is_named(tmp_path):
    saved, rng = {"weight": torch.randn(40, 50)}, np.random.default_rng(0)
    torch.save(saved, tmp_path / "w.pth")
    whole, refused = (tmp_path / "w.pth").read_bytes(), 0
    for position in rng.integers(len(whole), size=100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "d.pth").write_bytes(damaged)
        found = outcome(tmp_path / "d.pth")
        if isinstance(found, str):
            refused += 1
            entry = "data/0" if 1000 < position < 8000 else "is not a whole file|checksum"
            assert re.search(entry, found)
        else:  # bytes without a checksum (dates, padding) change nothing
            assert_same(found, saved)
    assert refused > 80


@pytest.mark.parametrize("new", [True, False])
def test_cut_files_are_refused(tmp_path, new):
    torch.save(content(), tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "w.pth").read_bytes()
    for length in [0, 1, 2, 5, *np.random.default_rng(0).integers(len(whole), size=50)]:
        (tmp_path / "w.pth").write_bytes(whole[:length])
        with pytest.raises(PDSError, match=r"w\.pth is (not a whole file of torch\.save|damaged)"):
            read_torch(tmp_path / "w.pth")


@pytest.mark.parametrize("new", [True, False])
def test_other_bytes_give_tensors_or_one_sentence(tmp_path, new):
    """Mutants of the pickle, with checksums that fit: no other error, nothing run, in little time."""
    path, rng = tmp_path / "w.pth", np.random.default_rng(0)
    small = {"a": torch.ones(3), "b": [OrderedDict(c=torch.zeros(2)), (1, 2.5, "x")], "n": argparse.Namespace(d=1)}
    torch.save(small, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    opcodes = np.array([ord(opcode.code) for opcode in pickletools.opcodes], np.uint8)

    def mutated(name, data):
        if new and not name.endswith("data.pkl"):
            return data
        data = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            data[position] = rng.choice(opcodes) if rng.random() < 0.7 else rng.integers(256)
        return bytes(data)

    begun = time.process_time()
    for _ in range(150):
        path.write_bytes(whole if new else mutated("", whole))
        if new:
            rezipped(path, mutated)
        found = outcome(path)
        assert not isinstance(found, str) or ("\n" not in found and len(found) < 1000)
    assert time.process_time() - begun < 20


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


MARK = "touch hostile-code-ran"
CALLS = {
    "os.system": lambda: Call(os.system, (MARK,)),
    "eval": lambda: Call(eval, (f"__import__('os').system({MARK!r})",)),
    "exec": lambda: Call(exec, (f"import os; os.system({MARK!r})",)),
    "getattr": lambda: Call(getattr, (Call(__import__, ("os",)), "system")),
    "open": lambda: Call(open, ("hostile-code-ran", "w")),
    "torch.load": lambda: Call(torch.load, ("other.pth",)),
    "torch.hub": lambda: Call(torch.hub.load_state_dict_from_url, ("http://127.0.0.1:9/x",)),
    "items": lambda: Call(list, (), None, iter([Call(os.system, (MARK,))])),
    "pairs": lambda: Call(dict, (), None, None, iter([("a", Call(os.system, (MARK,)))])),
    "state": lambda: Call(argparse.Namespace, (), {"state": Call(os.system, (MARK,))}),
    "key": lambda: {(1, Call(os.system, (MARK,))): 2},
    "rebuilt": lambda: Call(torch._utils._rebuild_parameter, (Call(os.system, (MARK,)), False, {})),
}


def by_hand():
    """Programs that no pickler writes: every opcode that makes or calls something."""
    command = b"X" + struct.pack("<I", len(MARK)) + MARK.encode()
    system = b"cposix\nsystem\n"
    yield b"(" + command + b"iposix\nsystem\n."  # INST
    yield b"(" + system + command + b"o."  # OBJ
    yield system + command + b"\x85R."  # REDUCE
    yield b"\x80\x02" + system + command + b"\x85\x81."  # NEWOBJ
    yield b"\x80\x04" + system + command + b"\x85}\x92."  # NEWOBJ_EX
    yield b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + command + b"\x85R."  # STACK_GLOBAL
    yield b"\x80\x02" + system + command + b"\x85b."  # BUILD
    yield b"\x80\x02\x82\x01" + command + b"\x85R."  # EXT1
    yield b"P" + MARK.encode() + b"\n."  # PERSID
    yield b"\x80\x02" + system + b"Q."  # BINPERSID
    yield b"\x80\x04\x8f(" + system + command + b"\x85R\x90."  # ADDITEMS


def in_torch(path, pickled):
    """A file of torch.save whose table is this pickle."""
    torch.save({"weight": torch.zeros(2)}, path)
    rezipped(path, lambda name, data: pickled if name.endswith("data.pkl") else data)


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("hostile-code-ran").exists()


@pytest.mark.parametrize("name", CALLS)
def test_what_a_file_would_run_is_inert_beside_the_weights(tmp_path, nothing_runs, name):
    for protocol in range(2, 6):
        for new in (True, False):
            saved = {"before": CALLS[name](), "weight": torch.ones(2), "after": [CALLS[name]()]}
            torch.save(saved, "w.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
            assert torch.equal(read_torch(tmp_path / "w.pth")["weight"], torch.ones(2))


def test_programs_run_nothing_in_any_protocol(tmp_path, nothing_runs):
    programs = [*by_hand(), *(pickle.dumps(make(), protocol) for make in CALLS.values() for protocol in range(6))]
    assert len(programs) > 60
    for program in programs:
        in_torch(tmp_path / "w.pth", program)
        read_torch(tmp_path / "w.pth")
        (tmp_path / "bare.pth").write_bytes(program)
        with pytest.raises(PDSError, match="not a whole file"):
            read_torch(tmp_path / "bare.pth")


def storage(key=b"0", count=b"K\x02", kind=b"FloatStorage"):
    return b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"


def tensor(size=b"K\x02\x85", stride=b"K\x01\x85", offset=b"K\x00", **changed):
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage(**changed) + offset + size + stride + b"\x89}tR."


HUGE, NEGATIVE = b"\x8a\x08" + struct.pack("<q", 2**60), b"J\xff\xff\xff\xff"
BOMBS = {
    "count": tensor(count=HUGE),
    "negative count": tensor(count=NEGATIVE),
    "size": tensor(size=HUGE + b"\x85"),
    "negative size": tensor(size=NEGATIVE + b"\x85"),
    "stride": tensor(stride=HUGE + b"\x85"),
    "negative stride": tensor(stride=NEGATIVE + b"\x85"),
    "offset": tensor(offset=HUGE),
    "no key": tensor(key=b"9"),
    "axes": tensor(size=b"K\x02K\x01\x86"),
    "text": tensor(size=b"X\x01\x00\x00\x00a\x85"),
    "wider": tensor(kind=b"DoubleStorage"),
    "memo": b"\x80\x02]r\xff\xff\xff\xff.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "long bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"a.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].",
    "depth": b"\x80\x02" + b"(" * 10 + b"]" + b"\x85" * 300_000 + b".",
    "deep key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "laughs as a key": b"\x80\x02})" + b"2\x86" * 100 + b"K\x01s.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "marks": b"(" * 100_000 + b".",
    "nothing": b".",
    "under the stack": b"000.",
    "no mark": b"\x80\x02]e.",
    "steps": b"\x80\x02" + b"]" * 1_100_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_inert_at_once(tmp_path, name):
    in_torch(tmp_path / "w.pth", BOMBS[name])
    begun = time.process_time()
    found = outcome(tmp_path / "w.pth")
    inert = {"memo": [], "frame": [], "depth": None, "deep key": {}, "laughs as a key": {}}
    if name in inert:
        assert inert[name] in (None, found)
    else:
        assert re.search("not a whole file of torch.save", found)
    assert time.process_time() - begun < 10


def test_archives_that_unpack_to_more_than_they_are_or_overlap_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1_000_000)}, path)
    rezipped(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PDSError, match="its entries are packed"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("w/data.pkl", "w/data/0", "w/data/1"):
            archive.writestr(name, bytes(1000))
        for entry in archive.infolist():  # all of them the first
            entry.header_offset, entry.orig_filename = 0, "w/data.pkl"
    with pytest.raises(PDSError, match=r"not a whole file|checksum|overlap"):
        read_torch(path)


def test_a_script_of_torch_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("w/data.pkl", "w/code/__torch__.py", "w/constants.pkl"):
            archive.writestr(name, bytes(100))
    with pytest.raises(PDSError, match="it is a program of TorchScript"):
        read_torch(tmp_path / "w.pt")


def test_a_whole_network_is_named(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    assert read_torch(tmp_path / "w.pth") == Inert("torch.nn.modules.linear.Linear")


def test_what_is_no_regular_file_is_told_as_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    (tmp_path / "folder.pth").mkdir()
    for path in (tmp_path / "pipe.pth", tmp_path / "folder.pth", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(PDSError, match=r"no regular file|cannot be read"):
            read_torch(path)
    for name in ("absent.pth", "loop.pth"):
        with pytest.raises(PDSError, match=r"does not exist|that can be read"):
            read_torch(tmp_path / name)


def test_the_memory_taken_is_that_of_the_file(tmp_path):
    # A second name of the same numbers costs nothing.
    weight = torch.zeros(1000, 1000)
    torch.save([weight, weight.view(-1)], tmp_path / "w.pth")
    first, second = read_torch(tmp_path / "w.pth")
    assert first.data_ptr() == second.data_ptr()
