"""What is restored runs before it is published."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from plastic_export.compression.by_rank import compress
from plastic_export.compression.restoration import restore
from plastic_export.evaluation.output_check import FailedCheckError
from plastic_export.reporting.restore import present_restored

RUN = "plastic_export.evaluation.output_check.logits_by_blocks"


def broken(folder: Path, tokens: mx.array) -> mx.array:
    return mx.full((*tokens.shape, 80), float("nan"))


def failing(folder: Path, tokens: mx.array) -> mx.array:
    raise TypeError("no such argument")


@pytest.fixture
def out(checkpoint_folder: Path, tmp_path: Path) -> Path:
    compress(checkpoint_folder, tmp_path / "out", keep=0.6, strategy="energy")
    return tmp_path / "out"


def test_text_runs_through_what_is_restored(out: Path, tmp_path: Path) -> None:
    result = restore(out, tmp_path / "back")
    assert result.checked == 64
    lines = present_restored(result).lines
    assert lines[-1] == "checked    64 tokens ran through it, every prediction finite"


@pytest.mark.parametrize(
    ("run", "said"), [(broken, "not finite"), (failing, "cannot be run: no such argument")]
)
def test_what_does_not_run_is_not_published(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: object, said: str
) -> None:
    monkeypatch.setattr(RUN, run)
    with pytest.raises(FailedCheckError, match=f"back: .*{said}.*--no-check"):
        restore(out, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir() if "back" in path.name] == []
    result = restore(out, tmp_path / "back", check=False)
    assert present_restored(result).lines[-1].startswith("unchecked  --no-check")


def test_what_digests_prove_is_not_run(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(checkpoint_folder, tmp_path / "out", keep=0.6, strategy="energy", exact=True)
    monkeypatch.setattr(RUN, failing)
    result = restore(tmp_path / "out", tmp_path / "back")
    assert (result.proved, result.checked) == (True, 0)
    assert len(present_restored(result).lines) == 1
