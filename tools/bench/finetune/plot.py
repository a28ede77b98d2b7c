"""The picture of the losses over the bytes, all methods on one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from finetune.asked import KeptRun
from finetune.making import OURS
from finetune.tables import SizeEntry, at_best_rates
from finetune.targets import BASE


def draw_losses(runs: Sequence[KeptRun], file: Path) -> None:
    """Draw task loss and loss on old texts over the bytes of the file, each method at its rate."""
    from matplotlib.figure import Figure

    methods: dict[str, list[SizeEntry]] = {}
    for e in at_best_rates(runs):
        if e.method == BASE:
            continue
        methods.setdefault(e.name, []).append(e)
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("task", "old texts"), strict=True):
        for method, found in methods.items():
            values = [e.loss if what == "task" else mean(e.old) for e in found]
            heavy = {"linewidth": 2.5, "zorder": 3} if method.startswith(OURS) else {}
            axes.plot([e.nbytes / 1e6 for e in found], values, "o-", label=method, **heavy)
        axes.set(xscale="log", xlabel="megabytes of the adapter's file", ylabel=f"loss on {what}")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.legend()
    figure.savefig(file)
