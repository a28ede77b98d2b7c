"""Ports for processes that find each other on this machine."""

from __future__ import annotations

import random
import socket

CHOSEN = range(20_000, 32_000)
"""Below those that systems hand out by themselves, to connections of others for example."""


def free_ports(count: int) -> list[int]:
    """Return neighbouring ports, as ``mlx.launch`` wants them, that nobody listens at.

    They are drawn at random, so that programs which ask at the same time get others.
    """
    while True:
        first = random.SystemRandom().randrange(CHOSEN.start, CHOSEN.stop - count)
        ports = [*range(first, first + count)]
        if all(map(_is_free, ports)):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
