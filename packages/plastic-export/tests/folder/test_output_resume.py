"""Runs that are cut and gone on with: the same bytes, or a refusal that names the difference."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import BusyError, FolderLock, FormatError, sha256_file
from plastic_export import compress, execute_plan, verify
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.compression.plan_file import LossPlan
from plastic_export.folder.output import OutputFolder
from plastic_export.plan.offers import Choice

MATRIX = "model.layers.0.mlp.down_proj.weight"
CHOICES: dict[str, Choice] = {
    MATRIX: Choice(4, 4, 8),
    "model.layers.1.self_attn.q_proj.weight": Choice(None, 8, 16),
    "model.layers.1.mlp.up_proj.weight": Choice(3),
}

Run = Any


def tree(folder: Path) -> dict[str, str]:
    """The digest of every file under a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def cut_after(count: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    """A ``track`` that stops the run before its ``count``-th turn of any loop."""
    left = [count]

    def track(items: Sequence[Any], description: str) -> Iterator[Any]:
        for item in items:
            if left[0] == 0:
                raise error("cut")
            left[0] -= 1
            yield item

    return track


@pytest.fixture(params=["factored", "plan"])
def run(
    request: pytest.FixtureRequest,
    checkpoint_folder: Path,
    tmp_path: Path,
    make_plan: Callable[..., LossPlan],
) -> Run:
    """``run(out, **options)``: a compression by rank, or by a plan; ``middle`` of its turns."""
    if request.param == "plan":
        make_plan(checkpoint_folder, tmp_path / "plan.json", CHOICES)

        def planned(out: Path, **options: Any) -> Any:
            return execute_plan(checkpoint_folder, out, tmp_path / "plan.json", **options)

        planned.middle = 12  # type: ignore[attr-defined]
        return planned

    def ranked(out: Path, **options: Any) -> Any:
        return compress(checkpoint_folder, out, keep=0.5, format=request.param, **options)

    ranked.middle = 25  # type: ignore[attr-defined]
    return ranked


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several model files even for a tiny checkpoint."""
    defaults = {"stem": "model", "limit": 40_000, "keep": False}
    monkeypatch.setattr("plastic_export.folder.shards.Shards.__init__.__kwdefaults__", defaults)


@pytest.mark.usefixtures("small_shards")
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    expected = tree(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("model-")]) > 2
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / "out"
    for count in range(1, 60, 6):
        try:
            run(out, track=cut_after(count))
        except KeyboardInterrupt:
            assert not out.exists()
        else:
            break
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out"])
    assert tree(out) == expected
    assert verify(out) == []
    again = run(out)
    assert (again.matrices, again.plan) == (whole.matrices, whole.plan)
    assert tree(out) == expected


def test_what_is_not_as_it_was_written_is_written_again(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    for damage in ("flip", "cut", "gone", "tail"):
        out = tmp_path / damage
        with pytest.raises(KeyboardInterrupt):
            run(out, track=cut_after(run.middle))
        (file,) = (tmp_path / f".{damage}.partial").glob(".model*.tmp")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(
                {"flip": content, "cut": content[:-99], "tail": file.read_bytes() + b"x"}[damage]
            )
        run(out)
        assert tree(out) == tree(tmp_path / "whole")


def test_a_torn_or_damaged_journal_is_believed_up_to_the_damage(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", track=cut_after(run.middle))
    journal = tmp_path / ".out.partial" / ".journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b"{", b"[", 1)
    journal.write_bytes(b"".join(lines)[:-20])
    run(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_with_its_journal_lost_the_run_begins_anew(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", track=cut_after(run.middle))
    partial = tmp_path / ".out.partial"
    (partial / ".journal.jsonl").write_bytes(b"")
    (partial / "plastic.json").write_bytes(b"")
    (partial / "model-00009-of-00009.safetensors").write_bytes(b"")
    run(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_force_begins_anew_where_other_options_were_cut(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error):
            compress(
                checkpoint_folder,
                tmp_path / "out",
                keep=0.5,
                force=True,
                track=cut_after(25, error),
            )
    with pytest.raises(FormatError, match=r"keep 0\.5, this one has 0\.4; .* --force"):
        compress(checkpoint_folder, tmp_path / "out", keep=0.4)
    compress(checkpoint_folder, tmp_path / "out", keep=0.4, force=True)
    compress(checkpoint_folder, tmp_path / "whole", keep=0.4)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_complete_folder_without_its_name_is_judged_by_its_manifest(
    checkpoint_folder: Path, tmp_path: Path, force: bool
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    compress(checkpoint_folder, out, keep=0.5)
    whole = tree(out)
    out.rename(partial)
    if force:
        assert compress(checkpoint_folder, out, keep=0.4, force=True).plan.keep == 0.4
        assert verify(out) == []
    else:
        with pytest.raises(FormatError, match=r"keep 0\.5, this one has 0\.4"):
            compress(checkpoint_folder, out, keep=0.4)
        compress(checkpoint_folder, out, keep=0.5)
        assert tree(out) == whole
    assert not partial.exists()


def test_force_writes_a_finished_output_again(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out")
    whole = tree(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    run(tmp_path / "out")  # finished already: nothing is done
    assert tree(tmp_path / "out") != whole
    run(tmp_path / "out", force=True)
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_the_error_says_how_to_go_on(
    checkpoint_folder: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error) as caught:
        compress(checkpoint_folder, tmp_path / "out", keep=0.5, track=cut_after(9, error))
    (note,) = caught.value.__notes__
    assert str(tmp_path / ".out.partial") in note
    assert "the same command goes on with it" in note


def test_bad_input_leaves_nothing_to_go_on_with(checkpoint_folder: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="cut"):
        compress(checkpoint_folder, tmp_path / "out", keep=0.5, track=cut_after(9, ValueError))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"keep": 0.4}, r"had options\.keep 0\.5, this one has 0\.4"),
        ({"strategy": "energy"}, r"had options\.strategy 'stable', this one has 'energy'"),
        ({"format": "dense"}, r"had options\.format 'factored', this one has 'dense'"),
        ({"include": ["*q_proj*"]}, r"had options\.include \[\], this one has \['\*q_proj\*'\]"),
        ({"exclude": ["*q_proj*"]}, r"had options\.exclude"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused_by_name(
    checkpoint_folder: Path,
    tmp_path: Path,
    options: dict[str, Any],
    difference: str,
    finished: bool,
) -> None:
    out = tmp_path / "out"
    if finished:
        compress(checkpoint_folder, out, keep=0.5)
    else:
        with pytest.raises(KeyboardInterrupt):
            compress(checkpoint_folder, out, keep=0.5, track=cut_after(30))
    left = tree(tmp_path)
    with pytest.raises(FormatError, match=difference):
        compress(checkpoint_folder, out, **({"keep": 0.5} | options))
    assert {k: v for k, v in tree(tmp_path).items() if ".holder" not in k} == {
        k: v for k, v in left.items() if ".holder" not in k
    }


def test_another_version_is_refused_by_name(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint_folder, tmp_path / "out", keep=0.5, track=cut_after(30))
    monkeypatch.setattr("plastic_export.folder.manifest.version", lambda name: "99")
    with pytest.raises(
        FormatError, match=r"had versions\.plastic-select '\d.*', this one has '99'"
    ):
        compress(checkpoint_folder, tmp_path / "out", keep=0.5)


@pytest.mark.parametrize("changed", ["weights", "config", "tokenizer"])
def test_another_source_is_refused_by_name(
    make_checkpoint: Callable[..., Path],
    tiny_weights: dict[str, mx.array],
    tmp_path: Path,
    changed: str,
) -> None:
    source = make_checkpoint()
    with pytest.raises(KeyboardInterrupt):
        compress(source, tmp_path / "out", keep=0.5, track=cut_after(30))
    if changed == "weights":
        other = tiny_weights | {MATRIX: tiny_weights[MATRIX] * 2}
        shutil.rmtree(source)
        make_checkpoint(weights=other)
        difference = r"had source\.files\.model\.safetensors\.sha256 '"
    elif changed == "config":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
        difference = r"had source\.side_files\.config\.json\."
    else:
        (source / "tokenizer.model").write_bytes(b"another")
        difference = r"had source\.side_files\.tokenizer\.model\."
    with pytest.raises(FormatError, match=difference):
        compress(source, tmp_path / "out", keep=0.5)


def test_grams_that_come_out_otherwise_are_refused(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plastic_export.calibration.text import Calibration

    text = tmp_path / "text"
    text.write_text("text")
    value = [1.0]

    def grams(checkpoint: Checkpoint, calibration: Calibration, *, track: Any) -> dict[str, Any]:
        return {MATRIX.removesuffix(".weight"): value[0] * np.eye(96)}

    monkeypatch.setattr("plastic_export.compression.spectra.calibrate", grams)
    options: Any = {
        "keep": 0.5,
        "strategy": "activation",
        "calibration": Calibration(text),
        "include": [MATRIX],
    }
    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint_folder, tmp_path / "out", track=cut_after(3), **options)
    value[0] = 2.0
    with pytest.raises(FormatError, match=r"\.journal\.jsonl: .* had Grams '.*delete its folder"):
        compress(checkpoint_folder, tmp_path / "out", **options)
    value[0] = 1.0
    compress(checkpoint_folder, tmp_path / "out", **options)
    compress(checkpoint_folder, tmp_path / "whole", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_folder_being_written_is_busy(checkpoint_folder: Path, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / ".out.partial")
    for force in (False, True):
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on .*pytest"):
            compress(checkpoint_folder, tmp_path / "out", keep=0.5, force=force)
    lock.release()
    compress(checkpoint_folder, tmp_path / "out", keep=0.5)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("moment", ["aside", "in place"])
def test_a_replacement_cut_between_its_renamings_is_undone_or_finished(
    checkpoint_folder: Path, tmp_path: Path, moment: str
) -> None:
    out, replaced = tmp_path / "out", tmp_path / ".out.replaced"
    compress(checkpoint_folder, out, keep=0.5)
    before = sorted(os.listdir(tmp_path))
    old = tree(out)
    out.rename(replaced)
    if moment == "in place":
        compress(checkpoint_folder, tmp_path / "new", keep=0.4)
        (tmp_path / "new").rename(out)
        old = tree(out)
    with pytest.raises(FormatError, match="the folder is not empty"), OutputFolder(out):
        pass
    assert tree(out) == old
    assert sorted(os.listdir(tmp_path)) == before


KILLED = """
import os, signal, sys
from plastic_export import compress
left = int(sys.argv[3])
def track(items, description):
    global left
    for item in items:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, sys.argv[4]))
        yield item
compress(sys.argv[1], sys.argv[2], keep=0.5, format="dense", track=track)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(checkpoint_folder: Path, tmp_path: Path) -> None:
    compress(checkpoint_folder, tmp_path / "whole", keep=0.5, format="dense")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(checkpoint_folder), str(out)]
    for count in ("20", "30"):
        done = subprocess.run([*command, count, "SIGKILL"], check=False, timeout=600)
        assert done.returncode == -signal.SIGKILL
    compress(checkpoint_folder, out, keep=0.5, format="dense")
    assert tree(out) == tree(tmp_path / "whole")
