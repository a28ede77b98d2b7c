from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from plastic_core.files import FormatError
from plastic_export.folder.output import OutputFolder


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def fill(folder: Path, text: str = "new") -> None:
    ours = {"config.json": {}, "sleep.safetensors": {}}
    (folder / "plastic.json").write_text(json.dumps({"files": ours}))
    (folder / "config.json").write_text(text)


def fill_half(output: OutputFolder, error: type[BaseException]) -> None:
    with output as folder:
        (folder / "config.json").write_text("half")
        raise error


def test_folder_appears_with_everything_at_once(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        assert folder == tmp_path / ".out.partial"
        fill(folder)
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "plastic.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_neither_folder_nor_parents(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fill_half(OutputFolder(tmp_path / "a" / "b" / "out"), error)
    assert names(tmp_path) == []


def test_parents_are_made(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "a" / "b" / "out") as folder:
        fill(folder)
    assert (tmp_path / "a" / "b" / "out" / "config.json").read_text() == "new"


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with OutputFolder(tmp_path / "out") as folder:
        fill(folder)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").exists()


def test_earlier_output_is_replaced_by_force_alone(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        fill(folder, "old")
        (folder / "sleep.safetensors").write_text("")
    with pytest.raises(FormatError, match=r"out: the folder is not empty; .* --force"):
        OutputFolder(tmp_path / "out")
    with OutputFolder(tmp_path / "out", force=True) as folder:
        fill(folder)
        assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "plastic.json"]


def test_failure_while_replacing_leaves_the_earlier_output(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        fill(folder, "old")
    with pytest.raises(RuntimeError):
        fill_half(OutputFolder(tmp_path / "out", force=True), RuntimeError)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_folder_that_fills_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    fill(output.__enter__())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(FormatError, match=r"holds no plastic\.json"):
        output.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize("force", [False, True])
def test_folder_that_is_not_ours_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(FormatError, match=r"out: the folder is not empty and holds no plastic\.j"):
        OutputFolder(tmp_path / "out", force=force)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_file_or_link_in_place_of_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "out").write_text("")
    else:
        (tmp_path / "out").symlink_to(tmp_path if kind == "link" else "nothing")
    with pytest.raises(FormatError, match="out: it is a link or a file; choose another folder"):
        OutputFolder(tmp_path / "out", force=True)


def test_folder_is_not_written_over_or_around_what_is_read(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "models") as folder:
        fill(folder)
        (folder / "source").mkdir()
    (tmp_path / "alias").symlink_to("models")
    for source in ("models", "models/source", "alias", "alias/source"):
        with pytest.raises(FormatError, match="models: the checkpoint that is read lies there"):
            OutputFolder(tmp_path / "models", force=True, source=tmp_path / source)


def test_cache_of_the_hub_is_not_written_to(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots"
    snapshot.mkdir(parents=True)
    with pytest.raises(FormatError, match="it lies in the Hub cache"):
        OutputFolder(snapshot / "out")


def test_mode_is_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with OutputFolder(tmp_path / "out") as folder:
            fill(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
