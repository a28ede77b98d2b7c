"""A plan made by several processes: what each machine takes, and what is lost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plastic_runtime.distributed import dealt, stretch

from plastic_export.estimate.parts import CalibrationPart
from plastic_export.estimate.pipeline import Pipelined, pipelined
from plastic_export.estimate.speed import Speed, Work

SLOWEST, FASTEST = 0.001, 100_000.0
"""Gigabits per second of what passes for a network: a slow line, and more than any link."""


def check_gigabits(gigabits: float) -> None:
    """Refuse a network that is none: too slow, too fast, or no number.

    Raises:
        ValueError: If it is outside `SLOWEST` to `FASTEST`.
    """
    if not SLOWEST <= gigabits <= FASTEST:
        raise ValueError(
            f"`gigabits` must be from {SLOWEST:g} to {FASTEST:,.0f} Gbit/s, got {gigabits:g}; "
            "give what the network carries from one machine to the next, 1 for most cables"
        )


class DealtWork(NamedTuple):
    """Work in pieces, of which each is done by one process.

    Attributes:
        costs: What each piece counts as where they are dealt out.
        pieces: The work of each.
        read: Bytes of Grams that each reads in the folder that is shared.
        own: Work of every process before its first piece.
    """

    costs: Sequence[float]
    pieces: Sequence[Work]
    read: Sequence[float]
    own: Work = Work()


class TriedWork(NamedTuple):
    """Plans tried as a whole, one after the other: blocks are taken in turn, and run in a row.

    Attributes:
        plans: How many.
        own: Work of every process for each: what is outside the blocks.
        blocks: The work of each block before it runs.
        run: The work of running all blocks, one process after the other.
        passed: Bytes that go from each block to the next.
        read: Bytes of Grams that each block reads in the folder that is shared.
    """

    plans: int
    own: Work
    blocks: Sequence[Work]
    run: Work
    passed: int
    read: Sequence[float]

    @property
    def alone(self) -> Work:
        """Return all of it, for one process."""
        return sum(self.blocks, self.own + self.run).times(self.plans)


@dataclass(frozen=True)
class PlanWork:
    """The work of a plan.

    Attributes:
        opening: Work of every process at the start.
        parts: The parts of the calibration; none where the Grams are there.
        batches: Into how many pieces the text is cut for the processes.
        priced: Matrices.
        measured: Groups that correct prices.
        tried: Plans as a whole.
    """

    opening: Work
    parts: Sequence[CalibrationPart]
    batches: int
    priced: DealtWork
    measured: DealtWork
    tried: TriedWork

    @property
    def alone(self) -> Work:
        """Return all of it, for one process."""
        parts = [part.work + part.own for part in self.parts]
        pieces = [w for one in self.dealt for w in (one.own, *one.pieces)]
        return sum([*parts, *pieces, self.tried.alone], self.opening)

    @property
    def repeated(self) -> Work:
        """Return what every process does, however many there are."""
        own = [part.own for part in self.parts] + [one.own for one in self.dealt]
        return sum([*own, self.tried.own.times(self.tried.plans)], self.opening)

    @property
    def dealt(self) -> tuple[DealtWork, ...]:
        """Return what is dealt out, in its order."""
        return self.priced, self.measured


class MachineEstimate(NamedTuple):
    """What one machine takes, with one of the processes on it.

    Attributes:
        process: The number of the process.
        works: Seconds that it works.
        waits: Seconds that it waits: for others, or for the network.
        sends: Bytes that it sends to the next process.
        folder: Bytes that it reads and writes in the folder of the plan.

    Examples:
        >>> few = Calibration("text.txt", window=24, windows=8)
        >>> found = estimate_plan("SRC", "new.json", calibration=few, budgets=[4.5])
        >>> (machine,) = found.machines
        >>> machine.process, machine.works > 0, round(machine.waits, 6)
        (0, True, 0.0)
    """

    process: int
    works: float
    waits: float
    sends: float
    folder: float


@dataclass(frozen=True)
class PlanEstimate:
    """What a plan takes in several processes, each on a machine of its own.

    Attributes:
        seconds: From the start to the end.
        alone: The same of one process.
        phases: Seconds by phase, which follow one another.
        losses: Seconds by what keeps the processes from being as many times faster.
        machines: What each takes, by the number of its process.
        memory: Bytes of memory of each at its peak.
        disk: Bytes of the folder that is shared, at its peak.
        gigabits: Gigabits per second from machine to machine.

    Examples:
        >>> few = Calibration("text.txt", window=24, windows=8)
        >>> found = estimate_plan("SRC", "new.json", calibration=few, budgets=[4.5])
        >>> round(sum(found.phases.values()) / found.seconds, 6), found.efficiency
        (1.0, 1.0)
    """

    seconds: float
    alone: float
    phases: dict[str, float]
    losses: dict[str, float]
    machines: tuple[MachineEstimate, ...]
    memory: int
    disk: int
    gigabits: float

    @property
    def faster(self) -> float:
        """How many times as fast as one process."""
        return self.alone / self.seconds

    @property
    def efficiency(self) -> float:
        """The part of the machines' time that one process would need too."""
        return self.faster / len(self.machines)

    @property
    def bottleneck(self) -> str:
        """What most time is lost by."""
        return max(self.losses, key=lambda name: self.losses[name])


