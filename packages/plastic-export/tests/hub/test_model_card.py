"""The cards of outputs and runs: what they carry over, and who may edit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from plastic_export import compress, restore, verify
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.folder.card_file import is_own_card, sealed_card

SOURCE = """---
license: other
license_name: tiny
license_link: LICENSE
language: [en, cy]
base_model: acme/tiny
library_name: transformers
tags: [llama]
pipeline_tag: image-text-to-text
---
# Tiny — ein Modell
"""


@pytest.fixture
def source(checkpoint_folder: Path) -> Path:
    (checkpoint_folder / "README.md").write_text(SOURCE)
    return checkpoint_folder


def said(folder: Path) -> dict[str, Any]:
    return dict(ModelCard.load(folder / "README.md").data.to_dict())


@pytest.mark.parametrize("format", ["factored", "dense"])
def test_the_card_says_what_it_is_and_carries_the_licence(
    source: Path, tmp_path: Path, format: Any
) -> None:
    out = tmp_path / "out"
    compress(source, out, keep=0.5, format=format)
    assert said(out) == {
        "license": "other",
        "license_name": "tiny",
        "license_link": "LICENSE",
        "language": ["en", "cy"],
        "base_model": "acme/tiny",
        "base_model_relation": "finetune",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "plastic-rank", format, "llama"],
    }
    text = (out / "README.md").read_text()
    assert f"{(out / 'model.safetensors').stat().st_size:,} bytes" in text
    assert ("--trust-remote-code" in text) == (format == "factored")
    assert (out / "README.source.md").read_text() == SOURCE
    restore(out, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == SOURCE


def test_a_card_that_was_edited_verifies_and_is_not_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(source, out, keep=0.5)
    assert is_own_card(out / "README.md")
    compress(source, out, keep=0.6, force=True)
    assert is_own_card(out / "README.md")
    (out / "README.md").write_text("mine")
    assert verify(out) == []
    compress(source, out, keep=0.5, force=True)
    assert (out / "README.md").read_text() == "mine"
    (out / "README.md").unlink()
    assert verify(out) == []


def test_an_output_of_an_output_carries_the_card_of_the_first_source(
    source: Path, tmp_path: Path
) -> None:
    compress(source, tmp_path / "a", keep=0.8, format="dense")
    compress(tmp_path / "a", tmp_path / "b", keep=0.5, format="dense")
    assert (tmp_path / "b" / "README.source.md").read_text() == SOURCE
    assert said(tmp_path / "b")["license_name"] == "tiny"


def test_the_card_of_a_folder_behind_a_link_is_carried_along(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    compress(tmp_path / "link", tmp_path / "out", keep=0.5)
    assert (tmp_path / "out" / "README.source.md").read_text() == SOURCE


@pytest.mark.parametrize("card", ["---\n- a\n---\n", "---\na: [\n---\n"])
def test_a_card_that_cannot_be_read_is_told_and_carried_along(
    source: Path, tmp_path: Path, card: str
) -> None:
    (source / "README.md").write_text(card)
    with pytest.warns(CheckpointWarning, match=r"README\.md: its metadata cannot be read"):
        compress(source, tmp_path / "out", keep=0.5)
    assert "license" not in said(tmp_path / "out")
    assert (tmp_path / "out" / "README.source.md").read_text() == card


def test_a_card_of_bytes_that_are_no_text_is_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    assert not is_own_card(file)
    for data in (b"", b"\xff\xfe", b"<!-- plastic: ", sealed_card("a").encode() + b" "):
        file.write_bytes(data)
        assert not is_own_card(file)
    file.write_text(sealed_card("a"))
    assert is_own_card(file)
