"""What lies in an output and is not ours outlives every replacement, or is refused by name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from plastic_core.files import FormatError
from plastic_export import compress, verify
from plastic_export.folder.foreign import foreign_files
from plastic_export.folder.output import OutputFolder

OURS = ("config.json", "adapters/adapters.safetensors")


def fill(folder: Path, text: str = "new") -> None:
    (folder / "adapters").mkdir()
    for name in OURS:
        (folder / name).write_text(text)
    (folder / "plastic.json").write_text(json.dumps({"files": {name: {} for name in OURS}}))


def add_foreign(out: Path) -> None:
    """Notes, a trained adapter beside ours, a run, an empty folder, links."""
    (out / "notes.txt").write_text("mine")
    (out / "adapters" / "0000100_adapters.safetensors").write_bytes(b"\0trained")
    (out / "run" / "generations").mkdir(parents=True)
    (out / "run" / "generations" / "1.safetensors").write_bytes(b"two days")
    (out / "run" / "generations" / "1.safetensors").chmod(0o400)
    (out / "empty").mkdir()
    (out / "dangling").symlink_to("nowhere")
    (out / "elsewhere").symlink_to("..")
    os.utime(out / "notes.txt", ns=(10**18, 10**18))


def foreign_state(out: Path) -> dict[str, object]:
    """What a file is: where a link leads, or its bytes, rights and time."""
    state: dict[str, object] = {}
    for path in foreign_files(out):
        there = out / path
        if there.is_symlink():
            state[str(path)] = os.readlink(there)
        elif there.is_dir():
            state[str(path)] = "folder"
        else:
            status = there.stat()
            state[str(path)] = (there.read_bytes(), status.st_mode, status.st_mtime_ns)
    return state


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with OutputFolder(tmp_path / "out") as folder:
        fill(folder, "old")
    add_foreign(tmp_path / "out")
    return tmp_path / "out"


def replace(out: Path) -> None:
    with OutputFolder(out, force=True) as folder:
        fill(folder)


def assert_replaced(out: Path, before: dict[str, object]) -> None:
    assert len(before) == 6
    assert foreign_state(out) == before
    assert [(out / name).read_text() for name in OURS] == ["new", "new"]
    assert os.listdir(out.parent) == ["out"]


def test_foreign_files_are_carried_over(out: Path) -> None:
    before = foreign_state(out)
    (out / "run").chmod(0o555)
    replace(out)
    assert_replaced(out, before)
    assert (out / "run").stat().st_mode & 0o777 == 0o555
    assert (out / "notes.txt").stat().st_nlink == 1


def test_they_are_copied_where_there_are_no_hard_links(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    before = foreign_state(out)
    monkeypatch.setattr("os.link", refused)
    replace(out)
    assert_replaced(out, before)


@pytest.mark.parametrize("call", ["link", "mkdir", "rename", "replace", "unlink", "rmdir"])
def test_a_death_at_any_call_loses_none(
    out: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The N-th call kills the process: an exception after which no clean-up may run."""
    before, real = foreign_state(out), getattr(os, call)
    for count in range(40):
        left = [count]

        def dying(*arguments: object, left: list[int] = left, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise SystemExit("killed")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(OutputFolder, "_leave", OutputFolder._close)
            patch.setattr(f"os.{call}", dying)
            try:
                replace(out)
            except SystemExit:
                there = out if out.exists() else out.with_name(".out.replaced")
                assert foreign_state(there) == before
            else:
                break
        replace(out)
        assert_replaced(out, before)
    else:
        raise AssertionError("never came to an end")


def test_what_came_while_the_folder_was_replaced_is_there(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source == out:
            (out / "late.txt").write_text("late")
            (out / "notes.txt").unlink()
            (out / "notes.txt").write_text("newer")
        real(source, target)

    monkeypatch.setattr("os.rename", rename)
    replace(out)
    assert (out / "late.txt").read_text() == "late"
    assert (out / "notes.txt").read_text() == "newer"


def test_an_edit_after_a_death_is_not_undone(out: Path) -> None:
    replaced = out.with_name(".out.replaced")
    out.rename(replaced)
    with OutputFolder(out.with_name("other")) as folder:
        fill(folder)
    out.with_name("other").rename(out)
    (out / "notes.txt").write_text("edited since")
    replace(out)
    assert (out / "notes.txt").read_text() == "edited since"
    assert (out / "run" / "generations" / "1.safetensors").read_bytes() == b"two days"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.json/mine", "model-mine.safetensors"]
)
def test_foreign_files_in_the_way_are_named_before_the_work(
    out: Path, tmp_path: Path, name: str
) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    (tmp_path / "tokenizer.json").write_text("theirs")
    output = OutputFolder(out, force=True)
    with pytest.raises(
        FormatError, match=f"out: '{name}': not written by this package, .* move it"
    ):
        output.check_names((), {"tokenizer.json": tmp_path / "tokenizer.json"})
    (out / name).write_text("theirs")
    if name == "tokenizer.json":
        output.check_names((), {"tokenizer.json": tmp_path / "tokenizer.json"})


def test_what_is_in_the_way_in_the_end_is_refused(out: Path) -> None:
    before = foreign_state(out)
    output = OutputFolder(out, force=True)
    folder = output.__enter__()
    fill(folder)
    (folder / "notes.txt").write_text("ours")
    with pytest.raises(FormatError, match=r"'notes\.txt': not written by this package"):
        output.__exit__(None, None, None)
    assert foreign_state(out) == before
    assert os.listdir(out.parent) == ["out"]


def test_everything_is_foreign_beside_a_manifest_that_cannot_be_read(out: Path) -> None:
    (out / "plastic.json").write_text("{")
    with pytest.raises(FormatError, match=r"'config\.json'.*: not written by this package"):
        OutputFolder(out, force=True).check_names((), {})


def compressed(checkpoint: Path, out: Path, **options: Any) -> None:
    compress(checkpoint, out, keep=0.5, format="dense", **options)


def test_compress_replaces_its_own_files_alone(checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compressed(checkpoint_folder, out)
    (out / "adapters").mkdir()
    (out / "adapters" / "adapters.safetensors").write_bytes(b"trained")
    compress(checkpoint_folder, out, keep=0.4, format="factored", force=True)
    assert (out / "adapters" / "adapters.safetensors").read_bytes() == b"trained"
    assert verify(out) == []
    (out / "model-mine.safetensors").write_bytes(b"mine")
    with pytest.raises(FormatError, match=r"out: 'model-mine\.safetensors': not written by"):
        compressed(checkpoint_folder, out, force=True)
    assert (out / "model-mine.safetensors").read_bytes() == b"mine"


def test_a_replacement_cut_at_its_renaming_goes_on_with_the_newest_foreign_files(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    compress(checkpoint_folder, out, keep=0.4)
    (out / "notes.txt").write_text("mine")
    (out / "gone.txt").write_text("to be deleted")
    before = sorted(os.listdir(tmp_path))

    def dying(*arguments: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "_leave", OutputFolder._close)
        patch.setattr("plastic_export.folder.output.os.rename", dying)
        with pytest.raises(SystemExit):
            compressed(checkpoint_folder, out, force=True)
    assert (tmp_path / ".out.partial" / "notes.txt").exists()
    (out / "notes.txt").unlink()
    (out / "notes.txt").write_text("newer")
    (out / "gone.txt").unlink()
    compressed(checkpoint_folder, out, force=True)
    assert [str(path) for path in foreign_files(out)] == ["notes.txt"]
    assert (out / "notes.txt").read_text() == "newer"
    assert verify(out) == []
    assert sorted(os.listdir(tmp_path)) == before
