"""What the plot shows, read from the figure; and its file, read as PNG."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from plastic_export.reporting.plots.size_plot import SizePoint, save_size_plot, size_figure

MIB = 2**20
POINTS = [
    SizePoint(4 * MIB, 3.0, 3.2e-3, 3.5e-3, "3 bits"),
    SizePoint(5 * MIB, 4.0, 0.8e-3, None, "4 bits of $5 per _weight_"),
]
FRONTIER = [SizePoint(int((1 + b) * MIB), b, 0.2 * 4.0**-b) for b in np.linspace(2.5, 4.5, 9)]


def lines(points: list[SizePoint], **options: Any) -> dict[str, np.ndarray]:
    """What is drawn under each label of the legend, a row per coordinate."""
    figure = size_figure(points, **options)
    return {str(line.get_label()): np.array(line.get_data()) for line in figure.axes[0].lines}


def test_every_point_is_drawn_where_it_belongs() -> None:
    drawn = lines(POINTS, frontier=FRONTIER)
    assert drawn.keys() == {"predicted for every size", "predicted", "measured"}
    np.testing.assert_allclose(drawn["predicted"], [[4, 5], [3.2, 0.8]], rtol=1e-15)
    np.testing.assert_allclose(drawn["measured"], [[4], [3.5]], rtol=1e-15)
    sizes, costs = drawn["predicted for every size"]
    np.testing.assert_array_equal(sizes, [p.nbytes / MIB for p in FRONTIER])
    np.testing.assert_allclose(costs, [1e3 * p.predicted_kl for p in FRONTIER], rtol=1e-15)


def test_the_order_of_the_frontier_is_no_matter() -> None:
    drawn, again = (lines([], frontier=f) for f in (FRONTIER, FRONTIER[::-1]))
    name = "predicted for every size"
    np.testing.assert_array_equal(drawn[name], again[name])


def test_divergence_is_logarithmic_and_in_millinats() -> None:
    axes = size_figure(POINTS).axes[0]
    assert axes.get_yscale() == "log"
    assert "millinats" in axes.get_ylabel()
    assert axes.get_xlabel() == "checkpoint, MiB"


def test_the_scale_above_gives_the_bits_of_every_point() -> None:
    (above,) = size_figure(POINTS, frontier=FRONTIER).axes[0].child_axes
    assert above.get_xlabel() == "bits per weight"
    to_bits, to_size = above._functions
    for p in POINTS + FRONTIER:
        assert to_bits(p.nbytes / MIB) == pytest.approx(p.bits_per_weight, rel=1e-6)
        assert to_size(to_bits(p.nbytes / MIB)) == pytest.approx(p.nbytes / MIB, rel=1e-12)


@pytest.mark.parametrize("nbytes", [1, 1023, 1024, 2**20 - 1, 2**30, 2**50])
def test_sizes_have_a_unit_that_keeps_them_readable(nbytes: int) -> None:
    point = SizePoint(nbytes, 4.0, 1e-3)
    axes = size_figure([point]).axes[0]
    unit = {"bytes": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}[axes.get_xlabel().split()[-1]]
    (size,) = lines([point])["predicted"][0]
    assert size * 1024**unit == nbytes
    assert 1 <= size < 1024 or unit == 4


def test_one_size_alone_has_no_scale_above() -> None:
    assert size_figure(POINTS[:1]).axes[0].child_axes == []


def test_what_costs_nothing_is_drawn_below_all_else() -> None:
    free = SizePoint(6 * MIB, 16.0, 0.0, 0.0)
    drawn = lines([*POINTS, free], frontier=[*FRONTIER, free])
    ((size,), (cost,)) = drawn["predicted: 0"]
    others = [drawn[name][1] for name in ("predicted", "predicted for every size")]
    assert size == 6
    assert 0 < cost < np.concatenate(others).min()
    assert drawn["measured"][1].min() == cost
    assert drawn["predicted for every size"].shape == (2, len(FRONTIER))


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_size_plot(tmp_path / name, POINTS, frontier=FRONTIER, title="Llama $1")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert not any(chunk in data for chunk in (b"tIME", b"iTXt", b"zTXt"))
    assert data.count(b"tEXt") == data.count(b"tEXtSoftware\0plastic-export") == 1


def test_the_users_settings_have_no_say(tmp_path: Path) -> None:
    save_size_plot(tmp_path / "a.png", POINTS)
    with matplotlib.rc_context({"lines.markersize": 30, "axes.facecolor": "red"}):
        save_size_plot(tmp_path / "b.png", POINTS)
        assert matplotlib.rcParams["lines.markersize"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_colour_is_used(tmp_path: Path) -> None:
    file = tmp_path / "plot.png"
    save_size_plot(file, POINTS, frontier=FRONTIER, title="a title")
    image = imread(file)
    assert image.shape[:2] == (1000, 1600)
    assert (image[..., :3] == image[..., :1]).all()
    assert image[..., :3].min() == 0  # and something is drawn


@pytest.mark.parametrize(
    "point",
    [
        SizePoint(0, 4.0, 1e-3),
        SizePoint(1, 4.0, -1e-3),
        SizePoint(1, 4.0, float("nan")),
        SizePoint(1, 4.0, 1e-3, float("inf")),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path: Path, point: SizePoint) -> None:
    with pytest.raises(ValueError, match=r"sizes must be positive.*got SizePoint"):
        save_size_plot(tmp_path / "plot.png", [*POINTS, point])
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`points` must hold at least one"):
        save_size_plot(tmp_path / "plot.png", [])


def test_neither_the_package_nor_the_plot_touches_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, plastic_export.cli.command, plastic_export.reporting.plots.size_plot as s\n"
        "assert not any(name.startswith('matplotlib') for name in sys.modules)\n"
        "s.save_size_plot(sys.argv[1], [s.SizePoint(1, 4.0, 1e-3)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "plot.png"], check=True)
