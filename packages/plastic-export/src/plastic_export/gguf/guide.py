"""The commands that take a checkpoint, an output or a run to llama.cpp."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json

from plastic_export.adapters.reading import is_adapter
from plastic_export.checkpoint.hub import fetch, is_repository
from plastic_export.checkpoint.reader import CONFIG, open_checkpoint
from plastic_export.folder.adapter_files import RUN_FILE, adapter_of
from plastic_export.gguf.metadata import architecture_of
from plastic_export.gguf.tokens.tokenizer import tokenizer_refusal
from plastic_export.merging.over_base import named_base

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")
"""What ``convert_hf_to_gguf.py`` writes; every other type is made by ``llama-quantize``."""

_OUTTYPE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_ENVIRONMENT = "gguf-env"
_PYTHON = f"{_ENVIRONMENT}/bin/python"
_CLONE = [
    "# llama.cpp's converter, in an environment of its own: what it pins breaks mlx-lm",
    "git clone https://github.com/ggml-org/llama.cpp",
    f"python -m venv {_ENVIRONMENT}",
    f"{_PYTHON} -m pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt",
]


@dataclass(frozen=True)
class _Subject:
    """What a guide is about: only its configuration and what lies beside its weights is read.

    Attributes:
        source: What was named: a folder or a Hub id.
        folder: The folder of it; of a Hub id, without weights.
        name: A name for files that are made from it.
        config: Its configuration.
        outtype: The type of most of its weights.
        is_dense: Whether the converter can read its weights.
    """

    source: str
    folder: Path
    name: str
    config: Mapping[str, Any]
    outtype: str
    is_dense: bool


def gguf_guide(source: str | os.PathLike[str], *, revision: str | None = None) -> list[str]:
    """Return a shell script, line by line, that takes this checkpoint or adapter to llama.cpp.

    Lines that begin with ``#`` explain; all others are commands. Words in capitals stand for
    what the source itself does not say.

    Args:
        source: A folder (checkpoint, output, run, adapter), or a Hub id of which the
            configuration and the tokenizer are downloaded, and no weights.
        revision: Commit, tag or branch of a Hub id.

    Returns:
        The lines, without line ends.

    Raises:
        FormatError: If there is no such thing, or a JSON file of it is damaged.
        ValueError: If ``revision`` is given for a folder.
        OSError: If a file cannot be read.

    Examples:
        >>> any(line.startswith("llama-completion -no-cnv") for line in gguf_guide("SRC"))
        True
    """
    place = os.fspath(source)
    if is_adapter(Path(place)):
        return list(_adapter_lines(Path(place)))
    subject = _subject(place, revision)
    refused = _refusal(subject)
    lines = _by_converter(subject, refused) if refused else _by_export(subject)
    return [*lines, *_runs(subject, of_converter=bool(refused))]


def _subject(source: str, revision: str | None) -> _Subject:
    if not os.path.lexists(source) and is_repository(source):
        return _of_hub(source, revision)
    with open_checkpoint(source, revision=revision) as checkpoint:
        sizes: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            if tensor.dtype in _OUTTYPE:
                sizes[_OUTTYPE[tensor.dtype]] += tensor.nbytes
        outtype = sizes.most_common(1)[0][0] if sizes else "auto"
        packed = checkpoint.quantization is not None or "plastic" in checkpoint.config
        is_dense = not packed and adapter_of(checkpoint.folder) is None
        folder, config = checkpoint.folder, checkpoint.config
        return _Subject(source, folder, _plain(checkpoint.name), config, outtype, is_dense)


def _of_hub(repository: str, revision: str | None) -> _Subject:
    folder = fetch(repository, revision, weights=False)
    if not (folder / CONFIG).is_file():
        raise FormatError.about(repository, f"it holds no {CONFIG}", "name another repository")
    config = read_json(folder / CONFIG)
    outtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "auto")
    is_dense = "quantization" not in config and "plastic" not in config
    return _Subject(repository, folder, _plain(repository), config, outtype, is_dense)


def _plain(name: str) -> str:
    """A name for files: that of a folder or repository, without what a shell would take amiss."""
    return re.sub(r"[^\w.-]", "_", name.rpartition("/")[2])


def _refusal(subject: _Subject) -> str:
    """Say why `plastic export` does not write it; empty where it does."""
    try:
        architecture_of(subject.config, subject.folder)
    except FormatError as error:
        return str(error).partition(";")[0].removeprefix(f"{subject.folder}: ")
    return tokenizer_refusal(subject.folder)


def _line(*words: str | Path) -> str:
    return shlex.join(map(str, words))


def _by_export(subject: _Subject) -> list[str]:
    kept = "as stored: codes of MLX in the least GGUF types that hold them"
    if subject.is_dense:
        kept = f"exactly as stored ({subject.outtype})"
    return [
        f"# one file, {kept}; or --type f32, f16, bf16, q8_0",
        _line("plastic", "export", subject.source, _file(subject), "--to", "gguf"),
    ]


def _file(subject: _Subject) -> str:
    kind = subject.outtype if subject.is_dense else "stored"
    return f"{subject.name}-{kind}.gguf"


def _by_converter(subject: _Subject, refused: str) -> list[str]:
    dense = Path(f"{subject.name}-dense")
    copy = _line("plastic", "export", subject.source, dense, "--to", "dense")
    download = _line("hf", "download", subject.source, "--local-dir", dense)
    first = [] if subject.is_dense else ["# a dense copy first, which it can read", copy]
    if subject.is_dense and subject.source != str(subject.folder):
        first = [download] if is_repository(subject.source) else []
    folder = dense if first else subject.folder
    converter = "llama.cpp/convert_hf_to_gguf.py"
    convert = (_PYTHON, converter, folder, "--outfile", _file(subject))
    outtype = subject.outtype if subject.is_dense else "auto"
    return [
        f"# `plastic export --to gguf` does not write it ({refused})",
        *_CLONE,
        *_architecture(subject.config, converter),
        *first,
        *_tokenizer(subject.folder),
        *_chat_template(subject.folder),
        f"# other types: --outtype {{{','.join(OUTTYPES)}}}; in parts: --split-max-size 4G",
        _line(*convert, "--outtype", outtype),
    ]


def _architecture(config: Mapping[str, Any], converter: str) -> list[str]:
    match config.get("architectures"):
        case [str(architecture), *_]:
            wanted = _line("grep", "-w", architecture)
            return [
                "# is the architecture known to it?",
                f"{_PYTHON} {converter} --print-supported-models 2>&1 | {wanted}",
            ]
    return [
        "# config.json names no 'architectures', which the converter goes by: add the name of the",
        '# original, as in "architectures": ["LlamaForCausalLM"]',
    ]


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


def _runs(subject: _Subject, *, of_converter: bool) -> list[str]:
    """Return how smaller types are made of the file, and how it is run."""
    whole, small = _file(subject), f"{subject.name}-Q4_K_M.gguf"
    if not subject.is_dense and not of_converter:
        return [
            "# smaller types (Q4_K_M, Q5_K_M, ...) are made by llama-quantize from --type f16",
            _line("llama-completion", "-no-cnv", "-m", whole, "-p", "Once upon a time"),
        ]
    return [
        "# the smaller types (Q4_K_M, Q5_K_M, Q6_K, ...) are made from that file",
        _line("llama-quantize", whole, small, "Q4_K_M"),
        _line("llama-completion", "-no-cnv", "-m", small, "-p", "Once upon a time"),
        "# do not use `mlx_lm.fuse --export-gguf`: llama.cpp refuses the vocabulary that it writes",
    ]


def _adapter_lines(folder: Path) -> Iterator[str]:
    """The lines for an adapter or a run."""
    name = _plain(folder.resolve().name)
    base, given = _base_of(folder)
    lora, whole = f"{name}-lora.gguf", f"{_plain(base)}.gguf"
    yield "# the adapter, and the checkpoint that it goes over"
    yield _line("plastic", "export", folder, lora, "--to", "gguf", *given)
    yield _line("plastic", "export", base, whole, "--to", "gguf")
    run = ("llama-completion", "-no-cnv", "-m", whole, "--lora", lora)
    yield _line(*run, "-p", "Once upon a time")
    yield "# or both in one file"
    fused = ("plastic", "export", folder, f"{name}.gguf", "--to", "gguf", "--piece", "whole")
    yield _line(*fused, *given)
    if (folder / RUN_FILE).is_file():
        yield "# or by llama.cpp's converter"
        yield from _CLONE[1:]
        converter = (_PYTHON, "llama.cpp/convert_lora_to_gguf.py", folder / "peft")
        yield _line(*converter, "--base", base, "--outfile", lora)


def _base_of(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The base of an adapter, and the option that names it where the adapter does not."""
    try:
        return named_base(folder)[0], ()
    except FormatError:
        return "BASE", ("--base", "BASE")
