"""A finished run at smaller sizes: what stays, how large it is, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import array_bytes, load_safetensors, write_json
from plastic_export import Adapter, FormatError, LoraPair, dial_run, read_adapter
from plastic_export.folder.adapter_files import RUN_FILE, SIZES_FILE
from plastic_export.training.adapters import stored_bytes, write_adapters
from plastic_export.training.run_folder import RunFile
from plastic_export.training.sizes.curve import RunSize
from plastic_export.training.sizes.sizes_file import TENSORS, SizesFile, read_sizes_file
from plastic_export.training.sizes.worth import leading, lost

SHAPES = {"model.layers.0.up": (24, 16), "model.layers.1.up": (40, 8), "lm_head": (8, 64)}
RANKS = {"model.layers.0.up": 3, "model.layers.1.up": 5, "lm_head": 4}
CEILING = 9000


def pair(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> LoraPair:
    A, B = rng.normal(size=(rank, shape[1])), rng.normal(size=(shape[0], rank))
    return LoraPair(mx.array(A).astype(mx.float16), mx.array(B).astype(mx.float16))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run of three layers leaves."""
    folder, rng = tmp_path / "run", np.random.default_rng(0)
    folder.mkdir()
    adapter = Adapter({p: pair(SHAPES[p], r, rng) for p, r in RANKS.items()}, "/base")
    write_adapters(folder, adapter)
    worth = {path: tuple(np.sort(rng.random(rank))[::-1].tolist()) for path, rank in RANKS.items()}
    points = (RunSize(stored_bytes(adapter), 2.0, 5, 3), RunSize(1000, 3.0, 1, 2))
    SizesFile.of(folder, worth, points).write(folder / SIZES_FILE)
    RunFile({}, RANKS, 0, CEILING).write(folder / RUN_FILE)
    return folder


def size(folder: Path) -> int:
    return max((folder / place).stat().st_size for place in TENSORS)


def test_no_file_is_larger_and_less_is_lost_with_more_bytes(run: Path, tmp_path: Path) -> None:
    lost_before = float("inf")
    for nbytes in range(700, size(run), 97):
        done = dial_run(run, tmp_path / str(nbytes), nbytes)
        assert size(done.dest) == done.nbytes <= nbytes
        assert all(p.stat().st_size <= max(nbytes, 1200) for p in done.dest.rglob("*.json"))
        assert done.predicted_rise <= lost_before
        lost_before = done.predicted_rise


def test_no_other_ranks_of_one_file_lose_less(run: Path, tmp_path: Path) -> None:
    adapter, worth = read_adapter(run), read_sizes_file(run / SIZES_FILE).worth
    every = [dict(zip(RANKS, each, strict=True)) for each in product(*map(range, (4, 6, 5)))]
    sizes = [(stored_bytes(leading(adapter, ranks)), lost(worth, ranks)) for ranks in every[1:]]
    for nbytes in (800, 1200, 1600, 2000, 2200):
        found = dial_run(run, tmp_path / str(nbytes), nbytes).predicted_rise
        assert found == pytest.approx(min(cost for taken, cost in sizes if taken <= nbytes))


def test_what_stays_has_the_bits_that_it_had(run: Path, tmp_path: Path) -> None:
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*.*")}
    done = dial_run(run, tmp_path / "small", 2000)
    own, found = read_adapter(run).layers, read_adapter(done.dest).layers
    assert 0 < sum(done.ranks.values()) < sum(RANKS.values())
    for path, small in found.items():
        r = done.ranks[path]
        assert small.rank == r
        assert np.array_equal(array_bytes(small.A), array_bytes(own[path].A[:r]))
        assert np.array_equal(array_bytes(small.B), array_bytes(own[path].B[:, :r]))
    stock = load_safetensors(done.adapter / "adapters.safetensors")
    for path, small in found.items():
        assert mx.array_equal(stock[f"{path}.lora_a"].T[: small.rank], small.A)
        assert not stock[f"{path}.lora_a"].T[small.rank :].any()
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*.*")} == before


