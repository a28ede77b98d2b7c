"""The tools that quantise checkpoints: which are read, and what is said of the others."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as stock_load
from plastic_core.files import FormatError
from plastic_core.testing import same_bits
from plastic_export.checkpoint.quantizers import Quantizer
from plastic_export.checkpoint.reader import open_checkpoint

FILE = Path("SRC/config.json")
Settings = dict[str, Any]


def said(method: str, **settings: Any) -> Settings:
    return {"quantization_config": {"quant_method": method, **settings}}


READ: dict[str, tuple[Settings, str | None]] = {
    "nothing": ({}, None),
    "an empty entry": ({"quantization_config": {}}, None),
    "MLX": ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, None),
    "fp8": (said("fp8"), "fp8"),
    "nested in the text model": ({"text_config": said("fp8")}, "fp8"),
    "gptq": (said("gptq", checkpoint_format="gptq_v2"), "gptq"),
    "awq": (said("awq", version="GEMM"), "awq"),
    "AutoRound": (said("intel/auto-round", packing_format="auto_round:auto_gptq"), "auto-round"),
    "gpt-oss": (said("mxfp4"), "mxfp4"),
    "no rotation": (said("compressed-tensors", transform_config={}), "compressed-tensors"),
    "no version": (said("awq", version=None), "awq"),
    "ModelOpt": (said("modelopt", quant_algo="NVFP4"), "modelopt"),
    "ModelOpt's own file": (
        {"quantization_config": {"producer": {}, "quantization": {"quant_algo": "FP8"}}},
        "modelopt",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_tools_whose_forms_are_read_are_named_and_pass(case: str) -> None:
    config, method = READ[case]
    quantizer = Quantizer(config)
    assert quantizer.method == method
    quantizer.check(FILE, 3, 4)


REFUSED: dict[str, tuple[Settings, str]] = {
    "bitsandbytes": (
        said("bitsandbytes"),
        r"by 'bitsandbytes', 75% of its bytes, and neither mlx-lm nor .* reads that;"
        r" make a plain copy: python -c .*SRC.*\.dequantize\(\)\.save_pretrained",
    ),
    "hqq": (said("hqq"), "by 'hqq', 75% of its bytes, .*; take the original"),
    "text": ({"quantization_config": "int8"}, "by 'int8', .*; take the original"),
    "no name": ({"quantization_config": {"bits": 4}}, "by 'an unknown tool'"),
    "marlin": (said("gptq", checkpoint_format="marlin"), "its layout 'marlin' is not read"),
    "marlin of a later release": (said("gptq", format="marlin"), "its layout 'marlin' is not"),
    "gemv": (said("awq", version="gemv"), "its layout 'gemv' is not read"),
    "triton": (
        said("auto-round", packing_format="auto_round:exllamav2"),
        "by 'auto-round', .*its layout 'auto_round:exllamav2' is not read",
    ),
    "AutoRound": (said("auto-round"), "its layout '' is not read"),
    "rotated": (
        said("compressed-tensors", transform_config={"config_groups": {"R4": {}}}),
        "mlx-lm applies no 'transform_config' to what enters its layers; take the original",
    ),
    "packed by rows": (said("modelopt", quant_algo="W4A16_AWQ"), "its algorithm 'W4A16_AWQ' is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_tools_are_refused_with_their_share_and_what_to_do(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(FormatError, match=rf"^SRC/config\.json: the checkpoint .*{message}"):
        Quantizer(config).check(FILE, 3, 4)


def test_layers_that_run_on_metal_alone_are_refused_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has_metal in (True, False):
        monkeypatch.setattr(mx.metal, "is_available", lambda has_metal=has_metal: has_metal)
        if has_metal:
            Quantizer(said("bitnet")).check(FILE, 3, 4)
        else:
            with pytest.raises(FormatError, match=r"'bitnet'.* run on Metal alone"):
                Quantizer(said("bitnet")).check(FILE, 3, 4)


def test_a_checkpoint_of_an_unknown_tool_is_not_opened(
    make_checkpoint: Callable[..., Path], tiny_weights: dict[str, mx.array]
) -> None:
    weights = tiny_weights | {"a.weight": mx.zeros((8, 8), mx.uint8)}
    folder = make_checkpoint(weights=weights, **said("quanto"))
    with pytest.raises(FormatError, match=r"config\.json: .* by 'quanto', 0% of its bytes"):
        open_checkpoint(folder)


@pytest.mark.parametrize("folder", ["SRC", "it's a $folder"])
@pytest.mark.parametrize("method", ["fp8", "bitsandbytes"])
def test_the_command_for_a_copy_is_one_that_a_shell_takes(method: str, folder: str) -> None:
    remedy = Quantizer(said(method)).remedy(Path(folder))
    python, option, script = shlex.split(remedy.removeprefix("make a plain copy: "))
    assert (python, option) == ("python", "-c")
    constants = [n.value for n in ast.walk(ast.parse(script)) if isinstance(n, ast.Constant)]
    assert {folder, "COPY"} <= {*constants}


def test_what_mlx_lm_packs_by_itself_is_for_its_own_converter() -> None:
    remedy = Quantizer(said("mxfp4")).remedy(Path("SRC"))
    assert remedy.endswith(": mlx_lm.convert --hf-path SRC --mlx-path COPY")


def test_the_command_for_a_plain_copy_makes_one_for_stock_mlx_lm(
    make_readable: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_readable("plain")
    weights = mx.load(str(plain / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scale = mx.to_fp8(weights[name]), mx.array(0.5)
    weights |= {name: codes, f"{name}_scale": scale}
    mx.save_safetensors(str(plain / "model.safetensors"), weights)
    config = json.loads((plain / "config.json").read_text())
    settings = said("compressed-tensors", format="float-quantized")
    (plain / "config.json").write_text(json.dumps(config | settings))
    monkeypatch.chdir(tmp_path)
    remedy = Quantizer(settings).remedy(plain)
    exec(shlex.split(remedy.removeprefix("make a plain copy: "))[2], {})
    model, _ = stock_load(tmp_path / "COPY")
    expected = mx.from_fp8(codes, dtype=mx.bfloat16) * 0.5
    assert same_bits(model.layers[0].mlp.up_proj.weight, expected)
    with open_checkpoint(tmp_path / "COPY") as checkpoint:
        assert not checkpoint.holds_codes
