"""A picture or a page is replaced where this package wrote it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from plastic_core.files import FormatError
from plastic_export.cli.command import main
from plastic_export.reporting.plots.replacing import check_replaceable
from plastic_export.reporting.plots.size_plot import SizePoint, save_size_plot

MATPLOTLIB = b"\x89PNG\r\n\x1a\n" + b"tEXtSoftware\0Matplotlib version3.10"


def test_a_plot_of_ours_may_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "plot.png"
    check_replaceable(file)
    save_size_plot(file, [SizePoint(1, 4.0, 1e-3)])
    check_replaceable(file)


@pytest.mark.parametrize("content", [b"", b"holiday", MATPLOTLIB])
def test_any_other_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"photo\.png: it exists and was not written by this"):
        check_replaceable(file)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").symlink_to("nowhere")
    with pytest.raises(FormatError, match="it is a link or a folder"):
        check_replaceable(tmp_path / "photo.png")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_plan_refuses_before_the_work_to_replace_a_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: list[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(b"holiday")
    (tmp_path / "text").write_text("text")
    words = ["plan", "no-such-source", "--calibration", str(tmp_path / "text")]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--out", str(tmp_path / "photo.json"), *force])
    assert "photo.png: it exists and was not written by this package" in capsys.readouterr().err
    assert (tmp_path / "photo.png").read_bytes() == b"holiday"