@pytest.mark.parametrize("nbytes", [None, CEILING])
def test_the_whole_is_the_run_bit_for_bit(run: Path, tmp_path: Path, nbytes: int | None) -> None:
    dial_run(run, tmp_path / "small", 2000)
    back = dial_run(run, tmp_path / "back", nbytes or size(run)).dest
    for place in (*TENSORS, "adapters/adapter_config.json", "peft/adapter_config.json"):
        assert (back / place).read_bytes() == (run / place).read_bytes(), place


def test_what_was_dialled_is_dialled_further(run: Path, tmp_path: Path) -> None:
    first = dial_run(run, tmp_path / "first", 1900)
    second = dial_run(first.dest, tmp_path / "second", 1200)
    assert second.nbytes <= 1200 < first.nbytes == second.before_bytes
    assert [point.nbytes for point in second.points] == [1000]
    with pytest.raises(ValueError, match=rf"at most the {first.nbytes} bytes of the run, got 2000"):
        dial_run(first.dest, tmp_path / "third", 2000)


def test_a_size_out_of_reach_names_both_ends(run: Path, tmp_path: Path) -> None:
    for nbytes in (1, CEILING + 1):
        with pytest.raises(
            ValueError, match=r"must be at least (\d+) bytes, one component"
        ) as said:
            dial_run(run, tmp_path / "out", nbytes)
        assert f"at most the {size(run)} bytes of the run, got {nbytes} bytes" in str(said.value)
    least = int(str(said.value).split("at least ")[1].split()[0])
    assert sum(dial_run(run, tmp_path / "out", least).ranks.values()) == 1
    with pytest.raises(ValueError, match="at least"):
        dial_run(run, tmp_path / "less", least - 1)


def without_prices(run: Path) -> None:
    (run / SIZES_FILE).unlink()


def unfinished(run: Path) -> None:
    without_prices(run)
    (run / "adapters" / "adapters.safetensors").unlink()


def no_run(run: Path) -> None:
    without_prices(run)
    (run / RUN_FILE).unlink()


def trained_further(run: Path) -> None:
    file = run / "adapters" / "adapters.safetensors"
    mx.save_safetensors(str(file), {n: 2 * a for n, a in load_safetensors(file).items()})


def damaged(run: Path) -> None:
    record = json.loads((run / SIZES_FILE).read_text())
    record["worth"]["lm_head"][0] = float("nan")
    (run / SIZES_FILE).write_text(json.dumps(record))


def of_another_version(run: Path) -> None:
    record = json.loads((run / SIZES_FILE).read_text())
    write_json(run / SIZES_FILE, record | {"version": 99})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_prices, "its components were never priced: .*; cut its adapters with `plastic re"),
        (unfinished, "the run is not finished: it has no adapter yet; start the same command agai"),
        (no_run, f"it is no run of `plastic train`: it holds no {RUN_FILE}; cut other adapters"),
        (trained_further, "adapters.safetensors: it is not the file whose components were priced"),
        (damaged, f"{SIZES_FILE}: "),
        (of_another_version, f"{SIZES_FILE}: it has version 99, this program reads 1"),
    ],
)
def test_a_folder_that_cannot_be_dialled_is_refused_in_a_line(
    run: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(run)
    with pytest.raises(FormatError, match=reason) as said:
        dial_run(run, tmp_path / "out", 2000)
    assert str(said.value).count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_learnt_nothing_is_refused(run: Path, tmp_path: Path) -> None:
    nothing = {
        path: LoraPair(mx.zeros((1, n)), mx.zeros((m, 1))) for path, (m, n) in SHAPES.items()
    }
    for place in TENSORS:
        (run / place).unlink()
        (run / place).with_name("adapter_config.json").unlink()
    write_adapters(run, Adapter(nothing, "/base"))
    SizesFile.of(run, {path: (0.0,) for path in SHAPES}, ()).write(run / SIZES_FILE)
    with pytest.raises(FormatError, match="it holds no component"):
        dial_run(run, tmp_path / "out", 2000)


def test_nothing_is_written_into_the_run_or_over_something(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the folder that is dialled"):
        dial_run(run, run / "inside", 2000)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(FormatError, match="the folder is not empty"):
        dial_run(run, tmp_path / "taken", 2000)
