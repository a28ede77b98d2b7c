"""Prices outlive a run that was cut, and serve the same plan alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plastic_core.files import FormatError
from plastic_export.calibration.text import Calibration
from plastic_export.compression import planning
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.plan import prices
from plastic_export.plan.choices import Choices
from plastic_export.plan.measured import GroupCost
from plastic_export.plan.offers import BitsPlan, Candidate, Offer, Tried
from plastic_export.plan.price_journal import PriceJournal
from plastic_export.plan.trial import PlanTrial

FEW = Choices(bits=(2, 4), group_sizes=(64,))
MADE_FOR = {"seed": 1, "bits": [2, 4]}
MATRIX = Candidate("w", (64, 32), "BF16", 32, 4096)
OFFERS = [Offer(2, 100, 1 / 3, group_size=64), Offer(None, 4096, 0.0)]
GROUP = ["v", "w"]
MEASURED = {2: GroupCost(1 / 3, 0.1, 0.2, 0.7), 4: GroupCost(1e-17, 2e-9, 1e-9, None)}


@pytest.fixture
def source(write_readable: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_readable(tmp_path / "source")


def planned(source: Path, text: Path, name: str, choices: Choices = FEW) -> bytes:
    """The bytes of a plan beside the text."""
    file = text.with_name(name)
    few = Calibration(text, window=24, windows=8)
    plan_checkpoint(source, file, calibration=few, budgets=[5.0], choices=choices)
    return file.read_bytes().replace(file.stem.encode(), b"NAME")


def cut_at(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Interrupt the pricing of this matrix, counted from 1; returns those that are priced."""
    priced: list[str] = []
    original = prices.expected_offers

    def offers(weight: Any, m: Candidate, *args: Any) -> list[Offer]:
        if len(priced) + 1 == number:
            raise KeyboardInterrupt
        priced.append(m.name)
        return original(weight, m, *args)

    patch.setattr(prices, "expected_offers", offers)
    patch.setattr(prices, "workers", lambda: 1)
    return priced


def test_a_price_comes_back_to_the_bit(tmp_path: Path) -> None:
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        assert journal.offers(MATRIX) is None
        assert journal.group_costs(GROUP) is None
        journal.add_offers(MATRIX, OFFERS)
        journal.add_group_costs(GROUP, MEASURED)
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        assert journal.offers(MATRIX) == OFFERS
        assert journal.group_costs(GROUP) == MEASURED
        assert journal.offers(Candidate("w", (64, 32), "F16", 32, 4096)) is None
        assert journal.group_costs(["w"]) is None


def test_a_trial_comes_back_to_the_bit_for_the_same_choices_alone(tmp_path: Path) -> None:
    plan = BitsPlan(4.0, "4", 2048, 0.0, {"w": OFFERS[0]})
    found = Tried(1 / 3, 1e-17, plan.cost)
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        assert journal.trial(plan) is None
        journal.add_trial(plan, found)
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        assert journal.trial(plan) == found
        assert journal.trial(replace(plan, chosen={"w": OFFERS[1]})) is None


def test_prices_of_something_else_are_forgotten(tmp_path: Path) -> None:
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        journal.add_offers(MATRIX, OFFERS)
    for made_for in (MADE_FOR | {"seed": 2}, MADE_FOR):
        with PriceJournal(tmp_path / "p", made_for) as journal:
            assert journal.offers(MATRIX) is None


@pytest.mark.parametrize("content", [b"mine\n", b"00000000 {}", b"x" * 10_000])
def test_a_file_that_is_no_journal_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(FormatError, match="p: no prices of an unfinished plan"):
        PriceJournal(tmp_path / "p", MADE_FOR)
    assert (tmp_path / "p").read_bytes() == content


def test_a_journal_torn_anywhere_is_begun_anew_or_gone_on_with(tmp_path: Path) -> None:
    with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
        journal.add_offers(MATRIX, OFFERS)
    whole = (tmp_path / "p").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "p").write_bytes(whole[:length])
        with PriceJournal(tmp_path / "p", MADE_FOR) as journal:
            assert journal.offers(MATRIX) is None
            journal.add_offers(MATRIX, OFFERS)
        assert (tmp_path / "p").read_bytes() == whole


def test_an_interrupted_pricing_goes_on_to_the_same_plan(
    source: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        everything = cut_at(patch, 0)
        whole = planned(source, text, "whole.json")
    with monkeypatch.context() as patch:
        first = cut_at(patch, 4)
        with pytest.raises(KeyboardInterrupt) as stopped:
            planned(source, text, "cut.json")
    prices = text.with_name("cut.prices")
    assert stopped.value.__notes__[-1] == f"{prices}: the same command goes on with it"
    with monkeypatch.context() as patch:
        second = cut_at(patch, 0)
        assert planned(source, text, "cut.json") == whole
    assert [*first, *second] == everything
    assert len(first) == 3
    assert not prices.exists()


def test_a_plan_that_was_tried_is_not_tried_again(
    source: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    whole = planned(source, text, "whole.json")
    with monkeypatch.context() as patch:
        patch.setattr(planning, "write_plan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            planned(source, text, "cut.json")
    monkeypatch.setattr(PlanTrial, "_tried", interrupted)
    assert planned(source, text, "cut.json") == whole


def test_prices_of_other_choices_do_not_serve(
    source: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Choices(bits=(2, 4, 8))
    whole = planned(source, text, "whole.json", wide)
    with monkeypatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            planned(source, text, "cut.json")
    assert planned(source, text, "cut.json", wide) == whole


def test_a_foreign_file_is_refused_before_the_work(source: Path, text: Path) -> None:
    text.with_name("cut.prices").write_text("mine")
    with pytest.raises(FormatError, match=r"cut\.prices"):
        planned(source, text, "cut.json")
    assert text.with_name("cut.prices").read_text() == "mine"
    assert not text.with_name("cut.grams.npz").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from plastic_core.files import journal
from plastic_export import Calibration, Choices, plan_checkpoint

left, original = int(sys.argv[4]), journal.write_all

def write_all(descriptor, line):
    global left
    left -= 1
    if left == 0:
        original(descriptor, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    original(descriptor, line)

journal.write_all = write_all
few = Calibration(sys.argv[2], window=24, windows=8)
file, choices = Path(sys.argv[3]), Choices(bits=(2, 4), group_sizes=(64,))
plan_checkpoint(sys.argv[1], file, calibration=few, budgets=[5.0], choices=choices)
"""


def test_a_killed_pricing_goes_on_to_the_same_bytes(source: Path, text: Path) -> None:
    whole = planned(source, text, "whole.json")
    for number in (1, 4, 3, 16):  # the last one among the measured groups
        words = [source, text, text.with_name("cut.json"), number]
        line = [sys.executable, "-c", KILLED, *map(str, words)]
        assert subprocess.run(line, check=False).returncode == -signal.SIGKILL
    assert planned(source, text, "cut.json") == whole
