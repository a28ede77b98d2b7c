"""A model stored in float16 whose activations exceed it is named wherever float32 hides that."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model as stock_load
from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.cli.command import main
from plastic_export.evaluation.evaluation import evaluate
from plastic_export.reporting.evaluation.evaluate import present_evaluations

Make = Callable[..., Path]
SCALES = {"model.layers.0.mlp.down_proj.weight": 3e4, "model.layers.0.mlp.up_proj.weight": 1e3}
WINDOW = {"window": 24, "windows": 8}


@pytest.fixture
def halved(make_readable: Make, tiny_weights: dict[str, mx.array]) -> Callable[..., Path]:
    """``halved(name, scales)``: the tiny checkpoint in float16, some of its weights scaled."""

    def make(name: str, scales: dict[str, float]) -> Path:
        weights = {n: (w * scales.get(n, 1)).astype(mx.float16) for n, w in tiny_weights.items()}
        return make_readable(name, weights=weights)

    return make


def windows(folder: Path, text: Path) -> mx.array:
    with open_checkpoint(folder) as checkpoint:
        return Calibration(text, **WINDOW).tokens(checkpoint)


def test_what_float32_hides_is_found(halved: Callable[..., Path], text: Path) -> None:
    steep = halved("steep", SCALES)
    tokens = windows(steep, text)
    assert not mx.isfinite(stock_load(steep)[0](tokens[:1])).all().item()
    with pytest.warns(CheckpointWarning, match=r"stored in float16, .* --dtype bfloat16"):
        assert overflows(steep, tokens)


def test_nothing_is_said_where_the_stored_type_bears_it(
    halved: Callable[..., Path], make_readable: Make, tiny_weights: dict[str, mx.array], text: Path
) -> None:
    steep = {n: w * SCALES.get(n, 1) for n, w in tiny_weights.items()}
    folders = halved("tame", {}), make_readable("wide", weights=steep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in folders:
            assert not overflows(folder, windows(folder, text))


def test_a_measurement_in_float32_carries_it(halved: Callable[..., Path], text: Path) -> None:
    steep, tame = halved("steep", SCALES), halved("tame", {})
    with pytest.warns(CheckpointWarning, match="float16"):
        (result,) = evaluate(steep, [text], **WINDOW)
    assert result.overflows
    assert f"not finite as stored, in float16: {steep}" in present_evaluations([result]).lines
    (result,) = evaluate(tame, [text], **WINDOW)
    assert not result.overflows


def test_every_calibration_says_it_once(
    halved: Callable[..., Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steep = halved("steep", SCALES)
    plan, few = text.with_name("plan.json"), ("--window", 24, "--windows", 8)
    data, file = text.with_name("data"), steep / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "0"}))
    data.mkdir()
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text('{"text": "abcdefghij"}\n' * 4)
    short = ("--steps", 2, "--batch", 2, "--window", 32, "--rank", 2)
    for words in (
        ("plan", steep, "--calibration", text, "--out", plan, "--bits", "2,4", "--keep", 0.3, *few),
        ("compress", steep, text.with_name("rank"), "--keep", 0.8, "--calibration", text, *few),
        ("evaluate", steep, "--text", text, *few),
        ("train", steep, "--data", data, "--out", text.with_name("RUN"), *short),
    ):
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
        assert capsys.readouterr().err.count("activations exceed its 65504") == 1, words[0]
