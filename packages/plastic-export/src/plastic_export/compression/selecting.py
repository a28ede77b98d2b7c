"""The matrices that a plan is to be about, and what is left beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from plastic_core.factors import GROUP_SIZES

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import chosen_names, is_matrix
from plastic_export.compression.plan_file import Skipped
from plastic_export.folder.header_bytes import fixed_bytes
from plastic_export.format.arranging import arranged, unkept_layers
from plastic_export.format.layout import Contents
from plastic_export.format.mixed import MixedFormat
from plastic_export.format.protocol import Format
from plastic_export.plan.budgets import Budget, check_budget
from plastic_export.plan.choices import Choices, candidate, smallest_offers
from plastic_export.plan.offers import Candidate, Offer, Overhead, totals_of
from plastic_export.source.layers import Layer
from plastic_export.source.source import Source

CHANGED = "mlx-lm changes whatever is stored of it while it loads it"
LEAST_GROUP = min(GROUP_SIZES)


class Selected(NamedTuple):
    """What a plan is to be about.

    Attributes:
        source: The source.
        wanted: The matrices.
        skipped: Those that are asked for and cannot be stored anew.
        left: What is left beside the matrices.
    """

    source: Source
    wanted: list[Candidate]
    skipped: tuple[Skipped, ...]
    left: Remainder

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        include: Sequence[str],
        exclude: Sequence[str],
        *,
        embeddings: bool,
    ) -> Selected:
        """Select the matrices of a checkpoint; see `plan_checkpoint`.

        Raises:
            FormatError, ValueError: If there are none, or an output could not be loaded.
        """
        source = Source.of(checkpoint)
        found = plannable(source, include, exclude, embeddings=embeddings)
        wanted, changed = _keepable(source, found)
        undivided = _undivided(source, include, exclude, embeddings)
        return cls(source, wanted, (*undivided, *changed), Remainder.of(source, wanted))

    def check_budgets(self, budgets: Sequence[Budget], choices: Choices, format: Format) -> None:
        """Refuse before the work what `plan_bits` would refuse after it."""
        overhead = overhead_of(self.left, format)
        for budget in budgets:
            counted = budget.counts_headers
            extra = overhead if counted else lambda m, offer: 0
            fixed = self.left.header_bytes if counted else 0
            totals = totals_of(self.wanted, self.left.nbytes + fixed, extra)
            least = [
                min(o.nbytes + extra(m, o) for o in smallest_offers(m, choices))
                for m in self.wanted
            ]
            check_budget(budget, sum(least), totals)


class Remainder(NamedTuple):
    """What is left beside the planned matrices in an output.

    Attributes:
        weights: Names of the weights of two and more axes among it.
        nbytes: Bytes of its tensors.
        header_bytes: What it takes in the headers of the files, and these themselves.
        model_bytes: Bytes of all tensors if nothing were stored anew.

    Examples:
        >>> from plastic_export.source import Source
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     source = Source.of(checkpoint)
        ...     left = Remainder.of(source, plannable(source, exclude=["lm_head"]))
        >>> left.weights, left.nbytes
        (('lm_head.weight',), 10880)
    """

    weights: tuple[str, ...]
    nbytes: int
    header_bytes: int
    model_bytes: int

    @classmethod
    def of(cls, source: Source, planned: Sequence[Candidate]) -> Remainder:
        """Find the arrangement of an output with all of the matrices stored anew.

        Raises:
            FormatError: If there is none that mlx-lm loads as it loads the source.
        """
        layout = arranged(source, _all_anew(planned))
        names = {m.name for m in planned}
        left = [spec for spec in layout.as_they_are if spec.name not in names]
        weights = (s.name for s in left if s.name.endswith(".weight") and len(s.shape) > 1)
        nbytes = sum(spec.nbytes for spec in left)
        model_bytes = nbytes + sum(m.source_bytes for m in planned)
        return cls(tuple(weights), nbytes, fixed_bytes(left, model_bytes), model_bytes)


def _all_anew(planned: Sequence[Candidate]) -> Contents:
    """Return what becomes of the matrices if every one is stored anew."""
    offers = {m.name: Offer(8, 0, 0.0, group_size=m.group_size) for m in planned}
    return Contents.of(MixedFormat(), planned, offers)


def _keepable(source: Source, wanted: Sequence[Candidate]) -> tuple[list[Candidate], list[Skipped]]:
    """Tell the matrices that can be stored anew from those that mlx-lm would change once more."""
    unkept = unkept_layers(source, _all_anew(wanted))
    if len(unkept) == len(wanted):
        return [*wanted], []  # which is refused with its reason
    skipped = [Skipped(m.name, m.source_bytes, CHANGED) for m in wanted if m.name in unkept]
    return [m for m in wanted if m.name not in unkept], skipped


def overhead_of(left: Remainder, format: Format) -> Overhead:
    """Return what an offer adds to the headers of a format."""
    return lambda m, offer: format.header_bytes(m, offer, left.model_bytes)


def plannable(
    source: Source,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    embeddings: bool = True,
) -> list[Candidate]:
    """Return the weights of the model that a number of bits can be chosen for, routers left out.

    Args:
        source: The source.
        include: Glob patterns, see `plan_checkpoint`.
        exclude: Glob patterns.
        embeddings: Whether embeddings are among them.

    Raises:
        ValueError: If there are none.

    Examples:
        >>> from plastic_export.source import Source
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     found = plannable(Source.of(checkpoint), exclude=["model.layers.*"])
        >>> sorted(m.name for m in found)
        ['lm_head.weight', 'model.embed_tokens.weight']
    """
    chosen = _chosen_layers(source, include, exclude, embeddings)
    kept = [m for m in map(candidate, chosen) if m is not None]
    if kept:
        return kept
    if chosen:
        side = chosen[0].shape[1]
        raise ValueError(
            f"no layer is left to quantise: MLX packs rows of whole groups of {LEAST_GROUP} or "
            f"more, and no group divides the {side} inputs of {chosen[0].name!r} (of all "
            f"{len(chosen)} chosen); `plastic compress --keep` takes layers of any side"
        )
    raise ValueError("no layer is left to quantise; name some with --include")


def _chosen_layers(
    source: Source, include: Sequence[str], exclude: Sequence[str], embeddings: bool
) -> list[Layer]:
    """Return the layers that are asked for, in the order of the checkpoint."""
    tensors, layers = source.checkpoint.tensors, source.layers
    made = {tensor for m in layers.values() for tensor in m.tensors}
    others = [n for n in tensors if is_matrix(n, tensors) and n not in made]
    known = [*others, *layers]
    chosen = {*chosen_names(known, include=include or ("*",), exclude=exclude)}
    found = []
    for layer in layers.values():
        is_router = layer.is_router and not include
        is_left = is_router or (layer.kind == "embedding" and not embeddings)
        if layer.name in chosen and not is_left:
            found.append(layer)
    return found


def _undivided(
    source: Source, include: Sequence[str], exclude: Sequence[str], embeddings: bool
) -> list[Skipped]:
    """Return the layers that are asked for and have no group size."""
    chosen = _chosen_layers(source, include, exclude, embeddings)
    return [
        Skipped(m.name, m.source_bytes, f"no group divides its {m.shape[1]} inputs")
        for m in chosen
        if candidate(m) is None
    ]
