"""Ours: plans in every format, healed or not, and factors alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plastic_export import HealingOptions, compress, execute_plan, heal, read_plan
from plastic_export.compression import write_plan
from plastic_select.rules import NEED_GRAM

from bakeoff.quantizers import BATCH, HELD_OUT
from bakeoff.setting import BakeOff, Method, weigh, whole_bits
from bakeoff.written import Written


def in_format(format: str) -> Method:
    """Ours, in one of its formats."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        file = bench.plan(format)
        result = execute_plan(bench.task.source, out, file, budget=budget)
        return weigh(out, result.plan.predicted)

    return method


def healed(bench: BakeOff, out: Path, budget: float) -> Written:
    """Ours in the format of bits and ranks, after a distillation as long as that of DWQ.

    On as many windows of the text as DWQ may read.
    """
    folder = out.with_name(f"{out.name}-unhealed")
    unhealed = in_format("corrected")(bench, folder, budget)
    steps = bench.options.steps
    text = replace(bench.task.calibration, windows=steps * BATCH + HELD_OUT)
    heal(folder, bench.task.source, out, calibration=text, options=HealingOptions(steps=steps))
    return weigh(out, unhealed.predicted)


def uniform_bits(bench: BakeOff, out: Path, budget: float) -> Written:
    """Our backbone, with the same bits in every matrix."""
    plan = read_plan(bench.plan("mixed"))
    chosen = {m.name: m.offer(whole_bits(budget)) for m in plan.matrices}
    file = bench.folder / "uniform.json"
    write_plan(file, replace(plan, budgets=(replace(plan.budget(budget), chosen=chosen),)))
    result = execute_plan(bench.task.source, out, file)
    return weigh(out, result.plan.predicted)


def strategy(name: str) -> Method:
    """Factors alone, ranks by one of the strategies of ``plastic compress``."""

    def method(bench: BakeOff, out: Path, keep: float) -> Written:
        calibration = bench.task.calibration if name in NEED_GRAM else None
        names = [m.name for m in bench.matrices]
        source = bench.task.source
        compress(source, out, keep=keep, strategy=name, calibration=calibration, include=names)
        return weigh(out)

    return method
