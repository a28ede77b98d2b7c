"""All that ``plastic evaluate`` measured of a checkpoint on a text, as a block of lines."""

from __future__ import annotations

from plastic_runtime import format_bytes
from rich.markup import escape
from rich.table import Table

from plastic_export.evaluation.distance import Distance
from plastic_export.evaluation.distribution import needed_tokens
from plastic_export.evaluation.estimates import Evaluation
from plastic_export.evaluation.intervals import Estimated
from plastic_export.reporting.tables import figures

PERCENT, MILLINAT = 1e-2, 1e-3


def full_lines(r: Evaluation) -> list[Table | str]:
    """Return every figure of a row: what it is about, its facts, what its tokens show.

    Examples:
        >>> results = compare(["PACKED"], ["text.txt"], reference="SRC", window=24, windows=8)
        >>> "text.txt: PACKED" in full_lines(results[0])
        True
    """
    lines: list[Table | str] = ["", f"{r.text}: {r.checkpoint}", _facts(r)]
    return lines if r.distance is None else [*lines, "", _over_tokens(r, r.distance)]


def _facts(r: Evaluation) -> Table:
    table = figures("", "", text=2)
    table.show_header = False
    perplexity = Estimated(r.perplexity, r.perplexity_error, r.perplexity_interval)
    rows = [("perplexity", _stated(perplexity, ".6f"))]
    if r.size is not None:
        bits = r.size.bits_per_weight
        per_weight = "" if bits is None else f", {bits:.4f} bits per weight"
        size = f"{format_bytes(r.size.model_bytes)}, {r.size.model_bytes:,} bytes{per_weight}"
        rows.insert(0, ("model files", size))
    if r.distance is not None:
        rows += _beside_the_reference(r, r.distance)
    rows.append(("not finite", f"{r.not_finite:.4%} of {r.tokens} tokens"))
    if r.runtime is not None:
        speed, peak = r.runtime.tokens_per_second, format_bytes(r.runtime.peak_memory)
        rows.append(("run", f"{speed:.0f} tokens per second, {peak} of MLX's memory at most"))
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _beside_the_reference(r: Evaluation, d: Distance) -> list[tuple[str, str]]:
    top1 = Estimated(r.top1 or 0.0, r.top1_error, r.top1_interval)
    correlation = "-" if d.correlation is None else f"{d.correlation:.2%}"
    kl = Estimated(r.kl or 0.0, r.kl_error, r.kl_interval)
    back = [] if d.back is None else [("KL, mnat, back", _stated(d.back, ".6f", MILLINAT))]
    return [
        ("of the reference", f"{d.reference_perplexity:.6f}"),
        ("ratio", _stated(d.ratio, ".6f")),
        ("ln of the ratio", _stated(d.log_ratio, ".6f")),
        ("correlation of ln", correlation),
        ("KL, mnat", _stated(kl, ".6f", MILLINAT)),
        *back,
        ("same top 1, %", _stated(top1, ".3f", PERCENT)),
        ("same top 5, %", _stated(d.top5, ".3f", PERCENT)),
        ("change of p, %", _stated(d.change, ".3f", PERCENT)),
        ("its RMS, %", _stated(d.change_rms, ".3f", PERCENT)),
        ("worst windows, mnat", _worst(d)),
    ]


def _worst(d: Distance) -> str:
    return ", ".join(f"{w.kl / MILLINAT:.3f} in window {w.window}" for w in d.worst_windows)


def _over_tokens(r: Evaluation, d: Distance) -> Table:
    """Percentiles, the largest first, as llama.cpp prints them."""
    kl, change = d.kl_over_tokens, d.change_over_tokens
    table = figures("over the tokens", "KL, mnat", "change of p, %")
    table.add_row("most", *_pair(kl.most, change.most, r.tokens, 100))
    for percent in sorted(kl.percentiles, reverse=True):
        name = "median" if percent == 50 else f"{percent:g} %"
        pair = kl.percentiles[percent], change.percentiles[percent]
        table.add_row(name, *_pair(*pair, r.tokens, percent))
    table.add_row("least", *_pair(kl.least, change.least, r.tokens, 0))
    return table


def _pair(kl: float | None, change: float | None, tokens: int, percent: float) -> tuple[str, str]:
    if kl is None or change is None:
        return f"needs {needed_tokens(percent)} tokens", f"has {tokens}"
    return f"{kl / MILLINAT:.6f}", f"{change / PERCENT:.3f}"


def _stated(e: Estimated, form: str, unit: float = 1) -> str:
    """Write ``value ± error [low, high]``, as far as they are known."""
    words = [f"{e.value / unit:{form}}"]
    if e.error is not None:
        words.append(f"± {e.error / unit:{form}}")
    if e.interval is not None:
        low, high = e.interval
        words.append(f"[{low / unit:{form}}, {high / unit:{form}}]")
    return " ".join(words)
