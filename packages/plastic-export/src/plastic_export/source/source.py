"""A checkpoint as mlx-lm's loaded model holds it: every weight, and the tensors it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorSpec, array_bytes, check_memory

from plastic_export.checkpoint.packing import Packing, unpacked
from plastic_export.checkpoint.reader import Checkpoint, refuse_non_finite
from plastic_export.checkpoint.tensors import (
    COMPANIONS,
    FLOATS,
    Kind,
    is_matrix,
    module_path,
    stored_parts,
)
from plastic_export.checkpoint.warning import warn_about
from plastic_export.source.graph import Origin
from plastic_export.source.layers import Form, Layer, is_router
from plastic_export.source.trace import Trace, trace_loading

_LEAVES = ("weight", *COMPANIONS)
_HEADS = {"lm_head", "output", "embed_out", "output_layer", "head"}


@dataclass
class Source:
    """A checkpoint, and how mlx-lm's loaded model holds it.

    Attributes:
        checkpoint: The open checkpoint.
        layers: The layers that can be stored otherwise, by the name of their weight.
        trace: What mlx-lm makes of its tensors; None where they are taken as they are.
        dead: Tensors that no output needs: copies of an embedding that is the head as well.

    Examples:
        >>> from plastic_export.source import Source
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     source = Source.of(checkpoint)
        ...     (matrix,) = source.matrices(source.layers["lm_head.weight"])
        >>> matrix.shape, len(source.layers)
        ((80, 64), 16)
    """

    checkpoint: Checkpoint
    layers: dict[str, Layer]
    trace: Trace | None = None
    dead: frozenset[str] = frozenset()
    _values: dict[str, mx.array] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Source:
        """Trace what mlx-lm makes of a checkpoint while it loads it; no weight is read.

        Raises:
            FormatError: If mlx-lm cannot load it, or if the weight of a layer cannot be traced back
                to tensors of the files.
            ModuleNotFoundError: If mlx-lm is not installed.
        """
        found = trace_loading(checkpoint.folder)
        layers = _layers(checkpoint, found)
        source = cls(checkpoint, layers, found, _values=dict(found.parameters))
        found.parameters.clear()
        source.dead = _dead_heads(source)
        return source

    @classmethod
    def as_it_is(cls, checkpoint: Checkpoint) -> Source:
        """Take the matrices of the files as they are, whatever a model makes of them."""
        names = [n for n in checkpoint.tensors if is_matrix(n, checkpoint.tensors)]
        return cls(checkpoint, {n: _stored_layer(checkpoint, n) for n in names})

    def matrices(self, layer: Layer) -> Iterator[NDArray[np.float32]]:
        """The matrix of a layer, or those of its experts, each read when it is due.

        What is ``"computed"`` is in memory as a whole meanwhile, stacks included.

        Raises:
            FormatError: If one cannot be read or is not finite.
        """
        for expert in range(max(1, layer.experts)):
            index = expert if layer.experts else None
            if layer.form == "stacked":
                yield self.checkpoint.matrix(layer.tensors[expert])
            elif layer.form == "copied":
                yield self.checkpoint.matrix(layer.tensors[0], index)
            else:
                yield self._computed(layer, index)
        self._forget(layer)

    def raw(self, parameter: str) -> NDArray[np.uint8]:
        """Return the bytes of a parameter of the loaded model."""
        data = array_bytes(self._value(parameter))
        self._values.pop(parameter)
        return data

    def users(self) -> dict[str, list[str]]:
        """Return the parameters that each tensor of the files takes part in, by its name."""
        users: dict[str, list[str]] = {name: [] for name in self.checkpoint.tensors}
        for parameter, origin in self.origins.items():
            for name in origin.tensors:
                users[name].append(parameter)
        return users

    @property
    def origins(self) -> Mapping[str, Origin]:
        """The origins of all parameters; none where tensors are taken as they are."""
        return {} if self.trace is None else self.trace.origins

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The types and shapes of all parameters; none where tensors are taken as they are."""
        return {} if self.trace is None else self.trace.specs

    @property
    def packings(self) -> Mapping[str, Packing]:
        """The packing of every packed layer of the loaded model, by path."""
        return {} if self.trace is None else self.trace.packings

    def _value(self, parameter: str) -> mx.array:
        """Return a parameter, computed; the model is loaded anew for what was forgotten."""
        if parameter not in self._values:
            self._values = trace_loading(self.checkpoint.folder).parameters
        value = self._values[parameter]
        mx.eval(value)
        return value

    def _computed(self, layer: Layer, index: int | None) -> NDArray[np.float32]:
        path, (out, in_) = module_path(layer.name), layer.shape
        first = self.checkpoint.tensors[layer.tensors[0]]
        spec = self.specs[layer.name]
        check_memory(spec.nbytes + 4 * out * in_, first.file, layer.name)

        def part(leaf: str) -> mx.array | None:
            name = f"{path}.{leaf}"
            if name not in self.specs:
                return None
            value = self._value(name)
            return value if index is None else value[index]

        weight, scales = part("weight"), part("scales")
        assert weight is not None
        if scales is None:
            dense = weight.astype(mx.float32)
            mx.eval(dense)
            values = np.array(dense)
        else:
            packing = self.packings[path]
            values = unpacked(
                weight, scales, part("biases"), packing, global_scale=part("global_scale")
            )
        refuse_non_finite(values, first, layer.name)
        return values

    def _forget(self, layer: Layer) -> None:
        """Give back the memory of what was computed of a layer."""
        for leaf in _LEAVES:
            self._values.pop(f"{module_path(layer.name)}.{leaf}", None)


