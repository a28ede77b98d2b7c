"""The history of a training run, read from its logs: ranks, bytes and losses over the steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plastic_core.files import FormatError
from plastic_runtime import (
    LossRecord,
    PlasticityEvent,
    RankChange,
    rank_changes,
    read_events,
    read_losses,
)
from plastic_runtime.log import CHANGES

from plastic_export.folder.adapter_files import RUN_FILE, SIZES_FILE
from plastic_export.folder.run_files import DIAL, EVENTS, LOSSES
from plastic_export.training.forgetting.dial_file import DialFile, read_dial_file
from plastic_export.training.run_folder import RunFile, read_run_file
from plastic_export.training.sizes.curve import RunSize
from plastic_export.training.sizes.sizes_file import read_sizes_file

Series = tuple[tuple[int, float], ...]
"""Pairs of step and value, in order; the value holds until the next pair."""


@dataclass(frozen=True)
class LayerHistory:
    """The rank of one layer over the run.

    Attributes:
        path: Module path in the model.
        ranks: Steps and the rank from there on; the first one is at step 0.
    """

    path: str
    ranks: tuple[tuple[int, int], ...]

    @property
    def first(self) -> int:
        """Rank at the start."""
        return self.ranks[0][1]

    @property
    def last(self) -> int:
        """Rank at the end."""
        return self.ranks[-1][1]


@dataclass(frozen=True)
class History:
    """A training run as its logs tell it.

    Attributes:
        name: What the run is called.
        unit: What steps count: ``"training step"``, or ``"validation"`` where only events are
            known and count validation losses.
        steps: The last step that any log speaks of.
        layers: Every layer that the run file names or an event changed, in the model's order.
        awake: Bytes awake over the steps, as the adapters take them.
        asleep: Bytes asleep over the steps.
        train: Training losses.
        valid: Validation losses.
        events: Steps and events, oldest first; without those that only report.
        changes: What every change of ranks cost and gained, oldest first.
        max_bytes: Ceiling on the bytes awake, if the run file tells one.
        dial: Both losses under factors on every ``S``, if they were measured.
        sizes: What the adapters are at smaller sizes, if that was measured, the whole first.
    """

    name: str
    unit: str
    steps: int
    layers: tuple[LayerHistory, ...]
    awake: Series
    asleep: Series
    train: Series
    valid: Series
    events: tuple[tuple[int, PlasticityEvent], ...]
    changes: tuple[RankChange, ...]
    max_bytes: int | None = None
    dial: DialFile | None = None
    sizes: tuple[RunSize, ...] = ()


def read_history(
    run: str | os.PathLike[str], *, losses: str | os.PathLike[str] | None = None
) -> History:
    """Read the logs of a run.

    Args:
        run: A folder of ``plastic train``, or the events that a `PlasticityManager` logged.
        losses: Loss log (`read_losses`) beside a file of events; a folder has its own.

    Returns:
        The history, complete up to the last whole line of each log.

    Raises:
        FormatError: If there is no such run, it tells nothing yet, or a log is damaged.
        OSError: If a file cannot be read.

    Examples:
        >>> history = read_history(Path("RUN"))
        >>> [step for step, loss in history.valid]
        [0, 2, 4]
    """
    path = Path(run)
    if not path.exists():
        raise FormatError.about(path, "there is no such run", "name a folder or a file of events")
    known: RunFile | None = None
    dial: DialFile | None = None
    sizes: tuple[RunSize, ...] = ()
    events_file, losses_file = path, None if losses is None else Path(losses)
    if path.is_dir():
        if losses is not None:
            raise ValueError(f"`losses` must be None for a folder, which has its own, got {losses}")
        known = read_run_file(path / RUN_FILE) if (path / RUN_FILE).exists() else None
        dial = read_dial_file(path / DIAL) if (path / DIAL).exists() else None
        if (path / SIZES_FILE).exists():
            sizes = read_sizes_file(path / SIZES_FILE).points
        events_file, losses_file = path / EVENTS, path / LOSSES
    events = _events(events_file)
    records = _losses(losses_file, required=losses is not None)
    if not events and not records:
        reason = f"neither {EVENTS} nor {LOSSES} has a line"
        raise FormatError.about(path, reason, "name the folder of a run that has begun")
    return build_history(path.resolve().name, events, records, known, dial, sizes)


def build_history(
    name: str,
    events: Sequence[PlasticityEvent],
    losses: Sequence[LossRecord],
    run: RunFile | None = None,
    dial: DialFile | None = None,
    sizes: tuple[RunSize, ...] = (),
) -> History:
    """Put events and losses on one axis of steps.

    An event whose step is the number of validation losses that the manager had seen stands at the
    training step of the n-th finite one in ``losses``.

    Args:
        name: What the run is called.
        events: The events that were logged.
        losses: The losses that were logged; may be empty.
        run: The run file, which knows the layers that never changed.
        dial: What the dial was measured at.
        sizes: What the adapters were measured at.
    """
    train, valid = (
        tuple((r.step, r.loss) for r in losses if r.kind == kind and r.loss is not None)
        for kind in ("train", "valid")
    )
    when = [step for step, _ in valid]
    placed = [(_placed(e, when), e) for e in events]
    told = any(e.validation is not None for e in events)
    changes = tuple((step, e) for step, e in placed if e.action in CHANGES)
    start = {} if run is None else run.ranks
    start_bytes = None if run is None else run.bytes_awake
    awake, asleep = _bytes(changes, start_bytes)
    dated = [replace(event, step=step) for step, event in placed]
    return History(
        name=name,
        unit="training step" if when or told else "validation",
        steps=max([r.step for r in losses] + [step for step, _ in placed], default=0),
        layers=_layers(changes, start),
        awake=awake,
        asleep=asleep,
        train=train,
        valid=valid,
        events=changes,
        changes=tuple(rank_changes(dated, losses=valid, start_bytes=start_bytes)),
        max_bytes=None if run is None else run.max_bytes,
        dial=dial,
        sizes=sizes,
    )


def _events(file: Path) -> list[PlasticityEvent]:
    try:
        return read_events(file)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise FormatError(f"{error}; take the log of a PlasticityManager") from None


def _losses(file: Path | None, *, required: bool) -> list[LossRecord]:
    if file is None or not (required or file.exists()):
        return []
    try:
        return read_losses(file)
    except ValueError as error:
        raise FormatError(f"{error}; take a log of losses") from None


def _placed(event: PlasticityEvent, when: Sequence[int]) -> int:
    """Return the training step of an event, or what it counts if none is known.

    Args:
        event: The event.
        when: The training steps of all validation losses.
    """
    if event.validation is not None or not when:
        return event.step
    return 0 if event.step == 0 else when[min(event.step, len(when)) - 1]


def _layers(
    changes: Sequence[tuple[int, PlasticityEvent]], start: dict[str, int]
) -> tuple[LayerHistory, ...]:
    ranks = {path: [(0, rank)] for path, rank in start.items()}
    for step, event in changes:
        ranks.setdefault(event.layer, [(0, event.rank_before)])
        ranks[event.layer].append((step, event.rank_after))
    paths = [*start, *sorted(ranks.keys() - start.keys(), key=_order)]
    return tuple(LayerHistory(path, tuple(ranks[path])) for path in paths)


def _order(path: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts block 10 behind block 9."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split("."))


def _bytes(
    changes: Sequence[tuple[int, PlasticityEvent]], start: int | None
) -> tuple[Series, Series]:
    awake = [(step, float(e.bytes_awake)) for step, e in changes]
    asleep = [(step, float(e.bytes_asleep)) for step, e in changes]
    if start is not None:
        awake.insert(0, (0, float(start)))
        asleep.insert(0, (0, 0.0))
    return tuple(awake), tuple(asleep)
