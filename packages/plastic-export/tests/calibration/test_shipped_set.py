"""The shipped calibration texts: of many kinds, evenly mixed, and taken where none are given."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from plastic_export.calibration.shipped_set import SHIPPED, VERSION, shipped_record
from plastic_export.calibration.text import Calibration
from plastic_export.cli.command import main

DIGESTS = {1: "18435142f54bbdbca0c5c048d245328c8ed739c827c8d0b0b2d3b938fb43f845"}
"""The texts of every version: a change of them is a new version."""
KINDS = {"chat", "code", "documentation", "language", "mathematics", "prose", "table"}
FEW = ("--window", 24, "--windows", 8)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]


def test_a_version_is_one_set_of_texts() -> None:
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == DIGESTS[VERSION]
    assert 800_000 < SHIPPED.stat().st_size < 1_100_000


def test_every_row_names_its_kind_and_a_source_with_a_licence(rows: list[dict[str, Any]]) -> None:
    readme = (SHIPPED.parent / "README.md").read_text()
    assert {row["kind"] for row in rows} == KINDS
    for row in rows:
        assert f"| `{row['source']}` |" in readme
        assert ("messages" in row) == (row["kind"] == "chat")


def test_every_kind_is_spread_evenly(rows: list[dict[str, Any]]) -> None:
    def shares(part: list[dict[str, Any]]) -> dict[str, float]:
        sizes = Counter[str]()
        for row in part:
            sizes[row["kind"]] += len(json.dumps(row, ensure_ascii=False).encode())
        return {kind: sizes[kind] / sizes.total() for kind in KINDS}

    whole = shares(rows)
    for start in range(0, len(rows) - 80, 80):
        for kind, share in shares(rows[start : start + 80]).items():
            assert abs(share - whole[kind]) < 0.1


def test_no_row_is_there_twice(rows: list[dict[str, Any]]) -> None:
    texts = Counter(row.get("text") or json.dumps(row["messages"]) for row in rows)
    assert max(texts.values()) == 1


def test_the_record_of_a_calibration_names_the_set(text: Path) -> None:
    record = Calibration().record()
    assert record["set"] == shipped_record()
    assert record["sha256"] == DIGESTS[VERSION]
    assert "set" not in Calibration(text).record()
    assert Calibration().name == "the shipped texts"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    return out


def test_commands_without_a_text_take_the_set(
    readable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    words = ("--bits", "4", "--group-size", 32, "--bits-per-weight", 8, "--out", plan)
    shown = run(capsys, "plan", readable, *words, *FEW)
    assert "mixed texts of plastic-export, version 1" in shown
    assert json.loads(plan.read_text())["calibration"]["set"] == shipped_record()
    run(capsys, "compress", readable, out, "--plan", plan)
    run(capsys, "heal", out, "--reference", readable, "--steps", 1, *FEW)
    healing = json.loads((out / "plastic.json").read_text())
    assert json.dumps(shipped_record()) in json.dumps(healing)


def test_a_strategy_that_needs_activations_takes_the_set(
    readable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "compress", readable, out, "--keep", 0.8, "--strategy", "activation", *FEW)
    options = json.loads((out / "plastic.json").read_text())["options"]
    assert options["calibration"]["set"] == shipped_record()
