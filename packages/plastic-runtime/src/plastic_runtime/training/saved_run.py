"""Save a training run and go on with it, bit for bit: one file, replaced at once or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from plastic_core import RankLayer
from plastic_core.files import (
    FormatError,
    array_bytes,
    json_digest,
    parse_object,
    read_arrays,
    write_arrays,
)

from plastic_runtime.manager.manager import PlasticityManager
from plastic_runtime.surgery.moments import AXIS, single_optimizers
from plastic_runtime.surgery.probe_loss import find_rank_layers

VERSION = 2
KEY = "plastic_run"
RANDOM = "random"
_PARTS = {"optimizers", "sleep", "manager", "extra", "sha256"}
_OTHER = "use another file"

Arrays = dict[str, mx.array]


def save_run(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: optim.Optimizer | None,
    manager: PlasticityManager,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write all that a training run needs to go on, as one safetensors file.

    It holds the trainable parameters and the factors of every ``RankLayer``, the state of the
    optimizer (and with it that of a learning-rate schedule), the components asleep with theirs (of
    a ``SleepStore`` their digests; what woke is released there once this file is on the disk), the
    state of the manager, MLX's global random state, and a digest of all of it. Frozen weights are
    the caller's; the position in the data belongs in ``extra``. The file appears under its name
    complete and synced to disk, or not at all; an earlier one is then untouched.

    Args:
        path: The file; its folder exists.
        model: The model in training.
        optimizer: The one that trains it, or None.
        manager: The one that changes its ranks.
        extra: Whatever else the caller needs to go on, in JSON's types.

    Raises:
        ValueError: If a parameter has NaN or infinities: a run to go back to is worth more.
        OSError: If the file cannot be written.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> manager = PlasticityManager(model)
        >>> save_run("run.safetensors", model, None, manager, extra={"epoch": 3})
        >>> event = manager.shrink("layers.0", 1)
        >>> load_run("run.safetensors", model, None, manager), manager.ranks()
        ({'epoch': 3}, {'layers.0': 2})
    """
    _check_finite(_weights(model))
    arrays, run = content_of_run(model, optimizer, manager, extra=extra)
    run["sha256"] = _digest(arrays, run)
    write_arrays(path, arrays, {KEY: json.dumps(run)})
    manager.sleep_dict.release()


def content_of_run(
    model: nn.Module,
    optimizer: optim.Optimizer | None,
    manager: PlasticityManager,
    *,
    extra: Mapping[str, Any] | None = None,
) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a run as it is, evaluated, and its record: what `put_back` takes.

    Args:
        model: The model, see `save_run`.
        optimizer: The optimizer, see `save_run`.
        manager: The manager, see `save_run`.
        extra: Whatever else the caller needs, in JSON's types.
    """
    weights = _weights(model)
    arrays = _prefixed("model", weights) | _prefixed("sleep", manager.sleep_dict.arrays())
    for i, single in enumerate(_singles(optimizer)):
        arrays |= _prefixed(f"optimizer.{i}", dict(tree_flatten(single.state)))
    arrays[RANDOM] = cast(list[mx.array], mx.random.state)[0]
    mx.eval(arrays)
    run = {
        "version": VERSION,
        "optimizers": _names(optimizer),
        "sleep": manager.sleep_dict.meta(),
        "manager": manager.state(),
        "extra": dict(extra or {}),
    }
    return arrays, run


def load_run(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: optim.Optimizer | None,
    manager: PlasticityManager,
) -> dict[str, Any]:
    """Put a saved run back into a model, an optimizer and a manager made as for its start.

    Ranks become those of the file. The next training step is bit for bit the one that would have
    followed the saving (same versions, same hardware, CPU). Compile the step after loading, or
    before: the optimizer's state is changed in place. MLX's global random state becomes that of
    the saving.

    Args:
        path: A file that ``save_run`` wrote.
        model: The same model, at any ranks, with the same parameters frozen.
        optimizer: An optimizer of the same class and settings.
        manager: A manager with the same settings.

    Returns:
        The ``extra`` of the saving.

    Raises:
        FormatError: If the file is damaged or no saved run. Nothing has changed then.
        ValueError: If it does not fit the model, the optimizer or the manager. The same.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> manager = PlasticityManager(model)
        >>> save_run("run.safetensors", model, None, manager, extra={"epoch": 3})
        >>> load_run("run.safetensors", model, None, manager)
        {'epoch': 3}
    """
    arrays, run = read_run(Path(path))
    put_back(path, arrays, run, model, optimizer, manager)
    extra: dict[str, Any] = run["extra"]
    return extra


def put_back(
    path: str | os.PathLike[str],
    arrays: Arrays,
    run: Mapping[str, Any],
    model: nn.Module,
    optimizer: optim.Optimizer | None,
    manager: PlasticityManager,
) -> None:
    """Put what `read_run` gave into the parts of a run: the second half of `load_run`.

    Raises:
        ValueError: As `load_run`, naming ``path``.
    """
    if run["optimizers"] != _names(optimizer):
        raise ValueError(
            f"{os.fspath(path)}: saved with the optimizer {run['optimizers']}, "
            f"got {_names(optimizer)}; make the same one."
        )
    weights = _under("model", arrays)
    _check_fit(os.fspath(path), model, weights)
    manager.load_state(run["manager"])
    manager.sleep_dict.load(_under("sleep", arrays), run["sleep"])
    _set_weights(model, weights)
    for i, single in enumerate(_singles(optimizer)):
        _set_state(single, _under(f"optimizer.{i}", arrays))
    if optimizer is not None:
        # A compiled step would lose what it added to a state saved before the first step.
        optimizer.init(model.trainable_parameters())  # type: ignore[no-untyped-call]
    high, low = map(int, np.array(arrays[RANDOM]))
    mx.random.seed((high << 32) | low)  # the state itself cannot be assigned


def read_run(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read and check every array of a saved run and its record: the first half of `load_run`.

    Raises:
        FormatError: If the file is damaged, a single bit included, or no saved run.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> model = nn.Sequential(RankLayer(mx.eye(2), mx.ones(2), mx.eye(2)))
        >>> save_run("run.safetensors", model, None, PlasticityManager(model))
        >>> arrays, run = read_run(Path("run.safetensors"))
        >>> sorted(arrays)
        ['model.layers.0.S', 'model.layers.0.U', 'model.layers.0.Vh', 'random']
    """
    arrays, metadata = read_arrays(path)
    if KEY not in metadata:
        raise FormatError.about(path, "no saved run", _OTHER)
    run = parse_object(metadata[KEY].encode(), path, _OTHER)
    if (version := run.get("version")) != VERSION:
        reason = f"saved in version {version} of the format, this is {VERSION}"
        raise FormatError.about(path, reason, "use the plastic-runtime that wrote it")
    if missing := _PARTS - run.keys():
        raise FormatError.about(path, f"a saved run without its {min(missing)!r}", _OTHER)
    if _digest(arrays, {k: v for k, v in run.items() if k != "sha256"}) != run["sha256"]:
        raise FormatError.about(path, "its content does not have the digest it names", _OTHER)
    return arrays, run


