"""An evaluation in several processes: the figures of one, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest
from test_distributed import PLASTIC, Processes, launched

pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="needs the ring")


def evaluating(checkpoint: Path, texts: list[Path]) -> list[object]:
    words = ["evaluate", checkpoint, "--reference", checkpoint, "--both-directions", "--full"]
    texts_given = [word for text in texts for word in ("--text", text)]
    return [*words, *texts_given, "--window", 64, "--windows", 12, "--json"]


def figures_of(out: str) -> list[dict[str, object]]:
    """What was measured; how fast, and with how much memory, differs from run to run."""
    found: list[dict[str, object]] = json.loads(out)["evaluations"]
    for evaluation in found:
        assert evaluation.pop("runtime")
    return found


def test_two_processes_find_the_figures_of_one(
    tmp_path: Path, checkpoint: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two texts, so that a batch of the first and of the second are on one process."""
    monkeypatch.chdir(tmp_path)
    words = evaluating(checkpoint, [calibration, calibration.with_name("heldout.txt")])
    command = [str(word) for word in (PLASTIC, *words)]
    alone = subprocess.run(command, check=True, capture_output=True, text=True)
    together = launched(2, *words)
    assert figures_of(together.stdout) == figures_of(alone.stdout)
    assert [*tmp_path.iterdir()] == []


def test_another_text_is_refused_by_all(
    tmp_path: Path, checkpoint: Path, calibration: Path
) -> None:
    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        place.mkdir()
        shutil.copy(calibration, place / "text.txt")
    (places[1] / "text.txt").write_text(f"Another beginning. {calibration.read_text()}")
    commands = [evaluating(checkpoint, [Path(place.name) / "text.txt"]) for place in places]
    codes, lines = Processes(tmp_path, *commands, places=[tmp_path, tmp_path]).wait()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert "process 1 on " in lines[0]
    assert "texts" in lines[0]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--save-reference", "saved"], "--save-reference is for one process"),
        (["--windows", 1], "start fewer, or take more windows"),
    ],
)
def test_what_several_cannot_do_is_refused_in_a_line(
    tmp_path: Path, checkpoint: Path, calibration: Path, option: list[object], said: str
) -> None:
    words = [*evaluating(checkpoint, [calibration]), *option]
    codes, lines = Processes(tmp_path, words, words, places=[tmp_path, tmp_path]).wait()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert said in lines[0]
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"hosts"}
