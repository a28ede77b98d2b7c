"""The environment says by which backend a process was started together with others."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from plastic_runtime.distributed import asked_backend, join


def test_one_process_of_the_launcher_is_alone(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("\n")  # as `mlx.launch -n 1` leaves it
    environment = {"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts), "HOME": "/"}
    assert join(environment).size == 1
    assert environment == {"HOME": "/"}  # MLX itself fails on the empty list
    hosts.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    assert asked_backend({"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts)}) == "ring"


@pytest.mark.skipif(mx.distributed.is_available("jaccl"), reason="it is there")
def test_a_backend_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"jaccl was asked for .* start with .*--backend ring"):
        join({"MLX_RANK": "0", "MLX_IBV_DEVICES": "/tmp/devices"})


def test_a_backend_that_cannot_send_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="nccl was asked for"):
        join({"MLX_RANK": "0", "NCCL_HOST_IP": "10.0.0.1", "MLX_WORLD_SIZE": "2"})
