"""Commands of ``plastic`` in several processes on this machine, by the launcher or by hand."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tools" / "bench"))
from joined.ports import free_ports

PLASTIC = Path(sys.executable).with_name("plastic")
LAUNCH = Path(sys.executable).with_name("mlx.launch")
LONGEST = 900.0
"""Seconds that nothing takes, on a machine that is busy with other tests too."""


def launched(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """What ``mlx.launch -n`` makes of a command of ``plastic``."""
    port = free_ports(processes)[0]
    command = [LAUNCH, "--backend", "ring", "-n", processes, "--starting-port", port, "--", PLASTIC]
    return subprocess.run(
        [str(word) for word in (*command, *words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )


class Processes:
    """The processes of one command, each with words of its own at will; started by hand."""

    def __init__(
        self,
        folder: Path,
        *commands: Sequence[object],
        places: Sequence[Path] = (),
        program: Path = PLASTIC,
    ) -> None:
        ports = free_ports(len(commands))
        hosts = folder / f"hosts-{ports[0]}.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        self.all = [
            subprocess.Popen(
                [str(program), *map(str, words)],
                cwd=places[rank] if places else None,
                env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, words in enumerate(commands)
        ]

    def wait(self, seconds: float = LONGEST) -> tuple[list[int], list[str]]:
        """Their exit statuses, and the lines of ours on standard error."""
        deadline, codes, lines = time.monotonic() + seconds, list[int](), list[str]()
        for process in self.all:
            try:
                _, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                for other in self.all:
                    other.kill()
                raise
            codes.append(process.returncode)
            lines += [line for line in err.splitlines() if line.startswith("error: ")]
        return codes, lines


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
