"""What rows have in common: the source, the texts, how much of them is read, where things lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plastic_core.files import json_digest, sha256_file
from plastic_export import Calibration, open_checkpoint

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
BOARD = DATA.with_name("board")


@dataclass(frozen=True)
class Setting:
    """What every row of a table shares.

    Attributes:
        source: Folder of the checkpoint.
        calibration: Text to calibrate on; None for the shipped set.
        texts: Texts to measure on.
        window: Tokens of a window of the calibration text.
        windows: How many are read, by every method.
        measured: Windows of every text that are measured.
        measured_window: Tokens of each.
        embeddings: Whether embeddings are among the matrices.
        exclude: Glob patterns of matrices to leave alone.
        budgets: Bits per weight that our plans are made for.
        work: Folder of plans, Grams, log-probabilities and outputs.
    """

    source: Path
    calibration: Path | None
    texts: tuple[Path, ...]
    window: int
    windows: int
    measured: int
    measured_window: int
    embeddings: bool
    exclude: tuple[str, ...]
    budgets: tuple[float, ...]
    work: Path

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Setting:
        """Return what `as_json` made a record of."""
        calibration = record["calibration"]
        changed = {
            "source": Path(record["source"]),
            "calibration": None if calibration is None else Path(calibration),
            "texts": tuple(map(Path, record["texts"])),
            "exclude": tuple(record["exclude"]),
            "budgets": tuple(record["budgets"]),
            "work": Path(record["work"]),
        }
        return cls(**{**record, **changed})

    def as_json(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return record

    @property
    def text(self) -> Calibration:
        """What every method calibrates on."""
        return Calibration(self.calibration, self.window, self.windows)

    @cached_property
    def planned(self) -> dict[str, Any]:
        """All that plans depend on, beside the budget and the format."""
        return {
            "source": self._source,
            "calibration": self.text.record(),
            "embeddings": self.embeddings,
            "exclude": sorted(self.exclude),
        }

    @cached_property
    def judged(self) -> dict[str, Any]:
        """All that the predictions of the source depend on."""
        return {
            "source": self._source,
            "texts": {text.stem: sha256_file(text) for text in self.texts},
            "measured": [self.measured, self.measured_window],
        }

    @cached_property
    def _source(self) -> str:
        """The SHA-256 of the weights and of the configuration."""
        with open_checkpoint(self.source) as checkpoint:
            digests = [sha256_file(file) for file in sorted(checkpoint.weight_files)]
            return json_digest([*digests, checkpoint.config])

    @property
    def place(self) -> Path:
        """The folder of plans, Grams and outputs."""
        return self.work / json_digest(self.planned)[:12]

    @property
    def reference(self) -> Path:
        """The file of the log-probabilities of the source."""
        return self.work / f"{json_digest(self.judged)[:12]}.reference"

    def folder_of(self, table: str, method: str, budget: Any, steps: int) -> Path:
        """Return the folder in which a row is made."""
        return self.place / f"{table}-{method}-{shown(budget)}-{steps}"


def shown(budget: Any) -> str:
    """Return a budget as tables have it: ``"3.5"``, or ``"2+0.25"`` for bits and those of factors.

    Examples:
        >>> shown(3.0), shown((2, 0.25))
        ('3', '2+0.25')
    """
    return "{}+{:g}".format(*budget) if isinstance(budget, tuple | list) else f"{budget:g}"
