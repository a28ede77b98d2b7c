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
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lowrankers
import quantisers
from lowrankers import Study, Written
from mlx_lm import convert
from plastic_core.factors import BITS
from plastic_export import (
    Calibration,
    Checkpoint,
    HealingOptions,
    compress,
    evaluate,
    execute_plan,
    heal,
    open_checkpoint,
    plan_checkpoint,
    read_plan,
)
from plastic_export.checkpoint import module_path
from plastic_export.compression import plannable
from plastic_export.plan import Format, write_plan
from plastic_runtime import GramFile
from plastic_select.rules import NEED_GRAM
from quantisers import Task, Unsupported
from rich.console import Console
from rich.table import Table
from strategies import DATA
from targets import Figures, Results, goal_table, shown


class BakeOff:
    """What every row needs: the options, a folder, and what the other modules start from."""

    def __init__(self, options: argparse.Namespace, folder: Path, checkpoint: Checkpoint) -> None:
        self.options = options
        self.folder = folder
        self.checkpoint = checkpoint
        exclude, embeddings = options.exclude, options.embeddings
        self.matrices = tuple(plannable(checkpoint, exclude=exclude, embeddings=embeddings))
        paths = frozenset(module_path(m.name) for m in self.matrices)
        calibration = Calibration(options.calibration, 256, options.windows)
        self.task = Task(options.source, paths, calibration, options.steps, tuple(options.rates))

    @cached_property
    def study(self) -> Study:
        """The Grams that a plan leaves."""
        grams = read_plan(self.plan("mixed")).grams[0]
        return Study(self.checkpoint, self.matrices, GramFile(self.folder / grams))

    def plan(self, format: Format) -> Path:
        """One plan of a format for all budgets, made when it is first asked for."""
        file, grams = self.folder / f"{format}.json", self.folder / "mixed.grams.npz"
        if not file.exists():
            if grams.exists() and format != "mixed":
                file.with_suffix(".grams.npz").hardlink_to(grams)
            plan_checkpoint(
                self.options.source,
                file,
                calibration=self.task.calibration,
                budgets=self.options.bits,
                format=format,
                exclude=self.options.exclude,
                embeddings=self.options.embeddings,
            )
        return file


Method = Callable[[BakeOff, Path, Any], Written]  # writes what it makes of one budget


def weigh(folder: Path, predicted: float | None = None) -> Written:
    """A finished checkpoint: the bytes of its model files and of its adapter."""
    files = [*folder.glob("model*.safetensors"), *folder.glob("adapters/*.safetensors")]
    return Written(folder, sum(p.stat().st_size for p in files), predicted)


def whole_bits(budget: float) -> int:
    """The bits that take ``budget`` bits per weight with their scales."""
    bits = budget - quantisers.SCALES
    if bits not in BITS:
        raise Unsupported(f"no whole bits take {budget:g} bits per weight")
    return int(bits)


def stock_rounding(bench: BakeOff, out: Path, budget: float) -> Written:
    """Stock ``mlx_lm.convert`` of the same matrices."""
    paths = bench.task.paths
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(bench.task.source),
            str(out),
            quantize=True,
            q_bits=whole_bits(budget),
            q_group_size=quantisers.GROUP,
            quant_predicate=lambda path, module: path in paths,
        )
    return weigh(out)


def quantiser(
    run: Callable[[Task, Path, Any], None], bits: Callable[[float], float] = whole_bits
) -> Method:
    """One of mlx-lm's quantisers."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        run(bench.task, out, bits(budget))
        return weigh(out)

    return method


def in_format(format: Format) -> Method:
    """Ours, in one of its formats."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        file = bench.plan(format)
        result = execute_plan(bench.task.source, out, file, budget=budget)
        return weigh(out, result.plan.cost)

    return method


def healed(bench: BakeOff, out: Path, budget: float) -> Written:
    """Ours in the format of bits and ranks, after a distillation as long as that of DWQ.

    On as many windows of the text as DWQ may read.
    """
    folder = out.with_name(f"{out.name}-unhealed")
    unhealed = in_format("corrected")(bench, folder, budget)
    steps = bench.options.steps
    text = replace(bench.task.calibration, windows=steps * quantisers.BATCH + quantisers.HELD_OUT)
    heal(folder, bench.task.source, out, calibration=text, options=HealingOptions(steps=steps))
    return weigh(out, unhealed.predicted)


