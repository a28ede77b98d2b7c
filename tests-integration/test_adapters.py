"""Adapters from the command line: into a base, dense or quantised, and run by stock mlx-lm."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from plastic_core.linalg import to_numpy
from plastic_export import Adapter, LoraPair, read_adapter, write_adapter

TOKENS = [1, 40, 12, 90, 33, 7, 250, 61]
PATHS = tuple(f"model.layers.{x}_proj" for x in ("0.self_attn.q", "2.mlp.down", "3.mlp.up"))


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """Random factors, strong enough to be seen."""
    modules: Any = dict(mlx_lm.load(str(checkpoint))[0].named_modules())
    layers = {}
    for i, path in enumerate(PATHS):
        out, in_ = modules[path].weight.shape
        keys = mx.random.split(mx.random.key(i))
        A = 0.1 * mx.random.normal((4, in_), key=keys[0])
        layers[path] = LoraPair(A, 0.1 * mx.random.normal((out, 4), key=keys[1]), 2.0)
    whole = Adapter(layers, base=str(checkpoint.resolve()))
    return write_adapter(whole, tmp_path / "an adapter ü", "peft")


@pytest.fixture
def four_bits(checkpoint: Path, tmp_path: Path) -> Path:
    out = tmp_path / "q4"
    with redirect_stdout(io.StringIO()):
        mlx_lm.convert(str(checkpoint), str(out), quantize=True, q_bits=4, q_group_size=32)
    return out


def logits(model: Path, adapter: Path | None = None) -> np.ndarray[Any, Any]:
    loaded, _ = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))
    loaded.set_dtype(mx.float32)
    values: np.ndarray[Any, Any] = to_numpy(loaded(mx.array([TOKENS])))
    return values


def stock(run: Callable[..., Any], adapter: Path, out: Path, base: Path) -> Path:
    assert run("export", adapter, out, "--to", "mlx", "--base", base)[0] == 0
    return out


def test_it_is_merged_into_a_dense_base(
    run: Callable[..., Any], checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    code, printed, _ = run("merge", adapter, tmp_path / "whole", "--into", checkpoint, "--json")
    assert code == 0
    record = json.loads(printed)
    assert sorted(record["errors"]) == sorted(PATHS)
    assert max(record["errors"].values()) < 2**-8  # bfloat16
    wanted = logits(checkpoint, stock(run, adapter, tmp_path / "mlx", checkpoint))
    off = np.abs(logits(tmp_path / "whole") - wanted).max()
    assert off < 0.05 * np.abs(logits(checkpoint) - wanted).max()


def test_it_is_merged_into_a_quantised_base_with_the_error_stated(
    run: Callable[..., Any], four_bits: Path, adapter: Path, tmp_path: Path
) -> None:
    words = ("merge", adapter, "--into", four_bits, "--json")
    rounded = json.loads(run(*words[:2], tmp_path / "rounded", *words[2:])[1])
    dense = json.loads(run(*words[:2], tmp_path / "dense", *words[2:], "--dequantize")[1])
    assert rounded["quantized"]
    assert not dense["quantized"]
    assert max(dense["errors"].values()) < 2**-8 < max(rounded["errors"].values())
    wanted = logits(four_bits, stock(run, adapter, tmp_path / "mlx", four_bits))
    kept, lost = (np.abs(logits(tmp_path / n) - wanted).max() for n in ("dense", "rounded"))
    assert kept < 0.1 * np.abs(logits(four_bits) - wanted).max()
    assert lost > kept
    for name in ("dense", "rounded"):
        before, after = (
            mx.load(str(f / "model.safetensors")) for f in (four_bits, tmp_path / name)
        )
        same = [n for n in before if not n.startswith(PATHS)]
        assert all(mx.array_equal(before[n], after[n]).item() for n in same)


def test_over_a_quantised_base_peft_is_told_to_need_the_dense_one(
    run: Callable[..., Any], four_bits: Path, adapter: Path, tmp_path: Path
) -> None:
    words = ("export", adapter, tmp_path / "peft", "--to", "peft", "--base", four_bits)
    code, printed, _ = run(*words)
    assert code == 0
    assert "PEFT cannot load" in printed
    assert read_adapter(tmp_path / "peft").base == str(four_bits.resolve())


def test_exact_ranks_say_who_cannot_read_them(
    run: Callable[..., Any], adapter: Path, tmp_path: Path
) -> None:
    assert run("resize", adapter, tmp_path / "small", "--energy", "0.8")[0] == 0
    unequal = set(read_adapter(tmp_path / "small").ranks.values())
    assert len(unequal) > 1
    patterns = run("export", tmp_path / "small", tmp_path / "patterns", "--to", "peft")[1]
    uniform = run("export", tmp_path / "small", tmp_path / "one", "--to", "peft", "--uniform")[1]
    assert "vLLM" in patterns
    assert "vLLM" not in uniform


def test_resize_and_merge_by_command(
    run: Callable[..., Any], adapter: Path, tmp_path: Path
) -> None:
    code, printed, _ = run("resize", adapter, tmp_path / "small", "--max-size", "8KB")
    assert code == 0
    assert "of its norm over 3 layers" in printed
    (file,) = (tmp_path / "small").glob("*.safetensors")
    assert file.stat().st_size <= 8000
    code, printed, _ = run(
        "merge", adapter, tmp_path / "small", tmp_path / "sum", "--weights", "0.5,0.5"
    )
    assert code == 0
    assert read_adapter(tmp_path / "sum").base == read_adapter(adapter).base


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resize", "ADAPTER", "OUT"), "`--max-size`, `--energy` and `--rank`".replace("`", "")),
        (("resize", "ADAPTER", "OUT", "--max-size", "10"), "--max-size must be at least"),
        (("resize", "NONE", "OUT", "--rank", "2"), "there is no such adapter"),
        (("merge", "ADAPTER", "OUT", "--weights", "a"), "'a' must be numbers such as 0.5,0.5"),
        (("merge", "ADAPTER", "OUT", "--weights", "1,2"), "--weights must be 1, one for each"),
        (("merge", "ADAPTER", "OUT", "--dequantize"), "belong to --into BASE"),
        (("merge", "ADAPTER", "OUT", "--into", "BASE", "--rank", "2"), "--into makes a model"),
        (("export", "ADAPTER", "OUT", "--to", "mlx", "--uniform"), "--uniform"),
        (("export", "ADAPTER", "OUT", "--to", "peft", "--piece", "whole"), "must be adapter"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any],
    adapter: Path,
    checkpoint: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
) -> None:
    places = {"ADAPTER": adapter, "OUT": tmp_path / "out", "BASE": checkpoint}
    code, _, complaint = run(*(places.get(word, word) for word in words))
    assert code == 2
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()
