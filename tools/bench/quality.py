"""The bake-off: what mlx-lm and the low-rank literature offer, and ours, at equal bytes on disk.

    uv run tools/bench/quality.py                       the checkpoint that the repository ships
    uv run --with gguf tools/bench/quality.py smollm2   SmolLM2-135M: the board
    uv run tools/bench/quality.py SRC --calibration FILE --text FILE --text FILE
    uv run tools/bench/quality.py smollm2 --table bits --method gptq --bits 3.5    one row
    uv run tools/bench/quality.py smollm2 --table bits --embeddings                embeddings too
    uv run tools/bench/quality.py --finished            the tables of all that is kept

Three tables: bits per weight of the matrices, scales counted; fractions of their bytes kept by
16-bit factors alone; a quantised backbone with factors of so many bits per weight. The same
matrices, groups of 64 and calibration windows in every row. Bytes are those of all model files,
what is not compressed included. KL is the divergence from the source in millinats per token,
beside what was predicted of it before it was measured.

Every row is made and measured in a process of its own and kept as a line of JSON: a later run
repeats none that is there (``--again`` does). Seconds are those of the making, plans included,
without the measuring. Plans, Grams and the predictions of the source stay in ``--work`` and serve
all later rows; start one run at a time there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.making import made_row
from bakeoff.quantizers import Unsupported
from bakeoff.rows import EMBEDDINGS, TABLES, TUNED
from bakeoff.setting import BOARD, DATA, Setting, shown
from board.goals import goal_table
from board.results import Comparable, grouped
from board.tables import about, row_table
from kept.measurements import STOPPED, Measurements, NotMeasured
from real_model import CACHE, ON_A_GRID, real_model
from rich.console import Console

REAL = "smollm2"
ROW = "row"


class Defaults(NamedTuple):
    """What is taken where the command line says nothing."""

    calibration: Path | None
    texts: tuple[Path, ...]
    window: int
    windows: int
    bits: tuple[float, ...]


OF_THE_SHIPPED = Defaults(
    DATA / "calibration.txt",
    (DATA / "heldout.txt", DATA / "heldout-prose.txt"),
    window=256,
    windows=128,
    bits=(2.5, 3.5, 4.5),
)
OF_THE_BOARD = Defaults(
    None,
    tuple(BOARD / name for name in ("prose.txt", "code.txt", "chat.jsonl")),
    window=512,
    windows=64,
    bits=(2.25, 2.5, 3.0, 3.5, 4.0, 4.5),
)


def correction(text: str) -> tuple[int, float]:
    """``"2+0.25"``: bits of the backbone, bits per weight of the factors."""
    bits, extra = text.split("+")
    return int(bits), float(extra)


def bake_off_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = sorted({method for table in TABLES.values() for method in table})
    parser.add_argument("source", nargs="?", default=str(DATA), help=f"a folder, or {REAL}")
    parser.add_argument("--calibration", type=Path, help="by default the set that is shipped")
    parser.add_argument("--text", type=Path, action="append", help="to measure on, several times")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--method", nargs="+", choices=methods, help="rows; all by default")
    parser.add_argument("--bits", type=float, nargs="+", help="per weight")
    parser.add_argument("--rank", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--correction", type=correction, nargs="+", default=[(2, 0.25), (3, 0.5)])
    parser.add_argument("--exclude", action="append", default=[], help="for example lm_head")
    parser.add_argument("--embeddings", action="store_true", help="take them too (bits only)")
    parser.add_argument("--window", type=int, help="tokens of a window to calibrate on")
    parser.add_argument("--windows", type=int, help="how many of them")
    parser.add_argument("--measured-window", type=int, default=256, help="tokens (256)")
    parser.add_argument("--measured", type=int, default=24, help="windows per text (24)")
    parser.add_argument("--steps", type=int, default=200, help="of what is tuned (200)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="of DWQ")
    parser.add_argument("--limit", type=int, help="seconds of processor time of a row, then stop")
    parser.add_argument("--work", type=Path, default=CACHE / "bakeoff", help="folder of plans")
    parser.add_argument("--keep-folders", action="store_true", help="the checkpoints stay in it")
    parser.add_argument("--results", type=Path, default=CACHE / "quality.jsonl", help="JSON lines")
    parser.add_argument("--again", action="store_true", help="repeat what is kept there")
    parser.add_argument("--finished", action="store_true", help="print all that is kept there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def setting_of(options: argparse.Namespace) -> Setting:
    """What all rows share; the real model is made if it is not there."""
    source = real_model() if options.source == REAL else Path(options.source)
    usual = OF_THE_SHIPPED if source == DATA else OF_THE_BOARD
    texts, calibration = options.text or usual.texts, options.calibration or usual.calibration
    for file in (*texts, *([calibration] if calibration else [])):
        if not file.is_file():
            sys.exit(f"error: {file}: no such file; name texts with --text and --calibration")
    if len({text.stem for text in texts}) < len(texts):
        sys.exit("error: two texts have one name without its ending; rename one, for its column")
    return Setting(
        source=source.resolve(),
        calibration=calibration.resolve() if calibration else None,
        texts=tuple(text.resolve() for text in texts),
        window=options.window or usual.window,
        windows=options.windows or usual.windows,
        measured=options.measured,
        measured_window=options.measured_window,
        embeddings=options.embeddings,
        exclude=tuple(options.exclude),
        budgets=tuple(options.bits or usual.bits),
        work=options.work.resolve(),
    )


def asked_rows(options: argparse.Namespace, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the settings of every row, fewest bytes first."""
    shared = setting.planned | setting.judged
    for table in options.table:
        if setting.embeddings and table not in EMBEDDINGS:
            continue
        budgets = setting.budgets if table == "bits" else getattr(options, table)
        for budget in sorted(budgets):
            for method in TABLES[table]:
                if options.method is None or method in options.method:
                    own = {name: getattr(options, name) for name in TUNED.get(method, ())}
                    yield {**shared, "table": table, "method": method, "budget": budget, **own}


