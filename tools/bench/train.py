"""Ranks that follow what training needs, beside fixed ranks and AdaLoRA, at equal bytes.

    uv run tools/bench/train.py                        the checkpoint that the repository ships
    uv run tools/bench/train.py SRC --train FILE --valid FILE --old FILE --old FILE
    uv run tools/bench/train.py --memory               what a smaller rank frees, nothing else
    uv run tools/bench/train.py --dial                 what is forgotten, by a factor on every S

Every method sees the same steps, batches, learning rates and optimizer (Adam, a linear rise and
half a cosine) on the same frozen base in float32. Bytes are those of the factors awake at the end,
all counted. ``lora`` is mlx-lm's own, on the layers it takes by default; ``lora+head`` has the
output head too; ``adalora`` is the published rule. Ours starts with more bytes than it ends with
and gives the head more of them than the other layers; ``plastic x 0.7`` is the same run with every
``S`` times 0.7, on the way back to the base; ``plastic, one rank`` counts bytes as the adapter of
stock mlx-lm does, whose layers all have one rank or none. ``old`` texts are of the kind the base
was trained on: what is forgotten.

Results are kept, line by line, in ``--results``: a run that is there already is not made again, and
``--report`` prints the tables of what is there. On Linux ``LD_PRELOAD=libopenblas.so.0`` makes
this many times faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from training.dial import dial_table
from training.memory import memory_table
from training.methods import METHODS
from training.results import measured, on_file
from training.setting import DATA, TrainingBench
from training.tables import aim_table, method_table


def comparison_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--train", type=Path, help="text to adapt to (Python's help topics)")
    parser.add_argument("--valid", type=Path, help="text of the same kind, held out")
    parser.add_argument("--old", type=Path, action="append", help="text of the base's own kind")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens per window (128)")
    parser.add_argument("--windows", type=int, default=32, help="per held-out text (32)")
    parser.add_argument("--rate", type=float, default=3e-4, help="largest learning rate (3e-4)")
    parser.add_argument("--warm", type=int, default=10, help="steps of its rise (10)")
    parser.add_argument("--probe", type=int, default=4, help="windows to price on (4)")
    parser.add_argument("--start", type=int, default=4, help="times the rank at the start (4)")
    parser.add_argument("--head", type=int, default=3, help="that rank of the head over it (3)")
    parser.add_argument("--begin", type=int, default=20, help="steps to the first change (20)")
    parser.add_argument("--end", type=int, default=20, help="steps to the last change (20)")
    parser.add_argument("--every", type=int, default=10, help="steps between changes (10)")
    parser.add_argument("--norm", type=float, default=0.3, help="length of the rows of Vh (0.3)")
    parser.add_argument("--adalora-scale", type=float, default=1000.0)
    parser.add_argument("--report", action="store_true", help="print what is on file")
    parser.add_argument("--dial", action="store_true", help="turn every S down, nothing else")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--results", type=Path, help="file of finished runs, to go on from")
    parser.add_argument("--verbose", action="store_true", help="print final ranks")
    return parser.parse_args()


def main() -> None:
    """Print one row per method and size."""
    options = comparison_options()
    console = Console(width=140)
    if options.memory:
        console.print(memory_table(TrainingBench(options)))
        return
    if options.dial:
        console.print(dial_table(TrainingBench(options)))
        return
    if options.report:
        results = list(on_file(options.results).values())
    else:
        results = measured(TrainingBench(options))
    console.print(method_table(results), "")
    console.print(aim_table(results))


if __name__ == "__main__":
    main()
