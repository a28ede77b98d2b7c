"""What the README, the guide and the runbook print can be typed: commands, files, links, Python."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import zip_longest
from pathlib import Path

import pytest
from plastic_export.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("codex/guide/*.md")),
    *sorted(ROOT.glob("codex/*.md")),
]
WITH_PYTHON = [page for page in PAGES if "```python\n" in page.read_text()]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
LONGEST_README = 130
LONGEST_PARAGRAPH = 400
RUNNERS = ("uv run ", "uv run --with scikit-learn --with torch ", "uv run --with gguf ", "")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> Iterator[str]:
    """Every command that a page prints: lines of shell blocks, and code within a sentence."""
    text = page.read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        yield from (line.strip() for line in block.splitlines())
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(r"`([^`\n]+)`", prose)


def words_after(command: str, *beginnings: str) -> list[str] | None:
    """The words of a command behind one of the beginnings; None if it begins with none of them."""
    for runner in RUNNERS:
        for beginning in beginnings:
            if command.startswith(runner + beginning):
                return shlex.split(command.removeprefix(runner + beginning), comments=True)
    return None


@cache
def help_of(*subcommand: str) -> str:
    """What ``plastic SUBCOMMAND --help`` prints; empty if there is no such subcommand."""
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main([*subcommand, "--help"])
    return "" if ended.value.code else printed.getvalue()


def problem_of_plastic(words: list[str]) -> str | None:
    """What is wrong with the arguments of ``plastic``: its subcommand, an option, or a choice."""
    shown = help_of(words[0])
    if not shown:
        return f"there is no subcommand {words[0]}"
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown))
    choices = {o: c.split("|") for o, c in re.findall(r"^ +(--[\w-]+) +\[([\w|]+)\]", shown, re.M)}
    for word, after in zip_longest(words[1:], words[2:], fillvalue=""):
        if word.startswith("-") and word not in options:
            return f"{words[0]} has no option {word}"
        if word in choices and after and after not in choices[word]:
            return f"{words[0]} {word} does not take {after!r}"
    return None


def problem_of_script(words: list[str]) -> str | None:
    """What is wrong with the arguments of a script: the file, or an option that it never names."""
    script = ROOT / words[0]
    if not script.is_file():
        return f"there is no file {words[0]}"
    sources = script.read_text() + "".join(p.read_text() for p in script.parent.rglob("*.py"))
    unknown = [w for w in words[1:] if w.startswith("--") and f'"{w}"' not in sources]
    return f"{words[0]} has no option {unknown[0]}" if unknown else None


def problem_of_pytest(words: list[str]) -> str | None:
    """The first file or folder of tests that is not there."""
    missing = [w for w in words if not w.startswith("-") and not (ROOT / w).exists()]
    return f"there is no {missing[0]}" if missing else None


def problem_of(command: str) -> str | None:
    if (words := words_after(command, "plastic ")) and not words[0].startswith(("-", "...")):
        return problem_of_plastic([word for word in words if word != "..."])
    words = words_after(command, "tools/")
    if words and words[0].endswith(".py") and not words[0].endswith("NAME.py"):
        return problem_of_script([f"tools/{words[0]}", *words[1:]])
    if words := words_after(command, "pytest "):
        return problem_of_pytest(words)
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    problems = {c: problem_of(c) for c in commands(page)}
    assert {c: p for c, p in problems.items() if p} == {}


def test_a_command_that_cannot_be_typed_is_noticed() -> None:
    assert problem_of("uv run plastic squeeze SRC") == "there is no subcommand squeeze"
    assert problem_of("plastic plan SRC --loud") == "plan has no option --loud"
    assert problem_of("plastic plan SRC --format zip") == "plan --format does not take 'zip'"
    assert problem_of("uv run tools/bench/none.py") == "there is no file tools/bench/none.py"
    assert problem_of("tools/demo.py --loud") == "tools/demo.py has no option --loud"
    assert problem_of("uv run pytest packages/none") == "there is no packages/none"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert missing == []


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_readme_has_python() -> None:
    readmes = [page for page in PAGES if page.name == "README.md"]
    assert [name_of(page) for page in readmes if page not in WITH_PYTHON] == []


def test_the_readme_is_short_and_so_are_its_paragraphs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST_README
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST_PARAGRAPH] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"(?:[\w-]+/)+(?!NAME)\w+\.py\b", page.read_text())
    roots = [ROOT, *ROOT.glob("packages/*/src"), *ROOT.glob("packages/*/src/plastic_*")]
    assert [name for name in named if not any((root / name).is_file() for root in roots)] == []


def test_every_name_in_the_glossary_is_in_the_code() -> None:
    text = (ROOT / "codex" / "glossary.md").read_text()
    known = {part.removesuffix(".py") for path in SOURCES for part in path.parts}
    known |= {word for path in SOURCES for word in re.findall(r"\w+", path.read_text())}
    named = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}
    assert (
        sorted(named - known - {"codex", "tests", "integration", "test_rooms", "json", "py"}) == []
    )


def test_the_runbook_lists_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("packages/*/src/plastic_*/*/__init__.py")}
    map_of_rooms = (ROOT / "codex" / "runbook.md").read_text().partition("## Daily commands")[0]
    assert rooms - set(re.findall(r"\w+", map_of_rooms)) == set()
