"""Leave out the tests of packages that are not installed.

``uv run --package plastic-core pytest`` installs plastic-core and what it depends on, and starts
pytest in the root, where ``testpaths`` names every package. A package that cannot be imported is
left out, and so is ``tests-integration`` unless all can be. An environment that holds more than
the package asked for runs more than its tests, and nothing in them fails for it.

Tests run side by side, one process per core and four at most; ``-n0`` runs them in one process, and
so does naming a single one. What takes longest waits for ``--long``.

MLX draws from the time of day unless it is told where to begin: every test begins at one seed.

No test may reach beyond this machine. What tries to is stopped, and its test fails, even if the
code under test swallows the error.
"""

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports NumPy, and for every child: processes side by side share the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell starts what runs in the background with Ctrl-C ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent
NAMES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
MISSING = [name for name in NAMES if find_spec(name.replace("-", "_")) is None]
LEFT_OUT = [*(f"packages/{name}" for name in MISSING), "tests-integration"] if MISSING else []

# What lies inside: pytest asks nothing about a directory that testpaths itself names.
collect_ignore_glob = [f"{folder}/*" for folder in LEFT_OUT]

# Without limits on time: a busy machine is no defect.
untimed: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=30, derandomize=True, **untimed)
settings.register_profile("thorough", max_examples=1000, derandomize=True, **untimed)
settings.load_profile("fast")  # the other: pytest --hypothesis-profile=thorough


def pytest_configure(config: pytest.Config) -> None:
    """Compile the rounding before processes start side by side, which would each do it."""
    if find_spec("plastic_core") is not None and not hasattr(config, "workerinput"):
        from numpy import ones
        from plastic_core.rounding import nearest_errors

        nearest_errors(ones((1, 32)), 2, group_size=32)


def pytest_report_header() -> list[str]:
    """Name what is left out, and why."""
    if not MISSING:
        return []
    return [f"not installed: {', '.join(MISSING)}; so not collected: {', '.join(LEFT_OUT)}"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``."""
    parser.addoption("--long", action="store_true", help="run the tests that take longest too")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes ``-n auto`` means: none of its own for tests that are named."""
    named = any("::" in argument for argument in config.args)
    return 0 if named else min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked ``long`` unless it is asked for."""
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long: run with --long"))


SEED = 1936
"""No test's own: what it seeds by itself is drawn anew, and not once more."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin what is drawn at random at one place, before any fixture is set up."""
    if mlx := sys.modules.get("mlx.core"):  # plastic-select does without
        mlx.random.seed(SEED)


reached: list[str] = []
"""What tests tried to reach beyond this machine; a test that means to clears it."""

WATCHED = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
"""Events of Python's audit hooks (PEP 578), and which of their arguments holds the address."""


def stop_at_the_border(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise where an address is not of this machine; an audit hook, so nothing goes around it."""
    if event in WATCHED and not is_local(arguments[WATCHED[event]]):
        reached.append(f"{event} {arguments[WATCHED[event]]!r}")
        raise ConnectionRefusedError(f"a test may not reach {arguments[WATCHED[event]]!r}")


def is_local(address: Any) -> bool:
    """Whether a socket address, or a host name, is of this machine."""
    host = address[0] if isinstance(address, tuple) else address
    if not isinstance(address, tuple) and isinstance(host, str | bytes) and "/" in str(host):
        return True  # a socket of Unix
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False


sys.addaudithook(stop_at_the_border)


@pytest.fixture(autouse=True)
def _on_this_machine_alone() -> Iterator[None]:
    """Fail a test that tried to reach beyond this machine."""
    reached.clear()
    yield
    if reached:
        pytest.fail(f"reached beyond this machine: {', '.join(reached)}")


@pytest.fixture(name="reached")
def _reached() -> list[str]:
    """What this test tried to reach beyond this machine."""
    return reached
