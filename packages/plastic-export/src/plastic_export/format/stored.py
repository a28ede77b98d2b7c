"""The matrices of an output, read back from the parts that they are stored as."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from plastic_core.files import Closing, open_safetensors
from plastic_core.linalg import Float32, frobenius_norm
from plastic_runtime.dialling import SLEEP

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.folder.shards import as_float32, as_stored
from plastic_export.format.errors import Errors, dense_certificate
from plastic_export.format.parts import Part, Parts


class Terms(NamedTuple):
    """The terms that a matrix is the sum of: ``B + U_1 V_1 + U_2 V_2 + ...``

    Attributes:
        backbone: B, shape (out, in); None for none.
        products: Pairs of ``U`` (out, r) and ``V`` (r, in): what is awake, then what sleeps.
    """

    backbone: Float32 | None
    products: list[tuple[Float32, Float32]]

    def summed(self) -> Float32:
        """Return the dense matrix."""
        total = self.backbone
        for U, V in self.products:
            total = U @ V if total is None else total + U @ V
        assert total is not None
        return total


class StoredMatrices(Closing):
    """The files of an output, and its matrices as what they stand for. A context manager.

    Args:
        folder: The output; it may have no manifest yet.

    Attributes:
        model: Its model files.

    Raises:
        FormatError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            self.model: Checkpoint = stack.enter_context(open_checkpoint(folder))
            self._beside = {
                place: stack.enter_context(open_safetensors(path))
                for place, path in (("sleep", folder / SLEEP), ("adapter", folder / FOLDER / FILE))
                if path.is_file()
            }
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    def has(self, part: Part, dtype: str) -> bool:
        """Tell whether the tensor of a part is there and plain, of a storage type."""
        if part.place == "model":
            infos = self.model.tensors
        else:
            infos = self._beside[part.place].header.tensors if part.place in self._beside else {}
        return part.name in infos and infos[part.name].dtype == dtype

    def matrix(self, part: Part) -> Float32:
        """A part in float32, dequantised where it is packed: rows and columns of ``part.shape``."""
        if part.place == "model":
            matrix = self.model.matrix(part.name)
        else:
            matrix = as_float32(self._beside[part.place].array(part.name))
        return matrix.T if part.transposed else matrix

    def terms(self, parts: Parts, *, asleep: bool) -> Terms:
        """Return the terms that the parts of a matrix stand for.

        Args:
            parts: The parts.
            asleep: Whether what sleeps is among them.
        """
        backbone = None if parts.backbone is None else self.matrix(parts.backbone)
        pairs = [(parts.u, parts.v), *([(parts.asleep_u, parts.asleep_v)] if asleep else [])]
        return Terms(backbone, list(self._products(pairs)))

    def errors(self, W: Float32, parts: Parts, restored_to: str | None) -> Errors:
        """Measure how far what is stored of a matrix is from the matrix itself.

        Args:
            W: The matrix.
            parts: Its parts.
            restored_to: The storage type that it is given back in; None in a format that lets
                nothing sleep.
        """
        awake = self.terms(parts, asleep=False).summed()
        certificate = dense_certificate(W, awake)
        if restored_to is None:
            return Errors.of(W, certificate)
        asleep = Terms(awake, list(self._products([(parts.asleep_u, parts.asleep_v)])))
        restored = as_float32(as_stored(asleep.summed(), restored_to))
        return Errors.of(W, certificate, frobenius_norm(W - restored) / frobenius_norm(W))

    def _products(
        self, pairs: list[tuple[Part | None, Part | None]]
    ) -> Iterator[tuple[Float32, Float32]]:
        for u, v in pairs:
            if u is not None and v is not None:
                yield self.matrix(u).T, self.matrix(v)
