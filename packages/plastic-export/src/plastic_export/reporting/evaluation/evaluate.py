"""The output of ``plastic evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from plastic_runtime import format_bytes
from rich.markup import escape
from rich.table import Table

from plastic_export.evaluation.distribution import needed_tokens
from plastic_export.evaluation.estimates import Evaluation
from plastic_export.evaluation.intervals import Interval
from plastic_export.reporting.evaluation.full_evaluation import full_lines
from plastic_export.reporting.tables import Name, Presented, figures

MEASURES = ("nll", "perplexity", "kl", "top1")


def present_evaluations(results: Sequence[Evaluation], *, full: bool = False) -> Presented:
    """Show one row per text and checkpoint, then the differences from the first checkpoint.

    Args:
        results: What was measured.
        full: Whether every figure of every row follows, a block of lines each.
    """
    record = {"evaluations": [_record(r) for r in results]}
    return Presented(record, _lines(results, full=full))


def _record(r: Evaluation) -> dict[str, Any]:
    """Return one result of ``plastic evaluate`` as JSON; ``evaluations`` lists them.

    ``checkpoint`` and ``text``; the numbers ``windows`` and ``tokens``; for each of ``nll``,
    ``perplexity``, ``kl`` and ``top1`` its value, its standard error ``..._error`` and its 95 %
    limits ``..._interval``, a list of two; ``difference``, an object with ``measure`` ("kl" or
    "nll"), ``mean``, ``error``, ``interval`` and ``verdict`` ("better", "worse" or "no difference
    shown"); ``vocabulary``, ``padding``, ``overflows``, ``not_finite`` and ``lost``; the objects
    ``distance``, ``size``, ``runtime`` and ``settings``, with a ``digest``. Means in ``distance``
    are objects with ``value``, ``error`` and ``interval``, percentiles are named by percentage.
    Units as in `Evaluation` and the classes of its parts. What is not known is null: kl, top1 and
    the distance without a reference, the difference of the first checkpoint, errors and limits of
    one window, percentiles that the text is too short for.
    """
    intervals = {f"{name}_interval": getattr(r, f"{name}_interval") for name in MEASURES}
    parts: dict[str, Any] = {"difference": None, "settings": None}
    if r.difference is not None:
        parts["difference"] = asdict(r.difference) | {"verdict": r.difference.verdict}
    if r.settings is not None:
        parts["settings"] = asdict(r.settings) | {"digest": r.settings.digest}
    return asdict(r) | intervals | parts


def _lines(results: Sequence[Evaluation], *, full: bool) -> list[Table | str]:
    blocks = [line for r in results for line in full_lines(r)] if full else []
    return [
        _table(results),
        *_differences(results),
        *blocks,
        "",
        _about_errors(results),
        *_too_short(results),
        *_padding(results),
        *_overflows(results),
        *_not_finite(results),
        *_settings(results),
    ]


def _table(results: Sequence[Evaluation]) -> Table:
    """A row for every text and checkpoint, in the few columns that people rank by."""
    several = len({r.text for r in results}) > 1
    compared, far = any(r.distance for r in results), any(map(_farthest, results))
    words = [*(["text"] if several else []), "checkpoint"]
    numbers = ["size", "bits", "perplexity"]
    if compared:
        numbers += ["KL to reference, mnat", *(["99.9 %"] if far else []), "top-1"]
    table = figures(*words, *numbers, text=len(words))
    for r in results:
        interval = None if compared else r.perplexity_interval
        cells = [
            format_bytes(r.size.model_bytes) if r.size else "-",
            f"{r.size.bits_per_weight:.2f}" if r.size and r.size.bits_per_weight else "-",
            _with_interval(r.perplexity, interval, ".3f"),
        ]
        if compared:
            cells += [
                _with_interval(r.kl, r.kl_interval, ".3f", unit=1e-3),
                *([_with_interval(_farthest(r), None, ".1f", unit=1e-3)] if far else []),
                _with_interval(r.top1, None, ".2%"),
            ]
        named = [*([Name(r.text)] if several else []), Name(r.checkpoint)]
        table.add_row(*named, *cells)
    return table


def _farthest(r: Evaluation) -> float | None:
    """Return the KL that one token in a thousand exceeds; None of too few tokens."""
    return r.distance.kl_over_tokens.percentiles[99.9] if r.distance else None


def _about_errors(results: Sequence[Evaluation]) -> str:
    over = results[0].settings.errors_over if results[0].settings else "windows"
    return f"in brackets: 95 % confidence intervals, Student's t over the {over}"


def _too_short(results: Sequence[Evaluation]) -> list[Table | str]:
    """Say why a percentile is left out."""
    least = needed_tokens(99.9)
    short = {r.text: r.tokens for r in results if r.distance and r.tokens < least}
    return [
        f"no 99.9 % of {escape(text)}: it needs {least} tokens, and {tokens} were scored"
        for text, tokens in short.items()
    ]


def _not_finite(results: Sequence[Evaluation]) -> list[Table | str]:
    """Name the checkpoints that count as infinitely wrong at some tokens."""
    return [
        f"not finite: {r.not_finite:.2%} of the tokens of {escape(r.text)} in "
        f"{escape(r.checkpoint)}, from {r.lost} on; they count as infinitely wrong"
        for r in results
        if r.lost
    ]


def _settings(results: Sequence[Evaluation]) -> list[Table | str]:
    """Say what two runs must have in common, once for every text."""
    return [
        f"settings   {s.digest}: {escape(s.text)} ({s.text_sha256[:12]}), {s.windows} windows of "
        f"{s.window} tokens, {s.scored} scored, BOS: {s.bos}; {s.precision} on {s.device}"
        + (f"; like {s.like}" if s.like else "")
        for s in dict.fromkeys(r.settings for r in results if r.settings)
    ]


def _overflows(results: Sequence[Evaluation]) -> list[Table | str]:
    """Name the checkpoints that are finite in float32 alone."""
    names = dict.fromkeys(escape(r.checkpoint) for r in results if r.overflows)
    return [f"not finite as stored, in float16: {', '.join(names)}"] if names else []


def _padding(results: Sequence[Evaluation]) -> list[Table | str]:
    """Say what took no part in any softmax."""
    padding = max(r.padding for r in results)
    compared = f"compared on the {results[0].vocabulary} tokens that all know"
    return [f"{compared}; {padding} rows of padding take no part"] if padding else []


def _differences(results: Sequence[Evaluation]) -> list[Table | str]:
    """Each checkpoint against the first, if there are several."""
    compared = [(r, r.difference) for r in results if r.difference is not None]
    if not compared:
        return []
    measure = compared[0][1].measure.upper()
    against = f"{measure} - that of {escape(results[0].checkpoint)}, mnat"
    table = figures("text", "checkpoint", against, "verdict", text=2)
    for r, d in compared:
        difference = _with_interval(d.mean, d.interval, "+.3f", unit=1e-3)
        table.add_row(Name(r.text), Name(r.checkpoint), difference, d.verdict)
    return ["", table]


def _with_interval(
    value: float | None, interval: Interval | None, form: str, *, unit: float = 1
) -> str:
    """Write ``value [low, high]``, as far as they are known."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value / unit:{form}}"
    low, high = interval
    return escape(f"{value / unit:{form}} [{low / unit:{form}}, {high / unit:{form}}]")
