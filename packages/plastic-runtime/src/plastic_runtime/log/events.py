"""The decisions of the manager, one event each: a JSONL log and a table."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plastic_runtime.log.jsonlines import append_line, whole_lines

_COUNTS = ("step", "rank_before", "rank_after", "bytes_awake", "bytes_asleep")
_WORDS = ("layer", "action", "why")
_NUMBERS = ("score", "loss_before", "loss_after", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlasticityEvent:
    """One decision about one layer.

    Attributes:
        time: Seconds since the Unix epoch.
        step: Training step after which it was decided, as in the log of losses; where the manager
            is not told of training steps, the number of validation losses that it had seen.
        layer: Path of the layer in the model.
        action: ``"grow"``, ``"shrink"``, ``"wake"`` or ``"keep"``.
        rank_before: Awake components before the change.
        rank_after: Awake components after it.
        why: One clause a person can read.
        score: Score of the layer under the manager's criterion; None where none was taken.
        bytes_awake: Bytes of the factors awake in the whole model, after the change.
        bytes_asleep: Bytes of the factors asleep in the whole model, after the change.
        loss_before: Moving loss at the decision; None before the first one is known.
        loss_after: Moving loss once the change has been judged; None until then.
        validation: Number of validation losses that the manager had seen; None where that is
            ``step``.
        seconds: Time that it took since the decision began, or since its event before; None in
            older logs. Not compared, as the same run takes another time.

    Examples:
        >>> event = PlasticityEvent(
        ...     time=0.0, step=3, layer="up", action="grow", rank_before=2, rank_after=4,
        ...     why="most score per byte", bytes_awake=80, bytes_asleep=0,
        ... )
        >>> event.rank_after - event.rank_before
        2
    """

    time: float
    step: int
    layer: str
    action: str
    rank_before: int
    rank_after: int
    why: str
    score: float | None = None
    bytes_awake: int
    bytes_asleep: int
    loss_before: float | None = None
    loss_after: float | None = None
    validation: int | None = None
    seconds: float | None = field(default=None, compare=False)

    def to_json(self) -> str:
        """Return the event as one line of standard JSON; NaN and infinities become null."""
        fields = {name: _finite(value) for name, value in dataclasses.asdict(self).items()}
        return json.dumps(fields, allow_nan=False)


class EventLog:
    """Events in memory and, given a path, one JSON line each in a file.

    Every line is flushed to the operating system before ``append`` returns; the file is not
    held open in between. A last line left without its end by a crash is closed first, so the
    next event starts a line of its own.

    Args:
        path: File to append to; None keeps the events in memory only.

    Examples:
        >>> log = EventLog("events.jsonl")
        >>> event = PlasticityEvent(
        ...     time=0.0, step=3, layer="up", action="grow", rank_before=2, rank_after=4,
        ...     why="most score per byte", bytes_awake=80, bytes_asleep=0,
        ... )
        >>> log.append(event)
        >>> len(log), len(read_events("events.jsonl"))
        (1, 1)
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._events: list[PlasticityEvent] = []

    def append(self, event: PlasticityEvent) -> None:
        """Add one event, to the file first.

        Raises:
            OSError: If the file cannot be written; the event is then not added.
        """
        if self.path is not None:
            append_line(self.path, event.to_json())
        self._events.append(event)

    def __iter__(self) -> Iterator[PlasticityEvent]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> PlasticityEvent:
        return self._events[index]


def read_events(path: str | os.PathLike[str]) -> list[PlasticityEvent]:
    """Return the events of a log file, without lines that a crash cut short.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If any other line is not an event; names the file and the line.

    Examples:
        >>> event = PlasticityEvent(
        ...     time=0.0, step=3, layer="up", action="grow", rank_before=2, rank_after=4,
        ...     why="most score per byte", bytes_awake=80, bytes_asleep=0,
        ... )
        >>> EventLog("events.jsonl").append(event)
        >>> read_events("events.jsonl") == [event]
        True
    """
    events = []
    for number, line in whole_lines(path):
        try:
            events.append(_checked(PlasticityEvent(**json.loads(line))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: line {number} is not an event: {error}") from None
    return events


def _checked(event: PlasticityEvent) -> PlasticityEvent:
    """Refuse what an event cannot hold: a log is read by more than its writer."""
    fields = dataclasses.asdict(event)
    counted = [*_COUNTS, *(["validation"] if event.validation is not None else [])]
    counts = all(type(fields[name]) is int and fields[name] >= 0 for name in counted)
    words = all(type(fields[name]) is str for name in _WORDS)
    numbers = [fields["time"], *(fields[name] for name in _NUMBERS if fields[name] is not None)]
    if not (counts and words and all(type(number) in (int, float) for number in numbers)):
        raise ValueError("a field has the wrong type or a count is negative")
    return event


def format_bytes(count: int) -> str:
    """Return a number of bytes for a person: ``"512 B"``, ``"12.3 KiB"``, ``"1.5 MiB"``.

    Units are powers of 1024 (IEC 80000-13).

    Examples:
        >>> format_bytes(1_572_864)
        '1.5 MiB'
    """
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1023.95:  # what would print as 1024.0 belongs to the next unit
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def events_table(events: Iterable[PlasticityEvent]) -> str:
    """Return the events as a table in plain text, one row each, columns aligned.

    Examples:
        >>> event = PlasticityEvent(
        ...     time=0.0, step=3, layer="up", action="grow", rank_before=2, rank_after=4,
        ...     why="most score per byte", bytes_awake=80, bytes_asleep=0,
        ... )
        >>> print(events_table([event]))
        step  layer  action  rank    score  awake  asleep  loss  why
        ----  -----  ------  ------  -----  -----  ------  ----  -------------------
        3     up     grow    2 -> 4  -      80 B   0 B     -     most score per byte
    """
    header = ("step", "layer", "action", "rank", "score", "awake", "asleep", "loss", "why")
    rows = [header, *(_row(event) for event in events)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(event: PlasticityEvent) -> tuple[str, ...]:
    loss = _number(event.loss_before)
    if event.loss_after is not None:
        loss = f"{loss} -> {_number(event.loss_after)}"
    return (
        str(event.step),
        event.layer,
        event.action,
        f"{event.rank_before} -> {event.rank_after}",
        _number(event.score),
        format_bytes(event.bytes_awake),
        format_bytes(event.bytes_asleep),
        loss,
        event.why,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
