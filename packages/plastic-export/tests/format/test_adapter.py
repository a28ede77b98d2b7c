"""A quantised checkpoint and a correction of one rank over it, as stock mlx-lm loads adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_adapters
from mlx_lm.utils import load_model as stock_load
from numpy.typing import NDArray
from plastic_core import Backbone, Correction
from plastic_core.files import MLX_DTYPES, FormatError, load_safetensors
from plastic_core.linalg import to_numpy
from plastic_core.testing import EPS, same_bits
from plastic_export.checkpoint.tensors import module_path
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.plan_file import LossPlan
from plastic_export.compression.restoration import restore
from plastic_export.compression.verification import verify
from plastic_export.model.load import load_for_inference, load_model
from plastic_export.plan.offers import Choice
from plastic_export.reporting.compress import present_by_plan
from plastic_runtime.dialling import read_manifest, sealed

Make = Callable[..., Path]
MakePlan = Callable[..., LossPlan]
Priced = Callable[..., dict[str, tuple[Backbone | None, Correction | None]]]

TOKENS = mx.array([[1, 5, 9, 40, 17, 3]])
Q, K, DOWN, UP = (
    f"model.layers.{layer}.weight"
    for layer in ("0.self_attn.q_proj", "1.self_attn.k_proj", "0.mlp.down_proj", "1.mlp.up_proj")
)
HEAD = "lm_head.weight"
CHOICES: dict[str, Choice] = {
    Q: Choice(3, 6, 16),
    K: Choice(2, 6, 16),
    DOWN: Choice(4, 6, 16),
    UP: Choice(4),
    HEAD: Choice(6, 6, 16),
}


def with_adapter(out: Path) -> Any:
    """The model as ``mlx_lm.generate --model OUT --adapter-path OUT/adapters`` loads it."""
    model = load_adapters(stock_load(out)[0], str(out / "adapters"))
    model.eval()
    return model


def logits(model: nn.Module) -> NDArray[Any]:
    return to_numpy(model(TOKENS).astype(mx.float32))


def printed(parts: list[Any]) -> str:
    return "\n".join(part for part in parts if isinstance(part, str))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_stock_mlx_lm_lays_what_was_priced_over_the_backbones(
    make_checkpoint: Make,
    tiny_weights: dict[str, mx.array],
    make_plan: MakePlan,
    priced: Priced,
    tmp_path: Path,
    dtype: str,
) -> None:
    cast = {name: w.astype(MLX_DTYPES[dtype]) for name, w in tiny_weights.items()}
    source, file, out = make_checkpoint(weights=cast), tmp_path / "plan.json", tmp_path / "out"
    plan = make_plan(source, file, CHOICES, "adapter")
    execute_plan(source, out, file)
    modules = dict(with_adapter(out).named_modules())
    for path, (backbone, correction) in priced(source, plan, file).items():
        layer = modules[path]
        if correction is None:
            assert type(layer) is (nn.Linear if backbone is None else nn.QuantizedLinear)
            continue
        assert type(layer) is LoRALinear
        assert isinstance(correction.Ut, mx.array)
        assert isinstance(correction.V, mx.array)
        assert same_bits(layer.lora_a, correction.V.T)
        assert same_bits(layer.lora_b, correction.Ut)
        assert layer.scale == 1.0
        assert backbone is not None
        arrays = backbone.arrays()
        assert all(same_bits(layer.linear[leaf], array) for leaf, array in arrays.items())


def test_a_layer_is_the_sum_of_both_parts(
    checkpoint_folder: Path, make_plan: MakePlan, priced: Priced, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    plan = make_plan(checkpoint_folder, file, CHOICES, "adapter")
    execute_plan(checkpoint_folder, out, file)
    modules = dict(with_adapter(out).named_modules())
    for path, (backbone, correction) in priced(checkpoint_folder, plan, file).items():
        if backbone is None or correction is None:
            continue
        U, Vh = (a.astype(np.float64) for a in (correction.operator().U, correction.operator().Vh))
        W = backbone.dequantized() + U @ Vh
        x = np.random.default_rng(1).standard_normal((5, W.shape[1])).astype(np.float32)
        off = np.abs(to_numpy(modules[path](mx.array(x))) - x.astype(np.float64) @ W.T)
        biases = np.repeat(np.abs(to_numpy(backbone.biases)), backbone.group_size, axis=1)
        terms = np.abs(backbone.dequantized()) + 2 * biases + np.abs(U) @ np.abs(Vh)
        bound = (W.shape[1] + correction.rank + 8) * EPS * (np.abs(x) @ terms.T)
        assert (off <= bound).all()
        assert (np.abs(x @ (U @ Vh).T) > bound).any()


def test_the_files_are_those_that_stock_mlx_lm_describes(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, CHOICES, "adapter")
    result = execute_plan(checkpoint_folder, out, file)
    corrected = [module_path(name) for name in (Q, DOWN, K, HEAD)]
    config = json.loads((out / "adapters" / "adapter_config.json").read_text())
    keys = config["lora_parameters"].pop("keys")
    assert sorted(keys) == sorted(corrected)
    assert config == {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": 6, "scale": 1.0, "dropout": 0.0},
    }
    assert "model_file" not in json.loads((out / "config.json").read_text())
    assert sorted(p.name for p in (out / "adapters").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    written = load_safetensors(out / "model.safetensors")
    adapter = load_safetensors(out / "adapters" / "adapters.safetensors")
    assert len(adapter) == 2 * len(corrected)
    for record in result.matrices:
        path = f"{module_path(record.name)}."
        both = (written | adapter).items()
        nbytes = sum(array.nbytes for name, array in both if name.startswith(path))
        assert nbytes == record.stored_bytes == result.plan.chosen[record.name].nbytes
    assert result.adapter_bytes == (out / "adapters" / "adapters.safetensors").stat().st_size


def test_the_package_lays_its_own_adapter_over_and_no_other(
    make_checkpoint: Make, tiny_weights: dict[str, mx.array], make_plan: MakePlan, tmp_path: Path
) -> None:
    cast = {name: w.astype(mx.float32) for name, w in tiny_weights.items()}
    source, file, out = make_checkpoint(weights=cast), tmp_path / "plan.json", tmp_path / "out"
    make_plan(source, file, CHOICES, "adapter")
    execute_plan(source, out, file)
    reference, bare = logits(with_adapter(out)), logits(stock_load(out)[0])
    np.testing.assert_array_equal(logits(load_model(out)), reference)
    atol = 10 * 96 * 16 * EPS * np.abs(reference).max()  # sixteen products of at most 96 terms
    np.testing.assert_allclose(logits(load_for_inference(out)), reference, rtol=0, atol=atol)
    assert np.abs(bare - reference).max() > 10 * atol
    (out / "plastic.json").unlink()
    np.testing.assert_array_equal(logits(load_model(out)), bare)


def test_without_a_correction_there_is_no_adapter(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, {UP: Choice(4)}, "adapter")
    result = execute_plan(checkpoint_folder, out, file)
    assert result.adapter_bytes == 0
    assert not (out / "adapters").exists()
    said = printed(present_by_plan(result).lines)
    assert "no adapter  no correction is worth its bytes at this size" in said
    assert f"run it     mlx_lm.generate --model {out} --prompt" in said
    assert "--adapter-path" not in said
    np.testing.assert_array_equal(logits(load_model(out)), logits(stock_load(out)[0]))


def test_what_is_printed_says_how_to_run_it_and_what_would_lose_it(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, CHOICES, "adapter")
    result = execute_plan(checkpoint_folder, out, file)
    text = printed(present_by_plan(result).lines)
    assert f"--model {out} --adapter-path {out}/adapters" in text
    assert "never fuse the adapter without --dequantize" in text
    record = present_by_plan(result).record
    assert (record["format"], record["adapter_bytes"]) == ("adapter", result.adapter_bytes)


REFUSED: list[tuple[Choice, str]] = [
    (Choice(None, 6, 16), r"takes no backbone and factors in 16 bits"),
    (Choice(4, 6, 8), r"takes a backbone and factors in 8 bits"),
    (Choice(4, 5, 16), r"one rank"),
]


@pytest.mark.parametrize(("choice", "message"), REFUSED)
def test_what_an_adapter_cannot_hold_is_refused_by_name(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path, choice: Choice, message: str
) -> None:
    file = tmp_path / "plan.json"
    make_plan(checkpoint_folder, file, CHOICES | {Q: choice}, "adapter")
    with pytest.raises(FormatError, match=message) as caught:
        execute_plan(checkpoint_folder, tmp_path / "out", file)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damage_in_the_adapter_is_found_and_named(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, CHOICES, "adapter")
    execute_plan(checkpoint_folder, out, file)
    assert verify(out) == []
    assert "adapters/adapters.safetensors" in read_manifest(out).files
    with pytest.raises(FormatError, match="what rounding took is not kept"):
        restore(out, tmp_path / "dest")
    adapter = out / "adapters" / "adapters.safetensors"
    bad = bytearray(adapter.read_bytes())
    bad[-1] ^= 1
    adapter.write_bytes(bad)
    (defect,) = verify(out)
    assert "adapters.safetensors" in defect
    assert ".lora_" in defect
    adapter.write_bytes(bad[:-8])
    with pytest.raises(FormatError, match=r"adapters\.safetensors"):
        load_model(out)
    shutil.rmtree(out / "adapters")
    assert len(verify(out)) == 2


def test_a_manifest_that_names_a_file_outside_is_refused(
    checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, CHOICES, "adapter")
    execute_plan(checkpoint_folder, out, file)
    raw = json.loads((out / "plastic.json").read_text())
    for name in ("../tiny/config.json", str(file), "adapters/../../plan.json"):
        raw["files"] = {name: {"bytes": 1, "sha256": ""}}
        (out / "plastic.json").write_text(json.dumps(sealed(raw)))
        assert any("not in the folder" in defect for defect in verify(out))
