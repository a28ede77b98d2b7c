from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plastic_core.files import FormatError, export_safetensors, load_safetensors
from safetensors import safe_open

DTYPES = [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.complex64,
]  # fmt: skip
CARRIERS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def pattern(array: mx.array) -> list[Any]:
    """The bits of every entry, as integers."""
    found: Any = mx.contiguous(array).reshape(-1).view(CARRIERS[array.itemsize]).tolist()
    return list(found)


def noise(dtype: mx.Dtype, shape: tuple[int, ...], seed: int) -> mx.array:
    """Random bits of that dtype: NaNs, subnormals and negative zeros among them."""
    carrier = np.dtype(f"<u{dtype.size}")
    count = int(np.prod(shape, dtype=int)) * dtype.size
    data = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    return mx.array(data.view(carrier)).view(dtype).reshape(shape)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
weights = st.dictionaries(
    st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(noise, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32 - 1)),
    max_size=5,
)


@settings(deadline=None, derandomize=True)
@given(weights=weights)
def test_what_is_exported_is_loaded_bit_for_bit(
    weights: dict[str, mx.array], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    export_safetensors(path, weights)
    loaded = load_safetensors(path)
    assert loaded.keys() == weights.keys()
    for name, array in weights.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert pattern(loaded[name]) == pattern(array)


@settings(deadline=None, derandomize=True)
@given(weights=weights)
def test_stock_readers_find_the_same(
    weights: dict[str, mx.array], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    export_safetensors(path, weights, metadata={"format": "mlx"})
    loaded: Any = mx.load(str(path))
    assert set(loaded) == set(weights)
    assert all(pattern(loaded[name]) == pattern(array) for name, array in weights.items())
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}
        assert set(file.keys()) == set(weights)
        for name, array in weights.items():
            assert tuple(file.get_slice(name).get_shape()) == array.shape


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_every_pattern_of_16_bits_survives(tmp_path: Path, dtype: mx.Dtype) -> None:
    patterns = mx.arange(65536).astype(mx.uint16)
    export_safetensors(tmp_path / "w.safetensors", {"w": patterns.view(dtype)})
    assert pattern(load_safetensors(tmp_path / "w.safetensors")["w"]) == list(range(65536))


def test_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"b": mx.ones(3), "a": mx.ones(1, mx.uint8), "c": mx.ones(2)}
    export_safetensors(tmp_path / "1.safetensors", weights, metadata={"x": "1", "y": "2"})
    backwards = dict(reversed(weights.items()))
    export_safetensors(tmp_path / "2.safetensors", backwards, metadata={"y": "2", "x": "1"})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_every_tensor_is_aligned_to_its_dtype(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"a": mx.ones(3, mx.uint8), "b": mx.ones(3, mx.uint64)})
    with safe_open(path, framework="numpy") as file:
        assert list(file.offset_keys()) == ["b", "a"]


def test_transposed_and_numpy_arrays_are_stored_row_by_row(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights: dict[str, Any] = {
        "mlx": mx.array(array).T,
        "numpy": array.T,
        "big": array.astype(">f4"),
    }
    export_safetensors(tmp_path / "w.safetensors", weights)
    loaded = load_safetensors(tmp_path / "w.safetensors")
    assert np.array_equal(np.array(loaded["mlx"]), array.T)
    assert np.array_equal(np.array(loaded["numpy"]), array.T)
    assert np.array_equal(np.array(loaded["big"]), array)


def test_loaded_arrays_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"w": mx.full((1000,), 2.0)})
    loaded = load_safetensors(path)
    path.write_bytes(b"")
    assert loaded["w"].sum().item() == 2000.0


def test_weights_may_be_saved_over_the_file_that_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"w": mx.full((1000,), 2.0)})
    lazy: Any = mx.load(str(path))
    export_safetensors(path, {"w": lazy["w"] + 1})
    assert load_safetensors(path)["w"].sum().item() == 3000.0


@pytest.mark.parametrize(
    ("weights", "error", "reason"),
    [
        ({"w": np.zeros(2)}, ValueError, "dtype float64 cannot be stored. Cast it to float32"),
        ({"w": np.array(["a"])}, ValueError, "cannot be stored"),
        ({"w": [1.0, 2.0]}, TypeError, "must map names to arrays, got list for 'w'"),
        ({"layers": {"w": mx.zeros(1)}}, TypeError, "Flatten a tree with mlx"),
        ({"": mx.zeros(1)}, ValueError, "its name is empty"),
        ({"__metadata__": mx.zeros(1)}, ValueError, "the name is reserved"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_old_file_kept(
    tmp_path: Path, weights: Any, error: type[Exception], reason: str
) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"w": mx.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(error, match=reason):
        export_safetensors(path, weights)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_array_that_cannot_be_computed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"w": mx.zeros(1)})
    before = path.read_bytes()
    export_safetensors(tmp_path / "cut.safetensors", {"w": mx.zeros(1000)})
    lazy: Any = mx.load(str(tmp_path / "cut.safetensors"))
    os.truncate(tmp_path / "cut.safetensors", 100)
    with pytest.raises(RuntimeError, match="Unable to read"):
        export_safetensors(path, {"a": mx.zeros(4), "w": lazy["w"]})
    (tmp_path / "cut.safetensors").unlink()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_float64_names_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float64") as caught:
        export_safetensors(tmp_path / "w.safetensors", {"layers.0": np.zeros(1)})
    assert caught.value.__notes__ == ["while exporting 'layers.0'"]


def test_other_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`path` must end in '\.safetensors', got .*w\.bin"):
        export_safetensors(tmp_path / "w.bin", {})


def test_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_safetensors(path, {"w": mx.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"w\.safetensors: tensor 'w': its data end at byte"):
        load_safetensors(path)
