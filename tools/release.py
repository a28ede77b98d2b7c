"""Build what a release publishes, prove it, tag it, and stop before it is published.

    uv run tools/release.py                      all four packages: build and check
    uv run tools/release.py plastic-core --tag   one package, and its tag once everything holds

Checked are: a tree without changes; a CHANGELOG that begins with the version; a tag that is not
taken; a second build of the same bytes, and a third from the sdist; what is in the wheel (the
package's tracked files, the licence, nothing else); and the metadata that an index asks for. The
files wait in dist/ with their digests in SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("plastic-select", "plastic-core", "plastic-runtime", "plastic-export")
ASKED = (
    "Name",
    "Version",
    "Summary",
    "Description-Content-Type",
    "License-Expression",
    "License-File",
    "Author",
    "Keywords",
    "Classifier",
    "Requires-Python",
)
"""The fields of METADATA that each package must have."""


class Built(NamedTuple):
    """The two files of a package."""

    wheel: Path
    sdist: Path


def printed(*words: str | Path) -> str:
    """Run a command in the root of the repository; return what it printed."""
    text = [*map(str, words)]
    done = subprocess.run(text, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(text)}\n{done.stdout}{done.stderr}")
    return done.stdout


def version_of(package: str) -> str:
    """Return the version that its pyproject.toml states."""
    content = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
    return str(content["project"]["version"])


def build(package: str, out: Path) -> Built:
    """Build wheel and sdist as they are published: siblings by their bounds, not by their place."""
    printed("uv", "build", "--quiet", "--package", package, "--no-sources", "--out-dir", out)
    stem = package.replace("-", "_")
    return Built(next(out.glob(f"{stem}-*.whl")), next(out.glob(f"{stem}-*.tar.gz")))


def from_sdist(sdist: Path, out: Path) -> Path:
    """Build the wheel again from the sdist alone."""
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    (folder,) = out.iterdir()
    printed("uv", "build", "--quiet", "--wheel", "--no-sources", "--out-dir", out / "dist", folder)
    return next((out / "dist").glob("*.whl"))


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def metadata_faults(metadata: Message, package: str, version: str) -> list[str]:
    """Return what METADATA lacks of what an index asks for, or says otherwise."""
    faults = [f"no {name}" for name in ASKED if not metadata.get(name)]
    expected = {"Name": package, "Version": version, "License-File": "LICENSE"}
    faults += [
        f"{name} is {metadata[name]!r}, not {value!r}"
        for name, value in expected.items()
        if metadata[name] not in (None, value)
    ]
    if not str(metadata.get_payload()).strip():
        faults.append("no description")
    return faults


def content_faults(names: set[str], package: str, version: str, tracked: set[str]) -> list[str]:
    """Return what a wheel holds too much or too little.

    Args:
        names: Paths in the wheel.
        package: The package.
        version: Its version.
        tracked: Paths below its ``src`` that git knows.
    """
    info = f"{package.replace('-', '_')}-{version}.dist-info"
    needed = tracked | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    needed |= {f"{info}/licenses/LICENSE"}
    allowed = needed | {f"{info}/entry_points.txt"}
    return [
        *(f"{name} is missing" for name in sorted(needed - names)),
        *(f"{name} does not belong there" for name in sorted(names - allowed)),
    ]


def wheel_faults(wheel: Path, package: str) -> list[str]:
    """Return what is wrong with the content or the metadata of a wheel."""
    version = version_of(package)
    source = f"packages/{package}/src/"
    tracked = {
        line.removeprefix(source) for line in printed("git", "ls-files", source).splitlines()
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(info))
    faults = content_faults(names, package, version, tracked)
    return faults + metadata_faults(metadata, package, version)


def sdist_faults(sdist: Path) -> list[str]:
    """Return which of the files that an sdist must have it has not."""
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("PKG-INFO", "LICENSE", "README.md", "pyproject.toml")
    return [f"{name} is missing in the sdist" for name in needed if name not in inside]


def changelog_faults(text: str, version: str) -> list[str]:
    """Return what is wrong with a CHANGELOG whose newest entry should be that of the version."""
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if not headings or headings[0] != version:
        first = headings[0] if headings else "nothing"
        return [f"CHANGELOG.md begins with {first!r}, not with {version!r}"]
    return []


def faults_of(package: str, dist: Path) -> list[str]:
    """Build a package into ``dist``, and return everything that speaks against publishing it."""
    changelog = (ROOT / "packages" / package / "CHANGELOG.md").read_text()
    with tempfile.TemporaryDirectory() as name:
        again, source = Path(name, "again"), Path(name, "source")
        first, second = build(package, dist), build(package, again)
        third = from_sdist(first.sdist, source)
        faults = [
            f"{one.name} is not the same bytes when it is built {how}"
            for one, other, how in (
                (first.wheel, second.wheel, "again"),
                (first.sdist, second.sdist, "again"),
                (first.wheel, third, "from the sdist"),
            )
            if digest(one) != digest(other)
        ]
    if printed("git", "tag", "--list", tag_of(package)).strip():
        faults.append(f"the tag {tag_of(package)} is taken")
    faults += changelog_faults(changelog, version_of(package))
    return faults + wheel_faults(first.wheel, package) + sdist_faults(first.sdist)


def tag_of(package: str) -> str:
    """Return the tag of a release."""
    return f"{package}-v{version_of(package)}"


def main() -> None:
    """Build and check; tag if that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(PACKAGES))
    parser.add_argument("--tag", action="store_true", help="tag the commit if everything holds")
    given = parser.parse_args()
    packages = given.packages or list(PACKAGES)
    if unknown := set(packages) - set(PACKAGES):
        parser.error(f"no package {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
    faults = []
    if printed("git", "status", "--porcelain").strip():
        faults.append("the tree has changes that are not committed")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in packages:
        found = faults_of(package, dist)
        print(f"{package} {version_of(package)}: {'; '.join(found) or 'holds'}")
        faults += found
    files = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    sums = "".join(f"{digest(file)}  {file.name}\n" for file in files)
    (dist / "SHA256SUMS").write_text(sums)
    print(sums, end="")
    if faults:
        sys.exit("nothing was tagged: " + "; ".join(dict.fromkeys(faults)))
    for package in packages if given.tag else ():
        printed("git", "tag", "--annotate", tag_of(package), "--message", tag_of(package))
        print(f"tagged {tag_of(package)}")
    print("not published: look at dist/, push the tags, then `uv publish`")


if __name__ == "__main__":
    main()
