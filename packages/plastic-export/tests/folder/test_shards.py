"""Streams of tensors into one file or several."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import TensorSpec, load_safetensors, read_index
from plastic_export.folder.shards import Shards, as_float32, as_stored, split_specs

SPECS = [TensorSpec(f"t{i}", "F32", (3, i)) for i in range(1, 6)]


def array(spec: TensorSpec) -> mx.array:
    return mx.arange(spec.shape[0] * spec.shape[1]).astype(mx.float32).reshape(spec.shape)


def write(folder: Path, limit: int) -> Shards:
    with Shards(folder, SPECS, {"format": "pt"}, limit=limit) as shards:
        for spec in SPECS:
            shards.write(spec.name, array(spec))
    return shards


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    shards = write(tmp_path, 10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"] == shards.files
    for name, stored in load_safetensors(tmp_path / "model.safetensors").items():
        raw = bytes(memoryview(stored))
        assert shards.digests[name] == hashlib.sha256(raw).hexdigest()


def test_several_files_have_an_index_that_tells_the_truth(tmp_path: Path) -> None:
    shards = write(tmp_path, 100)
    index = read_index(tmp_path / "model.safetensors.index.json")
    assert len(shards.files) > 1
    found = {name: file for file in shards.files for name in load_safetensors(tmp_path / file)}
    assert found == index
    total = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]
    assert total == {"total_size": sum(spec.nbytes for spec in SPECS)}


def test_a_group_exceeds_the_limit_only_for_a_single_tensor() -> None:
    for limit in range(1, 200):
        groups = split_specs(SPECS, limit)
        assert [spec for group in groups for spec in group] == SPECS
        assert all(len(g) == 1 or sum(s.nbytes for s in g) <= limit for g in groups)


def write_only(folder: Path, *specs: TensorSpec) -> None:
    with Shards(folder, SPECS, {}) as shards:
        for spec in specs:
            shards.write(spec.name, array(spec))


@pytest.mark.parametrize("written", [SPECS[:1], [SPECS[0], SPECS[2]]])
def test_a_stream_that_breaks_off_leaves_no_file(tmp_path: Path, written: list[TensorSpec]) -> None:
    with pytest.raises(ValueError, match="t2"):
        write_only(tmp_path, *written)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_writes_nothing(tmp_path: Path) -> None:
    with Shards(tmp_path, [], {}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_storing_rounds_once_and_reading_back_is_exact(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    stored = as_stored(values, dtype)
    unit = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}[dtype]
    assert np.all(np.abs(as_float32(stored) - values) <= unit * np.abs(values))
    again = as_stored(as_float32(stored), dtype)
    assert bytes(memoryview(again.view(mx.uint8))) == bytes(memoryview(stored.view(mx.uint8)))


def test_a_value_beyond_float16_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"7e\+04 does not fit F16"):
        as_stored(np.array([1.0, 70000.0], np.float32), "F16")
