"""What mlx-lm makes of the tensors of a folder while it loads them; nothing of them is read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from plastic_core.files import TensorSpec, dtype_name, write_json
from plastic_core.layer import is_stack

from plastic_export.checkpoint.packing import Packing
from plastic_export.checkpoint.tensors import Kind
from plastic_export.checkpoint.warning import told_before
from plastic_export.model.load import MODEL_FILE, load_watched
from plastic_export.source.graph import Origin, origins

_OF_LINEARS = (nn.Linear, nn.QuantizedLinear)
_OF_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


class Trace(NamedTuple):
    """The trace of a folder.

    Attributes:
        parameters: The parameters of the loaded model, by name, not computed yet.
        specs: Their types and shapes.
        origins: The tensors of the files that each comes from.
        packings: The packing of every packed layer, by path.
        kinds: Path, kind and number of experts of every layer that can be stored otherwise.
    """

    parameters: dict[str, mx.array]
    specs: dict[str, TensorSpec]
    origins: dict[str, Origin]
    packings: dict[str, Packing]
    kinds: list[tuple[str, Kind, int]]


def trace_loading(folder: Path, *, foreign: bool = True) -> Trace:
    """Load a folder lazily and trace every parameter of the model back to its tensors.

    Args:
        folder: The folder.
        foreign: Whether foreign weights are made plain, which mlx-lm itself does not do.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.

    Cost:
        Reads the headers of the files; 1.5 s for 10,000 tensors.

    Examples:
        >>> found = trace_loading(Path("SRC"))
        >>> found.origins["lm_head.weight"].tensors, found.kinds[0]
        (('lm_head.weight',), ('lm_head', 'linear', 0))
    """
    leaves = dict[str, mx.array]()

    def watch(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        leaves.update(weights)
        # Arrays of their own: one that the model changes in place would still be called a copy.
        return {name: mx.stop_gradient(array) for name, array in weights.items()}

    model = load_watched(folder, watch, with_adapter=False, foreign=foreign)
    flat: Any = tree_flatten(model.parameters())  # type: ignore[no-untyped-call]
    parameters = dict(flat)
    return Trace(
        parameters,
        {n: TensorSpec(n, dtype_name(a), tuple(a.shape)) for n, a in parameters.items()},
        origins(leaves, parameters),
        _packings(model),
        _kinds(model),
    )


def trace_of_specs(specs: Iterable[TensorSpec], config: Mapping[str, Any]) -> Trace:
    """Trace how mlx-lm itself loads a folder that is not written yet.

    Its tensors are holes of a sparse file.

    Args:
        specs: The tensors of its model files.
        config: Its config.json; the model file that it may name is that of this package.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.

    Examples:
        >>> import json
        >>> config = json.loads(Path("SRC/config.json").read_text())
        >>> specs = trace_loading(Path("SRC")).specs.values()
        >>> all(origin.is_copy for origin in trace_of_specs(specs, config).origins.values())
        True
    """
    with tempfile.TemporaryDirectory() as name, told_before():
        folder = Path(name)
        write_json(folder / "config.json", config)
        if config.get("model_file") == MODEL_FILE.name:
            shutil.copyfile(MODEL_FILE, folder / MODEL_FILE.name)
        write_holes(folder / "model.safetensors", specs)
        return trace_loading(folder, foreign=False)._replace(parameters={})


def write_holes(file: Path, specs: Iterable[TensorSpec]) -> None:
    """Write a safetensors file of zeros that take no room on the disk.

    Args:
        file: The file.
        specs: Its tensors, in order.

    Examples:
        >>> from plastic_core.files import TensorSpec
        >>> write_holes(Path("holes.safetensors"), [TensorSpec("w", "F32", (2, 3))])
        >>> mx.load("holes.safetensors")["w"].shape
        (2, 3)
    """
    entries, stop = dict[str, Any](), 0
    for spec in specs:
        start, stop = stop, stop + spec.nbytes
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, stop],
        }
    header = json.dumps(entries).encode()
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + stop)


def _packings(model: nn.Module) -> dict[str, Packing]:
    packed = ("bits", "group_size", "mode", "scales")
    return {
        path: Packing(module.bits, module.group_size, module.mode)
        for path, module in model.named_modules()  # type: ignore[no-untyped-call]
        if all(hasattr(module, name) for name in packed)
    }


def _kinds(model: nn.Module) -> list[tuple[str, Kind, int]]:
    """Return the layers of mlx-lm's own kinds, those inside layers of this package left out."""
    kinds, ours = list[tuple[str, Kind, int]](), list[str]()
    for path, module in sorted(model.named_modules()):  # type: ignore[no-untyped-call]
        if type(module).__module__.endswith(MODEL_FILE.stem):
            ours.append(f"{path}.")
        elif path.startswith(tuple(ours)):
            continue
        elif type(module) in _OF_LINEARS:
            kinds.append((path, "linear", 0))
        elif type(module) in _OF_EMBEDDINGS:
            kinds.append((path, "embedding", 0))
        elif is_stack(module) and (hasattr(module, "to_quantized") or "scales" in module):
            kinds.append((path, "experts", int(module.num_experts)))
    return kinds
