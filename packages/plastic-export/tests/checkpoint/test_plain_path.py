"""Folders with names that mlx-lm cannot open, and others that are only strange."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plastic_export import (
    Calibration,
    Choices,
    HealingOptions,
    TrainingOptions,
    compare,
    execute_plan,
    gguf_guide,
    heal,
    plan_checkpoint,
    train,
    verify,
)
from plastic_export.checkpoint.plain_path import is_plain, plain_path
from plastic_export.checkpoint.warning import CheckpointWarning

STRANGE = ["k4 modèle 模型 été", "a 'b' \"c\" $(d) %s {e}"]
UNOPENED = ["x[1]", "what?", os.fsdecode(b"mod\xe8le")]


@pytest.mark.parametrize("name", STRANGE + UNOPENED)
def test_a_link_stands_for_what_mlx_lm_cannot_open(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert is_plain(folder) == (name in STRANGE)
    with plain_path(folder) as place:
        assert (place == folder) == is_plain(folder)
        assert place.samefile(folder)
    assert folder.is_dir()
    assert os.path.lexists(place) == is_plain(folder)


@pytest.mark.parametrize("name", ["k4 modèle 模型 'été' $(d) [1]", os.fsdecode(b"mod\xe8le")])
@pytest.mark.filterwarnings("ignore::plastic_export.checkpoint.warning.CheckpointWarning")
def test_every_step_works_in_folders_of_strange_names(
    write_readable: Callable[[Path], Path], text: Path, tmp_path: Path, name: str
) -> None:
    home = tmp_path / name
    home.mkdir()
    source, out = write_readable(tmp_path / "source").rename(home / "source"), home / "out"
    few = Calibration(text.rename(home / "text.txt"), window=24, windows=8)
    plan_checkpoint(
        source, home / "p.json", calibration=few, budgets=[8], choices=Choices(bits=(4, 8))
    )
    result = execute_plan(source, out, home / "p.json")
    assert str(out) in subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {result.how_to_run()[0].partition('--model ')[2]}"],
        capture_output=True,
        check=True,
    ).stdout.decode(errors="surrogateescape").splitlines()  # fmt: skip
    heal(out, source, calibration=few, options=HealingOptions(steps=1))
    assert verify(out) == []
    evaluated = compare([out], [few.text], reference=str(source), window=24, windows=2)
    assert len(evaluated) == 1
    assert gguf_guide(out)
    rows = home / "data"
    rows.mkdir()
    for kind in ("train", "valid"):
        (rows / f"{kind}.jsonl").write_text('{"text": "abcdefgh"}\n' * 4)
    options = TrainingOptions(steps=1, batch=2, window=8, rank=1, evaluate_every=1)
    assert train(source, rows, home / "run", options).adapter.is_dir()


def test_an_output_that_mlx_lm_cannot_open_is_said_before_the_work(
    make_readable: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_readable()
    command = [sys.executable, "-c", "from plastic_export.cli import main; main()"]
    words = ["compress", str(source), "x[1]", "--keep", "0.5"]
    done = subprocess.run(command + words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "x[1]: mlx-lm itself cannot open a folder whose path holds [" in done.stderr
    with pytest.warns(CheckpointWarning, match="rename it before you run it"):
        execute_nothing(tmp_path / "y[1]")


def execute_nothing(out: Path) -> None:
    from plastic_export.folder.output import OutputFolder

    OutputFolder(out)
