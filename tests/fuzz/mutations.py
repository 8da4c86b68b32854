"""Damage that knows what it damages: a zip's members, a JSON document's values, a pickle's opcodes, the header of an array.

A *sample* is what a loader reads: the files of a folder, name → bytes. `mutate` gives another sample; everything it draws comes from the given
`random.Random`, so that a seed repeats it. Flipping the bytes of a zip finds little but its checksum; the mistakes of loaders lie deeper."""

import io
import json
import math
import pickletools
import re
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import tomli_w

Sample = dict[str, bytes]
LARGEST = 2**18
"""Bytes of a sample: beyond, a slow read would be no finding."""
NUMBERS = [
    0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 1000, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**40, 2**47, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**400, -1, -2, -128, -(2**31), -(2**63), -(10**30),
]  # fmt: skip
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e38, 3.5e38, 1e308, -1e308, math.nan, math.inf, -math.inf]
TEXTS = [
    "", "a", "\0", "é", "\ud83d\ude00", "../../etc/passwd", "/etc/passwd", "nan", "1e999", "x" * 300, "{}", "[]", "os:system", "%s%n",
    '{"type": "Discrete", "dtype": "int64", "start": 0, "n": 1000000000000}', '{"id": "CartPole-v1"}', "__import__('os').system('true')",
]  # fmt: skip


def mutate(sample: Sample, random: Random, other: Sample | None = None) -> Sample:
    """A copy with one to four mutations, mostly in one file; `other` is a sample from which parts may be taken."""
    files = dict(sample)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        if not files:
            break
        name = random.choice(sorted(files))
        if random.random() < 0.03:
            files = whole_files(files, name, random)
            continue
        donor = b"" if other is None else other.get(name, b"")
        files[name] = content(files[name], name, random, donor)[:LARGEST]
    return files


def whole_files(files: Sample, name: str, random: Random) -> Sample:
    """A file is missing, is empty, has another's name, or is exchanged with another."""
    change, another = random.randrange(4), random.choice(sorted(files))
    if change == 0:
        return {key: value for key, value in files.items() if key != name}
    if change == 1:
        return files | {name: b""}
    if change == 2:
        return files | {name: files[another]}
    return files | {name: files[another], another: files[name]}


def content(data: bytes, name: str, random: Random, donor: bytes = b"", depth: int = 0) -> bytes:
    """The bytes of one file, changed in the way of its kind; any file may be damaged as mere bytes too."""
    change = structure_of(data, name)
    if change is None or random.random() < 0.25:
        return damaged(data, random, donor)
    try:
        return change(data, random, depth)
    except Exception:  # earlier mutations may have left nothing that can be taken apart
        return damaged(data, random, donor)


def structure_of(data: bytes, name: str) -> Callable[[bytes, Random, int], bytes] | None:
    ending = name.rpartition(".")[2]
    if data.startswith(b"PK\x03\x04"):
        return zipped
    if data.startswith(b"\x89HDF"):
        return hdf5
    if data.startswith(b"\x93NUMPY"):
        return npy
    if ending == "safetensors":
        return safetensors
    if ending in ("pkl", "pickle") or data[:1] == b"\x80":
        return pickled
    if ending == "toml":
        return toml
    if ending in ("csv", "jsonl"):
        return lines
    if ending == "parquet" or data.startswith(b"PAR1"):
        return parquet
    return jsons if data[:1] in (b"{", b"[") else None


# Bytes


def damaged(data: bytes, random: Random, donor: bytes = b"") -> bytes:
    altered = bytearray(data)
    if not altered:
        return random.randbytes(random.randrange(64))
    place = position(len(altered), random)
    length = min(random.choice((1, 2, 4, 8, 16, 64, 256, 4096)), len(altered) - place)
    change = random.randrange(9)
    if change <= 1:
        for _ in range(random.choice((1, 1, 1, 2, 8))):
            altered[position(len(altered), random)] ^= 1 << random.randrange(8)
    elif change == 2:
        del altered[place:]
    elif change == 3:
        altered[place : place + length] = random.randbytes(length)
    elif change == 4:
        number = random.choice(NUMBERS) % 2**64
        form = random.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
        packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
        altered[place : place + len(packed)] = packed
    elif change == 5:
        del altered[place : place + length]
    elif change == 6:
        altered[place:place] = altered[place : place + length] * random.choice((1, 2, 30))
    elif change == 7:
        altered[place : place + length] = bytes([random.choice((0, 1, 0x7F, 0xFF))]) * length
    elif donor:
        begin = random.randrange(len(donor))
        altered[place : place + length] = donor[begin : begin + length]
    return bytes(altered)


