"""What the header of a model file says of the layout of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from plastic_core.files import read_header
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.plan_file import LossPlan
from plastic_export.compression.restoration import restore
from plastic_export.plan.offers import Choice


def framework(folder: Path) -> str:
    return read_header(folder / "model.safetensors").metadata["format"]


@pytest.mark.parametrize(("format", "named"), [("factored", "mlx"), ("dense", "pt")])
def test_what_mlx_alone_loads_says_so(
    checkpoint_folder: Path, tmp_path: Path, format: str, named: str
) -> None:
    out = tmp_path / "out"
    compress(checkpoint_folder, out, keep=0.7, format=format, check=False)
    assert framework(out) == named
    assert framework(restore(out, tmp_path / "back", check=False).dest) == "pt"


@pytest.mark.parametrize("format", ["mixed", "adapter", "corrected"])
def test_a_plan_is_written_in_the_layout_of_mlx(
    checkpoint_folder: Path, make_plan: Callable[..., LossPlan], tmp_path: Path, format: str
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    make_plan(checkpoint_folder, file, {"lm_head.weight": Choice(4)}, format)
    execute_plan(checkpoint_folder, out, file, check=False)
    assert framework(out) == "mlx"