def make_rows(options: argparse.Namespace) -> None:
    """Make and measure all rows that are not kept yet; those that fail are named."""
    setting = setting_of(options)
    setting.work.mkdir(parents=True, exist_ok=True)
    places = {"setting": setting.as_json(), "keep_folders": options.keep_folders}
    file, limit = options.results, options.limit
    measurements = Measurements(
        Path(__file__), file, again=options.again, kept=False, places=places, limit=limit
    )
    for row in asked_rows(options, setting):
        try:
            found = measurements.of(ROW, **row)
        except NotMeasured as error:
            label = f"{row['method']} at {shown(row['budget'])}"
            print(f"left out: {label}: {error}", file=sys.stderr)
            continue
        if STOPPED in found:
            steps = row.get("steps", 0)
            place = setting.folder_of(row["table"], row["method"], row["budget"], steps)
            shutil.rmtree(place, ignore_errors=True)


def print_group(console: Console, group: Comparable) -> None:
    """Print the tables of rows that can be compared, and their targets."""
    for table in group.tables:
        console.print(row_table(table, group))
    for line in about(group):
        console.print(line, markup=False, highlight=False)
    console.print(goal_table(group))


def main() -> None:
    """Measure, then print one row per compressed checkpoint, and the targets."""
    options = bake_off_options()
    if options.child:
        try:
            print(json.dumps(made_row(**json.loads(options.child[1]))))
        except Unsupported as error:
            sys.exit(str(error))
        return
    if not options.finished:
        make_rows(options)
    kept = Measurements(Path(__file__), options.results, again=False, kept=True)
    console = Console(width=1000)  # a line of Markdown is not broken
    for group in grouped(kept):
        print_group(console, group)
    if options.source == REAL:
        console.print(ON_A_GRID)


if __name__ == "__main__":
    main()
