"""Files that are read back: any file that is not whole and right is refused in one sentence."""

import io
import json
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import yaml

from pds.files import Array, DamagedError, read_json, read_npz, read_yaml

SCHEMA = {
    "images": Array("uint8", ("N", 1, "side", "side")),
    "features": Array("float32", ("N", "D"), low=-10, high=10, optional=True),
    "nfe": Array("float", low=0),
    "note": Array("str"),
}
KEYS = {"count": int, "values": list[float], "name": str, "about": dict}


def arrays():
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (3, 1, 4, 4), np.uint8),
        "features": rng.standard_normal((3, 5), np.float32),
        "nfe": np.array(7.0),
        "note": np.array('{"a": 1}'),
    }


def read(path):
    return read_npz(path, SCHEMA, "a file of this test", "make it again")


def refused(path, reader=read):
    """The one sentence that a file is refused with."""
    with pytest.raises(DamagedError) as raised:
        reader(path)
    message = str(raised.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 500
    return message


def same(content):
    whole = arrays()
    return content.keys() == whole.keys() and all(np.array_equal(content[key], whole[key]) for key in whole)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bytes_damaged_anywhere_never_give_other_arrays(tmp_path, save):
    draw, path, count = random.Random(0), tmp_path / "x.npz", 0
    save(path, **arrays())
    assert same(read(path))
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        kind = draw.randrange(5)
        at = draw.randrange(len(damaged))
        if kind == 0:
            damaged[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            damaged[at : at + draw.randrange(1, 30)] = draw.randbytes(draw.randrange(30))
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at : at + 8] = struct.pack("<Q", draw.choice([0, 2**31, 2**63, 2**64 - 1]))
        else:
            damaged[at:at] = draw.randbytes(50)
        path.write_bytes(damaged)
        try:
            content = read(path)
        except DamagedError:
            count += 1
        else:
            assert same(content)  # nothing depends on some bytes, such as the time of an entry
    assert count >= 100


def lie(shape="(3, 5)", descr="'<f4'", order="False", header=None, payload=b"\0" * 60, magic=b"\x93NUMPY\x01\x00"):
    """An npy of any header."""
    text = header if header is not None else f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return magic + struct.pack("<H", len(text) + 1) + text.encode("latin1") + b"\n" + payload


NUMBERS = (-np.inf, np.inf, np.nan, -11, 10.5, 3e38)
LIES = [
    {"order": "None"},
    *({"shape": shape} for shape in ("(2**70,)", f"({2**70}, 5)", f"({10**11}, 5)", "(3,)", "(3, 5, 1)", "(-3, 5)", "()")),
    *({"shape": shape} for shape in ("(True, 5)", "'x'", "(3, 4)", "(3, 6)", "(2, 5)", "(0, 5)", "(3, 0)", "[3, 5]", "3, 5")),
    *({"shape": shape} for shape in ("(" * 3000, "(3.0, 5)", "(3, 5", "(3, None)")),
    *({"descr": descr} for descr in ("'<f8'", "'|u1'", "'>f4'", "'<c8'", "'|b1'", "'<U4'", "'|S4'", "'|O'", "'<M8[s]'")),
    *({"descr": descr} for descr in ("[('a', '<f4')]", "'|V4'", "'<U0'", "None", "{}", "('<f4', (2,))", "'x'", "9", "'<f2'")),
    *({"header": header} for header in ("", "{", "{}", "x" * 60000, "{'descr': '<f4'}", "os.abort()", "'" * 3, "\0")),
    *({"magic": magic + bytes([n, 0])} for magic in (b"\x93NUMPY", b"PK") for n in (0, 2, 3, 4)),
    *({"payload": payload} for payload in (b"", b"\0" * 59, b"\0" * 61)),
    *({"payload": np.full(15, value, np.float32).tobytes()} for value in NUMBERS),
]


def test_headers_that_lie_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.npz"
    others = {name: io.BytesIO() for name in ("images", "nfe", "note")}
    for name, buffer in others.items():
        np.save(buffer, arrays()[name])
    assert len(LIES) >= 50
    for case in [{}, *LIES]:
        with zipfile.ZipFile(path, "w") as archive:
            for name, buffer in others.items():
                archive.writestr(f"{name}.npy", buffer.getvalue())
            archive.writestr("features.npy", lie(**case))
        if not case:
            assert read(path)["features"].sum() == 0
            continue
        tracemalloc.start()
        assert "features" in refused(path), case
        assert tracemalloc.get_traced_memory()[1] < 3 << 20, case
        tracemalloc.stop()


def test_arrays_of_another_kind_or_name_are_refused(tmp_path):
    rng, path, count = np.random.default_rng(0), tmp_path / "x.npz", 0
    dtypes = [
        "bool",
        "uint8",
        "int8",
        "int64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "U5",
        "S5",
        "datetime64[s]",
        ">f4",
    ]
    for name, wanted in SCHEMA.items():
        whole = arrays()
        wrong = [
            whole[name].astype("U9").astype(dtype) if dtype[0] in "US" else np.ones(whole[name].shape, dtype)
            for dtype in dtypes
        ]
        wrong = [array for array in wrong if not wanted.fits(array.dtype)]
        wrong += [whole[name][None], np.repeat(whole[name][None], 2, 0), whole[name].ravel()[:0], np.array(None, object)]
        if wanted.shape:
            wrong += [whole[name][:2], whole[name][..., :1, :-1], np.concatenate([whole[name]] * 2), whole[name][0]]
        if wanted.kind.startswith("float"):
            for value in (np.nan, np.inf, -np.inf, -11):
                array = whole[name].copy()
                array.flat[rng.integers(array.size)] = value
                wrong.append(array)
        for array in wrong:
            np.savez(path, **whole | {name: array})
            refused(path)
            count += 1
        if not wanted.optional:
            np.savez(path, **{key: array for key, array in whole.items() if key != name})
            assert f"it has no {name}" in refused(path)
        np.savez(path, **{key if key != name else f"{key}x": array for key, array in whole.items()})
        refused(path)
    assert count >= 50
    without = {key: array for key, array in arrays().items() if key != "features"}
    np.savez(path, **without)
    assert read(path).keys() == without.keys()


def test_archives_that_unpack_hugely_or_are_packed_oddly_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **arrays() | {"images": np.zeros((3, 1, 2000, 2000), np.uint8)})
    assert path.stat().st_size < 1 << 15
    assert "unpacks to more than" in refused(path, lambda path: read_npz(path, SCHEMA, "x", "y", most=1 << 20))
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, array in arrays().items():
                np.save(buffer := io.BytesIO(), array)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        assert "packed" in refused(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    refused(path.with_suffix(".npy"))


def test_the_first_rows_alone_can_be_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **arrays())
    first = read_npz(tmp_path / "x.npz", SCHEMA, "x", "y", rows=2)
    assert np.array_equal(first["images"], arrays()["images"][:2]) and first["features"].shape == (2, 5)
    transposed = arrays() | {"images": np.asfortranarray(arrays()["images"].copy().transpose(0, 1, 3, 2))}
    np.savez(tmp_path / "x.npz", **transposed)
    assert np.array_equal(read(tmp_path / "x.npz")["images"], transposed["images"])


