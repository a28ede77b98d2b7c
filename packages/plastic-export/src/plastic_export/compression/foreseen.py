"""What a plan, and what carrying one out, will take: told, or refused, before the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from plastic_runtime.measure import LONGEST_DENSE_SIDE

from plastic_export.calibration.loss_grams import pulled_tokens, rows_at_a_time
from plastic_export.calibration.shared_inputs import shared_inputs
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.estimate.limits import Estimate, Say, Smaller, announce
from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.parts import Calibrated
from plastic_export.estimate.peaks import (
    LIBRARIES,
    calibration_peak,
    held_gram_bytes,
    rounding_peak,
    running_peak,
    trying_peak,
)
from plastic_export.estimate.phases import SAMPLED, writing_work
from plastic_export.estimate.planning import planning_work
from plastic_export.estimate.processes import PlanWork
from plastic_export.evaluation.check_window import CHECK_LENGTH
from plastic_export.plan.likeness import alike, samples_of
from plastic_export.plan.offers import Candidate
from plastic_export.plan.probe import PROBED_TOKENS, TRIED_TOKENS

_NARROWEST = 256
_PACKINGS = 18  # bits and group sizes, of which each is rounded for a thorough plan


class PlanOptions(TypedDict):
    """What a plan is asked for.

    Attributes:
        widest: The longest side of a dense Gram.
        corrected: Whether corrections are offered.
        thorough: Whether every matrix is rounded in every way on offer, and run by itself.
        budgets: How many there are.
    """

    widest: int
    corrected: bool
    thorough: bool
    budgets: int


@dataclass(frozen=True)
class ForeseenPlan:
    """What a plan will take.

    Attributes:
        shape: The model.
        planned: The matrices.
        embeddings: The names of those that are embeddings.
        shared: Which of them the same array enters; see `Calibrated`.
        widest: The longest side of a dense Gram.
        window: Tokens of a window.
        tokens: Tokens of the calibration; 0 where the Grams are there.
        pulled: Those of them that gradients are taken of.
        rows: Windows of a pass, logits and all.
        batches: Into how many batches the text is cut.
        groups: The matrices of every group that are rounded in full.
        repeated: How many times as often as usual.
        corrected: Whether corrections are offered.
        budgets: How many there are: a plan is tried for each, and rarely a second one.

    Examples:
        >>> from plastic_export.compression import plannable
        >>> from plastic_export.source import Source
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     foreseen = ForeseenPlan.of(
        ...         checkpoint,
        ...         plannable(Source.of(checkpoint)),
        ...         Calibration("text.txt", window=24, windows=8),
        ...         is_calibrated=False,
        ...         widest=4096,
        ...         corrected=False,
        ...         thorough=False,
        ...         budgets=1,
        ...     )
        >>> foreseen.tokens, foreseen.batches, len(foreseen.work.parts)
        (192, 1, 7)
    """

    shape: ModelShape
    planned: Sequence[WeightShape]
    embeddings: frozenset[str]
    shared: Mapping[str, str]
    widest: int
    window: int
    tokens: int
    pulled: int
    rows: int
    batches: int
    groups: Sequence[Sequence[WeightShape]]
    repeated: int
    corrected: bool
    budgets: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        wanted: Sequence[Candidate],
        calibration: Calibration,
        *,
        is_calibrated: bool,
        **options: Unpack[PlanOptions],
    ) -> ForeseenPlan:
        """Foresee a plan of a checkpoint.

        Args:
            checkpoint: The open source.
            wanted: The matrices that are planned.
            calibration: The text and how much of it.
            is_calibrated: Whether the Grams are there already.
            options: What else is asked for.

        Raises:
            ValueError: If the text is shorter than one window.
        """
        windows = min(calibration.windows, len(calibration.all_tokens(checkpoint)))
        return cls.of_sizes(
            ModelShape.of(checkpoint),
            wanted,
            shared_inputs(checkpoint, [m.name for m in wanted]),
            window=calibration.window,
            windows=windows,
            is_calibrated=is_calibrated,
            **options,
        )

    @classmethod
    def of_sizes(
        cls,
        shape: ModelShape,
        wanted: Sequence[Candidate],
        shared: Mapping[str, str],
        *,
        window: int,
        windows: int,
        is_calibrated: bool = False,
        **options: Unpack[PlanOptions],
    ) -> ForeseenPlan:
        """Foresee a plan of a model of which the sizes are known.

        Args:
            shape: The model.
            wanted: The matrices that are planned.
            shared: By name of a matrix, the first one which the same array enters.
            window: Tokens of a window of the calibration.
            windows: How many of them.
            is_calibrated: Whether the Grams are there already.
            options: What else is asked for.
        """
        planned, widest = _shapes(wanted), options["widest"]
        tokens = 0 if is_calibrated else window * windows
        dense = (w.outputs for w in planned if w.outputs <= widest)
        routed = any(w.matrices > 1 for w in planned)
        groups = [[m] for m in wanted] if options["thorough"] else alike(wanted)
        return cls(
            shape,
            planned,
            frozenset(m.name for m in wanted if m.kind == "embedding"),
            shared,
            widest,
            window,
            tokens,
            pulled_tokens(tokens, max(dense, default=0), routed),
            rows_at_a_time(window, shape.longest_activation),
            -(-windows // rows_at_a_time(window, shape.longest_in_blocks)),
            [_shapes(samples_of(group)) for group in groups],
            _PACKINGS // SAMPLED if options["thorough"] else 1,
            options["corrected"],
            options["budgets"],
        )

    @property
    def work(self) -> PlanWork:
        """Return the work of it, in the pieces that processes share."""
        return planning_work(
            self.shape,
            Calibrated(self.planned, self.embeddings, self.shared, self.widest),
            tokens=self.tokens,
            pulled=self.pulled,
            batches=self.batches,
            groups=self.groups,
            repeated=self.repeated,
            probed=PROBED_TOKENS,
            corrected=self.corrected,
            tried=self.budgets,
            trial=TRIED_TOKENS,
        )

    @property
    def memory(self) -> int:
        """Return the bytes of memory at its peak."""
        return self._peak(self.planned, self.widest)

    @property
    def disk(self) -> int:
        """Return the bytes of the Grams, and of what enters the blocks meanwhile."""
        spooled = 4 * self.shape.width
        spooled *= self.pulled * len(self.shape.blocks) + 2 * self.tokens
        return held_gram_bytes(self.planned, self.widest) // 4 + spooled

    def announce(self, memory: int | None, say: Say | None) -> None:
        """Tell it.

        Args:
            memory: Bytes of memory that it may take; None for what the machine has.
            say: Takes the line.

        Raises:
            ValueError: If it does not fit into memory; a smaller ``widest`` or the matrix to
                exclude is named, where that helps.
        """
        estimate = Estimate(self.work.alone, self.memory, self.disk)
        announce(estimate, memory=memory, say=say, smaller=self._smaller())

    def _peak(self, planned: Sequence[WeightShape], widest: int) -> int:
        measured = calibration_peak(
            self.shape, planned, rows=self.rows, length=self.window, widest=widest
        )
        tried = trying_peak(self.shape, tokens=TRIED_TOKENS, length=self.window)
        return max(measured, tried, rounding_peak(planned, widest))

    def _smaller(self) -> Iterator[Smaller]:
        side = 1 << max(max(w.outputs, w.inputs) for w in self.planned).bit_length() - 1
        while side >= _NARROWEST:
            if side < self.widest:
                yield Smaller(f"--widest {side}", self._peak(self.planned, side))
            side //= 2
        largest = max(self.planned, key=lambda w: w.outputs * w.inputs)
        rest = [w for w in self.planned if w is not largest]
        yield Smaller(f"--exclude {largest.name}", self._peak(rest, self.widest))


def foresee_writing(
    checkpoint: Checkpoint,
    chosen: Sequence[Candidate],
    *,
    nbytes: int,
    checked: bool,
    ranks: bool = False,
    widest: int = LONGEST_DENSE_SIDE,
    memory: int | None,
    say: Say | None,
) -> None:
    """Tell what writing a compressed checkpoint will take.

    Args:
        checkpoint: The open source.
        chosen: The matrices that are stored anew.
        nbytes: Bytes of the output, about.
        checked: Whether a window runs through it in the end.
        ranks: Whether they become factors alone.
        widest: The longest side of a dense Gram.
        memory: Bytes of memory that it may take; None for what the machine has.
        say: Takes the line.

    Raises:
        ValueError: If it does not fit into memory.
    """
    shape, planned = ModelShape.of(checkpoint), _shapes(chosen)
    worker = LIBRARIES  # the process beside this one
    one = worker + rounding_peak(planned, 0 if ranks else widest)
    run = running_peak(shape, 1, CHECK_LENGTH) if checked else 0
    smaller = [Smaller("--no-check", one)] if run > one else []
    estimate = Estimate(
        writing_work(shape, planned, widest=widest, ranks=ranks), max(one, run), nbytes
    )
    announce(estimate, memory=memory, say=say, smaller=smaller)


def _shapes(wanted: Sequence[Candidate]) -> list[WeightShape]:
    return [WeightShape(m.name, *m.shape, m.matrices, m.source_bytes) for m in wanted]
