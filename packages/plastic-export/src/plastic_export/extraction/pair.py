"""Two checkpoints of one architecture, subtracted one matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx
from plastic_core.files import MLX_DTYPES, FormatError
from plastic_core.linalg import Float32

from plastic_export.checkpoint.reader import Checkpoint, refuse_non_finite, widened
from plastic_export.checkpoint.tensors import COMPANIONS, FLOATS, module_path
from plastic_export.model.tokenizer import VOCABULARIES, digests_in, load_tokenizer
from plastic_export.source.layers import Layer
from plastic_export.source.source import Source

_NAMED = 3  # differences that a refusal names


@dataclass(frozen=True)
class Pair:
    """A checkpoint and what was made of it, as mlx-lm's model holds both.

    Attributes:
        base: What was trained.
        tuned: What came of it.

    Examples:
        >>> from plastic_export.extraction import Pair
        >>> with open_checkpoint("SRC") as base, open_checkpoint("TUNED") as tuned:
        ...     ((before, after),) = Pair.of(base, tuned).matrices("lm_head.weight")
        >>> before.shape == after.shape, np.array_equal(before, after)
        (True, True)
    """

    base: Source
    tuned: Source

    @classmethod
    def of(cls, base: Checkpoint, tuned: Checkpoint) -> Pair:
        """Trace both, and make sure that they can be subtracted; no weight is read.

        Raises:
            FormatError: If they are of two architectures, tokenizers or sizes; the message names
                the first differences. As `Source.of` does, too.
        """
        types = [checkpoint.config.get("model_type") for checkpoint in (base, tuned)]
        if types[0] != types[1]:
            reason = f"it is of type {types[1]!r}, and {base.name} of type {types[0]!r}"
            raise FormatError.about(tuned.folder, reason, "name two checkpoints of one model")
        pair = cls(Source.of(base), Source.of(tuned))
        _check_shapes(pair)
        _check_tokenizers(base, tuned)
        return pair

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The matrices and stacks of both, by the name of their weight."""
        return self.base.layers

    def matrices(self, name: str) -> Iterator[tuple[Float32, Float32]]:
        """Yield a weight of the base and of the tuned checkpoint, one pair for each expert.

        Raises:
            FormatError: If one cannot be read or is not finite.
        """
        before, after = (s.matrices(s.layers[name]) for s in (self.base, self.tuned))
        return zip(before, after, strict=True)

    @property
    def others(self) -> list[str]:
        """The parameters of floating types that are no weight of a layer: norms, biases."""
        return [
            name
            for name in _others(self.base)
            if all(
                s.specs[name].dtype in FLOATS and s.origins[name].tensors
                for s in (self.base, self.tuned)
            )
        ]

    def values(self, name: str) -> tuple[Float32, Float32]:
        """Return one of `others` in both checkpoints, widened to float32.

        Raises:
            FormatError: If one cannot be read or is not finite.
        """
        return _values(self.base, name), _values(self.tuned, name)

    def stored(self, name: str, values: Float32) -> mx.array:
        """Return values of one of `others` in the type in which the tuned checkpoint has it."""
        return mx.array(values).astype(MLX_DTYPES[self.tuned.specs[name].dtype])


def _others(source: Source) -> dict[str, tuple[int, ...]]:
    packed = [module_path(name) for name in source.layers]
    own = {f"{path}.{leaf}" for path in packed for leaf in ("weight", *COMPANIONS)}
    return {name: spec.shape for name, spec in source.specs.items() if name not in own}


def _values(source: Source, name: str) -> Float32:
    spec = source.specs[name]
    first = source.checkpoint.tensors[next(iter(source.origins[name].tensors))]
    values: Float32 = widened(source.raw(name), spec.dtype).reshape(spec.shape)
    refuse_non_finite(values, first, name)
    return values


def _check_shapes(pair: Pair) -> None:
    """Refuse parameters that only one of both has, or that have two shapes."""
    before, after = (
        {name: layer.shape for name, layer in s.layers.items()} | _others(s)
        for s in (pair.base, pair.tuned)
    )
    wrong = [
        f"{name} is {_shape(before.get(name))} in {pair.base.checkpoint.name} and "
        f"{_shape(after.get(name))} in {pair.tuned.checkpoint.name}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if not wrong:
        return
    reason = f"{len(wrong)} tensors cannot be subtracted: {'; '.join(wrong[:_NAMED])}"
    reason += "; ..." if len(wrong) > _NAMED else ""
    raise FormatError.about(pair.tuned.checkpoint.folder, reason, _remedy(pair, before, after))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)


def _remedy(
    pair: Pair, before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]
) -> str:
    tables = [name for name, layer in pair.base.layers.items() if layer.kind == "embedding"]
    if any(name in after and before[name][0] != after[name][0] for name in tables):
        return "the vocabularies differ in size; resize the embeddings of the base first"
    return "name two checkpoints of one model"


def _check_tokenizers(base: Checkpoint, tuned: Checkpoint) -> None:
    """Refuse two vocabularies; a checkpoint without a tokenizer has none to differ."""
    found = [digests_in(checkpoint.folder) for checkpoint in (base, tuned)]
    both = [name for name in VOCABULARIES if all(name in digests for digests in found)]
    if not both or all(found[0][name] == found[1][name] for name in both):
        return
    ours, theirs = (load_tokenizer(each.folder).get_vocab() for each in (base, tuned))
    others = sorted(word for word in ours.keys() | theirs.keys() if _differ(word, ours, theirs))
    if others:
        first = ", ".join(
            f"{word!r} is {ours.get(word, 'missing')} and {theirs.get(word, 'missing')}"
            for word in others[:_NAMED]
        )
        reason = f"its tokenizer differs from that of {base.name} in {len(others)} tokens: {first}"
        raise FormatError.about(tuned.folder, reason, "name two checkpoints of one tokenizer")


def _differ(word: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
    return ours.get(word) != theirs.get(word)