TABLE = {"count": 3, "values": [1.5, 2.0], "name": "αβ", "about": {"deep": [{"x": None}], "yes": True}}


@pytest.mark.parametrize(("reader", "write"), [(read_json, json.dumps), (read_yaml, yaml.safe_dump)])
def test_text_damaged_anywhere_is_refused_or_a_table_of_plain_values(tmp_path, reader, write):
    draw, path = random.Random(0), tmp_path / "x"
    path.write_text(write(TABLE), encoding="utf-8")
    assert reader(path, KEYS, "x", "y") == TABLE
    whole, count = path.read_bytes(), 0
    tokens = [
        b"[",
        b"{",
        b"}",
        b"]",
        b'"',
        b":",
        b"\0",
        b"\xff",
        b"\t",
        b"&a ",
        b"*a",
        b"!!python/name:os.abort ",
        b"9" * 5000,
        b"<<: ",
    ]
    tokens += [
        b"\\ud800",
        b"2020-13-45",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"---\n",
        b"%YAML 9.9\n",
        b"\xef\xbb\xbf",
        b"? ",
        b"1:" * 999 + b"1",
    ]
    for _ in range(150):
        damaged = bytearray(whole)
        at = draw.randrange(len(damaged))
        damaged[at : at + draw.randrange(5)] = draw.choice([draw.choice(tokens), draw.randbytes(3)])
        path.write_bytes(damaged)
        try:
            content = reader(path, KEYS, "x", "y")
        except DamagedError:
            count += 1
        else:
            json.dumps(content).encode()
            assert type(content["count"]) is int and all(type(value) is float for value in content["values"])
    assert count >= 50