def position(length: int, random: Random) -> int:
    """Anywhere, with a liking for both ends, where headers and tables of content are."""
    end = length if random.random() < 0.5 else min(length, 512)
    place = random.randrange(end)
    return place if random.random() < 0.7 else length - 1 - place


# JSON and TOML


def jsons(data: bytes, random: Random, depth: int) -> bytes:
    if random.random() < 0.02:
        deep = random.choice((900, 5_000, 100_000))
        return b"[" * deep + b"]" * deep if random.random() < 0.5 else b'{"a":' * deep + b"1" + b"}" * deep
    value = change_value(json.loads(data), random)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def toml(data: bytes, random: Random, depth: int) -> bytes:
    if random.random() < 0.03:
        deep = random.choice((300, 5_000))
        return data + b"\nextra = " + b"[" * deep + b"]" * deep
    if random.random() < 0.03:
        return data + b"\nextra = " + str(random.choice(NUMBERS)).encode() * random.choice((1, 500))
    return tomli_w.dumps(change_value(tomllib.loads(data.decode()), random)).encode()


def lines(data: bytes, random: Random, depth: int) -> bytes:
    """Lines of cells: lines are lost, doubled or moved, and a cell is changed."""
    rows = data.splitlines(keepends=True)
    i, j = random.randrange(len(rows)), random.randrange(len(rows))
    change = random.randrange(7)
    if change == 0:
        del rows[i]
    elif change == 1:
        rows[i:i] = rows[j : j + 1] * random.choice((1, 2, 50))
    elif change == 2:
        rows[i], rows[j] = rows[j], rows[i]
    elif rows[i][:1] == b"{":
        rows[i] = jsons(rows[i], random, depth) + b"\n"
    else:
        cells = rows[i].rstrip(b"\r\n").split(b",")
        cell = random.randrange(len(cells))
        new = random.choice(
            (*TEXTS, *map(str, FLOATS), *map(str, NUMBERS), '"', "1_0", " 7 ", "\r", "true", "y" * 50_000)
        )
        cells[cell] = new.encode("utf-8", "surrogatepass")
        rows[i] = b",".join(cells) + b"\n"
    return b"".join(rows)


def change_value(value: Any, random: Random) -> Any:
    """Another document: somewhere in it something is replaced, removed, doubled or renamed."""
    here = not isinstance(value, dict | list) or not value or random.random() < 0.08
    if here:
        return another(value, random)
    if isinstance(value, dict):
        key = random.choice(list(value))
        change = random.random()
        if change < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.14:
            return value | {random.choice(TEXTS): value[key]}
        if change < 0.18:
            return {(random.choice(TEXTS) if k == key else k): v for k, v in value.items()}
        return value | {key: change_value(value[key], random)}
    i = random.randrange(len(value))
    change = random.random()
    if change < 0.1:
        return value[:i] + value[i + 1 :]
    if change < 0.2:
        return value[:i] + [value[i]] * random.choice((2, 3, 40)) + value[i:]
    return [*value[:i], change_value(value[i], random), *value[i + 1 :]]


