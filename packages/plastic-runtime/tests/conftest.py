"""A small factored folder, written by hand, and the model that its layers belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_core.files import export_safetensors, load_safetensors, sha256_file, write_json
from plastic_runtime.dialling import MatrixRecord, encoded_spectrum, sealed

OUT, IN, AWAKE = 32, 8, 5
NAMES = ("block.0.up.weight", "block.1.up.weight")


class Thin(nn.Module):
    """A layer of two factors, as the model file of a factored checkpoint has them."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.v = nn.Linear(IN, rank, bias=False)
        self.u = nn.Linear(rank, OUT, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.u(self.v(x))


class Block(nn.Module):
    """One block."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.up = Thin(rank)


class ThinModel(nn.Module):
    """Two layers one after the other."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.block = [Block(rank) for _ in NAMES]
        self.scale = mx.ones((OUT,), mx.bfloat16)

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.block:
            x = (self.scale * block.up(x))[..., :IN]
        return x


def record_of(name: str, seed: int) -> MatrixRecord:
    """What a manifest says of one of the matrices."""
    spectrum = np.sort(np.random.default_rng(seed).uniform(0.1, 2, IN))[::-1]
    return MatrixRecord(
        name, (OUT, IN), "BF16", 2 * OUT * IN, AWAKE * 2 * (OUT + IN), 0.1, 0.1, 0.0,
        rank=AWAKE, parked=IN - AWAKE, factor_bits=16, spectrum=encoded_spectrum(spectrum),
    )  # fmt: skip


def write_factored(folder: Path, **changes: Any) -> Path:
    """Write a folder of the format ``"factored"``; ``changes`` replace entries of its manifest."""
    folder.mkdir()
    model: dict[str, mx.array] = {"scale": mx.ones((OUT,), mx.bfloat16)}
    asleep: dict[str, mx.array] = {}
    for number, name in enumerate(NAMES):
        path, keys = name.removesuffix(".weight"), mx.random.split(mx.random.key(number))
        u = mx.random.normal((OUT, IN), key=keys[0]).astype(mx.bfloat16)
        v = mx.random.normal((IN, IN), key=keys[1]).astype(mx.bfloat16)
        model |= {f"{path}.u.weight": u[:, :AWAKE], f"{path}.v.weight": v[:AWAKE]}
        asleep |= {f"{path}.sleep.u": u[:, AWAKE:].T, f"{path}.sleep.v": v[AWAKE:]}
    export_safetensors(folder / "model.safetensors", model)
    export_safetensors(folder / "sleep.safetensors", asleep)
    manifest = {
        "schema": 4,
        "options": {"format": "factored", "strategy": "energy"},
        "source": {"name": "thin", "revision": None, "files": {}, "tensors": {}},
        "matrices": [asdict(record_of(name, i)) for i, name in enumerate(NAMES)],
        "tensors": {},
        "rows": {},
        "files": {
            p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in folder.iterdir()
        },
    }
    write_json(folder / "plastic.json", sealed(manifest | changes))
    return folder


def load_factored(folder: str | Path) -> ThinModel:
    """Load it as mlx-lm would."""
    model = ThinModel(AWAKE)
    model.load_weights(list(load_safetensors(Path(folder) / "model.safetensors").items()))
    return model


@pytest.fixture
def thin_folder(tmp_path: Path) -> Path:
    """A factored folder of two matrices, five of eight components awake in each."""
    return write_factored(tmp_path / "FACTORED")


@pytest.fixture
def make_thin() -> Callable[..., Path]:
    """A function that writes such a folder: ``make(path, **changes)``."""
    return write_factored


@pytest.fixture
def load_thin() -> Callable[[str | Path], ThinModel]:
    """A function that loads it."""
    return load_factored
