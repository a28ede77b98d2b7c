"""The output of ``plastic extract``."""

from __future__ import annotations

import shlex
from typing import Any

from rich.table import Table

from plastic_export.extraction.extraction import Extracted, ExtractedForm
from plastic_export.extraction.gain import Gain
from plastic_export.extraction.rest import LeftOut
from plastic_export.reporting.tables import Presented, figures

_NAMED = 3  # tensors of a kind that are named


def present_extracted(result: Extracted, base: str, tuned: str) -> Presented:
    """Show what was learnt, what of it each adapter holds, what is left, and how to run it."""
    generate = ["mlx_lm.generate", "--model", base, "--adapter-path", str(result.adapter.folder)]
    lines: list[Table | str] = [_forms(result), ""]
    if result.gain:
        lines += [_losses(result.gain, base, tuned), _share(result.gain), ""]
    lines += _left(result)
    if len(set(result.peft.ranks.values())) > 1:
        lines.append(f"for vLLM   {_uniform(result)}")
    if result.note:
        lines.append(f"base       {result.note}")
    lines.append(f"run it     {shlex.join(generate)} --prompt ...")
    return Presented(_record(result), lines)


def _uniform(result: Extracted) -> str:
    """Return the command that makes what servers read that know no ranks of single layers."""
    words = ["plastic", "export", str(result.adapter.folder), "PEFT", "--to", "peft", "--uniform"]
    return shlex.join(words)


def _forms(result: Extracted) -> Table:
    table = figures("adapter", "bytes", "layers", "ranks", "energy", text=1)
    for form in (result.adapter, result.peft):
        ranks = form.ranks.values()
        table.add_row(
            str(form.folder),
            f"{form.nbytes:,}",
            f"{len(ranks)} of {len(result.changes)}",
            f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else str(max(ranks)),
            f"{form.energy:.2%}",
        )
    return table


def _losses(gain: Gain, base: str, tuned: str) -> Table:
    table = figures(f"loss on {gain.text}, {gain.tokens:,} tokens", "nats per token")
    for name, loss in (
        (base, gain.base),
        (f"{base} with the adapter", gain.adapted),
        (tuned, gain.tuned),
    ):
        table.add_row(name, f"{loss:.4f}")
    return table


def _share(gain: Gain) -> str:
    if gain.share is None:
        return "gain       the tuned checkpoint has none on this text; name its own with --text"
    return f"gain       {gain.share:.1%} of what the tuned checkpoint gains"


def _left(result: Extracted) -> list[Table | str]:
    lines: list[Table | str] = []
    kept = [left for left in result.left if left.kept]
    lost = [left for left in result.left if not left.kept]
    if kept:
        lines.append(f"beside     {_names(kept)}: as they became, in {result.beside}")
    if lost:
        lines.append(f"left out   {_names(lost)}: no adapter holds their change")
    return lines


def _names(left: list[LeftOut]) -> str:
    first = sorted(left, key=lambda one: -one.relative)[:_NAMED]
    words = [f"{one.name} (changed by {one.relative:.2%})" for one in first]
    more = len(left) - len(first)
    return ", ".join(words) + (f" and {more} more that changed less" if more else "")


def _record(result: Extracted) -> dict[str, Any]:
    return {
        "out": result.out,
        "adapter": _form(result.adapter),
        "peft": _form(result.peft),
        "layers": {
            change.name: {"relative_change": change.relative, "components": len(change.values)}
            for change in result.changes
        },
        "certificates": {path: one._asdict() for path, one in result.certificates.items()},
        "left": [vars(left) for left in result.left],
        "beside": result.beside,
        "gain": {**vars(result.gain), "share": result.gain.share} if result.gain else None,
    }


def _form(form: ExtractedForm) -> dict[str, Any]:
    return {
        "folder": form.folder,
        "bytes": form.nbytes,
        "energy": form.energy,
        "ranks": dict(form.ranks),
    }
