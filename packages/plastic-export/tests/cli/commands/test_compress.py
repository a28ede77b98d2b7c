"""The two forms of ``plastic compress``: what its help says of them, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plastic_export.cli.command import main


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``plastic compress``."""
    with pytest.raises(SystemExit) as ended:
        main(["compress", *map(str, words)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def sections(help: str) -> dict[str, list[str]]:
    """The options that each section of a help lists, by the first word or two of its title."""
    parts = re.split(r"^(\S.*):\n", help, flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {
        title.partition(" (")[0]: re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.M)
        for title, text in pairs
    }


def test_the_help_lists_the_options_of_each_form_apart(capsys: pytest.CaptureFixture[str]) -> None:
    listed = sections(run(capsys, "--help")[1])
    assert listed["By a plan"] == ["--plan", "--bits-per-weight", "--size", "--keep", "--range"]
    assert {"--keep", "--strategy", "--format", "--calibration"} <= {*listed["By rank"]}
    assert listed["Always"] == [
        "--exact",
        "--no-check",
        "--memory",
        "--force",
        "--revision",
        "--json",
        "--help",
    ]


@pytest.mark.parametrize(
    "words", [["--strategy", "stable"], ["--windows", "9"], ["--include", "*q*"]], ids=" ".join
)
def test_a_plan_has_decided_what_belongs_to_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "plan.json").write_text("{}")
    plan = ["--plan", tmp_path / "plan.json"]
    code, _, errors = run(capsys, "SRC", tmp_path / "out", *plan, *words)
    assert (code, errors) == (2, f"error: --plan has decided; drop {words[0]}\n")


@pytest.mark.parametrize("option", ["--size", "--bits-per-weight"])
def test_a_budget_of_a_plan_needs_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    code, _, errors = run(capsys, "SRC", tmp_path / "out", "--keep", "0.5", option, "4")
    expected = f"error: {option} names a budget of a plan; give the --plan, too\n"
    assert (code, errors) == (2, expected)


def test_one_of_the_forms_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "SRC", tmp_path / "out")
    assert code == 2
    assert errors == "error: give --keep, or a --plan and perhaps which of its budgets\n"


def test_a_plan_is_asked_for_one_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    words = ["--plan", tmp_path / "plan.json", "--keep", "0.5", "--size", "3MB"]
    code, _, errors = run(capsys, "SRC", tmp_path / "out", *words)
    assert code == 2
    assert errors.endswith("each name a budget; give one\n")


@pytest.mark.parametrize("option", ["--window", "--windows"])
def test_an_option_about_a_text_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    code, _, errors = run(capsys, "SRC", tmp_path / "out", "--keep", "0.5", option, "4")
    expected = f"error: {option} is about a text; name one with --calibration\n"
    assert (code, errors) == (2, expected)


def test_what_the_library_calls_an_argument_is_an_option_here(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(capsys, checkpoint_folder, tmp_path / "out", "--keep", "2")
    assert code == 2
    assert errors.startswith("error: --keep must be in (0, 1], got 2.0")
