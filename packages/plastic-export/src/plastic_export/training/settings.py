"""The numbers of a training run, and the optimizer they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import mlx.core as mx
import mlx.optimizers as optim
from plastic_runtime import CautiousAdamW, Gauge, Schedule, Settings

Rate = float | Callable[[mx.array], mx.array]

OPTIMIZERS: dict[str, Callable[[Rate], optim.Optimizer]] = {
    "cautious": lambda rate: CautiousAdamW(learning_rate=rate, bias_correction=True),
    "adamw": lambda rate: optim.AdamW(learning_rate=rate, bias_correction=True),
    "adam": lambda rate: optim.Adam(learning_rate=rate, bias_correction=True),
    "lion": lambda rate: optim.Lion(learning_rate=rate),
    "muon": lambda rate: optim.Muon(learning_rate=rate),
    "sgd": lambda rate: optim.SGD(learning_rate=rate, momentum=0.9),
    "adafactor": lambda rate: optim.Adafactor(
        learning_rate=rate, relative_step=False, scale_parameter=False
    ),
}
# Of SmolLM2-135M on two tasks in tools/bench/train.py.
RATES = {"cautious": 1e-3, "adamw": 7e-4, "adam": 7e-4}
RATE = 3e-4  # of the others, and not measured
RISE = 12  # times that the warm-up goes into a run, as it does in tools/bench/train.py
EVALUATE_EVERY = 50
EVALUATE_BATCHES = 25
LEAST_UPDATES = 2  # between validations in a short run that follows the loss
LEAST_BATCHES = 4  # of a validation in a short run that follows the loss
PLATEAUS = 12  # times that a run could tell a plateau: noise delays some beyond the tenth
REPORT = 10  # steps between training losses, at most
GAUGE = Gauge(scale=20 * math.sqrt(8 / 3) / 0.3, length=0.3)  # as tools/bench/train.py found best
RANK = 8
HEAD = 3  # times the rank of the blocks, in the head
PROBE = 4  # rows at least that components are priced on
ROOM = 4  # times the final bytes, at the start of a run that ends at them and has a head
FIRST_CUT = 0.13  # of the steps
_LARGEST_SEED = 2**64 - 1  # of mlx

Follow = Literal["loss", "budget"]
State = Literal["best", "last"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The settings of a training run.

    Attributes:
        steps: Batches to take.
        batch: Rows in a batch.
        window: Tokens that stay of a longer row.
        accumulate: Batches whose gradients make one update.
        optimizer: A key of ``OPTIMIZERS``; ``"cautious"`` is `plastic_runtime.CautiousAdamW`. It,
            Adam and AdamW correct the bias of their moments: without that a step of a young run is
            up to 6 times as long as its rate.
        learning_rate: The rate of the first update after the warm-up. By default 1e-3 for the
            cautious AdamW, 7e-4 for Adam and AdamW, 3e-4 for the others.
        warmup: Updates before it, during which the rate rises by equal steps. By default a twelfth
            of the updates.
        decay: Whether the rate then falls to 0 along a cosine.
        max_bytes: Ceiling on the bytes of the adapters' files, at the end at least. By default,
            where ranks follow the budget, those of mlx-lm's own LoRA with its defaults
            (`default_size`); else None for none.
        follow: What ranks follow. ``"budget"``: a run begins with more than ``max_bytes`` and
            after an eighth of the steps keeps awake what the loss can least do without in them.
            ``"loss"``: ranks grow, shrink and wake at plateaus of the validation loss, under
            ``max_bytes`` if given. By default the first, unless ``rank`` is given without a
            ceiling or no validation comes before the last step.
        rank: Components per layer at the start, in the head three times as many unless ranks
            follow the loss under a ceiling. Where ranks follow the budget, by default as many as
            fit, and where a head is adapted as many as take four times ``max_bytes``; else 8.
        evaluate_every: Batches between two validations. After each of them ranks may change and
            the state of the run is saved. By default 50, or a multiple of ``accumulate`` just
            below; fewer where a run that follows the budget is too short for that. Where ranks
            follow the loss, so many that a plateau shows within a twelfth of the run.
        evaluate_batches: Batches of a validation, the same ones each time; -1 for all. By default
            25; where ranks follow the loss, and validations are many, fewer.
        mask_prompt: Learn completions alone, not what is asked.
        grad_checkpoint: Compute activations twice rather than keep them.
        state: What the adapters are written from: the state of the lowest validation loss that
            obeys ``max_bytes``, or the last one.
        patience: Validations without a lower loss after which the run ends; None for never.
        forget: How far the adapters may move the model from its base on text that it is not trained
            on: KL divergence in nats per token. Every ``S`` is turned down as far as it takes,
            and further where the validation loss gains by it. None for no limit.
        remember: How strongly every step holds the model to its base on text that it is not trained
            on: nats of loss per nat of KL divergence, which the loss of the step gets beside its
            own. None for not at all.
        seed: The seed of the directions, of the order of the data and of everything else.
        plasticity: Further arguments of the `PlasticityManager`, by name.

    Examples:
        >>> TrainingOptions(steps=100, max_bytes=3_000_000).optimizer
        'cautious'
    """

    steps: int = 1000
    batch: int = 4
    window: int = 2048
    accumulate: int = 1
    optimizer: str = "cautious"
    learning_rate: float | None = None
    warmup: int | None = None
    decay: bool = True
    max_bytes: int | None = None
    follow: Follow | None = None
    rank: int | None = None
    evaluate_every: int | None = None
    evaluate_batches: int | None = None
    mask_prompt: bool = False
    grad_checkpoint: bool = False
    state: State = "best"
    patience: int | None = None
    forget: float | None = None
    remember: float | None = None
    seed: int = 0
    plasticity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("steps", "batch", "accumulate", "rank", "evaluate_every", "max_bytes", "patience")
        for name, least in (*((name, 1) for name in names), ("window", 2), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ValueError(f"`seed` must be from 0 to 2^64 - 1, got {self.seed}.")
        for name in ("learning_rate", "forget", "remember"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0, got {value}.")
        self._check_choices()
        if self.evaluate_batches is not None and (
            self.evaluate_batches == 0 or self.evaluate_batches < -1
        ):
            raise ValueError(
                f"`evaluate_batches` must be positive, or -1 for all, got {self.evaluate_batches}."
            )
        for name in ("steps", "evaluate_every"):
            if (getattr(self, name) or 0) % self.accumulate:
                raise ValueError(
                    f"`{name}` must be a multiple of `accumulate` = {self.accumulate}, as ranks "
                    f"change between updates only, got {getattr(self, name)}."
                )
        self._check_follow()
        if self.rise >= self.updates:
            raise ValueError(
                f"`warmup` must be below the {self.updates} updates of the run, got {self.rise}."
            )

    @property
    def rate(self) -> float:
        """The highest learning rate: ``learning_rate``, or what it is by default."""
        return RATES.get(self.optimizer, RATE) if self.learning_rate is None else self.learning_rate

    @property
    def rise(self) -> int:
        """Updates during which the rate rises: ``warmup``, or what it is by default."""
        return self.updates // RISE if self.warmup is None else self.warmup

    @property
    def updates(self) -> int:
        """Steps of the optimizer."""
        return self.steps // self.accumulate

    @property
    def interval(self) -> int:
        """Batches between two validations: ``evaluate_every``, or what it is by default."""
        if self.evaluate_every is not None:
            return self.evaluate_every
        updates = max(1, EVALUATE_EVERY // self.accumulate)
        if self.by_budget:
            updates = min(updates, max(1, self.updates // 2))
        else:
            seen = self.updates // (PLATEAUS * self._validations_seen)
            # By fives, so that training losses have a common divisor to be told at.
            updates = min(updates, max(LEAST_UPDATES, seen - seen % 5 if seen > 5 else seen))
        return updates * self.accumulate

    @property
    def validated(self) -> int:
        """Batches of a validation: ``evaluate_batches``, or what it is by default."""
        if self.evaluate_batches is not None:
            return self.evaluate_batches
        if self.by_budget:
            return EVALUATE_BATCHES
        # A batch costs a third of a step: so many take a third of the time of training.
        return min(EVALUATE_BATCHES, max(LEAST_BATCHES, self.interval))

    @property
    def report_every(self) -> int:
        """Batches between two training losses: a divisor of ``interval``."""
        return max(n for n in range(1, REPORT + 1) if self.interval % n == 0)

    @property
    def validated_rows(self) -> int | None:
        """Rows that a validation reads at most; None for all."""
        return self.validated * self.batch if self.validated > 0 else None

    @property
    def by_budget(self) -> bool:
        """Tell whether ranks follow the budget."""
        if self.follow is not None or self.max_bytes is not None:
            return self.follow != "loss"
        return self.rank is None and max(self.accumulate, self.evaluate_every or 0) < self.steps

    def sized(self, max_bytes: int) -> TrainingOptions:
        """Return the same settings, with this ceiling if ranks follow a budget that has none."""
        wanting = self.by_budget and self.max_bytes is None
        return replace(self, max_bytes=max_bytes) if wanting else self

    def start_rank(self, per_rank: int, besides: int, *, head: bool) -> int:
        """Return the rank to begin with.

        Only with a head among the layers does a run begin above its ceiling: what is cut pays for
        what the head keeps. Elsewhere it begins with all that fits (decision 119).

        Args:
            per_rank: Bytes of all layers per unit of it.
            besides: Bytes that the file takes besides.
            head: Whether a head is among the layers.
        """
        if self.rank is not None:
            return self.rank
        if not self.by_budget or self.max_bytes is None:
            return RANK
        room = ROOM * self.max_bytes if head else self.max_bytes - besides
        return max(1, room // per_rank)

    def schedule(self, start_bytes: int) -> Schedule | None:
        """Return the budget over the steps, if ranks follow one; it falls after a validation."""
        if not self.by_budget or self.max_bytes is None:
            return None
        cut = self.interval * max(1, round(FIRST_CUT * self.steps / self.interval))
        first = max(start_bytes, self.max_bytes)
        return Schedule(first, self.max_bytes, begin=cut, end=cut, every=self.interval)

    def build_optimizer(self) -> optim.Optimizer:
        """Return the optimizer with its schedule, which is a function of its step alone."""
        return OPTIMIZERS[self.optimizer](self._rate())

    def record(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        taken = {"learning_rate": self.rate, "warmup": self.rise}
        return asdict(self) | taken | {"plasticity": dict(self.plasticity)}

    @property
    def _validations_seen(self) -> int:
        """Validations that the manager sees before it can tell a plateau."""
        numbers = {name: getattr(Settings, name) for name in ("window", "patience")}
        return sum({**numbers, **self.plasticity}[name] for name in numbers)

    def _check_choices(self) -> None:
        for name, choices in (("optimizer", OPTIMIZERS), ("state", STATES)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")

    def _check_follow(self) -> None:
        if self.follow not in (None, "loss", "budget"):
            raise ValueError(f'`follow` must be "loss" or "budget", got {self.follow!r}.')
        if self.by_budget and self.interval >= self.steps:
            raise ValueError(
                f"`evaluate_every` must be below the {self.steps} `steps` of a run that follows "
                f"the budget, which falls after a validation, got {self.interval}."
            )

    def _rate(self) -> Rate:
        rate: Rate = self.rate
        if self.decay:
            rate = optim.cosine_decay(self.rate, self.updates - self.rise)
        if not self.rise:
            return rate
        rising = optim.linear_schedule(self.rate / (self.rise + 1), self.rate, self.rise)
        after = rate if callable(rate) else _constant(rate)
        return optim.join_schedules([rising, after], [self.rise])


def _constant(rate: float) -> Callable[[mx.array], mx.array]:
    return lambda step: mx.array(rate)
