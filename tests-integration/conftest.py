"""The trained checkpoint that the repository ships, and copies of it to spoil."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

DATA = Path(__file__).parent / "data" / "stdlib-llama"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A trained Llama of 0.9 M parameters; read only."""
    return DATA


@pytest.fixture(scope="session")
def calibration() -> Path:
    """Text of the kind it was trained on."""
    return DATA / "calibration.txt"


@pytest.fixture(scope="session")
def heldout() -> Path:
    """Text it was not trained on."""
    return DATA / "heldout.txt"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(DATA, tmp_path / "copy")
