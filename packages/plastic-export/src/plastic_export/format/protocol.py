"""The protocol of a format: everything that the rest of the package asks of one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.rounding import UNPACKED
from plastic_runtime import LossGrams
from plastic_runtime.dialling import DIALLED_FORMATS, ComponentCurve

from plastic_export.folder.header_bytes import entry_bytes
from plastic_export.folder.places import Framework
from plastic_export.format.errors import Errors
from plastic_export.format.parts import Parts, Pieces, whole_specs
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Candidate, Choice, Offer


class Encoded(NamedTuple):
    """The stored pieces of one matrix, their errors, and what fewer components would cost."""

    pieces: Pieces
    errors: Errors
    curve: ComponentCurve | None = None


class Format:
    """A way of laying out a compressed checkpoint. One file per format derives from it.

    A subclass says which parts a matrix becomes and computes what is stored in them. All else has
    a default that follows from the parts: `plastic_export.format.layout` places their tensors,
    `plastic_export.format.stored` reads the dense weight back from them.

    Attributes:
        name: The name that the commands and the manifest use.
        choices: What a plan in this format offers for a matrix; None for a format by rank.
        one_rank: Whether all corrections of a plan have one rank.
        parks: Whether what is left out sleeps beside the model, so that it can be restored.
        linears_only: Whether it holds nothing but ``nn.Linear`` layers of mlx-lm's model.
        about: What the help of the command says of it, in one line.
        beside: Paths in the output, other than those that outputs of every format have.
        framework: Whose layout the model's tensors have, for the headers of its files.

    Examples:
        >>> from plastic_export.format import FORMATS
        >>> m = Candidate("p.weight", (64, 64), "BF16", group_size=64, source_bytes=8192)
        >>> parts = FORMATS["mixed"].parts(m, Offer(4, 2304, 0.0, group_size=64))
        >>> [spec.name for spec in parts.backbone.specs]
        ['p.weight', 'p.scales', 'p.biases']
    """

    name: str
    choices: Choices | None = None
    one_rank = False
    parks = False
    linears_only = False
    about: str
    beside: tuple[str, ...] = ()
    framework: Framework = "mlx"

    @property
    def dials(self) -> bool:
        """Whether its components can be left out, in the order of their worth."""
        return self.name in DIALLED_FORMATS

    @property
    def packs_factors(self) -> bool:
        """Whether the bits of the factors of a correction can be chosen."""
        return self.choices is not None and any(b != UNPACKED for b in self.choices.factor_bits)

    def check(self, choices: Mapping[str, Choice]) -> None:
        """Refuse what this format cannot hold of a plan that may have been edited.

        Args:
            choices: What each matrix takes, by tensor name.

        Raises:
            ValueError: Naming what it cannot hold.
        """

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """Decide what a matrix becomes under an offer. Pure.

        Returns:
            The parts; none of them where the matrix is copied as it is.
        """
        raise NotImplementedError

    def bias_name(self, path: str, offer: Offer) -> str:
        """Return the name of the bias of a layer whose weight is stored under an offer."""
        return f"{path}.bias"

    def encode(
        self, weight: NDArray[np.float32], m: Candidate, offer: Offer, grams: LossGrams | None
    ) -> Encoded:
        """Compute what is stored of one matrix, or of one of a stack. Runs in a worker.

        Args:
            weight: The matrix, shape (out, in).
            m: What it is, or is one of.
            offer: How it is stored; not as it is in the source.
            grams: Both Grams of the layer; None where none was measured.

        Raises:
            ValueError: If a value does not fit the storage type.
        """
        raise NotImplementedError

    def own_layers(self, offer: Offer, parts: Parts) -> dict[str, Any]:
        """Return what config.json tells ``plastic_model.py`` of a layer: an entry by kind, or none.

        See the docstring of that file for the kinds ``"ranks"`` and ``"corrected"``.
        """
        return {}

    def write_beside(self, folder: Path, chosen: Mapping[str, Offer]) -> None:
        """Write what the format needs beside the tensors and config.json; by default nothing."""

    def needs_model_file(self, offers: Iterable[Offer]) -> bool:
        """Tell whether mlx-lm asks for ``--trust-remote-code`` before it runs the result."""
        return False

    def how_to_run(self, out: Path, offers: Iterable[Offer]) -> list[str]:
        """The lines that say how to run the result in ``out``."""
        flag = " --trust-remote-code" if self.needs_model_file(offers) else ""
        return [f"run it     mlx_lm.generate --model {shlex.quote(str(out))}{flag} --prompt ..."]

    def header_bytes(self, m: Candidate, offer: Offer, nbytes: int) -> int:
        """Return what an offer adds to the headers of the files, for a source of ``nbytes``."""
        specs = [spec for part in self.parts(m, offer).present for spec in part.specs]
        return entry_bytes(specs or whole_specs(m), nbytes)
