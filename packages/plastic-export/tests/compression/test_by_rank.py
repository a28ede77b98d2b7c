"""Compress, verify and restore small random checkpoints of every storage type."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import FormatError, load_safetensors
from plastic_core.testing import same_bits
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.packing import without_quantization
from plastic_export.compression.by_rank import compress
from plastic_export.compression.restoration import restore
from plastic_export.compression.verification import verify
from plastic_export.folder.shards import as_float32
from plastic_export.model.load import load_model
from plastic_runtime.dialling import read_manifest

Make = Callable[..., Path]
UNIT = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
MLX = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
NAME = "model.layers.1.mlp.up_proj.weight"


def low_rank(shape: tuple[int, int], rank: int) -> mx.array:
    rng = np.random.default_rng(3)
    product = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return mx.array((product / rank).astype(np.float32))


def read(folder: Path) -> dict[str, mx.array]:
    return {
        n: a
        for f in sorted(folder.glob("model*.safetensors"))
        for n, a in load_safetensors(f).items()
    }


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("format", ["dense", "factored"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_type_and_layout_comes_back_within_its_rounding(
    make_checkpoint: Make,
    tiny_weights: dict[str, mx.array],
    tmp_path: Path,
    dtype: str,
    format: str,
    shards: int,
) -> None:
    weights = {name: w.astype(MLX[dtype]) for name, w in tiny_weights.items()}
    source = make_checkpoint("source", shards=shards, weights=weights)
    result = compress(source, tmp_path / "out", keep=0.5, strategy="energy", format=format)
    assert verify(tmp_path / "out") == []
    back = restore(tmp_path / "out", tmp_path / "dest")
    after = read(tmp_path / "dest")
    assert after.keys() == weights.keys()
    assert set(back.bounds) == {r.name for r in result.matrices}
    for name in back.exact:
        assert same_bits(weights[name], after[name])
    for name, bound in back.bounds.items():
        A, B = (as_float32(w[name]).astype(np.float64) for w in (weights, after))
        assert after[name].dtype == MLX[dtype]
        assert np.linalg.norm(A - B) <= 1.05 * bound * np.linalg.norm(A) + 1e-30
        assert bound <= 4 * UNIT[dtype] + 64 * UNIT["F32"]


def test_the_certificate_is_the_error_of_what_is_stored(
    checkpoint_folder: Path, tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    result = compress(checkpoint_folder, tmp_path / "out", keep=0.4, strategy="stable")
    stored = read(tmp_path / "out")
    for record in result.matrices:
        path = record.name.removesuffix(".weight")
        u, v = (as_float32(stored[f"{path}.{x}.weight"]).astype(np.float64) for x in "uv")
        W = as_float32(tiny_weights[record.name]).astype(np.float64)
        s = np.linalg.svd(W, compute_uv=False)
        error = np.linalg.norm(W - u @ v) / np.linalg.norm(W)
        assert record.relative_error == pytest.approx(error, rel=1e-4)
        spectral = np.linalg.norm(W - u @ v, 2) / s[0]
        assert spectral * (1 - 1e-3) <= record.spectral_error <= 1.1 * spectral
        best = np.linalg.norm(s[record.rank :]) / np.linalg.norm(s)
        assert best <= error * (1 + 1e-6)
        assert error <= np.hypot(best, 2 * UNIT["BF16"])


def test_a_low_rank_matrix_is_found_and_costs_nothing(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    shape = tiny_weights[NAME].shape
    weights = {n: w.astype(mx.float32) for n, w in tiny_weights.items()}
    source = make_checkpoint("low", weights=weights | {NAME: low_rank((shape[0], shape[1]), 5)})
    result = compress(source, tmp_path / "out", keep=0.5, strategy="theorem")
    record = next(r for r in result.matrices if r.name == NAME)
    assert record.rank == 5
    assert record.relative_error <= 10 * max(shape) * UNIT["F32"]


def test_a_bias_moves_to_the_second_factor_and_back(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    bias = {
        f"model.layers.{i}.self_attn.{p}_proj.bias": mx.full(
            tiny_weights[f"model.layers.{i}.self_attn.{p}_proj.weight"].shape[:1], 0.5, mx.bfloat16
        )
        for i in range(2)
        for p in "qkvo"
    }
    source = make_checkpoint("biased", weights=tiny_weights | bias, attention_bias=True)
    compress(source, tmp_path / "out", keep=0.5)
    stored = read(tmp_path / "out")
    assert same_bits(stored["model.layers.0.self_attn.q_proj.u.bias"], next(iter(bias.values())))
    restore(tmp_path / "out", tmp_path / "dest")
    assert all(same_bits(read(tmp_path / "dest")[name], b) for name, b in bias.items())


def test_a_zero_matrix_is_no_obstacle(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    zero = {NAME: mx.zeros(tiny_weights[NAME].shape, mx.bfloat16)}
    source = make_checkpoint("zero", weights=tiny_weights | zero)
    result = compress(source, tmp_path / "out", keep=0.5, strategy="energy")
    record = next(r for r in result.matrices if r.name == NAME)
    assert (record.relative_error, record.spectral_error, record.restored_error) == (0, 0, 0)


def test_the_manifest_reads_back_and_knows_every_file(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    result = compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    manifest = read_manifest(tmp_path / "out")
    assert tuple(manifest.matrices.values()) == result.matrices
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == manifest.files.keys() | {"plastic.json", "README.md"}
    assert str(tmp_path) not in (tmp_path / "out" / "plastic.json").read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw | {"schema": 99},
        lambda raw: raw | {"sha256": "0" * 64},
        lambda raw: raw | {"versions": {}},
        lambda raw: {k: v for k, v in raw.items() if k != "sha256"},
        lambda raw: raw | {"matrices": [{"name": "x"}]},
        lambda raw: {k: v for k, v in raw.items() if k != "files"},
    ],
)
def test_a_damaged_manifest_is_refused_by_name(
    checkpoint_folder: Path, tmp_path: Path, spoil: Callable[[dict[str, object]], object]
) -> None:
    compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    path = tmp_path / "out" / "plastic.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=r"plastic\.json: .*; "):
        restore(tmp_path / "out", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_a_manifest_of_another_schema_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    path = tmp_path / "out" / "plastic.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema": 1}))
    with pytest.raises(FormatError, match="schema 1 is unknown"):
        verify(tmp_path / "out")


def test_verify_says_that_bytes_differ_where_their_number_does_not(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    config = tmp_path / "out" / "config.json"
    text = config.read_text()
    config.write_text(text.replace("llama", "LLAMA"))
    (defect,) = verify(tmp_path / "out")
    assert f"config.json: its {len(text)} bytes are not those that were written; copy" in defect
    config.write_text(text[:-1])
    (defect,) = verify(tmp_path / "out")
    assert f"{len(text) - 1} bytes, not the {len(text)} that were written" in defect


def test_verify_names_the_tensor_that_changed(checkpoint_folder: Path, tmp_path: Path) -> None:
    compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    path = tmp_path / "out" / "sleep.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    (defect,) = verify(tmp_path / "out")
    last = list(load_safetensors(path))[-1]
    assert f"tensor '{last}'" in defect
    with pytest.raises(FormatError, match="tensor"):
        restore(tmp_path / "out", tmp_path / "dest")


def test_the_source_is_never_the_output(checkpoint_folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in checkpoint_folder.iterdir()}
    for out in (checkpoint_folder, checkpoint_folder.parent):
        with pytest.raises(FormatError):
            compress(checkpoint_folder, out, keep=0.5, force=True)
    assert {p.name: p.read_bytes() for p in checkpoint_folder.iterdir()} == before


def test_a_layer_that_is_no_longer_packed_loses_its_entry() -> None:
    entry = {"group_size": 32, "bits": 8}
    config = {"quantization": {"group_size": 32, "bits": 4, "a.b": entry, "a.c": entry}}
    assert without_quantization(config, {"a.b"}) == {
        "quantization": {"group_size": 32, "bits": 4, "a.c": entry}
    }


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_a_packed_matrix_leaves_none_of_its_parts_behind(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], tmp_path: Path, mode: str
) -> None:
    path = NAME.removesuffix(".weight")
    packed = dict(
        zip(
            ("weight", "scales", "biases"), mx.quantize(tiny_weights[NAME], mode=mode), strict=False
        )
    )
    parts = {f"{path}.{leaf}": array for leaf, array in packed.items()}
    bits, group_size = {"affine": (4, 64), "mxfp8": (8, 32), "nvfp4": (4, 16)}.get(mode, (4, 32))
    packing = {"mode": mode, "bits": bits, "group_size": group_size}
    source = make_checkpoint("packed", weights=tiny_weights | parts, quantization=packing)
    result = compress(source, tmp_path / "out", keep=0.4, strategy="energy", include=[path])
    (record,) = result.matrices
    assert record.source_bytes == sum(array.nbytes for array in packed.values())
    assert (record.dtype, result.plan.kept <= 0.4) == ("BF16", True)
    kept = {name for name in read(tmp_path / "out") if name.startswith(path)}
    assert kept == {f"{path}.u.weight", f"{path}.v.weight"}
    back = restore(tmp_path / "out", tmp_path / "dest")
    assert back.bounds.keys() == {NAME}
    assert read(tmp_path / "dest").keys() == tiny_weights.keys()


def test_three_hundred_shards_are_compressed_and_restored_under_a_limit_of_64_open_files(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    values = low_rank((8, 12), 2).astype(mx.bfloat16)
    weights = {f"model.layers.{i}.x.weight": values + i for i in range(300)}
    source = make_checkpoint("source", shards=300, weights=weights)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        result = compress(source, tmp_path / "out", keep=0.5, format="dense", exact=True)
        assert len(result.matrices) == 300
        assert verify(tmp_path / "out") == []
        assert restore(tmp_path / "out", tmp_path / "dest").proved
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    back = read(tmp_path / "dest")
    assert all(same_bits(back[name], array) for name, array in weights.items())


def test_by_default_the_ranks_follow_a_calibration_text_where_there_is_one(
    readable: Path, text: Path, tmp_path: Path
) -> None:
    few = Calibration(text, window=24, windows=4)
    assert compress(readable, tmp_path / "plain", keep=0.5).plan.strategy == "stable"
    result = compress(readable, tmp_path / "measured", keep=0.5, calibration=few)
    assert result.plan.strategy == "activation"


def test_a_factored_source_keeps_the_ranks_that_it_has(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    compress(checkpoint_folder, tmp_path / "first", keep=0.5, include=["*.q_proj.weight"])
    compress(tmp_path / "first", tmp_path / "second", keep=0.5, include=["*.k_proj.weight"])
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text())["plastic"]["ranks"]
        for name in ("first", "second")
    )
    assert first.items() <= second.items()
    assert {path.rpartition(".")[2] for path in second} == {"q_proj", "k_proj"}
    logits = load_model(tmp_path / "second")(mx.array([[1, 2, 3]]))
    assert mx.isfinite(logits).all()
