"""The sum of adapters: exact side by side, or cut down as a whole."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.linalg import to_numpy
from plastic_export import Adapter, LoraPair, RankGoal, merge, read_adapter, write_adapter

Q, UP = "model.layers.0.q", "model.layers.0.up"
SHAPES = {Q: (24, 16), UP: (32, 16)}


def pair(path: str, rank: int, scale: float, seed: int, dtype: mx.Dtype = mx.float32) -> LoraPair:
    keys = mx.random.split(mx.random.key(seed))
    A = mx.random.normal((rank, SHAPES[path][1]), key=keys[0]).astype(dtype)
    B = mx.random.normal((SHAPES[path][0], rank), key=keys[1]).astype(dtype)
    return LoraPair(A, B, scale)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """One adapter of both layers in float32, one of a single layer in bfloat16."""
    first = Adapter({Q: pair(Q, 3, 2.0, 0), UP: pair(UP, 2, 2.0, 1)}, base="acme/tiny")
    second = Adapter({Q: pair(Q, 5, 0.5, 2, mx.bfloat16)}, base="acme/tiny")
    return [
        write_adapter(first, tmp_path / "first", "peft"),
        write_adapter(second, tmp_path / "second", "mlx"),
    ]


def dense(adapter: Adapter, path: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    if path not in adapter.layers:
        return np.zeros(SHAPES[path])
    A, B, scale = adapter.layers[path]
    product: np.ndarray[tuple[int, int], np.dtype[np.float64]] = scale * (
        to_numpy(B).astype(float) @ to_numpy(A).astype(float)
    )
    return product


@pytest.mark.parametrize("weights", [None, (0.5, 0.5), (1.0, -0.3), (0.0, 1.0)])
def test_the_sum_is_exact_and_ranks_add_up(
    two: list[Path], tmp_path: Path, weights: tuple[float, float] | None
) -> None:
    done = merge(two, tmp_path / "sum", weights=weights)
    assert done.ranks == {Q: 8, UP: 2}
    assert done.relative_error == 0
    summed, parts = read_adapter(done.out), [read_adapter(path) for path in two]
    assert summed.base == "acme/tiny"
    for path in SHAPES:
        wanted = sum(
            w * dense(part, path) for w, part in zip(weights or (1, 1), parts, strict=True)
        )
        assert np.abs(dense(summed, path) - wanted).max() <= 2e-6 * max(1, np.abs(wanted).max())


def test_a_sum_is_cut_down_as_a_whole(two: list[Path], tmp_path: Path) -> None:
    done = merge(two, tmp_path / "sum", goal=RankGoal(rank=4), form="mlx")
    assert done.ranks == {Q: 4, UP: 2}
    parts = [read_adapter(path) for path in two]
    wanted = {path: dense(parts[0], path) + dense(parts[1], path) for path in SHAPES}
    spectrum = np.linalg.svd(wanted[Q], compute_uv=False)
    whole = np.sqrt(sum(np.square(W).sum() for W in wanted.values()))
    assert done.relative_error == pytest.approx(np.linalg.norm(spectrum[4:]) / whole, abs=1e-6)


def test_an_adapter_twice_at_half_is_itself(two: list[Path], tmp_path: Path) -> None:
    done = merge([two[0]] * 2, tmp_path / "sum", weights=(0.5, 0.5), goal=RankGoal(energy=0.999999))
    assert done.ranks == {Q: 3, UP: 2}
    assert done.relative_error < 1e-3


def test_weights_are_as_many_as_adapters(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`weights` must be 2, one for each adapter, got 1"):
        merge(two, tmp_path / "sum", weights=[1.0])


def test_a_weight_that_is_not_finite_is_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`weights` must be finite in float32, got nan, 1"):
        merge(two, tmp_path / "sum", weights=[math.nan, 1.0])
    assert not (tmp_path / "sum").exists()


def test_adapters_of_two_bases_are_refused_with_the_layer(two: list[Path], tmp_path: Path) -> None:
    other = Adapter({Q: LoraPair(mx.ones((1, 8)), mx.ones((24, 1)))})
    source = write_adapter(other, tmp_path / "other", "peft")
    with pytest.raises(ValueError, match=r"'model.layers.0.q' .* \(24, 8\), .* \(24, 16\)"):
        merge([two[0], source], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_names_of_kohya_beside_paths_are_refused(two: list[Path], tmp_path: Path) -> None:
    out = write_adapter(Adapter({"lora_unet_x": pair(Q, 2, 1.0, 3)}), tmp_path / "k", "kohya")
    with pytest.raises(ValueError, match="other names"):
        merge([two[0], out / "lora.safetensors"], tmp_path / "sum")
