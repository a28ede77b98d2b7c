"""What one process computed reaches its place with its bits, or not at all."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from plastic_core.files import FormatError, TensorSpec, load_safetensors
from plastic_export.compression.encoded_shares import FOLDER, EncodedShares, Tensors
from plastic_export.folder.shards import Shards

SPECS = [TensorSpec("w.weight", "U32", (2, 2)), TensorSpec("w.scales", "BF16", (2,))]
WEIGHT, SCALES = mx.array([[1, 2], [3, 4]], mx.uint32), mx.array([1.5, -0.0], mx.bfloat16)


@pytest.fixture
def shares(tmp_path: Path) -> EncodedShares:
    tensors = Tensors()
    tensors.file("model").write("w.weight", WEIGHT)
    tensors.file("model").write("w.scales", SCALES)
    left = EncodedShares(tmp_path)
    left.put("w", tensors, {"errors": [0.1]})
    return left


def test_tensors_reach_their_place_in_their_order(tmp_path: Path, shares: EncodedShares) -> None:
    assert "w" in shares
    assert "v" not in shares
    with Shards(tmp_path, SPECS, {}) as files:
        assert shares.move("w", {"model": files}) == {"errors": [0.1]}
    found = load_safetensors(tmp_path / "model.safetensors")
    assert mx.array_equal(found["w.weight"], WEIGHT)
    assert mx.array_equal(found["w.scales"].view(mx.uint16), SCALES.view(mx.uint16))
    shares.drop("w")
    assert "w" not in shares
    shares.remove()
    shares.remove()
    assert not (tmp_path / FOLDER).exists()


def test_a_tensor_that_was_damaged_is_named(tmp_path: Path, shares: EncodedShares) -> None:
    (file,) = (tmp_path / FOLDER).iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with (
        pytest.raises(FormatError, match=r"w\.\w+'?.*damaged"),
        Shards(tmp_path, SPECS, {}) as files,
    ):
        shares.move("w", {"model": files})
