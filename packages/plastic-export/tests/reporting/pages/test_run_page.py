"""What a report shows of a run, and that its page needs nothing but itself."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from plastic_export import FormatError, Report, report
from plastic_export.cli.command import main
from plastic_export.folder.adapter_files import RUN_FILE
from plastic_export.folder.run_files import DIAL, EVENTS, LOSSES
from plastic_export.reporting.pages.run_facts import run_record
from plastic_export.reporting.pages.run_page import html
from plastic_export.reporting.plots.rendering import rendered
from plastic_export.reporting.plots.replacing import check_replaceable
from plastic_export.reporting.plots.run_plots import (
    bytes_figure,
    dial_figure,
    loss_figure,
    rank_figure,
    rank_map,
    short_names,
)
from plastic_export.training.forgetting.dial import DialPoint
from plastic_export.training.forgetting.dial_file import DialFile
from plastic_export.training.history import build_history, read_history
from plastic_export.training.run_folder import RunFile
from plastic_runtime import LossRecord, PlasticityEvent, append_loss

START = {"m.layers.9.q": 4, "m.layers.10.q": 4, "m.layers.10.v": 2}
HOSTILE = '<script src="http://x">$1_2$</script>&'
CURVE = DialFile(
    0.02,
    (
        DialPoint(0.7, 2.8, 0.019),
        DialPoint(1.0, 2.6, 0.04),
        DialPoint(0.5, 3.0, 0.01),
        DialPoint(0.0, 3.5, 0.0),
    ),
)
EVERY = 20  # training steps between validation losses


def change(step: int, layer: str, action: str, before: int, after: int, **more: Any) -> Any:
    fields = {"time": 0.0, "step": step, "why": "because", "bytes_awake": 1000 * step}
    fields |= {"layer": layer, "action": action, "rank_before": before, "rank_after": after}
    return PlasticityEvent(**(fields | {"bytes_asleep": 10 * step} | more))


CHANGES = [
    change(2, "m.layers.10.q", "grow", 4, 6),
    change(2, "m.layers.9.q", "shrink", 4, 1),
    change(3, "m.layers.9.q", "wake", 1, 3),
    change(3, "", "keep", 11, 11),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of a run, elsewhere."""
    folder = tmp_path_factory.mktemp("module")
    hostile = change(4, HOSTILE, "grow", 1, 2, why=HOSTILE)
    run = write_run(folder / "run", events=[*CHANGES, hostile])
    return report(run, folder / "new" / "place")


def write_run(folder: Path, *, events: list[PlasticityEvent] = CHANGES) -> Path:
    """A run folder of 80 training steps with these events."""
    folder.mkdir()
    RunFile({}, START, 900, 5000).write(folder / RUN_FILE)
    (folder / EVENTS).write_text("".join(f"{e.to_json()}\n" for e in events))
    for step in range(10, 81, 10):
        append_loss(folder / LOSSES, step, "train", 3 - step / 100)
        if step % EVERY == 0:
            append_loss(folder / LOSSES, step, "valid", 3.5 - step / 100)
    return folder


