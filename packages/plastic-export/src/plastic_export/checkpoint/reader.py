"""A checkpoint, read one tensor at a time.

Nothing here runs code of a checkpoint, nor follows a path that it names. Tensors are read
from the descriptor whose header was checked, so that what is read is what was checked.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    Closing,
    FormatError,
    OpenFile,
    TensorInfo,
    array_from_bytes,
    changed,
    check_memory,
    copy_file,
    fingerprint,
    hub_identity,
    member,
    open_safetensors,
    read_json,
    recognise_name,
)

from plastic_export.checkpoint.architecture import revealed
from plastic_export.checkpoint.hub import SIDE_FILES, TEMPLATES, fetch, is_repository
from plastic_export.checkpoint.packing import (
    Packing,
    packing_of,
    quantization_of,
    unpacked,
    unpacked_shape,
)
from plastic_export.checkpoint.quantizers import Quantizer
from plastic_export.checkpoint.settings import check_layers
from plastic_export.checkpoint.tensors import FLOATS, is_packed, module_path
from plastic_export.checkpoint.weight_files import find_weights

CONFIG = "config.json"
QUANTIZATION = "hf_quant_config.json"  # of NVIDIA's ModelOpt


class Checkpoint(Closing):
    """A folder of safetensors, its headers checked. A context manager.

    At most one weight file is open at a time. Not for use by several threads at once.

    Attributes:
        folder: The folder.
        name: Its base name, or the id of the repository in the Hub.
        revision: The commit, for a repository in the Hub, else None.
        config: What ``config.json`` holds, the architecture of a factored one by its stock name.
        quantization: How an MLX checkpoint is quantised, None where it is not.
        quantizer: The other tool that quantised it, if one did.
        tensors: Every tensor by name, file by file and in the order of the bytes.
        weight_files: The files that hold them.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     print(checkpoint.name, len(checkpoint.tensors), checkpoint.config["model_type"])
        SRC 21 llama
    """

    name: str
    revision: str | None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name, self.revision = hub_identity(folder) or (folder.resolve().name, None)
        self.config = _read_config(folder)
        self.quantization = quantization_of(self.config, folder / CONFIG)
        weights = find_weights(folder)
        self.tensors = weights.tensors
        check_layers(self.config, len(self.tensors), folder / CONFIG)
        self.quantizer = Quantizer(self.config)
        coded = sum(t.nbytes for t in self.tensors.values() if t.dtype not in FLOATS)
        every = sum(t.nbytes for t in self.tensors.values())
        self.quantizer.check(folder / CONFIG, coded, every)
        self.weight_files = list(weights.fingerprints)
        self._fingerprints = weights.fingerprints
        self._open: OpenFile | None = None

    def raw(self, name: str, index: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, exactly as they are stored.

        Args:
            name: A key of ``tensors``.
            index: Along the first axis, for a part of the tensor.

        Returns:
            A new flat array.

        Raises:
            FormatError: If there is no such tensor, it does not fit into memory, or the file
                changed since the checkpoint was opened.
            OSError: If the system refuses.
        """
        info = _part(self._info(name), index)
        return self._file(info.file).read(info)

    def read(self, name: str, index: int | None = None) -> mx.array:
        """Return a tensor in its stored dtype, no bit changed; see `raw` for the errors."""
        info = _part(self._info(name), index)
        return array_from_bytes(self.raw(name, index), info.dtype, info.shape)

    def matrix(self, name: str, index: int | None = None) -> NDArray[np.float32]:
        """Return a weight in float32, dequantised where it is packed.

        Args:
            name: A key of ``tensors``, of a floating dtype or packed by MLX.
            index: Along the first axis, for one matrix of a stack.

        Returns:
            A new array of shape ``shape(name)``, every value finite. float16 and bfloat16
            are converted exactly. At most twice its bytes are in memory meanwhile.

        Raises:
            FormatError: If it is neither, if a value is NaN or infinite, or for the reasons
                of `raw`.
        """
        info, packing = _part(self._info(name), index), self.packing(name)
        shape = self.shape(name) if index is None else self.shape(name)[1:]
        check_memory(info.nbytes + 4 * math.prod(shape), info.file, name)
        if packing is not None:
            values = self._unpacked(module_path(name), packing, index)
        elif info.dtype in FLOATS:
            values = widened(self.raw(name, index), info.dtype).reshape(info.shape)
        else:
            reason = f"it holds {info.dtype}, and a weight is F32, F16, BF16 or packed by MLX"
            raise FormatError.about(info.file, reason, "exclude it", tensor=name)
        refuse_non_finite(values, info)
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that `matrix` gives, from the headers alone."""
        info, packing = self._info(name), self.packing(name)
        if packing is None:
            return info.shape
        return unpacked_shape(info, self._info(f"{module_path(name)}.scales"), packing)

    def packing(self, name: str) -> Packing | None:
        """Return how MLX packed the weight ``name``, None where it did not.

        Raises:
            FormatError: If ``config.json`` does not say how, or says what MLX cannot.
        """
        self._info(name)
        if not is_packed(name, self.tensors):
            return None
        if self.quantization is None:
            reason = f"it has no 'quantization', and {name!r} is packed"
            raise FormatError.about(self.folder / CONFIG, reason, "download it again")
        return packing_of(module_path(name), self.quantization, self.folder / CONFIG)

    @property
    def holds_codes(self) -> bool:
        """Tell whether weights are codes of another tool than MLX."""
        codes = (t for t in self.tensors.values() if t.dtype not in FLOATS and len(t.shape) > 1)
        return self.quantizer.method is not None and any(codes)

    def side_files(self) -> dict[str, Path]:
        """Return what is to be carried along unchanged: tokenizer, templates, licence.

        Returns:
            Files by their place in the folder, sorted. No code is among them.

        Raises:
            FormatError: If one is not a regular file or a link that leaves the folder.
        """
        return side_files_in(self.folder)

    def copy_side_files(self, folder: Path) -> None:
        """Copy `side_files` into a folder, byte for byte; see there for the errors."""
        for place, path in self.side_files().items():
            (folder / place).parent.mkdir(exist_ok=True)
            copy_file(path, folder / place, home=self.folder)

    def check_unchanged(self) -> None:
        """Make sure that nobody wrote to the weight files since they were opened.

        Raises:
            FormatError: If somebody did; what was read may then be a mixture.
        """
        for path, expected in self._fingerprints.items():
            if not path.exists() or fingerprint(path.stat()) != expected:
                raise changed(path)

    def close(self) -> None:
        """Close the open weight file, if there is one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            reason = "the checkpoint has no such tensor"
            raise FormatError.about(self.folder, reason, "check its name", tensor=name)
        return self.tensors[name]

    def _file(self, path: Path) -> OpenFile:
        if self._open is None or self._open.path != path:
            self.close()
            self._open = open_safetensors(path, expected=self._fingerprints[path])
        return self._open

    def _unpacked(self, path: str, packing: Packing, index: int | None) -> NDArray[np.float32]:
        optional = (f"{path}.global_scale",) if packing.mode == "nvfp4" else ()
        return unpacked(
            self.read(f"{path}.weight", index),
            self.read(f"{path}.scales", index),
            self.read(f"{path}.biases", index) if packing.mode == "affine" else None,
            packing,
            global_scale=next((self.read(n, index) for n in optional if n in self.tensors), None),
        )


