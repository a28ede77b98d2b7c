"""What a plan and a compression cost, against the targets.

    uv run --with gguf tools/bench/cost.py --calibration TEXT  all rows; many hours
    uv run tools/bench/cost.py --rows price,rounding           some of them
    uv run tools/bench/cost.py --quick                         little of everything: that it runs
    uv run tools/bench/cost.py --finished                      what earlier runs found

    compression  plan + compress of SmolLM2 in mixed bits, over mlx-lm's GPTQ, AWQ, DWQ and dynamic
    corrected    the same with corrections, over GPTQ
    price        one 4096 x 4096 matrix in six widths and three group sizes: time and memory
    rounding     the same matrix as it is written, at 4 bits
    paper        a 7B model, the sum of its measured parts
    prices       divergence of plans by cheap prices over plans by full ones, three checkpoints
    calibration  vocabularies of 49,152 and 262,144: forward passes, memory
    growth       time over four numbers of tokens and of weights

TEXT holds 33,000 tokens of SmolLM2 or more; the shipped text, which is read without it, holds half
of that. Every measurement runs in a process of its own and is kept as a line of JSON: a later run
repeats none that is there (``--again`` does), so measure one row at a time on a quiet machine. What
the code was then is not looked at. Peers run by their own code, patched to multiply with NumPy
where MLX computes on the CPU, as ours does. SmolLM2's weights lie on a 4-bit grid of groups of 32;
3.5 bits per weight and groups of 64 favour no method.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bakeoff.setting import DATA
from costs.kinds import KINDS
from costs.rows import OF_THE_MODEL, ROWS, Bench, Line
from costs.scale import FULL_SCALE, QUICK
from kept.measurements import Measurements
from real_model import CACHE, ON_A_GRID, SMOLLM2, real_model
from rich import box
from rich.console import Console
from rich.table import Table

VERDICTS = {True: "met", False: "missed", None: "not measured"}


def chosen_rows(text: str) -> list[str]:
    """``"price,rounding"``."""
    rows = text.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ROWS)}")
    return rows


def cost_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=chosen_rows, default=[*ROWS], help="by commas")
    parser.add_argument("--quick", action="store_true", help="little, on the shipped checkpoint")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help=f"SmolLM2 ({SMOLLM2})")
    parser.add_argument("--lm", type=Path, help="a third checkpoint, for the row of prices")
    parser.add_argument("--calibration", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--heldout", type=Path, default=DATA / "heldout.txt")
    parser.add_argument("--results", type=Path, default=CACHE / "cost.jsonl", help="JSON lines")
    parser.add_argument("--again", action="store_true", help="repeat what is kept there")
    parser.add_argument("--finished", action="store_true", help="print what is kept there")
    parser.add_argument("--limit", type=int, help="processor seconds of a peer, then stop")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def bench_of(options: argparse.Namespace) -> Bench:
    """The measurements and what they are made on."""
    file, again, kept = options.results, options.again, options.finished
    named = {"shipped": DATA, "lm": options.lm, "SmolLM2": options.model}
    if options.quick:
        named = {"shipped": DATA}
    elif not kept and OF_THE_MODEL & {*options.rows}:
        real_model(options.model)
    checkpoints = {name: str(folder.resolve()) for name, folder in named.items() if folder}
    script = Path(__file__)
    return Bench(
        Measurements(script, file, again=again, kept=kept),
        Measurements(script, file, again=again, kept=kept, limit=options.limit),
        QUICK if options.quick else FULL_SCALE,
        checkpoints["shipped" if options.quick else "SmolLM2"],
        checkpoints,
        str(options.calibration.resolve()),
        str(options.heldout.resolve()),
    )


def cost_table(lines: list[Line]) -> Table:
    """What, target, figure, met or missed."""
    table = Table("what", "target", "figure", "", box=box.MARKDOWN)
    for line in lines:
        table.add_row(line.what, line.target, line.figure, VERDICTS[line.met])
    return table


def main() -> None:
    """Print the table."""
    options = cost_options()
    if options.child:
        kind, settings = options.child
        print(json.dumps(KINDS[kind](**json.loads(settings))))
        return
    bench = bench_of(options)
    lines = [line for row in options.rows for line in ROWS[row](bench)]
    console = Console(width=1000)  # a line of Markdown is not broken
    console.print(cost_table(lines))
    if not options.quick:
        console.print(ON_A_GRID)


if __name__ == "__main__":
    main()