SUMS, FOLDER = "handing on sums", "the folder that is shared"
FILLING = "waiting for the longest part"
REPEATED = "what every process does by itself"
UNEVEN = "pieces that cannot be dealt out evenly"
IN_A_ROW = "running one block after the other to try a plan"


class SecondsPerByte(NamedTuple):
    """Seconds that a byte takes.

    Attributes:
        sums: From process to process.
        folder: Into the folder that is shared, or out of it.

    Examples:
        >>> SecondsPerByte.of(1.0).sums
        8e-09
    """

    sums: float
    folder: float

    @classmethod
    def of(cls, gigabits: float) -> SecondsPerByte:
        """Return one of so many gigabits per second for both."""
        return cls(8e-9 / gigabits, 8e-9 / gigabits)


def estimate_processes(
    work: PlanWork,
    speed: Speed,
    *,
    processes: int,
    gigabits: float,
    start: float = 0.0,
    memory: int = 0,
    disk: int = 0,
) -> PlanEstimate:
    """Schedule a plan as its processes wait for each other.

    The folder that is shared is taken to be on the machine of process 0, and the source to be on
    a disk of each.

    Args:
        work: The work of the plan.
        speed: Of each machine.
        processes: How many there are, each on a machine of its own.
        gigabits: Gigabits per second from machine to machine.
        start: Seconds until the libraries are loaded.
        memory: Bytes of memory that each takes.
        disk: Bytes that the folder takes.

    Raises:
        ValueError: If there are more processes than batches of the text, or ``gigabits`` is not
            from 0.001 to 100,000.

    Examples:
        >>> nothing, untried = DealtWork([], [], []), TriedWork(0, Work(), [], Work(), 0, [])
        >>> parts = [CalibrationPart(Work(products=4e9), Work(), handed=10**9, spooled=0.0)]
        >>> work = PlanWork(Work(), parts, 8, nothing, nothing, untried)
        >>> found = estimate_processes(work, Speed(1e9, 1e9, 1e9, 1e9), processes=2, gigabits=1.0)
        >>> found.seconds, found.bottleneck, found.machines[1].sends
        (12.0, 'handing on sums', 1000000000)
    """
    check_gigabits(gigabits)
    if processes > work.batches:
        raise ValueError(
            f"`processes` must be at most {work.batches}, the batches of the text, got {processes};"
            " start fewer, or take more text"
        )
    network = SecondsPerByte.of(gigabits)
    found = _Timing.of(work, speed, processes, network)
    quickly = _Timing.of(work, speed, processes, network._replace(sums=0.0))
    ideal = _Timing.of(work, speed, processes, SecondsPerByte(0.0, 0.0))
    losses = {
        SUMS: found.seconds - quickly.seconds,
        FOLDER: quickly.seconds - ideal.seconds,
        FILLING: ideal.calibration.seconds - ideal.mean_calibration,
        REPEATED: (start + work.repeated.seconds(speed)) * (1 - 1 / processes),
        UNEVEN: sum(max(hands) - sum(hands) / processes for hands in ideal.hands),
        IN_A_ROW: work.tried.run.times(work.tried.plans).seconds(speed) * (1 - 1 / processes),
    }
    return PlanEstimate(
        start + found.seconds,
        start + _Timing.of(work, speed, 1, network).seconds,
        {name: seconds + start * (name == OPENING) for name, seconds in found.phases.items()},
        losses,
        found.machines(work, start),
        memory,
        disk,
        gigabits,
    )


