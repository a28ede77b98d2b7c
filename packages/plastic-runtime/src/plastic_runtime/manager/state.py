"""The knowledge of the plasticity policy, on which it decides: frozen values, no arrays."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Settings:
    """The numbers that drive the decisions. Times are counted in validation losses.

    Attributes:
        delta: Relative fall of the moving loss that counts as progress; by default what stands
            out from the noise of the losses, which is measured (``manager.noise``).
        gamma: Relative change of the moving loss that counts as an effect: a rise after a shrink
            is harm, a fall after a growth is help.
        k: Components that one growth adds to a layer.
        window: Losses in the moving mean, which starts afresh at every change.
        patience: Losses without progress that make a plateau.
        cooldown: Losses to let pass after a change before patience counts.
        guard: Losses for which a shrink can still be found harmful; at least ``window``.
        fraction: Share of the layers that may grow, and that may shrink, in one decision; at
            least one layer may.
        max_bytes: Ceiling on the bytes awake; ``None`` for none.

    Examples:
        >>> Settings(patience=5, max_bytes=10_000).k
        2
        >>> Settings(fraction=0)
        Traceback (most recent call last):
        ValueError: `fraction` must be in (0, 1], got 0.
    """

    delta: float | None = None
    gamma: float = 1e-2
    k: int = 2
    window: int = 3
    patience: int = 3
    cooldown: int = 3
    guard: int = 6
    fraction: float = 0.25
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        least = {"delta": 0, "gamma": 0, "cooldown": 0, "k": 1, "window": 1, "patience": 1}
        for name, bound in {**least, "guard": self.window}.items():
            value = getattr(self, name)
            if not (value is None or value >= bound):
                raise ValueError(f"`{name}` must be at least {bound}, got {value}.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must be in (0, 1], got {self.fraction}.")


@dataclass(frozen=True)
class LayerView:
    """The view that the policy has of one layer.

    Attributes:
        path: Module path in the model.
        rank: Components awake.
        max_rank: ``min(out, in)``.
        bytes_per_rank: Bytes of one component.
        score: How much the loss depends on the layer, non-negative, in any unit common to all.
        target: Rank that the layer's spectrum asks for.
    """

    path: str
    rank: int
    max_rank: int
    bytes_per_rank: int
    score: float
    target: int

    @property
    def score_per_byte(self) -> float:
        """Score per byte of one component."""
        return self.score / self.bytes_per_rank


@dataclass(frozen=True)
class Change:
    """One rank change: ``path`` goes to ``rank``."""

    action: Literal["grow", "shrink"]
    path: str
    rank: int
    why: str


@dataclass(frozen=True)
class Guard:
    """Watch over a shrink: loss before it, losses left to judge it, sleepers by path."""

    before: float
    left: int
    parked: Mapping[str, tuple[int, ...]]

    def joined(self, parked: Mapping[str, tuple[int, ...]], left: int) -> Self:
        """Return the guard over these sleepers too, with ``left`` losses to judge all of them."""
        together = {path: self.parked.get(path, ()) + ids for path, ids in parked.items()}
        return replace(self, left=left, parked={**self.parked, **together})

    def without(self, woken: Mapping[str, tuple[int, ...]], left: int) -> Self | None:
        """Return the guard over those who sleep on, with ``left`` losses; None if nobody does."""
        asleep = {
            path: tuple(i for i in ids if i not in woken.get(path, ()))
            for path, ids in self.parked.items()
        }
        asleep = {path: ids for path, ids in asleep.items() if ids}
        return replace(self, left=left, parked=asleep) if asleep else None


@dataclass(frozen=True)
class Trial:
    """A growth to be judged at the next plateau: loss and ranks before it."""

    before: float
    ranks: Mapping[str, int]

    def joined(self, ranks: Mapping[str, int], before: float) -> Self:
        """Return the trial of these layers too, all of them judged by the loss ``before``."""
        return replace(self, before=before, ranks={**self.ranks, **ranks})


@dataclass(frozen=True)
class PolicyState:
    """All that a decision depends on besides settings and layers.

    Attributes:
        step: Losses seen.
        losses: The latest ones since the latest change, ``window`` at most.
        recent: The latest ones, whatever changed between them, that their noise is measured on.
        last: Moving loss at the latest change.
        reference: Best moving loss since the latest change.
        stale: Losses since the reference fell.
        rest: Losses until patience counts.
        guard: Open while a shrink can still be found harmful.
        trial: The growth that the next plateau judges.
        floors: The rank below which a shrink has hurt, by path.
        caps: The rank above which a growth has not helped, by path.
        settled: Whether the latest plateau asked for no change.
    """

    step: int = 0
    losses: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    last: float | None = None
    reference: float | None = None
    stale: int = 0
    rest: int = 0
    guard: Guard | None = None
    trial: Trial | None = None
    floors: Mapping[str, int] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    settled: bool = False

    @property
    def moving_loss(self) -> float | None:
        """Mean of the last losses since the latest change, right after it what it was before.

        ``None`` before the first loss.
        """
        return math.fsum(self.losses) / len(self.losses) if self.losses else self.last

    def as_dict(self) -> dict[str, Any]:
        """Return the state in JSON's own types; ``from_dict`` gives back an equal state."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Return the state that ``as_dict`` described."""
        guard, trial = plain["guard"], plain["trial"]
        if guard is not None:
            parked = {path: tuple(ids) for path, ids in guard["parked"].items()}
            guard = Guard(guard["before"], guard["left"], parked)
        trial = None if trial is None else Trial(**trial)
        tuples = {name: tuple(plain.get(name, ())) for name in ("losses", "recent")}
        return cls(**{**plain, **tuples, "guard": guard, "trial": trial})
