"""What is written for PEFT, loaded by PEFT itself; and what PEFT writes, loaded by mlx-lm.

PEFT stands on torch, which the environment of this project does not have. Where a build of torch
for the CPU is to be had, `.ci/run` installs both and runs this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from plastic_core.files import array_bytes
from plastic_core.linalg import to_numpy
from plastic_export import Adapter, LoraPair, export, read_adapter, write_adapter

peft = pytest.importorskip("peft", reason="PEFT is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT over transformers
TOKENS = [1, 40, 12, 90, 33, 7, 250, 61]
SLACK = 1e-4


@pytest.fixture
def adapter(checkpoint: Path) -> Adapter:
    """Random factors of unequal ranks and scales over the shipped checkpoint."""
    layers = {}
    model, _ = mlx_lm.load(str(checkpoint))
    for i, name in enumerate(("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")):
        for block in (0, 2):
            path = f"model.layers.{block}.{name}"
            out, in_ = dict(model.named_modules())[path].weight.shape
            keys = mx.random.split(mx.random.key(10 * i + block))
            A = 0.1 * mx.random.normal((1 + i + block, in_), key=keys[0])
            B = 0.1 * mx.random.normal((out, 1 + i + block), key=keys[1])
            layers[path] = LoraPair(A, B, 1.0)
    return Adapter(layers, base=str(checkpoint.resolve()))


def by_peft(folder: Path) -> np.ndarray[Any, Any]:
    """The logits in float32, loaded by nothing but the name that the adapter has for its base."""
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model(torch.tensor([TOKENS])).logits.numpy()
    return logits


def by_mlx(checkpoint: Path, folder: Path | None) -> np.ndarray[Any, Any]:
    path = None if folder is None else str(folder)
    model, _ = mlx_lm.load(str(checkpoint), adapter_path=path)
    model.set_dtype(mx.float32)
    logits: np.ndarray[Any, Any] = to_numpy(model(mx.array([TOKENS])))
    return logits


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [0.5, 2.0, 1.7]])
def test_peft_computes_what_mlx_lm_computes(
    adapter: Adapter, checkpoint: Path, tmp_path: Path, uniform: bool, scales: list[float]
) -> None:
    layers = {
        path: pair._replace(scale=scales[i % len(scales)])
        for i, (path, pair) in enumerate(adapter.layers.items())
    }
    scaled = Adapter(layers, adapter.base)
    ours = by_mlx(checkpoint, write_adapter(scaled, tmp_path / "mlx", "mlx"))
    theirs = by_peft(write_adapter(scaled, tmp_path / "peft", "peft", uniform=uniform))
    assert np.abs(ours - theirs).max() < SLACK
    assert np.abs(ours - by_mlx(checkpoint, None)).max() > 100 * SLACK


def test_a_folder_of_a_known_name_leads_to_itself(
    adapter: Adapter, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    write_adapter(adapter, "own", "mlx")
    export("own", "peft", to="peft", base="gpt2")
    monkeypatch.chdir("/")
    assert by_peft(tmp_path / "peft").shape[1] == len(TOKENS)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {r"layers\.[01]\..*q_proj": 2, "down_proj": 3},
            "alpha_pattern": {"v_proj": 16, r"^model\.layers\.3.*down_proj": 1},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_what_peft_writes_runs_in_mlx_lm(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=targets, init_lora_weights=False, **options)
    )
    model.save_pretrained(str(tmp_path / "theirs"))
    done = export(tmp_path / "theirs", tmp_path / "ours", to="mlx", base=checkpoint)
    assert done.target == "mlx"
    ours, theirs = by_mlx(checkpoint, tmp_path / "ours"), by_peft(tmp_path / "theirs")
    assert np.abs(ours - theirs).max() < SLACK


def bits(adapter: Adapter) -> dict[str, tuple[bytes, ...]]:
    sides = {path: (pair.A, pair.B) for path, pair in adapter.layers.items()}
    return {path: tuple(array_bytes(side).tobytes() for side in two) for path, two in sides.items()}


def test_factors_make_the_round_trip_to_the_bit(adapter: Adapter, tmp_path: Path) -> None:
    there = read_adapter(write_adapter(adapter, tmp_path / "peft", "peft"))
    back = read_adapter(write_adapter(there, tmp_path / "mlx", "mlx"))
    again = read_adapter(write_adapter(back, tmp_path / "again", "peft", uniform=True))
    for one in (there, back, again):
        assert bits(one) == bits(adapter)


def test_dora_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    config = peft.LoraConfig(target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(base, config).save_pretrained(str(tmp_path / "dora"))
    with pytest.raises(ValueError, match="DoRA"):
        read_adapter(tmp_path / "dora")


def test_whole_modules_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"])
    peft.get_peft_model(base, config).save_pretrained(str(tmp_path / "more"))
    with pytest.raises(ValueError, match="modules_to_save"):
        read_adapter(tmp_path / "more")
