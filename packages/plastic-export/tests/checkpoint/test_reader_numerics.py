"""Every hard tensor of a checkpoint has one stated outcome: right, copied, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_rank import compress
from plastic_export.compression.restoration import restore

NAME, OTHER = "model.layers.0.x.weight", "model.layers.0.y.weight"
NAMES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint32": "U32", "bool": "BOOL"}
EPS = {"F32": 2.0**-22, "F16": 2.0**-10}


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def tensor(A: NDArray[Any] | np.generic) -> Tensor:
    return Tensor(NAMES[A.dtype.name], A.shape, A.tobytes())


def gaussian(m: int = 40, n: int = 30) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((m, n)).astype(np.float32)


def spoiled(value: float, *place: int, A: NDArray[Any] | None = None) -> Tensor:
    A = gaussian() if A is None else A.copy()
    A[place] = value
    return tensor(A)


def not_finite(count: int, size: int, first: str) -> str:
    return rf"{count} of {size} values are NaN or infinite, the first at \({first}\)"


REFUSED = {
    "one NaN": (spoiled(np.nan, 3, 4), not_finite(1, 1200, "3, 4")),
    "all NaN": (tensor(np.full((40, 30), np.float32(np.nan))), not_finite(1200, 1200, "0, 0")),
    "one Inf": (spoiled(np.inf, 3, 4), not_finite(1, 1200, "3, 4")),
    "last -Inf": (spoiled(-np.inf, -1, -1), not_finite(1, 1200, "39, 29")),
    "Inf in 3 x 3": (spoiled(np.inf, 0, 0, A=gaussian(3, 3)), not_finite(1, 9, "0, 0")),
    "NaN in float16": (
        spoiled(np.nan, 3, 4, A=gaussian().astype(np.float16)),
        not_finite(1, 1200, "3, 4"),
    ),
    "float64": (Tensor("F64", (40, 30), bytes(9600)), "F64 is double precision"),
    "float8, 5 bits": (Tensor("F8_E5M2", (4, 3), bytes(12)), "F8_E5M2 is valid, but MLX cannot"),
    "float4": (Tensor("F4", (40, 30), bytes(600)), "F4 is valid, but MLX cannot load it"),
    "3e38": (tensor(np.full((40, 30), np.float32(3e38))), "overflows float32. Scale the matrix"),
    "65504 in float16": (
        tensor(np.full((40, 30), np.float16(65504))),
        "does not fit F16; leave it out with --exclude, or take a copy in bfloat16",
    ),
}
COPIED = {
    "1 x n": gaussian(1, 30),
    "n x 1": gaussian(40, 1),
    "1 x 1": gaussian(1, 1),
    "0 x n": gaussian(0, 30),
    "n x 0": gaussian(40, 0),
    "0-d": np.float32(3),
    "1-d": gaussian()[0],
    "3-d": gaussian().reshape(4, 10, 30),
    "int32": np.ones((40, 30), np.int32),
    "bool": np.ones((40, 30), bool),
    "uint32 without scales": np.ones((40, 30), np.uint32),
}
RIGHT = {
    "zero": np.zeros((40, 30), np.float32),
    "rank 3": gaussian(40, 3) @ gaussian(3, 30),
    "identity": np.eye(30, dtype=np.float32),
    "subnormal": gaussian() * np.float32(1e-40),
    "1e-30": gaussian() * np.float32(1e-30),
    "1e30": gaussian() * np.float32(1e30),
    "graded": np.diag(np.array([1e30, 1, 1e-30] * 10, np.float32)),
    "float16": gaussian().astype(np.float16),
}


@pytest.fixture
def source(tmp_path: Path) -> Callable[[Tensor], Path]:
    """``source(tensor)``: a checkpoint of this tensor and an ordinary one."""

    def write(hard: Tensor) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        header, data = {}, b""
        for name, (dtype, shape, content) in {NAME: hard, OTHER: tensor(gaussian())}.items():
            offsets = [len(data), len(data) + len(content)]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
            data += content
        text = json.dumps(header).encode()
        head = len(text).to_bytes(8, "little") + text
        (folder / "model.safetensors").write_bytes(head + data)
        return folder

    return write


def bytes_of(folder: Path, name: str) -> bytes:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.raw(name).tobytes()


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name_and_nothing_is_written(
    source: Callable[[Tensor], Path], tmp_path: Path, case: str
) -> None:
    hard, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason) as caught:
        compress(source(hard), tmp_path / "out", keep=0.5, format="dense")
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert NAME in f"{caught.value}{notes}"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("case", [c for c in REFUSED if "values" in REFUSED[c][1]])
def test_what_is_not_finite_is_copied_where_it_is_excluded(
    source: Callable[[Tensor], Path], tmp_path: Path, case: str
) -> None:
    folder = source(REFUSED[case][0])
    compress(folder, tmp_path / "out", keep=0.5, format="dense", exclude=[NAME])
    assert bytes_of(tmp_path / "out", NAME) == REFUSED[case][0].data


@pytest.mark.parametrize("case", COPIED)
def test_it_is_copied_bit_for_bit(
    source: Callable[[Tensor], Path], tmp_path: Path, case: str
) -> None:
    hard = tensor(COPIED[case])
    result = compress(source(hard), tmp_path / "out", keep=0.5, format="dense")
    assert [m.name for m in result.matrices] == [OTHER]
    assert bytes_of(tmp_path / "out", NAME) == hard.data


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0"])
def test_codes_that_mlx_loads_as_bytes_are_copied_bit_for_bit(
    source: Callable[[Tensor], Path], tmp_path: Path, dtype: str
) -> None:
    codes = Tensor(dtype, (30, 40), bytes(range(240)) * 5)
    result = compress(source(codes), tmp_path / "out", keep=0.5, format="dense")
    assert [m.name for m in result.matrices] == [OTHER]
    assert bytes_of(tmp_path / "out", NAME) == codes.data
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.tensors[NAME].dtype == dtype


@pytest.mark.parametrize("case", RIGHT)
def test_it_is_factored_and_woken_within_its_rounding_and_restored_exactly(
    source: Callable[[Tensor], Path], tmp_path: Path, case: str
) -> None:
    A = RIGHT[case]
    folder, out = source(tensor(A)), tmp_path / "out"
    result = compress(folder, out, keep=0.5, format="dense", exact=True)
    record = next(m for m in result.matrices if m.name == NAME)
    assert not record.is_unchanged
    exact = A.astype(np.float64)
    stored = np.frombuffer(bytes_of(out, NAME), A.dtype).reshape(A.shape).astype(np.float64)
    norm = np.linalg.norm(exact) or 1.0
    assert record.relative_error == pytest.approx(np.linalg.norm(stored - exact) / norm, abs=1e-6)
    # Subnormal numbers have 17 to 23 bits less, so rounding is relative to less.
    bound = 1e-4 if case == "subnormal" else 10 * EPS[record.dtype]
    assert record.restored_error <= bound
    assert restore(out, tmp_path / "dest").proved
    assert bytes_of(tmp_path / "dest", NAME) == A.tobytes()


def test_a_matrix_that_is_not_finite_does_not_hinder_reading_the_others(
    source: Callable[[Tensor], Path],
) -> None:
    hard, reason = REFUSED["one NaN"]
    with open_checkpoint(source(hard)) as checkpoint:
        assert checkpoint.raw(NAME).tobytes() == hard.data
        with pytest.raises(FormatError, match=reason):
            checkpoint.matrix(NAME)
        assert checkpoint.matrix(OTHER).shape == (40, 30)
