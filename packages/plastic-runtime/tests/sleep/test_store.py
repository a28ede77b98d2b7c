"""What sleeps on disk is there, whole, whatever happened."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import Factors, RankLayer
from plastic_core.files import BusyError, FormatError, TensorSpec, encode_header
from plastic_core.testing import bits, repeatable
from plastic_runtime import PlasticityManager, SleepDict, SleepStore, load_run, save_run
from plastic_runtime.sleep.sleep_dict import Moments
from plastic_runtime.sleep.store import verify_store

OUT, INNER = 5, 4
CARRIERS = {mx.float16: mx.uint16, mx.bfloat16: mx.uint16, mx.float32: mx.uint32}


def components(k: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> Factors:
    """Components of arbitrary bit patterns."""
    rng = np.random.default_rng(seed)
    size = 2 ** (8 * dtype.size)
    return Factors(
        *(
            mx.array(rng.integers(0, size, shape), dtype=CARRIERS[dtype]).view(dtype)
            for shape in ((OUT, k), (k,), (k, INNER))
        )
    )


def moments_of(k: int, seed: int = 9) -> Moments:
    U, S, Vh = components(k, seed)
    return {"U": {"m": U, "v": U}, "S": {"m": S, "v": S}, "Vh": {"m": Vh, "v": Vh}}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return left.dtype == right.dtype and left.shape == right.shape and flat(left) == flat(right)


def flat(array: mx.array) -> bytes:
    return bits(array.reshape(-1))


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_all_patterns_of_16_bits_sleep_and_come_back(tmp_path: Path, dtype: mx.Dtype) -> None:
    k, side = 32, 2048
    patterns = mx.arange(2**16).astype(mx.uint16)
    U = patterns.reshape(side, k).view(dtype)
    Vh = patterns.reshape(k, side).view(dtype)
    factors = Factors(U, patterns[:k].view(dtype), Vh)
    moments: Moments = {"U": {"m": U}, "Vh": {"v": Vh}}
    with SleepStore(tmp_path / "sleep") as store:
        ids = store.park("p", factors, moments)
    with SleepStore(tmp_path / "sleep") as store:
        store.compact()
        back, back_moments = store.take("p", ids)
    assert all(same(a, b) for a, b in zip(factors, back, strict=True))
    assert same(moments, back_moments)


@repeatable
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(list(CARRIERS)), k=st.integers(1, 4))
def test_random_bits_sleep_and_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: mx.Dtype, k: int
) -> None:
    folder = tmp_path_factory.mktemp("sleep") / "store"
    factors = components(k, seed, dtype)
    with SleepStore(folder) as store:
        ids = store.park("layers.0", factors, moments_of(k, seed))
    with SleepStore(folder) as store:
        assert store.ids("layers.0") == ids
        back, moments = store.take("layers.0", ids)
        assert len(store) == 0
    assert all(same(a, b) for a, b in zip(factors, back, strict=True))
    assert same(moments, moments_of(k, seed))


def test_it_answers_as_a_sleep_dict_does(tmp_path: Path) -> None:
    plain, store = SleepDict(), SleepStore(tmp_path)
    for each in (plain, store):
        each.park("b", components(2), moments_of(2))
        each.park("a", components(3, dtype=mx.bfloat16))
        each.take("b", [0])
        each.park("b", components(1, seed=4))
    assert store.paths() == plain.paths()
    assert [store.ids(p) for p in "ab"] == [plain.ids(p) for p in "ab"]
    assert (len(store), store.nbytes) == (len(plain), plain.nbytes)
    for id in (*plain.ids("a"), *plain.ids("b")):
        ours, theirs = store.get(id), plain.get(id)
        assert ours.path == theirs.path
        assert all(same(getattr(ours, n), getattr(theirs, n)) for n in ("U", "S", "Vh", "moments"))
    with pytest.raises(ValueError, match="`ids` must be distinct"):
        store.take("b", [2])
    store.close()


def test_what_was_taken_is_on_disk_until_it_is_released_and_compacted(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        ids = store.park("p", components(2))
        store.take("p", ids[:1])
        assert store.ids("p") == ids[1:]
    with SleepStore(tmp_path) as store:  # whoever took it never said that it is safe elsewhere
        assert store.ids("p") == ids
        store.take("p", ids[:1])
        store.release()
        store.release()
    with SleepStore(tmp_path) as store:
        assert store.ids("p") == ids[1:]
        before = sum(f.stat().st_size for f in records(tmp_path))
        store.compact()
        assert store.ids("p") == ids[1:]
        assert sum(f.stat().st_size for f in records(tmp_path)) < before
        assert len(records(tmp_path)) == 1
        assert store.park("p", components(1)) == (2,)
    with SleepStore(tmp_path) as store:
        assert store.ids("p") == (1, 2)


def test_one_process_at_a_time_has_it_open_and_the_other_hears_which(tmp_path: Path) -> None:
    with SleepStore(tmp_path):
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on "):
            SleepStore(tmp_path)
        assert verify_store(tmp_path) == []
    store = SleepStore(tmp_path)
    store.close()
    store.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_number_is_never_given_twice_not_even_after_everything_went(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        store.take("p", store.park("p", components(3)))
        store.release()
        store.compact()
        assert len(store) == 0
    with SleepStore(tmp_path) as store:
        assert store.park("p", components(1)) == (3,)


def test_a_large_store_is_compacted_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plastic_runtime.sleep.store.GROUP_COMPONENTS", 2)
    with SleepStore(tmp_path) as store:
        ids = store.park("p", components(5))
        store.compact()
        assert len(records(tmp_path)) == 3
    with SleepStore(tmp_path) as store:
        back, _ = store.read("p", ids)
    assert all(same(a, b) for a, b in zip(components(5), back, strict=True))
    assert verify_store(tmp_path) == []


# Rounding by choice.


@repeatable
@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
)
def test_a_rounded_component_is_within_its_bound_and_close_to_it(
    tmp_path_factory: pytest.TempPathFactory, bits: int, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    U, Vh = (rng.standard_normal(s).astype(np.float32) for s in ((100, 2), (2, 70)))
    S = np.array([3.0, -0.5], np.float32) * np.float32(scale)
    folder = tmp_path_factory.mktemp("sleep")
    with SleepStore(folder, bits=bits) as store:
        ids = store.park("p", Factors(*map(mx.array, (U, S, Vh))))
        parked = [store.get(id) for id in ids]
        errors = [store.error(id) for id in ids]
    for i, (p, stated) in enumerate(zip(parked, errors, strict=True)):
        exact = S[i].astype(np.float64) * np.outer(U[:, i].astype(np.float64), Vh[i])
        rounded = float(p.S.item()) * np.outer(np.array(p.U, np.float64), np.array(p.Vh))
        true = float(np.linalg.norm(exact - rounded))
        assert true <= stated * (1 + 1e-12) <= 2 * true
        for x, y in ((U[:, i], p.U), (Vh[i], p.Vh)):
            step = (x.max() - x.min()) / (2**bits - 1)  # of any group at most
            assert np.abs(np.array(y) - x).max() <= 0.5 * step * (1 + 1e-5)


def test_eight_bits_take_less_than_half_of_the_bytes(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    factors = Factors(*(mx.array(rng.standard_normal(s)) for s in ((640, 4), (4,), (4, 640))))
    factors = Factors(*(a.astype(mx.float32) for a in factors))
    sizes = {}
    for name, width in (("full", None), ("rounded", 8)):
        with SleepStore(tmp_path / name, bits=width) as store:
            store.park("p", factors)
            assert store.nbytes == sum(a.nbytes for a in factors)
        sizes[name] = sum(f.stat().st_size for f in records(tmp_path / name))
    assert sizes["rounded"] < 0.5 * sizes["full"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_cannot_be_rounded_sleeps_in_full(tmp_path: Path, value: float) -> None:
    U = np.ones((70, 1), np.float32)
    U[3] = value
    factors = Factors(mx.array(U), mx.array([1.0]), mx.ones((1, 70)))
    with SleepStore(tmp_path, bits=4) as store:
        (id,) = store.park("p", factors)
        assert store.error(id) == 0.0
        assert flat(store.get(id).U) == flat(factors.U)


def test_a_rounded_component_has_its_dtype_back_and_bits_other_than_those_offered_are_refused(
    tmp_path: Path,
) -> None:
    ones = Factors(*(mx.ones(s, mx.bfloat16) for s in ((70, 1), (1,), (1, 3))))
    with SleepStore(tmp_path, bits=8) as store:
        (id,) = store.park("p", ones, {"U": {"m": ones.U}})
        back = store.get(id)
    assert (back.U.dtype, back.S.dtype, back.Vh.dtype) == (mx.bfloat16,) * 3
    assert flat(back.moments["U"]["m"]) == flat(ones.U)
    with pytest.raises(ValueError, match="`bits` must be one of"):
        SleepStore(tmp_path, bits=7)


# Damage.


def test_two_hundred_flipped_bits_are_found_and_named(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        store.park("layers.0.q_proj", components(8), moments_of(8))
        store.park("layers.1.q_proj", components(3, dtype=mx.bfloat16))
        store.take("layers.0.q_proj", [0])
        store.release()
    assert verify_store(tmp_path) == []
    rng = np.random.default_rng(0)
    for _ in range(200):
        file = records(tmp_path)[rng.integers(len(records(tmp_path)))]
        content = bytearray(file.read_bytes())
        place = int(rng.integers(len(content)))
        content[place] ^= 1 << int(rng.integers(8))
        intact = file.read_bytes()
        file.write_bytes(content)
        (defect,) = verify_store(tmp_path)
        assert defect.startswith(f"{file}: ")
        if place >= 8 + int.from_bytes(intact[:8], "little"):
            assert "tensor 'layers." in defect
            assert ": component " in defect
        file.write_bytes(intact)


def test_a_damaged_component_is_not_given_out_and_the_others_are(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        store.park("p", components(2))
        file = records(tmp_path)[-1]
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(FormatError, match=r"tensor 'p\.Vh': component 1: its bytes are not"):
            store.take("p", [0, 1])
        assert store.ids("p") == (0, 1)
        store.take("p", [0])
        with pytest.raises(FormatError, match="component 1"):
            store.compact()
    assert file in records(tmp_path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        store.park("p", components(1))
        store.park("p", components(1))
    records(tmp_path)[1].unlink()
    with pytest.raises(FormatError, match=r"the record 00000002-\*\.safetensors is missing"):
        SleepStore(tmp_path)
    assert "00000002" in verify_store(tmp_path)[0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FormatError, match="not empty and no sleep store"):
        SleepStore(tmp_path)
    with pytest.raises(FormatError, match="no sleep store"):
        verify_store(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RankLayer.from_linear(nn.Linear(6, 5), 3)
    model = nn.Sequential(layer)
    with SleepStore(tmp_path) as store:
        manager = PlasticityManager(model, sleep=store)
        weight = layer.to_linear().weight

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "sleep")

        monkeypatch.setattr("plastic_core.files.atomic.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            manager.shrink("layers.0", 1)
        monkeypatch.undo()
        assert layer.rank == 3
        assert len(store) == 0
        manager.shrink("layers.0", 1)
        manager.wake("layers.0")
        assert mx.allclose(layer.to_linear().weight, weight, atol=1e-6)


# With a run in training.


def trained(sleep: SleepDict) -> tuple[nn.Module, optim.Optimizer, PlasticityManager]:
    mx.random.seed(0)
    model = nn.Sequential(*(RankLayer.from_linear(nn.Linear(8, 8), 4) for _ in range(2)))
    optimizer = optim.Adam(1e-2)
    return model, optimizer, PlasticityManager(model, optimizer, sleep=sleep)


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> None:
    x = mx.random.normal((16, 8), key=mx.random.key(1))
    step = nn.value_and_grad(model, lambda: mx.square(model(x) - mx.sin(x)).mean())
    for _ in range(steps):
        _, gradients = step()
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)


def run_through(sleep: SleepDict) -> list[bytes]:
    model, optimizer, manager = trained(sleep)
    train(model, optimizer, 3)
    manager.shrink("layers.0", 1)
    train(model, optimizer, 2)
    manager.wake("layers.0", manager.sleep_dict.ids("layers.0")[:2])
    train(model, optimizer, 2)
    return [bits(a) for layer in model.layers for a in layer.factors()]


def test_a_run_has_the_same_bits_with_its_sleepers_on_disk(tmp_path: Path) -> None:
    with SleepStore(tmp_path) as store:
        assert run_through(store) == run_through(SleepDict())


def test_a_run_goes_back_to_what_was_saved_whatever_slept_or_woke_since(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    with SleepStore(tmp_path / "sleep") as store:
        model, optimizer, manager = trained(store)
        train(model, optimizer, 2)
        manager.shrink("layers.0", 2)
        save_run(file, model, optimizer, manager)
        asleep, awake = store.ids("layers.0"), [bits(a) for a in model.layers[1].factors()]
        manager.wake("layers.0")
        manager.shrink("layers.1", 1)
    with SleepStore(tmp_path / "sleep") as store:  # as after a crash
        model, optimizer, manager = trained(store)
        load_run(file, model, optimizer, manager)
        assert manager.ranks() == {"layers.0": 2, "layers.1": 4}
        assert store.ids("layers.0") == asleep
        assert store.ids("layers.1") == ()
        assert [bits(a) for a in model.layers[1].factors()] == awake
        (new,) = store.park("layers.1", components(1))
        assert new not in asleep
        save_run(file, model, optimizer, manager)
    with SleepStore(tmp_path / "sleep") as store:
        assert store.ids("layers.1") == (new,)


def test_an_earlier_run_finds_its_sleepers_until_the_store_is_compacted(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    with SleepStore(tmp_path / "sleep") as store:
        model, optimizer, manager = trained(store)
        manager.shrink("layers.0", 1)
        save_run(first, model, optimizer, manager)
        manager.wake("layers.0")
        save_run(second, model, optimizer, manager)
        load_run(first, model, optimizer, manager)
        assert len(store) == 3
        load_run(second, model, optimizer, manager)
        store.compact()
        with pytest.raises(ValueError, match=r"component 0 of layer 'layers\.0' is not in"):
            load_run(first, model, optimizer, manager)
        assert manager.ranks()["layers.0"] == 4


def test_a_run_moves_from_memory_to_a_store_and_not_back_silently(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    model, optimizer, manager = trained(SleepDict())
    manager.shrink("layers.0", 1)
    kept = {id: manager.sleep_dict.get(id) for id in manager.sleep_dict.ids("layers.0")}
    save_run(file, model, optimizer, manager)
    with SleepStore(tmp_path / "sleep") as store:
        model, optimizer, manager = trained(store)
        load_run(file, model, optimizer, manager)
        assert all(same(store.get(id).U, p.U) for id, p in kept.items())
        save_run(file, model, optimizer, manager)
    model, optimizer, manager = trained(SleepDict())
    with pytest.raises(ValueError, match="in a store on disk"):
        load_run(file, model, optimizer, manager)


# Size.

MEASURE = """
import json, os, sys
import mlx.core as mx
from plastic_runtime import SleepStore

