from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import (
    SafetensorsWriter,
    TensorSpec,
    array_bytes,
    json_digest,
    read_header,
    read_json,
    sha256_file,
    write_json,
)
from safetensors import safe_open

SPECS = [TensorSpec("b", "BF16", (2, 3)), TensorSpec("a", "U8", (3,)), TensorSpec("c", "F32", ())]
ARRAYS: dict[str, Any] = {
    "b": mx.arange(6).reshape(2, 3).astype(mx.bfloat16),
    "a": np.array([1, 2, 3], np.uint8),
    "c": mx.array(0.5),
}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def write_all(path: Path) -> None:
    with SafetensorsWriter(path, SPECS, {"format": "mlx"}) as writer:
        for spec in SPECS:
            writer.write(spec.name, ARRAYS[spec.name])


def write_half(path: Path) -> None:
    with SafetensorsWriter(path, SPECS) as writer:
        writer.write("b", ARRAYS["b"])
        raise RuntimeError("half way")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Safetensors, tensor by tensor.


def test_file_is_read_by_the_safetensors_library_and_by_mlx(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_all(path)
    with safe_open(path, framework="numpy") as file:
        assert list(file.offset_keys()) == ["b", "a", "c"]
        assert file.metadata() == {"format": "mlx"}
        assert file.get_tensor("a").tolist() == [1, 2, 3]
        assert file.get_tensor("c") == np.float32(0.5)
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    assert loaded["b"].dtype == mx.bfloat16
    for name, array in ARRAYS.items():
        assert np.array_equal(array_bytes(loaded[name]), array_bytes(array))


def test_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    for length in range(1, 10):
        path = tmp_path / "model.safetensors"
        with SafetensorsWriter(path, [TensorSpec("x" * length, "U8", (1,))]) as writer:
            writer.write("x" * length, b"\0")
        assert read_header(path).tensors["x" * length].start % 8 == 0


def test_bytes_may_be_given_in_place_of_an_array(tmp_path: Path) -> None:
    spec = TensorSpec("w", "BF16", (2, 2))
    data = bytes(range(8))
    for given in (data, np.frombuffer(data, np.uint8)):
        with SafetensorsWriter(tmp_path / "model.safetensors", [spec]) as writer:
            writer.write("w", given)
        assert (tmp_path / "model.safetensors").read_bytes().endswith(data)


def test_file_without_tensors_is_a_valid_file(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "sleep.safetensors", []):
        pass
    assert read_header(tmp_path / "sleep.safetensors").tensors == {}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a", b"123", "`name` must be the next tensor of the specs \\('b'\\), got 'a'"),
        ("zzz", b"123", "must be the next tensor"),
        ("b", b"123", "`data` of 'b' must take 12 bytes, got 3"),
        ("b", mx.zeros((2, 3)), r"must be \('BF16', \(2, 3\)\), got \('F32', \(2, 3\)\)"),
        ("b", mx.zeros((3, 2), mx.bfloat16), r"got \('BF16', \(3, 2\)\)"),
        ("b", np.zeros((2, 3), np.float64), "dtype float64 cannot be stored"),
    ],
)
def test_tensor_that_was_not_announced_is_refused_and_nothing_left(
    tmp_path: Path, name: str, data: Any, reason: str
) -> None:
    with (
        pytest.raises(ValueError, match=reason),
        SafetensorsWriter(tmp_path / "model.safetensors", SPECS) as writer,
    ):
        writer.write(name, data)
    assert names(tmp_path) == []


def test_tensor_after_the_last_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="none: all are written"),
        SafetensorsWriter(tmp_path / "model.safetensors", []) as writer,
    ):
        writer.write("a", b"")


