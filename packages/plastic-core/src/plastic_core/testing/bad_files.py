"""Files that must be refused, files that must be read, and files a few edits away from them.

For tests and benchmarks. The kinds of damage are those of the tests of safetensors, of its fuzzers
and of the files that made ``mlx.core.load`` read outside of an array or crash later.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

SIXTEEN = bytes(range(16))


def packed(header: object, data: bytes = b"") -> bytes:
    """Return a file from a header, given as what JSON can write, as its text or as its bytes.

    Examples:
        >>> packed({"w": 1}, b"data")
        b'\\x08\\x00\\x00\\x00\\x00\\x00\\x00\\x00{"w": 1}data'
    """
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    """Return the entry of a tensor in a header.

    Examples:
        >>> entry("U8", (16,))
        {'dtype': 'U8', 'shape': (16,), 'data_offsets': (0, 16)}
    """
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> bytes:
    """Return a file with the tensor 'w', sixteen bytes of data.

    Examples:
        >>> one().endswith(SIXTEEN), one() == GOOD
        (True, True)
    """
    return packed({"w": entry(dtype, shape, offsets)}, SIXTEEN)


def two(first: list[int], second: list[int]) -> bytes:
    """Return a file with the tensors 'v' and 'w' at these places."""
    return packed({"v": entry(offsets=first), "w": entry(offsets=second)}, bytes(second[1]))


def without(field: str) -> bytes:
    """Return a file with the tensor 'w', whose entry lacks a field."""
    return packed({"w": {k: v for k, v in entry().items() if k != field}}, SIXTEEN)


class Bad(NamedTuple):
    """A file that must be refused, the tensor to blame, if any, and the reason to be given.

    Examples:
        >>> BAD_FILES["empty"]
        Bad(content=b'', tensor=None, reason='an empty file')
    """

    content: bytes
    tensor: str | None
    reason: str


GOOD = one()
_W = '"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
_FIELD_TWICE = '{"w":{"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
_METADATA_TWICE = (
    '{"__metadata__":{},"__metadata__":{},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
)
_DEEP = '{"w":' + "[" * 1_000_000 + "]" * 1_000_000 + "}"
_NESTED = (
    '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"more":' + "[" * 40 + "]" * 40 + "}}"
)

BAD_FILES = {
    # not safetensors at all, whatever the name says
    "empty": Bad(b"", None, "an empty file"),
    "seven_bytes": Bad(b"\x02\0\0\0\0\0\0", None, "7 bytes are too few"),
    "zip": Bad(b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(99), None, "a zip archive"),
    "pickle": Bad(b"\x80\x04\x95\x10\0\0\0\0\0\0\0" + bytes(99), None, "a pickle"),
    "short_pickle": Bad(b"\x80\x02N.", None, "a pickle"),
    "numpy": Bad(b"\x93NUMPY\x01\0\x76\0{'descr'", None, "a NumPy file"),
    "gguf": Bad(b"GGUF\x03\0\0\0" + bytes(99), None, "a GGUF file"),
    "hdf5": Bad(b"\x89HDF\r\n\x1a\n" + bytes(99), None, "an HDF5 file"),
    "gzip": Bad(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(99), None, "a gzip archive"),
    "html": Bad(b"\n<!DOCTYPE html><html><title>404</title>", None, "a web page"),
    "lfs": Bad(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", None, "Git LFS"),
    "noise": Bad(bytes(range(200, 250)), None, "its header would take"),
    # length of the header
    "no_header": Bad(struct.pack("<Q", 60), None, "takes 60 bytes and only 0 follow"),
    "header_cut": Bad(GOOD[:30], None, "and only 22 follow"),
    "header_empty": Bad(packed(b"", SIXTEEN), None, "0 bytes holds nothing"),
    "header_one_byte": Bad(packed(b"{", SIXTEEN), None, "1 bytes holds nothing"),
    "header_huge": Bad(struct.pack("<Q", 2**62) + GOOD[8:], None, "its header would take"),
    "header_of_100_mb": Bad(struct.pack("<Q", 10**8) + GOOD[8:], None, "its header would take"),
    # JSON
    "not_utf8": Bad(packed(b'{"\xff": 1}', SIXTEEN), None, "not valid JSON.*utf-8"),
    "byte_order_mark": Bad(packed(b"\xef\xbb\xbf" + GOOD[8:-16], SIXTEEN), None, "not valid JSON"),
    "not_json": Bad(packed("{{", SIXTEEN), None, "not valid JSON"),
    "json_cut": Bad(packed('{"w":{"dtype"', SIXTEEN), None, "not valid JSON"),
    "nul_padding": Bad(packed(GOOD[8:-16] + b"\0\0", SIXTEEN), None, "not valid JSON"),
    "two_values": Bad(packed("{}{}"), None, "not valid JSON"),
    "nan": Bad(one(shape=[float("nan")]), None, "NaN is not a number"),
    "infinity": Bad(one(offsets=[0, float("inf")]), None, "Infinity is not a number"),
    "deep": Bad(packed(_DEEP, SIXTEEN), None, "nested more than 32 deep"),
    "nested_extra": Bad(packed(_NESTED, SIXTEEN), None, "nested more than 32 deep"),
    "list": Bad(packed("[1, 2]"), None, "the JSON is not an object"),
    "null": Bad(packed("null"), None, "the JSON is not an object"),
    "long_number": Bad(packed('{"w": ' + "9" * 5000 + "}"), None, "not valid JSON"),
    "name_twice": Bad(packed(f"{{{_W},{_W}}}", SIXTEEN), None, "the key 'w' appears twice"),
    "field_twice": Bad(packed(_FIELD_TWICE, SIXTEEN), None, "the key 'dtype' appears twice"),
    "metadata_twice": Bad(packed(_METADATA_TWICE, SIXTEEN), None, "'__metadata__' appears twice"),
    # metadata
    "metadata_list": Bad(packed({"__metadata__": ["a"]}), None, "'__metadata__' is not an object"),
    "metadata_text": Bad(packed({"__metadata__": "a"}), None, "'__metadata__' is not an object"),
    "metadata_number": Bad(packed({"__metadata__": {"a": 1}}), None, "of 'a' is not text"),
    "metadata_surrogate": Bad(
        packed('{"__metadata__":{"a":"\\ud800"}}'), None, "of 'a' is not text"
    ),
    # names
    "name_empty": Bad(packed({"": entry()}, SIXTEEN), "", "its name is empty"),
    "name_nul": Bad(packed({"a\0b": entry()}, SIXTEEN), "a\0b", "a control character"),
    "name_newline": Bad(packed({"a\nb": entry()}, SIXTEEN), "a\nb", "a control character"),
    "name_half_pair": Bad(packed('{"\\udc00":1}', SIXTEEN), "\udc00", "a control character"),
    # entries
    "entry_list": Bad(packed({"w": [1]}, SIXTEEN), "w", "its entry is not an object"),
    "no_dtype": Bad(without("dtype"), "w", "'dtype' is missing"),
    "no_shape": Bad(without("shape"), "w", "'shape' is missing"),
    "no_offsets": Bad(without("data_offsets"), "w", "'data_offsets' is missing"),
    "dtype_unknown": Bad(one("F33"), "w", "'F33' is not one of safetensors"),
    "dtype_lower_case": Bad(one("f32"), "w", "'f32' is not one of safetensors"),
    "dtype_number": Bad(one(32), "w", "32 is not one of safetensors"),
    "dtype_list": Bad(one(["F32"]), "w", r"\['F32'\] is not one of safetensors"),
    "double": Bad(one("F64", [2]), "w", "F64 is double precision.*convert it to F32"),
    "float8_e5m2": Bad(one("F8_E5M2", [16]), "w", "F8_E5M2 is valid, but MLX cannot load it"),
    "float8_fnuz": Bad(one("F8_E4M3FNUZ", [16]), "w", "F8_E4M3FNUZ is valid, but MLX cannot load"),
    "float4": Bad(one("F4", [32]), "w", "F4 is valid, but MLX cannot load it"),
    "shape_number": Bad(one(shape=4), "w", "its shape is not a list"),
    "shape_text": Bad(one(shape=["4"]), "w", "dimension '4' is not an integer"),
    "shape_float": Bad(one(shape=[2.0, 2.0]), "w", "dimension 2.0 is not an integer"),
    "shape_true": Bad(one(shape=[True, 4]), "w", "dimension True is not an integer"),
    "shape_null": Bad(one(shape=[None]), "w", "dimension None is not an integer"),
    "shape_minus_zero": Bad(
        packed('{"w":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "w", "-0.0 is not an int"
    ),
    "shape_negative": Bad(one(shape=[-2, -2]), "w", "dimension -2 is not between 0 and"),
    "shape_wraps_32_bits": Bad(one(shape=[2**32 + 4]), "w", "4294967300 is not between"),
    "shape_2_to_31": Bad(one("U8", [2**31, 0], [0, 0]), "w", "2147483648 is not between"),
    "shape_overflows": Bad(one("F32", [65536] * 4, [0, 0]), "w", "overflows"),
    "shape_zero_overflows": Bad(one("F32", [0, *[2**31 - 1] * 3], [0, 0]), "w", "overflows"),
    "rank_1000": Bad(one(shape=[1] * 1000), "w", "1000 dimensions"),
    "shape_and_size": Bad(one(shape=[3]), "w", r"\[3\] of F32 takes 12 bytes, data_offsets 16"),
    # offsets
    "offsets_text": Bad(one(offsets="01"), "w", "data_offsets are not a pair"),
    "offsets_three": Bad(one(offsets=[0, 8, 16]), "w", "data_offsets are not a pair"),
    "offsets_float": Bad(one(offsets=[0.0, 16.0]), "w", "are not integers"),
    "offsets_negative": Bad(one(offsets=[-16, 0]), "w", "negative or reversed"),
    "offsets_reversed": Bad(one(offsets=[16, 0]), "w", "negative or reversed"),
    "offsets_wrap": Bad(one(offsets=[2**64 - 32, 2**64 - 16]), "w", "of a file of"),
    "data_cut": Bad(GOOD[:-1], "w", r"its data end at byte \d+ of a file of \d+ bytes; copy"),
    "lying": Bad(one("U8", [2**22], [0, 2**22]), "w", "its data end at byte 41943"),
    # layout
    "overlap": Bad(two([0, 16], [8, 24]), "w", "its data overlap another tensor's"),
    "same_span": Bad(two([0, 16], [0, 16]), "w", "its data overlap another tensor's"),
    "hole_at_start": Bad(two([4, 20], [20, 36]), "v", "4 bytes before its data"),
    "hole": Bad(two([0, 16], [20, 36]), "w", "4 bytes before its data"),
    "trailing": Bad(GOOD + b"PK\x03\x04", None, "4 bytes at the end belong to no tensor"),
    "only_trailing": Bad(packed("{}", b"x"), None, "1 bytes at the end belong to no tensor"),
    # more of the same kinds
    "bomb": Bad(
        packed({f"t{i}": entry("U8", [16], [0, 16]) for i in range(10_000)}, SIXTEEN),
        "t1", "its data overlap another tensor's",
    ),
    "empty_inside": Bad(
        packed({"w": entry(), "z": entry("U8", [0], [5, 5])}, SIXTEEN), "z", "overlap another"
    ),
    "name_twice_escaped": Bad(
        packed(f'{{{_W},"\\u0077":{{}}}}', SIXTEEN), None, "the key 'w' appears twice"
    ),
    "name_delete": Bad(packed({"a\x7f": entry()}, SIXTEEN), "a\x7f", "a control character"),
    "metadata_entry": Bad(packed({"__metadata__": entry()}, SIXTEEN), None, "is not text"),
    "metadata_null_value": Bad(packed({"__metadata__": {"a": None}}), None, "of 'a' is not text"),
    "entry_null": Bad(packed({"w": None}, SIXTEEN), "w", "its entry is not an object"),
    "entry_text": Bad(packed({"w": "F32"}, SIXTEEN), "w", "its entry is not an object"),
    "dtype_null": Bad(one(None), "w", "None is not one of safetensors"),
    "dtype_empty": Bad(one(""), "w", "'' is not one of safetensors"),
    "shape_exponent": Bad(
        packed('{"w":{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}}', SIXTEEN),
        "w", "dimension 4.0 is not an integer",
    ),
    "shape_nested": Bad(one(shape=[[2], 2]), "w", "dimension .2. is not an integer"),
    "rank_100000": Bad(one(shape=[1] * 100_000), "w", "100000 dimensions"),
    "rank_33": Bad(one(shape=[1] * 32 + [4]), "w", "33 dimensions"),
    "offsets_true": Bad(one("U8", [1], [False, True]), "w", "are not integers"),
    "offsets_null": Bad(one(offsets=None), "w", "data_offsets are not a pair"),
    "offsets_past_64_bits": Bad(one("U8", [16], [2**70, 2**70 + 16]), "w", "of a file of"),
    "utf16": Bad(packed(GOOD[8:-16].decode().encode("utf-16"), SIXTEEN), None, "not valid JSON"),
    "trailing_comma": Bad(packed(f"{{{_W},}}", SIXTEEN), None, "not valid JSON"),
    "single_quotes": Bad(packed(f"{{{_W}}}".replace('"', "'"), SIXTEEN), None, "not valid JSON"),
    "comment": Bad(packed(f"{{{_W}}}//", SIXTEEN), None, "not valid JSON"),
    "leading_zero": Bad(
        packed('{"w":{"dtype":"F32","shape":[04],"data_offsets":[0,16]}}', SIXTEEN),
        None, "not valid JSON",
    ),
}  # fmt: skip

GOOD_FILES = {
    "one": GOOD,
    "nothing": packed("{}"),
    "metadata_only": packed({"__metadata__": {"a": "b", "é": ""}}),
    "metadata_null": packed({"__metadata__": None, "w": entry()}, SIXTEEN),
    "scalar": packed({"w": entry("F32", [], [0, 4])}, bytes(4)),
    "empty_tensor": packed({"w": entry("F32", [2, 0], [0, 0])}),
    "empty_between": packed(
        {"a": entry(), "b": entry("U8", [0], [16, 16]), "c": entry(offsets=[16, 32])}, bytes(32)
    ),
    "any_order": packed({"b": entry(offsets=[16, 32]), "a": entry(offsets=[0, 16])}, bytes(32)),
    "padded": packed(GOOD[8:-16] + b" " * 13, SIXTEEN),
    "white_space_first": packed(b" \n\t" + GOOD[8:-16], SIXTEEN),
    "extra_field": packed({"w": entry() | {"note": {"a": [1, None]}}}, SIXTEEN),
    "odd_names": packed({"../../x": entry(), "w": entry(offsets=[16, 32])}, bytes(32)),
    "unicode_name": packed({"poids é 😀": entry()}, SIXTEEN),
    "misaligned": packed({"w": entry("U8", [3], [0, 3]), "v": entry(offsets=[3, 19])}, bytes(19)),
    "rank_32": one(shape=[1] * 31 + [4]),
    "brackets_in_a_name": packed({"[" * 50 + '"\\': entry()}, SIXTEEN),
    **{
        dtype.lower(): one(dtype, [16 // size])
        for size, names in {
            1: ("BOOL", "U8", "I8"),
            2: ("U16", "I16", "F16", "BF16"),
            4: ("U32", "I32", "F32"),
            8: ("U64", "I64", "C64"),
        }.items()
        for dtype in names
    },
}


STRICTER = {
    "a key is given once": "appears twice",
    "a name is not empty": "its name is empty",
    "a name holds no control character and no half of a surrogate pair": "control character",
    "the dtype is one that MLX can load": "but MLX cannot load it",
    "double precision is converted first": "double precision",
    "a dimension is below 2^31": "is not between 0 and 2",
    "a shape has at most 32 dimensions": "dimensions",
    "a shape counts to less than 2^60, zeros left out": "overflows",
    "JSON is nested at most 32 deep": "nested more than",
}
"""Where the validator refuses what the safetensors library accepts: the rule, and its message."""


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Files one to three edits away from valid ones, most with a header of the right length.

    Examples:
        >>> [isinstance(file, bytes) for file in mutants(seed=0, count=2)]
        [True, True]
    """
    rng = np.random.default_rng(seed)
    pieces = [b'"w"', b"[]", b"{}", b"-", b"0", b"1", b"16", b"4294967296", b'"F64"', b'"BF16"',
              b"null", b",", b":", b" ", b"\\", b'"', b"[", b"]", b"1e3", b"\x00", b"\xff",
              b"true", b'"__metadata__"', b"2.0"]  # fmt: skip
    sources = [
        packed({"w": entry(), "v": entry("U8", [4, 2], [16, 24])}, bytes(24)),
        packed({"__metadata__": {"format": "pt"}, "a": entry("BF16", [4, 2])}, SIXTEEN),
        packed({"a": entry("F16", [0, 3], [0, 0]), "b": entry("I64", [2], [0, 16])}, SIXTEEN),
    ]
    for _ in range(count):
        source = sources[rng.integers(len(sources))]
        length = int.from_bytes(source[:8], "little")
        header, data = bytearray(source[8 : 8 + length]), bytearray(source[8 + length :])
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(header)))
            cut = int(rng.choice([0, 1, 1, 2, 4]))
            piece = pieces[rng.integers(len(pieces))]
            insert = (piece, b"", bytes([header[place] ^ (1 << int(rng.integers(8)))]))
            header[place : place + cut] = insert[rng.integers(3)]
        if rng.random() < 0.1:
            data = data[: int(rng.integers(len(data)))]
        announced = length if rng.random() < 0.1 else len(header)
        yield struct.pack("<Q", announced) + bytes(header) + bytes(data)


BAD_INDEXES: dict[str, tuple[Any, str]] = {
    "not_json": ("{", "not valid JSON"),
    "list": ([], "the JSON is not an object"),
    "no_map": ({"metadata": {}}, "'weight_map' is missing or empty"),
    "empty_map": ({"weight_map": {}}, "'weight_map' is missing or empty"),
    "map_is_list": ({"weight_map": ["a"]}, "'weight_map' is missing or empty"),
    "twice": ('{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', "'w' appears twice"),
    **{
        f"shard_{number}": (
            {"weight_map": {"w": shard}}, "tensor 'w': its shard .* is not the plain"
        )
        for number, shard in enumerate([
            "../model.safetensors", "/etc/model.safetensors", "a/model.safetensors",
            "..\\model.safetensors", "C:\\model.safetensors", "C:model.safetensors",
            "\\\\host\\share\\model.safetensors", "pytorch_model.bin", "model.safetensors.bin",
            ".model.safetensors", "..safetensors", "", "model.safetensors\n", "a b.safetensors",
            "modèle.safetensors", "model.safetensors\0", 1, None, ["model.safetensors"],
        ])
    },
}  # fmt: skip
