"""``plastic inspect`` of a Hub id: the headers alone are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError
from plastic_export import summarize


@pytest.fixture
def online(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [1, 3])
def test_inspecting_reads_headers_and_no_weights(
    make_checkpoint: Callable[..., Path], online: Any, tmp_path: Path, shards: int
) -> None:
    big = {"model.layers.0.mlp.up_proj.weight": mx.zeros((1024, 1024))}
    folder = make_checkpoint("tiny", weights=big) if shards == 1 else make_checkpoint("tiny")
    online.files["acme/tiny"] = contents(folder)
    found, expected = summarize("acme/tiny"), summarize(str(folder))
    assert found == replace(expected, name="acme/tiny")
    if shards == 1:
        assert online.sent < 600_000 < expected.nbytes
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_spectra_need_the_weights(checkpoint_folder: Path, online: Any, tmp_path: Path) -> None:
    online.files["acme/tiny"] = contents(checkpoint_folder)
    assert summarize("acme/tiny", spectra=True).spectra
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    del online.files["acme/tiny"]["model.safetensors"]
    assert summarize("acme/tiny").tensors > 0  # of the cache


def test_a_damaged_header_is_one_line(checkpoint_folder: Path, online: Any) -> None:
    online.files["acme/tiny"] = contents(checkpoint_folder)
    online.files["acme/tiny"]["model.safetensors"] = b"\xff" * 100
    with pytest.raises(FormatError, match="acme/tiny: the Hub answered"):
        summarize("acme/tiny")
