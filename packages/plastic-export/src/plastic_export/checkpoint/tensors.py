"""The tensors of a checkpoint that are matrices, for which a rank can be chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from plastic_core.files import TensorInfo

Kind = Literal["linear", "embedding", "experts"]
"""What layer a matrix, or a stack of them, is the weight of."""

_BLOCK = re.compile(r"(^|\.)\d+\.")  # a numbered block: "model.layers.3."
COMPANIONS = ("scales", "biases", "global_scale")  # beside the words of a packed weight
ROUTERS = {"gate", "router", "shared_expert_gate"}
FLOATS = {"BF16", "F16", "F32"}


def module_path(name: str) -> str:
    """``"model.layers.0.mlp.up_proj.weight"`` -> ``"model.layers.0.mlp.up_proj"``.

    Examples:
        >>> module_path("model.layers.0.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj'
    """
    return name.removesuffix(".weight")


def is_packed(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Tell whether the weight is stored in MLX's quantised form, with scales beside it."""
    words = name.endswith(".weight") and tensors[name].dtype == "U32"
    return words and f"{module_path(name)}.scales" in tensors


def stored_parts(name: str, tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Return the tensors that hold the weight: itself and, where it is packed, its companions."""
    parts = [name]
    if is_packed(name, tensors):
        parts += [f"{module_path(name)}.{leaf}" for leaf in COMPANIONS]
    return [tensors[part] for part in parts if part in tensors]


def is_weight(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Tell whether the tensor is a matrix or a stack of them, floating or MLX-quantised."""
    info = tensors[name]
    stored = info.dtype in FLOATS or is_packed(name, tensors)
    return name.endswith(".weight") and len(info.shape) in (2, 3) and stored


def is_matrix(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Tell whether the tensor is a weight of two dimensions, floating or MLX-quantised."""
    shape = tensors[name].shape
    return is_weight(name, tensors) and len(shape) == 2 and min(shape) > 1


def compressible(
    tensors: Mapping[str, TensorInfo],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Return the names of the matrices to compress, in the order of the files.

    Without ``include`` these are the projections of a transformer, found by place and shape
    rather than by a list of names: every matrix inside a numbered block that is no router. That
    is q, k, v, o, gate, up and down, fused or not, and every expert that has a tensor of its own.

    Args:
        tensors: The tensors of the checkpoint, by name.
        include: Glob patterns; a matrix that matches one of them is taken, wherever it stands.
        exclude: Glob patterns; a matrix that matches one of them is left out in any case.

    Returns:
        Tensor names, each ending in ``.weight``.

    Raises:
        ValueError: If a pattern matches no matrix, or if nothing is left to compress.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     names = compressible(checkpoint.tensors, include=["*.mlp.*"], exclude=["*.1.*"])
        >>> [module_path(name).rpartition(".")[2] for name in sorted(names)]
        ['down_proj', 'gate_proj', 'up_proj']
    """
    matrices = [name for name in tensors if is_matrix(name, tensors)]
    inside = [name for name in matrices if is_inside(name)]
    return chosen_names(matrices, default=inside, include=include, exclude=exclude)


def chosen_names(
    matrices: Sequence[str],
    *,
    default: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Return the matrices that the patterns name; see `compressible`.

    Args:
        matrices: The names of all.
        default: Those to take without ``include``.
        include: Glob patterns.
        exclude: Glob patterns.
    """
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        _check_patterns(option, patterns, matrices)
    wanted = [n for n in matrices if matches(n, include)] if include else default
    chosen = [name for name in wanted if not matches(name, exclude)]
    if not chosen:
        raise ValueError("no matrix is left; name some with --include, or drop an --exclude")
    return chosen


def is_inside(name: str) -> bool:
    """Tell whether a matrix stands in a numbered block and is no router."""
    last = module_path(name).rpartition(".")[2]
    return bool(_BLOCK.search(name)) and last not in ROUTERS


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a tensor, or the module that holds it, is named by one of the glob patterns."""
    return any(fnmatchcase(name, p) or fnmatchcase(module_path(name), p) for p in patterns)


def _check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            example = f"; a matrix here is called {names[0]!r}" if names else ""
            raise ValueError(f"{option} {pattern!r} matches no matrix of the checkpoint{example}")
