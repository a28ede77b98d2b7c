"""Provoke every fault that files can meet, for real, and print what happened.

    uv run tools/faults/provoke.py                       everything: an hour on two cores
    uv run tools/faults/provoke.py --quick               a few of each, about a minute
    uv run tools/faults/provoke.py --rows fuzz,flips     these rows alone

Exit status 1 if anything went otherwise than it must. Linux; what needs to mount a file system or
to become another user is skipped, with a word, where that is not allowed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from provoked.calls import calls
from provoked.disk import full, refused
from provoked.flips import flips
from provoked.fuzz import fuzz
from provoked.kill import kill, killplan, stop
from provoked.malformed import malformed, special
from provoked.outcome import Outcome, show
from provoked.powerloss import powerloss
from provoked.shared import busy, source_changes
from provoked.sleeping import asleep

Row = Callable[[bool, Path], list[Outcome]]

ROWS: dict[str, Row] = {
    "malformed": malformed,
    "special": special,
    "fuzz": fuzz,
    "kill": kill,
    "killplan": killplan,
    "stop": stop,
    "powerloss": powerloss,
    "calls": calls,
    "full": full,
    "refused": refused,
    "flips": flips,
    "busy": busy,
    "changed": source_changes,
    "asleep": asleep,
}


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="Some of: %(default)s.")
    parser.add_argument("--quick", action="store_true", help="A few of each.")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := set(names) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    _prepare()
    outcomes: list[Outcome] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            os.chmod(folder, 0o755)  # some faults are met by another user
            found = ROWS[name](arguments.quick, Path(folder).resolve())
            show(found)
            outcomes += found
    sys.exit(any(o.right < o.tried for o in outcomes))


def _prepare() -> None:
    """Import what the children need, so that each need not; compute nothing, so that they may."""
    for name in ("plastic_export.cli.command", "mlx_lm.utils", "mlx_lm.models.llama"):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
