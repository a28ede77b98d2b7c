"""What is compressed with ``exact`` comes back with every bit of its source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.files import FormatError
from plastic_core.testing import repeatable
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.restoration import restore
from plastic_export.compression.verification import verify
from plastic_export.exact.byte_planes import (
    Inflater,
    as_words,
    compressed_words,
    packed_words,
    unpacked_words,
)
from plastic_export.exact.exactness import EXACT, Exact
from plastic_export.exact.prediction import Guess, exact_product
from plastic_export.plan.offers import Choice
from plastic_runtime.dialling import read_manifest

Make = Callable[..., Path]
MLX = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
UP = "model.layers.1.mlp.up_proj"
PLAN = {
    "model.layers.0.self_attn.q_proj.weight": Choice(4, 8, 8),
    "model.layers.0.mlp.up_proj.weight": Choice(None, 8, 16),
    "model.layers.1.mlp.down_proj.weight": Choice(3),
}


def digests(folder: Path) -> dict[str, str]:
    with open_checkpoint(folder) as checkpoint:
        return {
            name: hashlib.sha256(checkpoint.raw(name).tobytes()).hexdigest()
            for name in checkpoint.tensors
        }


def check_restored(source: Path, out: Path, dest: Path) -> None:
    assert verify(out) == []
    back = restore(out, dest)
    assert back.proved
    assert not back.bounds
    assert digests(dest) == digests(source)
    assert set(back.exact) == digests(source).keys()
    assert (dest / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("dtype", MLX)
@pytest.mark.parametrize("format", ["dense", "factored"])
def test_every_type_and_format_comes_back_bit_for_bit(
    make_checkpoint: Make,
    tiny_weights: dict[str, mx.array],
    tmp_path: Path,
    dtype: str,
    format: Any,
) -> None:
    weights = {name: w.astype(MLX[dtype]) for name, w in tiny_weights.items()}
    weights[f"{UP}.weight"] = mx.where(mx.abs(weights[f"{UP}.weight"]) < 0.01, -0.0, 0.5).astype(
        MLX[dtype]
    )
    for path in (p.removesuffix(".weight") for p in tiny_weights if ".mlp." in p):
        weights[f"{path}.bias"] = mx.arange(len(weights[f"{path}.weight"])).astype(MLX[dtype])
    source = make_checkpoint("source", shards=3, weights=weights, mlp_bias=True)
    out = tmp_path / "out"
    result = compress(source, out, keep=0.5, strategy="energy", format=format, exact=True)
    assert result.exact_bytes == (out / EXACT).stat().st_size
    check_restored(source, out, tmp_path / "dest")
    with Exact(out) as exact:
        assert exact.kept["model.norm.weight"].copied == "model.norm.weight"
        assert exact.kept["model.layers.0.self_attn.q_proj.weight"].guessed


def test_a_guess_from_the_factors_takes_a_quarter_of_the_bytes_or_less(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    result = compress(checkpoint_folder, tmp_path / "out", keep=0.5, exact=True)
    compressed_away = sum(m.source_bytes for m in result.matrices if not m.is_unchanged)
    header = 4 * 1024
    assert result.exact_bytes < 0.25 * compressed_away + header


@pytest.mark.parametrize("format", ["corrected", "mixed"])
def test_a_plan_comes_back_bit_for_bit(
    checkpoint_folder: Path,
    make_plan: Callable[..., object],
    tmp_path: Path,
    format: str,
) -> None:
    choices: Mapping[str, Any] = PLAN
    if format == "mixed":
        choices = {name: Choice(bits or 2) for name, (bits, *_) in PLAN.items()}
    make_plan(checkpoint_folder, tmp_path / "plan.json", choices, format)
    out = tmp_path / "out"
    result = execute_plan(checkpoint_folder, out, tmp_path / "plan.json", exact=True)
    assert result.exact_bytes > 0
    check_restored(checkpoint_folder, out, tmp_path / "dest")


def test_a_packed_source_comes_back_packed(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    quantised = mx.quantize(tiny_weights[f"{UP}.weight"], 32, 4)
    parts = dict(zip(("weight", "scales", "biases"), quantised, strict=True))
    weights = tiny_weights | {f"{UP}.{leaf}": array for leaf, array in parts.items()}
    how = {"bits": 4, "group_size": 32}
    source = make_checkpoint("source", weights=weights, quantization=how)
    out = tmp_path / "out"
    compress(source, out, keep=0.4, strategy="energy", include=[UP], exact=True)
    check_restored(source, out, tmp_path / "dest")


def packed(weights: dict[str, mx.array], groups: Mapping[str, int]) -> dict[str, mx.array]:
    """The weights in 4 bits as MLX packs them, in the groups of every path."""
    stored = dict[str, mx.array]()
    for name, w in weights.items():
        path = name.removesuffix(".weight")
        if path in groups:
            parts = mx.quantize(w, groups[path], 4)
            leaves = zip(("weight", "scales", "biases"), parts, strict=True)
            stored |= {f"{path}.{leaf}": array for leaf, array in leaves}
        else:
            stored[name] = w
    return stored


@pytest.mark.parametrize(
    ("format", "groups"),
    [
        ("mixed", (32, 32)),
        ("mixed", (128, 128)),
        ("mixed", (32, 128)),
        ("corrected", (128, 64)),
    ],
)
def test_a_plan_of_a_packed_source_comes_back_whatever_its_groups(
    make_checkpoint: Make,
    tiny_weights: dict[str, mx.array],
    make_plan: Callable[..., object],
    tmp_path: Path,
    format: str,
    groups: tuple[int, int],
) -> None:
    weights = {name: mx.tile(w, [2] * w.ndim) for name, w in tiny_weights.items()}
    paths = [name.removesuffix(".weight") for name, w in weights.items() if w.ndim == 2]
    attention, others = groups
    by_path = {path: attention if "attn" in path else others for path in paths}
    by_path |= {path: min(64, by_path[path]) for path in paths if "down_proj" in path}  # 192 inputs
    how = {"bits": 4, "group_size": 64}
    source = make_checkpoint(
        "source",
        weights=packed(weights, by_path),
        quantization=how | {p: {"bits": 4, "group_size": size} for p, size in by_path.items()},
        hidden_size=128,
        intermediate_size=192,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=160,
    )
    choices: dict[str, Any] = {f"{path}.weight": Choice(3) for path in paths if "embed" not in path}
    if format == "corrected":
        choices[f"{UP}.weight"] = Choice(2, 8, 8)
    make_plan(source, tmp_path / "plan.json", choices, format)
    execute_plan(source, tmp_path / "out", tmp_path / "plan.json", exact=True)
    check_restored(source, tmp_path / "out", tmp_path / "dest")


def test_what_was_changed_since_is_noticed(checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(checkpoint_folder, out, keep=0.5, exact=True)
    file = out / EXACT
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (defect,) = verify(out)
    assert "tensor 'exact." in defect
    with pytest.raises(FormatError, match=r"exact\.safetensors: tensor"):
        restore(out, tmp_path / "dest")
    with Exact(out) as exact:
        damaged = [name for name in exact.kept if not comes_back(exact, name)]
    assert damaged == [defect.split("'")[1].removeprefix("exact.")]


def comes_back(exact: Exact, name: str) -> bool:
    try:
        return exact.raw(name).size > 0
    except FormatError:
        return False


@pytest.mark.parametrize("name", ["compressing", "keeping the source"])
def test_a_run_that_was_cut_goes_on_to_the_same_bytes(
    checkpoint_folder: Path, tmp_path: Path, name: str
) -> None:
    def cut(items: Any, what: str) -> Any:
        for number, item in enumerate(items):
            if number == 5 and what == name:
                raise KeyboardInterrupt
            yield item

    whole, out = tmp_path / "whole", tmp_path / "out"
    compress(checkpoint_folder, whole, keep=0.5, exact=True)
    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint_folder, out, keep=0.5, exact=True, track=cut)
    compress(checkpoint_folder, out, keep=0.5, exact=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


def test_without_it_a_plan_says_how_it_could_be_restored(
    checkpoint_folder: Path, make_plan: Callable[..., object], tmp_path: Path
) -> None:
    make_plan(checkpoint_folder, tmp_path / "plan.json", PLAN)
    execute_plan(checkpoint_folder, tmp_path / "out", tmp_path / "plan.json")
    with pytest.raises(FormatError, match="written by a plan without --exact"):
        restore(tmp_path / "out", tmp_path / "dest")


# Components asleep are named.


def test_a_flipped_bit_of_a_sleeper_names_tensor_and_component(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compress(checkpoint_folder, out, keep=0.5)
    assert read_manifest(out).rows
    file = out / "sleep.safetensors"
    intact = file.read_bytes()
    data = 8 + int.from_bytes(intact[:8], "little")
    rng = np.random.default_rng(0)
    for place in rng.integers(data, len(intact), 50):
        content = bytearray(intact)
        content[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        (defect,) = verify(out)
        assert ": component " in defect
        assert ".sleep." in defect
    with open_checkpoint(checkpoint_folder):
        file.write_bytes(intact)
    assert verify(out) == []


# Words.


@repeatable
@given(
    size=st.sampled_from([1, 2, 4]),
    count=st.integers(0, 200),
    seed=st.integers(0, 2**16),
    guessed=st.booleans(),
)
def test_words_come_back_whatever_was_guessed(
    size: int, count: int, seed: int, guessed: bool
) -> None:
    rng = np.random.default_rng(seed)
    words, guess = (
        as_words(np.frombuffer(rng.bytes(size * count), np.uint8), size) for _ in range(2)
    )
    near = guess if guessed else None
    stream = b"".join(
        compressed_words([packed_words(words[: count // 2], None), packed_words(words, near)])
    )
    inflater = Inflater(memoryview(stream))
    first = unpacked_words(inflater.take(size * (count // 2)), size, None)
    second = unpacked_words(inflater.take(size * count), size, near)
    assert np.array_equal(first, words[: count // 2])
    assert np.array_equal(second, words)


def test_all_patterns_of_16_bits_come_back_from_any_guess() -> None:
    words = np.arange(2**16, dtype=np.uint16)
    guess = np.roll(words, 12345)
    assert np.array_equal(unpacked_words(packed_words(words, guess), 2, guess), words)


def test_neighbours_in_value_differ_by_little() -> None:
    near = np.array([0.0, -0.0, 1.0, -1.0], np.float16)
    words = np.nextafter(near, np.float16(2)).view(np.uint16)
    planes = np.frombuffer(packed_words(words, near.view(np.uint16)), np.uint8)
    assert planes.max() <= 4


# The arithmetic of the guess.


@repeatable
@given(
    st.integers(1, 6), st.integers(0, 9), st.integers(1, 6), st.integers(0, 2**16),
    st.sampled_from([1e-30, 1.0, 1e30]),
)  # fmt: skip
def test_the_product_is_the_one_of_whole_numbers(
    m: int, r: int, n: int, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    U = (rng.standard_normal((m, r)) * scale).astype(np.float32)
    V = rng.standard_normal((r, n)).astype(np.float32)
    product = exact_product(U, V)
    order = rng.permutation(r)
    assert np.array_equal(product, exact_product(U[:, order], V[order]))
    assert np.array_equal(product, exact_product(V.T, U.T).T)
    for i in range(m):
        for j in range(n):
            exact = sum(Fraction(float(U[i, k])) * Fraction(float(V[k, j])) for k in range(r))
            bound = (
                2.0**-17 * r * float(np.abs(U[i]).max(initial=0) * np.abs(V[:, j]).max(initial=0))
            )
            assert abs(float(exact) - product[i, j]) <= bound


@pytest.mark.parametrize("rank", [100, 1000, 5000])
def test_no_sum_of_the_product_is_rounded(rank: int) -> None:
    bits = (53 - math.ceil(math.log2(rank))) // 2 - 1
    largest = 1 - Fraction(1, 2**bits)  # of all whole numbers of so many bits
    U = np.full((1, rank), float(largest), np.float32)
    assert Fraction(exact_product(U, U.T)[0, 0]) == rank * largest**2


@pytest.mark.parametrize("dtype", MLX)
def test_a_guess_is_rounded_as_mlx_rounds(dtype: str) -> None:
    values = np.float32(1.7) ** np.arange(-100, 100, dtype=np.float32)
    D = np.stack([values, -values])
    words = Guess(dtype, (2, 200), D, None, None).words(slice(None))
    expected = mx.array(D).astype(MLX[dtype])
    carrier = mx.uint32 if dtype == "F32" else mx.uint16
    assert np.array_equal(words, np.array(expected.view(carrier)).reshape(-1))
