"""Tables of ``datasets`` give the rows that JSONL gives; without the package a line says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from plastic_export import FormatError
from plastic_export.training.data.tables import read_table
from plastic_export.training.data.training_data import read_training_data

TOOLS = [{"type": "function", "function": {"name": "f"}}]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
        ],
        "tools": TOOLS,
    },
    *[
        {"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": "d"}]}
        for c in "bcdef"
    ],
]


@pytest.fixture
def datasets() -> Any:
    """The package, silent."""
    found = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    found.disable_progress_bars()
    return found


@pytest.fixture
def table(datasets: Any) -> Any:
    return datasets.Dataset.from_list(ROWS)


def write(table: Any, folder: Path, form: str) -> Path:
    """Write a table in a form of a folder, with the second half of it to validate on."""
    import datasets

    halves = {"train": table.select(range(3)), "validation": table.select(range(3, 6))}
    folder.mkdir()
    if form == "saved":
        datasets.DatasetDict(halves).save_to_disk(folder)
        return folder
    for name, half in halves.items():
        file = folder / f"{name}-00000-of-00001.{form}"
        if form == "parquet":
            half.to_parquet(file)
        else:
            half.save_to_disk(folder / "work")
            (folder / "work" / "data-00000-of-00001.arrow").rename(file)
    return folder


@pytest.mark.parametrize("form", ["parquet", "arrow", "saved"])
def test_every_form_gives_the_same_rows_as_jsonl(
    form: str, table: Any, tmp_path: Path, tokenizer: Any
) -> None:
    lines = [f"{json.dumps(row)}\n" for row in ROWS]
    (tmp_path / "train.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "valid.jsonl").write_text("".join(lines[3:]))
    folder = write(table, tmp_path / form, form)
    options: dict[str, Any] = {"batch": 2, "window": 200, "mask_prompt": True}
    ours = read_training_data(folder, tokenizer, **options)
    theirs = read_training_data(tmp_path, tokenizer, **options)
    assert ours.digests == theirs.digests
    assert (len(ours.train), len(ours.valid)) == (3, 3)


def test_fields_that_other_rows_have_are_left_out(table: Any, tmp_path: Path) -> None:
    file = write(table, tmp_path / "folder", "parquet") / "train-00000-of-00001.parquet"
    found = read_table(file)
    assert found.unit == "row"
    assert dict(found.rows[1]) == ROWS[0]
    assert dict(found.rows[2]) == ROWS[1] | {"tools": None}


def test_a_row_that_is_none_is_named(table: Any, tmp_path: Path, tokenizer: Any) -> None:
    odd = table.add_column("text", ["a", "b", None, "d", "e", "f"]).remove_columns("messages")
    folder = write(odd, tmp_path / "folder", "parquet")
    with pytest.raises(FormatError, match=r"parquet: row 3: cannot be read: `text` must be a str"):
        read_training_data(folder, tokenizer, batch=2, window=200)


def test_a_damaged_table_is_refused_in_a_line(datasets: Any, tmp_path: Path) -> None:
    for name in ("train.parquet", "train.arrow"):
        (tmp_path / name).write_bytes(b"not a table")
        with pytest.raises(FormatError, match=rf"{name}: .*; write or download it again"):
            read_table(tmp_path / name)


def test_without_the_package_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train.parquet").touch()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'plastic-export\[data\]'"):
        read_table(tmp_path / "train.parquet")
