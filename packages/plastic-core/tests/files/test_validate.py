from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.files import (
    ITEM_BYTES,
    FormatError,
    export_safetensors,
    open_safetensors,
    read_header,
    read_index,
    read_json,
)
from plastic_core.testing import (
    BAD_FILES,
    BAD_INDEXES,
    GOOD,
    GOOD_FILES,
    SIXTEEN,
    STRICTER,
    Bad,
    entry,
    mutants,
    one,
    packed,
)
from safetensors import SafetensorError, deserialize


def in_the_library(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What the safetensors library reads from a file."""
    return list(deserialize(content))  # type: ignore[no-untyped-call]


def written(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES.keys())
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


@pytest.mark.parametrize("metadata", [None, {}])
def test_metadata_of_nothing_are_none(tmp_path: Path, metadata: Any) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": metadata, "w": entry}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    header = read_header(file)
    assert (header.metadata, [*header.tensors]) == ({}, ["w"])


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(FormatError):
            read_header(written(tmp_path, GOOD[:length]))


def test_long_name_does_not_flood_the_message(tmp_path: Path) -> None:
    path = written(tmp_path, packed({"x" * 100_000: entry("F64")}, SIXTEEN))
    with pytest.raises(FormatError, match=r"\(100000 characters\)") as caught:
        read_header(path)
    assert len(str(caught.value)) < 500


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
            assert any(phrase in reason for phrase in STRICTER.values()), (content, reason)
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


@given(
    st.integers(0, 6),
    st.sampled_from([1, 3, 40, 1500, 3000]),
    st.sampled_from(["BF16", "F32", "U8"]),
    st.data(),
)
def test_ranges_of_a_matrix_are_those_of_the_whole(
    rows: int, columns: int, dtype: str, data: st.DataObject
) -> None:
    size = rows * columns * ITEM_BYTES[dtype]
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    entry = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [0, size]}
    text = json.dumps({"w": entry}).encode()
    with TemporaryDirectory() as name:
        path = written(Path(name), len(text).to_bytes(8, "little") + text + content.tobytes())
        with open_safetensors(path) as file:
            info, whole = (
                file.header.tensors["w"],
                content.reshape(rows, columns, ITEM_BYTES[dtype]),
            )
            ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in whole.shape[:2]]
            (a, b), (c, d) = ends
            assert np.array_equal(file.read_rows(info, a, b), whole[a:b].reshape(-1))
            assert np.array_equal(file.read_columns(info, c, d), whole[:, c:d].reshape(-1))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system counts no bytes")
def test_only_the_range_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    export_safetensors(path, {"w": np.ones((64, 8192), np.float32)})

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with open_safetensors(path) as file:
        info = file.header.tensors["w"]
        own = -(read() - read())  # what the count itself reads
        before = read()
        file.read_rows(info, 5, 9)
        assert read() - before - own == 4 * 8192 * 4
        before = read()
        file.read_columns(info, 0, 16)
        assert read() - before - own == 64 * 16 * 4


def test_ranges_of_a_file_that_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    export_safetensors(path, {"w": np.ones((8, 8), np.float32)})
    with open_safetensors(path) as file:
        info = file.header.tensors["w"]
        path.write_bytes(path.read_bytes()[:-4])
        for read in (file.read_rows, file.read_columns):
            with pytest.raises(FormatError, match="it changed while it was being read"):
                read(info, 0, 8)
