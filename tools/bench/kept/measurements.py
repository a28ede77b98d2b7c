"""Measurements, each in a process of its own, and the file that keeps them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, Any]
"""What a measurement found, in the types of JSON."""
STOPPED = "stopped"
"""The one figure of a measurement that took too long: the seconds it was allowed."""

LONGEST = 60
"""Characters of a setting that is named while it is measured, at most: no digests."""


class NotMeasured(Exception):
    """There is no figure; the message says why."""


class KeptFigures(NamedTuple):
    """One measurement of the file.

    Attributes:
        kind: What was measured.
        settings: All that the figures depend on.
        figures: What was found.
    """

    kind: str
    settings: dict[str, Any]
    figures: Figures


class Measurements:
    """Figures by what was measured and with which settings, kept as lines of JSON.

    A measurement that the file holds is not repeated, so that a table can be put together from
    rows that were measured one at a time on a quiet machine.

    Args:
        script: The script whose ``--child KIND SETTINGS`` prints the figures as JSON.
        file: Where figures are kept; the last line of a measurement counts.
        again: Measure anew whatever is asked for.
        kept: Measure nothing: what the file does not hold is `NotMeasured`.
        places: Settings of every child that its figures do not depend on: where files are.
        limit: Seconds of processor time after which the child ends itself by SIGXCPU; it is told
            them. The figure is then ``{"stopped": limit}``, until more seconds are allowed.
    """

    def __init__(
        self,
        script: Path,
        file: Path,
        *,
        again: bool,
        kept: bool,
        places: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        self._script, self._file = script, file
        self._again, self._kept = again, kept
        self._limit = limit
        self._places = {**(places or {})} | ({} if limit is None else {"limit": limit})
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines]
        self._known = {
            _key(r["kind"], r["settings"]): KeptFigures(r["kind"], r["settings"], r["figures"])
            for r in records
        }
        self._fresh = set[str]()

    def __iter__(self) -> Iterator[KeptFigures]:
        """Yield all that is kept, each measurement once."""
        yield from self._known.values()

    def of(self, kind: str, **settings: Any) -> Figures:
        """Return the figures of a measurement, made now or kept from an earlier run.

        Raises:
            NotMeasured: If it failed or is not to be made now.
        """
        key = _key(kind, settings)
        known = key in self._known and (key in self._fresh or not self._again)
        if not known or (not self._kept and self._was_stopped_early(key)):
            if self._kept:
                raise NotMeasured(f"{kind}: not in {self._file}")
            self._keep(key, kind, settings, self._measured(kind, settings))
        return self._known[key].figures

    def _was_stopped_early(self, key: str) -> bool:
        """Tell whether a measurement was stopped after fewer seconds than are allowed now."""
        allowed = self._known[key].figures.get(STOPPED)
        return allowed is not None and (self._limit is None or self._limit > allowed)

    def _measured(self, kind: str, settings: dict[str, Any]) -> Figures:
        short = {name: value for name, value in settings.items() if len(str(value)) <= LONGEST}
        shown = " ".join(f"{name}={value}" for name, value in short.items())
        print(f"{kind} {shown}", file=sys.stderr, flush=True)
        given = json.dumps(settings | self._places)
        command = [sys.executable, str(self._script), "--child", kind, given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == -signal.SIGXCPU:
            return {STOPPED: self._limit}
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            if len(said) > 1:
                print(done.stderr, file=sys.stderr)
            raise NotMeasured(f"{kind}: {said[-1]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures

    def _keep(self, key: str, kind: str, settings: dict[str, Any], figures: Figures) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": kind,
            "settings": settings,
            "figures": figures,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        self._known[key] = KeptFigures(kind, settings, figures)
        self._fresh.add(key)


def _key(kind: str, settings: dict[str, Any]) -> str:
    return json.dumps([kind, settings], sort_keys=True)


Kind = Callable[..., Figures]
"""A measurement: settings by name, figures out."""
