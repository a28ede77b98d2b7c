r"""From the linear relaxation to the best choice of whole options: dynamic programming.

Everything counts from the choice x of the linear relaxation (LP), in which every matrix has the
row of a vertex of its hull, and which leaves :math:`\rho` bytes. Row j of matrix i changes the
bytes by :math:`\beta_{ij}` and the cost by :math:`\gamma_{ij}`, both 0 for the LP's own row.

**States.** After k matrices a state (r, c) is a choice for these, the LP's for all others: it
leaves r bytes and costs c. With the rows j of matrix k,

.. math::

    S_0 = \{(\rho, 0)\}, \qquad
    S_k = \{(r - \beta_{kj},\; c + \gamma_{kj}) : (r, c) \in S_{k-1}\} .

**Two dominances.** Let :math:`L_k(r)` be the least cost of a mixture of options of the matrices
after k that takes at most r bytes, :math:`\infty` where there is none, and let I be the cost of
the *incumbent*, the best whole choice known. A state goes if

.. math::

    r \le r' \text{ and } c \ge c' \text{ for another state } (r', c'),
    \qquad\text{or}\qquad c + L_k(r) \ge I .

**Incumbent.** Filling the room of a state with the steepest segments of the matrices after k that
fit makes a whole choice. It is the new incumbent where it costs less than I.

**Core.** With :math:`\lambda` the LP's price per byte, a row has the *regret*
:math:`\gamma_{ij} + \lambda \beta_{ij} \ge 0`: by so much a choice with it is above the LP's
bound at least, which is :math:`-\lambda \rho`. So no better choice holds a row whose regret is
the gap :math:`I + \lambda \rho` or more. The matrices that have another row than the LP's below
it are the core. All others keep the LP's row.

**Width.** Where more than ``width`` states remain, those of least bound do. The sweep has proven
the incumbent if even the bounds of the states left out are not below I; else the next one is
wider.

**Example.** Two matrices and a budget of 5 bytes: a offers (0 bytes, cost 5) and (6, 0); b offers
(0, 4) and (5, 0). Per byte a gains 5/6 and b 4/5, so the LP mixes the rows of a:

- x: both smallest, of cost 9; :math:`\rho = 5, \lambda = 5/6`; I = 0, the gap is 25/6.
- Regrets: a's large row -5 + 6 (5/6) = 0, b's -4 + 5 (5/6) = 1/6. Both matrices are in the core.
- a has the larger row and is first. S_1 = {(5, 0), (-1, -5)}; L_1(5) = -4, L_1(-1) is infinite,
  so (-1, -5) goes.
- Filling (5, 0) takes b's segment: 0 - 4 = -4 < I. The incumbent is {a small, b large}, I = -4.
- The bound of (5, 0) is 0 + L_1(5) = -4, not below I: it goes too.
- No state is left and none was left out, so the incumbent is proven: it costs 9 - 4 = 5.

References:
    Pisinger, *A minimal algorithm for the multiple-choice knapsack problem*, European Journal
    of Operational Research 83(2), 1995 (the core, its dynamic programming and the bounds). That
    matrices with the largest rows are first, so that what is left to fill gets finer, the bound
    by all matrices left and the widening are heuristic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from plastic_select.allocation.hull import Floats, Frontier, Ints
from plastic_select.allocation.relaxation import Relaxation
from plastic_select.allocation.states import States, rows_of
from plastic_select.spectrum import EPS

MOST_WORK = 4_000_000  # states and segments looked at: a count, so that any machine does the same
FIRST_WIDTH = 1000  # states kept after each matrix of the first sweep
WIDENING = 8  # how many times wider the next sweep is, unless the gap fell by as much


def finish(frontier: Frontier, lp: Relaxation) -> tuple[Ints, bool]:
    """Return the best rows found, one per matrix, and whether it is proven that none are better.

    At most ``MOST_WORK`` steps, so that the same arguments give the same rows on any machine.
    """
    search, width = _Search(frontier, lp), FIRST_WIDTH
    while not search.proven and search.work < MOST_WORK:
        gap = search.gap
        search.sweep(width)
        if search.gap >= gap / WIDENING:
            width *= WIDENING
    return search.incumbent, search.proven


@dataclass(frozen=True)
class _Core:
    """The matrices that a better choice can change, in the order in which they are decided.

    Attributes:
        rows: Of each matrix, the rows other than the LP's that a better choice can hold.
        segments: The segments of these matrices, the steepest first.
        turn: When the matrix of each segment is decided.
    """

    rows: list[Ints]
    segments: Ints
    turn: Ints


@dataclass(frozen=True)
class _Undecided:
    """The segments of the matrices not yet decided, the steepest first: L_k and the filling.

    Attributes:
        segments: Those that the LP has taken, then those that it has not.
        nbytes: Bytes before and after each of them, from the LP's choice; increasing.
        cost: Costs before and after each of them, from the LP's choice; decreasing.
    """

    segments: Ints
    nbytes: Ints
    cost: Floats

    def least_cost(self, room: Ints) -> Floats:
        """Return L_k, the least cost of a mixture within ``room`` bytes; infinite without one."""
        least: Floats = np.interp(room, self.nbytes, self.cost, left=np.inf)
        return least

    def fitting(self, room: Ints) -> Ints:
        """Return how many segments fit in ``room`` bytes; -1 where that is less than none."""
        return np.searchsorted(self.nbytes, room, side="right") - 1


class _Search:
    """The sweeps over the core, and the incumbent. Bytes and costs count from the LP's choice.

    Attributes:
        incumbent: The best rows known, one per matrix.
        incumbent_cost: What they cost.
        proven: Whether no choice costs less, but for rounding.
        work: States and segments looked at so far.
    """

    def __init__(self, frontier: Frontier, lp: Relaxation) -> None:
        self.frontier, self.lp = frontier, lp
        self.nbytes = frontier.nbytes - frontier.nbytes[lp.chosen][frontier.owner]
        self.cost = frontier.cost - frontier.cost[lp.chosen][frontier.owner]
        self.regret = self.cost + lp.price * self.nbytes
        self.in_lp = np.arange(frontier.end.size) < lp.taken
        # Regret grows away from the LP's vertex: a segment is of use if its nearer end is.
        nearer_end = np.where(self.in_lp, frontier.end, frontier.start)
        self.segment_regret = self.regret[nearer_end]
        self.incumbent, self.incumbent_cost = lp.chosen, 0.0
        self.proven, self.work = False, 0

    @property
    def gap(self) -> float:
        """The incumbent's cost above the LP's bound."""
        return max(self.incumbent_cost + self.lp.price * self.lp.room, 0.0)

    @property
    def cost_to_beat(self) -> float:
        """The incumbent's cost, less what rounding may hide."""
        return self.incumbent_cost - 4 * EPS * (self.lp.cost + self.incumbent_cost)

    def sweep(self, width: int) -> None:
        """Decide one matrix of the core after the other.

        Stops early where the work is used up, or where the gap has fallen so far that a new sweep
        has a much smaller core.
        """
        small_gap, least_left_out = self.gap / WIDENING, math.inf
        core = self._core()
        states = States.start(self.lp.room)
        history: list[States] = []
        for turn, candidates in enumerate(core.rows):
            rows = candidates[self.regret[candidates] < self.gap]
            if not rows.size:
                continue
            rows = np.append(rows, self.lp.chosen[self.frontier.owner[rows[0]]])
            undecided = self._undecided(core.segments[core.turn > turn])
            self.work += len(states) * rows.size + undecided.segments.size
            if self.work > MOST_WORK or self.gap < small_gap:
                return
            states = self._extended(states, rows, undecided)
            if len(states):
                self._fill([*history, states], undecided)
                states = states[states.bound < self.cost_to_beat]
            states, left_out = states.undominated().narrowed(width)
            least_left_out = min(least_left_out, left_out)
            if not len(states):
                break
            history.append(states)
        self.proven = least_left_out >= self.cost_to_beat

    def _core(self) -> _Core:
        owner = self.frontier.owner
        rows = np.flatnonzero((self.regret < self.gap) & (self.nbytes != 0))
        by_matrix = np.split(rows, np.flatnonzero(np.diff(owner[rows], prepend=-1)))[1:]
        by_matrix.sort(key=lambda rows: -int(np.abs(self.nbytes[rows]).max()))
        turn_of_matrix = np.full(self.frontier.smallest.size, -1)
        for turn, rows in enumerate(by_matrix):
            turn_of_matrix[owner[rows[0]]] = turn
        turns = turn_of_matrix[owner[self.frontier.end]]
        segments = np.flatnonzero((turns >= 0) & (self.segment_regret < self.gap))
        return _Core(by_matrix, segments, turns[segments])

    def _undecided(self, segments: Ints) -> _Undecided:
        segments = segments[self.segment_regret[segments] < self.gap]
        nbytes, cost = self.frontier.change(segments)
        n = int(np.count_nonzero(self.in_lp[segments]))
        # Summed away from the LP's choice, where small numbers matter.
        before = -np.cumsum(nbytes[:n][::-1])[::-1], -np.cumsum(cost[:n][::-1])[::-1]
        after = np.cumsum(nbytes[n:]), np.cumsum(cost[n:])
        return _Undecided(
            segments,
            np.concatenate([before[0], [0], after[0]]),
            np.concatenate([before[1], [0.0], after[1]]),
        )

    def _extended(self, states: States, rows: Ints, undecided: _Undecided) -> States:
        """Return every state with every row, but for those that cannot beat the incumbent."""
        room = np.subtract.outer(states.room, self.nbytes[rows]).ravel()
        cost = np.add.outer(states.cost, self.cost[rows]).ravel()
        bound = cost + undecided.least_cost(room)
        alive = np.flatnonzero(bound < self.cost_to_beat)
        parent, row = np.divmod(alive, rows.size)
        return States(room[alive], cost[alive], bound[alive], parent, rows[row])

    def _fill(self, history: list[States], undecided: _Undecided) -> None:
        """Fill up what the last states leave; the best of that may be the new incumbent."""
        states = history[-1]  # each has room for nothing at least: the others were dropped
        count = undecided.fitting(states.room)
        total = states.cost + undecided.cost[count]
        best = int(np.argmin(total))
        if total[best] >= self.incumbent_cost:
            return
        self.incumbent_cost = float(total[best])
        given_back = undecided.segments[count[best] :][::-1]
        filled = undecided.segments[: count[best]]
        self.incumbent = self.lp.chosen.copy()
        for rows in (
            self.frontier.start[given_back],
            self.frontier.end[filled],
            rows_of(history, best),
        ):
            self.incumbent[self.frontier.owner[rows]] = rows  # of several in a matrix, the last
