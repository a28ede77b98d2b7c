"""The same output from codes of another tool, and from any number of threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as stock_load
from plastic_core.linalg import using_workers
from plastic_core.testing import same_bits
from plastic_export import compress, summarize

Make = Callable[..., Path]
SETTINGS = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}


@pytest.fixture
def twins(make_checkpoint: Make, tiny_weights: dict[str, mx.array]) -> tuple[Path, Path]:
    """A checkpoint in FP8, its settings in a file of their own, and the plain one."""
    codes, plain = dict(tiny_weights), dict(tiny_weights)
    for name in [name for name in tiny_weights if name.endswith("proj.weight")]:
        scale = mx.array(2.0**-9)
        codes[name] = mx.to_fp8(tiny_weights[name].astype(mx.float32) / scale)
        codes[f"{name}_scale"] = scale
        plain[name] = (mx.from_fp8(codes[name], dtype=mx.float32) * scale).astype(mx.bfloat16)
    folder = make_checkpoint("codes", weights=codes)
    (folder / "hf_quant_config.json").write_text(json.dumps(SETTINGS))
    return folder, make_checkpoint("plain", weights=plain)


@pytest.mark.parametrize("form", ["factored", "dense"])
def test_what_is_compressed_by_rank_is_that_of_the_plain_twin(
    twins: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    outputs = []
    for source in twins:
        out = tmp_path / f"{source.name} out"
        compress(source, out, keep=0.5, format=form)
        model, _ = stock_load(out, trust_remote_code=form == "factored")
        outputs.append(dict(tree_flatten(model.parameters())))
    codes, plain = outputs
    assert codes.keys() == plain.keys()
    assert all(same_bits(codes[name], array) for name, array in plain.items())


@pytest.mark.parametrize("form", ["factored", "dense"])
def test_the_output_is_the_same_for_any_number_of_threads(
    make_checkpoint: Make, tmp_path: Path, form: str
) -> None:
    source, outputs = make_checkpoint(), list[bytes]()
    for count in (1, 2):
        with using_workers(count):
            result = compress(source, tmp_path / f"{form}{count}", keep=0.5, format=form)
        outputs.append((result.out / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_what_is_inspected_are_the_matrices_that_are_loaded(twins: tuple[Path, Path]) -> None:
    codes, plain = (summarize(str(source), spectra=True) for source in twins)
    assert codes.parameters == plain.parameters
    assert codes.spectra == plain.spectra
    shapes = [{(g.name, g.shape, g.count) for g in s.groups} for s in (codes, plain)]
    assert shapes[0] == shapes[1]
    assert sum(g.nbytes for g in codes.groups) < sum(g.nbytes for g in plain.groups)