def another(value: Any, random: Random) -> Any:
    """A value in the place of another: near to it, of its kind, or of any kind; a text that holds a document is changed inside."""
    if isinstance(value, str) and value[:1] in ("{", "[") and random.random() < 0.8:
        try:
            return json.dumps(change_value(json.loads(value), random))
        except ValueError:
            pass
    if type(value) in (int, float) and random.random() < 0.4:
        with_care = random.choice((lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 2, lambda v: v * 1000))
        return with_care(value)
    kinds: list[Callable[[], Any]] = [
        lambda: random.choice(NUMBERS),
        lambda: random.choice(FLOATS),
        lambda: random.choice(TEXTS),
        lambda: random.choice((True, False)),
        lambda: None,
        list,
        dict,
        lambda: [random.choice(NUMBERS) for _ in range(random.choice((1, 2, 3, 40)))],
        lambda: {random.choice(TEXTS): random.choice(NUMBERS)},
        lambda: [value],
        lambda: {
            "type": random.choice(("Box", "Discrete", "Tuple", "Dict", "Text", "MultiDiscrete", "MultiBinary", "Graph"))
        },
    ]
    return random.choice(kinds)()


# Containers


def zipped(data: bytes, random: Random, depth: int) -> bytes:
    """A zip with a member changed inside, or gone, doubled, renamed, compressed otherwise; or with a false size in its tables."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i = random.randrange(len(members))
    name, inside = members[i]
    change = random.random()
    if change < 0.75 and depth < 3:
        members[i] = name, content(inside, name, random, depth=depth + 1)
    elif change < 0.8:
        del members[i]
    elif change < 0.85:
        members.append((name, random.choice(members)[1]))
    elif change < 0.9:
        members[i] = random.choice((*TEXTS[1:6], name + ".npy", name.removesuffix(".npy"), "W0.npy", "data")), inside
    elif change < 0.93:
        members[i] = name, inside + bytes(random.choice((2**16, LARGEST, 32 * LARGEST)))
    stored = random.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", stored) as archive:
        for member, value in members:
            if member not in archive.namelist() or random.random() < 0.5:
                archive.writestr(zipfile.ZipInfo(member), value, stored)
    whole = stream.getvalue()
    return false_sizes(whole, random) if change >= 0.93 else whole


def false_sizes(whole: bytes, random: Random) -> bytes:
    """A zip whose directory states another size, method, flag or place of a member."""
    altered = bytearray(whole)
    entries = [m.start() for m in re.finditer(rb"PK\x01\x02", whole)]
    entry = random.choice(entries)
    field, form = random.choice(
        ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (24, "<I"), (42, "<I"), (30, "<H"))
    )
    number = random.choice((0, 1, 8, 2**16 - 1, 2**20, 2**30, 2**31 - 1, 2**32 - 1, random.randrange(len(whole))))
    struct.pack_into(form, altered, entry + field, number % 2 ** (8 * struct.calcsize(form)))
    return bytes(altered)


def npy(data: bytes, random: Random, depth: int) -> bytes:
    """An array with another header: shape, dtype, order, version, or its length."""
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    header, body = data[8 + width : 8 + width + length].decode("latin1"), data[8 + width + length :]
    if random.random() < 0.2:
        return data[: 8 + width + length] + damaged(body, random)
    edits = {
        r"\(([^)]*)\)": lambda: "(" + ", ".join(str(random.choice(NUMBERS)) for _ in range(random.randrange(4))) + ",)",
        r"'descr': '[^']*'": lambda: (
            f"'descr': '{random.choice(('<f4', '>f8', '|O', '<U9999999', '|S7', '|V8', '<c16', '<M8[s]', '|b1', '<u8', 'x'))}'"
        ),
        r"True|False": lambda: random.choice(("True", "False", "1", "None")),
        r"\d+": lambda: str(random.choice(NUMBERS)),
        r"[{}',:]": lambda: random.choice(("", "((", "'", "[" * 200)),
    }
    pattern, new = random.choice(list(edits.items()))
    found = list(re.finditer(pattern, header))
    if found:
        at = random.choice(found)
        header = header[: at.start()] + new() + header[at.end() :]
    version = random.choice((1, 1, 1, 2, 3, 9))
    text = header.encode("latin1", "replace")
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + body


def safetensors(data: bytes, random: Random, depth: int) -> bytes:
    """Another header over the same numbers, or other numbers under the same header."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if random.random() < 0.2:
        return data[: 8 + length] + damaged(body, random)
    tensors = [name for name in header if name != "__metadata__"]
    if "__metadata__" in header and (random.random() < 0.6 or not tensors):
        header["__metadata__"] = change_value(header["__metadata__"], random)
    else:
        name = random.choice(tensors)
        tensor = header[name]
        change = random.randrange(5)
        if change == 0:
            tensor["dtype"] = random.choice(
                ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I64", "U16", "U64", "BOOL", "C64", "X")
            )
        elif change == 1:
            tensor["shape"] = (
                tensor["shape"][::-1] if random.random() < 0.5 else [*tensor["shape"], random.choice((0, 1, 2))]
            )
        elif change == 2:
            header[random.choice((*TEXTS, *tensors))] = header.pop(name)
        elif change == 3:
            as_bytes = {"dtype": "U8", "shape": [tensor["data_offsets"][1] - tensor["data_offsets"][0]]}
            header[name] = tensor | as_bytes
        else:
            header[name] = change_value(tensor, random)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def hdf5(data: bytes, random: Random, depth: int) -> bytes:
    """A file of HDF5 with a dataset of another kind, shape or place; edited by HDF5 itself, so that the rest is whole."""
    import h5py

    if random.random() < 0.4:
        return damaged(data, random)
    stream = io.BytesIO(data)
    with h5py.File(stream, "r+") as file:
        found: list[str] = []
        file.visititems(lambda name, thing: found.append(name) if isinstance(thing, h5py.Dataset) else None)
        name = random.choice(found)
        values = file[name][()]
        change = random.randrange(10)
        if change != 9:
            del file[name]
        shape = np.shape(values)
        if change == 1:
            huge = random.choice(((2**40,), (2**20, 2**20), (2**28, *shape[1:]), (0, *shape[1:]), (2**26,)))
            options = {"chunks": True} if random.random() < 0.5 else {}
            file.create_dataset(name, huge, np.asarray(values).dtype, fillvalue=random.choice((None, 1)), **options)
        elif change == 2:
            file[name] = h5py.SoftLink("/" + random.choice((name, found[0], "nowhere")))
        elif change == 3:
            file[name] = h5py.ExternalLink("/etc/passwd", "/")
        elif change == 4:
            file.create_group(name)
        elif change == 5:
            odd: list[Any] = [
                "text",
                np.void(b"123"),
                np.float16(1),
                h5py.Empty("f"),
                3,
                np.zeros((2, 0)),
                np.full(shape, "x", "S3"),
                np.asarray(values) + 1j,
            ]
            file[name] = odd[random.randrange(len(odd))]
        elif change == 6:
            file[name] = np.asarray(values).astype(random.choice(("i1", "u8", "f2", ">f8", "?", "f4")))
        elif change == 7:
            packed = np.atleast_1d(values)
            file.create_dataset(
                name,
                data=packed,
                chunks=packed.shape if packed.size else None,
                compression=random.choice(("gzip", "lzf")),
                shuffle=True,
            )
        elif change == 8:
            array = np.atleast_1d(values)
            file[name] = random.choice(
                (array[:-1], np.concatenate([array, array]), array[..., None], array.reshape(-1))
            )
        elif change == 9:
            flat = np.array(values, dtype=float).reshape(-1)
            if flat.size and np.asarray(values).dtype.kind in "iuf":
                flat[random.randrange(flat.size)] = random.choice(
                    [x for x in FLOATS if np.asarray(values).dtype.kind == "f" or math.isfinite(x)]
                )
                with np.errstate(all="ignore"):
                    file[name][...] = flat.reshape(shape).astype(np.asarray(values).dtype)
    return damaged(stream.getvalue(), random) if random.random() < 0.2 else stream.getvalue()


