"""Which layers one and the same array enters."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from plastic_runtime.measure import BoundCall, intercepted, modules_by_path

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.model.load import load_model


def shared_inputs(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Tell for weights which of them the array that enters their layer has entered first.

    Cost: a pass of one token is built, and not computed: no weight is read.

    Args:
        checkpoint: The open source.
        names: Names of weights of layers.

    Returns:
        The name of the first weight by name; itself where no other shares its input.

    Examples:
        >>> names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qko"]
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shared = shared_inputs(checkpoint, names)
        >>> [name.split(".")[4] for name in shared.values()]
        ['q_proj', 'q_proj', 'o_proj']
    """
    model = load_model(checkpoint.folder)
    modules, by_path = modules_by_path(model), {module_path(name): name for name in names}
    entered, first, found = list[mx.array](), dict[int, str](), dict[str, str]()

    def around(path: str, call: BoundCall, x: mx.array) -> mx.array:
        if path in by_path:
            entered.append(x)  # as long as it lives no other array has its place
            found.setdefault(by_path[path], first.setdefault(id(x), by_path[path]))
        y: mx.array = call(x)
        return y

    with intercepted({path: modules[path] for path in by_path}, around):
        model(mx.zeros((1, 1), mx.int32))
    return {name: found.get(name, name) for name in names}
