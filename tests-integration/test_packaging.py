"""The four packages fit together: directions, bounds and versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MEMBERS = {path.parent.name: path for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
ALLOWED = {
    "plastic-select": set(),
    "plastic-core": set(),
    "plastic-runtime": {"plastic-core", "plastic-select"},
    "plastic-export": {"plastic-core", "plastic-select", "plastic-runtime"},
}


def project(name: str) -> dict[str, Any]:
    return tomllib.loads(MEMBERS[name].read_text())["project"]


@pytest.mark.parametrize("name", ALLOWED)
def test_a_package_depends_only_on_the_siblings_below_it(name: str) -> None:
    required = {Requirement(r).name for r in project(name)["dependencies"]}
    assert required & MEMBERS.keys() == ALLOWED[name]


@pytest.mark.parametrize("name", ALLOWED)
def test_the_source_imports_only_the_siblings_that_are_declared(name: str) -> None:
    source = MEMBERS[name].parent / "src"
    imported = {
        match.replace("_", "-")
        for path in source.rglob("*.py")
        for match in re.findall(r"^\s*(?:from|import) (plastic_\w+)", path.read_text(), re.M)
    }
    own = {name, "plastic-command"}  # the door of the command, in the wheel of plastic-export
    assert imported <= ALLOWED[name] | own


@pytest.mark.parametrize("name", ALLOWED)
def test_every_bound_admits_the_version_of_the_sibling_in_this_tree(name: str) -> None:
    for requirement in map(Requirement, project(name)["dependencies"]):
        if requirement.name in MEMBERS:
            assert requirement.specifier.contains(project(requirement.name)["version"])


@pytest.mark.parametrize("name", ALLOWED)
def test_each_package_is_complete(name: str) -> None:
    folder = MEMBERS[name].parent
    assert (folder / "src" / name.replace("-", "_") / "py.typed").is_file()
    assert project(name)["version"] in (folder / "CHANGELOG.md").read_text()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    about = project(name)
    assert about["license-files"] == ["LICENSE"]
    assert about["authors"] == [{"name": "mlx-plastic-rank maintainers"}]
    assert about["keywords"]
    floor = about["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {floor}" in about["classifiers"]


def test_the_range_of_mlx_lm_is_one_and_ends_after_the_pin() -> None:
    tables = project("plastic-export")["optional-dependencies"]
    ranges = {
        str(r.specifier) for t in tables.values() for r in map(Requirement, t) if "mlx-lm" in str(r)
    }
    assert len(ranges) == 1
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    (pin,) = (r for r in map(Requirement, pins["constraint-dependencies"]) if r.name == "mlx-lm")
    (version,) = (s.version for s in pin.specifier)
    assert Requirement(f"mlx-lm{ranges.pop()}").specifier.contains(version)


def test_the_command_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "plastic_export", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert project("plastic-export")["version"] in done.stdout