def deep(reader):
    """Texts that are no table of these keys, or not for long."""
    brackets = ["[" * n for n in (70, 1000, 200_000)] + ["[" * n + "]" * n for n in (70, 1000, 200_000)]
    yield from brackets
    for n in (65, 1000, 100_000):
        yield '{"x":' * n + "1" + "}" * n
        yield json.dumps(TABLE)[:-1] + ', "more": ' + "[" * n + "]" * n + "}"
    for value in ("null", "1", '"x"', "[]", "true", "[1, 2]", "", " ", "\x00", "{1}", '"' + "x" * 10**6):
        yield value
    for key in TABLE:
        yield json.dumps({other: value for other, value in TABLE.items() if other != key})
    for key, wrong in {
        "count": [1.5, "3", None, True, [3]],
        "values": [[], 1, "x", ["1"], [None], [True], {}],
        "name": [1, None, []],
    }.items():
        for value in wrong:
            if value != []:
                yield json.dumps(TABLE | {key: value})
    for number in ("9" * 30, "9" * 5000, "9" * 500_000, "-" + "9" * 30):
        yield json.dumps(TABLE).replace(": 3", f": {number}")
    if reader is read_json:
        for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
            yield json.dumps(TABLE).replace("1.5", number)
        yield json.dumps(TABLE | {"name": "\ud800"})
        yield json.dumps(TABLE | {"\udfff": 1})
    else:
        bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
        bomb += "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12))
        whole = yaml.safe_dump(TABLE)
        yield bomb + whole
        yield "x: &x [*x]\n" + whole
        for more in (
            "1: 2",
            "null: 2",
            "[1, 2]: 3",
            "? {a: b}\n: 3",
            "x: 2020-01-01",
            "x: 2020-13-45",
            "x: !!binary aGFsbG8=",
            "x: !!set {a, b}",
        ):
            yield f"{more}\n{whole}"
        for more in (
            "!!python/object/apply:os.abort []",
            "!!python/name:os.abort",
            "!x 1",
            "\t- x",
            "1:" * 400_000 + "1",
            "0x" + "f" * 900_000,
        ):
            yield f"x: {more}\n{whole}"
        yield "--- \n" + whole + "---\n" + whole


@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_text_that_is_deep_long_or_of_another_kind_is_refused(tmp_path, reader):
    cases = list(deep(reader))
    assert len(cases) >= 50
    for number, text in enumerate(cases):
        path = tmp_path / f"{number}"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        start = time.process_time()
        refused(path, lambda path: reader(path, KEYS, "a table", "make it again"))
        assert time.process_time() - start < 3, text[:50]
    path.write_bytes(b" " * (65 << 20))
    refused(path, lambda path: reader(path, KEYS, "a table", "make it again"))
