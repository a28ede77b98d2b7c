"""What the plot of divergences shows, read from the figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from plastic_export.evaluation.estimates import Evaluation, ModelSize, estimate
from plastic_export.evaluation.measures import TokenMeasures
from plastic_export.evaluation.settings import EvaluationSettings
from plastic_export.reporting.plots.kl_plot import kl_figure, save_kl_plot

MIB = 2**20


def result(name: str, size: float, kl: float, *, tokens: int = 1000, text: str = "t") -> Evaluation:
    """A checkpoint whose tokens diverge by 0 to twice ``kl``."""
    spread = kl * (2 * np.arange(tokens)[None] + 1) / tokens
    same = np.ones((1, tokens), bool)
    measured = TokenMeasures(spread, same, spread, spread, None, same, same)
    settings = EvaluationSettings(text, "", "", tokens + 1, 1, tokens, "none", "float32", "cpu")
    return estimate(name, measured, settings, size=ModelSize(int(size * MIB), 2 * size))


def drawn(results: list[Evaluation]) -> dict[str, list[list[float]]]:
    lines = kl_figure(results).axes[0].lines
    return {str(line.get_label()): np.array(line.get_data()).tolist() for line in lines}


def test_every_text_has_means_and_percentiles_over_bytes() -> None:
    results = [result("a", 2, 0.1), result("b", 3, 0.02), result("a", 2, 0.3, text="u")]
    figure = kl_figure(results)
    found = drawn(results)
    assert [*found] == ["t, mean", "t, 99.9 %", "u, mean", "u, 99.9 %"]
    np.testing.assert_allclose(found["t, mean"], [[2, 3], [100, 20]])
    np.testing.assert_allclose(found["t, 99.9 %"], [[2, 3], [199.7002, 39.94004]])
    axes = figure.axes[0]
    assert (axes.get_yscale(), axes.get_xlabel()) == ("log", "model files, MiB")
    assert [text.get_text() for text in axes.texts] == ["a", "b", "a"]
    (above,) = axes.child_axes
    assert above._functions[0](2.5) == pytest.approx(5)


def test_what_has_no_place_on_a_logarithmic_axis_is_left_out() -> None:
    short, same, broken = (
        result("short", 1, 0.1, tokens=10),
        result("same", 2, 0.0),
        result("broken", 3, math.inf),
    )
    assert drawn([short, same, broken]) == {"t, mean": [[1], [pytest.approx(100)]]}
    with pytest.raises(ValueError, match="`plot` needs a `reference`"):
        kl_figure([same, broken])


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    save_kl_plot(tmp_path / "a.png", [result("a", 2, 0.1)])
    save_kl_plot(tmp_path / "b.png", [result("a", 2, 0.1)])
    assert imread(tmp_path / "a.png").shape[:2] == (1000, 1600)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