def _part(info: TensorInfo, index: int | None) -> TensorInfo:
    """Return a tensor, or one item along its first axis."""
    if index is None:
        return info
    size = info.nbytes // info.shape[0]
    start = info.start + index * size
    return replace(info, shape=info.shape[1:], start=start, stop=start + size)


def open_checkpoint(source: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint and check every header of it; no tensor is read yet.

    Args:
        source: A folder, or the id ``owner/name`` of a repository in the Hugging Face Hub,
            of which only the files needed are downloaded. A folder of that name comes first.
        revision: Branch, tag or commit of the repository.

    Returns:
        The checkpoint, to be closed by the caller (``with`` does).

    Raises:
        FormatError: If there is none, or a file of it is missing, damaged or unsafe.
        ValueError: If ``revision`` is given for a folder.
        OSError: If the system refuses.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     checkpoint.matrix("lm_head.weight").shape
        (80, 64)
    """
    name = os.fspath(source)
    folder = Path(name)
    if not os.path.lexists(name):
        if not is_repository(name):
            remedy = "check the path, or give a Hub id as owner/name"
            raise FormatError.about(name, "there is no such folder", remedy)
        return Checkpoint(fetch(name, revision))
    if revision is not None:
        raise ValueError(f"`revision` must be None for a folder, got {revision!r} for {name}.")
    if not folder.is_dir():
        foreign = recognise_name(folder.suffix)
        reason = f"{foreign.what}, not a folder" if foreign else "it is not a folder"
        raise FormatError.about(folder, reason, "name the folder of a safetensors checkpoint")
    return Checkpoint(folder)


def side_files_in(folder: Path) -> dict[str, Path]:
    """Return the side files of a folder; see `Checkpoint.side_files`."""
    names = os.listdir(folder)
    if (folder / TEMPLATES).is_dir():
        names += [f"{TEMPLATES}/{name}" for name in os.listdir(folder / TEMPLATES)]
    wanted = [n for n in sorted(names) if _is_side_file(n) and not (folder / n).is_dir()]
    return {name: folder / name for name in wanted if member(folder, name)}


def _is_side_file(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in SIDE_FILES)


def _read_config(folder: Path) -> dict[str, Any]:
    if member(folder, CONFIG) is None:
        remedy = "name the folder of a checkpoint, or download it again"
        raise FormatError.about(folder, f"it holds no {CONFIG}", remedy)
    config = revealed(read_json(folder / CONFIG, home=folder))
    return _with_quantization(config, folder)


def _with_quantization(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Add what mlx-lm finds of a quantisation elsewhere: in the text's part, in a file apart."""
    if "quantization_config" in config:
        return config
    text = config.get("text_config")
    if isinstance(text, dict) and "quantization_config" in text:
        return config | {"quantization_config": text["quantization_config"]}
    if member(folder, QUANTIZATION) is not None:
        return config | {"quantization_config": read_json(folder / QUANTIZATION, home=folder)}
    return config


def widened(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return the exact values of the bytes of a BF16, F16 or F32 tensor, flat."""
    if dtype == "BF16":  # the upper half of a float32
        words: NDArray[np.uint32] = np.left_shift(data.view("<u2"), 16, dtype=np.uint32)
        return words.view(np.float32)
    return data.view("<f2" if dtype == "F16" else "<f4").astype(np.float32, copy=False)


def refuse_non_finite(
    values: NDArray[np.float32], info: TensorInfo, name: str | None = None
) -> None:
    """Refuse values of a tensor that are NaN or infinite.

    Args:
        values: The values.
        info: The tensor.
        name: What to call it, if not by its own name.

    Raises:
        FormatError: If there are any; the message says how many, and where the first one is.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    count = finite.size - int(np.count_nonzero(finite))
    first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), values.shape))
    reason = f"{count} of {values.size} values are NaN or infinite, the first at {first}"
    raise FormatError.about(info.file, reason, "repair it or exclude it", tensor=name or info.name)
