"""Journals of several processes: each learns what all found, and the first keeps it."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from plastic_core.files import FormatError
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.plan.price_journal import PriceJournal
from plastic_runtime.distributed import Team

MADE_FOR = {"seed": 0}
OFFERS = [Offer(4, 2560, 0.1 + 0.2, group_size=64)]


def matrix(name: str) -> Candidate:
    return Candidate(name, (64, 64), "BF16", 64, 8192)


class Threads(Team):
    """Two processes that are threads of this one."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        super().__init__()
        self.rank, self.size, self.values, self.barrier = rank, 2, values, barrier

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(60)
        found = list(self.values)
        self.barrier.wait(60)
        return found


def test_each_learns_what_the_other_found_and_the_first_notes_it_down(tmp_path: Path) -> None:
    values, barrier = [None, None], Barrier(2)
    files = [tmp_path / "plan.prices", tmp_path / "plan.prices.1"]
    learnt: dict[int, list[list[Offer] | None]] = {}

    def work(rank: int) -> None:
        team = Threads(rank, values, barrier)
        with PriceJournal(files[rank], MADE_FOR) as journal:
            journal.exchange(team)
            journal.add_offers(matrix(f"w{rank}"), OFFERS)
            journal.exchange(team)
            learnt[rank] = [journal.offers(matrix(f"w{other}")) for other in range(2)]

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert learnt == {0: [OFFERS, OFFERS], 1: [OFFERS, OFFERS]}
    with PriceJournal(files[0], MADE_FOR) as first:
        assert first.offers(matrix("w1")) == OFFERS
    with PriceJournal(files[1], MADE_FOR) as second:
        assert second.offers(matrix("w0")) is None


@pytest.mark.parametrize(("made_for", "known"), [(MADE_FOR, OFFERS), ({"seed": 1}, None)])
def test_what_a_run_that_was_cut_left_is_taken_over_if_it_is_of_the_same(
    tmp_path: Path, made_for: dict[str, int], known: list[Offer] | None
) -> None:
    file, left = tmp_path / "plan.prices", tmp_path / "plan.prices.1"
    with PriceJournal(left, MADE_FOR) as journal:
        journal.add_offers(matrix("w"), OFFERS)
    with PriceJournal(file, made_for, [left]) as journal:
        assert journal.offers(matrix("w")) == known
    assert not left.exists()
    with PriceJournal(file, made_for) as journal:
        assert journal.offers(matrix("w")) == known


def test_a_file_that_is_no_journal_is_not_removed(tmp_path: Path) -> None:
    foreign = tmp_path / "plan.prices.1"
    foreign.write_text("mine")
    with pytest.raises(FormatError, match="in the way"):
        PriceJournal(tmp_path / "plan.prices", MADE_FOR, [foreign])
    assert foreign.read_text() == "mine"
