"""Ranks that follow what training needs, beside fixed ranks and AdaLoRA, at equal bytes.

    uv run tools/bench/train.py                        the checkpoint that the repository ships
    uv run tools/bench/train.py SRC --train FILE --valid FILE --old FILE --old FILE
    uv run tools/bench/train.py --memory               what a smaller rank frees, nothing else
    uv run tools/bench/train.py --dial                 what is forgotten, by a factor on every S
    uv run tools/bench/train.py smollm2 --train FILE --valid FILE    SmolLM2-135M and more peers
    uv run tools/bench/train.py smollm2 --task pairs   bodies of functions, asked for in chat form
    uv run tools/bench/train.py smollm2 --base OUT     over what ``plastic compress`` wrote

Every method sees the same steps, batches, learning rates and optimizer (Adam, a linear rise and
half a cosine) on the same frozen base in float32. Bytes are those of the factors awake at the end,
all counted. ``lora`` is mlx-lm's own, on the layers it takes by default; ``lora+head`` has the
output head too; ``adalora`` is the published rule. Ours starts with more bytes than it ends with
and gives the head more of them than the other layers; ``plastic x 0.7`` is the same run with every
``S`` times 0.7, on the way back to the base; ``plastic, one rank`` counts bytes as the adapter of
stock mlx-lm does, whose layers all have one rank or none. ``old`` texts are of the kind the base
was trained on: what is forgotten.

On SmolLM2 Adam corrects the bias of its moments, as PyTorch's does and mlx's does where it is asked
to; ``plastic train`` is cautious besides, as the command is (``--no-cautious``: as the others), and
``--cautious`` makes the peers of mlx-lm so. Every method has the best of three rates, chosen on the
validation loss at rank 8 and one seed. LoRA, LoRA with the head (which is the embedding), LoRA with
a scale for its rank and DoRA are mlx-lm's; AdaLoRA, MiSS and HiRA are PEFT's in an environment of
their own, on the same windows in the same order; ``plastic train`` has the defaults of the command.
Bytes are those of the file of the adapter, and the losses are measured on what stock mlx-lm, or
PEFT, has loaded.

Results are kept, line by line, in ``--results``: a run that is there already is not made again, and
``--report`` prints the tables of what is there. On Linux ``LD_PRELOAD=libopenblas.so.0`` makes
this many times faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune.asked import RUN, KeptRun, make_runs, shared_setting, window_file
from finetune.making import ADAPTERS, finished_run
from finetune.plot import draw_losses
from finetune.tables import adapter_table, comparable
from finetune.targets import adapter_targets
from kept.measurements import Measurements, NotMeasured
from real_model import CACHE, ON_A_GRID, real_model
from rich.console import Console
from training.dial import dial_table
from training.memory import memory_table
from training.methods import METHODS
from training.results import measured, on_file
from training.setting import TrainingBench
from training.tables import aim_table, method_table
from training.texts import BOARD, DATA, PAIRS, read_texts

REAL = "smollm2"
OF_THE_SHIPPED: dict[str, Any] = {
    "old": [DATA / "heldout.txt", DATA / "heldout-prose.txt"],
    "ranks": [2, 4, 8, 16, 32],
    "methods": [*METHODS],
    "seeds": 5,
    "steps": 150,
    "windows": 32,
    "warm": 10,
    "corrected": False,
    "start": 4,
    "every": 10,
    "norm": 0.3,
}
OF_THE_REAL: dict[str, Any] = {
    "old": [BOARD / "prose.txt", BOARD / "code.txt"],
    "ranks": [4, 8, 16],
    "methods": [*ADAPTERS],
    "seeds": 3,
    "steps": 60,
    "windows": 16,
    "warm": 5,
    "corrected": True,
    "results": CACHE / "train.jsonl",
}


def comparison_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=DATA, help=f"a folder, or {REAL}")
    parser.add_argument("--base", type=Path, help=f"train over this folder ({REAL})")
    parser.add_argument("--task", choices=["text", PAIRS], default="text")
    parser.add_argument("--train", type=Path, help="text to adapt to (Python's help topics)")
    parser.add_argument("--valid", type=Path, help="text of the same kind, held out")
    parser.add_argument("--old", type=Path, action="append", help="text of the base's own kind")
    parser.add_argument("--ranks", type=int, nargs="+", help="2 4 8 16 32, or 4 8 16")
    parser.add_argument("--methods", nargs="+", choices=[*dict.fromkeys([*METHODS, *ADAPTERS])])
    parser.add_argument("--seeds", type=int, help="5, or 3")
    parser.add_argument("--steps", type=int, help="150, or 60")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens per window (128)")
    parser.add_argument("--windows", type=int, help="per held-out text (32, or 16)")
    parser.add_argument("--rate", type=float, default=3e-4, help="largest learning rate (3e-4)")
    parser.add_argument("--rates", type=float, nargs="+", help=f"to choose from ({REAL})")
    parser.add_argument("--warm", type=int, help="steps of its rise (10, or 5)")
    parser.add_argument(
        "--corrected",
        action=argparse.BooleanOptionalAction,
        help=f"correct the bias of Adam's moments (no; {REAL}: yes)",
    )
    parser.add_argument(
        "--cautious",
        action=argparse.BooleanOptionalAction,
        help=f"train by the cautious Adam (no; {REAL}: ours alone; not what PEFT trains)",
    )
    parser.add_argument("--probe", type=int, default=4, help="windows to price on (4)")
    parser.add_argument("--start", type=int, help="times the rank that fits, at the start (4)")
    parser.add_argument("--head", type=int, default=3, help="that rank of the head over it (3)")
    parser.add_argument("--begin", type=int, default=20, help="steps to the first change (20)")
    parser.add_argument("--end", type=int, default=20, help="steps to the last change (20)")
    parser.add_argument("--every", type=int, help="steps between changes (10), or validations")
    parser.add_argument("--norm", type=float, help="length of the rows of Vh (0.3)")
    parser.add_argument(
        "--along", action="store_const", const=True, help="begin along the gradient"
    )
    parser.add_argument("--adalora-scale", type=float, default=1000.0)
    parser.add_argument("--report", action="store_true", help="print what is on file")
    parser.add_argument("--dial", action="store_true", help="turn every S down, nothing else")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--results", type=Path, help="file of finished runs, to go on from")
    parser.add_argument("--plot", type=Path, help=f"draw losses over bytes ({REAL})")
    parser.add_argument("--verbose", action="store_true", help="print final ranks")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = OF_THE_REAL if options.source == Path(REAL) else OF_THE_SHIPPED
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def compare_real(options: argparse.Namespace, console: Console) -> None:
    """Make the runs on SmolLM2 that are not kept yet; print what is, one table per setting."""
    file = options.results
    if not options.report:
        options.source = options.base or real_model()
        shared = shared_setting(options)
        places = {"source": str(options.source), "windows": str(window_file(options, shared))}
        making = Measurements(
            Path(__file__), file, again=False, kept=False, places={"places": places}
        )
        make_runs(options, making, shared)
    kept = Measurements(Path(__file__), file, again=False, kept=True)
    for runs in comparable(KeptRun(one.settings, one.figures) for one in kept if one.kind == RUN):
        console.print(adapter_table(runs), "")
        console.print(adapter_targets(runs), "")
        if options.plot:
            task = runs[0].asked["task"]
            draw_losses(runs, options.plot.with_stem(f"{options.plot.stem}-{task}"))
    if options.base is None:
        console.print(ON_A_GRID)


def main() -> None:
    """Print one row per method and size."""
    options = comparison_options()
    if options.child:
        try:
            print(json.dumps(finished_run(**json.loads(options.child[1]))))
        except NotMeasured as error:
            sys.exit(str(error))
        return
    console = Console(width=140)
    if options.source == Path(REAL):
        compare_real(options, console)
        return
    if options.memory:
        console.print(memory_table(TrainingBench(options, read_texts(options))))
        return
    if options.dial:
        console.print(dial_table(TrainingBench(options, read_texts(options))))
        return
    if options.report:
        results = list(on_file(options.results).values())
    else:
        results = measured(TrainingBench(options, read_texts(options)))
    console.print(method_table(results), "")
    console.print(aim_table(results))


if __name__ == "__main__":
    main()
