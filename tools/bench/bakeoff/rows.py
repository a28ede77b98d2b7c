"""All rows, by table: written, measured, printed."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_lm import convert
from plastic_export import evaluate
from rich.table import Table

from bakeoff import low_rank, quantizers
from bakeoff.goals import Figures, Results, shown
from bakeoff.low_rank import Study
from bakeoff.ours import healed, in_format, strategy, uniform_bits
from bakeoff.quantizers import Task, Unsupported
from bakeoff.setting import DATA, BakeOff, Method, weigh, whole_bits
from bakeoff.written import Written


def stock_rounding(bench: BakeOff, out: Path, budget: float) -> Written:
    """Stock ``mlx_lm.convert`` of the same matrices."""
    paths = bench.task.paths
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(bench.task.source),
            str(out),
            quantize=True,
            q_bits=whole_bits(budget),
            q_group_size=quantizers.GROUP,
            quant_predicate=lambda path, module: path in paths,
        )
    return weigh(out)


def stock(
    run: Callable[[Task, Path, Any], None], bits: Callable[[float], float] = whole_bits
) -> Method:
    """One of mlx-lm's quantisers."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        run(bench.task, out, bits(budget))
        return weigh(out)

    return method


def studied(run: Callable[[Study, Path, Any], Written]) -> Method:
    """One of `lowrankers`."""
    return lambda bench, out, budget: run(bench.study, out, budget)


TABLES: dict[str, dict[str, Method]] = {
    "bits": {
        "rounding": stock_rounding,
        "gptq": stock(quantizers.gptq_bits),
        "awq": stock(quantizers.awq_bits),
        "dwq": stock(quantizers.dwq_bits),
        "dynamic": stock(quantizers.dynamic_bits, bits=float),
        "feedback": uniform_bits,
        "mixed": in_format("mixed"),
        "adapter": in_format("adapter"),
        "corrected": in_format("corrected"),
        "healed": healed,
    },
    "rank": {
        "svd-llm": studied(low_rank.svd_llm),
        **{name: strategy(name) for name in ("stable", "theorem", "activation", "energy")},
        "loss": studied(low_rank.loss_aware),
    },
    "correction": {
        "qera": studied(low_rank.qera),
        "loss": studied(low_rank.loss_aware_correction),
    },
}


def measured_table(bench: BakeOff, name: str, budgets: list[Any], results: Results) -> Table:
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
