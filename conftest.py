"""Leave out the tests of packages that are not installed.

``uv run --package plastic-core pytest`` installs plastic-core and what it depends on, and starts
pytest in the root, where ``testpaths`` names every package. A package that cannot be imported is
left out, and so is ``tests-integration`` unless all can be. An environment that holds more than
the package asked for runs more than its tests, and nothing in them fails for it.
"""

from importlib.util import find_spec
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parent
NAMES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
MISSING = [name for name in NAMES if find_spec(name.replace("-", "_")) is None]
LEFT_OUT = [*(f"packages/{name}" for name in MISSING), "tests-integration"] if MISSING else []

# What lies inside: pytest asks nothing about a directory that testpaths itself names.
collect_ignore_glob = [f"{folder}/*" for folder in LEFT_OUT]

settings.register_profile("fast", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None, derandomize=True)
settings.load_profile("fast")  # the other: pytest --hypothesis-profile=thorough


def pytest_report_header() -> list[str]:
    """Name what is left out, and why."""
    if not MISSING:
        return []
    return [f"not installed: {', '.join(MISSING)}; so not collected: {', '.join(LEFT_OUT)}"]
