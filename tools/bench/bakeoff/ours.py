"""Ours: plans in every format, healed or not, and factors alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from plastic_export import HealingOptions, compress, execute_plan, heal, read_plan
from plastic_export.compression import write_plan
from plastic_select.rules import NEED_GRAM

from bakeoff.bench import FIRST, BakeOff, Method, whole_bits
from bakeoff.written import Written, weigh


def in_format(format: str) -> Method:
    """Ours, in one of its formats."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        file = bench.plan(format, budget)
        result = execute_plan(bench.task.source, out, file, budget=budget)
        return weigh(out, result.plan.predicted)

    return method


def healed(format: str) -> Method:
    """Ours in one of its formats, after a distillation of as many steps as DWQ makes."""

    def method(bench: BakeOff, out: Path, budget: float) -> Written:
        folder, options = out.with_name(f"{out.name}-unhealed"), HealingOptions(steps=bench.steps)
        in_format(format)(bench, folder, budget)
        heal(folder, bench.task.source, out, calibration=bench.task.calibration, options=options)
        shutil.rmtree(folder)
        return weigh(out)

    return method


def uniform_bits(bench: BakeOff, out: Path, budget: float) -> Written:
    """Our backbone, with the same bits in every matrix."""
    bits = whole_bits(budget)
    plan = read_plan(bench.plan(FIRST, budget))
    chosen = {m.name: m.offer(bits) for m in plan.matrices}
    file = out.with_name(f"{out.name}.json")
    grams = file.with_name(plan.grams[0])
    if not grams.exists():
        grams.hardlink_to(bench.setting.place / plan.grams[0])
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
