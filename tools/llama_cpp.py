"""The figures of llama.cpp's own perplexity tool beside those of ``evaluate --like llama.cpp``.

    uv run tools/llama_cpp.py llama-perplexity

The argument is the tool, built for this machine (the source that llama-cpp-python ships has it:
``cmake -B build -DLLAMA_OPENSSL=OFF`` and ``cmake --build build --target llama-perplexity``). It
runs the shipped checkpoint and its copy in 4 bits, both as GGUF in float32 with float32 keys and
values, so that nothing differs but the two programs.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from contextlib import chdir
from pathlib import Path

import mlx_lm
from plastic_export import export
from plastic_export.cli import main as plastic

DATA = Path(__file__).resolve().parents[1] / "tests-integration" / "data" / "stdlib-llama"
TEXT = DATA / "heldout.txt"


def run(tool: str, model: Path, *words: str) -> str:
    """Run the tool on the text, and return what it prints."""
    exact = ("-fa", "off", "-ctk", "f32", "-ctv", "f32", "-c", "512", "-b", "512")
    command = [tool, "-m", str(model), "-f", str(TEXT), *exact, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{done.stderr}\n{done.stdout}"


def main() -> None:
    """Print what both say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", help="llama-perplexity of llama.cpp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mlx_lm.convert(str(DATA), str(work / "Q4"), quantize=True, q_bits=4)
        for folder, file in ((DATA, "SRC.gguf"), (work / "Q4", "Q4.gguf")):
            export(folder, work / file, to="gguf", type="f32")
        base = str(work / "base")
        first = run(options.tool, work / "SRC.gguf", "--save-all-logits", base)
        print(first[first.index("Final estimate") :].splitlines()[0])
        kl = ("--kl-divergence", "--kl-divergence-base", base)
        second = run(options.tool, work / "Q4.gguf", *kl)
        print(second[second.index("======") :])
        words = ["--reference", str(DATA), "--text", str(TEXT), "--like", "llama.cpp", "--full"]
        with chdir(work):
            plastic(["evaluate", "Q4", *words])


if __name__ == "__main__":
    main()
