"""The prices of an unfinished plan, in a file beside it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plastic_core.files import Closing, FormatError, Journal
from plastic_runtime.distributed import Team

from plastic_export.plan.measured import GroupCost, GroupCosts
from plastic_export.plan.offers import BitsPlan, Candidate, Offer, Tried

_FIRST = {"prices of": "an unfinished plan"}


class PriceJournal(Closing):
    """The prices that a run which was cut leaves to the next one. A context manager.

    Every matrix is noted down when it is priced, every group when it is measured, every plan when
    it is tried. Floats come back as the same floats, so that a plan which was cut ends with the
    bytes of one which was not. Prices of anything else than ``made_for`` are forgotten.

    Of several processes that price together each has a file; `exchange` lets all know what each
    found, and leaves it in that of the first one.

    Args:
        file: The file; begun where it is missing.
        made_for: All that prices depend on, in the types of JSON.
        others: Files that other processes of a run which was cut left; they are taken over and
            removed.

    Raises:
        FormatError: If a file is not ours.
        OSError: If one cannot be read or written.
    """

    def __init__(
        self, file: Path, made_for: Mapping[str, Any], others: Sequence[Path] = ()
    ) -> None:
        for path in (file, *others):
            check_price_journal(path)
        wanted = json.loads(json.dumps(made_for))
        self._journal = Journal(file)
        if self._journal.records[:2] != [_FIRST, wanted]:
            self._journal.close()
            file.unlink()
            self._journal = Journal(file)
            self._journal.append(_FIRST)
            self._journal.append(wanted)
        self._offers = dict[str, Mapping[str, Any]]()
        self._measured = dict[tuple[str, ...], Any]()
        self._tried = dict[str, Tried]()
        self._exchanged = 2
        for record in self._journal.records[2:]:
            self._learn(record)
        for path in others:
            with Journal(path) as left:
                if left.records[:2] == [_FIRST, wanted]:
                    self._take_over(left.records[2:])
            path.unlink()

    def exchange(self, team: Team) -> None:
        """Tell the other processes of a team what was noted down here since the last time."""
        new = self._journal.records[self._exchanged :]
        for rank, records in enumerate(team.gathered(new)):
            if rank != team.rank and team.leads:
                self._take_over(records)
            elif rank != team.rank:
                for record in records:
                    self._learn(record)
        self._exchanged = len(self._journal.records)

    def _take_over(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Note down what another process had noted down."""
        for record in records:
            self._learn(record)
            self._journal.append(record)

    def _learn(self, record: Mapping[str, Any]) -> None:
        if "matrix" in record:
            self._offers[record["matrix"]["name"]] = record
        elif "group" in record:
            self._measured[tuple(record["group"])] = record["measured"]
        else:
            self._tried[_key(record["tried"])] = Tried(*record["trial"])

    def _add(self, record: dict[str, Any]) -> None:
        self._journal.append(record)
        self._learn(record)

    def offers(self, m: Candidate) -> list[Offer] | None:
        """Return what was found of a matrix; None if it is to be priced."""
        record = self._offers.get(m.name)
        if record is None or record["matrix"] != _record(m):
            return None
        return [Offer(*offer) for offer in record["offers"]]

    def add_offers(self, m: Candidate, offers: Sequence[Offer]) -> None:
        """Note down a matrix that is priced."""
        self._add({"matrix": _record(m), "offers": [list(offer) for offer in offers]})

    def group_costs(self, group: Sequence[str]) -> dict[int, GroupCost] | None:
        """Return what was measured of a group, by bits; None if it is to be."""
        found = self._measured.get(tuple(group))
        return None if found is None else {bits: GroupCost(*values) for bits, *values in found}

    def add_group_costs(self, group: Sequence[str], found: GroupCosts) -> None:
        """Note down what was measured of a group of matrices, named in order."""
        rows = [[bits, *cost] for bits, cost in found.items()]
        self._add({"group": list(group), "measured": rows})

    def trial(self, plan: BitsPlan) -> Tried | None:
        """Return what a plan of these choices was found to cost; None if it is to be tried."""
        return self._tried.get(_key(_choices(plan)))

    def add_trial(self, plan: BitsPlan, found: Tried) -> None:
        """Note down a plan that was tried."""
        self._add({"tried": _choices(plan), "trial": list(found)})

    def close(self) -> None:
        """Close the file; it stays."""
        self._journal.close()

    def leave(self, error: BaseException | None) -> None:
        """Close the file; remove it after bad input, which nothing goes on from."""
        self.close()
        if isinstance(error, ValueError):
            self._journal.path.unlink(missing_ok=True)


def check_price_journal(file: Path) -> None:
    """Refuse a file that stands where prices are to be noted down, and is no such journal."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise FormatError.about(file, "it is a link or a folder", "remove it")
    if not file.exists():
        return
    text = json.dumps(_FIRST).encode()
    with file.open("rb") as stream:
        begun = stream.readline(2 * len(text))  # a crash may have torn it
    if not (b"%08x %s\n" % (zlib.crc32(text), text)).startswith(begun):
        reason = "no prices of an unfinished plan, and in the way of them"
        raise FormatError.about(file, reason, "remove it, or choose another name for the plan")


def _record(m: Candidate) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(asdict(m)))
    return record


def _choices(plan: BitsPlan) -> dict[str, list[Any]]:
    return {name: list(offer.choice) for name, offer in plan.chosen.items()}


def _key(record: Any) -> str:
    return json.dumps(record, sort_keys=True)
