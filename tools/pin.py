"""Pin the exact version of every package that uv resolved, and the digests of its files.

uv.lock is not tracked: it spells out a package index in each entry. What it holds beside that is
kept in two places:

- the versions, as ``[tool.uv] constraint-dependencies`` between two marker lines of the root
  pyproject.toml: they bind every resolution. A package that was resolved to several versions gets
  one line for each, with the Python versions that it is for;
- the versions and the SHA-256 of every file of them, in requirements-dev.txt: the development
  environment of all packages, for ``uv pip install --require-hashes -r requirements-dev.txt``.

    uv run tools/pin.py            take both from uv.lock
    uv run tools/pin.py --upgrade  resolve the newest versions first
    uv run tools/pin.py --check    change nothing; exit 1 unless uv.lock agrees with both
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT, LOCK = ROOT / "pyproject.toml", ROOT / "uv.lock"
REQUIREMENTS = ROOT / "requirements-dev.txt"
HEADER = "# Written by tools/pin.py; installed with --require-hashes.\n"
EXPORT = (
    "uv export --quiet --frozen --all-packages --all-groups --all-extras --no-emit-workspace "
    "--no-emit-index-url --no-annotate --no-header"
)
PINS = re.compile(
    r"(?<=^constraint-dependencies = \[  # written by tools/pin\.py\n).*"
    r"(?=^\]  # end of tools/pin\.py$)",
    re.DOTALL | re.MULTILINE,
)
PYTHON_BOUND = re.compile(r"python_full_version [<>=!]+ '[^']+'")
REQUIREMENT = re.compile(
    r"^([\w.-]+==[^ ]+)(?: ;[^\\\n]*)?((?: \\\n    --hash=sha256:\w+)*)$", re.M
)

Digests = dict[str, set[str]]
"""The SHA-256 of every file of a package, by ``name==version``."""


def resolved(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the packages of uv.lock but for the members of the workspace."""
    packages = [package for package in lock["package"] if "version" in package]
    return [package for package in packages if "editable" not in package["source"]]


def pins(lock: dict[str, Any]) -> list[str]:
    """Return one requirement per resolved version, sorted."""
    packages = resolved(lock)
    versions = Counter(package["name"] for package in packages)
    return sorted(
        f"{package['name']}=={package['version']}"
        + (f" ; {python_marker(package)}" if versions[package["name"]] > 1 else "")
        for package in packages
    )


def python_marker(package: dict[str, Any]) -> str:
    """Return when to use this version; uv forks by platform too, which tells no two apart."""
    forks = package["resolution-markers"]
    return " or ".join(sorted({" and ".join(PYTHON_BOUND.findall(fork)) for fork in forks}))


def with_pins(text: str, lines: list[str]) -> str:
    """Return the text of pyproject.toml with these lines between the markers."""
    block = "".join(f'    "{line}",\n' for line in lines)
    text, count = PINS.subn(lambda _: block, text)
    if count != 1:
        sys.exit(f"error: {PYPROJECT}: the two marker lines of tools/pin.py must occur once each")
    return text


def locked_digests(lock: dict[str, Any]) -> Digests:
    """Return what uv.lock says of the files of every package."""
    return {
        f"{package['name']}=={package['version']}": {
            file["hash"].removeprefix("sha256:")
            for file in (*package.get("wheels", ()), package.get("sdist", {}))
            if file
        }
        for package in resolved(lock)
    }


def required_digests(text: str) -> Digests:
    """Return what a requirements file says of them."""
    return {
        requirement: set(re.findall(r"sha256:(\w+)", hashes))
        for requirement, hashes in REQUIREMENT.findall(text)
    }


def differences(required: Digests, locked: Digests) -> list[str]:
    """Return one line for each package that the two do not agree on."""
    every = sorted(required.keys() | locked.keys())
    return [
        f"{name}: {len(required.get(name, ()))} files there, {len(locked.get(name, ()))} in uv.lock"
        for name in every
        if required.get(name) != locked.get(name)
    ]


def check(lock: dict[str, Any]) -> None:
    """Exit with what differs, if anything does."""
    text = PYPROJECT.read_text(encoding="utf-8")
    if with_pins(text, pins(lock)) != text:
        sys.exit(f"error: {PYPROJECT}: the pins are not what uv.lock holds; run tools/pin.py")
    required = REQUIREMENTS.read_text(encoding="utf-8") if REQUIREMENTS.exists() else ""
    if wrong := differences(required_digests(required), locked_digests(lock)):
        lines = "\n  ".join(wrong)
        sys.exit(f"error: {REQUIREMENTS}: not what uv.lock holds; run tools/pin.py\n  {lines}")


def read_lock() -> dict[str, Any]:
    """Read uv.lock."""
    if not LOCK.exists():
        sys.exit(f"error: {LOCK}: no such file; run `uv lock` first")
    return tomllib.loads(LOCK.read_text(encoding="utf-8"))


def write(upgrade: bool) -> None:
    """Rewrite both places, and resolve under the new pins."""
    before = PYPROJECT.read_text(encoding="utf-8")
    if upgrade:
        PYPROJECT.write_text(with_pins(before, []), encoding="utf-8")
        subprocess.run(["uv", "lock", "--upgrade"], cwd=ROOT, check=True)
    PYPROJECT.write_text(with_pins(before, pins(read_lock())), encoding="utf-8")
    subprocess.run(["uv", "lock"], cwd=ROOT, check=True)
    done = subprocess.run(EXPORT.split(), cwd=ROOT, check=True, capture_output=True, text=True)
    REQUIREMENTS.write_text(HEADER + done.stdout, encoding="utf-8")


def main() -> None:
    """Parse the options; check, or rewrite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--upgrade", action="store_true")
    options = parser.parse_args()
    if options.check:
        check(read_lock())
    else:
        write(options.upgrade)


if __name__ == "__main__":
    main()
