"""The bake-off: what mlx-lm and the low-rank literature offer, and ours, at equal bytes on disk.

    uv run tools/bench/quality.py                   the checkpoint that the repository ships
    uv run tools/bench/quality.py SRC --calibration FILE --text FILE --text FILE
    uv run tools/bench/quality.py --table bits --method gptq mixed --bits 3.5    two rows, quickly
    uv run tools/bench/quality.py --table bits --embeddings                      embeddings too

Three tables: bits per weight of the matrices, scales counted; fractions of their bytes kept by
16-bit factors alone; a quantised backbone with factors of so many bits per weight. The same
matrices, groups of 64 and calibration windows in every row, all of one run. Bytes are those of
all model files, what is not compressed included. KL is the divergence from the source in millinats
per token, beside what was predicted of it before it was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bakeoff.goals import Results, goal_table
from bakeoff.rows import TABLES, measured_table
from bakeoff.setting import DATA, BakeOff
from plastic_export import open_checkpoint
from rich.console import Console


def correction(text: str) -> tuple[int, float]:
    """``"2+0.25"``: bits of the backbone, bits per weight of the factors."""
    bits, extra = text.split("+")
    return int(bits), float(extra)


def bake_off_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--calibration", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--method", nargs="+", help="rows to run; all of them by default")
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.5, 4.5])
    parser.add_argument("--rank", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--correction", type=correction, nargs="+", default=[(2, 0.25), (3, 0.5)])
    parser.add_argument("--exclude", action="append", default=[], help="for example lm_head")
    parser.add_argument("--embeddings", action="store_true", help="take them too (bits only)")
    parser.add_argument("--windows", type=int, default=128, help="of 256 tokens to calibrate (128)")
    parser.add_argument("--measured", type=int, default=24, help="windows per text (24)")
    parser.add_argument("--steps", type=int, default=200, help="of DWQ (200)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="of DWQ")
    return parser.parse_args()


def main() -> None:
    """Print one row per compressed checkpoint, and the targets."""
    options, results, console = bake_off_options(), Results(), Console(width=140)
    with tempfile.TemporaryDirectory() as name, open_checkpoint(options.source) as checkpoint:
        bench = BakeOff(options, Path(name), checkpoint)
        for kind in options.table:
            console.print(measured_table(bench, kind, getattr(options, kind), results), "")
    console.print(goal_table(results))


if __name__ == "__main__":
    main()
