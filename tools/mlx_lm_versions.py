"""Run the packages, and what they write, under several versions of mlx-lm, each on its own.

    uv run tools/mlx_lm_versions.py                 the versions below and that of the pins
    uv run tools/mlx_lm_versions.py 0.29.1 0.31.3   these

Every version gets an environment with the four packages of this tree. In it the shipped checkpoint
is planned, compressed in three formats, and trained for a few steps by ``plastic``; then stock
``mlx_lm.generate`` of that version runs every result. mlx-lm before 0.30 knows no model files and
is not asked to run factors. Exit status: 0 if every version passes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests-integration" / "data" / "stdlib-llama"
OLDER = ("0.28.4", "0.30.7")
WITH_MODEL_FILE = (0, 30)
EXTRAS = {"plastic-export": "[lm]"}  # whose range of mlx-lm is to hold
FEW = ("--windows", "4", "--window", "64")


def pinned() -> str:
    """Return the version of mlx-lm that the pins name."""
    found = re.search(r'"mlx-lm==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def called(*words: str | Path) -> str:
    """Run a command where no pins of this tree bind; return what it printed."""
    there = tempfile.gettempdir()
    done = subprocess.run(
        [*map(str, words)], cwd=there, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(version: str, work: Path) -> Path:
    """Make an environment with this mlx-lm and the packages; return the folder of its commands."""
    called("uv", "venv", "--quiet", "--python", sys.executable, work / "env")
    python = work / "env" / "bin" / "python"
    folders = [path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
    packages = [f"{f.name}{EXTRAS.get(f.name, '')} @ {f.as_uri()}" for f in folders]
    mlx = re.search(r'"mlx==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert mlx is not None
    wanted = [f"mlx-lm=={version}", f"mlx=={mlx[1]}", "sentencepiece", *packages]
    called("uv", "pip", "install", "--quiet", "--python", python, *wanted)
    return python.parent


def rows(folder: Path) -> Path:
    """Write a few rows to train on."""
    folder.mkdir()
    lines = (SOURCE / "calibration.txt").read_text().splitlines()
    texts = ["\n".join(lines[i : i + 8]) for i in range(0, 160, 8)]
    for name, part in (("train", texts[:16]), ("valid", texts[16:])):
        content = "\n".join(json.dumps({"text": text}) for text in part)
        (folder / f"{name}.jsonl").write_text(content)
    return folder


def try_version(version: str, work: Path) -> list[str]:
    """Run everything under one version; return what was run."""
    bin_ = environment(version, work)
    plastic, plan = bin_ / "plastic", work / "plan.json"

    def generate(model: Path, *more: str | Path) -> None:
        words = ("--prompt", "def ", "--max-tokens", "4", *more)
        called(bin_ / "mlx_lm.generate", "--model", model, *words)

    text = ("--calibration", SOURCE / "calibration.txt", *FEW)
    called(plastic, "plan", SOURCE, "--bits-per-weight", "4", "--out", plan, *text)
    called(plastic, "compress", SOURCE, work / "mixed", "--plan", plan)
    called(plastic, "compress", SOURCE, work / "dense", "--keep", "0.8", "--format", "dense")
    called(plastic, "compress", SOURCE, work / "factored", "--keep", "0.8")
    few = ("--steps", "4", "--batch", "2", "--window", "32", "--rank", "2")
    called(plastic, "train", SOURCE, "--data", rows(work / "data"), "--out", work / "run", *few)
    generate(work / "mixed")
    generate(work / "dense")
    generate(SOURCE, "--adapter-path", work / "run" / "adapters")
    ran = ["mixed", "dense", "run/adapters"]
    if tuple(map(int, version.split(".")[:2])) >= WITH_MODEL_FILE:
        generate(work / "factored", "--trust-remote-code")
        ran.append("factored")
    return ran


def main() -> None:
    """Check every version and print a line for each."""
    failed = False
    for version in sys.argv[1:] or [*OLDER, pinned()]:
        work = Path(tempfile.mkdtemp(prefix="mlx-lm-"))
        try:
            ran = ", ".join(try_version(version, work))
            print(f"mlx-lm {version}: plan, compress, train; {ran} ran", flush=True)
        except RuntimeError as error:
            failed = True
            print(f"mlx-lm {version} FAILED: {error}")
        finally:
            shutil.rmtree(work)
    sys.exit(failed)


if __name__ == "__main__":
    main()
