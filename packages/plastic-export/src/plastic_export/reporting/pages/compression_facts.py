"""A compression in a few facts: words for people, numbers for machines."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from plastic_runtime import format_bytes
from plastic_runtime.dialling import SLEEP

from plastic_export.exact.exactness import EXACT
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.plan.offers import BitsPlan
from plastic_export.reporting.pages.compression_view import CompressionView, ShownMatrix

MODEL = "model*.safetensors"
BESIDE = {SLEEP: "asleep", EXACT: "for every bit", f"{FOLDER}/{FILE}": "adapter"}


def compression_facts(view: CompressionView) -> dict[str, str]:
    """Return what is true of all budgets, in the order in which to show it."""
    told = {"source": view.source, "format": view.format}
    if view.manifest is not None:
        files = view.manifest.files
        model = [file["bytes"] for name, file in files.items() if fnmatch(name, MODEL)]
        told["model files"] = format_bytes(sum(model))
        for name, what in BESIDE.items():
            if name in files:
                told[what] = format_bytes(files[name]["bytes"])
    nbytes = sum(one.nbytes for one in view.left)
    told["left as it was"] = f"{len(view.left)} weights, {format_bytes(nbytes)}"
    if text := _calibration(view):
        told["calibration"] = text
    if healed := _healing(view):
        before, after = (1e3 * kl for kl in healed)
        told["healed"] = f"KL {before:.4g} \N{RIGHTWARDS ARROW} {after:.4g} millinats per token"
    return told


def budget_facts(view: CompressionView, asked: str) -> dict[str, str]:
    """Return what one budget comes to."""
    numbers = budget_numbers(view, asked)
    kept = numbers["bytes"] / numbers["source_bytes"]
    told = {
        "matrices": f"{format_bytes(numbers['source_bytes'])} \N{RIGHTWARDS ARROW} "
        f"{format_bytes(numbers['bytes'])} ({kept:.1%}), {numbers['matrices']} of them, "
        f"{numbers['unchanged']} as they were",
        "bits per weight": f"{numbers['bits_per_weight']:.4f}",
    }
    if (kl := numbers["predicted_kl"]) is not None:
        what = "predicted KL" if view.plan is not None else "sum of the prices"
        told[what] = f"{1e3 * kl:.4g} millinats per token" + _between(numbers["interval"])
    if numbers["parked"]:
        told["asleep"] = f"{numbers['parked']:,} components"
    return told


def compression_record(view: CompressionView) -> dict[str, Any]:
    """Return the numbers of a compression, for JSON; what is not known is null.

    Divergences are in nats per token, ``budgets`` one object for every budget shown.
    """
    healed = _healing(view)
    return {
        "name": view.name,
        "source": view.source,
        "format": view.format,
        "left": len(view.left),
        "left_bytes": sum(one.nbytes for one in view.left),
        "healed_kl_before": healed[0] if healed else None,
        "healed_kl_after": healed[1] if healed else None,
        "budgets": [budget_numbers(view, asked) for asked in view.matrices],
    }


def budget_numbers(view: CompressionView, asked: str) -> dict[str, Any]:
    """Return the numbers of one budget; without a plan ``predicted_kl`` is the sum of prices."""
    matrices = view.matrices[asked]
    budget = _budget(view, asked)
    nbytes = sum(m.stored_bytes for m in matrices)
    return {
        "asked": asked,
        "matrices": len(matrices),
        "unchanged": sum(m.is_unchanged for m in matrices),
        "source_bytes": sum(m.source_bytes for m in matrices),
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / sum(m.weights for m in matrices),
        "predicted_kl": _summed(matrices) if budget is None else budget.predicted,
        "interval": None if budget is None else budget.interval,
        "rank": sum(m.rank for m in matrices),
        "parked": sum(m.parked for m in matrices),
    }


def _budget(view: CompressionView, asked: str) -> BitsPlan | None:
    known = () if view.plan is None else view.plan.budgets
    return next((b for b in known if b.asked == asked), None)


def _summed(matrices: Sequence[ShownMatrix]) -> float | None:
    """Return the sum of the predictions, or None where there are none."""
    costs = [m.predicted_kl for m in matrices if m.predicted_kl is not None]
    return sum(costs) if costs else None


def _between(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = (1e3 * end for end in interval)
    return f", {low:.3g} to {high:.3g} in nine cases of ten"


def _calibration(view: CompressionView) -> str:
    """Say what text was read."""
    if view.plan is not None:
        read: Any = view.plan.calibration
    else:
        read = view.manifest.options.get("calibration") if view.manifest else None
    if not read:
        return ""
    named = read.get("set")
    text = f"{named['name']}, version {named['version']}" if named else "a text of one's own"
    window, windows = read.get("window"), read.get("windows")
    return f"{text}, {windows} windows of {window} tokens" if windows else text


def _healing(view: CompressionView) -> tuple[float, float] | None:
    """Return the divergence before and after the healing, nats per token.

    What was dialled since has another.
    """
    options = view.manifest.options if view.manifest else {}
    record = None if "dial" in options else options.get("heal")
    return (record["kl_before"], record["kl_after"]) if record else None
