"""The pins, and the digests of what may be installed: they agree, and uv holds itself to them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements-dev.txt"
UV = os.environ.get("UV") or shutil.which("uv")


@pytest.fixture(scope="module")
def pin() -> ModuleType:
    """tools/pin.py as a module."""
    spec = importlib.util.spec_from_file_location("pin", ROOT / "tools" / "pin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_has_the_digests_of_its_files(pin: ModuleType) -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    pins = {line.partition(" ;")[0] for line in options["constraint-dependencies"]}
    digests = pin.required_digests(REQUIREMENTS.read_text())
    assert digests.keys() == pins
    assert all(re.fullmatch("[0-9a-f]{64}", d) for files in digests.values() for d in files)
    assert all(digests.values())


def test_the_requirements_name_no_place() -> None:
    assert not re.search(r"://|@ |index|--find-links", REQUIREMENTS.read_text())


def test_one_changed_digest_is_a_difference_and_is_named(pin: ModuleType) -> None:
    digests = pin.required_digests(REQUIREMENTS.read_text())
    text = REQUIREMENTS.read_text()
    start = text.index("--hash=sha256:", text.index("\npluggy==")) + len("--hash=sha256:")
    changed = text[:start] + flipped(text[start]) + text[start + 1 :]
    assert pin.differences(digests, digests) == []
    (line,) = pin.differences(pin.required_digests(changed), digests)
    assert line.startswith("pluggy==")


def flipped(digit: str) -> str:
    return "0" if digit != "0" else "1"


@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_uv_refuses_a_file_whose_digest_is_not_among_them(tmp_path: Path) -> None:
    wheel = forge_wheel(tmp_path / "files", "pluggy", pinned_version("pluggy"))
    line = requirement("pluggy")
    refused = install(line, tmp_path)
    assert refused.returncode != 0
    assert "hash" in refused.stderr.lower()
    assert not (tmp_path / "target" / "pluggy.py").exists()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    accepted = install(re.sub(r"sha256:\w+", f"sha256:{digest}", line), tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / "target" / "pluggy.py").exists()


def requirement(name: str) -> str:
    """The requirement of a package with its digests, as the file has it."""
    found = re.search(
        rf"^{name}==[^\n]*(?:\n    --hash=\S+(?: \\)?)*$", REQUIREMENTS.read_text(), re.MULTILINE
    )
    assert found is not None
    return found[0]


def pinned_version(name: str) -> str:
    return requirement(name).split("==")[1].split()[0]


def forge_wheel(folder: Path, name: str, version: str) -> Path:
    """Write a wheel of that name and version that holds something else."""
    folder.mkdir()
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "forged = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, content)
    return path


def install(requirements: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Install what these requirements name, from the forged files alone."""
    file = folder / "requirements.txt"
    file.write_text(requirements)
    options = ["--require-hashes", "--no-deps", "--offline", "--no-index", "--no-cache"]
    places = ["--find-links", folder / "files", "--target", folder / "target"]
    command = [UV, "pip", "install", "--python", sys.executable, *options, *places, "-r", file]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)
