"""Pin the exact version of every package that uv resolved.

uv.lock is not tracked: it spells out a package index in each entry. The versions in it are, as
``[tool.uv] constraint-dependencies`` between two marker lines of the root pyproject.toml. A
package that was resolved to several versions gets one line for each, with the Python versions
that it is for.

    uv run tools/pin.py            take the versions from uv.lock
    uv run tools/pin.py --upgrade  resolve the newest versions first
    uv run tools/pin.py --check    change nothing; exit 1 unless uv.lock and the pins agree
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
PINS = re.compile(
    r"(?<=^constraint-dependencies = \[  # written by tools/pin\.py\n).*"
    r"(?=^\]  # end of tools/pin\.py$)",
    re.DOTALL | re.MULTILINE,
)
PYTHON_BOUND = re.compile(r"python_full_version [<>=!]+ '[^']+'")


def pins(lock: dict[str, Any]) -> list[str]:
    """Return one requirement per resolved version, sorted; members of the workspace excepted."""
    packages = [package for package in lock["package"] if "version" in package]
    packages = [package for package in packages if "editable" not in package["source"]]
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


def resolve(*options: str) -> None:
    """Run ``uv lock``."""
    subprocess.run(["uv", "lock", *options], cwd=ROOT, check=True)


def main() -> None:
    """Parse the options; check, or rewrite and resolve under the new pins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--upgrade", action="store_true")
    options = parser.parse_args()
    before = PYPROJECT.read_text(encoding="utf-8")
    if options.upgrade:
        PYPROJECT.write_text(with_pins(before, []), encoding="utf-8")
        resolve("--upgrade")
    if not LOCK.exists():
        sys.exit(f"error: {LOCK}: no such file; run `uv lock` first")
    after = with_pins(before, pins(tomllib.loads(LOCK.read_text(encoding="utf-8"))))
    if not options.check:
        PYPROJECT.write_text(after, encoding="utf-8")
        resolve()
    elif after != before:
        sys.exit(f"error: {PYPROJECT}: the pins are not what uv.lock holds; run tools/pin.py")


if __name__ == "__main__":
    main()