def parquet(data: bytes, random: Random, depth: int) -> bytes:
    """Bytes of the footer, where the sizes are; or a column of another type, written by pyarrow itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if random.random() < 0.6:
        footer = int.from_bytes(data[-8:-4], "little")
        begin = max(0, len(data) - 8 - footer)
        return (
            data[:begin] + damaged(data[begin:-8], random) + data[-8:]
            if random.random() < 0.5
            else damaged(data, random)
        )
    table = pq.read_table(io.BytesIO(data))
    name = random.choice(table.column_names)
    values = table.column(name).to_pylist()
    odd: list[Any] = [None, "x", 1.5, [1.0, 2.0], [], [None], {"a": 1}, b"z", True, 2**62]
    whole = [random.choice(odd)] * len(values)
    place = random.randrange(len(values))
    column = whole if random.random() < 0.6 else [*values[:place], None, *values[place + 1 :]]
    table = table.set_column(table.column_names.index(name), name, pa.array(column))
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        compression=random.choice(("none", "gzip", "snappy", "zstd")),
        use_dictionary=random.random() < 0.5,
    )
    return stream.getvalue()


# Pickles

FRAGMENTS = [
    b"cos\nsystem\n", b"(S'true'\ntR", b"c__builtin__\nbytearray\n", b"cbuiltins\nbytearray\n", b"ctorch\nTensor\n", b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n", b")", b"(", b"t", b"]",
    b"}", b"R", b"b", b"u", b"s", b"a", b"e", b"0", b"2", b"N", b"\x86", b"\x85", b"\x81", b"Q", b"\x94", b"q\x00", b"h\x00", b"h\x01", b"\x88",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\xff", b"M\xff\xff", b"\x8c\x01f", b"X\x01\x00\x00\x00f", b"C\x01x",
    b"I" + b"9" * 5000 + b"\n", b"\x8b\xff\xff\x00\x00" + b"\x7f" * 0xFFFF, b"h\x00h\x00\x86q\x00" * 60, b"h\x00\x85q\x00" * 2000,
    b"]q\x00h\x00a", b"\x8e\xff\xff\xff\xff\xff\xff\x00\x00", b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\xff",
]  # fmt: skip
"""Opcodes to put in: names to call, marks, memo tricks, large numbers, towers of tuples, and lengths that are not there."""


def pickled(data: bytes, random: Random, depth: int) -> bytes:
    """A pickle with an opcode gone, doubled, moved, put in, or with another argument."""
    places = [*(position for _, _, position in pickletools.genops(data)), len(data)]
    codes = [data[a:b] for a, b in pairwise(places)]
    i, j = random.randrange(len(codes)), random.randrange(len(codes))
    change = random.randrange(6)
    if change == 0:
        del codes[i : i + random.choice((1, 1, 2, 5))]
    elif change == 1:
        codes[i:i] = codes[j : j + random.choice((1, 3, 10))]
    elif change == 2:
        codes[i], codes[j] = codes[j], codes[i]
    elif change == 3:
        codes[i:i] = [random.choice(FRAGMENTS) for _ in range(random.choice((1, 1, 2, 4)))]
    elif change == 4:
        numbers = [k for k, code in enumerate(codes) if code[:1] in (b"K", b"M", b"J", b"\x8a")]
        if numbers:
            k, number = random.choice(numbers), random.choice([n for n in NUMBERS if abs(n) < 2**64])
            raw = number.to_bytes(9, "little", signed=True)
            codes[k] = b"\x8a\x09" + raw
    else:
        longest = max(range(len(codes)), key=lambda k: len(codes[k]) if random.random() < 0.7 else 0)
        codes[longest] = codes[longest][:1] + damaged(codes[longest][1:], random)
    return b"".join(codes)


# Samples as bytes, for engines and files that know nothing else


def packed(sample: Sample) -> bytes:
    """A sample as one string of bytes."""
    head = json.dumps([[name, len(data)] for name, data in sample.items()]).encode()
    return len(head).to_bytes(4, "little") + head + b"".join(sample.values())


def unpacked(data: bytes) -> Sample:
    """The inverse of `packed`. Raises ValueError for other bytes."""
    length = int.from_bytes(data[:4], "little")
    place, sample = 4 + length, {}
    for name, size in json.loads(data[4:place]):
        sample[name] = data[place : place + size]
        place += size
    return sample


def checksum(sample: Sample) -> str:
    return f"{zlib.crc32(packed(sample)):08x}"
