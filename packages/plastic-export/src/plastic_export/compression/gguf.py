"""The commands that turn one given checkpoint into GGUF, for llama.cpp's own converter."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.folder.adapter_files import FOLDER as ADAPTERS
from plastic_export.folder.adapter_files import adapter_of
from plastic_export.folder.manifest import MANIFEST, read_manifest
from plastic_export.format.table import format_named

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")
"""What ``convert_hf_to_gguf.py`` writes; every other type is made by ``llama-quantize``."""

_OUTTYPE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_CONVERTER = "llama.cpp/convert_hf_to_gguf.py"


def gguf_guide(checkpoint: Checkpoint) -> list[str]:
    """Return a shell script, line by line, that turns this checkpoint into GGUF.

    Lines that begin with ``#`` explain; all others are commands. Words in capitals stand for
    what the checkpoint itself does not say, such as the folder of its source.

    Args:
        checkpoint: The open checkpoint. Only its configuration and its file list are read.

    Returns:
        The lines, without line ends.

    Raises:
        FormatError: If a JSON file of the checkpoint is damaged, or a plan gave it corrections
            that no dense copy can be made of.
        OSError: If one cannot be read.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     lines = gguf_guide(checkpoint)
        >>> any(line.startswith("python llama.cpp/convert_hf_to_gguf.py") for line in lines)
        True
    """
    name = re.sub(r"[^\w.-]", "_", checkpoint.name.rpartition("/")[2])
    first = _make_dense(checkpoint, f"{name}-dense")
    folder = Path(f"{name}-dense") if first else checkpoint.folder
    return [
        "# llama.cpp's converter; it needs Python with torch, transformers, sentencepiece and gguf",
        "git clone https://github.com/ggml-org/llama.cpp",
        _line("pip", "install", "-r", "llama.cpp/requirements/requirements-convert_hf_to_gguf.txt"),
        *_architecture(checkpoint.config),
        *first,
        *_tokenizer(checkpoint.folder),
        *_chat_template(checkpoint.folder),
        *_convert(folder, name, _outtype(checkpoint)),
    ]


def _line(*words: str | Path) -> str:
    return shlex.join(map(str, words))


def _architecture(config: dict[str, Any]) -> list[str]:
    match config.get("architectures"):
        case [str(architecture), *_]:
            wanted = _line("grep", "-w", architecture)
            return [
                "# is the architecture known to it?",
                f"python {_CONVERTER} --print-supported-models 2>&1 | {wanted}",
            ]
    return [
        "# config.json names no 'architectures', which the converter goes by: add the name of the",
        '# original, as in "architectures": ["LlamaForCausalLM"]',
    ]


def _make_dense(checkpoint: Checkpoint, dense: str) -> list[str]:
    """Commands that write a dense copy, or none where it is dense already."""
    if "plastic" in checkpoint.config:
        if not _is_by_rank(checkpoint):
            reason = "a plan gave it corrections of low rank, which GGUF has no tensors for"
            raise FormatError.about(checkpoint.folder, reason, "take what it was made from")
        return _from_factored(checkpoint, dense)
    if checkpoint.quantization is not None:
        return _from_quantized(checkpoint.folder, dense)
    return []


def _is_by_rank(checkpoint: Checkpoint) -> bool:
    """Tell whether its factors are all that there is of its layers, and the rest of them sleeps."""
    if not (checkpoint.folder / MANIFEST).exists():
        return not checkpoint.config["plastic"].get("corrected")
    return format_named(read_manifest(checkpoint.folder).format).parks


def _from_factored(checkpoint: Checkpoint, dense: str) -> list[str]:
    return [
        *_healing(checkpoint.folder),
        "# factored: the converter knows no such tensors, so write the same ranks as dense",
        "# matrices first (SOURCE is what was compressed)",
        _compress_command(checkpoint.folder, dense),
        "# or, with every component awake, the original:",
        f"#   {_line('plastic', 'restore', checkpoint.folder, dense)}",
    ]


def _healing(folder: Path) -> list[str]:
    """Say of a healed checkpoint that what follows is without the healing."""
    if not (folder / MANIFEST).exists() or "heal" not in read_manifest(folder).options:
        return []
    return [
        "# HEALED: no dense copy has what `plastic heal` changed; the commands below make the GGUF",
        "# of the checkpoint before it was healed",
    ]


def _compress_command(folder: Path, dense: str) -> str:
    """Return the command that made a factored checkpoint, but for the dense format."""
    if not (folder / MANIFEST).exists():
        return _line("plastic", "compress", "SOURCE", dense, "--keep", "KEEP", "--format", "dense")
    manifest = read_manifest(folder)
    options, source = manifest.options, manifest.source
    words = ["plastic", "compress", source["name"] if source["revision"] else "SOURCE", dense]
    if source["revision"]:
        words += ["--revision", source["revision"]]
    words += [
        "--keep",
        str(options["keep"]),
        "--strategy",
        options["strategy"],
        "--format",
        "dense",
    ]
    if options["calibration"]:
        windows = options["calibration"]
        if "set" not in windows:
            words += ["--calibration", "CALIBRATION_TEXT"]
        words += ["--window", str(windows["window"]), "--windows", str(windows["windows"])]
    for option in ("include", "exclude"):
        for pattern in options[option]:
            words += [f"--{option}", pattern]
    return _line(*words)


def _from_quantized(folder: Path, dense: str) -> list[str]:
    command: tuple[str | Path, ...]
    command = ("mlx_lm.convert", "--hf-path", folder, "--mlx-path", dense)
    if adapter_of(folder):
        adapter = ("--adapter-path", folder / ADAPTERS)
        command = ("mlx_lm.fuse", "--model", folder, *adapter, "--save-path", dense)
    lines = [
        "# quantised by MLX: the converter cannot map the scales, so write a dense copy first;",
        "# the unquantised original, where you have it, gives a better file",
        _line(*command, "--dequantize"),
    ]
    if (folder / "tokenizer.model").exists():
        lines += [
            "# mlx-lm leaves this file behind",
            _line("cp", folder / "tokenizer.model", dense),
        ]
    return lines


def _tokenizer(folder: Path) -> list[str]:
    sentencepiece = (folder / "tokenizer.model").exists()
    fast = (folder / "tokenizer.json").exists()
    if sentencepiece:
        also = "; Llama's converter takes it before tokenizer.json" if fast else ""
        return [f"# tokenizer: tokenizer.model (sentencepiece){also}"]
    if not fast:
        return ["# tokenizer: none here; put tokenizer.model or tokenizer.json beside config.json"]
    return [
        "# tokenizer: tokenizer.json. If it is a byte-level BPE, the converter must recognise its",
        "# pre-tokenizer by a checksum: those of published models pass; a newly trained or changed",
        "# one stops with 'BPE pre-tokenizer was not recognized'",
    ]


def _chat_template(folder: Path) -> list[str]:
    """Return where the converter finds the template: the first place that has one."""
    config = folder / "tokenizer_config.json"
    if config.exists() and "chat_template" in read_json(config):
        return ["# chat template: from tokenizer_config.json, carried over"]
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists():
            return [f"# chat template: from {name}, carried over"]
    return ["# chat template: none here, so llama.cpp will fall back to a default"]


def _outtype(checkpoint: Checkpoint) -> str:
    """Return the type that keeps most of the weights as they are."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in _OUTTYPE:
            sizes[_OUTTYPE[tensor.dtype]] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else "auto"


def _convert(folder: Path, name: str, outtype: str) -> list[str]:
    whole, small = f"{name}-{outtype}.gguf", f"{name}-Q4_K_M.gguf"
    convert = ("python", _CONVERTER, folder, "--outfile", whole, "--outtype", outtype)
    return [
        f"# convert, exactly as stored; other types: --outtype {{{','.join(OUTTYPES)}}}; in parts:",
        "# --split-max-size 4G. The folder of --outfile must exist",
        _line(*convert),
        "# the smaller types (Q4_K_M, Q5_K_M, Q6_K, ...) are made from that file",
        _line("llama-quantize", whole, small, "Q4_K_M"),
        _line("llama-cli", "-m", small, "-p", "Once upon a time"),
        "# do not use `mlx_lm.fuse --export-gguf`: llama.cpp refuses the vocabulary that it writes",
    ]