def _layers(checkpoint: Checkpoint, found: Trace) -> dict[str, Layer]:
    """Return the layers of a traced checkpoint, in the order of its tensors."""
    places = {name: i for i, name in enumerate(checkpoint.tensors)}
    lost = [path for path, _, _ in found.kinds if not _is_traced(found, path)]
    if lost:
        raise _untraced(checkpoint, found, lost)
    layers = [_layer(checkpoint, found, *kind) for kind in found.kinds]
    layers.sort(key=lambda m: min(places[name] for name in m.tensors))
    return {m.name: m for m in layers}


def _is_traced(found: Trace, path: str) -> bool:
    """Tell whether a weight comes from tensors of the files, and is read as what it stands for."""
    name = f"{path}.weight"
    is_number = path in found.packings or found.specs[name].dtype in FLOATS
    return is_number and bool(found.origins[name].tensors)


def _untraced(checkpoint: Checkpoint, found: Trace, paths: Sequence[str]) -> FormatError:
    lost = sum(found.specs[f"{path}.weight"].nbytes for path in paths)
    share = lost / sum(spec.nbytes for spec in found.specs.values())
    reason = (
        f"mlx-lm's weight of {paths[0]!r} is no number, or comes from no tensor that could be "
        f"traced; such layers hold {lost:,} bytes, {share:.1%} of the model"
    )
    remedy = f"convert it first: mlx_lm.convert --hf-path {checkpoint.folder} --mlx-path COPY"
    return FormatError.about(checkpoint.folder, reason, remedy)


def _layer(checkpoint: Checkpoint, found: Trace, path: str, kind: Kind, experts: int) -> Layer:
    """Return the layer at a path of the loaded model."""
    name, packing = f"{path}.weight", found.packings.get(path)
    spec = found.specs[name]
    own = [s for leaf in _LEAVES if (s := found.specs.get(f"{path}.{leaf}"))]
    columns = spec.shape[-1] if packing is None else spec.shape[-1] * 32 // packing.bits
    outputs = spec.shape[-2]
    return Layer(
        name=name,
        kind=kind,
        experts=experts,
        shape=(outputs, columns),
        # The scales' type where the weight is packed; those of the mx and nv modes are no floats.
        dtype=next((s.dtype for s in own if s.dtype in FLOATS), "BF16"),
        source_bytes=sum(s.nbytes for s in own),
        tensors=found.origins[name].tensors,
        form=_form(checkpoint, found, path),
        is_router=kind == "linear" and is_router(path, outputs, found.kinds),
    )


