"""Models that go through their blocks more than once: both passes count, in prices too."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo.building import CONFIGS, TEXT, build_checkpoint
from zoo.chain import ABOVE
from zoo.running import command

FEW = ("--window", 48, "--windows", 4)
CHOICES = ("--bits", "4", "--bits-per-weight", 5)


@pytest.mark.parametrize("loops", [1, 2])
def test_the_prediction_holds_for_weights_that_are_used_in_loops(
    loops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIGS["nanbeige"], "num_loops": loops}
    monkeypatch.setitem(CONFIGS, "nanbeige", config)
    source, text = build_checkpoint(tmp_path / "SRC", "nanbeige", "mlx"), tmp_path / "text.txt"
    text.write_text(TEXT)
    plan, out = tmp_path / "plan.json", tmp_path / "OUT"
    planned = command("plan", source, "--calibration", text, *FEW, *CHOICES, "--out", plan)
    command("compress", source, out, "--plan", plan)
    evaluated = command("evaluate", out, "--reference", source, "--text", text, *FEW)
    (measured,) = evaluated["evaluations"]
    predicted = planned["budgets"][0]["predicted_kl"]
    assert predicted / ABOVE < measured["kl"] < ABOVE * predicted
