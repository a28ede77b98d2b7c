"""From the environment of a process that ``mlx.launch`` started to the team that it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import mlx.core as mx

from plastic_runtime.distributed.team import Team

BACKENDS = ("ring", "jaccl", "mpi")
"""Those that send to the next process from the CPU; NCCL does not."""


def join(environment: MutableMapping[str, str] = os.environ) -> Team:
    """Return the team of this process; it waits for the others that were started with it.

    Args:
        environment: Its variables, as ``mlx.launch`` or ``mpirun`` set them. Without any of theirs
            it is alone, and so is the one process of ``mlx.launch -n 1``, whose variables are
            removed: the list of hosts is empty, and MLX would fail on it later.

    Raises:
        ValueError: If MLX on this platform lacks the backend, or it is one that cannot send to the
            next process.
        ConnectionError: If the others cannot be reached.

    Examples:
        >>> join({}).size
        1
    """
    backend = asked_backend(environment)
    if backend is None:
        for name in ("MLX_RANK", "MLX_HOSTFILE"):
            environment.pop(name, None)
        return Team()
    there = [name for name in BACKENDS if mx.distributed.is_available(name)]
    if backend not in there:
        raise ValueError(
            f"{backend} was asked for to join the processes, and MLX has {', '.join(there)} for it "
            f"on this platform; start with `mlx.launch --backend {there[0]}`"
        )
    try:
        return Team(mx.distributed.init(strict=True, backend=backend))
    except RuntimeError as error:
        raise ConnectionError(
            f"the other processes cannot be reached ({error}); look at the addresses and ports "
            "that mlx.launch was given"
        ) from error


def asked_backend(environment: Mapping[str, str]) -> str | None:
    """Return the backend by which a process was started together with others; None if by none.

    Examples:
        >>> asked_backend({"MLX_RANK": "0", "NCCL_HOST_IP": "10.0.0.1", "MLX_WORLD_SIZE": "2"})
        'nccl'
    """
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "mpi"
    if "MLX_RANK" not in environment:
        return None
    if "MLX_IBV_DEVICES" in environment:
        return "jaccl"
    if "NCCL_HOST_IP" in environment:
        return "nccl" if int(environment.get("MLX_WORLD_SIZE", "1")) > 1 else None
    hosts = environment.get("MLX_HOSTFILE", "")
    listed = Path(hosts).read_text() if hosts else ""
    # Of one process it is empty, which is no JSON.
    return "ring" if listed.strip() and len(json.loads(listed)) > 1 else None
