"""The output of ``plastic plan --dry-run``."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from plastic_export.estimate.limits import duration, in_gigabytes
from plastic_export.estimate.processes import MachineEstimate, PlanEstimate
from plastic_export.reporting.tables import Presented, figures

MOST_ROWS = 16
"""Machines that have a row of their own; of more the first ones and the last."""


def present_plan_estimate(estimate: PlanEstimate) -> Presented:
    """Show what every machine takes, and what the processes lose."""
    record = {
        **asdict(estimate),
        "machines": [machine._asdict() for machine in estimate.machines],
        "faster": estimate.faster,
        "efficiency": estimate.efficiency,
        "bottleneck": estimate.bottleneck if len(estimate.machines) > 1 else None,
    }
    return Presented(record, _lines(estimate))


def _lines(estimate: PlanEstimate) -> list[Table | str]:
    phases = [f"{name} {duration(seconds)}" for name, seconds in estimate.phases.items()]
    memory, disk = map(in_gigabytes, (estimate.memory, estimate.disk))
    lines: list[Table | str] = [
        f"time       about {duration(estimate.seconds)}: {', '.join(phases)}",
        f"memory     {memory}, of each process",
        f"disk       {disk}, in the folder of the plan",
    ]
    if len(estimate.machines) == 1:
        return lines
    return [
        _machines(estimate.machines),
        "",
        *lines,
        f"gain       {estimate.faster:.2f} times as fast as one process, which needs "
        f"{duration(estimate.alone)}: {estimate.efficiency:.0%} of {len(estimate.machines)} times",
        f"lost       {', '.join(_losses(estimate))}",
        f"taken      every machine as fast as this one, {estimate.gigabits:g} Gbit/s from one to "
        "the next, the folder of the plan on machine 0, SRC on each",
    ]


def _losses(estimate: PlanEstimate) -> list[str]:
    """Return what is lost, the most first."""
    losses = sorted(estimate.losses.items(), key=lambda item: -item[1])
    return [f"{duration(seconds)} by {name}" for name, seconds in losses if seconds >= 0.5]


def _machines(machines: tuple[MachineEstimate, ...]) -> Table:
    table = figures("process", "works", "waits", "sends", "folder")
    shown = machines if len(machines) <= MOST_ROWS else (*machines[: MOST_ROWS - 1], machines[-1])
    for machine in shown:
        table.add_row(
            str(machine.process),
            duration(machine.works),
            duration(machine.waits),
            in_gigabytes(machine.sends),
            in_gigabytes(machine.folder),
        )
    return table
