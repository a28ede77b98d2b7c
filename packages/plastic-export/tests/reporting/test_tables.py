"""Tables at the width of a terminal: no name is broken within a word."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from plastic_export import BitsPlan, MatrixRecord, Offer
from plastic_export.compression.writer import Compressed
from plastic_export.reporting.compress import present_by_plan
from plastic_export.reporting.tables import Name, figures
from rich.console import Console

NAMES = [
    "model.layers.31.self_attn.k_proj",
    "model.layers.31.mlp.switch_mlp.gate_proj",
    "model.layers.31.linear_attn.in_proj_qkvz",
    "lm_head",
]


def printed(part: object, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(part)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 79, 100])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_broken_between_its_parts(name: str, width: int) -> None:
    lines = [line.strip() for line in printed(Name(name), width)]
    assert "".join(lines) == name
    assert all(line.endswith(".") for line in lines[:-1])


def test_a_part_that_is_too_wide_is_folded() -> None:
    assert printed(Name("abcdefghij.k"), 8) == ["abcdefgh", "ij.", "k"]


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_of_compress_breaks_no_word(width: int) -> None:
    """All columns as wide as large models make them."""
    matrices = tuple(
        MatrixRecord(
            name=f"{name}.weight", shape=(151936, 12288), dtype="BF16", source_bytes=2**30,
            stored_bytes=2**28 + 12345, relative_error=0.1234, spectral_error=0.1,
            restored_error=0.1, bits=4, group_size=128, rank=128, factor_bits=16,
            predicted_kl=0.0123456,
        )
        for name in NAMES
    )  # fmt: skip
    chosen = {m.name: Offer(4, 2**28, 1e-3) for m in matrices}
    plan = BitsPlan(3.5, "3.5", 10**9, 0.0, chosen)
    result = Compressed(Path("OUT"), "mixed", plan, matrices, 2**32, 2**30)
    (table,) = (line for line in present_by_plan(result).lines if not isinstance(line, str))
    lines = printed(table, width)
    words = {word for line in lines for word in line.split()}
    parts = {part for name in NAMES for part in name.split(".")}
    names = {part for word in words for part in word.split(".")}
    assert parts - {"31"} <= names
    assert {"151936", "12288", "128", "(16", "bits)", "12.3456"} <= words


def test_columns_of_figures_stand_at_the_right() -> None:
    table = figures("name", "number")
    table.add_row(Name("a.b"), "1")
    assert printed(table, 40)[1].split() == ["a.b", "1"]