class Page(HTMLParser):
    """Every tag, and every attribute by its name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_events_stand_at_the_training_step_of_their_validation_loss(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"))
    assert history.unit == "training step"
    assert history.steps == 80
    assert [(step, e.action) for step, e in history.events] == [
        (40, "grow"),
        (40, "shrink"),
        (60, "wake"),
    ]
    assert history.awake == ((0, 900), (40, 2000), (40, 2000), (60, 3000))
    assert history.asleep[-1] == (60, 30)


def test_events_that_know_their_training_step_stand_there(tmp_path: Path) -> None:
    dated = [replace(e, step=e.step * EVERY, validation=e.step) for e in CHANGES]
    history = read_history(write_run(tmp_path / "run", events=dated))
    assert [step for step, _ in history.events] == [40, 40, 60]
    assert history.unit == "training step"


def test_ranks_are_those_of_the_run_file_until_an_event_changes_them(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"))
    assert [layer.path for layer in history.layers] == list(START)
    edges, ranks = rank_map(history)
    np.testing.assert_array_equal(edges, [0, 40, 60, 80])
    np.testing.assert_array_equal(ranks, [[4, 1, 3], [4, 6, 6], [2, 2, 2]])


def test_a_loss_that_was_not_finite_is_not_counted_as_one_the_manager_saw() -> None:
    losses = [LossRecord(step, "valid", None if step == 1 else 1.0) for step in (0, 1, 2)]
    history = build_history("x", [change(2, "a", "grow", 1, 2)], losses)
    assert history.events[0][0] == 2


def test_events_alone_are_a_run_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ranks.jsonl"
    file.write_text("".join(f"{e.to_json()}\n" for e in CHANGES))
    history = read_history(file)
    assert history.unit == "validation"
    assert [layer.path for layer in history.layers] == ["m.layers.9.q", "m.layers.10.q"]
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(file), "--json"])
    assert stopped.value.code == 0
    record = json.loads(capsys.readouterr().out)
    names = ["report-ranks.png", "report-bytes.png"]
    assert record["pictures"] == [str(tmp_path / name) for name in names]
    assert [record[name] for name in ("growths", "shrinks", "wakings")] == [1, 1, 1]
    assert (record["total_rank_first"], record["total_rank_last"]) == (8, 9)
    assert (record["rank_least"], record["rank_most"]) == (3, 6)


def test_what_every_change_cost_and_gained_is_on_the_page_and_in_the_record(
    tmp_path: Path,
) -> None:
    timed = [replace(e, loss_before=3.5 - e.step / 10, seconds=0.25) for e in CHANGES[:3]]
    run = write_run(tmp_path / "run", events=timed)
    page = html(read_history(run), {})
    assert "What every change cost and gained" in page
    # Two layers after step 40 in half a second; the waking after step 60 judged them.
    cells = ("40", "2", "+2, -3", "900 B to 2.0 KiB", "3.3000", "3.2000", "+0.1000", "0.50")
    assert "".join(f'<td class="n">{cell}</td>' for cell in cells[1:]) in page
    first, last = run_record(read_history(run))["rank_changes"]
    assert (first["step"], first["grown"], first["parked"]) == (40, 2, 3)
    assert (first["gained"], first["seconds"]) == (pytest.approx(0.1), 0.5)
    # After the last one there is one validation, 3.5 - 80 / 100.
    assert (last["woken"], last["loss_after"]) == (2, pytest.approx(2.7))


def test_a_run_without_a_change_has_no_table_of_gains(tmp_path: Path) -> None:
    assert (
        "What every change cost"
        not in report(write_run(tmp_path / "run", events=[])).page.read_text()
    )


def test_the_page_is_whole_in_itself_and_runs_nothing(written: Report) -> None:
    page = Page(written.page.read_text())
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    sources = page.attributes["src"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "href" not in page.attributes
    assert HOSTILE in page.text  # as words
    for source in sources:
        svg = base64.b64decode(source.partition(",")[2]).decode()
        drawing = Page(svg)
        assert "script" not in drawing.tags
        links = drawing.attributes.get("xlink:href", [])
        assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_every_picture_is_a_png_of_its_own(written: Report) -> None:
    names = ["report-loss.png", "report-ranks.png", "report-bytes.png"]
    assert [p.name for p in written.pictures] == names
    for picture in written.pictures:
        pixels = imread(picture)
        assert pixels.shape[1] > 1000
        assert np.ptp(pixels) > 0.5
    assert {p.name for p in written.page.parent.iterdir()} == {"report.html", *names}


def test_the_same_run_gives_the_same_bytes(written: Report) -> None:
    run = written.page.parents[2] / "run"
    again = report(run)
    assert again.page.parent == run
    for one, other in zip(
        (written.page, *written.pictures), (again.page, *again.pictures), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_a_run_still_going_on_may_have_half_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in (EVENTS, LOSSES):
        file = run / name
        file.write_bytes(file.read_bytes() + b'{"step": 9')
    assert read_history(run).steps == 80


def test_a_run_whose_ranks_never_changed_is_drawn(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", events=[]))
    assert rendered(rank_figure(history), "png", dpi=20).startswith(b"\x89PNG")
    assert rank_map(history)[1].tolist() == [[4], [4], [2]]
    assert bytes_figure(history).axes[0].get_xlim() == (0, 80)


def test_losses_and_marks_are_where_they_belong(tmp_path: Path) -> None:
    figure = loss_figure(read_history(write_run(tmp_path / "run")))
    losses, events = figure.axes
    lines = {str(line.get_label()): line for line in losses.lines}
    np.testing.assert_array_equal(lines["validation"].get_xdata(), [20, 40, 60, 80])
    np.testing.assert_allclose(lines["validation"].get_ydata(), [3.3, 3.1, 2.9, 2.7])
    labels = [label.get_text() for label in events.get_yticklabels()]
    assert labels == ["grow, 1 x", "shrink, 1 x", "wake, 1 x"]
    marks = [tuple(map(float, c.get_offsets()[0])) for c in events.collections]
    assert marks == [(40, 0), (40, 1), (60, 2)]


def test_the_dial_of_a_run_is_drawn_with_its_limit_and_what_was_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    CURVE.write(run / DIAL)
    result = report(run)
    assert [picture.name for picture in result.pictures][-1] == "report-dial.png"
    assert result.history.dial == CURVE
    assert "<h2>Dial</h2>" in result.page.read_text()
    learnt, forgotten = dial_figure(CURVE).axes
    for axes, values in ((learnt, [3.5, 3.0, 2.8, 2.6]), (forgotten, [0, 0.01, 0.019, 0.04])):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 0.5, 0.7, 1])
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)
        assert set(axes.lines[-1].get_xdata()) == {0.7}
    assert set(forgotten.lines[1].get_ydata()) == {0.02}


def test_hundreds_of_layers_stay_one_picture() -> None:
    start = {f"m.layers.{b}.{r}_proj": 8 for b in range(80) for r in "qkvogud"}
    history = build_history("x", [], [LossRecord(9, "valid", 1.0)], RunFile({}, start, 1, None))
    figure = rank_figure(history)
    assert figure.get_size_inches()[1] < 20
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "block 0"
    assert 20 < len(labels) <= 80


def test_names_lose_what_they_all_begin_with() -> None:
    assert short_names(["a.b.0.q", "a.b.1.q"]) == ["0.q", "1.q"]
    assert short_names(["a.b.q"]) == ["q"]
    assert short_names(["q", "a.q"]) == ["q", "a.q"]
    assert short_names(["a.b.0.q", "a.b.1.q", "head"]) == ["0.q", "1.q", "head"]


BROKEN: dict[str, tuple[str, str]] = {
    "an event of words": (EVENTS, '{"step": 1}'),
    "a rank that is no number": (
        EVENTS,
        json.dumps(asdict(CHANGES[0]) | {"rank_after": "many"}),
    ),
    "a negative rank": (EVENTS, json.dumps(asdict(CHANGES[0]) | {"rank_after": -1})),
    "a loss of no kind": (LOSSES, '{"step": 1, "kind": "test", "loss": 1.0}'),
    "a loss of words": (LOSSES, '{"step": 1, "kind": "train", "loss": "low"}'),
    "a run file of a later version": (RUN_FILE, '{"version": 99}'),
    "a run file that is none": (RUN_FILE, "[]"),
    "a dial without points": (DIAL, '{"limit": 0.02, "points": []}'),
    "a dial without a limit": (DIAL, '{"points": [{"scale": 1, "loss": 1, "forgotten": 1}]}'),
    "a point without a loss": (DIAL, '{"limit": 0.02, "points": [{"scale": 1, "forgotten": 1}]}'),
}


@pytest.mark.parametrize(("name", "line"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_log_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(f"{line}\n")
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert name in err
    assert sorted(run.iterdir()) == before


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no such run; name a folder"):
        report(tmp_path / "none")
    with pytest.raises(FormatError, match=r"neither events\.jsonl nor losses\.jsonl has a line"):
        report(tmp_path)
    run = write_run(tmp_path / "run")
    with pytest.raises(FormatError, match="it is not a folder; name another --out"):
        report(run, run / RUN_FILE)
    with pytest.raises(ValueError, match="`losses` must be None for a folder"):
        report(run, losses=run / LOSSES)


@pytest.mark.parametrize("name", ["report.html", "report-bytes.png"])
def test_a_report_replaces_reports_alone(written: Report, tmp_path: Path, name: str) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    shutil.copytree(written.page.parent, out)
    for path in out.iterdir():
        check_replaceable(path)
    (out / name).write_text("<html>annual report</html>")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FormatError, match=f"{name}: it exists and was not written by this package"):
        report(run, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
