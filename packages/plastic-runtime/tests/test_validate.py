from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from plastic_runtime.files import FormatError, open_safetensors, read_header, read_index, read_json
from safetensors import SafetensorError, deserialize

SIXTEEN = bytes(range(16))


def packed(header: object, data: bytes = b"") -> bytes:
    """A file from a header, given as what JSON can write, as its text or as its bytes."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> bytes:
    """A file with the tensor 'w', sixteen bytes of data."""
    return packed({"w": entry(dtype, shape, offsets)}, SIXTEEN)


def two(first: list[int], second: list[int]) -> bytes:
    """A file with the tensors 'v' and 'w' at these places."""
    return packed({"v": entry(offsets=first), "w": entry(offsets=second)}, bytes(second[1]))


def without(field: str) -> bytes:
    """A file with the tensor 'w', whose entry lacks a field."""
    return packed({"w": {k: v for k, v in entry().items() if k != field}}, SIXTEEN)


def in_the_library(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What the safetensors library reads from a file."""
    return list(deserialize(content))  # type: ignore[no-untyped-call]


class Bad(NamedTuple):
    """A file that must be refused, the tensor to blame, if any, and the reason to be given."""

    content: bytes
    tensor: str | None
    reason: str


GOOD = one()
W = '"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
FIELD_TWICE = '{"w":{"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
METADATA_TWICE = (
    '{"__metadata__":{},"__metadata__":{},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
)
DEEP = '{"w":' + "[" * 1_000_000 + "]" * 1_000_000 + "}"
NESTED = (
    '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"more":' + "[" * 40 + "]" * 40 + "}}"
)

