"""Files of `torch.save`, and pickles with tensors, read without running any code that they name.

Such a file is a program for Python's unpickler, which imports and calls anything that the file names. Here a small machine runs
the program. It can build lists, tables, numbers, text and tensors; anything else becomes an `Inert` value.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from pds.files import open_regular, reading

MOST = 1 << 42  # bytes of a file
MOST_STEPS = 1_000_000  # operations of a pickle; a tensor takes some 40
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# Operations that push a number, text or bytes from the pickle.
PLAIN = {
    opcode.name
    for opcode in pickletools.opcodes
    if not opcode.stack_before
    and len(opcode.stack_after) == 1
    and opcode.stack_after[0].name in ("int", "int_or_bool", "float", "str", "bytes", "bytes_or_str")
}
MODULES = "torch.nn.modules.container.ModuleDict"
TABLES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")

Storage = Callable[[torch.dtype, str, int], Tensor]
"""(dtype, key, count) -> (count,) numbers that a file keeps under a key."""


Unpack = Callable[[bytes], Any]
"""The numbers of a file of `torch.save` that lies in a pickle as bytes."""


class _Modules(dict[str, Any]):
    """The attributes of a `ModuleDict`, which a pickle sets after it has made it."""


class Inert(NamedTuple):
    """Something that is neither plain data nor a tensor; only its name is known.

    Attributes:
        name: name of the class or function, as "argparse.Namespace".
    """

    name: str


def read_torch(path: Path, fix: str = "fetch it again") -> Any:
    """Read a file of `torch.save`, in its present or its older format, and import and call nothing.

    Tensors are on the CPU and share the file's memory, so that unused ones take none. Tables of any class become dictionaries.

    Args:
        path: the file.
        fix: what the user can do if it is damaged.

    Raises:
        PDSError: the file is absent, cut or damaged. The checksums of its entries show damage; the older format has none.
    """
    with reading(path, "a whole file of torch.save", fix), open_regular(path, MOST) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _archived(file, content) if content[:2] == b"PK" else _streamed(content)


def read_pickle(path: Path, what: str) -> Any:
    """Read a pickle that holds tensors, and import and call nothing.

    Networks whose class keeps its source (`persistence` of EDM and StyleGAN) are tables of class_name, module_src and state.

    Args:
        path: the file.
        what: what it should be, as in "a pickle of EDM".

    Raises:
        PDSError: it is absent, cut or damaged.
    """
    with reading(path, what, "fetch it again"), open_regular(path, MOST) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        steps, left = iter(range(MOST_STEPS)), len(content)

        def unpack(packed: bytes) -> Tensor:
            nonlocal left
            left -= len(packed)
            if left < 0:  # a few bytes that are unpacked again and again
                raise ValueError("its numbers overlap")
            copy = mmap.mmap(-1, max(len(packed), 1))
            copy[: len(packed)] = packed
            numbers = _streamed(copy, steps)
            if not isinstance(numbers, Tensor):
                raise ValueError("it holds no numbers where they should be")
            return numbers

        return _run(content, lambda dtype, key, count: torch.empty(0), steps, unpack)


def _archived(file: BinaryIO, content: mmap.mmap) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in entries):
            raise ValueError("it is a program of TorchScript")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are packed")
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("its entries overlap")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its entry {damaged} has another checksum than it says")
    (pickled,) = (name for name in entries if name.split("/")[1:] in ([], ["data.pkl"]) and name.endswith("data.pkl"))
    root = pickled.removesuffix("data.pkl")

    def start(entry: zipfile.ZipInfo) -> int:
        name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
        return entry.header_offset + 30 + name + extra

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        entry = entries[f"{root}data/{key}"]
        if count * dtype.itemsize > entry.file_size:
            raise ValueError(f"its entry {entry.filename} is shorter than its table says")
        return _numbers(content, start(entry), dtype, count)

    if f"{root}byteorder" in entries:
        at = start(entries[f"{root}byteorder"])
        if content[at : at + 3] != b"lit":
            raise ValueError("it was written by a machine of another byte order")
    content.seek(start(entries[pickled]))
    return _run(content, storage)


def _streamed(content: mmap.mmap, steps: Iterator[int] | None = None) -> Any:
    """The format before torch 1.6: five pickles (magic, version, machine, object, keys), then the numbers."""
    counts: dict[str, tuple[torch.dtype, int]] = {}
    starts: dict[str, int] = {}

    def absent(dtype: torch.dtype, key: str, count: int) -> Tensor:
        counts[key] = dtype, count
        return torch.empty(count, dtype=dtype, device="meta")

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        return _numbers(content, starts[key], dtype, count)

    if _run(content, absent, steps) != MAGIC or _run(content, absent, steps) != VERSION:
        raise ValueError("it does not begin as one")
    _run(content, absent, steps)
    begin = content.tell()
    _run(content, absent, steps)  # to learn its keys, and where it ends
    for key in _run(content, absent, steps):
        dtype, count = counts[key]
        if struct.unpack("<q", content.read(8))[0] != count:
            raise ValueError("its numbers are not those of its table")
        starts[key] = content.tell()
        content.seek(starts[key] + count * dtype.itemsize)
    content.seek(begin)
    return _run(content, storage, steps)


def _numbers(content: mmap.mmap, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if not 0 <= count * dtype.itemsize <= len(content) - start:
        raise ValueError("it is cut")
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)


def _no_file(packed: bytes) -> Inert:
    return Inert("torch.storage._load_from_bytes")


def _run(stream: mmap.mmap, storage: Storage, steps: Iterator[int] | None = None, unpack: Unpack = _no_file) -> Any:
    """Return the value of one pickle, from where the stream stands; `steps` are those that it may take."""
    steps = iter(range(MOST_STEPS)) if steps is None else steps
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    opcodes: Any = pickletools.genops(cast(IO[bytes], stream))
    for opcode, value, _ in opcodes:
        if next(steps, None) is None:
            raise ValueError("its table is longer than that of any network")
        if opcode.name in PLAIN:
            stack.append(value)
            continue
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                # The top of the stack may be a mark.
                marks.pop() if marks and marks[-1] == len(stack) else stack.pop()
            case "POP_MARK":
                marked()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(marked()))
            case "LIST":
                stack.append(marked())
            case "DICT":
                stack.append(_filled({}, marked()))
            case "EMPTY_SET":
                stack.append(Inert("builtins.set"))
            case "FROZENSET":
                marked()
                stack.append(Inert("builtins.frozenset"))
            case "APPEND":
                _extended(stack, [stack.pop()])
            case "APPENDS":
                _extended(stack, marked())
            case "ADDITEMS":
                marked()
            case "SETITEM":
                pair = stack[-2:]
                del stack[-2:]
                _filled(stack[-1], pair)
            case "SETITEMS":
                pairs = marked()
                _filled(stack[-1], pairs)
            case "GLOBAL":
                stack.append(Inert(value.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack[-2:] = [Inert(".".join(map(str, stack[-2:])))]
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Inert(f"copyreg extension {value}"))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = _called(stack[-1], arguments, unpack)
            case "NEWOBJ_EX":
                del stack[-2:]
                stack[-1] = _called(stack[-1], (), unpack)
            case "INST":
                stack.append(_called(Inert(value.replace(" ", ".")), marked(), unpack))
            case "OBJ":
                made, *arguments = marked()
                stack.append(_called(made, arguments, unpack))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Modules) and isinstance(state, dict):
                    stack[-1].update(state)
            case "PERSID":
                stack.append(Inert("persistent"))
            case "BINPERSID":
                stack[-1] = _stored(stack[-1], storage)
            case other:
                raise ValueError(f"it holds {other}")
    raise EOFError("it is cut")


def _extended(stack: list[Any], values: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(values)


def _filled(table: Any, pairs: list[Any]) -> Any:
    """The table, with the pairs whose keys are plain added; the hash of another key may never end."""
    if isinstance(table, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, (str, int, float, bytes, type(None))):
                table[key] = value
    return table


def _stored(identity: Any, storage: Storage) -> Any:
    match identity:
        case ("storage", Inert(name), str(key), _, int(count)) | ("storage", Inert(name), str(key), _, int(count), None):
            module, _, kind = name.rpartition(".")
            if module in ("torch", "torch.cuda", "torch.storage") and kind in DTYPES:
                return storage(DTYPES[kind], key, count)
            return Inert(name)
    return Inert("persistent")


def _called(function: Any, arguments: Any, unpack: Unpack) -> Any:
    """Return the result of a call of `function`, if this is known to make a table or a tensor."""
    if not isinstance(function, Inert):
        return Inert("no function")
    module, _, name = function.name.rpartition(".")
    match module, name, arguments:
        case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", (Tensor() as numbers, offset, size, stride, *_):
            return torch.as_strided(numbers, size, stride, offset)  # this refuses a view outside of its numbers
        case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", (Tensor() as data, *_):
            return data
        case "torch._tensor", "_rebuild_from_type_v2", (inner, _, inner_arguments, *_):
            return _called(inner, inner_arguments, unpack)
        case "torch", "Size", (tuple() as size,):
            return size
        case "torch.storage", "_load_from_bytes", (bytes() as packed,):
            return unpack(packed)
        case "torch_utils.persistence", "_reconstruct_persistent_obj", (dict() as network,):
            return network
        case _ if function.name == MODULES:
            return _Modules()
        case _ if function.name in TABLES:
            # Python 2 hands over a list of pairs; a defaultdict its factory.
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            return _filled({}, [part for pair in pairs for part in pair[:2]])
    return function
