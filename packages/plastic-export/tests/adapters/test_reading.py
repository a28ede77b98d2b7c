"""Adapters of every form, read as one type; and what is none, refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError, export_safetensors, read_json
from plastic_export import Adapter, LoraPair, open_checkpoint, read_adapter, write_adapter
from plastic_export.adapters.kohya_form import kohya_name

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SHAPES = {Q: (64, 64), DOWN: (64, 96)}


def pair(path: str, rank: int, scale: float = 1.0, dtype: mx.Dtype = mx.float32) -> LoraPair:
    out, in_ = SHAPES[path]
    A = mx.random.normal((rank, in_), key=mx.random.key(rank)).astype(dtype)
    B = mx.random.normal((out, rank), key=mx.random.key(rank + 1)).astype(dtype)
    return LoraPair(A, B, scale)


def product(pair: LoraPair) -> mx.array:
    A, B = pair.A.astype(mx.float32), pair.B.astype(mx.float32)
    return pair.scale * (B @ A)


@pytest.mark.filterwarnings("ignore::plastic_export.CheckpointWarning")  # of the brackets
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 3.7)])
@pytest.mark.parametrize("form", ["mlx", "peft", "uniform"])
def test_what_is_written_reads_as_the_same_products(
    tmp_path: Path, form: Any, scales: tuple[float, float], dtype: mx.Dtype
) -> None:
    layers = {p: pair(p, 2 + i, scales[i], dtype) for i, p in enumerate(SHAPES)}
    uniform, form = form == "uniform", "peft" if form == "uniform" else form
    out = write_adapter(Adapter(layers), tmp_path / "a [1] ü", form, uniform=uniform)
    back = read_adapter(out)
    assert back.form == form
    assert back.ranks == {Q: 2, DOWN: 3}
    for path, own in layers.items():
        off = mx.abs(product(back.layers[path]) - product(own)).max()
        assert float(off) <= 1e-6 * float(mx.abs(product(own)).max())


def test_uniform_has_the_scale_that_loaders_without_patterns_compute(tmp_path: Path) -> None:
    layers = {path: pair(path, 2 + i) for i, path in enumerate(SHAPES)}
    write_adapter(Adapter(layers), tmp_path / "uniform", "peft", uniform=True)
    config = read_json(tmp_path / "uniform" / "adapter_config.json")
    assert config["lora_alpha"] / config["r"] == 1
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_kohya_names_become_the_paths_of_the_base(tmp_path: Path, checkpoint_folder: Path) -> None:
    own = pair(Q, 2, 0.5)
    flat = Q.replace(".", "_")
    tensors = {
        f"lora_te_{flat}.lora_down.weight": own.A,
        f"lora_te_{flat}.lora_up.weight": own.B,
        f"lora_te_{flat}.alpha": mx.array(1.0),
    }
    export_safetensors(tmp_path / "lora.safetensors", tensors)
    with open_checkpoint(checkpoint_folder) as base:
        there = read_adapter(tmp_path / "lora.safetensors", base=base)
    assert there.ranks == {Q: 2}
    assert there.layers[Q].scale == 0.5
    assert read_adapter(tmp_path / "lora.safetensors").ranks == {f"lora_te_{flat}": 2}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({Q: LoraPair(mx.ones((2, 32)), mx.ones((64, 2)))}, r"\(64, 32\), the base has \(64, 64\)"),
        ({"model.layers.9.up": pair(Q, 2)}, "the base has no layer 'model.layers.9.up'"),
    ],
)
def test_an_adapter_of_another_base_is_refused_with_the_layer(
    tmp_path: Path, checkpoint_folder: Path, layers: dict[str, LoraPair], said: str
) -> None:
    write_adapter(Adapter(layers), tmp_path / "other", "peft")
    with open_checkpoint(checkpoint_folder) as base, pytest.raises(FormatError, match=said):
        read_adapter(tmp_path / "other", base=base)


def spoil_config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def without(part: str) -> Callable[[Path], None]:
    """Leave out the tensors whose name has this part."""

    def spoil(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        kept = {k: v for k, v in mx.load(str(file)).items() if part not in k}
        mx.save_safetensors(str(file), kept)

    return spoil


def beside(name: str, shape: tuple[int, ...] = (4,)) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        mx.save_safetensors(str(file), {**mx.load(str(file)), name: mx.ones(shape)})

    return spoil


def filled(part: str, value: float) -> Callable[[Path], None]:
    """Fill the tensors whose name has this part with a number."""

    def spoil(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        there = mx.load(str(file))
        mx.save_safetensors(
            str(file), {k: mx.full(v.shape, value) if part in k else v for k, v in there.items()}
        )

    return spoil


def renamed(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        file.rename(folder / name)

    return spoil


BAD: dict[str, tuple[Any, Callable[[Path], None], str]] = {
    "DoRA": ("peft", spoil_config(use_dora=True), "DoRA"),
    "DoRA's magnitudes": ("peft", beside(f"x.{Q}.lora_magnitude_vector"), "magnitudes of DoRA"),
    "whole modules": ("peft", spoil_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "biases": ("peft", spoil_config(bias="lora_only"), "bias='lora_only'"),
    "another method": ("peft", spoil_config(peft_type="LOHA"), "'LOHA'"),
    "an alpha of words": ("peft", spoil_config(alpha_pattern={"q_proj": "x"}), "'x', no number"),
    "a pattern that is none": ("peft", spoil_config(rank_pattern={"(": 2}), "regular expression"),
    "patterns that are a list": ("peft", spoil_config(alpha_pattern=["x"]), "no mapping"),
    "an alpha that is NaN": ("peft", spoil_config(alpha_pattern={".*": math.nan}), "scale is nan"),
    "NaN": ("peft", filled(f"{Q}.lora_B", math.nan), f"layer '{Q}': its factor B holds NaN"),
    "an infinity": ("mlx", filled(f"{Q}.lora_a", math.inf), f"layer '{Q}': its factor A holds"),
    "another rank": ("peft", spoil_config(rank_pattern={}, r=9), "says 9"),
    "a missing factor": ("peft", without(f"{Q}.lora_B"), f"layer '{Q}' lacks its factor B"),
    "no factor": ("peft", without("lora_"), "no pair of factors"),
    "an embedding": ("peft", beside("x.embed_tokens.lora_embedding_A"), "an embedding"),
    "mlx-lm's DoRA": ("mlx", spoil_config(fine_tune_type="dora"), "'dora'"),
    "mlx-lm's full tuning": ("mlx", spoil_config(fine_tune_type="full"), "'full'"),
    "no scale": ("mlx", spoil_config(lora_parameters={}), "no number as scale"),
    "a norm": ("mlx", beside("model.norm.weight"), "'model.norm.weight'"),
    "experts": ("mlx", beside("e.lora_a", (2, 3, 4)), "lacks its factor B"),
    "a pickle": ("peft", renamed("adapter_model.bin"), "pickle"),
    "nothing": ("peft", renamed("other.bin"), "holds neither"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_plain_lora_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    form, spoil, said = BAD[case]
    layers = {path: pair(path, 2 + i) for i, path in enumerate(SHAPES)}
    out = write_adapter(Adapter(layers), tmp_path / "adapter", form)
    spoil(out)
    with pytest.raises(FormatError) as refused:
        read_adapter(out)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rank_beyond_the_matrix_is_kept(tmp_path: Path) -> None:
    layers = {Q: pair(Q, 100)}
    assert read_adapter(write_adapter(Adapter(layers), tmp_path / "wide", "peft")).ranks == {Q: 100}


def test_an_adapter_without_a_component_is_not_written(tmp_path: Path) -> None:
    nothing = LoraPair(mx.zeros((0, 64)), mx.zeros((64, 0)))
    with pytest.raises(ValueError, match="rank of every layer is 0"):
        write_adapter(Adapter({Q: nothing}), tmp_path / "none", "mlx")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_layer_of_rank_0_is_read_as_one(tmp_path: Path, form: Any) -> None:
    out = write_adapter(Adapter({DOWN: pair(DOWN, 2)}), tmp_path / "adapter", form)
    (file,) = out.glob("*.safetensors")
    ends = ("lora_A", "lora_B") if form == "peft" else ("lora_down", "lora_up")
    empty = {f"{Q}.{ends[0]}.weight": mx.zeros((0, 64)), f"{Q}.{ends[1]}.weight": mx.zeros((64, 0))}
    export_safetensors(file, {**mx.load(str(file)), **empty})
    if form == "peft":
        spoil_config(rank_pattern={Q: 0})(out)
    down = DOWN if form == "peft" else kohya_name(DOWN)
    assert read_adapter(out if form == "peft" else file).ranks == {down: 2, Q: 0}