def _form(checkpoint: Checkpoint, found: Trace, path: str) -> Form:
    """Tell how the weight of a layer comes from the tensors of the files."""
    origin, packing = found.origins[f"{path}.weight"], found.packings.get(path)
    if origin.is_copy and _is_copied(checkpoint, found, path, packing):
        return "copied"
    is_stack = origin.is_stack and packing is None
    return "stacked" if is_stack and _is_stacked(checkpoint, found, path) else "computed"


def _is_copied(checkpoint: Checkpoint, found: Trace, path: str, packing: Packing | None) -> bool:
    """Tell whether a copied weight has its companions beside it, packed as config.json says."""
    (tensor,) = found.origins[f"{path}.weight"].tensors
    if checkpoint.tensors[tensor].shape != found.specs[f"{path}.weight"].shape:
        return False
    if packing is None:
        return checkpoint.tensors[tensor].dtype in FLOATS
    for leaf in COMPANIONS:
        if (origin := found.origins.get(f"{path}.{leaf}")) is not None and (
            not origin.is_copy or origin.tensors != (f"{module_path(tensor)}.{leaf}",)
        ):
            return False
    try:
        return checkpoint.packing(tensor) == packing
    except FormatError:  # it is packed by what config.json calls otherwise
        return False


def _is_stacked(checkpoint: Checkpoint, found: Trace, path: str) -> bool:
    """Tell whether experts are plain matrices of one kind, stacked along the first axis."""
    name = f"{path}.weight"
    infos = [checkpoint.tensors[tensor] for tensor in found.origins[name].tensors]
    kinds = {(info.shape, info.dtype) for info in infos}
    if len(kinds) > 1 or infos[0].dtype not in FLOATS:
        return False
    if found.specs[name].shape != (len(infos), *infos[0].shape):
        return False
    if len(infos) != infos[0].shape[0]:
        return True
    first = checkpoint.read(infos[0].name)  # the axis cannot be told by the shape
    return bool(mx.array_equal(found.parameters[name][0], first, equal_nan=True).item())


def _stored_layer(checkpoint: Checkpoint, name: str) -> Layer:
    """Return a matrix of the files as a layer of its own."""
    stored, (out, in_) = stored_parts(name, checkpoint.tensors), checkpoint.shape(name)
    dtype = next((t.dtype for t in stored if t.dtype in FLOATS), "BF16")
    return Layer(name, "linear", 0, (out, in_), dtype, sum(t.nbytes for t in stored), (name,))


def _dead_heads(source: Source) -> frozenset[str]:
    """Find output heads that mlx-lm ignores, since the embedding is the head, and say so."""
    tensors, users = source.checkpoint.tensors, source.users()
    tables = [m for m in source.layers.values() if m.kind == "embedding"]
    paths = {
        module_path(name): table
        for name, used in users.items()
        for table in tables
        if not used and _is_head(name) and source.checkpoint.shape(name) == table.shape
    }
    for path, table in paths.items():
        _say_dead(source.checkpoint, f"{path}.weight", table)
    leaves = [f"{path}.{leaf}" for path in paths for leaf in (*_LEAVES, "bias")]
    return frozenset(name for name in leaves if name in tensors and not users[name])


def _is_head(name: str) -> bool:
    return name.endswith(".weight") and module_path(name).rpartition(".")[2] in _HEADS


def _say_dead(checkpoint: Checkpoint, name: str, table: Layer) -> None:
    """Warn of a head that is not the one that runs."""
    head, other = checkpoint.tensors[name], checkpoint.tensors[table.tensors[0]]
    alike = (head.dtype, head.shape) == (other.dtype, other.shape)
    if alike and np.array_equal(checkpoint.raw(name), checkpoint.raw(other.name)):
        reason = f"it is {other.name!r} once more, which is the head of the model"
        warn_about(head.file, reason, "it is not copied", tensor=name)
    else:
        reason = (
            f"config.json ties the head to the embedding, and this is another matrix than "
            f"{other.name!r}"
        )
        outcome = "mlx-lm uses the embedding, so it is not copied"
        warn_about(head.file, reason, outcome, tensor=name)
