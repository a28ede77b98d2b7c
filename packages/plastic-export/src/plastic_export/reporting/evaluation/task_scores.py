"""The output of ``plastic evaluate --tasks``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from plastic_export.reporting.tables import Name, Presented, figures
from plastic_export.tasks.scores import ScoreDifference, TaskScore, TaskSettings

_NAMED = 4  # tasks that a line names


def present_scores(scores: Sequence[TaskScore]) -> Presented:
    """Show one row per task, measure and checkpoint.

    Args:
        scores: What was found. As JSON it is ``scores``, a list of the fields of `TaskScore`;
            what is not known is null.
    """
    return Presented({"scores": [asdict(s) for s in scores]}, [*_lines(scores)])


def _lines(scores: Sequence[TaskScore]) -> Iterator[Table | str]:
    yield _table(scores)
    yield ""
    yield "± standard errors, as lm-evaluation-harness gives them"
    yield from _about_differences(scores)
    yield from _settings(scores)


def _table(scores: Sequence[TaskScore]) -> Table:
    against = dict.fromkeys(s.difference.against for s in scores if s.difference)
    compared = [escape(name) for name in against]
    columns = [*compared, *(["difference"] if compared else [])]
    table = figures("task", "measure", "checkpoint", "items", "score", *columns, text=3)
    for s in scores:
        cells = [_items(s.settings), _with_error(s.value, s.error)]
        if compared:
            cells += _compared(s.difference)
        table.add_row(Name(s.task), s.measure, Name(s.checkpoint), *cells)
    return table


def _items(settings: TaskSettings) -> str:
    limited = settings.of is not None and settings.items < settings.of
    return f"{settings.items} of {settings.of}" if limited else f"{settings.items}"


def _compared(d: ScoreDifference | None) -> tuple[str, str]:
    if d is None:
        return "-", "-"
    return _with_error(d.score, d.score_error), _with_error(d.mean, d.error, "+.4f")


def _with_error(value: float, error: float | None, form: str = ".4f") -> str:
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:.4f}"


def _about_differences(scores: Sequence[TaskScore]) -> Iterator[str]:
    """Say what the errors of differences are."""
    found = [(s, s.difference) for s in scores if s.difference]
    if any(d.paired for _, d in found):
        yield "errors of differences are over the questions that both were asked"
    apart = dict.fromkeys(
        f"{s.task} {s.measure}" for s, d in found if not d.paired and d.error is not None
    )
    if apart:
        yield f"errors of differences as of independent scores: {_some(apart)}"


def _settings(scores: Sequence[TaskScore]) -> Iterator[str]:
    """Say what two runs must have in common, once for all tasks that share it."""
    alike: dict[TaskSettings, dict[str, None]] = {}
    for s in scores:
        shared = replace(s.settings, items=0, of=None)
        alike.setdefault(shared, {})[s.task] = None
    for t, tasks in alike.items():
        template = "chat template" if t.chat_template else "no chat template"
        yield (
            f"settings   {_some(tasks)}: version {t.version}, {t.shots} shots, {template}, "
            f"seed {t.seed}; lm-eval {t.harness}; {t.precision} on {t.device}"
        )


def _some(names: dict[str, Any]) -> str:
    first = ", ".join([*names][:_NAMED])
    more = len(names) - _NAMED
    return escape(f"{first} and {more} more" if more > 0 else first)