def test_missing_tensor_is_named_and_nothing_left(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "model.safetensors", SPECS)
    writer.write("b", ARRAYS["b"])
    with pytest.raises(ValueError, match="the tensor 'a' of the specs was not written"):
        writer.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([TensorSpec("a", "U8", (1,))] * 2, "must name each tensor once, got 'a' twice"),
        ([TensorSpec("", "U8", (1,))], "its name is empty"),
        ([TensorSpec("a\n", "U8", (1,))], "control character"),
        ([TensorSpec("__metadata__", "U8", (1,))], "the name is reserved"),
        ([TensorSpec("a", "F64", (1,))], "the dtype of 'a' must be one of .* got 'F64'"),
    ],
)
def test_specs_that_make_no_valid_file_are_refused(
    tmp_path: Path, specs: list[TensorSpec], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        SafetensorsWriter(tmp_path / "model.safetensors", specs)
    assert names(tmp_path) == []


def test_metadata_other_than_text_are_refused(tmp_path: Path) -> None:
    bad: Any = {"version": 1}
    with pytest.raises(TypeError, match="`metadata` must map strings to strings"):
        SafetensorsWriter(tmp_path / "model.safetensors", [], bad)


# Complete or not there.


def test_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_all(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["model.safetensors"]


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_all(path)
    before = path.read_bytes()
    spec = TensorSpec("w", "U8", (2**20,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(OSError, match="File too large"), SafetensorsWriter(path, [spec]) as w:
            w.write("w", np.zeros(2**20, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["model.safetensors"]


KILLED = """
import os, signal, sys
from plastic_core.files import SafetensorsWriter, TensorSpec
specs = [TensorSpec("w", "U8", (8,)), TensorSpec("v", "U8", (8,))]
with SafetensorsWriter(sys.argv[1], specs) as writer:
    writer.write("w", bytes(8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_leaves_the_old_file_and_nothing_that_a_loader_would_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_all(path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [name for name in names(tmp_path) if name != path.name]
    assert len(left) == 1
    assert left[0].startswith(".")
    assert not left[0].endswith(".safetensors")


def test_name_appears_only_when_the_file_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with SafetensorsWriter(path, [TensorSpec("w", "U8", (1,))]) as writer:
        writer.write("w", b"x")
        assert not path.exists()
        assert all(name.startswith(".") for name in names(tmp_path))
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.usefixtures("umask")
def test_mode_is_what_the_umask_allows(tmp_path: Path) -> None:
    write_all(tmp_path / "model.safetensors")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_file_behind_a_hard_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"precious")
    os.link(tmp_path / "blob", tmp_path / "model.safetensors")
    write_all(tmp_path / "model.safetensors")
    assert (tmp_path / "blob").read_bytes() == b"precious"
    assert "b" in read_header(tmp_path / "model.safetensors").tensors


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_link_folder_or_pipe_is_not_written_to(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "blob").write_bytes(b"precious")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("blob" if kind == "link" else "nothing")
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"a link, a folder or a device, which is not written"):
        write_all(path)
    assert (tmp_path / "blob").read_bytes() == b"precious"
    assert names(tmp_path) == before


def test_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_all(tmp_path / "none" / "model.safetensors")


def test_a_name_that_is_no_utf_8_comes_back_from_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"place": "mod\udce8le"})
    assert read_json(tmp_path / "a.json") == {"place": "mod\udce8le"}


def test_json_is_indented_and_keeps_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": ["é"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": {1, 2}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert names(tmp_path) == ["a.json"]


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_digest_of_json_is_that_of_its_text_whatever_the_order_of_keys() -> None:
    value = {"b": {"d": 0.1, "c": [None, True]}, "a": "é"}
    text = b'{"a": "\\u00e9", "b": {"c": [null, true], "d": 0.1}}'
    assert json_digest(value) == hashlib.sha256(text).hexdigest()
    assert json_digest(value, [b"and", b" more"]) == hashlib.sha256(text + b"and more").hexdigest()


# Bytes of arrays.


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", ">f4", "?", "<i8", "<c8"])
def test_bytes_of_a_numpy_array_are_little_endian_and_row_by_row(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype).T[::-1]
    little = array.astype(array.dtype.newbyteorder("<"))
    assert array_bytes(array).tobytes() == little.tobytes("C")


def test_bytes_of_a_transposed_mlx_array_are_row_by_row() -> None:
    array = mx.arange(12).reshape(3, 4).astype(mx.bfloat16)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4).T.copy().view(np.uint32) >> 16
    assert array_bytes(array.T).tobytes() == expected.astype("<u2").tobytes()
