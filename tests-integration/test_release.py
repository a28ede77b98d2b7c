"""The script of a release: what it refuses, and what it builds of this tree."""

from __future__ import annotations

import importlib.util
import os
import shutil
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV") or shutil.which("uv")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """tools/release.py as a module."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metadata_that_an_index_would_refuse_is_named(release: ModuleType) -> None:
    metadata = Message()
    for name in release.ASKED:
        metadata[name] = {"Name": "p", "Version": "1", "License-File": "LICENSE"}.get(name, "x")
    metadata.set_payload("words")
    assert release.metadata_faults(metadata, "p", "1") == []
    assert release.metadata_faults(metadata, "p", "2") == ["Version is '1', not '2'"]
    del metadata["Author"]
    metadata.set_payload(" ")
    assert release.metadata_faults(metadata, "p", "1") == ["no Author", "no description"]


def test_what_a_wheel_holds_too_much_or_too_little_is_named(release: ModuleType) -> None:
    tracked = {"a_b/__init__.py"}
    info = {f"a_b-1.dist-info/{n}" for n in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    assert release.content_faults(tracked | info, "a-b", "1", tracked) == []
    assert release.content_faults(info | {"a_b/x.pyc"}, "a-b", "1", tracked) == [
        "a_b/__init__.py is missing",
        "a_b/x.pyc does not belong there",
    ]


def test_a_changelog_begins_with_the_version(release: ModuleType) -> None:
    assert release.changelog_faults("# C\n\n## 0.2.0\n\n- x\n\n## 0.1.0\n", "0.2.0") == []
    (fault,) = release.changelog_faults("# C\n\n## Unreleased\n", "0.2.0")
    assert fault == "CHANGELOG.md begins with 'Unreleased', not with '0.2.0'"
    assert release.changelog_faults("", "0.2.0")


@pytest.mark.skipif(UV is None, reason="needs uv")
def test_the_smallest_package_builds_to_the_same_bytes_with_all_that_belongs_in(
    release: ModuleType, tmp_path: Path
) -> None:
    one, other = (release.build("plastic-select", tmp_path / name) for name in ("a", "b"))
    assert [release.digest(file) for file in one] == [release.digest(file) for file in other]
    assert release.wheel_faults(one.wheel, "plastic-select") == []
    assert release.sdist_faults(one.sdist) == []
    again = release.from_sdist(one.sdist, tmp_path / "c")
    assert release.digest(again) == release.digest(one.wheel)
