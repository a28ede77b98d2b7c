"""The guard of the test suite against the network holds."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation, RFC 5737


def send_datagram() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as own:
        own.sendto(b"x", (OUTSIDE, 53))


def connect_over_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as own:
        own.connect(("2001:db8::1", 443))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "connect": lambda: socket.create_connection((OUTSIDE, 443), timeout=1),
    "connect to a name": lambda: socket.create_connection(("example.org", 443), timeout=1),
    "resolve": lambda: socket.getaddrinfo("example.org", 443),
    "resolve in the old way": lambda: socket.gethostbyname("example.org"),
    "datagram": send_datagram,
    "ipv6": connect_over_ipv6,
    "a library": lambda: urllib.request.urlopen(f"http://{OUTSIDE}/", timeout=1),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_outside_connection_is_stopped_and_remembered(name: str, reached: list[str]) -> None:
    with pytest.raises((ConnectionRefusedError, urllib.error.URLError)):
        ATTEMPTS[name]()
    gc.collect()  # a socket that was left open would fail this test, and not the next one
    assert len(reached) == 1
    reached.clear()


def test_loopback_is_let_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        socket.create_connection(("localhost", port), timeout=10).close()
        thread.join()


def test_a_test_that_swallows_the_error_fails_nevertheless(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "conftest.py").write_text((root / "conftest.py").read_text())
    (tmp_path / "test_outside.py").write_text(
        "import socket\n"
        "def test_outside():\n"
        "    try:\n"
        f"        socket.create_connection(('{OUTSIDE}', 443), timeout=1)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", os.fspath(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "reached beyond this machine: socket." in done.stdout
    assert OUTSIDE in done.stdout