def _digest(arrays: Arrays, run: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the record and over names, dtypes, shapes and bytes of all arrays."""

    def content() -> Iterator[bytes | memoryview]:
        for name in sorted(arrays):
            array = arrays[name]
            yield f"\n{name} {array.dtype} {array.shape}\n".encode()
            yield array_bytes(array).data

    return json_digest(run, content())


def _weights(model: nn.Module) -> Arrays:
    """Return the trainable parameters, and factors whether frozen or not, by name."""
    factors = {
        name: getattr(layer, name.rpartition(".")[2])
        for path, layer in find_rank_layers(model).items()
        for name in _factor_names(path)
    }
    trainable = model.trainable_parameters()  # type: ignore[no-untyped-call]
    return dict(tree_flatten(trainable)) | factors


def _set_weights(model: nn.Module, weights: Arrays) -> None:
    others = dict(weights)
    for path, layer in find_rank_layers(model).items():
        layer.set_factors(*(others.pop(name) for name in _factor_names(path)))
    model.update(tree_unflatten(list(others.items())) if others else {})


def _set_state(optimizer: optim.Optimizer, arrays: Arrays) -> None:
    optimizer.state.clear()
    optimizer.state.update(tree_unflatten(list(arrays.items())))


def _check_fit(file: str, model: nn.Module, weights: Arrays) -> None:
    present = _weights(model)
    if differing := sorted(present.keys() ^ weights.keys()):
        where = "model" if differing[0] in present else "file"
        raise ValueError(f"{file}: '{differing[0]}' is in the {where} alone; use the same model.")
    axes: dict[str, int] = {}
    for path in find_rank_layers(model):
        axes |= zip(_factor_names(path), AXIS.values(), strict=True)
        RankLayer(*(weights[name] for name in _factor_names(path)))
    for name, array in present.items():
        saved, wanted = _kind(weights[name], axes.get(name)), _kind(array, axes.get(name))
        if saved != wanted:
            raise ValueError(f"{file}: '{name}' is {saved}, in the model {wanted}.")


def _kind(array: mx.array, rank_axis: int | None) -> str:
    """Return the dtype and shape for comparison, the rank left open."""
    shape = ["r" if axis == rank_axis else str(size) for axis, size in enumerate(array.shape)]
    return f"{array.dtype} ({', '.join(shape)})"


def _check_finite(weights: Arrays) -> None:
    for name, array in weights.items():
        if not bool(mx.isfinite(array).all()):
            raise ValueError(f"`model` has NaN or infinities in '{name}'; nothing was saved.")


def _singles(optimizer: optim.Optimizer | None) -> list[optim.Optimizer]:
    return [] if optimizer is None else single_optimizers(optimizer)


def _names(optimizer: optim.Optimizer | None) -> list[str]:
    return [type(single).__name__ for single in _singles(optimizer)]


def _factor_names(path: str) -> list[str]:
    return [f"{path}.{name}" if path else name for name in AXIS]


def _prefixed(prefix: str, arrays: Mapping[str, mx.array]) -> Arrays:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _under(prefix: str, arrays: Mapping[str, mx.array]) -> Arrays:
    start = f"{prefix}."
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
