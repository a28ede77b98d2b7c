"""Adapters cut down: the best of their ranks, within the bytes, with the error that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.linalg import to_numpy
from plastic_export import Adapter, LoraPair, RankGoal, read_adapter, resize, write_adapter
from plastic_export.adapters.kohya_form import kohya_name

SHAPES = {"model.layers.0.q": (48, 32), "model.layers.0.up": (24, 64), "model.layers.1.q": (32, 32)}
RANKS = (12, 20, 6)


@pytest.fixture
def adapter() -> Adapter:
    """Layers of unlike sizes, ranks, scales and spectra."""
    rng = np.random.default_rng(0)
    layers = {}
    for (path, (out, in_)), rank, scale in zip(SHAPES.items(), RANKS, (1.0, 0.3, 2.0), strict=True):
        falling = 0.8 ** np.arange(rank)
        A = mx.array(rng.standard_normal((rank, in_)) * falling[:, None], mx.float32)
        B = mx.array(rng.standard_normal((out, rank)), mx.float32)
        layers[path] = LoraPair(A, B, scale)
    return Adapter(layers)


def dense(adapter: Adapter) -> dict[str, np.ndarray[Any, Any]]:
    return {
        path: pair.scale * (to_numpy(pair.B).astype(float) @ to_numpy(pair.A).astype(float))
        for path, pair in adapter.layers.items()
    }


def error(before: Adapter, after: Adapter) -> float:
    """The relative Frobenius error over all layers, by their matrices."""
    old, new = dense(before), dense(after)
    lost = sum(np.square(W - new.get(path, 0 * W)).sum() for path, W in old.items())
    return float(np.sqrt(lost / sum(np.square(W).sum() for W in old.values())))


def dropped(adapter: Adapter, ranks: dict[str, int]) -> float:
    """The least relative error of these ranks, by Eckart and Young."""
    spectra = {path: np.linalg.svd(W, compute_uv=False) for path, W in dense(adapter).items()}
    lost = sum(np.square(S[ranks[path] :]).sum() for path, S in spectra.items())
    return float(np.sqrt(lost / sum(np.square(S).sum() for S in spectra.values())))


GOALS = [
    RankGoal(rank=4),
    RankGoal(energy=0.9),
    RankGoal(energy=1.0),
    RankGoal(max_bytes=8000),
    RankGoal(max_bytes=3000),
]


@pytest.mark.parametrize("goal", GOALS, ids=str)
@pytest.mark.parametrize("form", ["mlx", "peft", "uniform", "kohya"])
def test_the_error_is_the_least_of_its_ranks_and_is_stated(
    adapter: Adapter, tmp_path: Path, goal: RankGoal, form: Any
) -> None:
    uniform, form = form == "uniform", "peft" if form == "uniform" else form
    source = write_adapter(adapter, tmp_path / "source", "peft")
    done = resize(source, tmp_path / "out", goal, form=form, uniform=uniform)
    file = next(done.out.glob("*.safetensors"))
    after = read_adapter(file if form == "kohya" else done.out)
    names = {kohya_name(path) if form == "kohya" else path: path for path in SHAPES}
    after = Adapter({names[name]: pair for name, pair in after.layers.items()})
    assert done.ranks == {path: after.ranks.get(path, 0) for path in SHAPES}
    assert done.ranks_before == dict(zip(SHAPES, RANKS, strict=True))
    assert done.nbytes == file.stat().st_size
    assert done.relative_error == pytest.approx(error(adapter, after), abs=1e-6)
    assert done.relative_error == pytest.approx(dropped(adapter, done.ranks), abs=1e-6)
    if goal.max_bytes is not None:
        assert done.nbytes <= goal.max_bytes
    if goal.energy is not None:
        assert 1 - done.relative_error**2 >= goal.energy - 1e-9
    if goal.rank is not None:
        assert max(done.ranks.values()) <= goal.rank


def test_no_ranks_of_these_bytes_have_less_error(adapter: Adapter, tmp_path: Path) -> None:
    source = write_adapter(adapter, tmp_path / "source", "peft")
    done = resize(source, tmp_path / "out", RankGoal(max_bytes=6000))
    paths = list(SHAPES)

    def nbytes(ranks: dict[str, int]) -> int:
        return sum(4 * sum(SHAPES[p]) * r for p, r in ranks.items())

    for ranks in np.ndindex(*(r + 1 for r in RANKS)):
        other = dict(zip(paths, ranks, strict=True))
        if nbytes(other) <= nbytes(done.ranks):
            assert dropped(adapter, other) >= done.relative_error - 1e-6


@pytest.mark.parametrize("form", ["peft", "mlx", "kohya"])
def test_alike_layers_get_no_less_than_one_rank_for_all_in_its_bytes(
    tmp_path: Path, form: Any
) -> None:
    rng = np.random.default_rng(1)
    layers = {}
    for i in range(12):
        A = mx.array((rng.standard_normal((16, 32)) * 0.9 ** np.arange(16)[:, None]), mx.float32)
        B = mx.array(rng.standard_normal((32, 16)), mx.float32)
        layers[f"model.layers.{i}.q"] = LoraPair(A, B)
    source = write_adapter(Adapter(layers), tmp_path / "source", "peft")
    one = resize(source, tmp_path / "one", RankGoal(rank=8), form=form)
    ours = resize(source, tmp_path / "ours", RankGoal(max_bytes=one.nbytes), form=form)
    assert ours.nbytes <= one.nbytes
    assert ours.relative_error <= one.relative_error * (1 + 1e-6)


def test_one_rank_for_all_is_the_best_one(adapter: Adapter, tmp_path: Path) -> None:
    source = write_adapter(adapter, tmp_path / "source", "mlx")
    done = resize(source, tmp_path / "out", RankGoal(max_bytes=8000))
    highest = max(done.ranks.values())
    for rank in range(1, max(RANKS) + 1):
        for chosen in np.ndindex(2, 2, 2):
            ranks = {p: min(r, rank) * c for p, r, c in zip(SHAPES, RANKS, chosen, strict=True)}
            padded = sum(4 * rank * sum(SHAPES[path]) for path, r in ranks.items() if r)
            own = sum(4 * highest * sum(SHAPES[path]) for path, r in done.ranks.items() if r)
            if padded <= own:
                assert dropped(adapter, ranks) >= done.relative_error - 1e-6


def test_the_rounding_of_sixteen_bits_is_in_the_error(adapter: Adapter, tmp_path: Path) -> None:
    layers = {
        path: LoraPair(pair.A.astype(mx.bfloat16), pair.B.astype(mx.bfloat16), pair.scale)
        for path, pair in adapter.layers.items()
    }
    source = write_adapter(Adapter(layers), tmp_path / "source", "peft")
    done = resize(source, tmp_path / "out", RankGoal(rank=64))
    assert done.ranks == done.ranks_before
    assert 1e-4 < done.relative_error < 1e-2
    assert done.relative_error == pytest.approx(
        error(Adapter(layers), read_adapter(done.out)), rel=1e-3
    )


def test_a_rank_beyond_the_matrix_becomes_its_full_rank(tmp_path: Path) -> None:
    keys = mx.random.split(mx.random.key(0))
    pair = LoraPair(mx.random.normal((40, 8), key=keys[0]), mx.random.normal((6, 40), key=keys[1]))
    source = write_adapter(Adapter({"up": pair}), tmp_path / "source", "peft")
    done = resize(source, tmp_path / "out", RankGoal(energy=1.0))
    assert done.ranks == {"up": 6}
    assert done.relative_error < 1e-6


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({}, "must be given, got none"),
        ({"rank": 2, "energy": 0.5}, "got `energy` and `rank`"),
        ({"energy": 1.5}, "above 0 and at most 1"),
        ({"rank": 0}, "at least 1"),
    ],
)
def test_a_goal_that_is_none_is_refused(goal: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RankGoal(**goal)


def test_bytes_for_no_component_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    source = write_adapter(adapter, tmp_path / "source", "peft")
    with pytest.raises(ValueError, match="the file with one component, got 300"):
        resize(source, tmp_path / "out", RankGoal(max_bytes=300))
    assert not (tmp_path / "out").exists()


def test_a_factor_that_is_not_finite_is_named(adapter: Adapter, tmp_path: Path) -> None:
    path, pair = next(iter(adapter.layers.items()))
    broken = Adapter({path: LoraPair(pair.A * float("nan"), pair.B)})
    source = write_adapter(broken, tmp_path / "source", "peft")
    with pytest.raises(ValueError, match=f"layer '{path}': its factor A holds NaN"):
        resize(source, tmp_path / "out", RankGoal(rank=1))


def test_an_adapter_that_changes_nothing_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    still = {path: pair._replace(scale=0.0) for path, pair in adapter.layers.items()}
    source = write_adapter(Adapter(still), tmp_path / "source", "mlx")
    with pytest.raises(ValueError, match="changes nothing"):
        resize(source, tmp_path / "out", RankGoal(rank=1))
    assert not (tmp_path / "out").exists()
