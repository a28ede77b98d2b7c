"""What importing brings in, what is public, MLX arrays, and the README's example."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import plastic_select
import plastic_select.rules
import pytest
from plastic_select import choose_rank, singular_values, theorem_guided_rank

README = Path(__file__).resolve().parents[1] / "README.md"


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_choosing_a_rank_imports_neither_sympy_nor_mlx() -> None:
    code = (
        "import sys, plastic_select as p; p.choose_rank([[2, 0], [0, 1]], 0.3, 'theorem');"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'sympy', 'mlx', 'scipy'}))"
    )
    assert run(code).strip() == "[]"


def test_every_public_name_exists_once_and_is_documented() -> None:
    for home in (plastic_select, plastic_select.rules):
        assert len(home.__all__) == len(set(home.__all__))
        assert all(getattr(home, name).__doc__ for name in home.__all__)


def test_the_readme_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = run("\n".join(blocks)).splitlines()
    assert lines[0].startswith("6 0.00")
    assert lines[1].startswith("5 0.3")
    assert len(lines) == 6
    smaller, larger = (int(line.split()[0]) for line in lines[4:])
    assert smaller < larger <= 12000


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mlx_arrays_of_any_floating_dtype_are_read_exactly(dtype: str) -> None:
    mx = pytest.importorskip("mlx.core")
    A = mx.array(np.random.default_rng(0).standard_normal((6, 9))).astype(getattr(mx, dtype))
    same = np.array(A.astype(mx.float32))
    assert singular_values(A).tolist() == singular_values(same).tolist()
    assert theorem_guided_rank(A, 0.2) == theorem_guided_rank(same, 0.2)
    assert choose_rank(A, 0.2) == choose_rank(same, 0.2)
    gram = mx.eye(9).astype(A.dtype)
    assert choose_rank(A, 0.2, "activation", gram=gram).rank == 2


def test_packed_mlx_weights_are_refused_with_a_remedy() -> None:
    mx = pytest.importorskip("mlx.core")
    with pytest.raises(TypeError, match=r"got mlx.core.uint32. Dequantize packed weights first"):
        singular_values(mx.zeros((4, 4), dtype=mx.uint32))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "bool_"])
def test_mlx_integers_are_numbers_as_those_of_numpy(dtype: str) -> None:
    mx = pytest.importorskip("mlx.core")
    A = np.array([[1, 0], [1, 1]])
    assert singular_values(mx.array(A).astype(getattr(mx, dtype))).tolist() == (
        singular_values(A).tolist()
    )
    with pytest.raises(TypeError, match="must hold real numbers that NumPy can read: dtype comp"):
        singular_values(mx.array(A).astype(mx.complex64))


def test_a_nan_in_an_mlx_array_is_counted() -> None:
    mx = pytest.importorskip("mlx.core")
    with pytest.raises(ValueError, match=r"1 NaN or infinite of 4 entries, the first at \(0, 1\)"):
        singular_values(mx.array([[1.0, float("nan")], [0.0, 1.0]], dtype=mx.bfloat16))