def peak():
    with open("/proc/self/status") as status:
        return next(int(l.split()[1]) for l in status if l.startswith("VmHWM")) * 1024

before = peak()
with SleepStore(sys.argv[1]) as store:
    opened = peak()
    factors, _ = store.take("layer", [1234])
    print(json.dumps([len(store), store.nbytes, opened - before, peak() - opened]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_gigabytes_asleep_take_no_memory(
    tmp_path: Path, sparse_store: Callable[[Path, int, int], None]
) -> None:
    count, side = 2000, 640 * 1024
    sparse_store(tmp_path, count, side)
    size = sum(f.stat().st_size for f in records(tmp_path))
    held = sum(512 * f.stat().st_blocks for f in records(tmp_path))
    assert size > 10e9 > 1000 * held
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, os.fspath(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    left, asleep, opening, waking = json.loads(done.stdout)
    assert left == count - 1
    assert asleep > 10e9
    assert opening < 20e6
    assert waking < 10 * 8 * side  # a component takes 5 MB


@pytest.fixture
def sparse_store() -> Callable[[Path, int, int], None]:
    """``sparse_store(folder, count, side)``: components of zeros, of which no byte is stored."""
    return make_sparse


def make_sparse(folder: Path, count: int, side: int) -> None:
    SleepStore(folder).close()
    zeros = {n: hashlib.sha256(bytes(4 * s)).hexdigest() for n, s in (("U", side), ("S", 1))}
    zeros["Vh"] = zeros["U"]
    shapes = {"U": (side,), "S": (), "Vh": (side,)}
    specs = [TensorSpec(f"{i}.{n}", "F32", s) for i in range(count) for n, s in shapes.items()]
    parked = {str(i): {"path": "layer", "sha256": zeros} for i in range(count)}
    content = {"version": 1, "sequence": 2, "base": 1, "next_id": count, "parked": parked}
    head = encode_header(specs, {"plastic_sleep": json.dumps(content | {"released": []})})
    file = folder / f"00000002-{hashlib.sha256(head).hexdigest()[:16]}.safetensors"
    file.write_bytes(head)
    os.truncate(file, len(head) + sum(s.nbytes for s in specs))
