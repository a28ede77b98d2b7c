"""What the base of an adapter is called: what leads to it, and to nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plastic_export.adapters.base_name import name_of_base
from plastic_export.checkpoint.reader import open_checkpoint


def test_a_folder_is_called_by_its_absolute_path(
    make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = make_checkpoint("gpt2")
    monkeypatch.chdir(folder.parent)
    with open_checkpoint("gpt2") as base:
        assert name_of_base(base) == (str(folder.resolve()), None, "")


def test_a_repository_is_called_by_its_id_and_commit(hub_cache: Any) -> None:
    with open_checkpoint(hub_cache.repository) as base:
        assert name_of_base(base) == (hub_cache.repository, hub_cache.commit, "")


def quantized(folder: Path, source: dict[str, Any] | None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    if source is not None:
        (folder / "plastic.json").write_text(json.dumps({"source": source}))
    return folder


def test_over_a_quantised_base_its_dense_original_is_named(checkpoint_folder: Path) -> None:
    source = {"name": "acme/tiny", "revision": "1f2e", "tensors": {"lm_head.weight": []}}
    with open_checkpoint(quantized(checkpoint_folder, source)) as base:
        name = name_of_base(base)
    assert name[:2] == ("acme/tiny", "1f2e")
    assert "dense original" in name.note


@pytest.mark.parametrize(
    "source",
    [
        None,
        {"name": "lm", "revision": None, "tensors": {}},
        {"name": "acme/tiny-4bit", "revision": "1f2e", "tensors": {"lm_head.scales": []}},
    ],
)
def test_where_no_dense_original_is_known_the_user_is_told(
    checkpoint_folder: Path, source: dict[str, Any] | None
) -> None:
    with open_checkpoint(quantized(checkpoint_folder, source)) as base:
        name = name_of_base(base)
    assert name.name == str(checkpoint_folder.resolve())
    assert "PEFT cannot load" in name.note
    assert "base_model_name_or_path" in name.note
