"""The settings of the installed mlx_lm.server, read by its own command."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from mlx_lm import server

OWN = ("model", "adapter_path", "draft_model", "pipeline")
"""What it can be given that is not for a served folder: that is the model, and alone."""


def stock_settings(words: Sequence[str]) -> Namespace:
    """Read options as ``mlx_lm.server`` of the installed version would, which sets up its logging.

    Args:
        words: Its options, such as ``["--temp", "0.7"]``.

    Raises:
        ValueError: If it refuses them, or one names a model.
    """
    read: list[Namespace] = []
    refused = io.StringIO()
    try:
        with _standing_in(read), redirect_stderr(refused):
            argv, sys.argv = sys.argv, ["mlx_lm.server", *words]
            try:
                server.main()
            finally:
                sys.argv = argv
    except SystemExit as ended:
        line = refused.getvalue().strip().splitlines()
        said = line[-1].removeprefix("mlx_lm.server: error: ") if line else str(ended)
        raise ValueError(f"`stock`: mlx_lm.server refuses its options: {said}") from None
    (settings,) = read
    for name in OWN:
        if getattr(settings, name, None):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"`stock`: {option} is not served; the folder is the model, alone")
    return settings


@contextmanager
def _standing_in(read: list[Namespace]) -> Iterator[None]:
    """Let its ``main`` hand over what it read in the place of running a server."""
    run, provider = server.run, server.ModelProvider

    def hand_over(host: str, port: int, settings: Namespace, **_: Any) -> None:
        read.append(settings)

    server.run, server.ModelProvider = hand_over, lambda settings: settings
    try:
        yield
    finally:
        server.run, server.ModelProvider = run, provider