OPENING, TRIALS = "opening", "trials of plans"


class _Hand(NamedTuple):
    """What one process has to do, and the bytes of Grams that it reads for it."""

    work: Work
    read: float


def _dealt(one: DealtWork, processes: int) -> list[_Hand]:
    """Return what every process has, the last one first."""
    return [
        _Hand(sum([one.pieces[i] for i in hand], one.own), sum(one.read[i] for i in hand))
        for hand in reversed(dealt(one.costs, processes))
    ]


class _Timing(NamedTuple):
    """Seconds of every process in every phase, and bytes; processes by their place in the row."""

    opening: float
    works: list[list[float]]
    calibration: Pipelined
    hands: list[list[float]]
    in_a_row: float
    read: list[float]

    @classmethod
    def of(cls, work: PlanWork, speed: Speed, processes: int, network: SecondsPerByte) -> _Timing:
        shares = [len(stretch(work.batches, p, processes)) / work.batches for p in range(processes)]
        folder = [network.folder] * (processes - 1) + [0.0]  # the last place is process 0
        works = [
            [
                part.work.times(share).seconds(speed)
                + part.own.seconds(speed)
                + part.spooled * share * per_byte
                for part in work.parts
            ]
            for share, per_byte in zip(shares, folder, strict=True)
        ]
        sending = [part.handed * network.sums for part in work.parts]
        tried, opening = work.tried, work.opening.seconds(speed)
        found = [_dealt(one, processes) for one in work.dealt]
        turns = [range(place, len(tried.blocks), processes) for place in range(processes)]
        found.append(
            [
                _Hand(
                    sum([tried.blocks[i] for i in turn], tried.own).times(tried.plans),
                    tried.plans * sum(tried.read[i] for i in turn),
                )
                for turn in reversed(turns)
            ]
        )
        hands = [
            [
                hand.work.seconds(speed) + hand.read * per_byte
                for hand, per_byte in zip(of_all, folder, strict=True)
            ]
            for of_all in found
        ]
        passed = tried.passed * max(0, len(tried.blocks) - 1) * network.sums * (processes > 1)
        in_a_row = tried.plans * (tried.run.seconds(speed) + passed)
        read = [sum(of_all[place].read for of_all in found) for place in range(processes)]
        return cls(opening, works, pipelined(works, sending), hands, in_a_row, read)

    @property
    def mean_calibration(self) -> float:
        """Seconds of the calibration if nobody waited."""
        return sum(map(sum, self.works)) / len(self.works)

    @property
    def phases(self) -> dict[str, float]:
        pricing, measuring, trying = (max(hands) for hands in self.hands)
        return {
            OPENING: self.opening,
            "calibration": self.calibration.seconds,
            "prices": pricing,
            "runs that correct them": measuring,
            TRIALS: trying + self.in_a_row,
        }

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def machines(self, work: PlanWork, start: float) -> tuple[MachineEstimate, ...]:
        """Return what each takes, process 0 first."""
        processes = len(self.works)
        handed = sum(part.handed for part in work.parts) if processes > 1 else 0
        spooled = sum(part.spooled for part in work.parts)
        found = list[MachineEstimate]()
        for place, works in enumerate(self.works):
            rank = processes - 1 - place
            worked = self.opening + sum(works) + sum(hands[place] for hands in self.hands)
            worked += self.in_a_row / processes
            share = len(stretch(work.batches, place, processes)) / work.batches
            folder = spooled * share + self.read[place]
            if rank == 0:  # which keeps the sums
                folder += sum(part.handed for part in work.parts)
            sends = handed if rank else 0
            waits = max(0.0, self.seconds - worked)  # two orders of one sum may round apart
            found.append(MachineEstimate(rank, start + worked, waits, sends, folder))
        return tuple(reversed(found))
