"""A compressed folder, served at any size."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from plastic_core.files import Closing
from plastic_runtime.dialling import read_manifest

from plastic_export.model.library import mlx_lm_utils
from plastic_export.serving.requests.size_names import ListedSize
from plastic_export.serving.stop_signals import stopping_on_signals

LEAST_MLX_LM = (0, 31, 3)  # whose server generates in a thread with streams of its own
HOW = "serving needs prometheus_client; install the extra: pip install 'plastic-export[serve]'"


class SizeServer(Closing):
    """The server of mlx-lm over a compressed folder, whose requests name the size they want.

    A request has the size of its field ``"plastic": {"keep": 0.5}`` or of its model, ``name@0.5``:
    the bytes of the weights over those of the largest size. Requests of one size are answered
    together, and every answer is that of a model loaded at its size. A context manager: leaving it
    finishes what was begun.

    Args:
        folder: Folder of a format with components, ``"corrected"`` or ``"factored"``.
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        memory: Bytes that weights and caches may take. Requests that name no size get the largest
            of those listed that leaves room for what all at hand may need.
        page: Whether there is a page at ``/`` that compares two sizes.
        stock: Options of ``mlx_lm.server`` of the installed version.

    Attributes:
        url: Where it listens.
        model: The name of the model.
        sizes: The sizes that it lists, increasing.
        priced_in: The unit of their prices.

    Raises:
        FormatError: If the folder is missing or damaged, or holds nothing that can be dialled.
        ValueError: If ``memory`` is below what the least size needs, which is named, or
            ``mlx_lm.server`` refuses an option.
        BusyError: If another process is writing the folder.
        ModuleNotFoundError: If the extra is not installed, or mlx-lm is older than 0.31.3.
        OSError: If a file cannot be read, or the address is taken.

    Cost:
        The weights at one size. Turning to another reads what that has more.

    Examples:
        >>> with SizeServer("FACTORED", port=0) as server:
        ...     largest = server.sizes[-1]
        >>> largest.keep, server.url.startswith("http://127.0.0.1:")
        (1.0, True)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        memory: int | None = None,
        page: bool = False,
        stock: Sequence[str] = (),
    ) -> None:
        mlx_lm_utils()
        if tuple(map(int, re.findall(r"\d+", version("mlx-lm"))[:3])) < LEAST_MLX_LM:
            least = ".".join(map(str, LEAST_MLX_LM))
            reason = f"serving needs mlx-lm {least} or newer, and {version('mlx-lm')} is installed"
            raise ModuleNotFoundError(f"{reason}; install a newer one", name="mlx_lm")
        try:
            from plastic_export.serving.assembly import Assembly
            from plastic_export.serving.stock_settings import stock_settings
        except ModuleNotFoundError as error:
            if error.name != "prometheus_client":
                raise
            raise ModuleNotFoundError(HOW, name=error.name) from None
        read_manifest(Path(folder))  # which names what is no such folder
        words = ["--host", host, "--port", str(port), "--log-level", "WARNING", *stock]
        self._parts = Assembly(Path(folder), stock_settings(words), memory=memory, page=page)
        self._parts.listen()
        self._is_open, self._is_stopped = True, False
        provider = self._parts.provider
        self.model, self.priced_in = provider.sizes.name, provider.priced_in
        self.sizes: tuple[ListedSize, ...] = tuple(provider.listed)

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:8080``."""
        host, port = self._parts.http.server_address[:2]
        name = str(host)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def wait(self) -> None:
        """Return once Ctrl-C or SIGTERM came, or `stop` was called. In the main thread only."""
        with stopping_on_signals(self.stop):
            while not self._is_stopped:  # no lock, which a signal might find taken
                time.sleep(0.1)

    def stop(self) -> None:
        """Let `wait` return."""
        self._is_stopped = True

    def close(self) -> None:
        """Take no more requests, finish those that were begun, and end."""
        if self._is_open:
            self._is_open = False
            self._parts.close()