BAD = {
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
    "deep": Bad(packed(DEEP, SIXTEEN), None, "nested more than 32 deep"),
    "nested_extra": Bad(packed(NESTED, SIXTEEN), None, "nested more than 32 deep"),
    "list": Bad(packed("[1, 2]"), None, "the JSON is not an object"),
    "null": Bad(packed("null"), None, "the JSON is not an object"),
    "long_number": Bad(packed('{"w": ' + "9" * 5000 + "}"), None, "not valid JSON"),
    "name_twice": Bad(packed(f"{{{W},{W}}}", SIXTEEN), None, "the key 'w' appears twice"),
    "field_twice": Bad(packed(FIELD_TWICE, SIXTEEN), None, "the key 'dtype' appears twice"),
    "metadata_twice": Bad(packed(METADATA_TWICE, SIXTEEN), None, "'__metadata__' appears twice"),
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
    "float8_e4m3": Bad(one("F8_E4M3", [16]), "w", "F8_E4M3 is valid, but MLX cannot load it"),
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


def written(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_file_is_refused_in_one_line_with_file_tensor_and_reason(
    tmp_path: Path, bad: Bad
) -> None:
    path = written(tmp_path, bad.content)
    with pytest.raises(FormatError, match=bad.reason) as caught:
        read_header(path)
    message = str(caught.value)
    where = f"{path}: " if bad.tensor is None else f"{path}: tensor {bad.tensor!r}: "
    assert message.startswith(where)
    assert ("tensor '" in message) == (bad.tensor is not None)
    assert "; " in message
    assert message.isprintable()


@pytest.mark.parametrize("content", GOOD_FILES.values(), ids=GOOD_FILES.keys())
def test_valid_file_is_read_as_the_safetensors_library_reads_it(
    tmp_path: Path, content: bytes
) -> None:
    with open_safetensors(written(tmp_path, content)) as file:
        ours = {
            info.name: (list(info.shape), file.read(info).tobytes())
            for info in file.header.tensors.values()
        }
    theirs = {n: (i["shape"], bytes(i["data"])) for n, i in in_the_library(content)}
    assert ours == theirs


def test_metadata_are_returned(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD_FILES["metadata_only"])
    assert read_header(path).metadata == {"a": "b", "é": ""}


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(FormatError):
            read_header(written(tmp_path, GOOD[:length]))


def test_long_name_does_not_flood_the_message(tmp_path: Path) -> None:
    path = written(tmp_path, packed({"x" * 100_000: entry("F64")}, SIXTEEN))
    with pytest.raises(FormatError, match=r"\(100000 characters\)") as caught:
        read_header(path)
    assert len(str(caught.value)) < 500


STRICTER = (
    "appears twice", "its name is empty", "control character", "but MLX cannot load it",
    "double precision", "is not between 0 and 2", "dimensions", "overflows",
)  # fmt: skip


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Files one to three edits away from valid ones, most with a header of the right length."""
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


def verdict(content: bytes, path: Path) -> tuple[dict[str, tuple[int, ...]] | None, str]:
    """The shapes that we read from a file, or None and why it is refused."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except FormatError as error:
        return None, str(error)
    return {name: info.shape for name, info in header.tensors.items()}, ""


def verdict_of_the_library(content: bytes) -> dict[str, tuple[int, ...]] | None:
    try:
        return {name: tuple(info["shape"]) for name, info in in_the_library(content)}
    except SafetensorError:
        return None


def test_verdict_on_mutants_is_that_of_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    accepted = stricter = refused = 0
    for content in mutants(seed=2026, count=2500):
        theirs = verdict_of_the_library(content)
        ours, reason = verdict(content, path)
        if ours is not None:
            assert ours == theirs, content
            assert set(mx.load(str(path))) == set(ours)
            accepted += 1
        elif theirs is not None:
            assert any(known in reason for known in STRICTER), (content, reason)
            stricter += 1
        else:
            refused += 1
    assert accepted > 50
    assert stricter > 0
    assert refused > 1000


def test_pipe_directory_device_and_socket_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        os_path = os.path.relpath(tmp_path / "s.safetensors")  # a socket's path must be short
        listener.bind(min(os_path, str(tmp_path / "s.safetensors"), key=len))
        for name, kind in {
            "pipe": "a named pipe", "folder": "a directory", "zero": "a device", "s": "a socket"
        }.items():  # fmt: skip
            with pytest.raises(FormatError, match=rf"{name}.safetensors: {kind}, not a regular"):
                read_header(tmp_path / f"{name}.safetensors")


def test_link_to_nothing_or_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(FormatError, match=r"gone\.safetensors: a link to nowhere, which does not"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(FormatError, match=r"loop\.safetensors: a link that leads back to itself"):
        read_header(tmp_path / "loop.safetensors")


def test_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_header(tmp_path / "none.safetensors")


def test_tensor_larger_than_memory_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    size = 2**42
    path = written(tmp_path, packed({"w": entry("U8", [2**21, 2**21], [0, size])}))
    os.truncate(path, path.stat().st_size + size)  # sparse
    with open_safetensors(path) as file, pytest.raises(FormatError, match=r"'w'.*do not fit into"):
        file.read(file.header.tensors["w"])


@pytest.mark.parametrize("change", ["rewritten", "cut"])
def test_file_that_changes_while_open_is_noticed(tmp_path: Path, change: str) -> None:
    path = written(tmp_path, GOOD)
    with open_safetensors(path) as file:
        if change == "cut":
            os.truncate(path, len(GOOD) - 4)
        else:
            path.write_bytes(GOOD[:-16] + bytes(16))
            os.utime(path, ns=(0, 0))  # two writes may share one tick of the clock
        with pytest.raises(FormatError, match=r"model\.safetensors: it changed while"):
            file.read(file.header.tensors["w"])


def test_file_replaced_by_renaming_is_read_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with open_safetensors(path) as file:
        written(tmp_path, GOOD[:-16] + bytes(16), "new").replace(path)
        assert file.read(file.header.tensors["w"]).tobytes() == SIXTEEN


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


@pytest.mark.parametrize(("index", "reason"), BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
def test_bad_index_is_refused(tmp_path: Path, index: Any, reason: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(FormatError, match=reason) as caught:
        read_index(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_index_of_plain_names_is_returned(tmp_path: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model_2.fp16.safetensors"}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert read_index(path) == weight_map


def test_json_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_json(path, limit=8) == {"a": 1}
    with pytest.raises(FormatError, match=r"config\.json: 8 bytes are too many .*at most 7"):
        read_json(path, limit=7)


def test_json_of_a_configuration_may_hold_infinity(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(path) == {"time_step_limit": [0.0, float("inf")]}


def test_message_stays_one_short_line_whatever_the_file_holds(tmp_path: Path) -> None:
    path = written(tmp_path, one(dtype="x\n" * 10_000), "new\nline.safetensors")
    with pytest.raises(
        FormatError, match=r"new\\nline\.safetensors: tensor 'w': its dty"
    ) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800