def uniform_bits(bench: BakeOff, out: Path, budget: float) -> Written:
    """Our backbone, with the same bits in every matrix."""
    plan = read_plan(bench.plan("mixed"))
    chosen = {m.name: m.offer(whole_bits(budget)) for m in plan.matrices}
    file = bench.folder / "uniform.json"
    write_plan(file, replace(plan, budgets=(replace(plan.budget(budget), chosen=chosen),)))
    result = execute_plan(bench.task.source, out, file)
    return weigh(out, result.plan.cost)


def strategy(name: str) -> Method:
    """Factors alone, ranks by one of the strategies of ``plastic compress``."""

    def method(bench: BakeOff, out: Path, keep: float) -> Written:
        calibration = bench.task.calibration if name in NEED_GRAM else None
        names = [m.name for m in bench.matrices]
        source = bench.task.source
        compress(source, out, keep=keep, strategy=name, calibration=calibration, include=names)
        return weigh(out)

    return method


def studied(run: Callable[[Study, Path, Any], Written]) -> Method:
    """One of `lowrankers`."""
    return lambda bench, out, budget: run(bench.study, out, budget)


TABLES: dict[str, dict[str, Method]] = {
    "bits": {
        "rounding": stock_rounding,
        "gptq": quantiser(quantisers.gptq_bits),
        "awq": quantiser(quantisers.awq_bits),
        "dwq": quantiser(quantisers.dwq_bits),
        "dynamic": quantiser(quantisers.dynamic_bits, bits=float),
        "feedback": uniform_bits,
        "mixed": in_format("mixed"),
        "adapter": in_format("adapter"),
        "corrected": in_format("corrected"),
        "healed": healed,
    },
    "rank": {
        "svd-llm": studied(lowrankers.svd_llm),
        **{name: strategy(name) for name in ("stable", "theorem", "activation", "energy")},
        "loss": studied(lowrankers.loss_aware),
    },
    "correction": {
        "qera": studied(lowrankers.qera),
        "loss": studied(lowrankers.loss_aware_correction),
    },
}


def run(bench: BakeOff, name: str, budgets: list[Any], results: Results) -> Table:
    """Write and measure all rows of a table, fewest bytes first."""
    options = bench.options
    texts = options.text or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    table = Table("method", "budget", "model bytes", "predicted", title=name, box=None)
    for text in texts:
        table.add_column(f"{text.stem}: KL", justify="right")
        table.add_column("top-1", justify="right")
    methods = {k: m for k, m in TABLES[name].items() if not options.method or k in options.method}
    for budget in sorted(budgets):
        for label, method in methods.items():
            start, out = time.perf_counter(), bench.folder / f"{name}-{label}-{shown(budget)}"
            try:
                folder, nbytes, predicted = method(bench, out, budget)
            except Unsupported as error:
                print(f"left out: {label} at {shown(budget)}: {error}", file=sys.stderr)
                continue
            made = time.perf_counter() - start
            found = evaluate(folder, texts, reference=options.source, windows=options.measured)
            result = Figures(predicted, {r.text: r.kl or 0.0 for r in found})
            results.setdefault(name, {}).setdefault(budget, {})[label] = result
            cells = [f"{nbytes:,}", "" if predicted is None else f"{1e3 * predicted:.3f}"]
            for r in found:
                kl, spread = 1e3 * (r.kl or 0.0), 1e3 * (r.kl_error or 0.0)
                cells += [f"{kl:.3f} ± {spread:.3f}", f"{r.top1 or 0.0:.2%}"]
            table.add_row(label, shown(budget), *cells)
            print(f"{name} {label} {shown(budget)}: {made:.0f} s", *cells, file=sys.stderr)
    return table


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
            console.print(run(bench, kind, getattr(options, kind), results), "")
    console.print(goal_table(results))


if __name__ == "__main__":
    main()
