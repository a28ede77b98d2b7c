"""A LoRA from two checkpoints: its ranks, its bytes, its errors, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, quantize_model, save_model
from numpy.typing import NDArray
from plastic_core.files import FormatError, load_safetensors, read_json
from plastic_core.testing import matrix_from_spectrum, parameters, repeatable
from plastic_export.adapters.reading import read_adapter
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.tensors import module_path
from plastic_export.extraction.extraction import BESIDE, Extracted, extract
from plastic_export.folder.adapter_files import EXTRACT_FILE
from plastic_export.reshaping.rank_choice import RankGoal

Make = Callable[..., Path]
Weights = dict[str, mx.array]
Float64 = NDArray[np.float64]
Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
SPECTRA = {Q: np.array([3.0, 2.0, 1.0]), DOWN: np.array([4.0, 0.5])}


def merged(weights: Weights, spectra: dict[str, Float64], dtype: mx.Dtype) -> Weights:
    """Weights with differences of these spectra added, rounded to a type."""
    result = {name: w.astype(dtype) for name, w in weights.items()}
    for seed, (name, s) in enumerate(spectra.items()):
        delta = matrix_from_spectrum(s, *weights[name].shape, seed).astype(np.float32)
        result[name] = (weights[name].astype(mx.float32) + mx.array(delta)).astype(dtype)
    return result


def extracted(base: Path, tuned: Path, goal: RankGoal | None, **options: Any) -> Extracted:
    return extract(base, tuned, tuned.parent / "out", goal, **({"check": False} | options))


def product(result: Extracted, name: str) -> Float64:
    """What the adapter for PEFT adds to a weight."""
    pair = read_adapter(result.peft.folder).layers[module_path(name)]
    B, A = (np.array(side.astype(mx.float32), np.float64) for side in (pair.B, pair.A))
    return pair.scale * (B @ A)


def written(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_merged_adapter_comes_back_with_its_ranks(
    make_checkpoint: Make, tiny_weights: Weights, dtype: mx.Dtype
) -> None:
    base = make_checkpoint("base", weights={n: w.astype(dtype) for n, w in tiny_weights.items()})
    tuned = make_checkpoint("tuned", weights=merged(tiny_weights, SPECTRA, dtype))
    result = extracted(base, tuned, None)
    assert result.peft.ranks == {module_path(name): len(s) for name, s in SPECTRA.items()}
    assert set(result.adapter.ranks.values()) == {3, 2}
    precise = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}[dtype]
    for seed, (name, s) in enumerate(SPECTRA.items()):
        (change,) = (c for c in result.changes if c.name == name)
        assert np.allclose(change.values, s, rtol=precise)
        delta = matrix_from_spectrum(s, *tiny_weights[name].shape, seed)
        error = np.linalg.norm(product(result, name) - delta) / np.linalg.norm(delta)
        assert error < precise
        certificate = result.certificates[module_path(name)]
        assert certificate.relative_error < 2 * precise


@repeatable
@given(
    ranks=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    size=st.floats(0.05, 4.0),
    kind=st.sampled_from([mx.float32, mx.bfloat16]),
)
def test_every_rank_is_found_whatever_the_size(
    ranks: tuple[int, int],
    size: float,
    kind: mx.Dtype,
    tiny_weights: Weights,
    tmp_path_factory: pytest.TempPathFactory,
    write_weights: Callable[[Path, Weights], Path],
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    s = {n: size * np.linspace(4, 2, r) for n, r in zip((Q, DOWN), ranks, strict=True)}
    base = write_weights(folder / "base", {n: w.astype(kind) for n, w in tiny_weights.items()})
    tuned = write_weights(folder / "tuned", merged(tiny_weights, s, kind))
    if not any(ranks):
        with pytest.raises(FormatError, match="the same weights"):
            extracted(base, tuned, None)
        return
    result = extracted(base, tuned, None)
    assert result.peft.ranks == {module_path(n): r for n, r in zip(s, ranks, strict=True) if r}


def test_mlx_lm_runs_the_adapter_as_the_tuned_checkpoint(
    make_checkpoint: Make, tiny_weights: Weights
) -> None:
    wide = {name: w.astype(mx.float32) for name, w in tiny_weights.items()}
    base = make_checkpoint("base", weights=wide)
    tuned = make_checkpoint("tuned", weights=merged(wide, SPECTRA, mx.float32))
    result = extracted(base, tuned, None)
    tokens = mx.array([[5, 6, 7, 8]])
    over = load_adapters(load_model(base)[0], str(result.adapter.folder))
    theirs = load_model(tuned)[0](tokens)
    assert mx.abs(over(tokens) - theirs).max() < 1e-3 * mx.abs(theirs).max()


def random_change(weights: Weights) -> Weights:
    """Weights that changed a little everywhere, as after a full fine-tune."""
    rng, result = np.random.default_rng(7), {}
    for name, w in weights.items():
        noise = rng.standard_normal(w.shape) * 10.0 ** rng.uniform(-3, -1)
        result[name] = (w.astype(mx.float32) + mx.array(noise.astype(np.float32))).astype(w.dtype)
    return result


@pytest.mark.parametrize("max_bytes", [1_500, 5_000, 20_000, 60_000])
def test_no_file_is_larger_than_the_budget_and_little_of_it_is_left(
    make_checkpoint: Make, tiny_weights: Weights, max_bytes: int
) -> None:
    base = make_checkpoint("base")
    tuned = make_checkpoint("tuned", weights=random_change(tiny_weights))
    result = extracted(base, tuned, RankGoal(max_bytes=max_bytes))
    files = [*result.adapter.folder.glob("*.safetensors"), *result.peft.folder.glob("*.s*")]
    assert [f.stat().st_size for f in files] == [result.adapter.nbytes, result.peft.nbytes]
    assert all(nbytes <= max_bytes for nbytes in (result.adapter.nbytes, result.peft.nbytes))
    assert result.peft.nbytes > max_bytes - 1_500  # a component, and what names may take
    assert result.peft.energy >= result.adapter.energy > 0


def test_energy_is_what_the_adapter_for_peft_holds(
    make_checkpoint: Make, tiny_weights: Weights
) -> None:
    tuned = make_checkpoint("tuned", weights=random_change(tiny_weights))
    result = extracted(make_checkpoint("base"), tuned, RankGoal(energy=0.5))
    assert 0.5 <= result.peft.energy < 0.52
    assert result.adapter.energy >= 0.5


def test_what_is_no_matrix_is_kept_or_named(make_checkpoint: Make, tiny_weights: Weights) -> None:
    tuned = make_checkpoint("tuned", weights=random_change(tiny_weights))
    result = extracted(make_checkpoint("base"), tuned, RankGoal(rank=2))
    left = {one.name: one for one in result.left}
    norms = {name for name in tiny_weights if name.endswith("norm.weight")}
    assert {name for name, one in left.items() if one.kept} == norms
    assert [name for name, one in left.items() if not one.kept] == ["model.embed_tokens.weight"]
    kept, became = load_safetensors(result.out / BESIDE), random_change(tiny_weights)
    assert kept.keys() == norms
    assert all(mx.array_equal(kept[name], became[name]) for name in norms)


def test_the_same_bytes_twice(make_checkpoint: Make, tiny_weights: Weights, tmp_path: Path) -> None:
    base = make_checkpoint("base")
    tuned = make_checkpoint("tuned", weights=random_change(tiny_weights))
    for name in ("first", "second"):
        extract(base, tuned, tmp_path / name, RankGoal(max_bytes=30_000), check=False)
    assert written(tmp_path / "first") == written(tmp_path / "second")


def test_a_quantised_base_is_taken_as_what_it_stands_for(
    make_checkpoint: Make, tiny_weights: Weights, tmp_path: Path
) -> None:
    dense = make_checkpoint("dense")
    model, config = load_model(dense)
    model, config = quantize_model(model, config, 32, 4)
    base = tmp_path / "base"
    save_model(base, model)
    (base / "config.json").write_text(json.dumps(config))
    result = extracted(base, dense, RankGoal(rank=64))
    name = module_path(Q)
    layer = parameters(load_model(base)[0])
    codes = {leaf: layer[f"{name}.{leaf}"] for leaf in ("weight", "scales", "biases")}
    restored = mx.dequantize(*codes.values(), group_size=32, bits=4).astype(mx.float32)
    delta = np.array(tiny_weights[Q].astype(mx.float32) - restored)
    assert np.linalg.norm(product(result, Q) - delta) < 0.1 * np.linalg.norm(
        delta
    )  # what stands out


def test_a_calibration_keeps_what_its_inputs_see(
    make_llama: Make, text: Path, tiny_weights: Weights
) -> None:
    base = make_llama("base")
    weights = mx.load(str(base / "model.safetensors"))
    tuned = make_llama("tuned")
    mx.save_safetensors(str(tuned / "model.safetensors"), random_change(weights))
    calibration = Calibration(text, window=24, windows=16)
    options: dict[str, Any] = {"text": calibration, "check": True}
    plain = extract(base, tuned, tuned.parent / "plain", RankGoal(max_bytes=30_000), **options)
    seen = extract(
        base,
        tuned,
        tuned.parent / "seen",
        RankGoal(max_bytes=30_000),
        calibration=calibration,
        **options,
    )
    assert plain.gain
    assert seen.gain
    assert (plain.gain.base, plain.gain.tuned) == (seen.gain.base, seen.gain.tuned)
    assert plain.gain.base != plain.gain.adapted
    assert plain.peft.ranks != seen.peft.ranks


BAD = {
    "other sizes": ({"intermediate_size": 128}, r"\(96, 64\) in base and \(128, 64\) in tuned"),
    "another vocabulary": ({"vocab_size": 96}, "the vocabularies differ in size"),
    "fewer blocks": ({"num_hidden_layers": 1}, "missing in tuned"),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_that_cannot_be_subtracted_are_named(make_llama: Make, case: str) -> None:
    config, message = BAD[case]
    with pytest.raises(FormatError, match=message):
        extracted(make_llama("base"), make_llama("tuned", **config), None)
    assert not (make_llama("third").parent / "out").exists()


def test_another_tokenizer_is_named(make_llama: Make) -> None:
    base, tuned = make_llama("base"), make_llama("tuned")
    file = tuned / "tokenizer.json"
    file.write_text(file.read_text().replace('"A": 19', '"A": 20').replace('"B": 20', '"B": 19'))
    with pytest.raises(FormatError, match=r"differs .* in 2 tokens: 'A' is 19 and 20"):
        extracted(base, tuned, None)


def test_another_architecture_is_named(make_checkpoint: Make) -> None:
    base, tuned = make_checkpoint("base"), make_checkpoint("tuned", model_type="qwen2")
    with pytest.raises(FormatError, match="of type 'qwen2', and base of type 'llama'"):
        extracted(base, tuned, None)


def test_the_same_checkpoint_is_refused(make_checkpoint: Make) -> None:
    with pytest.raises(FormatError, match="the same weights as base"):
        extracted(make_checkpoint("base"), make_checkpoint("tuned"), None)


def test_norms_alone_make_no_adapter(make_checkpoint: Make, tiny_weights: Weights) -> None:
    weights = tiny_weights | {"model.norm.weight": 2 * tiny_weights["model.norm.weight"]}
    with pytest.raises(FormatError, match=r"only model\.norm\.weight changed"):
        extracted(make_checkpoint("base"), make_checkpoint("tuned", weights=weights), None)


@pytest.mark.parametrize("name", [Q, "model.norm.weight"])
def test_what_is_not_finite_is_named(
    make_checkpoint: Make, tiny_weights: Weights, name: str
) -> None:
    weights = merged(tiny_weights, SPECTRA, mx.bfloat16)
    weights[name] = mx.where(mx.arange(64) == 3, mx.array(mx.nan, mx.bfloat16), weights[name])
    tuned = make_checkpoint("tuned", weights=weights)
    with pytest.raises(FormatError, match=f"{name}.*NaN or infinite"):
        extracted(make_checkpoint("base"), tuned, None)
    assert sorted(f.name for f in tuned.parent.iterdir()) == ["base", "tuned"]


def test_a_budget_below_one_component_is_refused(
    make_checkpoint: Make, tiny_weights: Weights
) -> None:
    tuned = make_checkpoint("tuned", weights=merged(tiny_weights, SPECTRA, mx.bfloat16))
    with pytest.raises(ValueError, match=r"`max_bytes` must be at least .* one component"):
        extracted(make_checkpoint("base"), tuned, RankGoal(max_bytes=300))


def test_the_folder_says_what_it_is_of(make_checkpoint: Make, tiny_weights: Weights) -> None:
    base = make_checkpoint("base")
    tuned = make_checkpoint("tuned", weights=merged(tiny_weights, SPECTRA, mx.bfloat16))
    result = extracted(base, tuned, RankGoal(rank=2), exclude=["*down_proj"])
    record = read_json(result.out / EXTRACT_FILE)
    assert record["base"]["name"] == "base"
    assert record["goal"]["rank"] == 2
    assert record["adapters"][1]["ranks"] == {module_path(Q): 2}
    error = record["layers"][module_path(Q)]["relative_error"]
    assert error == pytest.approx(np.sqrt(1 / 14), rel=0.02)  # the spectrum was 3, 2, 1
    assert read_adapter(result.adapter.folder).base == str(base)
    assert read_adapter(result.out).ranks == {module_path(Q): 2}
    (left,) = result.left
    assert (left.name, left.kept) == (DOWN, False)
